"""The coverage of an adapter as a map: one cell for each block of the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

#: Runs of fewer blocks stand together in one row.
_ROW = 3
#: Glyphs say what colours say: all, some, none of the block's matrices are changed, or some cannot be.
GLYPHS = {"all": "●", "some": "◐", "none": "·", "failed": "✗"}


class Cell(NamedTuple):
    """One block: its label, what happens to it (a key of GLYPHS), and a sentence."""

    label: str
    state: str
    glyph: str
    weights: int
    changed: int
    failed: int


class Row(NamedTuple):
    """A run of blocks."""

    name: str
    cells: list[Cell]


class Map(NamedTuple):
    """The map of one adapter on one base."""

    component: int
    base: int
    runtime: str
    rows: list[Row]
    touched: int
    blocks: int


def block_map(entry: Mapping[str, Any]) -> Map | None:
    """The map of one entry of a report's `adapters`; None where the base's blocks are not known."""
    blocks: Sequence[Mapping[str, Any]] = entry.get("blocks") or ()
    if not blocks:
        return None
    runs: dict[str, list[Cell]] = {}
    for block in blocks:
        runs.setdefault(str(block["run"]), []).append(_cell(block))
    rows = [Row(name, cells) for name, cells in runs.items() if len(cells) >= _ROW]
    rest = [
        cell._replace(label=f"{name}.{cell.label}" if cell.label else name)
        for name, cells in runs.items()
        if len(cells) < _ROW
        for cell in cells
    ]
    if rest:
        rows.append(Row("", rest))
    cells = [c for row in rows for c in row.cells]
    touched = sum(c.state in ("all", "some") for c in cells)
    return Map(entry["component"], entry["base"], str(entry["runtime"]), rows, touched, len(cells))


def _cell(block: Mapping[str, Any]) -> Cell:
    weights, changed, failed = (int(block[k]) for k in ("weights", "changed", "failed"))
    state = "failed" if failed else "all" if changed and changed >= weights else "some" if changed else "none"
    index = block.get("index")
    return Cell("" if index is None else str(index), state, GLYPHS[state], weights, changed, failed)
