"""The one global layer for quantised and packed files: from the names in the file to the logical names and shapes.

What is known of each packing stands in `rules/packings.yaml`. Two rules hold for all: a companion of a weight (scales,
zero points) is left out only where its weight exists, and a packed side never binds a symbol.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compatkit.vocabulary import Header, Tensor

_PACKED_DTYPES = frozenset({"U8", "I8", "U32", "I32", "I16", "U16", "I64", "F4"})


@dataclass(slots=True)
class View:
    """The logical tensors under one prefix of a header.

    `root` is the whole file, whatever the prefix. `loose` names have a packed last side, which holds `pack` values a
    byte (0: not known); `covers` are modules whose weights are packed under other names, so that any tensor expected
    below them counts as there.
    """

    prefix: str
    tensors: Mapping[str, Tensor]
    loose: frozenset[str] | set[str] = frozenset()
    covers: frozenset[str] | set[str] = frozenset()
    gguf: bool = False
    root: Mapping[str, Tensor] = field(default_factory=dict)
    pack: int = 0

    def covered(self, name: str) -> bool:
        """Whether `name` lies below a module that packs its weights away. Norms and biases stay outside."""
        if not name.endswith(".weight"):
            return False
        end = name.rfind(".")
        while end > 0:
            if name[:end] in self.covers:
                return True
            end = name.rfind(".", 0, end)
        return "" in self.covers

    def fits(self, name: str, shape: tuple[int, ...], wanted: Iterable[tuple[int | None, ...]], loose: bool) -> bool:
        """Whether a stored shape is one of the wanted ones, seen through the packing."""
        for want in wanted:
            if len(shape) == len(want) and all(w is None or w == s for w, s in zip(want, shape, strict=True)):
                return True
            if loose and want and _packs(shape, want):
                return True
            if self.gguf and _squeezed(shape) == _squeezed(want):
                return True
        return False

    def find(self, pattern: str) -> str:
        """A name that matches a glob pattern, or ''."""
        if "*" not in pattern and "?" not in pattern and "[" not in pattern:
            return pattern if pattern in self.tensors else ""
        return next((n for n in self.tensors if fnmatch.fnmatchcase(n, pattern)), "")


def _packs(shape: tuple[int, ...], want: tuple[int | None, ...]) -> bool:
    """Rows as wanted and a last side that divides the wanted one; or everything flattened."""
    if not shape or any(s == 0 for s in shape):
        return False
    if len(shape) == len(want):
        last = want[-1]
        rows = all(w is None or w == s for w, s in zip(want[:-1], shape[:-1], strict=True))
        return rows and (last is None or last % shape[-1] == 0)
    total = 1
    for side in want:
        total *= side or 1
    stored = 1
    for side in shape:
        stored *= side
    return total % stored == 0


def _squeezed(shape: Iterable[int | None]) -> list[int | None]:
    return [s for s in shape if s != 1]


@dataclass(slots=True)
class Unpacked:
    """A header seen through the packings: logical tensors, and what gave the packings away.

    `found` counts companions by suffix; `original` maps a logical name to the one in the file where they differ.
    """

    tensors: dict[str, Tensor]
    loose: set[str] = field(default_factory=set)
    covers: set[str] = field(default_factory=set)
    found: dict[str, int] = field(default_factory=dict)
    companions: int = 0
    original: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    pack: int = 0

    def logical(self, name: str) -> str:
        """The logical name of a tensor in the file."""
        return self.renamed.get(name, name)

    def view(self, prefix: str, gguf: bool) -> View:
        """The logical tensors whose names start with `prefix`, without it."""
        if not prefix:
            return View("", self.tensors, self.loose, self.covers, gguf, self.tensors, self.pack)
        n = len(prefix)
        inside = {k[n:]: t for k, t in self.tensors.items() if k.startswith(prefix)}
        loose = {k[n:] for k in self.loose if k.startswith(prefix)}
        covers = {k[n:] for k in self.covers if k.startswith(prefix)}
        return View(prefix, inside, loose, covers, gguf, self.tensors, self.pack)


class Packings:
    """The schemes of `rules/packings.yaml`, indexed by the last segment of the names that give them away."""

    def __init__(self, schemes: Sequence[Mapping[str, Any]]) -> None:
        self.schemes = schemes
        self._by_last: dict[str, list[tuple[str, str, bool]]] = {}  # last segment -> [(suffix, its weight, covers)]
        self._top: set[str] = set()
        for scheme in schemes:
            weight = scheme.get("weight", "weight")
            for suffix in scheme.get("companions", ()):
                rows = self._by_last.setdefault(suffix.rpartition(".")[2], [])
                row = (suffix, weight, bool(scheme.get("covers")))
                if row not in rows:
                    rows.append(row)
            self._top.update(scheme.get("top_level", ()))
        weights = {s["weight"] for s in schemes if "weight" in s and not s.get("covers")}
        self._special = {*self._by_last, *self._top, *weights}

    def unpack(self, header: Header) -> Unpacked:
        """Leave out companions, rename packed weights, note packed sides and covered modules."""
        out = Unpacked(dict(header.tensors))
        special = self._special
        for name, tensor in header.tensors.items():
            last = name[name.rfind(".") + 1 :]
            if last not in special:
                if tensor.dtype in _PACKED_DTYPES and last == "weight":
                    out.loose.add(name)
            elif last in self._by_last:
                self._companion(name, self._by_last[last], header.tensors, out)
            elif last in self._top:
                self._drop(name, last, out)
            else:
                self._rename(name, last, out)
        if header.format == "gguf":
            self._original_shapes(header, out)
        if out.loose:
            dtypes = Counter(header.tensors[out.original.get(n, n)].dtype for n in out.loose)
            out.pack = self.scheme(out, dtypes).get("pack", 0)
        return out

    @staticmethod
    def _drop(name: str, suffix: str, out: Unpacked) -> None:
        out.tensors.pop(name, None)
        out.found[suffix] = out.found.get(suffix, 0) + 1
        out.companions += 1

    def _companion(
        self, name: str, rows: list[tuple[str, str, bool]], tensors: Mapping[str, Tensor], out: Unpacked
    ) -> None:
        for suffix, weight, covers in rows:
            if name != suffix and not name.endswith(f".{suffix}"):
                continue
            module = name[: -len(suffix)]  # with its dot
            if f"{module}{weight}" not in tensors:
                continue
            self._drop(name, suffix, out)
            if covers:
                out.covers.add(module[:-1])
            return

    @staticmethod
    def _rename(name: str, last: str, out: Unpacked) -> None:
        logical = f"{name[: -len(last)]}weight"
        if logical not in out.tensors:
            out.tensors[logical] = out.tensors.pop(name)
            out.original[logical] = name
            out.renamed[name] = logical
            out.loose.add(logical)
            out.found[last] = out.found.get(last, 0) + 1

    def scheme(self, unpacked: Unpacked, dtypes: Mapping[str, int]) -> Mapping[str, Any]:
        """The first scheme of the file whose marks are all there; empty for plain weights."""
        for scheme in self.schemes:
            marks = scheme.get("has", ())
            if any(m not in unpacked.found for m in marks):
                continue
            wanted = scheme.get("dtypes")
            if (marks or wanted) and (not wanted or any(d in dtypes for d in wanted)):
                return scheme
        return {}

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
