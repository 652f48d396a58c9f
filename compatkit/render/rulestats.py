"""How readable the family files are: lines, bare numbers and examples of each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from statistics import median

_NUMBER = re.compile(r"(?<![\w.{])\d{2,}(?![\w.}])")


def family_statistics(roots: Iterable[Path]) -> str:
    """A table, longest first, and the totals."""
    from tabulate import tabulate

    rows: list[tuple[str, int, int, int]] = []
    for root in roots:
        for path in sorted((root / "families").rglob("*.yaml")):
            text = path.read_text(encoding="utf-8")
            lines = [x for x in text.splitlines() if x.strip() and not x.lstrip().startswith("#")]
            grammar = text.partition("\nexamples:")[0]
            examples = text.partition("\nexamples:")[2].count("\n  - ")
            rows.append((path.stem, len(lines), len(_NUMBER.findall(grammar)), examples))
    rows.sort(key=lambda r: (-r[1], r[0]))
    counts = [r[1] for r in rows]
    table = tabulate(rows, headers=["family", "lines", "literals", "examples"], tablefmt="plain")
    summary = (
        f"{len(rows)} files, {sum(counts)} lines, median {median(counts):g}, longest {max(counts)}"
        if rows
        else "no files"
    )
    return f"{table}\n\n{summary}\n"
