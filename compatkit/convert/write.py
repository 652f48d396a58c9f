"""A safetensors file written tensor by tensor, beside its place, and moved there when it is whole and verified."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from compatkit.convert.values import Value
from compatkit.headers.safetensors import BITS

if TYPE_CHECKING:
    from compatkit.sources import Source

_COPY = 8 << 20
_ALIGN = 8


class Exists(ValueError):
    """There is a file of that name already."""


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
def beside(target: str, force: bool) -> Iterator[Any]:
    """A file to write in the target's folder; in place when the block ends well, gone when it does not.

    Raises:
        Exists: the target is there and `force` was not given.
        OSError: the folder cannot be written.
    """
    if not force and os.path.lexists(target):
        raise Exists(target)
    place = Path(target).absolute()
    folder, name = str(place.parent), place.name
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name[:100]}.", suffix=".part")
    path = Path(temporary)
    try:
        with path.open("wb") as stream:
            os.close(handle)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _allow(path)
        _place(path, place, force)
        _settle(folder)
    finally:
        path.unlink(missing_ok=True)


def _allow(path: Path) -> None:
    """The rights any new file would have: a temporary one is its owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    with contextlib.suppress(OSError):
        path.chmod(0o666 & ~mask)


def _place(path: Path, target: Path, force: bool) -> None:
    if force:
        path.replace(target)
        return
    try:
        os.link(path, target)  # fails where the name has been taken since, which a rename would not
    except FileExistsError:
        raise Exists(str(target)) from None
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise Exists(str(target)) from None
        path.replace(target)


def _settle(folder: str) -> None:
    """Make the new name survive a power cut, where folders can be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def spooled(source: Source, folder: str) -> str:
    """A copy of a file elsewhere, in pieces: its path. The caller removes it."""
    handle, path = tempfile.mkstemp(dir=folder, prefix=".compatkit.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            at = 0
            while at < source.size:
                data = source.read(at, min(_COPY, source.size - at))
                stream.write(data)
                at += len(data)
    except BaseException:
        Path(path).unlink()
        raise
    return path
