"""Several sets of one workflow judged one by one, and told as one report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from compatkit.checks.engine import judge
from compatkit.checks.parts import Part, file_name, parts
from compatkit.checks.verdict import headline, identified, verdict
from compatkit.knowledge.protocol import Rules
from compatkit.vocabulary import LEVELS, Component, Finding, NotChecked, Report, Stack

#: Findings about the lack of something that another finding of the same sampler explains.
_FOLLOWS = {
    "encoder/missing": {"workflow/loader-role", "workflow/empty-output"},
    "encoder/surplus": {"workflow/prompt-of-another-model"},
}
#: What a loader of a class that nobody described can open is not known.
_OF_LOADERS = ("loader/", "quant/")


def judge_all(
    stacks: Sequence[Stack],
    components: Sequence[Component],
    rules: Rules,
    notes: Sequence[NotChecked] = (),
    one: Callable[[Stack], Report] | None = None,
    files: bool = True,
) -> Report:
    """Judge every set; findings are about `components`, which each set's wiring refers to.

    A finding that holds for some samplers only says for which. `notes` are what nobody could judge. `one` judges a set
    (the header checks do, if it is not given); `files`: what is wrong with files that reach no sampler is told too.

    Raises:
        KeyError: a set names a runtime that the rules do not know.
    """
    whole = Stack(tuple(components), stacks[0].runtimes if stacks else (), stacks[0].settings if stacks else {})
    every = parts(whole, rules)
    reports = [one(stack) if one else judge(stack, rules) for stack in stacks]
    findings = _findings(stacks, [_explained(s, r) for s, r in zip(stacks, reports, strict=True)])
    findings += _untouched(whole, stacks, rules) if files else []
    findings.sort(key=lambda f: (LEVELS.index(f.level), f.rule, f.components))
    checked = dict.fromkeys(rule for r in reports for rule in r.checked)
    skipped = [n for r in reports for n in r.not_checked if n.blocks or n.rule not in checked]
    skipped = list(dict.fromkeys([*skipped, *notes]))
    outcome = verdict(_touched(every, stacks), findings, skipped)
    return Report(
        verdict=outcome,
        judged=tuple(dict.fromkeys(p.role for p in every if identified(p))),
        components=tuple(components),
        findings=tuple(findings),
        adapters=tuple(_adapters(stacks, reports)),
        checked=tuple(checked),
        not_checked=tuple(skipped),
        headline=headline(outcome, every, skipped),
        policy=stacks[0].policy if stacks else None,
    )


def _explained(stack: Stack, report: Report) -> Report:
    """A report without what only follows from another of its findings, or from a loader that nobody knows."""
    there = {f.rule for f in report.findings}
    strange = {i for use in (stack.wiring.loads if stack.wiring else ()) if not use.node.rule for i in use.components}
    own = {
        i for use in (stack.wiring.loads if stack.wiring else ()) if use.node.rule.get("own") for i in use.components
    }
    packings = {
        (i, packing)
        for use in (stack.wiring.loads if stack.wiring else ())
        for packing in use.node.rule.get("packings") or ()
        for i in use.components
    }
    kept, notes = [], []
    for finding in report.findings:
        if _FOLLOWS.get(finding.rule, set()) & there:
            continue
        if finding.rule.startswith("quant/") and any(
            (i, finding.evidence.get("scheme")) in packings for i in finding.components
        ):
            continue
        if own and finding.components and _of_loading(finding) and set(finding.components) <= own:
            continue
        if note := _of_strangers(finding, strange, stack.components):
            notes.append(note)
            continue
        kept.append(finding)
    return replace(report, findings=tuple(kept), not_checked=(*report.not_checked, *notes))


def _of_loading(finding: Finding) -> bool:
    """Whether a finding is about how ComfyUI's own loaders read a file."""
    return finding.rule.startswith(_OF_LOADERS) or finding.rule == "encoder/tokenizer"


def _of_strangers(finding: Finding, strange: set[int], components: Sequence[Component]) -> NotChecked | None:
    """What stands in place of a finding about loading files, all of which a node loads that nobody described."""
    if not _of_loading(finding) or not finding.components or not set(finding.components) <= strange:
        return None
    names = ", ".join(file_name(components[i].source) for i in finding.components)
    why = f"{names}: the workflow loads it with a node of a class that is not known"
    return NotChecked(finding.rule, why, blocks=finding.level == "error")


def _between(finding: Finding, components: Sequence[Component]) -> NotChecked | None:
    """What stands in place of a finding about how files go together, where nobody knows which do."""
    alone = len({components[i].source for i in finding.components}) == 1
    if finding.level != "error" or (alone and finding.rule not in _FOLLOWS):
        return None
    return NotChecked(finding.rule, "which of the workflow's files go together is not known", blocks=True)


def unwired(report: Report, strange: set[int], notes: Sequence[NotChecked], rules: Rules) -> Report:
    """The report about all files of a workflow at once, where no sampler is known: how they go together is open.

    `strange` are the components (by index) that nodes load which nobody described.
    """
    several = sum(c.role == "diffusion" for c in report.components) > 1
    pairs = [
        (f, _of_strangers(f, strange, report.components) or (_between(f, report.components) if several else None))
        for f in report.findings
    ]
    findings = [f for f, note in pairs if note is None]
    skipped = [*report.not_checked, *(note for _, note in pairs if note), *notes]
    every = parts(Stack(report.components), rules)
    outcome = verdict(every, findings, skipped)
    head = headline(outcome, every, skipped)
    return replace(report, verdict=outcome, findings=tuple(findings), not_checked=tuple(skipped), headline=head)


def _findings(stacks: Sequence[Stack], reports: Sequence[Report]) -> list[Finding]:
    """Every finding once, about the whole report's components."""
    found: dict[tuple[Any, ...], tuple[Finding, list[str]]] = {}
    for stack, report in zip(stacks, reports, strict=True):
        index = stack.wiring.index if stack.wiring else range(len(stack.components))
        label = stack.wiring.sampler.label if stack.wiring else ""
        for finding in report.findings:
            moved = replace(finding, components=tuple(index[i] for i in finding.components))
            key = (moved.rule, moved.level, moved.components, moved.message)
            told, labels = found.setdefault(key, (moved, []))
            labels.append(label)
            if moved.fix and not told.fix:  # for this sampler the file stays
                found[key] = (moved, labels)
    samplers = {s.wiring.sampler.label for s in stacks if s.wiring}
    out = []
    for finding, labels in found.values():
        about = set(labels) - {""}
        if len(samplers) > 1 and about and len(about) < len(samplers) and not finding.rule.startswith("file/"):
            message = f"{finding.message} (In {', '.join(sorted(about))}.)"
            finding = replace(finding, message=message, evidence={**finding.evidence, "samplers": sorted(about)})
        out.append(finding)
    return out


def _touched(every: Sequence[Part], stacks: Iterable[Stack]) -> list[Part]:
    """The parts that some sampler is given: a file that reaches none decides nothing."""
    reached = {i for s in stacks for i in (s.wiring.index if s.wiring else range(len(s.components)))}
    return [p for p in every if p.index in reached or p.component.format == "unreadable"]


def _untouched(whole: Stack, stacks: Sequence[Stack], rules: Rules) -> list[Finding]:
    """What is wrong with files that reach no sampler."""
    reached = {p.index for p in _touched(parts(whole, rules), stacks)}
    judged = {i for s in stacks for i in (s.wiring.index if s.wiring else range(len(s.components)))}
    return [
        Finding(p.rule, p.level, (i,), p.message, {}, p.fix, dict(p.evidence))
        for i, c in enumerate(whole.components)
        if i not in judged and (i in reached or c.problems)
        for p in c.problems
    ]


def _adapters(stacks: Sequence[Stack], reports: Sequence[Report]) -> list[Mapping[str, Any]]:
    out: list[Mapping[str, Any]] = []
    for stack, report in zip(stacks, reports, strict=True):
        index = stack.wiring.index if stack.wiring else range(len(stack.components))
        for row in report.adapters:
            moved = {**row, "component": index[row["component"]], "base": index[row["base"]]}
            if moved not in out:
                out.append(moved)
    return out
