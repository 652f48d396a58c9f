"""The classes of `classes.yaml`, built without weights, and what a grammar says of them."""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from compatkit.identify.packing import View
from compatkit.identify.shapes import Shape, expected_shapes
from compatkit.identify.solve import Solver
from compatkit.knowledge.store import Knowledge
from compatkit.vocabulary import Tensor

FILE = Path(__file__).with_name("classes.yaml")
LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True, slots=True)
class Entry:
    """One class with one published configuration, and the layout of the family that it must equal."""

    library: str
    class_name: str
    family: str
    variant: str
    layout: str
    config: Mapping[str, Any] = field(hash=False)

    @property
    def id(self) -> str:
        """How a test names it."""
        return f"{self.family}@{self.variant}" if self.variant else self.family


@cache
def document() -> Mapping[str, Any]:
    """What `classes.yaml` says."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def exceptions() -> Mapping[str, str]:
    """Family -> why its class is not compared."""
    return {family: why for why, families in document()["exceptions"].items() for family in families}


def entries() -> Iterator[Entry]:
    """Every class and configuration to compare."""
    for library in LIBRARIES:
        for group in document()[library]:
            for name, own in group["families"].items():
                family, _, variant = name.partition("@")
                config = {**group.get("config", {}), **own}
                yield Entry(library, group["class"], family, variant, group.get("layout", ""), config)


def declared(knowledge: Knowledge) -> dict[str, list[str]]:
    """Family -> the classes its card names for diffusers; siblings included."""
    found: dict[str, list[str]] = {}
    for family, member in knowledge.members().items():
        runtime = None if member.get("abstract") else (knowledge.family(family).get("runtimes") or {}).get("diffusers")
        if runtime:
            found[family] = [c for c in (runtime.get("class"), *(runtime.get("classes") or {}).values()) if c]
    return found


def owner(knowledge: Knowledge, family: str) -> str:
    """The family whose grammar this one shares: a sibling has no tensors of its own."""
    return str(knowledge.members()[family].get("sibling_of", family))


def diffusers_classes() -> set[str]:
    """The model classes that diffusers exports."""
    import diffusers

    found = set()
    for name in dir(diffusers):
        kind = getattr(diffusers, name, None)
        if isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin) and kind is not diffusers.ModelMixin:
            found.add(name)
    return found


def layout_of(entry: Entry, grammar: Mapping[str, Any]) -> str:
    """The layout an entry is compared in: as it says, else `diffusers`, else the family's own."""
    layouts = grammar["layouts"]
    return entry.layout or ("diffusers" if "diffusers" in layouts else next(iter(layouts)))


def state_dict(entry: Entry) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the class's tensors. A tied one (an output layer that is the embedding) has one name only."""
    import torch

    module, _, name = f"{entry.library}.{entry.class_name}".rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    with torch.device("meta"), contextlib.redirect_stdout(None):
        configured = getattr(kind, "config_class", None)  # transformers' way; the library may change what it is given
        config = copy.deepcopy(dict(entry.config))
        model = kind(configured(**config)) if configured else kind(**config)
    tied = getattr(model, "all_tied_weights_keys", None) or ()
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}


def compare(shapes: Mapping[str, tuple[int, ...]], grammar: Mapping[str, Any], layout: str) -> list[str]:
    """What a grammar, solved for these tensors, says otherwise; empty where it has the same names and shapes."""
    tensors = {name: Tensor("BF16", shape, 0, 0) for name, shape in shapes.items()}
    match = Solver(grammar, layout, View("", tensors, root=tensors)).solve()
    if match.refused:
        return [f"refused: {match.refused}"]
    wrong = [f"missing: {n}" for n in match.missing] + [f"mismatched: {n} {shapes[n]}" for n in match.mismatched]
    try:
        expected = expected_shapes(grammar, layout, match.symbols, match.options)
    except KeyError as e:
        return [*wrong, f"no tensor tells the symbol {e.args[0]}"]
    wrong += [f"foreign: {n} {shapes[n]}" for n in shapes if n not in expected and n not in match.matched]
    wrong += [f"expected: {n} {s}" for n, s in expected.items() if n not in shapes]
    wrong += [f"shape: {n} {shapes[n]}, expected {s}" for n, s in expected.items() if not _agrees(shapes.get(n), s)]
    return wrong


def _agrees(shape: tuple[int, ...] | None, expected: Shape) -> bool:
    if shape is None or expected is None:
        return True
    return len(shape) == len(expected) and all(e is None or s == e for s, e in zip(shape, expected, strict=True))
