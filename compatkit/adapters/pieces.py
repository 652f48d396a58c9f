"""A loader that reads a fused weight piece by piece: rows in their order, and zeros for those that are missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from compatkit.adapters.fit import Shape, Shapes, matrix
from compatkit.adapters.names import Target


def unreached(names: Mapping[str, Target], modules: Iterable[str]) -> set[str]:
    """Modules that change rows of a weight whose earlier rows none changes: the loader counts from the first on."""
    parts: dict[str, list[tuple[int, int, str]]] = {}
    for module in modules:
        target = names.get(module)
        if target is not None and target.rows is not None:
            parts.setdefault(target.weight, []).append((*target.rows, module))
    out = set[str]()
    for rows in parts.values():
        end = 0
        for start, size, module in sorted(rows):
            if start > end:
                out.add(module)
            else:
                end = max(end, start + size)
    return out


def padded(math: str, parts: Shapes, weight: Shape, alone: bool = True) -> bool:
    """Whether the change has the weight's columns and too few rows: a loader that pads puts it on the first ones.

    A part of a fused weight (not `alone`) may have as many rows as are left of that.
    """
    made = matrix(math, parts) if len(weight) == 2 else None
    return made is not None and made[1] == weight[1] and (made[0] < weight[0] or (not alone and made[0] == weight[0]))
