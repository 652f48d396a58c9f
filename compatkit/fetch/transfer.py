"""One file, from where a lock says it is to where it goes: in pieces, resumable, verified before it is in place."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from compatkit.fetch import hubfile
from compatkit.fetch.places import Placed
from compatkit.fetch.written import settle
from compatkit.headers import read_one
from compatkit.sources.local import LocalSource
from compatkit.sources.naming import shown
from compatkit.sources.open import Network, is_remote, shown_name
from compatkit.sources.trouble import trouble
from compatkit.vocabulary import HeaderError, SourceError

if TYPE_CHECKING:
    from compatkit.sources.address import Address

#: One request. A kill loses at most so much of each file.
PIECE = 16 << 20
#: Tries without a new byte before a file is given up; it stays resumable.
TRIES = 5
_SLOW_START = 0.3
#: Bytes per second below which a file does not move; one that does not move is given up after so many of the seconds
#: that one request has (COMPATKIT_TIMEOUT), however often the server sends a little.
CRAWL, PATIENCE = 1024, 3
#: Answers that another try does not change.
_FINAL = ("file/not-found", "file/gated", "file/no-range", "file/offline")
_MODELS = (".safetensors", ".sft", ".gguf")

#: Called with the bytes that have just been added to a file (negative: thrown away).
Progress = Callable[[int], None]
#: (offset, length) -> bytes from there: at least one, at most so many.
Reader = Callable[[int, int], bytes]


class Wrong(Exception):
    """The bytes are not the ones that were locked."""


def part_of(placed: Placed) -> str:
    """Where a file grows before it is put in place: beside its target, under a name that says what it will be."""
    f = placed.file
    key = hashlib.sha256(f"{f.source}|{f.size}|{f.sha256}|{f.etag}".encode("utf-8", "surrogatepass")).hexdigest()[:12]
    folder, name = os.path.split(placed.path)
    return os.path.join(folder, f".{name[:120]}.{key}.part")


def present(placed: Placed, known: dict[str, Any]) -> bool:
    """Whether the right file is in place already. `known` remembers what was hashed: path -> [size, mtime, sha256]."""
    f = placed.file
    try:
        info = os.stat(placed.path)
    except FileNotFoundError:
        return False
    if info.st_size != f.size:
        return False
    if f.sha256 is None:
        return _is_model(placed) is None
    mark = [info.st_size, info.st_mtime_ns, f.sha256]
    if known.get(placed.path) == mark:
        return True
    with open(placed.path, "rb") as stream:
        right = hashlib.file_digest(stream, "sha256").hexdigest() == f.sha256
    if right:
        known[placed.path] = mark
    return right


def fetch(placed: Placed, network: Network, progress: Progress, stopped: Callable[[], bool]) -> None:
    """Bring one file into place.

    Raises:
        SourceError: it could not be had; what there is of it stays and is used by the next run.
    """
    os.makedirs(os.path.dirname(placed.path) or ".", exist_ok=True)
    part = part_of(placed)
    for again in (True, False):
        try:
            if address := _of_hub(placed):
                hubfile.grow(address, part, placed.file.size, progress, stopped)
            else:
                _grow(placed, part, network, progress, stopped)
            _verified(placed, part)
            break
        except Wrong as e:
            with contextlib.suppress(FileNotFoundError):
                progress(-os.stat(part).st_size)
                os.unlink(part)
            if not again:
                raise SourceError(f"{shown(shown_name(placed.file.source))}: {e}; nothing was put in place") from None
        finally:
            _no_empty(part)
    os.replace(part, placed.path)
    settle(os.path.dirname(placed.path) or ".")


def _no_empty(part: str) -> None:
    """Leave nothing behind of a file of which there was nothing to be had."""
    with contextlib.suppress(OSError):
        if os.stat(part).st_size == 0:
            os.unlink(part)


def had(placed: Placed) -> int:
    """Bytes of a file that an earlier run left to go on from."""
    part = part_of(placed)
    return os.stat(part).st_size if os.path.exists(part) else 0


def _of_hub(placed: Placed) -> Address | None:
    """Where on the Hub a file is; None if it is elsewhere."""
    if not is_remote(placed.file.source):
        return None
    from compatkit.sources.address import parse

    address = parse(placed.file.source)
    return address if address.kind == "hub" else None


def _grow(placed: Placed, part: str, network: Network, progress: Progress, stopped: Callable[[], bool]) -> None:
    f = placed.file
    read, close, seconds = _reader(placed, network)  # which says when the source is not what was locked
    try:
        with open(part, "ab") as out:
            have = out.tell()
            if have > f.size:
                out.truncate(0)
                have = 0
            progress(have)
            tries, moved, since = 0, time.monotonic(), have
            while have < f.size:
                if stopped():
                    raise SourceError(f"{shown(placed.file.name)} is not complete; run the same command again")
                try:
                    data = read(have, min(PIECE, f.size - have))
                    if not data:
                        raise SourceError(f"{shown(shown_name(f.source))} ends at byte {have:,}; {f.size:,} are locked")
                except SourceError as e:
                    tries += 1
                    late = time.monotonic() - moved > PATIENCE * seconds
                    if tries >= TRIES or late or (e.problem and e.problem.rule in _FINAL):
                        raise
                    time.sleep(_SLOW_START * 2**tries)
                    continue
                _write(out, data, placed)
                have += len(data)
                progress(len(data))
                now = time.monotonic()
                if have - since >= CRAWL * (now - moved):
                    tries, moved, since = 0, now, have
                elif have < f.size and now - moved > PATIENCE * seconds:
                    raise SourceError(
                        f"{shown(shown_name(f.source))} could not be read: the server sends too slowly "
                        f"({have - since:,} bytes in {now - moved:.0f} seconds)"
                    )
            out.flush()
            os.fsync(out.fileno())
    finally:
        close()


def _write(out: Any, data: bytes, placed: Placed) -> None:
    try:
        out.write(data)
        out.flush()
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            why = f"the disk is full at {shown(os.path.dirname(placed.path))}: make room and run the same command again"
        else:
            why = f"{shown(placed.path)} cannot be written: {e.strerror}"
        raise SourceError(why) from None


def _verified(placed: Placed, part: str) -> None:
    f = placed.file
    size = os.stat(part).st_size
    if size != f.size:
        raise Wrong(f"it has {size:,} bytes; {f.size:,} are locked")
    if f.sha256:
        with open(part, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != f.sha256:
            raise Wrong(f"its SHA-256 is {digest}; {f.sha256} is locked")
    if why := _is_model(placed, part):
        raise Wrong(why)


def _is_model(placed: Placed, path: str = "") -> str | None:
    """Why a file that should be a model is none; None if it is one, or should be something else."""
    if not placed.file.name.lower().endswith(_MODELS):
        return None
    try:
        with LocalSource(path or placed.path) as source:
            read_one(source)
    except HeaderError as e:
        return f"its header cannot be read ({e.problem.rule})"
    return None


def _reader(placed: Placed, network: Network) -> tuple[Reader, Callable[[], None], float]:
    """What reads the file, what ends that, and the seconds that one read may take.

    Raises:
        Wrong: the file has another size than was locked, where that can be said before a byte is read.
    """
    text = placed.file.source
    if not is_remote(text):
        source = LocalSource(text)
        if source.size != placed.file.size:
            source.close()
            raise Wrong(f"it has {source.size:,} bytes now; {placed.file.size:,} are locked")

        def piece(offset: int, length: int) -> bytes:
            try:
                return source.read(offset, length)
            except HeaderError as e:
                raise SourceError(str(e), e.problem) from None

        return piece, source.close, math.inf
    from compatkit.sources.address import parse

    address = parse(text)
    if address.kind == "fsspec":
        from compatkit.sources.fsspec_source import asked, filesystem

        network.allow(address.name)
        fs, path = filesystem(address.url)
        size = asked(network, address.name, lambda: fs.size(path))
        if size is not None and size != placed.file.size:
            raise Wrong(f"it has {size:,} bytes now; {placed.file.size:,} are locked")
        read: Reader = lambda at, n: asked(network, address.name, lambda: fs.cat_file(path, start=at, end=at + n))  # noqa: E731
        return read, _nothing, math.inf
    http = _Http(network, address.name, address.url, "", placed, lambda head: None)
    return http, _nothing, network.client(address.name).total


def _nothing() -> None:
    pass


class _Http:
    """Ranges of one URL, none of them kept in memory."""

    def __init__(
        self,
        network: Network,
        name: str,
        url: str,
        token: str,
        placed: Placed,
        explain: Callable[[Any], SourceError | None],
    ) -> None:
        self.network, self.name, self.url, self.token = network, name, url, token
        self.file, self.explain = placed.file, explain

    def __call__(self, offset: int, length: int) -> bytes:
        from compatkit.sources.client import ClientError, Head

        size = self.file.size

        def plan(head: Head) -> int:
            if head.status == 206 and head.headers.get("content-range", "").startswith(f"bytes {offset}-"):
                return length
            whole = head.status == 200 and offset == 0 and head.headers.get("content-length") == str(size)
            return length if whole and size <= PIECE else 0

        headers = {"Range": f"bytes={offset}-{offset + length - 1}"}
        try:
            answer = self.network.client(self.name).get(self.url, headers, plan, self.token)
        except ClientError as e:
            raise SourceError(f"{shown(self.name)} {e.what}") from None
        head = answer.head
        if head.status not in (200, 206):
            raise self.explain(head) or _refused(self.name, head.status)
        tag, total = head.headers.get("etag"), head.headers.get("content-range", "").rpartition("/")[2]
        if total.isdigit() and int(total) != size:
            raise Wrong(f"it has {int(total):,} bytes on the server; {size:,} are locked")
        if self.file.etag and tag and tag != self.file.etag and not self.file.sha256:
            raise Wrong(f"the server has version {tag} now; {self.file.etag} is locked")
        if not answer.body:
            if head.status == 200:
                raise trouble("file/no-range", self.name, "cannot be pulled: the server does not serve ranges")
            raise SourceError(f"{shown(self.name)} could not be read: {answer.cut or 'the server sent nothing'}")
        return answer.body


def _refused(name: str, status: int) -> SourceError:
    if status in (404, 410):
        return trouble("file/not-found", name, f"does not exist: the server says {status}")
    if status in (401, 403):
        return trouble("file/gated", name, f"may not be read: the server says {status}")
    return SourceError(f"{shown(name)} could not be read: the server answers with status {status}")
