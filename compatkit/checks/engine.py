"""Judge a stack: facts once in Python, the judgement in the rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from compatkit.checks import adapters, attachments, declared, encoders, loading, policy, vaes, workflow
from compatkit.checks import verdict as verdicts
from compatkit.checks.evaluate import applies, finding, replaces, satisfied
from compatkit.checks.loaders import Loader, known_to, loaders
from compatkit.checks.parts import Part, label, parts
from compatkit.checks.subject import Builder, Subject
from compatkit.knowledge.cel import CelError
from compatkit.knowledge.protocol import Rules
from compatkit.vocabulary import LEVELS, Finding, NotChecked, Report, Runtime, Stack

_BUILDERS: dict[str, Callable[[Builder], None]] = {
    "file": lambda b: _files(b),
    "component": lambda b: _components(b),
    "declared": declared.build,
    "loading": loading.build,
    "encoder": encoders.build,
    "vae": vaes.build,
    "adapter": adapters.build,
    "attachment": attachments.build,
    "role": lambda b: _roles(b),
    "storage": policy.build,
    "run": workflow.build,
}
#: Kinds of subject that another builder makes along the way.
_WITH = {
    "set": "encoder",
    "lora": "adapter",
    "eye": "attachment",
    "ear": "attachment",
    "license": "storage",
    "budget": "storage",
}
_WITH |= dict.fromkeys(("load", "node", "prompt", "vision"), "run")

#: Subjects that are one file by itself.
_OF_ONE_FILE = ("file", "component", "loading", "declared")

#: Findings of one rule that a report lists.
MOST_OF_A_RULE = 50
#: Problems of files that only a lock shows.
_OF_LOCKS = ("file/moved", "file/newer")
#: … and one that only a workflow can have.
_OF_WORKFLOWS = ("workflow/file-missing",)


def collected(stack: Stack, knowledge: Rules, kinds: Iterable[str] = tuple(_BUILDERS)) -> Builder:
    """Everything that rules of these kinds look at.

    Raises:
        KeyError: the stack names a runtime that the rules do not know.
    """
    every = parts(stack, knowledge)
    judging = _loaders(stack.runtimes, every, knowledge)
    every = _known_to(every, judging, knowledge)
    builder = Builder(
        parts=every,
        rules=knowledge,
        loaders=judging,
        settings=stack.settings,
        required=tuple(dict.fromkeys((*stack.required_roles, *(policy.needed_roles(every) if stack.complete else ())))),
        locked=stack.locked,
        policy=stack.policy,
        licenses=stack.licenses,
        wiring=stack.wiring,
    )
    for kind, build in _BUILDERS.items():
        if kind in kinds:
            build(builder)
    return builder


def judge(stack: Stack, knowledge: Rules, *, extra_rules: Sequence[Mapping[str, Any]] = ()) -> Report:
    """Run every rule that applies to the set.

    Raises:
        KeyError: the stack names a runtime that the rules do not know.
    """
    rules = {str(r["id"]): r for r in (*knowledge.checks(), *extra_rules)}
    wanted = {_WITH.get(str(r["binds"]), str(r["binds"])) for r in rules.values()} | {"file"}
    return judged(collected(stack, knowledge, wanted), stack, rules)


def judged(builder: Builder, stack: Stack, rules: Mapping[str, Mapping[str, Any]], *, pending: bool = True) -> Report:
    """The report that these rules make of what was collected. `pending`: also name the checks that do not exist yet."""
    every = builder.parts
    findings, checked, not_checked = evaluated(builder, rules.values())
    findings = [replace(f, fix="") if _of_what_goes(f, rules, builder.replaced) else f for f in findings]
    found = sorted(_merged(findings), key=lambda f: (LEVELS.index(f.level), f.rule, f.components))
    unread = [n for part in every for n in part.component.not_checked]
    nowhere = {n.rule for n in unread if all(any(m.rule == n.rule for m in p.component.not_checked) for p in every)}
    checked = [rule for rule in checked if rule not in nowhere]
    later = verdicts.pending(every, stack.settings) if pending else []
    skipped = [*not_checked, *_blocked(builder, rules.values()), *later, *(unread if pending else [])]
    outcome = verdicts.verdict(every, found, skipped)
    found, left_out = _few(found)
    skipped += left_out
    return Report(
        verdict=outcome,
        judged=tuple(dict.fromkeys(p.role for p in every if verdicts.identified(p))),
        components=stack.components,
        findings=tuple(found),
        adapters=tuple(builder.adapters),
        checked=tuple(checked),
        not_checked=tuple(dict.fromkeys(skipped)),
        headline=verdicts.headline(outcome, every, skipped),
        policy=stack.policy,
    )


def _loaders(wanted: Sequence[Runtime], every: Sequence[Part], rules: Rules) -> list[Loader]:
    usual = [n for p in every if p.role == "diffusion" for n, entry in (p.card.get("runtimes") or {}).items() if entry]
    return loaders(wanted, rules, usual)


def _known_to(every: list[Part], judging: Sequence[Loader], rules: Rules) -> list[Part]:
    """The parts, with what runtimes' own tables say of their families."""
    for loader in judging:
        if loader.table.get("models"):
            every = [
                replace(p, card=known_to(p.card, str(p.card["id"]), loader, rules))
                if p.role == "diffusion" and p.card.get("id")
                else p
                for p in every
            ]
    return every


def evaluated(builder: Builder, rules: Any) -> tuple[list[Finding], list[str], list[NotChecked]]:
    """(findings, ids of the rules that ran, what did not run) of these rules on the subjects of a builder."""
    findings: list[Finding] = []
    checked: list[str] = []
    not_checked: list[NotChecked] = []
    for rule in rules:
        name, kind = str(rule["id"]), str(rule["binds"])
        if kind == "file":
            shows = (builder.locked or name not in _OF_LOCKS) and (builder.wiring or name not in _OF_WORKFLOWS)
            if builder.parts and shows:
                checked.append(name)
            continue
        subjects = builder.subjects.get(kind, [])
        if not subjects:
            if kind in builder.reasons:
                not_checked.append(NotChecked(name, builder.reasons[kind]))
            continue
        ran = False
        for subject in subjects:
            try:
                values = subject.plain()
                if not applies(rule, values):
                    continue
                ran = True
                if not satisfied(rule, values):
                    findings.append(finding(rule, subject, _assumed(builder, subject)))
                    goes = replaces(rule, subject) if findings[-1].level == "error" else None
                    builder.replaced.update(() if goes is None else (goes,))
            except CelError as e:
                where = rule.get("source_file", "the rule")
                not_checked.append(NotChecked(name, f"the rule itself is at fault ({where}): {e.message}", blocks=True))
                break
        else:
            if ran:
                checked.append(name)
    findings += [_file_finding(builder, s, checked) for s in builder.subjects.get("file", [])]
    return findings, checked, not_checked


def _of_what_goes(one: Finding, rules: Mapping[str, Mapping[str, Any]], replaced: Collection[int]) -> bool:
    """Whether a finding is about how one file is stored, and another finding puts another file in its place."""
    kind = rules[one.rule]["binds"] if one.rule in rules else "file"
    return kind in _OF_ONE_FILE and bool(one.components) and set(one.components) <= set(replaced)


def _assumed(builder: Builder, subject: Subject) -> list[str]:
    out = []
    for i in subject.components:
        fields = builder.parts[i].fields
        if fields["assumed"]:
            out.append(f"(This rests on your word that {fields['name']} is {fields['title']}.)")
    return out


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """The same finding in several runtimes is one, with what each would show."""
    out: dict[tuple[Any, ...], Finding] = {}
    for f in findings:
        key = (f.rule, f.level, f.components, f.message)
        out[key] = replace(out[key], predicts={**out[key].predicts, **f.predicts}) if key in out else f
    return list(out.values())


def _few(found: Sequence[Finding]) -> tuple[list[Finding], list[NotChecked]]:
    """The findings, at most so many of a rule, and a note for each rule that has more.

    A hundred models beside a hundred encoders are no set, and ten thousand findings help nobody.
    """
    kept: list[Finding] = []
    count: Counter[str] = Counter()
    for one in found:
        count[one.rule] += 1
        if count[one.rule] <= MOST_OF_A_RULE or one.rule.startswith("file/"):
            kept.append(one)
    notes = [
        NotChecked(rule, f"{n - MOST_OF_A_RULE:,} more findings of this kind are left out; check one set at a time")
        for rule, n in count.items()
        if n > MOST_OF_A_RULE and not rule.startswith("file/")
    ]
    return kept, notes


def _blocked(builder: Builder, rules: Any) -> list[NotChecked]:
    """Checks with both sides in the set that could not run, under the first rule of their kind."""
    first: dict[str, str] = {}
    for rule in rules:
        first.setdefault(str(rule["binds"]), str(rule["id"]))
    return [NotChecked(first.get(kind, kind), why, blocks) for kind, why, blocks in builder.blocked]


def _files(builder: Builder) -> None:
    seen: set[tuple[str, str, str]] = set()
    for part in builder.parts:
        for problem in part.component.problems:
            key = (part.component.source, problem.rule, problem.message)
            if key in seen:
                continue
            seen.add(key)
            indexes = tuple(p.index for p in builder.parts if p.component.source == part.component.source)
            values = {"file": {"name": part.fields["name"], "problem": problem.rule, "message": problem.message}}
            builder.add(Subject("file", indexes, values, problem=problem))


def _file_finding(builder: Builder, subject: Subject, checked: list[str]) -> Finding:
    problem = subject.problem
    assert problem is not None
    if problem.rule not in checked:
        checked.append(problem.rule)
    return Finding(
        problem.rule, problem.level, subject.components, problem.message, {}, problem.fix, dict(problem.evidence)
    )


def _components(builder: Builder) -> None:
    for part in builder.parts:
        builder.add(Subject("component", (part.index,), {"component": part.fields}))


def _roles(builder: Builder) -> None:
    have = {p.role for p in builder.parts}
    for role in builder.required:
        if role not in have and "unknown" in have:
            why = f"no {label(role)} was identified, and one file was not identified at all"
            builder.stuck("role", why, blocks=True)
            continue
        get = vaes.to_complete(builder) if role == "vae" else []
        values = {"role": {"name": role, "label": label(role), "present": role in have, "to_get": get}}
        builder.add(Subject("role", (), values))
