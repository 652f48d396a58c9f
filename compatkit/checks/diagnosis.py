"""From an error text or a log to its causes: which rule explains it, ranked, with the numbers it names.

The knowledge stands in `rules/errors/`; here it is matched line by line. Logs are untrusted: lines are cut, their
number is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from compatkit.knowledge import cel
from compatkit.vocabulary import Finding

MAX_LINE = 2_000
MAX_LINES = 200_000
#: What a finding in the set adds to the score of the cause it confirms.
CONFIRMED = 0.5
#: What an exception adds over a warning: it is what ended the run.
RAISED = 0.06
_EXCEPTION = re.compile(r"(?:[\w.]+\.)?\w*(?:Error|Exception)\b: ")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class Cause(NamedTuple):
    """A rule that explains a line, how surely (0 to 1), and what the line said."""

    rule: str
    score: float
    matched: str
    captured: dict[str, Any]
    message: str
    fix: str
    lines: int = 1
    confirmed: bool = False


def diagnose(
    text: str, entries: Sequence[Mapping[str, Any]], known: Mapping[str, Any], findings: Iterable[Finding] = ()
) -> list[Cause]:
    """Causes of what a log says, best first; those a finding about the files at hand confirms come before others."""
    best: dict[str, Cause] = {}
    compiled = [(e, [re.compile(p) for p in e["patterns"]]) for e in entries]
    for line in text.splitlines()[:MAX_LINES]:
        line = _ANSI.sub("", line[:MAX_LINE]).strip()
        if line:
            for cause in _causes(line, compiled, known):
                seen = best.get(cause.rule)
                if seen is None or cause.score > seen.score:
                    best[cause.rule] = cause._replace(lines=seen.lines + 1 if seen else 1)
                else:
                    best[cause.rule] = seen._replace(lines=seen.lines + 1)
    found = {f.rule: f for f in findings if f.level != "info"}
    out = [_confirmed(c, found) for c in best.values()]
    return sorted(out, key=lambda c: (not c.confirmed, -c.score, c.rule))


def _confirmed(cause: Cause, found: Mapping[str, Finding]) -> Cause:
    """The finding of the same rule, or of its group, speaks of the user's own files: it says it better."""
    group = cause.rule.partition("/")[0]
    finding = found.get(cause.rule) or next((f for r, f in found.items() if r.partition("/")[0] == group), None)
    if finding is None:
        return cause
    score = min(1.0, cause.score + CONFIRMED)
    return cause._replace(
        rule=finding.rule, score=score, message=finding.message, fix=finding.fix or cause.fix, confirmed=True
    )


def _causes(
    line: str, compiled: Sequence[tuple[Mapping[str, Any], list[re.Pattern[str]]]], known: Mapping[str, Any]
) -> Iterable[Cause]:
    for entry, patterns in compiled:
        match = next((m for p in patterns if (m := p.search(line))), None)
        if match is None:
            continue
        captured = {k: int(v) if v.isdigit() else v for k, v in match.groupdict(default="").items()}
        values = {"c": {**captured, "line": line}, "known": dict(known)}
        taken = set()
        for cause in entry["causes"]:
            if cause["rule"] in taken or not _applies(cause.get("when"), values):
                continue
            taken.add(cause["rule"])
            message = cel.render(str(cause["message"]), values)
            score = min(1.0, float(cause["score"]) + (RAISED if _EXCEPTION.match(line) else 0))
            yield Cause(cause["rule"], score, line, captured, message, str(cause.get("fix", "")))


def _applies(condition: Any, values: Mapping[str, Any]) -> bool:
    """A condition on something the pattern did not capture does not hold."""
    if condition is None:
        return True
    try:
        return cel.holds(str(condition), values)
    except cel.CelError:
        return False
