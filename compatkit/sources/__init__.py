"""Places bytes live, as ranged reads.

A `Source` is one file somewhere: it has a name, a size, an identity to cache by, and answers ranged reads. Everything
above (`headers/`) asks a source for a few kilobytes at known offsets and never for the whole file, so that a later
source may sit behind HTTP.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from compatkit.sources.local import LocalSource
from compatkit.sources.naming import shown

__all__ = ["LocalSource", "Source", "shown"]


class Source(Protocol):
    """One file somewhere, read in ranges."""

    @property
    def name(self) -> str:
        """The path or URL as the user gave it. Pass it through `shown` before it goes into a message."""

    @property
    def size(self) -> int:
        """Size in bytes, as it was when the source was opened."""

    @property
    def identity(self) -> str:
        """Changes whenever the bytes may have changed: what a cache of headers keys on."""

    @property
    def chunk(self) -> int:
        """How many bytes a reader that does not know its need yet should ask for at once."""

    @property
    def workers(self) -> int:
        """How many files of its place may be read at the same time with profit; 1: one after the other."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes `offset … offset+length`, cut at the end of the file (`size`), never shorter than that.

        Raises `HeaderError` (`file/unreadable`) if bytes that should be there cannot be had, because the file shrank or
        the disk failed, and `SourceError` if the place can no longer be reached.
        """

    def once(self, offset: int, length: int) -> bytes:
        """As `read`, for bytes that nobody will ask for again: they are kept neither in memory nor in the cache."""

    def sibling(self, name: str, first: int = 0) -> Source | None:
        """The file of that bare name in the same folder, `None` if there is none.

        `first` is how many bytes of its start will be needed, where the caller can tell.

        Raises `SourceError` if it exists and cannot be opened.
        """

    def close(self) -> None:
        """Give the handle back. Reading afterwards is an error."""

    def __enter__(self) -> Source: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
