"""Folders: places that hold files under names, on this machine or far away."""

# importing pathlib costs more than listing a folder
# ruff: noqa: PTH112, PTH113, PTH118, PTH208

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from compatkit.sources.local import LocalSource
from compatkit.sources.naming import shown
from compatkit.vocabulary import SourceError

if TYPE_CHECKING:
    from compatkit.sources import Source


@runtime_checkable
class Folder(Protocol):
    """A folder whose files can be named and opened. Paths are below it, with `/` between steps."""

    @property
    def name(self) -> str:
        """The folder as the user gave it."""

    @property
    def workers(self) -> int:
        """How many of its files may be read at the same time with profit."""

    def names(self, inside: str = "") -> list[str]:
        """Bare names of what the folder (or the one `inside` it) holds, files and folders, sorted; none if there is
        none."""

    def has(self, path: str) -> bool:
        """Whether there is a file at `path`."""

    def where(self, path: str) -> str:
        """The text that names that file as a source of its own."""

    def open(self, path: str) -> Source:
        """The file at `path`. Raises `SourceError` if it cannot be opened."""


class LocalFolder:
    """A folder on this machine. Implements `Folder`."""

    #: See `Folder.workers`.
    workers = 1

    def __init__(self, path: str) -> None:
        self.name = path

    def names(self, inside: str = "") -> list[str]:
        """See `Folder.names`."""
        path = self.where(inside)
        if not os.path.isdir(path):
            return []
        try:
            return sorted(os.listdir(path))
        except OSError as e:
            raise SourceError(f"{shown(path)} cannot be listed: {e.strerror}") from None

    def has(self, path: str) -> bool:
        """See `Folder.has`."""
        return os.path.isfile(self.where(path))

    def where(self, path: str) -> str:
        """See `Folder.where`."""
        return os.path.join(self.name, *path.split("/")) if path else self.name

    def open(self, path: str) -> LocalSource:
        """See `Folder.open`."""
        return LocalSource(self.where(path))
