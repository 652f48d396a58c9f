"""The set that a user names, opened: every source read, the rules and the run's settings that hold for it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from compatkit.knowledge.store import Knowledge, load
from compatkit.sources.naming import closest
from compatkit.sources.network import Network
from compatkit.sources.open import is_remote, shown_name
from compatkit.stacks import wholes
from compatkit.stacks.files import ROLES, Request, opened, requests, unreadable
from compatkit.vocabulary import Component, Cost, FileProblem, Place, Report, Runtime, SourceError, Stack

if TYPE_CHECKING:
    from compatkit.stacks.lockfile import LockedSource
    from compatkit.stacks.workflow.plan import Plan

#: Settings of a run that `--set` takes. One that no check reads yet stands in `not_checked`.
SETTINGS = (
    "clip_type", "steps", "cfg", "sampler", "scheduler", "shift", "dtype", "latent_node", "width", "height", "offload",
    "torch", "driver", "disk_free", "vram",
)  # fmt: skip

_NUMBERS = frozenset({"steps", "cfg", "shift", "width", "height"})
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_VERSION = re.compile(r"v?\d+(?:\.\d+)*(?:[.+-]?\w+)*|[0-9a-f]{6,40}|master-\d+(?:-[0-9a-f]+)?")


class Found(NamedTuple):
    """A set, opened: what `check` and `dryrun` judge."""

    stack: Stack
    knowledge: Knowledge
    rules: tuple[Path, ...]
    places: Mapping[str, Place]
    plan: Plan | None
    requests: int
    bytes: int

    def cost(self, start: float) -> Cost:
        """What it cost, `start` being when it began."""
        return Cost(self.requests, self.bytes, time.perf_counter() - start)


def open_set(
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
) -> Found:
    """Open every source of a set; the arguments are those of `compatkit.api.check`.

    Raises:
        SourceError: nothing could be examined, or an argument is not understood.
        RulesError: a rule file is refused.
    """
    texts = [os.fspath(s) for s in sources]
    _no_settings(texts)
    named = wholes.named(texts)
    stack = named.stack
    folders = tuple(wholes.rules(stack, rules))
    knowledge = load(folders)
    written = stack.settings if stack else {}
    # an argument of the command counts more than the file's; what is wrong is said where it stands
    told = {k: stack.at(f"settings.{k}") for k in written if stack and k not in settings}
    settings = {**written, **settings}
    _known_settings(settings, told)
    _known_roles(require)
    given = tuple(runtime)
    said = stack.at("runtime") if stack and not given else ""
    named_runtimes = given or (stack.runtimes if stack else ()) or install_runtime(comfyui)
    runtimes = tuple(_runtime(r, knowledge, said) for r in named_runtimes)
    _known_clip_type(settings, runtimes, knowledge, told.get("clip_type", ""))
    components: list[Component] = []
    unreachable: list[str] = []
    plan = plan_of(named, knowledge, models, comfyui, links)
    wanted = requests(plan.requests if plan else named.sources, assume or {}, knowledge)
    with Network(offline=offline, full=full) as network:
        for request, found in zip(wanted, read_all(wanted, knowledge, headers_only, network), strict=True):
            if isinstance(found, SourceError):
                unreachable.append(str(found))
                components.append(unreadable(request, problem_of(found)))
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
    return Found(set_, knowledge, folders, stack.places if stack else {}, plan, network.requests, network.bytes)


def plan_of(
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


def judged(found: Found, one: Callable[[Stack], Report], files: bool = True) -> Report:
    """The report about a set, or about a workflow: every sampler's set, or all files at once where no sampler is known.

    `one` judges one set; `files`: what is wrong with files that reach no sampler is told too.
    """
    plan = found.plan
    if plan is None:
        return replace(one(found.stack), places=found.places)
    from compatkit.checks.merge import judge_all, unwired

    components = found.stack.components
    stacks = list(plan.stacks(list(components), replace(found.stack, components=())))
    if stacks:
        report = judge_all(stacks, components, found.knowledge, plan.notes, one, files)
    else:
        report = unwired(one(found.stack), plan.strange(components), plan.notes, found.knowledge)
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


def read_all(
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


def problem_of(error: SourceError) -> FileProblem:
    """The finding that a source which cannot be reached makes."""
    fix = "Give the path of a file that exists and may be read."
    return error.problem or FileProblem("file/unreadable", str(error), fix)


def _known_clip_type(settings: Mapping[str, Any], runtimes: Sequence[Runtime], knowledge: Knowledge, said: str) -> None:
    """Refuse a CLIP type that none of the runtimes has: a loader would silently take another one."""
    given = settings.get("clip_type")
    tables = [knowledge.runtime(r.name) for r in runtimes] or list((knowledge.table("runtimes") or {}).values())
    tables += [knowledge.runtime(str(t["part_of"])) for t in tables if t.get("part_of")]
    known = [str(n) for t in tables for k in ("single", "several") for n in (t.get("clip_types") or {}).get(k) or ()]
    if given is None or not known or given in known:
        return
    close = closest(str(given), known)
    hint = f"; did you mean {close!r}?" if close else f" (known: {', '.join(dict.fromkeys(known))})"
    raise SourceError(f"{said}there is no clip_type {given!r}{hint}")


def _known_roles(roles: Iterable[str]) -> None:
    for role in roles:
        if role not in ROLES:
            close = closest(role, ROLES)
            hint = f"; did you mean {close!r}?" if close else f" (known: {', '.join(ROLES)})"
            raise SourceError(f"--require: {role!r} is not a role{hint}")


def _no_settings(texts: Sequence[str]) -> None:
    """Refuse `steps=20` among the sources: a second setting after one `--set`."""
    for text in texts:
        key, equals, _ = text.partition("=")
        if equals and key in SETTINGS and not os.path.lexists(text):
            raise SourceError(f"{text!r} is a setting, not a file; write --set before each: --set {text}")


def _known_settings(settings: Mapping[str, str], told: Mapping[str, str]) -> None:
    for key, value in settings.items():
        if key not in SETTINGS:
            close = closest(key, SETTINGS)
            hint = f"; did you mean {close!r}?" if close else f" (known: {', '.join(SETTINGS)})"
            raise SourceError(f"{told.get(key, '')}there is no setting {key!r}{hint}")
        if key in _NUMBERS and not _NUMBER.fullmatch(str(value)):
            raise SourceError(f"{told.get(key) or f'--set {key}={value}: '}{key} is a number, not {str(value)!r}")


def _runtime(text: str, knowledge: Knowledge, said: str) -> Runtime:
    name, at, version = text.partition("@")
    if at and not _VERSION.fullmatch(version):
        raise SourceError(f"{said}{text!r}: a version is written like 0.3.76, or as a commit like 795e451")
    try:
        knowledge.runtime(name)
    except KeyError:
        known = knowledge.table("runtimes") or {}
        raise SourceError(f"{said}there is no runtime {name!r} (known: {', '.join(known)})") from None
    return Runtime(name, version or None)
