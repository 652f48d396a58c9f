"""The change of a LoRA's module onto its weight, as a runtime computes it."""

from __future__ import annotations

from math import prod
from typing import Any

from compatkit.adapters.coverage import Mismatch
from compatkit.adapters.keys import spellings
from compatkit.checks.loaders import Loader
from compatkit.dryrun.junctions import Model, spelled
from compatkit.knowledge.protocol import Rules

Chain = tuple[tuple[int, ...] | None, list[dict[str, Any]]]


def chain(one: Mismatch, base: Model, loader: Loader, rules: Rules) -> Chain | None:
    """(shape that comes in, steps), None where the algorithm is not written down.

    A runtime that builds modules for the pair loads its halves into them; one that adds to the weight multiplies them
    and shapes the product like the weight.
    """
    table = rules.adapters(loader.name)
    weight = [side for side in one.expected if side is not None]
    shapes = dict(one.parts)
    if len(weight) != len(one.expected) or not weight:
        return None
    math = spellings(rules.adapters("spellings")).algorithms.get(one.algorithm, {}).get("math")
    if math == "product" and shapes.get("up") and shapes.get("down") and "mid" not in shapes:
        if table.get("applies") == "modules":
            return _modules(one, base, loader, weight, shapes)
        return _product(one, weight, shapes["up"], shapes["down"])
    if math == "kronecker":
        sizes = [_factor(shapes, n) for n in ("1", "2")]
        if None in sizes:
            return None
        flat = prod(s for s in sizes if s is not None)
        return (flat,), [{"op": "reshape", "module": one.weight, "shape": weight, "weight": weight}]
    if math == "hadamard" and "t1" not in shapes:
        a, b = shapes.get("w1_a"), shapes.get("w1_b")
        return _product(one, weight, a, b) if a and b and len(a) == len(b) == 2 else None
    return None


def _product(one: Mismatch, weight: list[int], up: tuple[int, ...], down: tuple[int, ...]) -> Chain:
    left, right = (up[0], prod(up[1:])), (down[0], prod(down[1:]))
    return left, [
        {"op": "matmul", "module": one.module, "weight": list(right)},
        {"op": "reshape", "module": one.weight, "shape": weight, "weight": weight},
    ]


def _modules(
    one: Mismatch, base: Model, loader: Loader, weight: list[int], shapes: dict[str, tuple[int, ...]]
) -> Chain:
    name = spelled(base, one.weight.removesuffix(".weight"), loader)
    cls = str((base.part.component.loads_as or {}).get(loader.name) or "Module")
    rank = shapes["down"][0]
    steps = [
        {"op": "load", "class": cls, "module": f"{name}.lora_A.default_0.weight", "weight": [rank, *weight[1:]],
         "given": list(shapes["down"])},
        {"op": "load", "class": cls, "module": f"{name}.lora_B.default_0.weight",
         "weight": [weight[0], rank, *[1] * (len(weight) - 2)], "given": list(shapes["up"])},
    ]  # fmt: skip
    return None, steps


def _factor(shapes: dict[str, tuple[int, ...]], n: str) -> int | None:
    whole, a, b = shapes.get(f"w{n}"), shapes.get(f"w{n}_a"), shapes.get(f"w{n}_b")
    if whole is not None:
        return prod(whole)
    if a is None or b is None or len(a) != 2 or len(b) != 2 or a[1] != b[0]:
        return None
    return a[0] * b[1]
