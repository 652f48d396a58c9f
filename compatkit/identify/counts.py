"""Symbols that only packed weights could tell, solved from how many values those hold.

A flattened weight shows no side, and a covered module (one blob for many weights) not even a tensor; both still tell
how many values they stand for. Where all sides but one symbol are known, that is enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from compatkit.identify.packing import View
from compatkit.knowledge.expr import evaluate, symbols
from compatkit.knowledge.patterns import Pattern, count, names

#: Modules looked at for one symbol, and names of one line: enough for any model.
_MODULES, _NAMES = 4, 4096


def bind(spec: Mapping[str, Any], view: View, found: dict[str, int]) -> None:
    """Add to `found` every symbol of the grammar that the counts of packed weights tell."""
    lines = [row for row in spec["lines"] if row[2] is not None and len(row[2]) == 1 and _free(row[2][0], found)]
    for _ in range(3):
        known = len(found)
        for format_, ranges, shapes, _, when in lines:
            free = _free(shapes[0], found)
            if len(free) == 1 and _holds(when, found):
                _from_tensor(Pattern(format_, ranges), shapes[0], free.pop(), view, found)
        if view.covers:
            _from_modules(spec["lines"], lines, view, found)
        if len(found) == known:
            return


def _free(shape: list[Any], found: Mapping[str, int]) -> set[str]:
    return {s for side in shape if side is not None for s in symbols(side)} - set(found)


def _holds(when: Any, found: Mapping[str, int]) -> bool:
    try:
        return when == 1 or bool(evaluate(when, found))
    except KeyError:
        return False


def _elements(shape: list[Any], known: Mapping[str, int]) -> int:
    return prod(1 if side is None else evaluate(side, known) for side in shape)


def _linear(at: Mapping[int, int], total: int) -> int | None:
    """The whole number at which a linear function with these values at 1 and 2 is `total`."""
    slope = at[2] - at[1]
    if slope <= 0 or (total - at[1]) % slope:
        return None
    value = 1 + (total - at[1]) // slope
    return value if value > 0 else None


def _from_tensor(pattern: Pattern, shape: list[Any], symbol: str, view: View, found: dict[str, int]) -> None:
    for name in _names(pattern, found):
        total = view.counts.get(name)
        if total is None or name not in view.loose:
            return
        value = _linear({n: _elements(shape, {**found, symbol: n}) for n in (1, 2)}, total)
        if value is not None and _elements(shape, {**found, symbol: value}) == total:
            found[symbol] = value
        return


def _names(pattern: Pattern, found: Mapping[str, int]) -> Iterator[str]:
    try:
        if count(pattern, found) <= _NAMES:
            yield from names(pattern, found)
    except KeyError:
        return


def _from_modules(every: list[Any], lines: list[Any], view: View, found: dict[str, int]) -> None:
    """One unknown symbol in the weights below a covered module, whose number is known."""
    open_symbols = {s for row in lines for s in _free(row[2][0], found)}
    for module in [m for m in view.covers if m in view.counts][:_MODULES]:
        if not open_symbols:
            return
        below = f"{module}." if module else ""
        inside = [
            row[2][0]
            for row in every
            if row[2] is not None and _holds(row[4], found)
            for name in _names(Pattern(row[0], row[1]), found)
            if name.startswith(below) and name not in view.tensors and view.covered(name)
        ]
        free = {s for shape in inside for s in _free(shape, found)}
        if len(free) != 1:
            continue
        symbol = free.pop()
        at = {n: sum(_elements(shape, {**found, symbol: n}) for shape in inside) for n in (1, 2)}
        value = _linear(at, view.counts[module])
        if value is not None:
            found[symbol] = value
            open_symbols.discard(symbol)
