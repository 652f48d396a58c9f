"""Runs every family file's own examples: builds the header, counts it against the published figures, identifies it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from compatkit.identify.identify import identify
from compatkit.identify.shapes import Shape, expected_shapes
from compatkit.knowledge.compile import Sources
from compatkit.knowledge.store import Knowledge
from compatkit.knowledge.yamlfile import RuleFile
from compatkit.vocabulary import Header, Tensor

_KEYS = {"name", "symbols", "options", "tensors", "parameters", "has", "layouts", "also", "metadata"}


class Failure(NamedTuple):
    """One thing an example says that is not so: where it stands, and what is wrong."""

    where: str
    message: str


def header_of(
    shapes: Mapping[str, Shape], source: str = "example", prefix: str = "", metadata: Mapping[str, Any] | None = None
) -> Header:
    """A bf16 safetensors header with these tensors; free sides become 1."""
    tensors: dict[str, Tensor] = {}
    offset = 0
    for name, shape in shapes.items():
        sides = (1,) if shape is None else tuple(s if s is not None else 1 for s in shape)
        n = 2
        for side in sides:
            n *= side
        tensors[prefix + name] = Tensor("BF16", sides, n, offset)
        offset += n
    return Header(source, "safetensors", offset, 0, tensors, metadata or {})


def run(roots: Iterable[Path], knowledge: Knowledge, only: str | None = None) -> tuple[list[Failure], int]:
    """Run all examples (of one family, with `only`). Returns what failed and how many headers were tried."""
    failures: list[Failure] = []
    tried = 0
    for family, file in sorted(Sources(roots).families.items()):
        if file.data.get("abstract") or (only and family != only):
            continue
        examples = file.data.get("examples") or []
        if not examples:
            failures.append(_failure(file, (), "no example: a family must show one header that it matches"))
        facts: set[str] = set()
        for i, example in enumerate(examples):
            for layout, message in _example(family, example, knowledge, facts):
                failures.append(_failure(file, ("examples", i), f"{layout}: {message}"))
            tried += len(_layouts(family, example, knowledge))
        failures += [_failure(file, where, message) for where, message in _nameless(family, knowledge, facts)]
    return failures, tried


def _nameless(family: str, knowledge: Knowledge, facts: set[str]) -> Iterable[tuple[tuple[Any, ...], str]]:
    """What the card says of a fact that none of the family's examples has: a check on it would never or always hold."""
    card = knowledge.family(family)
    for name in (card.get("output") or {}).values():
        if isinstance(name, str) and name not in facts:
            yield ("output",), f"output: no example has a fact {name!r}"
    for list_ in ("text_encoders", "image_encoders", "audio_encoders"):
        for entry in card.get(list_) or ():
            if (name := entry.get("into")) not in (None, "none", *facts):
                yield (list_,), f"{list_}: no example has a fact {name!r}"


def _failure(file: RuleFile, where: tuple[Any, ...], message: str) -> Failure:
    error = file.error(where, message)
    return Failure(f"{error.path}:{error.line}:{error.column}", message)


def _layouts(family: str, example: Mapping[str, Any], knowledge: Knowledge) -> list[str]:
    return list(example.get("layouts") or knowledge.grammar(family)["layouts"])


def _example(
    family: str, example: Mapping[str, Any], knowledge: Knowledge, facts: set[str]
) -> Iterable[tuple[str, str]]:
    unknown = set(example) - _KEYS
    if unknown:
        yield "example", f"unknown key {sorted(unknown)[0]!r}"
        return
    document = knowledge.grammar(family)
    own = next(iter(document["layouts"]))
    for layout in _layouts(family, example, knowledge):
        try:
            shapes = expected_shapes(document, layout, example.get("symbols") or {}, example.get("options") or {})
        except KeyError as e:
            yield layout, f"symbol {e.args[0]!r} has no value"
            return
        header = header_of(shapes, metadata=example.get("metadata"))
        if layout == own:
            yield from ((layout, m) for m in _counted(example, header))
        components = identify(header, knowledge)
        found = components[0]
        facts.update(found.facts)
        if family not in found.families:
            yield layout, f"identified as {found.family or 'unknown'} ({found.reason or found.evidence[0]})"
        elif found.missing or found.mismatched or found.foreign or len(components) > 1:
            counts = f"{len(found.missing)} missing, {len(found.mismatched)} mismatched, {len(found.foreign)} foreign"
            yield layout, f"solved with {counts}"
        else:
            known = {family, *(knowledge.family(family).get("siblings") or {}), *(example.get("also") or [])}
            others = [f for f in found.families if f not in known]
            if others:
                hint = "say so under `also` or tell them apart"
                yield layout, f"cannot be told from {', '.join(others)}; {hint}"


def _counted(example: Mapping[str, Any], header: Header) -> Iterable[str]:
    count = len(header.tensors)
    if "tensors" in example and example["tensors"] != count:
        yield f"the published file has {example['tensors']} tensors, the grammar gives {count}"
    parameters = sum(t.elements for t in header.tensors.values())
    if "parameters" in example and example["parameters"] != parameters:
        yield f"the published file has {example['parameters']:,} parameters, the grammar gives {parameters:,}"
    for name, shape in (example.get("has") or {}).items():
        tensor = header.tensors.get(name)
        if tensor is None:
            yield f"{name} is not among the tensors"
        elif list(tensor.shape) != list(shape):
            yield f"{name} is {list(shape)} in the published file, the grammar gives {list(tensor.shape)}"
