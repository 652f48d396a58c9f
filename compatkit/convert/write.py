"""A safetensors file written tensor by tensor, beside its place, and moved there when it is whole and verified."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from compatkit.convert.values import Value
from compatkit.fetch.written import reserved
from compatkit.headers.safetensors import BITS

if TYPE_CHECKING:
    from compatkit.sources import Source

_COPY = 8 << 20
_ALIGN = 8


class Entry(NamedTuple):
    """What the header says of a tensor, before its data are made."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def entry(value: Value) -> Entry:
    """The entry of a value."""
    count = 1
    for side in value.shape:
        count *= side
    return Entry(value.dtype, value.shape, count * BITS[value.dtype] // 8)


class Writer:
    """Writes the tensors of a file whose entries are all known, in any order."""

    def __init__(self, stream: Any, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
        self.stream, self.entries = stream, entries
        ordered = sorted(entries, key=lambda n: -BITS[entries[n].dtype])  # wide types first: all stay aligned
        top: dict[str, Any] = {"__metadata__": dict(metadata)}
        self.offsets: dict[str, int] = {}
        at = 0
        for name in ordered:
            dtype, shape, nbytes = entries[name]
            top[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
            self.offsets[name] = at
            at += nbytes
        text = json.dumps(top, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
        text += b" " * (-len(text) % _ALIGN)
        self.start = len(text) + 8
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(self.start + at)

    def put(self, name: str, value: Value, source: Source) -> None:
        """Write one tensor. One that is in the source bit for bit is copied in pieces."""
        if entry(value) != self.entries[name]:
            raise AssertionError(f"{name} came out otherwise the second time")
        self.stream.seek(self.start + self.offsets[name])
        if value.ref is not None:
            at, end = value.ref.offset, value.ref.offset + value.ref.nbytes
            while at < end:
                data = source.read(at, min(_COPY, end - at))
                self.stream.write(data)
                at += len(data)
        else:
            self.stream.write(value.load().tobytes())


@contextlib.contextmanager
def spooled(source: Source, output: str) -> Iterator[str]:
    """A copy of a file elsewhere, in the folder of the output: its path."""
    with reserved(f"{output}.source") as (path, handle):
        with os.fdopen(handle, "wb") as stream:
            at = 0
            while at < source.size:
                data = source.read(at, min(_COPY, source.size - at))
                stream.write(data)
                at += len(data)
        yield str(path)
