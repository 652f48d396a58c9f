"""A file written beside its place and moved there when it is whole: a full disk or a kill leaves what was there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TRIES = 8


class Exists(ValueError):
    """There is a file of that name already."""


@contextlib.contextmanager
def reserved(target: str) -> Iterator[tuple[Path, int]]:
    """An empty file of one's own in the target's folder, and a handle to write it: gone when the block ends.

    Its name follows from the target's, so that the next run removes what a killed one left. The one that is at work
    holds a lock on it; a second at the same time gets another name.
    """
    place = Path(target).absolute()
    if (found := _own(place)) is None:
        path, handle = _any(place)
        try:
            yield path, handle
        finally:
            path.unlink(missing_ok=True)
        return
    path, handle = found
    lock = os.dup(handle)  # whoever writes closes the handle; the lock lasts as long as one of the two
    try:
        yield path, handle
    finally:
        with contextlib.suppress(OSError):  # once it was moved, the name may be the next run's
            if os.path.samestat(os.fstat(lock), path.lstat()):
                path.unlink()
        os.close(lock)


def _own(place: Path) -> tuple[Path, int] | None:
    """The file whose name follows from the target's; None if another run has it, or nothing can be locked here."""
    try:
        import fcntl
    except ImportError:
        return None
    path = place.parent / f".{place.name[:100]}.compatkit.part"
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    for _ in range(_TRIES):
        try:
            handle, new = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o600), True
        except FileExistsError:
            try:
                handle, new = os.open(path, os.O_RDWR | flags), False
            except FileNotFoundError:
                continue
            except OSError:
                return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(handle), path.lstat())  # and not one that its run has just moved away
        except FileNotFoundError:
            mine = False
        except OSError:
            os.close(handle)
            return None
        if mine and new:
            return path, handle
        if mine:  # what a killed run left: never written to, for it may be a second name of the target
            path.unlink(missing_ok=True)
        os.close(handle)
    return None


def _any(place: Path) -> tuple[Path, int]:
    import tempfile

    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name[:100]}.", suffix=".part")
    return Path(name), handle


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
    with reserved(target) as (path, handle):
        os.close(handle)
        with path.open("r+b") as stream:  # which has a name, for whoever reads it back
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _allow(path, place)
        _place(path, place, force)
        settle(str(place.parent))


def replace_text(target: Path, text: str, errors: str = "strict") -> None:
    """Write a text file whole or not at all; what is no plain file (a device, a pipe) is written as it is.

    Raises:
        OSError: it could not be written; what was there is there still.
    """
    data = text.encode("utf-8", errors).replace(b"\n", os.linesep.encode())
    if target.exists() and not target.is_file():
        target.write_bytes(data)
        return
    real = target.resolve()  # a link stays a link
    try:
        with beside(str(real), True) as stream:
            stream.write(data)
    except PermissionError:
        if not real.is_file():
            raise
        real.write_bytes(data)  # a file that may be written in a folder that may not


def _allow(path: Path, target: Path) -> None:
    """The rights of the file that is replaced, else those any new file would have: a temporary one is its owner's."""
    mask = os.umask(0)
    os.umask(mask)
    with contextlib.suppress(OSError):
        path.chmod(target.stat().st_mode & 0o777 if target.is_file() else 0o666 & ~mask)


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


def settle(folder: str) -> None:
    """Make the new name survive a power cut, where folders can be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
