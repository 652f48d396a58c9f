"""A base's modules in every convention: which own rows a spelled module means, and how a convention writes them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from compatkit.adapters.base import Base, own_layout
from compatkit.adapters.encoders import called
from compatkit.adapters.keys import Prefix, Spellings
from compatkit.adapters.names import held_names, key_map
from compatkit.adapters.places import Module, Place, Segment, encoder_bases, layout_modules
from compatkit.knowledge.protocol import Rules

_MODEL, _TREE, _LAYERED = "model", ".transformer.", "model."


class Unspellable(ValueError):
    """A convention has no names for this base; the sentence says why."""


class Encoder(Struct, frozen=True):
    """A text encoder of the base: its place in the pipeline (from 1), its kind, what ComfyUI calls it, its modules."""

    number: int
    kind: str
    name: str
    modules: Mapping[str, Module]
    joined: Mapping[str, str]


class Speller:
    """Finds and writes the modules of one base."""

    def __init__(self, base: Base, knowledge: Rules, spelled: Spellings) -> None:
        self.base, self.knowledge, self.spelled = base, knowledge, spelled
        self.document = knowledge.grammar(base.family)
        self.own = own_layout(self.document)
        self.shapes: dict[str, tuple[int | None, ...]] = dict(base.shapes)
        self._layouts: dict[str, dict[str, Module]] = {}
        self._joined: dict[str, dict[str, str]] = {}
        self._mapped: dict[str, Module] | None = None
        table = knowledge.adapters("comfyui")
        self.encoders = [
            self._encoder(number, encoder, called(encoder.family, table))
            for number, encoder in enumerate(encoder_bases(base.card, knowledge), 1)
        ]

    def _encoder(self, number: int, encoder: Base, name: str) -> Encoder:
        document = self.knowledge.grammar(encoder.family)
        mark = f"te{number}:"
        self.shapes.update({mark + n: s for n, s in encoder.shapes.items()})
        modules = {
            n: Module(n, _marked(m.weight, mark), _marked(m.bias, mark))
            for n, m in layout_modules(encoder, document, own_layout(document)).items()
        }
        joined = {n.removeprefix(_LAYERED).replace(".", "_"): n for n in modules}
        joined.update({n.replace(".", "_"): n for n in modules})
        return Encoder(number, encoder.family, name, modules, joined)

    # names of the model itself

    def layout_of(self, names: str) -> str:
        """The layout of the family's file that these names are: `native` is the family's own.

        Raises:
            Unspellable: the family has no such layout.
        """
        layouts = self.document["layouts"]
        if names in layouts:
            return names
        cls = self.base.runtime_class(names) or ""
        others = next((w.get("never_own") or () for w in self.spelled.table["writes"] if w["names"] == names), ())
        if names == "native" or (cls and not any(fnmatch.fnmatchcase(cls, pattern) for pattern in others)):
            return self.own  # both programs use the same names
        title = self.base.card.get("title") or self.base.family
        raise Unspellable(f"{names} names are not known for {title}")

    def modules(self, layout: str) -> dict[str, Module]:
        """Every module of the base in a layout."""
        if layout not in self._layouts:
            self._layouts[layout] = layout_modules(self.base, self.document, layout)
        return self._layouts[layout]

    def joined(self, layout: str) -> dict[str, str]:
        """Module names with their dots made underscores -> the names."""
        if layout not in self._joined:
            self._joined[layout] = {n.replace(".", "_"): n for n in self.modules(layout)}
        return self._joined[layout]

    def find(self, module: str) -> tuple[Module, str] | None:
        """(where a module as an adapter spells it lies, the layout its name is of), prefix included; None if nowhere.

        The layout is "" for a name of no layout of the family, which only a loader's own map knows.
        """
        convention = self.spelled.convention(module)
        path = module[len(convention.prefix) :]
        if convention.part != _MODEL:
            found = self._in_encoder(convention, path)
            return (found, self.own) if found else None
        for old, new in self.spelled.table.get("aliases") or ():
            path = path.replace(old, new)
        order = [self.own, *(n for n in self.document["layouts"] if n != self.own)]
        for layout in order:
            name = self.joined(layout).get(path) if convention.joined else path
            if name is not None and name in self.modules(layout):
                return self.modules(layout)[name], layout
        mapped = self._by_loader().get(module)
        return (mapped, "") if mapped else None

    def common_layout(self, modules: Iterable[str]) -> str:
        """The first layout that has every one of the modules, "" if none has: some names are in several."""
        paths = []
        for module in modules:
            convention = self.spelled.convention(module)
            if convention.part == _MODEL:
                paths.append((module[len(convention.prefix) :], convention.joined))
        others = [str(n) for n in self.document["layouts"] if n != self.own]
        for layout in (self.own, *others):
            if all(path in (self.joined(layout) if joined else self.modules(layout)) for path, joined in paths):
                return layout
        return ""

    def _by_loader(self) -> dict[str, Module]:
        """What loaders map beside the layouts: odd spellings, prefixes that belong to one model."""
        if self._mapped is None:
            table = self.knowledge.adapters("comfyui")
            held = held_names(self.base, table)
            own = {h: n for n, h in held.items()}
            self._mapped = {}
            if self.base.runtime_class("comfyui") is not None:
                for spelled, target in key_map(self.base, table, self.knowledge, lambda _: True, held).items():
                    name = own.get(target.weight)
                    rows = self.base.shapes.get(name or "", (None,))
                    if name is None or not rows or rows[0] is None:
                        continue
                    start, size = target.rows or (0, rows[0])
                    if start + size <= rows[0]:
                        self._mapped[spelled] = Module(spelled, (Segment(name, start, size),), None)
        return self._mapped

    def _in_encoder(self, convention: Prefix, path: str) -> Module | None:
        if not convention.joined and _TREE in path:  # text_encoders.NAME.transformer.MODULE
            name, _, path = path.partition(_TREE)
            return next((e.modules.get(path) for e in self.encoders if e.name == name), None)
        number = int(convention.part[2:] or 1) if convention.part[2:].isdigit() or convention.part == "te" else 0
        order = sorted(self.encoders, key=lambda e: (e.number != number, -e.number if number > 1 else e.number))
        for encoder in order:
            own = encoder.joined.get(path) if convention.joined else path
            if own is not None and own in encoder.modules:
                return encoder.modules[own]
        return None

    # writing

    def style(self, id_: str) -> Mapping[str, Any]:
        """One entry of `writes` in `rules/adapters/spellings.yaml`, with the exceptions for this base applied."""
        entry = next(w for w in self.spelled.table["writes"] if w["id"] == id_)
        cls = self.base.runtime_class("comfyui")
        for exception in entry.get("except") or ():
            if cls in exception["classes"]:
                return {**entry, **exception}
        return dict(entry)

    def written(self, style: Mapping[str, Any], prefix: str | None = None) -> Iterator[Module]:
        """Every module of the base and its encoders as a style writes it.

        Raises:
            Unspellable: the style has no names for the base.
        """
        joined = bool(style.get("joined"))
        head = self.prefix(style) if prefix is None else prefix
        for name, module in self.modules(self.layout_of(str(style["names"]))).items():
            yield Module(head + (name.replace(".", "_") if joined else name), module.weight, module.bias)
        for encoder in self.encoders:
            head = self._encoder_prefix(style, encoder)
            for name, module in encoder.modules.items():
                yield Module(head + (name.replace(".", "_") if joined else name), module.weight, module.bias)

    def prefix(self, style: Mapping[str, Any]) -> str:
        """What a style puts before the modules of this base."""
        cls = self.base.runtime_class("diffusers") or ""
        return next(str(p) for pattern, p in style["prefixes"].items() if fnmatch.fnmatchcase(cls, pattern))

    def _encoder_prefix(self, style: Mapping[str, Any], encoder: Encoder) -> str:
        entry = style["encoders"]
        alone = len(self.encoders) == 1
        text = entry["prefix"]
        if alone:
            text = (entry.get("alone_kinds") or {}).get(encoder.kind) or entry.get("alone") or text
        else:
            text = (entry.get("kinds") or {}).get(encoder.kind) or text
        after = "" if encoder.number == 1 else f"_{encoder.number}"
        return str(text).replace("{_n}", after).replace("{n}", str(encoder.number)).replace("{name}", encoder.name)


def _marked(place: Place | None, mark: str) -> Place | None:
    return tuple(Segment(mark + s.tensor, s.start, s.size) for s in place) if place else None
