"""The Python API: `inspect`, `check` and `dryrun`. The commands are thin wrappers around these."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from compatkit.knowledge.store import Knowledge, load
from compatkit.sources.network import Network
from compatkit.sources.open import is_remote, shown_name
from compatkit.stacks import wholes
from compatkit.stacks.files import ROLES, Request, opened, parse_request, requests, unreadable
from compatkit.vocabulary import Component, Cost, FileProblem, Finding, Place, Report, Runtime, SourceError, Stack

if TYPE_CHECKING:
    from compatkit.checks.diagnosis import Cause
    from compatkit.stacks.lockfile import LockedSource
    from compatkit.stacks.workflow.plan import Plan

#: Settings of a run that `--set` takes. One that no check reads yet stands in `not_checked`.
SETTINGS = (
    "clip_type", "steps", "cfg", "sampler", "scheduler", "shift", "dtype", "latent_node", "width", "height", "offload",
    "torch", "driver", "disk_free", "vram",
)  # fmt: skip

_NUMBERS = frozenset({"steps", "cfg", "shift", "width", "height"})
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_VERSION = re.compile(r"v?\d+(?:\.\d+)*(?:[.+-]?\w+)*|[0-9a-f]{6,40}")


def inspect(
    source: str | os.PathLike[str],
    *,
    role: str | None = None,
    assume: str | None = None,
    rules: Iterable[Path] = (),
    headers_only: bool = False,
    offline: bool = False,
    full: bool = False,
) -> list[Component]:
    """What one source holds, from its header and a few small tensors (`headers_only`: from its header alone).

    A file that cannot be read as a model gives one component of role "unknown" whose `problems` say why.

    Raises:
        SourceError: there is no such file, or it may not be read.
        RulesError: a rule file is refused.
    """
    request = parse_request(os.fspath(source))
    request = Request(request.source, role or request.role, assume)
    with Network(offline=offline, full=full) as network:
        return opened(request, load(tuple(rules)), headers_only=headers_only, network=network)


def check(
    sources: Iterable[str | os.PathLike[str]],
    *,
    runtime: Iterable[str] = (),
    assume: Mapping[str, str] | None = None,
    require: Sequence[str] = (),
    rules: Iterable[Path] = (),
    headers_only: bool = False,
    offline: bool = False,
    full: bool = False,
    models: Sequence[str] = (),
    comfyui: str | None = None,
    links: bool = False,
    **settings: str,
) -> Report:
    """Judge a set of files.

    Args:
        sources: paths, each optionally as `ROLE=SOURCE`; also a `stack.toml`, `stack.lock` or ComfyUI workflow.
        runtime: loaders that must open the set, `NAME` or `NAME@VERSION`; none: the family's usual one.
        assume: file -> family, overriding identification.
        require: roles that must be in the set.
        rules: folders of further rules.
        headers_only: read no small tensors, not even where they decide what the header cannot.
        offline: never use the network; answer for sources elsewhere from the header cache.
        full: read the whole header of sources elsewhere, also where a part of it tells what they are.
        models: folders where a workflow's files lie, laid out as ComfyUI's models folder.
        comfyui: a ComfyUI install: its models folder, its `extra_model_paths.yaml` and its version.
        links: read a workflow's files that are not here from where the workflow says they can be had.
        settings: of the run, such as `clip_type="lumina2"` (see `SETTINGS`).

    Raises:
        SourceError: nothing could be examined, or an argument is not understood.
        RulesError: a rule file is refused.
    """
    start = time.perf_counter()
    found = _set(
        sources, runtime, assume, require, rules, headers_only, offline, full, models, comfyui, links, settings
    )
    from compatkit.checks import judge

    report = _judged(found, lambda stack: judge(stack, found.knowledge))
    return replace(report, cost=found.cost(start))


def dryrun(
    sources: Iterable[str | os.PathLike[str]],
    *,
    runtime: Iterable[str] = (),
    assume: Mapping[str, str] | None = None,
    require: Sequence[str] = (),
    rules: Iterable[Path] = (),
    headers_only: bool = False,
    offline: bool = False,
    full: bool = False,
    models: Sequence[str] = (),
    comfyui: str | None = None,
    links: bool = False,
    join: bool = False,
    **settings: str,
) -> Report:
    """Run a set on tensors without weights, with the torch that is installed beside compatkit (extra: torch).

    Headers are all that is read. torch runs in a process of its own: where it is not there or broken, the report says
    so and its verdict is unknown.

    Args:
        join: the findings of `check` too; the worse verdict counts.
        sources, runtime, assume, require, rules, headers_only, offline, full, models, comfyui, links, settings: as for
            `check`.

    Raises:
        SourceError: nothing could be examined, or an argument is not understood.
        RulesError: a rule file is refused.
    """
    start = time.perf_counter()
    found = _set(
        sources, runtime, assume, require, rules, headers_only, offline, full, models, comfyui, links, settings
    )
    from compatkit.checks import judge
    from compatkit.dryrun import dry
    from compatkit.dryrun.run import Worker

    with Worker() as worker:

        def one(stack: Stack) -> Report:
            header = judge(stack, found.knowledge)
            report = dry.dry_run(stack, found.knowledge, header, worker)
            return dry.joined(header, report) if join else report

        report = _judged(found, one, files=join)
    return replace(report, cost=found.cost(start))


class _Found(NamedTuple):
    """A set, opened: what `check` and `dryrun` judge."""

    stack: Stack
    knowledge: Knowledge
    places: Mapping[str, Place]
    plan: Plan | None
    requests: int
    bytes: int

    def cost(self, start: float) -> Cost:
        """What it cost, `start` being when it began."""
        return Cost(self.requests, self.bytes, time.perf_counter() - start)


def _set(
    sources: Iterable[str | os.PathLike[str]],
    runtime: Iterable[str],
    assume: Mapping[str, str] | None,
    require: Sequence[str],
    rules: Iterable[Path],
    headers_only: bool,
    offline: bool,
    full: bool,
    models: Sequence[str],
    comfyui: str | None,
    links: bool,
    settings: Mapping[str, str],
) -> _Found:
    named = wholes.named([os.fspath(s) for s in sources])
    stack = named.stack
    rules = wholes.rules(stack, rules)
    knowledge = load(rules)
    settings = {**(stack.settings if stack else {}), **settings}
    _known_settings(settings)
    _known_roles(require)
    named_runtimes = tuple(runtime) or (stack.runtimes if stack else ()) or install_runtime(comfyui)
    runtimes = tuple(_runtime(r, knowledge) for r in named_runtimes)
    components: list[Component] = []
    unreachable: list[str] = []
    plan = _plan(named, knowledge, models, comfyui, links)
    wanted = requests(plan.requests if plan else named.sources, assume or {}, knowledge)
    with Network(offline=offline, full=full) as network:
        for request, found in zip(wanted, _opened(wanted, knowledge, headers_only, network), strict=True):
            if isinstance(found, SourceError):
                unreachable.append(str(found))
                fix = "Give the path of a file that exists and may be read."
                problem = found.problem or FileProblem("file/unreadable", str(found), fix)
                components.append(unreadable(request, problem))
            else:
                components += named.compared(request, found)
        if named.locked and not offline:
            components = _since(named.locked, components, network)
    if len(unreachable) == len(wanted) and not plan:
        raise SourceError("; ".join(unreachable) or "no source is given")
    if plan:
        components += plan.absent()
        settings = {k: str(v) for k, v in settings.items()}
    set_ = Stack(tuple(components), runtimes, {**settings, **wholes.unread(stack)}, tuple(require))
    if stack:
        set_ = replace(set_, complete=True, locked=bool(named.locked), policy=stack.policy, licenses=stack.licenses)
    return _Found(set_, knowledge, stack.places if stack else {}, plan, network.requests, network.bytes)


def _plan(
    named: wholes.Named, knowledge: Knowledge, models: Sequence[str], comfyui: str | None, links: bool
) -> Plan | None:
    """What a workflow among the sources stands for; None where there is none."""
    if named.workflow is None:
        if models:
            raise SourceError("--models says where a workflow's files lie; there is no workflow among the sources")
        return None
    from compatkit.stacks.workflow import places, plan

    roots = [places.models_folder(m) for m in (*models, *([comfyui] if comfyui else []))]
    extra = places.extra_paths(comfyui) if comfyui else {}
    return plan.plan(named.workflow, named.sources, knowledge, models=roots, extra=extra, links=links)


def _judged(found: _Found, one: Callable[[Stack], Report], files: bool = True) -> Report:
    """The report about a set, or about a workflow: every sampler's set, or all files at once where no sampler is known.

    `one` judges one set; `files`: what is wrong with files that reach no sampler is told too.
    """
    plan = found.plan
    if plan is None:
        return replace(one(found.stack), places=found.places)
    from compatkit.checks.merge import judge_all

    components = found.stack.components
    stacks = list(plan.stacks(list(components), replace(found.stack, components=())))
    if stacks:
        report = judge_all(stacks, components, found.knowledge, plan.notes, one, files)
    else:
        report = one(found.stack)
        report = replace(report, not_checked=(*report.not_checked, *plan.notes))
        if report.verdict == "pass":
            report = replace(report, verdict="unknown", headline=report.headline.replace("pass", "unknown", 1))
    return replace(report, places=plan.places())


def install_runtime(comfyui: str | None) -> tuple[str, ...]:
    """The runtime of an install, with the version its own file names; empty without one.

    Raises:
        SourceError: there is no such folder.
    """
    if comfyui is None:
        return ()
    if not Path(comfyui).is_dir():
        raise SourceError(f"--comfyui {comfyui}: there is no such folder")
    try:
        text = Path(comfyui, "comfyui_version.py").read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        return ("comfyui",)
    found = re.search(r"__version__\s*=\s*[\"'](\d[\w.+-]*)[\"']", text)
    return (f"comfyui@{found[1]}",) if found else ("comfyui",)


def _since(locked: Sequence[LockedSource], components: list[Component], network: Network) -> list[Component]:
    """The components, with a problem of level info where the repository of a locked source has moved on."""
    from compatkit.fetch.resolve import newer

    known: dict[tuple[str, ...], Any] = {}
    for one in locked:
        try:
            message = newer(one, network, known)
        except SourceError:  # that the place cannot be listed now says nothing about the locked files
            continue
        at = next((i for i, c in enumerate(components) if c.source.startswith(shown_name(one.entry.source))), None)
        if message and at is not None:
            fix = "Write the lock anew with `compatkit lock` to take the new version."
            problem = FileProblem("file/newer", message, fix, level="info")
            components[at] = replace(components[at], problems=(*components[at].problems, problem))
    return components


def _opened(
    wanted: Sequence[Request], knowledge: Knowledge, headers_only: bool, network: Network
) -> list[list[Component] | SourceError]:
    """Each source's components, or why there are none; sources elsewhere are read at the same time."""

    def one(request: Request) -> list[Component] | SourceError:
        try:
            return opened(request, knowledge, headers_only=headers_only, network=network)
        except SourceError as e:
            return e

    far = any(is_remote(request.source) for request in wanted)
    return network.map(one, wanted) if far else [one(request) for request in wanted]


def inspect_all(
    sources: Sequence[str],
    rules: Iterable[Path] = (),
    headers_only: bool = False,
    offline: bool = False,
    full: bool = False,
    models: Sequence[str] = (),
    comfyui: str | None = None,
    links: bool = False,
) -> tuple[list[Component], list[str]]:
    """The components of several sources, and a sentence for each that could not be opened. Of a workflow: its files."""
    knowledge = load(tuple(rules))
    components: list[Component] = []
    unreachable: list[str] = []
    wanted: list[Request] = []
    if plan := workflow_plan(sources, rules, models, comfyui, links):
        wanted, sources = list(plan.requests), ()
        unreachable += [p.message for c in plan.absent() for p in c.problems]
    for source in sources:
        try:
            wanted.append(parse_request(source))
        except SourceError as e:
            unreachable.append(str(e))
    with Network(offline=offline, full=full) as network:
        for found in _opened(wanted, knowledge, headers_only, network):
            if isinstance(found, SourceError):
                unreachable.append(str(found))
            else:
                components += found
    return components, unreachable


def is_workflow(source: str) -> bool:
    """Whether a source could be a ComfyUI workflow: a JSON object or a PNG on this machine."""
    from compatkit.stacks.workflow.graph import looks_like

    return looks_like(source)


def workflow_plan(
    sources: Sequence[str],
    rules: Iterable[Path] = (),
    models: Sequence[str] = (),
    comfyui: str | None = None,
    links: bool = False,
) -> Plan | None:
    """What a workflow among the sources stands for; None where there is none. Raises as `check`."""
    if not any(is_workflow(s) for s in sources):
        return None
    return _plan(wholes.named(sources), load(tuple(rules)), models, comfyui, links)


def opened_as(text: str, rules: Iterable[Path] = ()) -> tuple[str | None, str, list[Component]]:
    """(the role the user gave, the source, its components) of one `[ROLE=]SOURCE`. Raises as `inspect`."""
    request = parse_request(text)
    return request.role, request.source, opened(request, load(tuple(rules)))


def diagnose(text: str, sources: Sequence[str] = (), *, rules: Iterable[Path] = ()) -> list[Cause]:
    """The causes of an error text or a log, best first; with the set's files, those its findings confirm stand first.

    Raises:
        SourceError: sources are given and none can be opened.
    """
    rules = tuple(rules)
    return causes(text, check(sources, rules=rules).findings if sources else (), rules)


def causes(text: str, findings: Iterable[Finding] = (), rules: Iterable[Path] = ()) -> list[Cause]:
    """`diagnose`, with the findings of a check that was made already."""
    from compatkit.checks.diagnosis import diagnose as run

    knowledge = load(tuple(rules))
    return run(text, knowledge.table("errors"), knowledge.table("known") or {}, findings)


def run_facts(text: str, rules: Iterable[Path] = ()) -> dict[str, str]:
    """What a log says of the run: versions, card, dtypes, what was loaded."""
    from compatkit.checks.diagnosis import run_facts as read

    return read(text, load(tuple(rules)).table("errors"))


def problem_findings(components: Sequence[Component]) -> list[Finding]:
    """What is wrong with the files themselves, as findings."""
    return [
        Finding(p.rule, p.level, (i,), p.message, {}, p.fix, p.evidence)
        for i, c in enumerate(components)
        for p in c.problems
    ]


def inspect_exit_code(components: Sequence[Component], unreachable: Sequence[str]) -> int:
    """0 all identified, 1 a damaged or missing file, 2 nothing could be opened, 3 something is not recognised."""
    if not components:
        return 2
    if unreachable or any(p.level == "error" for c in components for p in c.problems):
        return 1
    return 3 if any(c.family is None and c.role == "unknown" for c in components) else 0


def exit_code(report: Report, fail_on: str = "error", strict: bool = False) -> int:
    """0 pass, 1 fail, 3 unknown (1 with `strict`). `fail_on="warning"` makes warnings fail."""
    fail_on, strict = policy(report, fail_on, strict)
    if report.verdict == "fail" or (fail_on == "warning" and report.worst() in ("error", "warning")):
        return 1
    if report.verdict == "unknown":
        return 1 if strict else 3
    return 0


def policy(report: Report, fail_on: str = "error", strict: bool = False) -> tuple[str, bool]:
    """`fail_on` and `strict`, as the stack's owner sets them where that is stricter."""
    owner = report.policy
    return (
        "warning" if owner and owner.fail_on == "warning" else fail_on,
        strict or bool(owner and owner.strict),
    )


def rule_entries(rules: Iterable[Path] = ()) -> dict[str, Mapping[str, Any]]:
    """Rule id -> its entry: title, why, fix, level."""
    return {str(c["id"]): c for c in load(tuple(rules)).checks()}


def cards(rules: Iterable[Path] = ()) -> list[Mapping[str, Any]]:
    """The graphics cards that `rules/gpus.yaml` knows."""
    return list(load(tuple(rules)).table("gpus") or [])


def titles(components: Iterable[Component], rules: Iterable[Path] = ()) -> dict[str, str]:
    """Family id -> the name its makers gave it, for every family these components may be."""
    knowledge = load(tuple(rules))
    ids = {f for c in components for f in c.families}
    ids |= {c.runner_up.family for c in components if c.runner_up}
    return {i: str(knowledge.family(i).get("title", i)) for i in ids if knowledge.has_family(i)}


def pairs(texts: Sequence[str], option: str, form: str) -> dict[str, str]:
    """`KEY=VALUE` texts as a mapping. Raises SourceError for one without `=`."""
    out = {}
    for text in texts:
        key, equals, value = text.rpartition("=") if option == "--assume" else text.partition("=")
        if not equals or not key:
            raise SourceError(f"{option} {text!r}: write it as {form}")
        out[key] = value
    return out


def _known_roles(roles: Iterable[str]) -> None:
    for role in roles:
        if role not in ROLES:
            close = get_close_matches(role, ROLES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(ROLES)})"
            raise SourceError(f"--require: {role!r} is not a role{hint}")


def _known_settings(settings: Mapping[str, str]) -> None:
    for key, value in settings.items():
        if key not in SETTINGS:
            close = get_close_matches(key, SETTINGS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(SETTINGS)})"
            raise SourceError(f"there is no setting {key!r}{hint}")
        if key in _NUMBERS and not _NUMBER.fullmatch(str(value)):
            raise SourceError(f"--set {key}={value}: {key} is a number")


def _runtime(text: str, knowledge: Knowledge) -> Runtime:
    name, at, version = text.partition("@")
    if at and not _VERSION.fullmatch(version):
        raise SourceError(f"{text!r}: a version is written like 0.3.76, or as a commit like 795e451")
    try:
        knowledge.runtime(name)
    except KeyError:
        known = knowledge.table("runtimes") or {}
        raise SourceError(f"there is no runtime {name!r} (known: {', '.join(known)})") from None
    return Runtime(name, version or None)
