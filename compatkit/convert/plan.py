"""From the changes of a file to the modules of another convention: which rows of which change each of them takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct

from compatkit.adapters.places import Module, Place, Segment
from compatkit.convert.changes import Change
from compatkit.convert.cut import Refused


class Piece(NamedTuple):
    """Rows of a target: of a change, from its output row `start` on; or (None) rows that nothing changes."""

    change: Change | None
    start: int
    size: int


class Target(Struct, frozen=True):
    """One module to write: its name, the algorithm, and its rows."""

    module: str
    algorithm: str
    math: str
    kind: str
    pieces: tuple[Piece, ...]

    @property
    def copied(self) -> bool:
        """Whether it is one change as it stands."""
        only = self.pieces[0]
        return len(self.pieces) == 1 and only.change is not None and only.start == 0 and only.size == only.change.rows

    @property
    def changes(self) -> list[Change]:
        """The changes it takes rows of, each once."""
        return list({id(p.change): p.change for p in self.pieces if p.change is not None}.values())


def plan(changes: Sequence[Change], modules: Iterable[Module]) -> list[Target]:
    """The modules to write, in the order of the convention.

    Raises:
        Refused: rows that no module of the convention holds.
    """
    index: dict[str, list[tuple[Segment, Change, int]]] = {}
    for change in changes:
        at = 0
        for segment in change.place:
            index.setdefault(segment.tensor, []).append((segment, change, at))
            at += segment.size
    used: dict[int, int] = {}
    out = []
    for module in modules:
        for kind, place in (("weight", module.weight), ("bias", module.bias)):
            if place is None or not any(s.tensor in index for s in place):
                continue
            here = [row for s in place for row in index.get(s.tensor, ()) if row[1].kind == kind]
            for algorithm in dict.fromkeys(row[1].algorithm for row in here):
                pieces = _pieces(place, [row for row in here if row[1].algorithm == algorithm])
                if not any(p.change for p in pieces):
                    continue
                for piece in pieces:
                    if piece.change is not None:
                        used[id(piece.change)] = used.get(id(piece.change), 0) + piece.size
                math = next(p.change.math for p in pieces if p.change)
                out.append(Target(module.name, algorithm, math, kind, tuple(pieces)))
    lost = [c.module for c in changes if used.get(id(c), 0) != c.rows]
    if lost:
        raise Refused(f"{lost[0]} has no place in these names" + (f" ({len(lost)} modules)" if len(lost) > 1 else ""))
    return out


def _pieces(place: Place, rows: Sequence[tuple[Segment, Change, int]]) -> list[Piece]:
    """Which change gives each row of a place, neighbours joined."""
    out: list[Piece] = []
    unique = list({(id(c), s, at): (s, c, at) for s, c, at in rows}.values())
    for wanted in place:
        at, end = wanted.start, wanted.start + wanted.size
        over = sorted(
            (row for row in unique if row[0].tensor == wanted.tensor and row[0].start < end
             and row[0].start + row[0].size > at),
            key=lambda row: row[0].start,
        )  # fmt: skip
        for segment, change, offset in over:
            if segment.start > at:
                _append(out, Piece(None, 0, segment.start - at))
                at = segment.start
            last = min(end, segment.start + segment.size)
            _append(out, Piece(change, offset + at - segment.start, last - at))
            at = last
        if at < end:
            _append(out, Piece(None, 0, end - at))
    return out


def _append(out: list[Piece], piece: Piece) -> None:
    if out and out[-1].change is piece.change and (piece.change is None or out[-1].start + out[-1].size == piece.start):
        out[-1] = Piece(piece.change, out[-1].start, out[-1].size + piece.size)
    else:
        out.append(piece)
