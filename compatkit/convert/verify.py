"""Is a converted file the same change? Both files, each read anew, are applied to random weights and compared."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from compatkit.convert.changes import Change
from compatkit.convert.deltas import Weight, effect
from compatkit.convert.values import Array, Value, is_float

_PROBES = 4
#: Rows of the pattern that random weights are made of, and how far a tensor may begin into it.
_PATTERN, _SHIFTS = 61, 1009
#: Relative to the largest effect on a weight: float32 rounding of a folded scale is 1e-7.
TOLERANCE = 1e-5
_Key = tuple[str, str]


def differences(
    before: Sequence[Change], after: Sequence[Change], shapes: Mapping[str, tuple[int | None, ...]]
) -> list[str]:
    """A sentence for every tensor of the base that the two sets of changes do not change alike; [] if all is well.

    Algorithms without a formula are compared value by value.
    """
    groups: dict[_Key, tuple[list[Change], list[Change]]] = {}
    for number, changes in enumerate((before, after)):
        for change in changes:
            for tensor in dict.fromkeys(s.tensor for s in change.place):
                groups.setdefault((tensor, change.algorithm), ([], []))[number].append(change)
    out = []
    for (tensor, _), (one, other) in groups.items():
        modules = ", ".join(c.module for c in one) or ", ".join(c.module for c in other)
        if (one or other)[0].math == "other" or not _computable([*one, *other]):
            if not _equal_parts(one, other):
                out.append(f"{modules}: its tensors differ")
        else:
            first, second = (_sum(tensor, changes, shapes) for changes in (one, other))
            if not _close(first, second):
                worst = float(np.nanmax(np.abs(first - second)))
                out.append(f"{modules}: the change of {tensor} differs by {worst:g}")
    return out


def _computable(changes: Sequence[Change]) -> bool:
    return all(is_float(v.dtype) for c in changes for p, v in c.parts.items() if p not in ("reshape",))


def _equal_parts(one: Sequence[Change], other: Sequence[Change]) -> bool:
    def parts(changes: Sequence[Change]) -> list[tuple[str, bytes]]:
        return sorted((p, v.load().tobytes()) for c in changes for p, v in c.parts.items())

    return parts(one) == parts(other)


def _close(one: Array, other: Array) -> bool:
    if np.isnan(one).any() or np.isnan(other).any():
        return bool(np.array_equal(np.isnan(one), np.isnan(other)))
    if np.isinf(one).any() or np.isinf(other).any():
        return bool(np.array_equal(one, other))
    top = float(max(np.abs(one).max(initial=0), np.abs(other).max(initial=0)))
    return bool(np.abs(one - other).max(initial=0) <= TOLERANCE * top)


def _sum(tensor: str, changes: Sequence[Change], shapes: Mapping[str, tuple[int | None, ...]]) -> Array:
    """The effect of all changes on a tensor: (its rows, probes)."""
    shape = shapes[tensor]
    rows = shape[0] if shape else 1
    assert rows is not None
    out = np.zeros((rows, _PROBES))
    for change in changes:
        width = _width(change, shape)
        columns = int(np.prod(width)) if width else 1
        probe = np.random.default_rng(columns).standard_normal((columns, _PROBES))
        numbers = {p: v.numbers() for p, v in change.parts.items()}
        weight = partial(_weight, change, columns)
        alpha = change.alpha.number if change.alpha is not None else None
        with np.errstate(all="ignore"):
            made = effect(change.math, numbers, weight, (change.rows, *width), alpha, probe)
        at = 0
        for segment in change.place:
            if segment.tensor == tensor:
                out[segment.start : segment.start + segment.size] += made[at : at + segment.size]
            at += segment.size
    return out


def _width(change: Change, shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """The sides of a weight after its rows; the adapter's where it widens the weight or the base leaves them free."""
    if change.kind == "bias" or len(shape) < 2:
        return ()
    if "reshape" in change.parts and "down" in change.parts:
        return tuple(change.parts["down"].shape[1:])
    known = tuple(s for s in shape[1:] if s is not None)
    if len(known) == len(shape) - 1:
        return known
    value: Value | None = change.parts.get("down") or change.parts.get("weight")
    return tuple(value.shape[1:]) if value is not None else known


def _weight(change: Change, columns: int) -> Weight:
    """Random rows of the base, the same for whatever module asks for them."""
    pattern = np.random.default_rng(columns + 1).standard_normal((_PATTERN, columns))
    index = np.empty(change.rows, dtype=np.int64)
    scale = np.empty(change.rows)
    at = 0
    for segment in change.place:
        own = np.arange(segment.start, segment.start + segment.size) + zlib.crc32(segment.tensor.encode()) % _SHIFTS
        index[at : at + segment.size] = own * 7 % _PATTERN
        scale[at : at + segment.size] = 0.5 + own * 31 % 97 / 97
        at += segment.size
    return Weight(pattern, index, scale)
