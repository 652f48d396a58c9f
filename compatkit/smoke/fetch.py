"""The tensors of a class, made from the weights of a file one at a time.

Where the file's values are already what is computed with, a tensor is a view of the mapped file: nothing is copied,
and letting go of it gives its pages back. Everything else is unpacked or cast, some megabytes at a time, into memory
of its own that goes with the tensor.
"""

from __future__ import annotations

import ctypes
import mmap
import warnings
from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from compatkit.dryrun.plan import Piece, Recipe
from compatkit.smoke.coding import Coding, Span, coding
from compatkit.smoke.weights import Weights
from compatkit.vocabulary import Tensor

if TYPE_CHECKING:
    import torch

#: Pages of a view are let go of, and brought in ahead, from this size on: below it the call costs more than it saves.
WORTH = 1 << 20
_POPULATE_READ = 22  # Linux 5.14: brings pages in and maps them, in one call


class Patch(NamedTuple):
    """A change to `rows` rows from `start` of a stored weight, as an adapter makes it.

    `add(values, first)` is given rows `first` … of those that the patch covers, flat rows of the weight in the dtype
    of the computation (in float32 with `wide`), and changes them in place.
    """

    start: int
    rows: int
    add: Callable[[torch.Tensor, int], None]
    origin: str = ""
    wide: bool = False


class Part(NamedTuple):
    """A run of rows of the tensor that is made: how they are stored, and where in the file's tensor they stand."""

    coding: Coding
    piece: Piece
    start: int
    rows: int

    @property
    def values(self) -> int:
        """How many values it has."""
        return self.rows * prod(self.piece.shape[1:])


class Fetcher:
    """Makes tensors by recipe. Use it from one thread at a time.

    Raises (all methods) `Undecodable` for a packing that is not known here, KeyError for a tensor that the file has
    not, and what `Weights.raw` raises.
    """

    def __init__(self, weights: Weights, patches: Mapping[str, list[Patch]] | None = None) -> None:
        self.weights = weights
        self.patches = dict(patches or {})
        self._tensors: Mapping[str, Tensor] = weights.header.tensors
        self._parts: dict[Recipe, tuple[Part, ...]] = {}

    def parts(self, recipe: Recipe) -> tuple[Part, ...]:
        """How each piece of a recipe is stored."""
        found = self._parts.get(recipe)
        if found is None:
            found = self._parts[recipe] = tuple(self._part(p) for p in recipe.pieces)
        return found

    def rows(self, recipe: Recipe, indexes: list[int], dtype: torch.dtype) -> torch.Tensor:
        """Some rows of a recipe that is one whole tensor of the file (an embedding): only they are read."""
        import torch

        piece = recipe.pieces[0]
        out = torch.empty((len(indexes), *recipe.shape[1:]), dtype=dtype)
        for at, index in enumerate(indexes):
            part = self._part(piece._replace(start=index, rows=1))
            self._fill(part, out[at : at + 1].view(-1), [self.span(s) for s in part.coding.spans])
        return out

    def direct(self, recipe: Recipe, dtype: torch.dtype) -> bool:
        """Whether the tensor is a view of the file: one run of rows, stored as it is computed with, unchanged."""
        parts = self.parts(recipe)
        plain = len(parts) == 1 and f"torch.{parts[0].coding.direct}" == str(dtype)
        return plain and not self._patched(parts[0]) and self.weights.local(parts[0].piece.source)

    def changed(self, recipe: Recipe) -> bool:
        """Whether any of its rows is changed on the way."""
        return any(self._patched(part) for part in self.parts(recipe))

    def size(self, recipe: Recipe) -> int:
        """Bytes of the file that are needed."""
        return sum(s.length for p in self.parts(recipe) for s in p.coding.spans)

    def tensor(self, recipe: Recipe, dtype: torch.dtype) -> torch.Tensor:
        """The tensor, on the CPU. A view of the file is read-only and must not be written to."""
        import torch

        parts = self.parts(recipe)
        if self.direct(recipe, dtype):
            raw = self.span(parts[0].coding.spans[0])
            if raw.data_ptr() % dtype.itemsize:
                raw = raw.clone()
            return raw.view(dtype).view(recipe.shape)
        out = torch.empty(recipe.shape, dtype=dtype)
        self.fill(parts, out, lambda part: [self.span(s) for s in part.coding.spans])
        return out

    def fill(self, parts: tuple[Part, ...], out: torch.Tensor, bring: Callable[[Part], list[torch.Tensor]]) -> None:
        """Write the values of all parts into `out`; `bring` gives the bytes of a part's spans on its device."""
        flat, at = out.view(-1), 0
        for part in parts:
            self._fill(part, flat[at : at + part.values], bring(part))
            at += part.values
        if at != flat.numel():
            raise KeyError(f"{parts[0].piece.source}: {at} values for a tensor of {flat.numel()}")

    def span(self, span: Span) -> torch.Tensor:
        """Bytes of the file, uint8: a read-only view where it is on this machine."""
        import torch

        raw = self.weights.raw(span.tensor)[span.offset : span.offset + span.length]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is read-only is meant
            return torch.from_numpy(raw)

    def populate(self, recipe: Recipe) -> None:
        """Bring the pages of a recipe's bytes in, ahead of their use, if the system can."""
        for part in self.parts(recipe):
            for span in part.coding.spans:
                if span.length >= WORTH and self.weights.local(span.tensor):
                    _advise(self.weights.raw(span.tensor).ctypes.data + span.offset, span.length, _POPULATE_READ)

    def release(self, recipe: Recipe) -> None:
        """Let go of the pages that its bytes brought in."""
        for part in self.parts(recipe):
            for span in part.coding.spans:
                if span.length >= WORTH:
                    self.weights.release(span.tensor)

    def _part(self, piece: Piece) -> Part:
        total = piece.shape[0] if piece.shape else 1
        rows = total - piece.start if piece.rows is None else piece.rows
        made = coding(self._tensors, piece.source, piece.shape, piece.start, rows, read=self._small)
        return Part(made, piece, piece.start, rows)

    def _small(self, name: str) -> bytes:
        return bytes(self.weights.raw(name)) if name in self._tensors else b""

    def _fill(self, part: Part, out: torch.Tensor, raw: list[torch.Tensor]) -> None:
        changes = self._patched(part)
        wide = out.float() if any(patch.wide for patch, _, _ in changes) else out
        part.coding.decode(raw, wide)
        for patch, first, last in changes:
            rows = wide.view(part.rows, -1)[first - part.start : last - part.start]
            patch.add(rows, first - patch.start)
        if wide is not out:
            out.copy_(wide)

    def _patched(self, part: Part) -> list[tuple[Patch, int, int]]:
        """(patch, first row, row after the last) of every change that touches these rows."""
        out = []
        for patch in self.patches.get(part.piece.source, ()):
            first = max(part.start, patch.start)
            last = min(part.start + part.rows, patch.start + patch.rows)
            if first < last:
                out.append((patch, first, last))
        return out


def _advise(address: int, length: int, advice: int) -> None:
    """madvise by address, without the interpreter's lock; what the system does not know is no error."""
    madvise = _libc()
    if madvise is not None:
        first = address // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(address + length - first), ctypes.c_int(advice))


def _libc() -> Callable[..., int] | None:
    try:
        found: Callable[..., int] = ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):
        return None
    return found
