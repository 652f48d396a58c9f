"""The weights a base holds, under the names its runtime gives them, and the names other layouts have for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from compatkit.identify.shapes import expected_shapes
from compatkit.knowledge.expr import evaluate
from compatkit.knowledge.patterns import Pattern, names
from compatkit.knowledge.protocol import Rules
from compatkit.vocabulary import Component

#: Rows of a weight: the first, and how many; None for all of it.
Rows = tuple[int, int] | None


class Base(Struct, frozen=True):
    """A model that adapters are put on: its family, and every weight in the family's own names with its true shape."""

    family: str
    card: Mapping[str, Any]
    shapes: Mapping[str, tuple[int | None, ...]]
    symbols: Mapping[str, int]

    def runtime_class(self, runtime: str) -> str | None:
        """What a runtime makes of it, if it knows the family."""
        entry = (self.card.get("runtimes") or {}).get(runtime) or {}
        return entry.get("class")

    def known_by(self, card: Mapping[str, Any]) -> Base:
        """The base with what a card says that its runtimes make of it."""
        return Base(self.family, {**self.card, "runtimes": card.get("runtimes") or {}}, self.shapes, self.symbols)


def of_component(component: Component, knowledge: Rules) -> Base | None:
    """The base that a file holds, whatever its layout and packing, by its family's grammar. None if it is not known."""
    if component.family is None or not knowledge.has_family(component.family):
        return None
    document = knowledge.grammar(component.family)
    symbols = {k: v for k, v in component.facts.items() if isinstance(v, int) and not isinstance(v, bool)}
    for fact, expression in document["facts"].items():
        value = component.facts.get(fact)
        if isinstance(expression, str) and isinstance(value, int):
            symbols[expression] = value
    options = {k: v for k, v in component.facts.items() if isinstance(v, bool | str)}
    return _base(component.family, document, symbols, options, knowledge)


def of_family(family: str, knowledge: Rules) -> Base | None:
    """The base a family's first example describes, where no file is given."""
    document = knowledge.grammar(family)
    example = document.get("example") or {}
    return _base(family, document, example.get("symbols") or {}, example.get("options") or {}, knowledge)


def of_symbols(
    family: str, knowledge: Rules, symbols: Mapping[str, int], options: Mapping[str, Any] | None = None
) -> Base | None:
    """A base with a family's structure in given sizes. None where a symbol that its tensors need is not given."""
    return _base(family, knowledge.grammar(family), symbols, options or {}, knowledge)


def _base(
    family: str,
    document: Mapping[str, Any],
    symbols: Mapping[str, int],
    options: Mapping[str, Any],
    knowledge: Rules,
) -> Base | None:
    try:
        shapes = expected_shapes(document, own_layout(document), symbols, options)
    except (KeyError, ZeroDivisionError):
        return None
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    return Base(family, knowledge.family(family), known, symbols)


def own_layout(document: Mapping[str, Any]) -> str:
    """The layout a family's file is written in."""
    return str(next(iter(document["layouts"])))


def renamed(
    document: Mapping[str, Any],
    layout: str,
    symbols: Mapping[str, int],
    without: tuple[str, ...] = (),
    ending: str = "",
) -> Iterator[tuple[str, str, Rows]]:
    """(name in `layout`, own name, rows) of every tensor of a family under these symbols.

    Optional groups count as there: a name is only worth what the base has under it. Lines that belong to an
    alternative named in `without` are left out, and so are those whose symbols are not given and those whose names
    have another `ending`.
    """
    lines = document["layouts"][layout]["lines"]
    own = document["layouts"][own_layout(document)]["lines"]
    origins = document["layouts"][layout]["origins"]
    groups = document["groups"]
    for number, (format_, ranges, _, group, when) in enumerate(lines):
        if not format_.endswith(ending) or (group >= 0 and groups[group][3] in without):
            continue
        sources, how, start, size = origins[number] if origins else ([number], "copy", 0, 0)
        if how not in ("copy", "swap", "rows") or len(sources) != 1:
            continue
        try:
            if when != 1 and not evaluate(when, symbols):
                continue
            rows = (evaluate(start, symbols), evaluate(size, symbols)) if how == "rows" else None
            here = names(Pattern(format_, ranges), symbols)
            there = names(Pattern(own[sources[0]][0], own[sources[0]][1]), symbols)
            yield from ((a, b, rows) for a, b in zip(here, there, strict=True))
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
