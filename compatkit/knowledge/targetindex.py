"""Which models have a module of some name and size: what an adapter's header tells of the base it was made for.

A module is known by its path with dots as underscores and every number as `#`, so that all spellings of one module
meet. For every such path the index says which families have it, in which sizes, and up to which numbers in each.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from compatkit.knowledge.expr import evaluate
from compatkit.knowledge.family import Family, Layout
from compatkit.knowledge.modulepath import plain
from compatkit.knowledge.patterns import names

_ROLE = "diffusion"
_SKIPPED = frozenset({"gguf"})


def target_index(families: Iterable[Family]) -> dict[str, Any]:
    """`{"families": [id], "modules": {path: [[family, [[rows, columns, last number, …], …]], …]}}`.

    A family of several sizes has other numbers of blocks in each: the last numbers belong to the size.
    """
    ids: list[str] = []
    modules: dict[str, dict[int, dict[tuple[int, int], list[int]]]] = {}
    for family in sorted(families, key=lambda f: (str(f.card.get("released", "9999")), f.id)):
        if family.card["role"] != _ROLE or family.card.get("abstract") or not family.examples:
            continue
        number = len(ids)
        ids.append(family.id)
        for example in family.examples:
            for layout in family.layouts:
                if layout.name not in _SKIPPED:
                    _layout(family, layout, example, number, modules)
    return {
        "families": ids,
        "modules": {
            path: [[n, [[*size, *last] for size, last in sorted(sizes.items())]] for n, sizes in sorted(own.items())]
            for path, own in sorted(modules.items())
        },
    }


def _layout(
    family: Family,
    layout: Layout,
    example: dict[str, Any],
    number: int,
    modules: dict[str, dict[int, dict[tuple[int, int], list[int]]]],
) -> None:
    symbols, options = example.get("symbols") or {}, example.get("options") or {}
    for line in layout.lines:
        format_ = line.pattern.format
        if not format_.endswith(".weight") or not line.shapes or len(line.shapes[0]) < 2:
            continue
        if not _present(family, line.group, options):
            continue
        try:
            if line.when != 1 and not evaluate(line.when, symbols):
                continue
            sides = [0 if side is None else evaluate(side, symbols) for side in line.shapes[0]]
            every = list(names(line.pattern, symbols))
        except (KeyError, ZeroDivisionError):
            continue
        for name in {*every[:1], *every[-1:]}:
            path, numbers = plain(name.removesuffix(".weight"))
            sizes = modules.setdefault(path, {}).setdefault(number, {})
            highest = sizes.setdefault((sides[0], prod(sides[1:])), [0] * len(numbers))
            highest[:] = [max(a, b) for a, b in zip(highest, numbers, strict=True)]


def _present(family: Family, group: int, options: dict[str, Any]) -> bool:
    while group >= 0:
        own = family.groups[group]
        here = options.get(own.choice) == own.value if own.choice else bool(options.get(own.fact, False))
        if own.fact and not here:
            return False
        group = own.parent
    return True
