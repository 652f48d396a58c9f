"""A file elsewhere, read by ranges: no byte is asked for twice."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from compatkit.sources.spans import Spans

#: The first read: most headers are shorter, and no round trip is shorter than it takes to send so much.
FIRST = 96 << 10
#: The longest later read of a reader that does not know its need.
LARGEST = 1 << 20


class RangedSource:
    """What every source elsewhere has of `Source`; a kind of place adds how a range is fetched into `spans`."""

    size: int

    def __init__(self, start: int = FIRST) -> None:
        self.spans = Spans()
        self._start = start
        self._reach = 0  # how far this reader has come

    @property
    def chunk(self) -> int:
        """See `Source.chunk`. Grows with what was read, so that what is read in vain stays a tenth of it."""
        return max(self._start, min(LARGEST, self._reach // 10))

    def held(self, offset: int, length: int) -> bool:
        """Whether that range needs no request any more."""
        return next(self.spans.missing(offset, min(length, self.size - offset)), None) is None

    def read(self, offset: int, length: int) -> bytes:
        """See `Source.read`."""
        length = max(0, min(length, self.size - offset))
        if not length:
            return b""
        self._reach = max(self._reach, offset + length)
        for start, end in list(self.spans.missing(offset, length)):
            self._fetch(start, end)
        return self.spans.take(offset, length)

    def once(self, offset: int, length: int) -> bytes:
        """See `Source.once`."""
        kept, self.spans = self.spans, Spans()
        try:
            return self.read(offset, length)
        finally:
            self.spans = kept

    def close(self) -> None:
        """See `Source.close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def _fetch(self, start: int, end: int, why: str = "") -> None:
        """Brings the bytes `start … end` into `spans`; `why` is what went wrong before."""
        raise NotImplementedError
