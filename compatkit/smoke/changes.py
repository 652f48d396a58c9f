"""How much an adapter would change each weight at strength 1, from the size of its factors: no product is computed.

The root mean square of a product of two independent matrices is that of each, times the root of the side they share;
of an elementwise or Kronecker product it is the product of both. The arithmetic of each algorithm (`math`) stands in
`rules/adapters/spellings.yaml`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from compatkit.adapters.keys import Key, spellings
from compatkit.knowledge.protocol import Rules
from compatkit.vocabulary import Tensor

Rows = Mapping[str, Mapping[str, Any]]


class _Module:
    """One module of an adapter: what was measured of each of its parts."""

    def __init__(self, parts: Mapping[str, str], tensors: Mapping[str, Tensor], rows: Rows) -> None:
        self.parts, self._tensors, self._rows = parts, tensors, rows

    def has(self, *parts: str) -> bool:
        return all(self.parts.get(p, "") in self._rows for p in parts)

    def rms(self, part: str) -> float:
        return float(self._rows[self.parts[part]].get("rms", 0.0))

    def rank(self, part: str) -> int:
        shape = self._tensors[self.parts[part]].shape
        return shape[0] if shape else 0

    def alpha(self) -> float | None:
        value = self._rows.get(self.parts.get("alpha", ""), {}).get("value")
        return None if value is None else float(value)

    def factors(self, how: str) -> tuple[float, int] | None:
        """(root mean square of the change before alpha / rank, the rank; 0: alpha does not count); None if unknown."""
        if how == "product" and self.has("up", "down"):
            rank = self.rank("down")
            return math.sqrt(rank) * self.rms("up") * self.rms("down"), rank
        if how == "hadamard" and self.has("w1_a", "w1_b", "w2_a", "w2_b"):
            rank = self.rank("w1_b")
            return rank * math.prod(self.rms(p) for p in ("w1_a", "w1_b", "w2_a", "w2_b")), rank
        if how == "kronecker":
            sides = [self._side(n) for n in ("w1", "w2")]
            if sides[0] and sides[1]:
                return sides[0][0] * sides[1][0], sides[1][1] or sides[0][1]
        if how == "full" and self.has("weight"):
            return self.rms("weight"), 0
        return None

    def _side(self, name: str) -> tuple[float, int] | None:
        """(root mean square, rank or 0) of one side of a Kronecker product, whole or in two factors."""
        if self.has(name):
            return self.rms(name), 0
        if self.has(f"{name}_a", f"{name}_b"):
            rank = self.rank(f"{name}_b")
            return math.sqrt(rank) * self.rms(f"{name}_a") * self.rms(f"{name}_b"), rank
        return None


def changes(
    tensors: Mapping[str, Tensor], rows: Rows, knowledge: Rules, usual: float | None
) -> Iterator[dict[str, Any]]:
    """The fields of `subjects.CHANGE` for each module whose arithmetic is known.

    `usual` is the root mean square of a usual weight of the base, None if it is not in the set.
    """
    spelled = spellings(knowledge.adapters("spellings"))
    modules: dict[str, list[Key]] = {}
    for key in spelled.keys(tensors)[0]:
        modules.setdefault(key.module, []).append(key)
    for name, keys in modules.items():
        kinds = {k.sense.algorithm for k in keys} - {""}
        if len(kinds) != 1:
            continue
        module = _Module({k.sense.part: k.name for k in keys}, tensors, rows)
        found = module.factors(str(spelled.algorithms[kinds.pop()].get("math")))
        if found is None:
            continue
        size, rank = found
        alpha = module.alpha()
        factor = alpha / rank if alpha is not None and rank else 1.0
        change = abs(factor) * size
        if math.isfinite(change):
            yield {
                "name": name,
                "rank": rank,
                "alpha": alpha if rank else None,
                "factor": factor,
                "change": change,
                "change_words": f"{change:.4g}",
                "usual": float(f"{usual or 0.02:.3g}"),
            }
