"""Which tensor of a file, or which rows of several, make each tensor of a library's class. No weights are read here.

A key map says how a layout's tensors come from the family's own; a file in one layout and a class in another are joined
over the family's own layout. Everything maps do to values is a matter of rows (fused and split projections, exchanged
halves), so a recipe is a list of runs of rows to put one below the other, and the shape the result has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from msgspec import Struct

from compatkit.identify.shapes import expected_shapes
from compatkit.knowledge.expr import evaluate
from compatkit.knowledge.patterns import Pattern, names
from compatkit.vocabulary import Component


class Piece(NamedTuple):
    """A run of rows of one tensor of the file: `rows` of them from `start`, all where `rows` is None.

    `source` is the tensor's full name, prefix included, as it is in a file that is not packed: a packing may store it
    under other names beside it. `shape` is the logical shape it has in the file.
    """

    source: str
    shape: tuple[int, ...]
    start: int = 0
    rows: int | None = None


class Recipe(Struct, frozen=True):
    """How to make one tensor of a class: its pieces joined by rows (axis 0), then reshaped to `shape`."""

    pieces: tuple[Piece, ...]
    shape: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Whether it is one tensor of the file as it stands, up to sides of 1."""
        return len(self.pieces) == 1 and self.pieces[0].rows is None


class _Run(NamedTuple):
    """`rows` rows from `start` of a tensor of the family's own layout; None: all of a tensor of any shape."""

    own: str
    start: int
    rows: int | None


def layout_in_file(component: Component, document: Mapping[str, Any]) -> str:
    """The layout whose names a component's tensors have. A GGUF file's is called `gguf` whichever it is."""
    layouts = document["layouts"]
    if component.layout in layouts and component.format != "gguf":
        return component.layout
    n = len(component.prefix)
    present = {name[n:] for name in component.tensors}
    own = next(iter(layouts))
    telling = {name: _first_names(layout) for name, layout in layouts.items()}
    return max(map(str, layouts), key=lambda name: (len(telling[name] & present), name == own))


def _first_names(layout: Mapping[str, Any]) -> set[str]:
    return {f % tuple(a for a, _, _ in r) for f, r, *_ in layout["lines"] if all(isinstance(a, int) for a, _, _ in r)}


def weight_plan(
    document: Mapping[str, Any],
    of_file: str,
    of_class: str,
    symbols: Mapping[str, int],
    options: Mapping[str, Any],
    prefix: str = "",
) -> dict[str, Recipe]:
    """Name in the class's layout -> recipe, for every tensor that a file in layout `of_file` has the values of.

    Raises:
        KeyError: a symbol that a present line needs is not given.
    """
    shapes = _whole(expected_shapes(document, of_class, symbols, options))
    if of_file == of_class:
        return {n: Recipe((Piece(prefix + n, s),), s) for n, s in shapes.items()}
    in_file = _whole(expected_shapes(document, of_file, symbols, options))
    own_shapes = _whole(expected_shapes(document, next(iter(document["layouts"])), symbols, options))
    at: dict[str, list[tuple[int, str, int, int | None]]] = {}  # own name -> (own start, file name, file start, rows)
    for name, runs in _composition(document, of_file, symbols, own_shapes):
        if name not in in_file:
            continue
        offset = 0
        for own, start, rows in runs:
            at.setdefault(own, []).append((start, name, offset, rows))
            offset += _rows(own_shapes, own, rows)
    plan: dict[str, Recipe] = {}
    for name, runs in _composition(document, of_class, symbols, own_shapes):
        if name not in shapes or name in plan:
            continue
        pieces = [p for run in runs for p in _gather(run, at.get(run.own, []), own_shapes, in_file, prefix)]
        if runs and None not in pieces:
            plan[name] = Recipe(_joined([p for p in pieces if p is not None]), shapes[name])
    return plan


def _whole(shapes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {n: tuple(1 if s is None else s for s in shape or ()) for n, shape in shapes.items()}


def _rows(shapes: Mapping[str, tuple[int, ...]], name: str, rows: int | None) -> int:
    if rows is not None:
        return rows
    shape = shapes.get(name)
    return shape[0] if shape else 1


def _composition(
    document: Mapping[str, Any], layout: str, symbols: Mapping[str, int], own_shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, list[_Run]]]:
    """(name in `layout`, what it is made of in the family's own layout) of every tensor under these symbols."""
    own_layout = next(iter(document["layouts"]))
    own_lines = document["layouts"][own_layout]["lines"]
    spec = document["layouts"][layout]
    for number, (format_, ranges, _, _, when) in enumerate(spec["lines"]):
        try:
            if when != 1 and not evaluate(when, symbols):
                continue
            sources, how, start, size = spec["origins"][number] if spec["origins"] else ([number], "copy", 0, 0)
            there = [list(names(Pattern(own_lines[s][0], own_lines[s][1]), symbols)) for s in sources]
            here = list(names(Pattern(format_, ranges), symbols))
            cut = (evaluate(start, symbols), evaluate(size, symbols)) if how == "rows" else (0, 0)
        except KeyError:
            continue
        if how == "new":
            continue
        for i, name in enumerate(here):
            owns = [row[i] for row in there if i < len(row)]
            if len(owns) == len(there) and all(o in own_shapes for o in owns):
                yield name, _runs(owns, how, *cut, own_shapes)


def _runs(owns: list[str], how: str, start: int, size: int, shapes: Mapping[str, tuple[int, ...]]) -> list[_Run]:
    if how == "swap":
        half = shapes[owns[0]][0] // 2
        return [_Run(owns[0], half, half), _Run(owns[0], 0, half)]
    if how != "rows":
        return [_Run(o, 0, None) for o in owns]
    out, offset = [], 0
    for own in owns:
        rows = shapes[own][0]
        first, last = max(start, offset), min(start + size, offset + rows)
        if first < last:
            out.append(_Run(own, first - offset, last - first))
        offset += rows
    return out


def _gather(
    run: _Run,
    places: list[tuple[int, str, int, int | None]],
    own_shapes: Mapping[str, tuple[int, ...]],
    in_file: Mapping[str, tuple[int, ...]],
    prefix: str,
) -> list[Piece | None]:
    """The pieces of the file that make a run of an own tensor; None among them where the file has not all of it."""
    if run.rows is None and len(places) == 1 and places[0][3] is None:
        name, start = places[0][1], places[0][2]
        alone = in_file[name][:1] == own_shapes[run.own][:1] or not own_shapes[run.own]
        rows = None if alone and start == 0 else _rows(own_shapes, run.own, None)
        if rows is None or len(in_file[name]) > 0:
            elements = _elements(in_file[name]) == _elements(own_shapes[run.own])
            return [Piece(prefix + name, in_file[name], start, None if elements else rows)]
    wanted, end = run.start, run.start + _rows(own_shapes, run.own, run.rows)
    out: list[Piece | None] = []
    for start, name, offset, rows in sorted(places):
        last = start + _rows(own_shapes, run.own, rows)
        if start <= wanted < min(last, end):
            taken = min(last, end) - wanted
            out.append(Piece(prefix + name, in_file[name], offset + wanted - start, taken))
            wanted += taken
    return out if wanted == end else [*out, None]


def _elements(shape: tuple[int, ...]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n


def _joined(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Pieces that follow each other in one tensor made one, and one that is all of its tensor said so."""
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if last and last.source == piece.source and last.rows and piece.rows and last.start + last.rows == piece.start:
            out[-1] = last._replace(rows=last.rows + piece.rows)
        else:
            out.append(piece)
    return tuple(p._replace(rows=None) if p.start == 0 and p.shape[:1] == (p.rows,) else p for p in out)
