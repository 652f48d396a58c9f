"""The Python API: `inspect`, `check` and `dryrun`. The commands are thin wrappers around these."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from compatkit.fetch.sets import judged, open_set, plan_of, problem_of, read_all
from compatkit.knowledge.store import load
from compatkit.sources.network import Network
from compatkit.stacks import wholes
from compatkit.stacks.files import Request, opened, parse_request, unreadable
from compatkit.vocabulary import Component, Finding, Report, SourceError, Stack

if TYPE_CHECKING:
    from compatkit.checks.diagnosis import Cause
    from compatkit.stacks.workflow.plan import Plan


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
        settings: of the run, such as `clip_type="lumina2"` (see `fetch.sets.SETTINGS`).

    Raises:
        SourceError: nothing could be examined, or an argument is not understood.
        RulesError: a rule file is refused.
    """
    start = time.perf_counter()
    found = open_set(
        sources, runtime, assume, require, rules, headers_only, offline, full, models, comfyui, links, settings
    )
    from compatkit.checks import judge

    report = judged(found, lambda stack: judge(stack, found.knowledge))
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
    forward: bool = False,
    **settings: str,
) -> Report:
    """Run a set on tensors without weights, with the torch that is installed beside compatkit (extra: torch).

    Headers are all that is read. torch runs in a process of its own: where it is not there or broken, the report says
    so and its verdict is unknown.

    Args:
        join: the findings of `check` too; the worse verdict counts.
        forward: also run whole models, by the classes of diffusers and transformers (extra: smoke).
        sources, runtime, assume, require, rules, headers_only, offline, full, models, comfyui, links, settings: as for
            `check`.

    Raises:
        SourceError: nothing could be examined, or an argument is not understood.
        RulesError: a rule file is refused.
    """
    start = time.perf_counter()
    found = open_set(
        sources, runtime, assume, require, rules, headers_only, offline, full, models, comfyui, links, settings
    )
    from compatkit.checks import judge
    from compatkit.dryrun import comfyui_report, dry
    from compatkit.dryrun.comfyui_process import checkout
    from compatkit.dryrun.run import Worker

    with Worker() as worker, checkout(comfyui) as process:

        def one(stack: Stack) -> Report:
            header = judge(stack, found.knowledge)
            if comfyui:
                report = comfyui_report.dry_run(stack, found.knowledge, header, comfyui, process)
            else:
                report = dry.dry_run(stack, found.knowledge, header, worker, forward=forward, rules=found.rules)
            return dry.joined(header, report) if join else report

        report = judged(found, one, files=join)
    return replace(report, cost=found.cost(start))


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
    absent: list[Component] = []
    if plan := workflow_plan(sources, rules, models, comfyui, links):
        wanted, sources, absent = list(plan.requests), (), plan.absent()
    for source in sources:
        try:
            wanted.append(parse_request(source))
        except SourceError as e:
            unreachable.append(str(e))
    with Network(offline=offline, full=full) as network:
        for request, found in zip(wanted, read_all(wanted, knowledge, headers_only, network), strict=True):
            if isinstance(found, SourceError):
                unreachable.append(str(found))
                absent.append(unreadable(request, problem_of(found)))
            else:
                components += found
    # as in `check`: beside files that could be read, one that could not is told as a finding of its own
    return (components + absent if components else []), unreachable


def is_workflow(source: str) -> bool:
    """Whether a source could be a ComfyUI workflow: a JSON object or a PNG on this machine."""
    from compatkit.stacks import kinds

    return kinds.is_workflow(source)


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
    return plan_of(wholes.named(sources), load(tuple(rules)), models, comfyui, links)


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
    if any(p.level == "error" for c in components for p in c.problems):
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
