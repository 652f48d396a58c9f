"""What torch itself says of a set, without weights: every place where two models meet, run on tensors that take no
memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from compatkit.dryrun.probe import Gap, Outcome, Probe
from compatkit.dryrun.run import Worker, WorkerError

if TYPE_CHECKING:
    from compatkit.checks.subject import Builder
    from compatkit.knowledge.protocol import Rules
    from compatkit.vocabulary import NotChecked, Report, Stack

#: What a probe can be about -> the kind of subject whose absence explains that there is none.
_NO_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_ABOUT = {"context": "encoder", "vae": "vae", "lora": "adapter", "adapter": "attachment"}


def dry_run(
    stack: Stack,
    knowledge: Rules,
    header: Report,
    worker: Worker | None = None,
    *,
    forward: bool = False,
    rules: Sequence[Path] = (),
) -> Report:
    """Run every junction of a set.

    Args:
        stack: the set.
        knowledge: the rules.
        header: what `checks.judge` said of the same set; its findings are held against what happens.
        forward: also run whole models, by the classes of the library that has them.
        rules: folders of further rules that `knowledge` was made with.
        worker: a process with torch that is running already; one is started (and ended) if it is not given.

    Returns a report whose findings are `dryrun/…` alone. Where torch is not there or broken that is one of them, and
    the verdict is unknown.

    Raises:
        KeyError: the stack names a runtime that the rules do not know.
    """
    from compatkit.checks.engine import collected, judged
    from compatkit.dryrun import findings, whole
    from compatkit.dryrun.junctions import Model
    from compatkit.dryrun.meetings import plan
    from compatkit.vocabulary import LEVELS

    builder = collected(stack, knowledge, ("loading", "encoder", "vae", "adapter", "attachment"))
    made = plan(builder)
    own = worker is None
    worker = worker or Worker()
    torch, outcomes, failure = "", list[Outcome](), ""
    try:
        outcomes = run(made.probes, worker)
        if forward:
            more, gaps = whole.run(builder, made.probes, worker, rules)
            outcomes += more
            made.gaps += gaps
        torch = str(worker.environment.get("torch", ""))
    except WorkerError as e:
        failure = str(e)
    finally:
        if own:
            worker.close()
    models = {p.index: Model(p, knowledge) for p in builder.parts}
    reasons, coverages = builder.reasons, builder.adapters
    builder.subjects, builder.reasons, builder.blocked, builder.adapters = {}, {}, [], []
    for subject in findings.subjects(outcomes, header, models, torch):
        builder.add(subject)
    if failure:
        builder.add(_environment(failure))
    checks = {str(r["id"]): r for r in knowledge.checks() if str(r["id"]).startswith("dryrun/")}
    report = judged(builder, stack, checks, pending=False)
    skipped = [
        *report.not_checked,
        *_skipped(made.gaps, made.probes if failure else (), failure),
        *_absent(reasons, made),
        *_unread(stack),
    ]
    ordered = sorted(report.findings, key=lambda f: (LEVELS.index(f.level), f.evidence.get("order", 0)))
    report = replace(
        report, findings=tuple(ordered), not_checked=tuple(dict.fromkeys(skipped)), adapters=tuple(coverages)
    )
    whole_models = sum(o.probe.about == "forward" for o in outcomes)
    return _verdict(report, builder, (len(made.probes) if torch else 0, whole_models), torch)


def run(probes: Sequence[Probe], worker: Worker) -> list[Outcome]:
    """What torch makes of each probe.

    Raises:
        WorkerError: torch cannot be used.
    """
    if not probes:
        return []
    answer = worker.ask({"do": "chains", "chains": [p.chain() for p in probes]})
    return [_outcome(probe, result) for probe, result in zip(probes, answer["results"], strict=True)]


def _outcome(probe: Probe, result: Mapping[str, Any]) -> Outcome:
    if result["ok"]:
        return Outcome(probe, True)
    step = probe.steps[result["step"]]
    weight = step.get("weight")
    came = result.get("input") or step.get("given")
    return Outcome(
        probe,
        False,
        str(step["op"]),
        str(step.get("module") or ""),
        str(result["error"]),
        str(result["message"]),
        tuple(came) if came else None,
        tuple(weight) if weight else None,
    )


def _environment(failure: str) -> Any:
    from compatkit.checks.subject import Subject

    module = _absent_module(failure)
    values = {"environment": {"ok": False, "missing": bool(module), "module": module, "message": failure}}
    return Subject("environment", (), values)


def _absent_module(failure: str) -> str:
    """The package that is not there; "" where something else is wrong."""
    found = _NO_MODULE.match(failure)
    return found[1].partition(".")[0] if found else ""


def _skipped(gaps: Sequence[Gap], unrun: Sequence[Probe], failure: str) -> list[NotChecked]:
    from compatkit.vocabulary import NotChecked

    out = [NotChecked(_rule(gap.about), gap.why, gap.blocks) for gap in gaps]
    absent = _absent_module(failure)
    why = f"{absent} is not installed" if absent else f"torch could not be used: {failure}"
    for about in dict.fromkeys(p.about for p in unrun):
        out.append(NotChecked(_rule(about), why, blocks=True))
    return out


def _rule(about: str) -> str:
    return f"dryrun/{'context' if about == 'glyph' else about}"


def _unread(stack: Stack) -> list[NotChecked]:
    """Files that could not be read at all: header findings are not shown here, but why nothing was run must be."""
    from compatkit.vocabulary import NotChecked

    return [
        NotChecked("dryrun/forward", problem.message)
        for component in stack.components
        if not component.key_groups
        for problem in component.problems
        if problem.level == "error"
    ]


def _absent(reasons: Mapping[str, str], made: Any) -> list[NotChecked]:
    """What has no probe because a side of it is not in the set."""
    from compatkit.vocabulary import NotChecked

    run = {p.about for p in made.probes} | {g.about for g in made.gaps}
    return [
        NotChecked(f"dryrun/{about}", reasons[kind])
        for about, kind in _ABOUT.items()
        if about not in run and kind in reasons
    ]


def _verdict(report: Report, builder: Builder, ran: tuple[int, int], torch: str) -> Report:
    from compatkit.checks.verdict import headline, verdict

    outcome = verdict(builder.parts, report.findings, report.not_checked)
    said = headline(outcome, builder.parts)
    probes, models = ran
    counted = f"{probes} probe{'' if probes == 1 else 's'}"
    if models:
        counted += f" and {models} whole model{'' if models == 1 else 's'}"
    note = f"dry run: {counted}{f' on torch {torch}' if torch else ''}"
    return replace(report, verdict=outcome, headline=f"{said[:-1]}; {note})")


def joined(header: Report, dry: Report) -> Report:
    """Header checks and dry run as one report: the worse verdict counts."""
    from compatkit.vocabulary import LEVELS

    order = ("fail", "unknown", "pass")
    worse = min((header, dry), key=lambda r: order.index(r.verdict))
    note = dry.headline.rpartition("; ")[2]
    findings = sorted(
        (*header.findings, *dry.findings), key=lambda f: (LEVELS.index(f.level), f.rule.startswith("dryrun/"))
    )
    return replace(
        header,
        verdict=worse.verdict,
        headline=f"{worse.verdict}{header.headline[len(header.verdict) : -1]}; {note}",
        findings=tuple(findings),
        checked=tuple(dict.fromkeys((*header.checked, *dry.checked))),
        not_checked=tuple(dict.fromkeys((*header.not_checked, *dry.not_checked))),
    )
