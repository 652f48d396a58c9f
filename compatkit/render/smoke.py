"""What a terminal shows of a smoke test's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compatkit.render.style import basename, line, size
from compatkit.vocabulary import Report


def smoke_lines(report: Report, verbose: bool = False) -> Iterator[str]:
    """A few lines for each stage; with `verbose` the largest values of each file."""
    scan: Mapping[str, Any] = report.smoke.get("scan") or {}
    if scan:
        yield from _scan(scan, verbose)


def _scan(scan: Mapping[str, Any], verbose: bool) -> Iterator[str]:
    files = [f for f in scan["files"] if f["tensors"]]
    seconds = float(scan["seconds"])
    tensors = sum(f["tensors"] for f in files)
    what = f"{tensors:,} tensor{'s' if tensors != 1 else ''}, {size(scan['bytes'])}"
    rate = f", {size(scan['bytes'] / seconds)}/s" if scan["bytes"] > 1e9 and seconds else ""
    yield f"Weights: {what} read once in {seconds:.1f} s{rate}" + ("" if scan["complete"] else " (not all of them)")
    for file in files:
        rows = sorted(file["measured"].items(), key=lambda item: -float(item[1].get("max_abs", 0.0)))
        rows = [(n, r) for n, r in rows if r.get("kind") != "integer" and not r.get("owner")]
        if not rows:
            continue
        name, row = rows[0]
        yield f"  {basename(file['source'])}: largest value {float(row.get('max_abs', 0.0)):.4g} in {line(name, 90)}"
        for name, row in rows[1:10] if verbose else ():
            yield f"    {float(row.get('max_abs', 0.0)):>10.4g}  {line(name, 90)}"
