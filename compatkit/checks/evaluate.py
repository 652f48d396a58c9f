"""One rule, one subject -> a finding, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compatkit.checks.subject import Subject
from compatkit.knowledge import cel
from compatkit.vocabulary import Finding, Level


def applies(rule: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether a rule says anything about this subject."""
    return _condition(rule.get("when", True), values)


def satisfied(rule: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether the subject is as the rule requires."""
    return _condition(rule["require"], values)


def _condition(expression: Any, values: Mapping[str, Any]) -> bool:
    return expression if isinstance(expression, bool) else cel.holds(str(expression), values)


def finding(rule: Mapping[str, Any], subject: Subject, assumed: Sequence[str] = ()) -> Finding:
    """The finding of a rule that the subject breaks. `assumed` are notes on what the user said the files are."""
    values = subject.plain()
    message = " ".join([_text(rule["message"], values), *assumed])
    return Finding(
        rule=str(rule["id"]),
        level=level_of(rule, values),
        components=subject.components,
        message=message,
        predicts=_predicts(rule.get("predicts") or {}, subject, values),
        fix=_text(rule.get("fix") or "", values),
        evidence={name: cel.evaluate(str(e), values) for name, e in (rule.get("evidence") or {}).items()},
    )


def replaces(rule: Mapping[str, Any], subject: Subject) -> int | None:
    """The component whose place another file takes, if the user does what the rule's fix says."""
    if not subject.components or not _condition(rule.get("replaces", False), subject.plain()):
        return None
    return subject.components[-1]


def level_of(rule: Mapping[str, Any], values: Mapping[str, Any]) -> Level:
    """The rule's level, or the milder one where its condition holds."""
    milder = rule.get("milder")
    if milder and _condition(milder["when"], values):
        level: Level = milder["level"]
        return level
    level = rule["level"]
    return level


def _text(value: Any, values: Mapping[str, Any]) -> str:
    """A text, or the first of several whose condition holds."""
    if isinstance(value, str):
        return " ".join(cel.render(value, values).split())
    for case in value:
        if _condition(case.get("when", True), values):
            return " ".join(cel.render(str(case["text"]), values).split())
    return ""


def _predicts(texts: Mapping[str, Any], subject: Subject, values: Mapping[str, Any]) -> dict[str, str]:
    """What the user would see, under the name of the runtime. A key is a runtime or an engine."""
    loader = values.get("loader") or {}
    name = str(loader.get("runtime") or "any")
    for key in (name, str(loader.get("engine") or ""), "any"):
        if key in texts:
            text = _text(texts[key], values)
            return {name: text} if text else {}
    return {}
