"""A header of which only the metadata was read -> its component, where the metadata leaves no doubt.

Which keys say which sizes stands in `rules/gguf_metadata.yaml`. The family is found by its sizes; what a whole
header of that family would give is then taken over, but for what nobody has seen: the tensors, how they are packed,
and whether all are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, combinations
from math import prod
from typing import Any

from msgspec.structs import replace

from compatkit.identify.identify import identify
from compatkit.identify.shapes import expected_shapes
from compatkit.knowledge.expr import evaluate, parse
from compatkit.knowledge.store import Knowledge
from compatkit.sources.naming import base_name
from compatkit.vocabulary import ArraySummary, Component, Header, NotChecked, Quantization, Tensor

#: Options of a family that are tried in all combinations.
_MAX_OPTIONS = 6
#: Bits per parameter of any packing there is; outside, the file's size belongs to another model, or to a part of one.
_BITS = (1.0, 34.0)


def from_metadata(header: Header, knowledge: Knowledge, force_role: str | None = None) -> Component | None:
    """The component of a header whose tensors were not read; None if the metadata cannot tell, or more than one
    fits."""
    table: Mapping[str, Any] = knowledge.table("gguf_metadata") or {}
    architecture = header.metadata.get("general.architecture")
    if header.unread is None or not table or not isinstance(architecture, str):
        return None
    symbols = _symbols(header.metadata, architecture, table)
    if not set(table["needs"]) <= symbols.keys():
        return None
    if force_role and force_role not in table["roles"]:
        return None
    found = [c for c in _fitting(header, architecture, symbols, table, knowledge) if c]
    if len(found) != 1:
        return None
    component = found[0]
    bits = 8 * header.size / component.parameters if component.parameters else 0.0
    if not _BITS[0] <= bits <= _BITS[1]:
        return None
    why = (
        f"{base_name(header.source)}: read up to its {header.unread.before}; the list of its "
        f"{header.unread.tensors:,} tensors, which stands behind it, was not read (--full reads it)"
    )
    said = [f"{k} = {v}" for k, v in sorted(symbols.items())]
    return replace(
        component,
        quantization=Quantization("unknown", {}, round(bits, 2), ("from the file's size: its tensors were not read",)),
        key_groups={},
        evidence=(f"general.architecture = {architecture}", *said[:5], f"{header.unread.tensors} tensors declared"),
        tensors={},
        not_checked=tuple(NotChecked(rule, why) for rule in table["not_checked"]),
    )


def _symbols(metadata: Mapping[str, Any], architecture: str, table: Mapping[str, Any]) -> dict[str, int]:
    """The grammar's symbols, as far as the metadata says them."""
    values: dict[str, int] = {}
    for name, key in table["keys"].items():
        value = metadata.get(key.format(architecture=architecture))
        if isinstance(value, ArraySummary):
            value = value.length
        if type(value) is int and value > 0:
            values[name] = value
    out: dict[str, int] = {}
    for symbol, expressions in table["symbols"].items():
        for text in expressions:
            try:
                out[symbol] = int(evaluate(parse(text), values))
                break
            except (KeyError, ZeroDivisionError):
                continue
    return out


def _fitting(
    header: Header, architecture: str, said: Mapping[str, int], table: Mapping[str, Any], knowledge: Knowledge
) -> Iterator[Component | None]:
    """A component for every family whose fixed sizes are all said, and equal; None for one that may or may not be
    it."""
    for family, member in knowledge.members().items():
        if member.get("sibling_of") or member.get("abstract") or member.get("fallback"):
            continue
        if member["role"] not in table["roles"]:
            continue
        document = knowledge.grammar(family)
        names = document["metadata"].get("general.architecture") or document["metadata"].get("general.architecture!")
        if "gguf" not in document["layouts"] or not _among(architecture, names):
            continue
        fixed = {s: v for s, v in (document.get("example", {}).get("symbols") or {}).items() if s in document["where"]}
        known = fixed.keys() & table["symbols"].keys()
        if all(said.get(s) == fixed[s] for s in known) and {"layers", "width"} <= known:
            yield _component(header, family, said, knowledge)


def _among(architecture: str, names: Any) -> bool:
    return architecture == names or (isinstance(names, list) and architecture in names)


def _component(header: Header, family: str, said: Mapping[str, int], knowledge: Knowledge) -> Component | None:
    """What a whole header of that family would give, if it can have as many tensors as the file declares."""
    assert header.unread is not None
    document = knowledge.grammar(family)
    example = document["example"]
    symbols = {**(example.get("symbols") or {}), **said}
    for options in _options(example.get("options") or {}, document["groups"]):
        try:
            shapes = expected_shapes(document, "gguf", symbols, options)
        except KeyError:
            continue
        if len(shapes) != header.unread.tensors:
            continue
        sides = {name: tuple(1 if side is None else side for side in shape or ()) for name, shape in shapes.items()}
        tensors = {name: Tensor("F16", shape, 2 * prod(shape)) for name, shape in sides.items()}
        made = identify(replace(header, tensors=tensors, unread=None), knowledge)
        if len(made) == 1 and made[0].family and family in made[0].families:
            return made[0]
    return None


def _options(example: Mapping[str, Any], groups: list[Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the family's optional parts, fewest first; choices are the example's."""
    facts = list(dict.fromkeys(fact for fact, _, choice, _ in groups if fact and not choice))[:_MAX_OPTIONS]
    chosen = {k: v for k, v in example.items() if not isinstance(v, bool)}
    for present in chain.from_iterable(combinations(facts, n) for n in range(len(facts) + 1)):
        yield {**chosen, **dict.fromkeys(present, True)}
