"""From the symptom text of the reference incidents alone: is the right cause named first, or among the first three?

    python -m benchmarks.explain [--verbose]

A row counts if it quotes an error text. The right groups are the `rules_any` of the row's cases, else the group of its
letter. The entries of `rules/errors/` describe runtimes' messages; none quotes an incident.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from benchmarks.cases import shared
from compatkit.checks.diagnosis import diagnose
from compatkit.knowledge.store import load

GROUPS = {
    "A": ("encoder",), "B": ("vae",), "C": ("lora", "adapter"), "D": ("loader",), "E": ("quant",), "F": ("file",),
    "G": ("smoke", "quant"), "H": ("host",), "I": ("encoder", "file"), "J": ("workflow", "adapter"),
}  # fmt: skip
_QUOTED = re.compile(r"[:'\"(\[{]|Error|error:|not |invalid|mismatch|missing")


def right_groups(folder: Path) -> dict[str, set[str]]:
    """Incident -> groups of rules that explain it."""
    out: dict[str, set[str]] = {}
    for path in (folder / "cases").glob("*.json"):
        case = json.loads(path.read_text())
        match = re.match(r"[A-J]\d+", case["id"])
        if match and not case.get("derived"):
            out.setdefault(match[0], set()).update(r.rstrip("/").split("/")[0] for r in case["expect"]["rules_any"])
    return out


def main() -> None:
    """Print the misses and the two shares."""
    folder = shared()
    groups = right_groups(folder)
    knowledge = load()
    entries, known = knowledge.table("errors"), knowledge.table("known")
    first = three = total = 0
    for row in json.loads((folder / "incidents.json").read_text()):
        if not _QUOTED.search(row["symptom"]):
            continue
        total += 1
        right = groups.get(row["id"]) or set(GROUPS[row["id"][0]])
        causes = [c.rule for c in diagnose(row["symptom"], entries, known)]
        ranks = [i for i, c in enumerate(causes) if c.split("/")[0] in right]
        first += ranks[:1] == [0]
        three += bool(ranks) and ranks[0] < 3
        if "--verbose" in sys.argv or ranks[:1] != [0]:
            print(f"{row['id']} wanted {sorted(right)} got {causes[:3]}: {row['symptom'][:100]!r}")
    print(
        f"first: {first} of {total} ({100 * first / total:.1f} %), among three: {three} ({100 * three / total:.1f} %)"
    )


if __name__ == "__main__":
    main()
