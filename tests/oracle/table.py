"""Prints what the oracle compares and what not, for `docs/oracle.md`; `--write` puts it there. Needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path

from compatkit.knowledge.store import load
from tests.oracle import models

PAGE = Path(__file__).resolve().parents[2] / "docs" / "oracle.md"
START, END = "<!-- table: python -m tests.oracle.table --write -->\n", "<!-- end of table -->"


def text() -> str:
    """The tables, in markdown."""
    knowledge = load()
    entries = list(models.entries())
    declared = models.declared(knowledge)
    excepted = models.exceptions()
    roles: dict[str, list[int]] = {}
    for family in declared:
        counts = roles.setdefault(str(knowledge.family(family)["role"]), [0, 0, 0])
        counts[0] += 1
        counts[2 if family in excepted else 1] += 1
    lines = [
        f"{len(entries)} configurations of {len({e.class_name for e in entries})} classes, for "
        f"{len(declared) - len(excepted)} of the {len(declared)} families whose card names a class.",
        "",
        "| role | families that name a class | compared | excepted |",
        "|---|---:|---:|---:|",
        *(f"| {role} | {n} | {done} | {left} |" for role, (n, done, left) in sorted(roles.items())),
        "",
        "| excepted | class | why |",
        "|---|---|---|",
        *(f"| {family} | {', '.join(declared[family])} | {excepted[family]} |" for family in sorted(excepted)),
        "",
        "| classes of diffusers that no family names | why |",
        "|---|---|",
        *(f"| {', '.join(sorted(names))} | {why} |" for why, names in models.document()["without_family"].items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print, or write into the page."""
    if "--write" in sys.argv[1:]:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(START)
        _, _, after = rest.partition(END)
        PAGE.write_text(before + START + "\n" + text() + "\n" + END + after, encoding="utf-8")
    else:
        sys.stdout.write(text())


if __name__ == "__main__":
    main()
