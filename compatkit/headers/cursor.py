"""A position in a source that is read forward in pieces, for formats whose header does not say how long it is."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import re

    from compatkit.sources import Source

_U32 = Struct("<I").unpack_from
_U64 = Struct("<Q").unpack_from

# Strings per step of the fast walk, and the longest string it takes: almost all entries of a vocabulary.
_BLOCK = 64
_SHORT = 40


class Past(Exception):
    """Something declared would end after the limit. `at` is where it starts, `length` its bytes (both absolute)."""

    def __init__(self, at: int, length: int) -> None:
        super().__init__(at, length)
        self.at = at
        self.length = length


class Cursor:
    """Reads forward from byte 0, holding one piece of the source at a time.

    Nothing is read or allocated before it is known to lie within `limit` bytes of the start: `Past` is raised instead.
    """

    __slots__ = ("_base", "_buf", "_pos", "limit", "source")

    def __init__(self, source: Source, limit: int) -> None:
        self.source = source
        self.limit = min(limit, source.size)
        self._buf = b""
        self._base = 0  # the file offset of _buf[0]
        self._pos = 0  # the next byte, counted in _buf

    @property
    def at(self) -> int:
        """The next byte's offset in the file."""
        return self._base + self._pos

    @property
    def ahead(self) -> int:
        """How many bytes after the next are at hand already."""
        return len(self._buf) - self._pos

    def _need(self, length: int) -> None:
        """Makes the next `length` bytes stand in `_buf`."""
        if self._pos + length <= len(self._buf):
            return
        at = self._base + self._pos
        if at + length > self.limit:
            raise Past(at, length)
        have = self._buf[self._pos :]
        more = min(max(self.source.chunk, length) - len(have), self.limit - at - len(have))
        self._buf = have + self.source.read(at + len(have), more)
        self._base, self._pos = at, 0

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        self._need(length)
        start = self._pos
        self._pos = end = start + length
        return self._buf[start:end]

    def u32(self) -> int:
        """The next unsigned 32-bit number."""
        self._need(4)
        value: int = _U32(self._buf, self._pos)[0]
        self._pos += 4
        return value

    def u64(self) -> int:
        """The next unsigned 64-bit number."""
        self._need(8)
        value: int = _U64(self._buf, self._pos)[0]
        self._pos += 8
        return value

    def skip(self, length: int) -> None:
        """Moves on without reading: a list of fixed-size numbers costs nothing, however long."""
        at = self._base + self._pos
        if at + length > self.limit:
            raise Past(at, length)
        if self._pos + length <= len(self._buf):
            self._pos += length
        else:
            self._base, self._buf, self._pos = at + length, b"", 0

    def skip_strings(self, count: int) -> None:
        """Moves past `count` strings (a 64-bit length and that many bytes each) without making any.

        A regular expression of the usual lengths walks 64 strings per step, twice as fast as a Python loop; it tests
        all eight bytes of every length, so it cannot be led astray. Whatever it does not take, the loop does.
        """
        if count * 8 > self.limit - self.at:
            raise Past(self.at, count * 8)
        match = _blocks().match if count > 1024 else None
        while count:
            self._need(8)
            buf, pos = self._buf, self._pos
            if match:
                while count >= _BLOCK and (found := match(buf, pos)):
                    pos = found.end()
                    count -= _BLOCK
            last = pos
            try:
                for _ in range(min(count, _BLOCK)):
                    last, pos = pos, pos + 8 + _U64(buf, pos)[0]
                    count -= 1
            except (StructError, OverflowError):
                pass  # the piece in hand ends here; `pos` stands where the next string starts
            if self._base + pos > self.limit:
                raise Past(self._base + last, pos - last)
            self._base, self._buf, self._pos = (self._base, buf, pos) if pos <= len(buf) else (self._base + pos, b"", 0)


def _patterns() -> Iterator[bytes]:
    for length in sorted(range(_SHORT), key=lambda n: abs(n - 7)):  # the common lengths first: they are tried in order
        yield b"\\x%02x\\0\\0\\0\\0\\0\\0\\0.{%d}" % (length, length)


_compiled: list[re.Pattern[bytes]] = []


def _blocks() -> re.Pattern[bytes]:
    """Matches exactly `_BLOCK` strings shorter than `_SHORT`; made at first use, as most files have no vocabulary."""
    if not _compiled:
        import re

        # possessive (`+`): without it every string would leave a way back, 100 bytes each
        _compiled.append(re.compile(b"(?s:(?:" + b"|".join(_patterns()) + b"){%d}+)" % _BLOCK))
    return _compiled[0]
