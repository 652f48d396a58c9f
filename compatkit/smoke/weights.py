"""The weights of one model, tensor by tensor, wherever its bytes lie: safetensors, GGUF, torch checkpoints, shards.

    with Weights.open("model.safetensors") as weights:
        raw = weights.raw("layers.0.mlp.w1.weight")          # uint8, a view of the file: nothing is copied
        values = weights.float32("layers.0.mlp.w1.weight")   # decoded, GGUF blocks dequantised
        weights.release("layers.0.mlp.w1.weight")            # the pages may go

Files on this machine are memory-mapped, read-only; elsewhere each tensor is a ranged read, of which nothing is kept. A
mapped file that someone cuts short kills the process with SIGBUS: readers of weights run in a subprocess.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from math import prod
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compatkit.headers import open_header
from compatkit.headers.ggml import TYPES
from compatkit.smoke.number import NATIVE, Bytes, Floats, decode, row_decoder
from compatkit.sources.local import LocalSource
from compatkit.sources.naming import base_name, shown
from compatkit.sources.open import open_source
from compatkit.vocabulary import Header, SourceError, Tensor

if TYPE_CHECKING:
    from compatkit.sources import Source
    from compatkit.sources.network import Network

#: One ranged read of a file elsewhere.
REMOTE_PIECE = 8 << 20

#: GGUF type -> (elements, bytes) of a block, for the types that have blocks.
BLOCKS: dict[str, tuple[int, int]] = {name: (n, size) for name, n, size in TYPES.values() if n > 1}


class Unplaced(Exception):
    """A tensor whose bytes cannot be had as they are; the text says why."""


class Weights:
    """Every tensor of one header as numpy arrays. Use it from one thread at a time."""

    def __init__(self, header: Header, source: Source) -> None:
        """`source` is the open source that `header` was read from; it is closed with this."""
        self.header = header
        self.source = source
        self._files: dict[int, Source] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._views: dict[int, Bytes] = {}

    @classmethod
    def open(cls, source: str, *, network: Network | None = None, header: Header | None = None) -> Weights:
        """The weights of a file, of a split model (any part or its index), or of a file elsewhere.

        Raises:
            SourceError: it cannot be opened.
            HeaderError: it is no model file that can be read.
        """
        opened = open_source(source, network=network)
        try:
            return cls(header or open_header(opened), opened)
        except BaseException:
            opened.close()
            raise

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Name -> what the header says of it."""
        return dict(self.header.tensors)

    def local(self, name: str) -> bool:
        """Whether a tensor's bytes lie on this machine, so that `raw` copies nothing."""
        return isinstance(self._file(self.header.tensors[name].shard), LocalSource)

    def place(self, name: str) -> str:
        """The file (of several shards) that holds a tensor."""
        return self.header.shards[self.header.tensors[name].shard]

    def unplaced(self, name: str) -> str:
        """Why a tensor's bytes cannot be had as they are; empty if they can."""
        tensor = self.header.tensors[name]
        if tensor.offset <= 0 and tensor.nbytes:
            if self.header.metadata.get("pickle.byteorder") == "big":
                return "its numbers stand in the other byte order"
            if name in self.header.metadata.get("pickle.strided", ()):
                return "it is a strided view of another tensor"
            return "its bytes are compressed or do not stand in one piece"
        return ""

    def raw(self, name: str) -> Bytes:
        """The bytes of a tensor, uint8 [nbytes]; on this machine a read-only view of the file, valid until `close`.

        Raises:
            KeyError: no such tensor.
            Unplaced: its bytes do not stand in the file in one run.
            SourceError, HeaderError: they can no longer be read.
        """
        tensor = self.header.tensors[name]
        return self._bytes(name, 0, tensor.nbytes)

    def pieces(self, name: str, size: int, align: int = 1) -> Iterator[Bytes]:
        """A tensor's bytes in pieces of `size` (rounded to a multiple of `align`), in order. Errors as `raw`."""
        tensor = self.header.tensors[name]
        step = max(align, size // align * align)
        near = not tensor.nbytes or self.unplaced(name) or self.local(name)
        span = step if near else max(step, REMOTE_PIECE // step * step)  # elsewhere, what one request brings
        for at in range(0, tensor.nbytes, span):
            raw = self._bytes(name, at, min(span, tensor.nbytes - at))
            for start in range(0, raw.size, step):
                yield raw[start : start + step]

    def stored(self, name: str) -> NDArray[Any]:
        """A tensor as its file stores it, in its shape: a view on this machine.

        BF16 comes as uint16 bits, fp8 and BOOL as uint8 bytes, GGUF blocks as uint8 [rows, bytes of a row], anything
        else that packs several values in a byte as flat bytes. Errors as `raw`.
        """
        tensor = self.header.tensors[name]
        raw = self.raw(name)
        if tensor.dtype in BLOCKS:
            return raw.reshape(_rows(tensor.shape), -1) if tensor.nbytes else raw.reshape(0, 0)
        kind = "<u2" if tensor.dtype == "BF16" else NATIVE.get(tensor.dtype, "<u1")
        if np.dtype(kind).itemsize * tensor.elements != tensor.nbytes:
            return raw
        return raw.view(kind).reshape(tensor.shape)

    def float32(self, name: str, start: int = 0, stop: int | None = None) -> Floats:
        """A tensor's values in its shape, decoded and dequantised; `start … stop` chooses rows of the first axis.

        Scales that other tensors hold (fp8 with scales, nf4, …) are not applied: this is what one tensor says. A view
        of the file where it is F32 already; treat it as read-only.

        Raises:
            KeyError: no such tensor, or a dtype that nothing here decodes.
            Unplaced, SourceError, HeaderError: as `raw`.
        """
        tensor = self.header.tensors[name]
        shape = tensor.shape
        if not shape:
            return decode(self.raw(name), tensor.dtype).reshape(())
        stop = shape[0] if stop is None else min(stop, shape[0])
        start = min(start, stop)
        inner = (stop - start, *shape[1:])
        if not prod(inner):
            return np.zeros(inner, np.float32)
        if tensor.dtype in BLOCKS and len(shape) == 1:
            return row_decoder(tensor.dtype)(self.raw(name)[None, :])[0, start:stop]
        width = tensor.nbytes // shape[0]  # blocks never cross a row, and so no index of the first of several axes
        raw = self._bytes(name, start * width, (stop - start) * width)
        if tensor.dtype in BLOCKS:
            return row_decoder(tensor.dtype)(raw.reshape(_rows(inner), -1)).reshape(inner)
        values = decode(raw, tensor.dtype)
        return values.reshape(inner) if values.size == prod(inner) else values

    def release(self, name: str) -> None:
        """Let go of the pages that a tensor's view brought in. Its view stays valid: a look brings them back."""
        tensor = self.header.tensors[name]
        mapped = self._maps.get(tensor.shard)
        if mapped is not None and hasattr(mapped, "madvise") and tensor.nbytes:
            page = mmap.PAGESIZE
            first = -(-tensor.offset // page) * page  # a page that a neighbour shares stays
            length = (tensor.offset + tensor.nbytes) // page * page - first
            if length > 0:
                mapped.madvise(mmap.MADV_DONTNEED, first, length)

    def ahead(self, name: str, at: int = 0, length: int = 32 << 20) -> None:
        """Have the system read so many bytes of a tensor, from `at` on, from the disk while others are looked at."""
        tensor = self.header.tensors[name]
        mapped = self._maps.get(tensor.shard)
        length = min(length, tensor.nbytes - at)
        if mapped is not None and hasattr(mmap, "MADV_WILLNEED") and length > 0 and tensor.offset > 0:
            first = (tensor.offset + at) // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, first, tensor.offset + at + length - first)

    def close(self) -> None:
        """Give files and maps back. A view that is still held keeps its map until it goes."""
        self._views.clear()
        for mapped in self._maps.values():
            try:
                mapped.close()
            except BufferError:  # a view is still held: the map goes with it
                continue
        self._maps.clear()
        for file in {id(f): f for f in (*self._files.values(), self.source)}.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def _file(self, shard: int) -> Source:
        found = self._files.get(shard)
        if found is None:
            name = self.header.shards[shard]
            if name == self.source.name:
                found = self.source
            else:
                beside = self.source.sibling(base_name(name.replace("\\", "/") if "://" in name else name))
                if beside is None:
                    raise SourceError(f"{shown(name)} does not exist any more")
                found = beside
            self._files[shard] = found
        return found

    def _mapped(self, shard: int, file: LocalSource) -> Bytes:
        view = self._views.get(shard)
        if view is None:
            fd = os.open(file.name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
            try:
                mapped = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(fd)
            self._maps[shard] = mapped
            view = self._views[shard] = np.frombuffer(mapped, np.uint8)
        return view

    def _bytes(self, name: str, at: int, length: int) -> Bytes:
        if why := self.unplaced(name):
            raise Unplaced(f"{shown(name)}: {why}")
        tensor = self.header.tensors[name]
        if not length:
            return np.zeros(0, np.uint8)
        file = self._file(tensor.shard)
        begin = tensor.offset + at
        if isinstance(file, LocalSource):
            whole = self._mapped(tensor.shard, file)
            if begin + length > whole.size:
                raise Unplaced(f"{shown(name)}: {shown(file.name)} has shrunk since its header was read")
            return whole[begin : begin + length]
        if length <= REMOTE_PIECE:
            return np.frombuffer(file.once(begin, length), np.uint8)
        parts = [
            np.frombuffer(file.once(begin + i, min(REMOTE_PIECE, length - i)), np.uint8)
            for i in range(0, length, REMOTE_PIECE)
        ]
        return np.concatenate(parts)


def _rows(shape: tuple[int, ...]) -> int:
    return prod(shape[:-1]) if len(shape) > 1 else 1
