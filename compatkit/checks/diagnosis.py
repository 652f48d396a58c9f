"""From an error text or a log to its causes: which rule explains it, ranked, with the numbers it names.

The knowledge stands in `rules/errors/`; here it is matched line by line. Logs are untrusted: their lines and the number
of different ones are bounded. Most lines of a log say that all is well: in more than a few lines only those count that
speak of trouble, and after a run that ended only what happens silently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from compatkit.checks.loglines import Line, read
from compatkit.knowledge import cel
from compatkit.vocabulary import Finding

#: Characters of lines that differ in more than numbers; of a log that holds more, the later ones are not looked at.
NEW = 800_000
#: The share of what is missing to certainty that a finding in the set adds to a cause of its rule, or of its group.
CONFIRMED, RELATED = 0.9, 0.5
#: The share of what is missing to certainty that an exception adds: it is what ended the run.
RAISED = 0.5
#: Beside an exception, a warning about something else weighs less; so does a second cause of the same kind.
WARNED, REPEATED = 0.8, 0.6
#: Lines before and after one that tell which part was running (a traceback).
BEFORE, AFTER, NEAR = 30, 40, 6_000
#: A text of so few lines is a complaint and no log: what it speaks of counts, where no message is known.
SHORT = 8
#: An exception without words is told by the last lines of its traceback.
LAST = 8
#: In a text of so few lines each one is what is asked about.
FEW = 3
_DIGITS = re.compile(r"\d+")


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
    exact: bool = False


class _Entry(NamedTuple):
    patterns: list[re.Pattern[str]]
    causes: Sequence[Mapping[str, Any]]
    topic: bool
    exact: bool
    silent: bool


def diagnose(
    text: str, entries: Sequence[Mapping[str, Any]], known: Mapping[str, Any], findings: Iterable[Finding] = ()
) -> list[Cause]:
    """Causes of what a log says, best first; those a finding about the files at hand confirms come before others."""
    compiled = [
        _Entry(_compiled(e), e["causes"], bool(e.get("topic")), bool(e.get("exact")), bool(e.get("silent")))
        for e in entries
        if "causes" in e
    ]
    lines = read(text)
    short = len(lines) <= SHORT
    ended = _ended(lines, entries)
    lines = _of_trouble(lines, entries)
    plain = [e for e in compiled if not e.topic]
    best = _best(lines, [e for e in plain if e.silent] if ended and not short else plain, known)
    if not best and not ended and (frames := [x for x in lines if x.frame][-LAST:]):
        best = _best([x._replace(trouble=True) for x in frames], plain, known)
    if not best and not ended:
        best = _best([x for x in lines if short or x.raised], [e for e in compiled if e.topic], known)
    found = [f for f in findings if f.level != "info"]
    out: dict[str, Cause] = {}
    for cause in (_confirmed(c, found) for c in best.values()):
        seen = out.get(cause.rule)
        if seen is None or (cause.confirmed, cause.score) > (seen.confirmed, seen.score):
            out[cause.rule] = cause
    return sorted(out.values(), key=lambda c: (not c.confirmed, -c.score, c.rule))


def telling(causes: Iterable[Cause]) -> list[Cause]:
    """The causes worth reading: where the files confirm one for a line, other guesses about that line say no more."""
    causes = list(causes)
    explained = {c.matched for c in causes if c.confirmed}
    return [c for c in causes if c.confirmed or c.matched not in explained]


def run_facts(text: str, entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a log says of the run itself: versions, card, dtypes, what was loaded; the last word on each."""
    out: dict[str, str] = {}
    lines = list(dict.fromkeys(x.text for x in read(text)))
    for entry in entries:
        if "fact" not in entry:
            continue
        patterns = [re.compile(p) for p in entry["patterns"]]
        values = [m["value"].strip() for line in lines for p in patterns if (m := p.search(line))]
        if values:
            several = list(dict.fromkeys(values))[-12:]
            out[str(entry["fact"])] = ", ".join(several) if entry.get("many") else values[-1]
    return out


def _compiled(entry: Mapping[str, Any]) -> list[re.Pattern[str]]:
    return [re.compile(p) for p in entry["patterns"]]


def _of_trouble(lines: Sequence[Line], entries: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The lines with `trouble` told again: in a few every line is, in more none that is known to be chatter."""
    if len(lines) <= FEW:
        return [line._replace(trouble=True) for line in lines]
    chatter = [p for e in entries if e.get("chatter") for p in _compiled(e)]
    known: dict[str, bool] = {}
    left = NEW
    out = []
    for line in lines:
        trouble = line.trouble or len(lines) <= SHORT
        if trouble and not line.raised:
            shape = _DIGITS.sub("0", line.text)
            if shape not in known:
                left -= len(line.text)
                known[shape] = left < 0 or any(p.search(line.text) for p in chatter)
            trouble = not known[shape]
        out.append(line._replace(trouble=trouble))
    return out


def _ended(lines: Sequence[Line], entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the run came to its end: it says so, and nothing was raised."""
    patterns = [p for e in entries if e.get("finished") for p in _compiled(e)]
    return not any(x.raised for x in lines) and any(p.search(x.text) for x in reversed(lines) for p in patterns)


def _best(lines: Sequence[Line], entries: Sequence[_Entry], known: Mapping[str, Any]) -> dict[str, Cause]:
    """Rule -> its best cause in these lines."""
    raised = any(line.raised for line in lines)
    best: dict[str, Cause] = {}
    shapes: dict[str, list[tuple[_Entry, re.Pattern[str]]]] = {}
    left = NEW
    for number, (line, fatal, counts, _) in enumerate(lines):
        if not counts:
            continue
        shape = _DIGITS.sub("0", line)
        matching = shapes.get(shape)
        if matching is None:
            left -= len(line)
            if left < 0:
                continue
            matching = [(e, p) for e in entries if (p := next((p for p in e.patterns if p.search(line)), None))]
            shapes[shape] = matching
        if not matching:
            continue
        near = _near(lines, number)
        here: dict[str, Cause] = {}
        for entry, pattern in matching:
            match = pattern.search(line)
            for cause in _causes(entry, match, line, near, known, raised and not fatal, fatal) if match else ():
                if cause.rule not in here or cause.score > here[cause.rule].score:
                    here[cause.rule] = cause
        for cause in _varied(here.values()):
            seen = best.get(cause.rule)
            if seen is None or cause.score > seen.score:
                best[cause.rule] = cause._replace(lines=seen.lines + 1 if seen else 1)
            else:
                best[cause.rule] = seen._replace(lines=seen.lines + 1)
    return best


def _near(lines: Sequence[Line], number: int) -> str:
    """What stands around a line: of a log the traceback, without one what speaks of trouble."""
    around = lines[max(0, number - BEFORE) : number + AFTER]
    if len(lines) > SHORT:
        framed = any(x.frame for x in around)
        around = [x for x in around if x is lines[number] or (x.frame or x.raised if framed else x.trouble)]
    return "\n".join(x.text for x in around)[-NEAR:]


def _varied(causes: Iterable[Cause]) -> Iterable[Cause]:
    """Of several causes of one kind the best stands for the kind: three places to look help more than one thrice."""
    groups: set[str] = set()
    for cause in sorted(causes, key=lambda c: -c.score):
        group = cause.rule.partition("/")[0]
        yield cause._replace(score=cause.score * REPEATED) if group in groups else cause
        groups.add(group)


def _causes(
    entry: _Entry, match: re.Match[str], line: str, near: str, known: Mapping[str, Any], warned: bool, raised: bool
) -> Iterable[Cause]:
    captured = {k: int(v) if v.isdigit() and len(v) < 16 else v for k, v in match.groupdict().items() if v is not None}
    values = {"c": {**cel.plain(captured), "line": cel.plain(line), "near": cel.plain(near)}, "known": dict(known)}
    taken = set()
    for cause in entry.causes:
        if cause["rule"] in taken or not _applies(cause.get("when"), values):
            continue
        taken.add(cause["rule"])
        try:
            message = cel.render(str(cause["message"]), values)
        except cel.CelError:  # it speaks of something that this form of the message does not name
            continue
        score = float(cause["score"])
        if raised:
            score += (1 - score) * RAISED
        elif warned:
            score *= WARNED
        told = {k: v for k, v in captured.items() if v != ""}
        yield Cause(cause["rule"], round(score, 4), line, told, message, str(cause.get("fix", "")), exact=entry.exact)


def _applies(condition: Any, values: Mapping[str, Any]) -> bool:
    """A condition on something the pattern did not capture does not hold."""
    if condition is None:
        return True
    try:
        return cel.holds(str(condition), values)
    except cel.CelError:
        return False


def _confirmed(cause: Cause, findings: Sequence[Finding]) -> Cause:
    """The finding of the same rule (or of its group, if the entry is not `exact`) speaks of the user's files.

    Where both name numbers and share none, the log is of another set: then the finding explains nothing.
    """
    group = cause.rule.partition("/")[0]
    fitting = [
        f
        for f in findings
        if (f.rule == cause.rule or (not cause.exact and f.rule.partition("/")[0] == group)) and _agree(cause, f)
    ]
    if not fitting:
        return cause
    finding = max(fitting, key=lambda f: (f.rule == cause.rule, len(_numbers(f.evidence) & _told(cause))))
    score = round(cause.score + (1 - cause.score) * (CONFIRMED if finding.rule == cause.rule else RELATED), 4)
    return cause._replace(
        rule=finding.rule, score=score, message=finding.message, fix=finding.fix or cause.fix, confirmed=True
    )


def _told(cause: Cause) -> set[int]:
    return {v for k, v in cause.captured.items() if isinstance(v, int) and k in ("given", "wanted", "cols", "a", "b")}


def _agree(cause: Cause, finding: Finding) -> bool:
    said, held = _told(cause), _numbers(finding.evidence)
    return not said or not held or bool(said & held)


def _numbers(value: Any) -> set[int]:
    if isinstance(value, bool):
        return set()
    if isinstance(value, int):
        return {value}
    if isinstance(value, Mapping):
        return set().union(*map(_numbers, value.values())) if value else set()
    return set().union(*map(_numbers, value)) if isinstance(value, (list, tuple)) and value else set()
