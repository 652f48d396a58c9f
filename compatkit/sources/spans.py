"""The pieces of a file that are already here, so that no byte is asked for twice."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator


class Spans:
    """Pieces of one file by offset. Pieces never overlap."""

    __slots__ = ("_pieces", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[bytes] = []

    def add(self, offset: int, data: bytes) -> None:
        """Keeps `data`; what of it is here already is left out."""
        for start, end in list(self.missing(offset, len(data))):
            at = bisect_right(self._starts, start)
            self._starts.insert(at, start)
            self._pieces.insert(at, data[start - offset : end - offset])

    def missing(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(start, end) of every part of that range that is not here."""
        at, end = offset, offset + length
        index = max(0, bisect_right(self._starts, at) - 1)
        while at < end:
            if index >= len(self._starts) or self._starts[index] >= end:
                yield at, end
                return
            start = self._starts[index]
            if start > at:
                yield at, start
            at = max(at, start + len(self._pieces[index]))
            index += 1

    def take(self, offset: int, length: int) -> bytes:
        """The bytes of a range that is wholly here."""
        index = bisect_right(self._starts, offset) - 1
        parts = []
        while length > 0:
            begin = offset - self._starts[index]
            part = self._pieces[index][begin : begin + length]
            parts.append(part)
            offset, length, index = offset + len(part), length - len(part), index + 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return iter(zip(self._starts, self._pieces, strict=True))

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(map(len, self._pieces))
