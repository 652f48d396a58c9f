"""Runs the examples that stand beside each rule: those that must fail, and those that must pass."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import asdict

from compatkit.checks.evaluate import applies, finding, satisfied
from compatkit.checks.subject import Subject
from compatkit.knowledge.cel import CelError


def run(rules: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for every example that does not come out as it must; none if all is well."""
    return [line for rule in rules for line in _rule(rule)]


def count(rules: Iterable[Mapping[str, Any]]) -> int:
    """How many examples there are."""
    return sum(len(rows) for rule in rules for rows in (rule.get("examples") or {}).values())


def _rule(rule: Mapping[str, Any]) -> list[str]:
    out = []
    for outcome, rows in (rule.get("examples") or {}).items():
        for i, example in enumerate(rows):
            where = f"{rule.get('source_file', '')}: {rule['id']}: example {i + 1} that must {outcome}"
            out += [f"{where}: {complaint}" for complaint in _example(rule, outcome, example)]
    return out


def _example(rule: Mapping[str, Any], outcome: str, example: Mapping[str, Any]) -> list[str]:
    mention = example.get("mention") or []
    subject = Subject(str(rule["binds"]), (0,), {k: v for k, v in example.items() if k != "mention"})
    try:
        values = subject.plain()
        broken = applies(rule, values) and not satisfied(rule, values)
        if outcome == "pass":
            return ["it gives a finding"] if broken else []
        if not broken:
            return ["it gives no finding"]
        found = asdict(finding(rule, subject))
    except CelError as e:
        return [f"cannot be evaluated: {e.message}"]
    text = json.dumps(found, ensure_ascii=False)
    missing = [
        f"the finding does not mention {m!r}: {text}" for m in map(str, mention) if json.dumps(m)[1:-1] not in text
    ]
    unclean = (
        ["a text is empty or holds an unknown value"] if "unknown" in found["message"] or not found["message"] else []
    )
    return missing + unclean
