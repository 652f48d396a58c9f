"""What `explain` tells of a name: a rule, a family, a cause that no check finds yet, or a group; and names alike."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from compatkit import __version__
from compatkit.checks.verdict import PENDING_WHY
from compatkit.knowledge.protocol import Rules
from compatkit.render.document import plain
from compatkit.render.explain import as_said
from compatkit.render.style import LEVEL_COLOUR, Paint, text_width

#: Names offered for one that is not known, and messages shown of a cause.
_OFFERED, _QUOTED = 5, 6
_NOT_LETTERS = re.compile(r"[\W_]+")
#: What may stand in a piece of a pattern that can be read as it is.
_READABLE = re.compile(r"[\w ,.:'<>=-]{4,}\Z")


class Named(NamedTuple):
    """What a name stands for: `kind` is rule, family, cause or group; `id` its full name."""

    kind: str
    id: str


def causes(knowledge: Rules) -> dict[str, list[dict[str, Any]]]:
    """Each cause that error texts are known to have -> what is known of it, the surest first."""
    out: dict[str, list[dict[str, Any]]] = {}
    for entry in knowledge.table("errors"):
        for cause in entry.get("causes") or ():
            known = {
                "entry": entry["id"],
                "title": entry.get("title", ""),
                "patterns": [] if entry.get("topic") or "when" in cause else list(entry.get("patterns") or ()),
                "message": cause["message"],
                "fix": cause.get("fix", ""),
                "score": cause["score"],
            }
            out.setdefault(str(cause["rule"]), []).append(known)
    return {rule: sorted(rows, key=lambda r: -r["score"]) for rule, rows in out.items()}


def look_up(name: str, checks: Iterable[str], families: Mapping[str, Any], known: Iterable[str]) -> Named | None:
    """What a name stands for; one that differs in case, hyphens and underscores alone counts as the same."""
    checks, known = list(checks), list(known)
    if name in checks:
        return Named("rule", name)
    if name in families:
        return Named("family", name)
    if name in known:
        return Named("cause", name)
    if any(rule.startswith(f"{name}/") for rule in (*checks, *known)):
        return Named("group", name)
    same = [x for x in (*checks, *families) if _letters(x) == _letters(name)]
    if len(same) == 1:
        return Named("rule" if same[0] in checks else "family", same[0])
    return None


def alike(name: str, checks: Iterable[str], titles: Mapping[str, str]) -> tuple[list[str], int]:
    """(names to offer for one that is not known, how many more there are). `titles`: family -> its name in words."""
    word, ids = _letters(name), [*checks, *titles]
    if word:
        parts = [x for x in ids if word in _letters(x) or word in _letters(titles.get(x, ""))]
        parts.sort(key=lambda x: (not _letters(x).startswith(word), word not in _letters(x), len(x), x))
        if parts:
            return parts[:_OFFERED], len(parts[_OFFERED:])
    from difflib import get_close_matches

    spelled = {_letters(x): x for x in reversed(ids)}
    return [spelled[x] for x in get_close_matches(word, spelled, n=3, cutoff=0.6)], 0


def _letters(text: str) -> str:
    return _NOT_LETTERS.sub("", text.lower())


def cause_text(rule: str, rows: Sequence[Mapping[str, Any]], paint: Paint) -> str:
    """A cause that error texts tell and no check finds: what it means, what to do, and how it is recognised."""
    out = [f"{paint(rule, 'bold')}  known from error messages; no check finds it yet", ""]
    if why := PENDING_WHY.get(rule):
        out += [f"In a report it is not checked: {why}.", ""]
    out.append(paint("What it means", "bold"))
    for message, fix in dict.fromkeys((r["message"], r["fix"]) for r in rows):
        out += _wrapped(f"{message[:1].upper()}{message[1:]}.{f' Fix: {fix}' if fix else ''}", "  ")
    said = list(dict.fromkeys(x for r in rows for x in ([r["title"]] if r["title"] else _like(r["patterns"]))))
    if said:
        out += ["", paint("Messages that point to it", "bold")]
        out += [line for text in said[:_QUOTED] for line in _wrapped(f"> {text}", "  ")]
    out += ["", "`compatkit explain --log FILE SOURCE…` looks for it in a log."]
    return "\n".join(out) + "\n"


def _like(patterns: Iterable[str]) -> Iterator[str]:
    """The pieces of patterns that read as the words they match."""
    for pattern in patterns:
        for piece in _top(pattern.removeprefix("(?i)")):
            text = piece.replace(r"\b", "").replace(" ?", " ").replace(r"\.", ".")
            if _READABLE.match(text):
                yield text.strip()
                break


def _top(pattern: str) -> Iterator[str]:
    """The alternatives of a pattern that stand in no group."""
    depth = start = 0
    for i, letter in enumerate(pattern):
        depth += (letter == "(") - (letter == ")")
        if letter == "|" and not depth:
            yield pattern[start:i]
            start = i + 1
    yield pattern[start:]


def group_text(
    group: str, rules: Iterable[Mapping[str, Any]], known: Mapping[str, Sequence[Mapping[str, Any]]], paint: Paint
) -> str:
    """The rules of a group, and the causes in it that no check finds yet."""
    out = [f"{paint(group, 'bold')}  a group of rules; `compatkit explain RULE` tells more of one", ""]
    rows = [(str(r["id"]), str(r["level"]), str(r["title"])) for r in rules]
    rows += [(rule, "-", f"{causes_[0]['message']} (no check yet)") for rule, causes_ in known.items()]
    names, levels = (max(len(r[i]) for r in rows) for i in (0, 1))
    for name, level, title in rows:
        colour = LEVEL_COLOUR.get(level, "dim")
        lead = f"{name.ljust(names)}  {level.ljust(levels)}  "
        first, *rest = _wrapped(title, "", hang=len(lead), lead=len(lead))
        out += [f"{name.ljust(names)}  {paint(level.ljust(levels), colour)}  {first.lstrip()}", *rest]
    return "\n".join(out) + "\n"


def _wrapped(text: str, indent: str, hang: int = 2, lead: int = 0) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), text_width(), initial_indent=indent or " " * lead, subsequent_indent=indent + " " * hang
    )


def rule_document(rule: Mapping[str, Any]) -> dict[str, Any]:
    """A rule as JSON: what it looks at and why, its condition, and what it says of its own first example that fails."""
    said = as_said(rule)
    example = {"message": said.message, "predicts": dict(said.predicts), "fix": said.fix} if said else {}
    return _document(
        "rule",
        {
            **{key: rule[key] for key in ("id", "level", "title", "why")},
            "binds": rule["binds"],
            "when": _code(rule.get("when")),
            "require": _code(rule.get("require")),
            "example": example,
            "written_in": str(rule.get("source_file", "")),
            "references": rule.get("references") or [],
        },
    )


def family_document(card: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """A family as JSON: its card, the sizes that tell it from others, its layouts."""
    more = {k: v for k, v in card.items() if k not in ("id", "title", "role", "source_file")}
    return _document(
        "family",
        {
            "id": card["id"],
            "title": str(card.get("title") or ""),
            "role": card["role"],
            "card": more,
            "where": document["where"],
            "layouts": list(document["layouts"]),
            "written_in": str(card.get("source_file", "")),
        },
    )


def cause_document(rule: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A cause without a check as JSON."""
    return _document("cause", {"id": rule, "not_checked": PENDING_WHY.get(rule, ""), "known": list(rows)})


def group_document(
    group: str, rules: Iterable[Mapping[str, Any]], known: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """A group as JSON: its rules, and the causes that no check finds."""
    listed = [{key: rule[key] for key in ("id", "level", "title")} for rule in rules]
    return _document("group", {"id": group, "rules": listed, "causes": list(known)})


def _code(expression: Any) -> str:
    return "" if expression is None else " ".join(str(expression).split())


def _document(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"tool": "compatkit", "version": __version__, kind: plain(value)}
