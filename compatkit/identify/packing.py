"""The one global layer for quantised and packed files: from the names in the file to the logical names and shapes.

What is known of each packing stands in `rules/packings.yaml`. Two rules hold for all: a companion of a weight (scales,
zero points) is left out only where its weight exists, and a packed side never binds a symbol.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from msgspec import Struct, field

from compatkit.identify.schemes import (
    MARKER,
    MARKER_METADATA,
    SCALE,
    Marker,
    Reader,
    Schemes,
    Signs,
    flat,
    metadata_markers,
    pack,
    read_markers,
)
from compatkit.vocabulary import Header, Tensor

#: An element of a packed weight holds at most so many values.
MOST_PACKED = 16
_PACKED_DTYPES = frozenset({"U8", "I8", "U32", "I32", "I16", "U16", "I64", "F4"})


class View(Struct):
    """The logical tensors under one prefix of a header.

    `root` is the whole file, whatever the prefix. `loose` names have a packed last side, `opaque` ones among them no
    side of the model's at all; `covers` are modules whose weights are packed under other names, so that any tensor
    expected below them counts as there. `counts`: how many values a loose tensor or the weights of a covered module
    hold.
    """

    prefix: str
    tensors: Mapping[str, Tensor]
    loose: frozenset[str] | set[str] = frozenset()
    covers: frozenset[str] | set[str] = frozenset()
    gguf: bool = False
    root: Mapping[str, Tensor] = field(default_factory=dict)
    opaque: frozenset[str] | set[str] = frozenset()
    counts: Mapping[str, int] = field(default_factory=dict)

    def hidden(self, name: str, axis: int, rank: int) -> bool:
        """Whether a side of a tensor is packed, so that it does not tell the model's."""
        return name in self.loose and (axis == rank - 1 or name in self.opaque)

    def covered(self, name: str) -> bool:
        """Whether `name` lies below a module that packs its weights away. Norms and biases stay outside."""
        return self.cover(name) is not None

    def cover(self, name: str) -> str | None:
        """The module below which a weight is packed away, None if there is none."""
        if not name.endswith(".weight"):
            return None
        end = name.rfind(".")
        while end > 0:
            if name[:end] in self.covers:
                return name[:end]
            end = name.rfind(".", 0, end)
        return "" if "" in self.covers else None

    def fits(self, name: str, tensor: Tensor, wanted: Iterable[tuple[int | None, ...]]) -> bool:
        """Whether a stored shape is one of the wanted ones, seen through the packing."""
        shape, loose = tensor.shape, name in self.loose
        for want in wanted:
            if len(shape) == len(want) and all(w is None or w == s for w, s in zip(want, shape, strict=True)):
                return True
            if loose and want and _packs(tensor, want, name in self.opaque, self.counts.get(name)):
                return True
            if self.gguf and _squeezed(shape) == _squeezed(want):
                return True
        return False

    def find(self, pattern: str) -> str:
        """A name that matches a glob pattern, or ''."""
        if "*" not in pattern and "?" not in pattern and "[" not in pattern:
            return pattern if pattern in self.tensors else ""
        return next((n for n in self.tensors if fnmatch.fnmatchcase(n, pattern)), "")


def _packs(tensor: Tensor, want: tuple[int | None, ...], flat: bool, count: int | None) -> bool:
    """Whether a packed tensor can be of the wanted shape: rows as wanted, `count` values or a whole share of them."""
    shape, last = tensor.shape, want[-1]
    if not shape or any(s == 0 for s in shape):
        return False
    if not flat and len(shape) == len(want):
        if not all(w is None or w == s for w, s in zip(want[:-1], shape[:-1], strict=True)):
            return False
        if last is None:
            return True
        if count is not None:  # a scheme may pad its last block
            return 0 <= count - prod(s or 1 for s in want) < MOST_PACKED * prod(shape[:-1])
        return last % shape[-1] == 0
    total, stored = prod(side or 1 for side in want), prod(shape)
    if count is not None:  # the last element may be half empty
        return 0 <= count - total < MOST_PACKED
    if not flat:
        return total % stored == 0
    bits = 8 * tensor.nbytes  # of each value: a whole number of them
    return bits % total == 0 and stored <= total


def _squeezed(shape: Iterable[int | None]) -> list[int | None]:
    return [s for s in shape if s != 1]


class _Companion(NamedTuple):
    """A tensor beside a weight: its suffix, the weight's, whether weights vanish, weight dtypes it counts beside."""

    suffix: str
    weight: str
    covers: bool
    beside: frozenset[str]


class Unpacked(Struct):
    """A header seen through the packings: logical tensors, and what gave the packings away.

    `beside` lists, for each packed weight under its name in the file, the (suffix, dtype) of what stands beside it, and
    `companions` names each companion's weight, `kinds` what a weight is called, `rows` are weights whose scales are a
    plain list; `candidates` are the entries it may be an instance of. `original` maps a logical name to the one in the
    file where they differ. `counts`: values in a packed weight, or below a covered module.
    """

    tensors: dict[str, Tensor]
    schemes: Schemes
    loose: set[str] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)
    covers: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    beside: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    companions: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    rows: set[str] = field(default_factory=set)
    top: set[str] = field(default_factory=set)
    candidates: dict[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    original: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def logical(self, name: str) -> str:
        """The logical name of a tensor in the file."""
        return self.renamed.get(name, name)

    def hidden(self, name: str, axis: int, rank: int) -> bool:
        """Whether a side of a tensor is packed, so that it does not tell the model's."""
        return name in self.loose and (axis == rank - 1 or name in self.opaque)

    def view(self, prefix: str, gguf: bool) -> View:
        """The logical tensors whose names start with `prefix`, without it."""
        if not prefix:
            return View("", self.tensors, self.loose, self.covers, gguf, self.tensors, self.opaque, self.counts)
        n = len(prefix)
        inside = {k[n:]: t for k, t in self.tensors.items() if k.startswith(prefix)}
        loose, opaque, covers = (
            {k[n:] for k in s if k.startswith(prefix)} for s in (self.loose, self.opaque, self.covers)
        )
        counts = {k[n:]: c for k, c in self.counts.items() if k.startswith(prefix)}
        return View(prefix, inside, loose, covers, gguf, self.tensors, opaque, counts)


class Packings:
    """The schemes of `rules/packings.yaml`, indexed by the last segment of the names that give them away."""

    def __init__(self, schemes: Sequence[Mapping[str, Any]]) -> None:
        self.schemes = schemes
        self._by_last: dict[str, list[_Companion]] = {}
        self._top: set[str] = set()
        self._weights: dict[str, list[str]] = {}  # last segment -> what else a weight may be called
        for scheme in schemes:
            weight = scheme.get("weight", "weight")
            covers = bool(scheme.get("covers"))
            for suffix in scheme.get("companions", ()):
                rows = self._by_last.setdefault(suffix.rpartition(".")[2], [])
                row = _Companion(suffix, weight, covers, frozenset(scheme.get("beside", ())))
                if row not in rows:
                    rows.append(row)
            self._top.update(scheme.get("top_level", ()))
            if "weight" in scheme and not covers:
                names = self._weights.setdefault(weight.rpartition(".")[2], [])
                if weight not in names:
                    names.append(weight)
        self._special = {*self._by_last, *self._top, *self._weights}

    def unpack(self, header: Header, read: Reader | None = None) -> Unpacked:
        """Leave out companions, rename packed weights, note packed sides and covered modules.

        `read` gives the bytes of small tensors; without it markers say nothing and the dtypes decide.
        """
        top: set[str] = set()
        out = Unpacked(dict(header.tensors), Schemes(self.schemes, header.metadata, top), top=top)
        special = self._special
        for name, tensor in header.tensors.items():
            last = name[name.rfind(".") + 1 :]
            if last not in special:
                if tensor.dtype in _PACKED_DTYPES and last == "weight":
                    out.loose.add(name)
            elif not (
                last in self._by_last and self._companion(name, tensor, self._by_last[last], header.tensors, out)
            ):
                if last in self._top:
                    out.tensors.pop(name, None)
                    out.top.add(last)
                elif last in self._weights:
                    self._rename(name, tensor, self._weights[last], out)
        if header.format == "gguf":
            self._original_shapes(header, out)
        if out.beside:
            self._settle(header, out, read)
        return out

    @staticmethod
    def _companion(
        name: str, tensor: Tensor, rows: list[_Companion], tensors: Mapping[str, Tensor], out: Unpacked
    ) -> bool:
        for suffix, weight, covers, beside in rows:
            if name != suffix and not name.endswith(f".{suffix}"):
                continue
            module = name[: -len(suffix)]  # with its dot
            packed = f"{module}{weight}"
            owner = tensors.get(packed)
            if owner is None or (beside and owner.dtype not in beside):
                continue
            out.tensors.pop(name, None)
            out.companions[name] = packed
            out.beside.setdefault(packed, []).append((suffix, tensor.dtype))
            out.kinds[packed] = weight
            if suffix == SCALE and len(tensor.shape) == 1 and tensor.shape[0] > 1 and tensor.shape == owner.shape[:1]:
                out.rows.add(packed)
            if covers:
                out.covers.add(module[:-1])
            return True
        return False

    @staticmethod
    def _rename(name: str, tensor: Tensor, weights: list[str], out: Unpacked) -> None:
        for weight in weights:
            logical = f"{name[: -len(weight)]}weight"
            if (name == weight or name.endswith(f".{weight}")) and logical not in out.tensors:
                out.tensors[logical] = out.tensors.pop(name)
                out.original[logical] = name
                out.renamed[name] = logical
                out.loose.add(logical)
                out.beside.setdefault(name, []).append((weight, tensor.dtype))
                out.kinds[name] = weight
                return

    @staticmethod
    def _settle(header: Header, out: Unpacked, read: Reader | None) -> None:
        """Name each packed weight's scheme, and what follows from it: which sides hold, how many values there are."""
        said = _markers(header, out, read)
        for packed, beside in out.beside.items():
            dtype = header.tensors[packed].dtype
            marker = said.get(packed)
            format_ = marker.format if marker else None
            entries = out.schemes.of(Signs(dtype, tuple(beside), out.kinds[packed], packed in out.rows, format_))
            logical = out.logical(packed)
            out.candidates[packed] = entries
            if marker and marker.notes:
                out.notes[packed] = marker.notes
            if not entries:
                continue
            entry = entries[0]
            if entry.get("covers"):
                count = header.tensors.get(f"{packed.rpartition('.')[0]}.{entry.get('count')}")
                if count is not None:
                    out.counts[packed.rpartition(".")[0]] = count.elements
                continue
            if flat(entry, dtype):
                out.loose.add(logical)
                out.opaque.add(logical)
            values = pack(entry, dtype)
            if logical in out.loose and values:
                stored = out.tensors[logical]
                out.counts[logical] = stored.elements * values
                if values > 1 and stored.shape and logical not in out.opaque:
                    out.tensors[logical] = stored._replace(shape=(*stored.shape[:-1], stored.shape[-1] * values))

    @staticmethod
    def _original_shapes(header: Header, out: Unpacked) -> None:
        key = "comfy.gguf.orig_shape."
        for name, value in header.metadata.items():
            if name.startswith(key) and isinstance(value, tuple) and name[len(key) :] in out.tensors:
                tensor = out.tensors[name[len(key) :]]
                shape = tuple(int(v) for v in value)
                n = 1
                for side in shape:
                    n *= side
                if n == tensor.elements:
                    out.tensors[name[len(key) :]] = tensor._replace(shape=shape)


def _markers(header: Header, out: Unpacked, read: Reader | None) -> dict[str, Marker]:
    """Packed weight -> what its marker says: a tensor of JSON beside it, or the file's metadata."""
    kinds: dict[tuple[Any, ...], list[str]] = {}
    said: dict[str, Marker] = {}
    listed = metadata_markers(header.metadata) if MARKER_METADATA in header.metadata else {}
    for packed, beside in out.beside.items():
        module = packed.rpartition(".")[0]
        if module in listed:
            said[packed] = listed[module]
        elif read is not None and any(suffix == MARKER for suffix, _ in beside):
            name = f"{module}.{MARKER}"
            kinds.setdefault((header.tensors[packed].dtype, *beside, header.tensors[name].nbytes), []).append(name)
    if kinds and read is not None:
        heard, out.reads = read_markers(kinds, read)
        said.update({out.companions[name]: marker for name, marker in heard.items()})
    return said
