"""The tensors a grammar expects under given symbols: for missing shapes, fixtures, dry runs and bare adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compatkit.knowledge.expr import evaluate
from compatkit.knowledge.patterns import Pattern, names

#: A shape; a side is None where the grammar allows any, the whole is None for a blob.
Shape = tuple[int | None, ...] | None


def expected_shapes(
    document: Mapping[str, Any], layout: str, symbols: Mapping[str, int], options: Mapping[str, Any]
) -> dict[str, Shape]:
    """Name -> shape of every tensor the family has in `layout`.

    `options` says which optional groups are present (fact -> bool) and which alternative of a choice (fact -> value).

    Raises:
        KeyError: a symbol that a present line needs is not given.
    """
    groups = document["groups"]
    present: list[bool] = []
    for fact, parent, choice, value in groups:
        here = options.get(choice) == value if choice else bool(options.get(fact, False)) if fact else False
        present.append(here and (parent < 0 or present[parent]))
    out: dict[str, Shape] = {}
    for format_, ranges, shapes, group, when in document["layouts"][layout]["lines"]:
        if group >= 0 and not present[group]:
            continue
        if when != 1 and not evaluate(when, symbols):
            continue
        shape = None
        if shapes is not None:
            shape = tuple(None if s is None else evaluate(s, symbols) for s in shapes[0])
        for name in names(Pattern(format_, ranges), symbols):
            out[name] = shape
    for fact, marks in document["markers"].items():
        if options.get(fact):
            out.update(dict.fromkeys(marks, ()))
    return out


def example_shapes(document: Mapping[str, Any], layout: str | None = None) -> dict[str, tuple[int, ...]]:
    """The tensors of a family at the size of its first example; free sides are 1.

    Raises:
        KeyError: the family has no such layout.
    """
    example = document["example"]
    shapes = expected_shapes(
        document, layout or next(iter(document["layouts"])), example.get("symbols", {}), example.get("options", {})
    )
    return {n: tuple(1 if side is None else side for side in shape or ()) for n, shape in shapes.items()}
