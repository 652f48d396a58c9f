"""Symbols that only packed weights could tell, solved from how many values those hold.

A flattened weight shows no side, and a covered module (one blob for many weights) not even a tensor; both still tell
how many values they stand for. Where all sides but one symbol are known, that is enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import gcd, prod
from typing import Any

from compatkit.identify.packing import MOST_PACKED, View
from compatkit.knowledge.expr import evaluate, symbols
from compatkit.knowledge.patterns import Pattern, count, names

#: Names of one line that are looked at: enough for any model.
_NAMES = 4096

Blocks = Mapping[str, Counter[int]]


def bind(spec: Mapping[str, Any], view: View, found: dict[str, int], published: Mapping[str, int]) -> None:
    """Add to `found` every symbol of the grammar that the counts of packed weights tell.

    Where several symbols are left, `published` (the sizes of the family's first example) settles them if it explains
    what is packed to the last value.
    """
    left = {s for row in spec["lines"] for shape in row[2] or () for s in _free(shape, found)}
    if not left:
        return
    blocks = _blocks(spec, view, found) if view.covers else {}
    if view.counts:
        _solve(spec, view, blocks, found)
        left -= set(found)
    more = {s: published[s] for s in left if s in published}
    if more and _explains(spec, view, blocks, {**found, **more}, left):
        found.update(more)


def _free(shape: list[Any], found: Mapping[str, int]) -> set[str]:
    return {s for side in shape if side is not None for s in _symbols(side)} - set(found)


def _symbols(side: Any) -> set[str]:
    return {side} if type(side) is str else set() if type(side) is int else symbols(side)


def _holds(when: Any, found: Mapping[str, int]) -> bool:
    try:
        return when == 1 or bool(evaluate(when, found))
    except KeyError:
        return False


def _elements(shape: list[Any], known: Mapping[str, int]) -> int:
    return prod(1 if side is None else evaluate(side, known) for side in shape)


def _linear(shapes: list[tuple[list[Any], int]], symbol: str, found: Mapping[str, int], total: int) -> int | None:
    """The whole number that the symbol must be for these shapes, so many times each, to hold `total` values."""
    at = {n: sum(k * _elements(shape, {**found, symbol: n}) for shape, k in shapes) for n in (1, 2)}
    slope = at[2] - at[1]
    if slope <= 0 or (total - at[1]) % slope:
        return None
    value = 1 + (total - at[1]) // slope
    exact = value > 0 and sum(k * _elements(shape, {**found, symbol: value}) for shape, k in shapes) == total
    return value if exact else None


def _blocks(spec: Mapping[str, Any], view: View, found: Mapping[str, int]) -> Blocks:
    """Covered module -> the lines whose tensors lie in it, and how many of each do. Norms are never packed away."""
    out: dict[str, Counter[int]] = {}
    shown = _shown(spec, view, found)
    for number, (format_, ranges, shapes, group, when) in enumerate(spec["lines"]):
        if shapes is None or len(shapes[0]) < 2 or not format_.endswith(".weight") or group not in shown:
            continue
        for name in _names(format_, ranges, found) if _holds(when, found) else ():
            if name not in view.tensors:
                module = view.cover(name)
                if module is not None:
                    out.setdefault(module, Counter())[number] += 1
    return out


def _shown(spec: Mapping[str, Any], view: View, found: Mapping[str, int]) -> set[int]:
    """The optional groups of which some tensor is there to see, and -1 for what is not optional."""
    out = {-1}
    for format_, ranges, _, group, _ in spec["lines"]:
        if group not in out and any(n in view.tensors for n in _names(format_, ranges, found)[:1]):
            out.add(group)
    return out


def disagreeing(spec: Mapping[str, Any], view: View, found: Mapping[str, int]) -> list[str]:
    """The covered modules that hold another number of values than the weights that should be in them."""
    out = []
    for module, block in _blocks(spec, view, found).items():
        shapes = [(spec["lines"][number][2][0], n) for number, n in block.items()]
        if module not in view.counts or any(_free(shape, found) for shape, _ in shapes):
            continue
        if sum(n * _elements(shape, found) for shape, n in shapes) != view.counts[module]:
            out.append(f"{module}.*" if module else "*")
    return out


def _names(format_: str, ranges: list[Any], found: Mapping[str, int]) -> list[str]:
    pattern = Pattern(format_, tuple(ranges))
    try:
        return list(names(pattern, found)) if count(pattern, found) <= _NAMES else []
    except KeyError:
        return []


def _solve(spec: Mapping[str, Any], view: View, blocks: Blocks, found: dict[str, int]) -> None:
    lines = spec["lines"]
    tensors = [row for row in lines if row[2] is not None and len(row[2]) == 1] if view.loose else []
    kinds = {(view.counts[m], tuple(sorted(b.items()))): b for m, b in blocks.items() if m in view.counts}
    known = -1
    while known < len(found):
        known = len(found)
        for format_, ranges, shapes, _, when in tensors:
            free = _free(shapes[0], found)
            if len(free) != 1 or not _holds(when, found):
                continue
            for name in _names(format_, ranges, found)[:1]:
                if name in view.loose and name in view.counts:
                    _set(found, free.pop(), [(shapes[0], 1)], view.counts[name])
        for (total, _), block in kinds.items():
            inside = [(lines[number][2][0], n) for number, n in block.items()]
            free = {s for shape, _ in inside for s in _free(shape, found)}
            if len(free) == 1:
                _set(found, free.pop(), inside, total)


def _set(found: dict[str, int], symbol: str, shapes: list[tuple[list[Any], int]], total: int) -> None:
    value = _linear(shapes, symbol, found, total)
    if value is not None:
        found[symbol] = value


def _explains(spec: Mapping[str, Any], view: View, blocks: Blocks, sizes: Mapping[str, int], left: set[str]) -> bool:
    """Whether under these sizes every packed tensor that would show one of the symbols `left` holds what it must.

    A tensor whose packing is not known in numbers must hold the same share of its weight as all others do.
    """
    lines = spec["lines"]
    stated = {m: view.counts[m] for m in blocks if m in view.counts}
    for module, total in stated.items():
        inside = [(lines[number][2][0], n) for number, n in blocks[module].items()]
        if any(_free(shape, sizes) for shape, _ in inside):
            return False
        if sum(n * _elements(shape, sizes) for shape, n in inside) != total:
            return False
    shares: set[tuple[int, int]] = set()
    for format_, ranges, shapes, _, when in lines if view.loose else ():
        if shapes is None or not left & _free(shapes[0], {}) or _free(shapes[0], sizes) or not _holds(when, sizes):
            continue
        wanted = _elements(shapes[0], sizes)
        for name in _names(format_, ranges, sizes):
            if name not in view.loose:
                continue
            stored = view.tensors[name].elements
            total = view.counts.get(name, 0)
            shares.add((wanted // gcd(wanted, stored), stored // gcd(wanted, stored)) if not total else (0, 0))
            if total and not 0 <= total - wanted < MOST_PACKED:
                return False
    return bool(stated or shares) and len(shares - {(0, 0)}) <= 1
