"""Files on disk.

Read with `pread` into memory of our own, not through a memory map: a map of a file that someone else cuts short kills
the process with SIGBUS at the next look, and for a header a map is no faster (`benchmarks/readers.py`).
"""

# importing pathlib costs more than reading a header
# ruff: noqa: PTH100, PTH114, PTH115, PTH116, PTH118, PTH120

from __future__ import annotations

import os
import stat
from types import TracebackType

from compatkit.sources.naming import shown
from compatkit.vocabulary import FileProblem, HeaderError, SourceError

# Never wait for the other end of a pipe, never make a terminal ours; binary where the platform knows a difference.
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class LocalSource:
    """A regular file on this machine. Implements `Source`; symbolic links are followed.

    Raises `SourceError` if the path does not exist, may not be read, or is anything but a regular file (folders, pipes,
    devices and sockets are refused before they are opened: opening one may block or do something).
    """

    #: See `Source.workers`.
    workers = 1

    __slots__ = ("_fd", "chunk", "identity", "name", "size")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = os.fspath(path)
        # bytes paths are legal on disk but not in our reports: keep the undecodable bytes as surrogates
        self.name: str = name if isinstance(name, str) else os.fsdecode(name)
        self.chunk = 1 << 18
        self._fd = -1
        try:
            _refuse_odd(self.name, os.stat(self.name).st_mode)
            self._fd = os.open(self.name, _FLAGS)
            info = os.fstat(self._fd)
            _refuse_odd(self.name, info.st_mode)  # what was opened may not be what was looked at
        except (OSError, ValueError) as error:
            raise SourceError(_why(self.name, error), _absent(self.name, error)) from error
        except SourceError:
            self.close()
            raise
        self.size = info.st_size
        # latin-1 maps bytes to characters one to one: any name on disk makes a distinct, storable text
        place = os.fsencode(os.path.abspath(self.name)).decode("latin-1")
        self.identity = f"{place}|{info.st_size}|{info.st_mtime_ns}|{info.st_ino}"

    def read(self, offset: int, length: int) -> bytes:
        """See `Source.read`."""
        want = max(0, min(length, self.size - offset))
        parts: list[bytes] = []
        while want:
            try:
                part = _pread(self._fd, want, offset)
            except OSError as error:
                raise _unreadable(
                    f"{shown(self.name)} could not be read at byte {offset:,}: {error.strerror or error}",
                    "Check the disk, or copy the file again.",
                    {"offset": offset},
                ) from error
            if not part:
                now = os.fstat(self._fd).st_size
                raise _unreadable(
                    f"{shown(self.name)} shrank from {self.size:,} to {now:,} bytes while it was being read",
                    "Wait until whatever writes the file is done, then try again.",
                    {"size": self.size, "size_now": now},
                )
            parts.append(part)
            want -= len(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def once(self, offset: int, length: int) -> bytes:
        """See `Source.once`."""
        return self.read(offset, length)

    def sibling(self, name: str, first: int = 0) -> LocalSource | None:
        """See `Source.sibling`. `name` must be a bare name: one with a separator in it is not a sibling."""
        if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
            return None
        path = os.path.join(os.path.dirname(self.name), name)
        return LocalSource(path) if os.path.lexists(path) else None

    def close(self) -> None:
        """See `Source.close`; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> LocalSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LocalSource({shown(self.name)})"


def _refuse_odd(name: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((words for test, words in _KINDS if test(mode)), "not a regular file")
        raise SourceError(f"{shown(name)} is {kind}, not a model file")


def _absent(name: str, error: OSError | ValueError) -> FileProblem | None:
    """The finding of a path that is not there; None where something else is the matter with it."""
    if not isinstance(error, FileNotFoundError):
        return None
    return FileProblem("file/not-found", _why(name, error), "Give the path of a file that exists.")


def _why(name: str, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        if os.path.islink(name):
            return f"{shown(name)} is a link to {shown(os.readlink(name))}, which does not exist"
        return f"{shown(name)} does not exist"
    if isinstance(error, PermissionError):
        return f"{shown(name)} may not be read by this user"
    if isinstance(error, OSError):
        return f"{shown(name)} cannot be opened: {error.strerror or error}"
    return f"{shown(name)} is not a path: {error}"


def _unreadable(message: str, fix: str, evidence: dict[str, object]) -> HeaderError:
    return HeaderError(FileProblem("file/unreadable", message, fix, evidence))


if hasattr(os, "pread"):

    def _pread(fd: int, length: int, offset: int) -> bytes:
        # one call hands out at most 2 GiB on Linux; callers loop
        return os.pread(fd, length, offset)

else:  # Windows has no pread; nobody shares our descriptor, so seeking is as good

    def _pread(fd: int, length: int, offset: int) -> bytes:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)
