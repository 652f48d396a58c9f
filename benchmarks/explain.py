"""From the symptom text of the reference incidents alone: is the right cause named first, or among the first three?

    python -m benchmarks.explain [--verbose] [TEXTS.json]

A row counts if it quotes an error text. The right groups are the `rules_any` of the row's cases, else the group of its
letter.

Nothing in `rules/errors/` is fitted to numbers, but who writes a pattern has seen some messages. So a second figure
leaves each repository out: for its rows every alternative of a pattern, and every condition of a cause, is dropped
whose only support among all incidents comes from that repository. What no incident supports stays, and so does what
another repository's incident supports. That is a lower bound: a message that one repository alone reports counts as
never seen, also where the pattern comes from the runtime's source.

TEXTS.json, a list of [text, [group, ...]], is scored too: messages that nobody looked at while the rules were written.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import shared
from compatkit.checks.diagnosis import diagnose
from compatkit.knowledge.store import load

GROUPS = {
    "A": ("encoder",), "B": ("vae",), "C": ("lora", "adapter"), "D": ("loader",), "E": ("quant",), "F": ("file",),
    "G": ("smoke", "quant"), "H": ("host",), "I": ("encoder", "file"), "J": ("workflow", "adapter"),
}  # fmt: skip
_QUOTED = re.compile(r"[:'\"(\[{]|Error|error:|not |invalid|mismatch|missing")
_WRAPPED = re.compile(r"^(\(\?i\)|\(\?P<\w+>\)\(\?i:)?(.*?)(\))?$", re.S)

Row = Mapping[str, Any]
Entries = Sequence[Mapping[str, Any]]


def right_groups(folder: Path) -> dict[str, set[str]]:
    """Incident -> groups of rules that explain it."""
    out: dict[str, set[str]] = {}
    for path in (folder / "cases").glob("*.json"):
        case = json.loads(path.read_text())
        match = re.match(r"[A-J]\d+", case["id"])
        if match and not case.get("derived"):
            out.setdefault(match[0], set()).update(r.rstrip("/").split("/")[0] for r in case["expect"]["rules_any"])
    return out


def alternatives(pattern: str) -> list[str]:
    """The alternatives of a pattern at its top level, each a pattern of its own."""
    match = _WRAPPED.match(pattern)
    assert match is not None
    head, body, tail = match[1] or "", match[2], match[3] or ""
    if not head.endswith(":"):
        body, tail = body + tail, ""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(body):
        c = body[at]
        at += 2 if c == "\\" else 1
        if c == "[":
            end = re.compile(r"\]").search(body, at + 1)
            while end and body[end.start() - 1] == "\\" and body[end.start() - 2] != "\\":
                end = re.compile(r"\]").search(body, end.end())
            at = end.end() if end else len(body)
        depth += (c == "(") - (c == ")")
        if c == "|" and depth == 0:
            parts.append(body[start : at - 1])
            start = at
    return [head + p + tail for p in [*parts, body[start:]]]


def single(entries: Entries) -> Entries:
    """The entries with every alternative a pattern of its own."""
    return [{**e, "patterns": [a for p in e["patterns"] for a in alternatives(p)]} for e in entries]


def supported(entries: Entries, rows: Sequence[Row], known: Mapping[str, Any]) -> dict[tuple[int, str, str], set[str]]:
    """(entry, kind, pattern or condition) -> the repositories whose incidents it speaks of."""
    out: dict[tuple[int, str, str], set[str]] = {}
    for i, entry in enumerate(entries):
        for p in entry["patterns"]:
            compiled = re.compile(p)
            repositories = {r["repo"] for r in rows if compiled.search(r["symptom"])}
            if repositories:
                out[i, "pattern", p] = repositories
        for cause in entry.get("causes", ()):
            if "when" in cause:
                alone = [{**entry, "causes": [cause]}]
                repositories = {r["repo"] for r in rows if diagnose(r["symptom"], alone, known)}
                if repositories:
                    out[i, "when", cause["when"]] = repositories
    return out


def without(
    entries: Entries, repository: str, support: Mapping[tuple[int, str, str], set[str]]
) -> list[dict[str, Any]]:
    """The entries less what only this repository supports."""
    alone = {key for key, repositories in support.items() if repositories == {repository}}
    out = []
    for i, e in enumerate(entries):
        patterns = [p for p in e["patterns"] if (i, "pattern", p) not in alone]
        if patterns:
            causes = [c for c in e.get("causes", ()) if (i, "when", c.get("when", "")) not in alone]
            out.append({**e, "patterns": patterns} | ({"causes": causes} if "causes" in e else {}))
    return out


def score(name: str, rows: Sequence[tuple[str, str, set[str]]], causes: Callable[[str, str], list[str]]) -> None:
    """Print the misses and the two shares; `causes` of (label, text) are rules, best first."""
    first = three = 0
    print(f"--- {name}")
    for label, text, right in rows:
        found = causes(label, text)
        ranks = [i for i, c in enumerate(found) if c.split("/")[0] in right]
        first += ranks[:1] == [0]
        three += bool(ranks) and ranks[0] < 3
        if "--verbose" in sys.argv or ranks[:1] != [0]:
            print(f"{label} wanted {sorted(right)} got {found[:3]}: {text[:100]!r}")
    total = len(rows)
    shares = f"first {first} of {total} ({first / total:.1%}), among three {three} ({three / total:.1%})"
    print(f"{name}: {shares}")


def main() -> None:
    """Print the misses and the shares, in the sample and with each repository left out."""
    folder = shared()
    groups = right_groups(folder)
    knowledge = load()
    entries, known = knowledge.table("errors"), knowledge.table("known")
    rows = json.loads((folder / "incidents.json").read_text())
    quoted = [r for r in rows if _QUOTED.search(r["symptom"])]
    asked = [(r["id"], r["symptom"], groups.get(r["id"]) or set(GROUPS[r["id"][0]])) for r in quoted]
    score("in the sample", asked, lambda _, text: [c.rule for c in diagnose(text, entries, known)])

    parts = single(entries)
    support = supported(parts, rows, known)
    repository = {r["id"]: r["repo"] for r in rows}
    rest = {name: without(parts, name, support) for name in set(repository.values())}
    score(
        "each repository left out",
        asked,
        lambda label, text: [c.rule for c in diagnose(text, rest[repository[label]], known)],
    )
    for argument in sys.argv[1:]:
        if argument.endswith(".json"):
            texts = [(str(i), t, set(g)) for i, (t, g) in enumerate(json.loads(Path(argument).read_text()))]
            score(argument, texts, lambda _, text: [c.rule for c in diagnose(text, entries, known)])


if __name__ == "__main__":
    main()
