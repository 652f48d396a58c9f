"""The rules' judgement of what the worker measured, one finding for each rule, level and model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from compatkit.checks.evaluate import applies, finding, level_of, satisfied
from compatkit.checks.parts import Part
from compatkit.checks.subject import Subject
from compatkit.knowledge.cel import CelError
from compatkit.knowledge.protocol import Rules
from compatkit.smoke.changes import changes
from compatkit.smoke.facts import Measured
from compatkit.vocabulary import LEVELS, Finding, Level, NotChecked

#: Names that a finding lists beside the worst; the count is exact.
_LISTED = 40
_SHOWN = 4


class Judge:
    """Asks every rule of some kinds about subjects; `checked` are the rules that applied to one."""

    def __init__(self, knowledge: Rules, kinds: Iterable[str]) -> None:
        wanted = set(kinds)
        self.rules = [r for r in knowledge.checks() if r["binds"] in wanted]
        self.checked: dict[str, None] = {}
        self.not_checked: dict[str, NotChecked] = {}
        self.findings: list[Finding] = []

    def broken(self, subject: Subject) -> Iterator[Mapping[str, Any]]:
        """The rules that a subject breaks."""
        values = subject.plain()
        for rule in self.rules:
            if rule["binds"] != subject.kind:
                continue
            name = str(rule["id"])
            try:
                if applies(rule, values):
                    self.checked[name] = None
                    if not satisfied(rule, values):
                        yield rule
            except CelError as e:
                source = rule.get("source_file", "the rule")
                why = f"the rule itself is at fault ({source}): {e.message}"
                self.not_checked[name] = NotChecked(name, why, blocks=True)

    def one(self, subject: Subject) -> None:
        """Ask about one subject by itself."""
        for rule in self.broken(subject):
            self.findings.append(finding(rule, subject))

    def many(self, subjects: Iterable[Subject], variable: str, worst: Sequence[str]) -> None:
        """Ask about several of a kind; those that break the same rule at the same level make one finding.

        It speaks of the worst (the largest in the fields `worst`) and lists the others by their field `name`.
        """
        groups: dict[tuple[str, Level, tuple[int, ...]], list[tuple[Mapping[str, Any], Subject]]] = {}
        for subject in subjects:
            for rule in self.broken(subject):
                key = (str(rule["id"]), level_of(rule, subject.plain()), subject.components)
                groups.setdefault(key, []).append((rule, subject))
        for rows in groups.values():
            rows.sort(key=lambda row: [-_number(row[1].plain()[variable].get(f)) for f in worst])
            rule, subject = rows[0]
            names = [str(s.plain()[variable]["name"]) for _, s in rows]
            found = finding(rule, subject)
            self.findings.append(_with_others(found, names, variable))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _with_others(found: Finding, names: list[str], variable: str) -> Finding:
    """The finding of the worst, with the others named after it."""
    if len(names) == 1:
        return found
    rest = names[1:]
    shown = ", ".join(rest[:_SHOWN]) + (", …" if len(rest) > _SHOWN else "")
    message = f"{found.message} The same is true of {len(rest):,} more: {shown}."
    evidence = {**found.evidence, f"{variable}s": names[:_LISTED], f"{variable}s_count": len(names)}
    return replace(found, message=message, evidence=evidence)


def _names(parts: Sequence[Part]) -> list[str]:
    """What each file is called: with its folder where two files of a set have the same name."""
    files: dict[str, set[str]] = {}
    for part in parts:
        files.setdefault(str(part.fields["name"]), set()).add(part.component.source)
    out = []
    for part in parts:
        name = str(part.fields["name"])
        folder = part.component.source.replace("\\", "/").rpartition("/")[0].rpartition("/")[2]
        out.append(f"{folder}/{name}" if len(files[name]) > 1 and folder else name)
    return out


#: What rules of these kinds look at comes from the scan.
SCAN_KINDS = ("measured", "weights", "change")


def judge_scan(
    parts: Sequence[Part], measured: Mapping[int, Measured], twins: Mapping[int, list[tuple[str, str]]], rules: Rules
) -> Judge:
    """Every rule about weights, for the components (by index) that were measured."""
    judge = Judge(rules, SCAN_KINDS)
    usual = next(
        (t for i, m in measured.items() if parts[i].role == "diffusion" and (t := m.typical()) is not None), None
    )
    names = _names(parts)
    for i, found in measured.items():
        fields = {**parts[i].fields, "name": names[i]}
        whole = found.whole(twins.get(i, []))
        judge.one(Subject("weights", (i,), {"component": fields, "weights": whole}))
        judge.many(
            (
                Subject("measured", (i,), {"component": fields, "tensor": t, "weights": whole})
                for t in found.tensors()
                if t["kind"] != "none"
            ),
            "tensor",
            ("nan", "inf", "hole", "beyond", "dims", "scaled_max", "max_abs"),
        )
        if parts[i].role == "lora":
            rows = changes(found.component.tensors, found.rows, rules, usual)
            made = [Subject("change", (i,), {"component": fields, "module": row}) for row in rows]
            judge.many(made, "module", ("change",))
    judge.findings.sort(key=lambda f: (LEVELS.index(f.level), f.rule, f.components))
    return judge
