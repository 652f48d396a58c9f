"""A smoke test: stages after one another, each in a process of its own, each adding to the header check's report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from compatkit.checks.parts import parts
from compatkit.knowledge.store import Knowledge
from compatkit.smoke import supervise
from compatkit.smoke.facts import Measured, size
from compatkit.smoke.judge import judge_scan
from compatkit.sources.naming import shown
from compatkit.sources.open import is_remote, shown_name
from compatkit.vocabulary import LEVELS, Component, Finding, NotChecked, Report, SourceError, Stack, Tensor, Verdict

#: Called with what the scan is at: the source, bytes it will read, bytes it has just read.
Progress = Callable[[str, int, int], None]

_SCAN = "smoke/scan"


class Limits(Struct, frozen=True):
    """What a stage may take: seconds of wall time and bytes of own memory; `None`: no bound."""

    seconds: float | None = None
    memory: int | None = None


class _File(Struct):
    """What came of the scan of one source."""

    source: str
    about: dict[str, Any]
    rows: dict[str, dict[str, Any]]
    unread: list[dict[str, str]]
    twins: list[tuple[str, str]]
    failed: str = ""


def scan(
    report: Report,
    sources: Sequence[str],
    knowledge: Knowledge,
    limits: Limits,
    *,
    only: Sequence[str] = (),
    rules: Iterable[Path] = (),
    offline: bool = False,
    progress: Progress | None = None,
) -> Report:
    """The report, with what the scan of every readable file in it found.

    `sources` are the texts that the user gave: they may hold what the names in the report leave out. A scan that could
    not be done in full is `not_checked`, and a verdict of pass becomes unknown.

    Raises:
        SourceError: a file elsewhere would have to be read whole and `only` does not say that it may; `only` matches
            nothing.
    """
    texts = _texts(report.components, sources)
    if not texts:
        return merged(report, (), (), [NotChecked(_SCAN, "there is no file whose weights could be looked at")])
    far = [t for t in texts.values() if is_remote(t)]
    if far and not only:
        total = sum(c.size for c in {c.source: c for c in report.components}.values() if is_remote(c.source))
        raise SourceError(
            f"{shown_name(far[0])}: a scan reads every byte of a file; --only GLOB says which tensors of files"
            f" elsewhere to fetch (--only '*': all of them, {size(total)})"
        )
    files: list[_File] = []
    cost = {"requests": 0, "bytes": 0}

    def take(event: Mapping[str, Any]) -> None:
        _take(event, files, list(texts), cost)
        if progress and files and event.get("event") in ("file", "bytes"):
            progress(files[-1].source, int(files[-1].about.get("bytes", 0)), int(event.get("n", 0)))

    job = {
        "do": "scan",
        "sources": list(texts.values()),
        "only": list(only),
        "rules": [str(r) for r in rules],
        "offline": offline,
    }
    environment = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    outcome = supervise.run(job, take, timeout=limits.seconds, memory=limits.memory, environment=environment)
    if only and not outcome.why and files and not any(f.rows or f.unread or f.failed for f in files):
        raise SourceError(f"--only {' '.join(only)}: no tensor of these files has a name like that")
    judged = _judged(report, files, knowledge)
    missing = _missing(files, outcome, list(texts), only)
    numbers = {**report.smoke, "scan": _numbers(files, outcome)}
    network = replace(
        report.cost, requests=report.cost.requests + cost["requests"], bytes=report.cost.bytes + cost["bytes"]
    )
    return replace(
        merged(report, judged.findings, judged.checked, [*judged.not_checked.values(), *missing]),
        smoke=numbers,
        cost=network,
    )


def weights_only(report: Report) -> Report:
    """What of a header check concerns a scan by itself: whether the files can be read, and what they are."""
    mine = ("file/", "component/")
    findings = tuple(f for f in report.findings if f.rule.startswith(mine))
    known = not any(n.blocks for n in report.not_checked if n.rule.startswith(mine)) and report.judged
    unknown = not known or any(c.role == "unknown" for c in report.components)
    verdict: Verdict = "fail" if any(f.level == "error" for f in findings) else "unknown" if unknown else "pass"
    roles = ", ".join(r.replace("_", " ") for r in report.judged) or "nothing identified"
    rest = "the headers were not judged: `compatkit check` does that"
    return replace(
        report,
        verdict=verdict,
        headline=f"{verdict} (weights of {roles})",
        findings=findings,
        checked=tuple(r for r in report.checked if r.startswith(mine)),
        not_checked=(
            *(n for n in report.not_checked if n.rule.startswith(mine)),
            NotChecked("smoke/headers", rest),
        ),
    )


def merged(
    report: Report, findings: Iterable[Finding], checked: Iterable[str], not_checked: Iterable[NotChecked]
) -> Report:
    """A report with more findings: its verdict and first line follow from all of them.

    A check that is not done although all it needs is there (`blocks`) makes a pass unknown.
    """
    skipped = list(not_checked)
    every = sorted([*report.findings, *findings], key=lambda f: (LEVELS.index(f.level), f.rule, f.components))
    verdict: Verdict = report.verdict
    if any(f.level == "error" for f in every):
        verdict = "fail"
    elif any(n.blocks for n in skipped):
        verdict = "unknown"
    _, _, rest = report.headline.partition(" ")
    why = next((n.why for n in skipped if n.blocks), "")
    if why and verdict == "unknown" and report.verdict == "pass" and rest.endswith(")"):
        rest = f"{rest[:-1]}; {why})"
    return replace(
        report,
        verdict=verdict,
        headline=f"{verdict} {rest}".strip(),
        findings=tuple(every),
        checked=tuple(dict.fromkeys([*report.checked, *checked])),
        not_checked=tuple(dict.fromkeys([*report.not_checked, *skipped])),
    )


def _texts(components: Iterable[Component], sources: Sequence[str]) -> dict[str, str]:
    """The name of each readable file in the report -> the text that opens it."""
    given = {shown_name(s): s for text in sources for s in (text, text.partition("=")[2]) if s}
    return {c.source: given.get(c.source, c.source) for c in components if c.format != "unreadable"}


def _take(event: Mapping[str, Any], files: list[_File], names: list[str], cost: dict[str, int]) -> None:
    """Keep what an event says."""
    kind = event.get("event")
    if kind == "source":
        files.append(_File(names[int(event["number"])], {}, {}, [], []))
    elif kind == "cost":
        cost.update(requests=int(event["requests"]), bytes=int(event["bytes"]))
    elif not files:
        return
    elif kind == "file":
        files[-1].about = dict(event)
    elif kind == "tensor":
        files[-1].rows[str(event["tensor"])] = dict(event)
    elif kind == "unread":
        files[-1].unread.append({"tensor": str(event["tensor"]), "why": str(event["why"])})
    elif kind == "twins":
        files[-1].twins = [(str(a), str(b)) for a, b in event["pairs"]]
    elif kind == "failed":
        files[-1].failed = str(event["why"])


def _judged(report: Report, files: Sequence[_File], knowledge: Knowledge) -> Any:
    every = parts(Stack(report.components), knowledge)
    measured: dict[int, Measured] = {}
    twins: dict[int, list[tuple[str, str]]] = {}
    for file in files:
        if not file.rows:
            continue
        shards = file.about.get("shards") or [file.source]
        tensors = {
            n: Tensor(r["dtype"], tuple(r["shape"]), r["nbytes"], r["offset"], r["shard"]) for n, r in file.rows.items()
        }
        places = {n: str(shards[t.shard]) for n, t in tensors.items()}
        inside = [i for i, c in enumerate(report.components) if c.source == file.source]
        claimed = {n for i in inside for n in report.components[i].tensors}
        for i in inside:
            own = report.components[i].tensors
            # what no component claims (scales, leftovers) is judged with the first
            names = {n: t for n, t in tensors.items() if n in own or (i == inside[0] and n not in claimed)}
            component = replace(report.components[i], tensors=names)
            measured[i] = Measured(component, file.rows, places, int(file.about.get("unwritten", 0)))
            twins[i] = file.twins
    return judge_scan(every, measured, twins, knowledge)


def _missing(
    files: Sequence[_File], outcome: supervise.Outcome, names: Sequence[str], only: Sequence[str]
) -> list[NotChecked]:
    """What of the weights was not looked at, and why."""
    out = []
    for file in files:
        name = shown(file.source)
        if file.failed:
            out.append(NotChecked(_SCAN, f"{name}: {file.failed}", blocks=True))
        if file.unread:
            more = f" and {len(file.unread) - 1} more" if len(file.unread) > 1 else ""
            first = file.unread[0]
            out.append(NotChecked(_SCAN, f"{name}: {first['tensor']}{more} not read: {first['why']}"))
        chosen, all_ = file.about.get("chosen", 0), file.about.get("tensors", 0)
        if only and chosen < all_:
            out.append(NotChecked(_SCAN, f"{name}: {chosen} of {all_} tensors were chosen with --only"))
    if outcome.why:
        at = files[-1] if files else None
        where = f" at {len(at.rows)} of {at.about.get('chosen', '?')} tensors of {shown(at.source)}" if at else ""
        later = f"; {len(names) - len(files)} more files not begun" if len(names) > len(files) else ""
        out.append(NotChecked(_SCAN, f"the scan stopped{where}: {outcome.why}{later}", blocks=True))
    return out


#: What of a row is printed; the rest is the header's, or for the judgement alone.
_PRINTED = (
    "kind", "nan", "inf", "max_abs", "rms", "zeros", "denormals", "beyond", "lowest", "constant", "value", "blocks",
    "zero_blocks", "sampled", "owner",
)  # fmt: skip


def _numbers(files: Sequence[_File], outcome: supervise.Outcome) -> dict[str, Any]:
    """The `scan` part of the report's JSON."""
    listed = []
    for f in files:
        read = sum(int(r["nbytes"]) for r in f.rows.values())
        tensors = {n: {"dtype": r["dtype"], **{k: r[k] for k in _PRINTED if k in r}} for n, r in f.rows.items()}
        listed.append(
            {"source": f.source, "tensors": len(f.rows), "bytes": read, "not_read": f.unread, "measured": tensors}
        )
    return {
        "files": listed,
        "bytes": sum(f["bytes"] for f in listed),
        "seconds": round(outcome.seconds, 3),
        "peak_memory": outcome.peak,
        "complete": not outcome.why,
    }
