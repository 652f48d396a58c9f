"""What was read of remote files, kept between runs: SQLite, one row a file.

Bytes, not facts, are kept: a newer version of this program reads them anew. A row is believed only for the version
of the file that it names. The database may be deleted at any time; one that is damaged, or made by another version, is.
"""

# importing pathlib costs more than opening the database
# ruff: noqa: PTH103, PTH111, PTH118, PTH120, PTH202, PTH108, PTH113

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct

from compatkit.sources.spans import Spans

if TYPE_CHECKING:
    import sqlite3

R = TypeVar("R")

#: Raised whenever rows mean something else.
VERSION = 1
#: Bytes of rows; beyond them the longest unused go.
MAX_TOTAL = 256 << 20
#: A file of which more was read is not kept.
MAX_ENTRY = 64 << 20
_BUSY_SECONDS = 5.0
_TABLE = """CREATE TABLE IF NOT EXISTS files (
    url_hash TEXT PRIMARY KEY, name TEXT, size INTEGER, etag TEXT, modified TEXT, pinned TEXT,
    pieces BLOB, bytes INTEGER, used REAL)"""
_PIECE = struct.Struct("<QQ")


class Entry(Struct, frozen=True):
    """What is known of one file: its version and the pieces of it that were read."""

    size: int
    etag: str
    modified: str
    pinned: str
    spans: Spans


class Info(Struct, frozen=True):
    """What `compatkit cache info` says. `path` is None where the cache is switched off."""

    path: str | None
    files: int = 0
    bytes: int = 0
    disk: int = 0


def location() -> str | None:
    """The folder of the cache: COMPATKIT_CACHE (`off`: none), else the platform's cache folder."""
    own = os.environ.get("COMPATKIT_CACHE", "").strip()
    if own:
        return None if own.lower() in ("off", "0", "no", "none", "false") else os.path.expanduser(own)
    if base := os.environ.get("XDG_CACHE_HOME", ""):
        return os.path.join(base, "compatkit")
    home = os.path.expanduser("~")
    if sys.platform == "win32":
        return os.path.join(os.environ.get("LOCALAPPDATA") or home, "compatkit", "Cache")
    if sys.platform == "darwin":
        return os.path.join(home, "Library", "Caches", "compatkit")
    return os.path.join(home, ".cache", "compatkit")


class Cache:
    """The cache in one folder; with None it holds nothing. Nothing in it ever raises: at worst it is empty."""

    def __init__(self, folder: str | None) -> None:
        self.path = os.path.join(folder, "headers.sqlite") if folder else None
        self._lock = threading.Lock()
        self._open: sqlite3.Connection | None = None
        self._off = folder is None

    @classmethod
    def default(cls) -> Cache:
        """The cache of this user."""
        return cls(location())

    def get(self, url: str) -> Entry | None:
        """What was read of the file behind `url`."""

        def work(db: sqlite3.Connection) -> Entry | None:
            key = _key(url)
            row = db.execute(
                "SELECT size, etag, modified, pinned, pieces FROM files WHERE url_hash = ?", (key,)
            ).fetchone()
            if row is None:
                return None
            size, etag, modified, pinned, pieces = row
            spans = _unpacked(pieces, size)
            if spans is None:
                db.execute("DELETE FROM files WHERE url_hash = ?", (key,))
                return None
            now = time.time()  # to the hour: a look that writes nothing is quicker
            db.execute("UPDATE files SET used = ? WHERE url_hash = ? AND used < ?", (now, key, now - 3600))
            return Entry(size, str(etag), str(modified), str(pinned), spans)

        return self._with(work)

    def put(self, url: str, name: str, size: int, etag: str, modified: str, pinned: str, spans: Spans) -> None:
        """Keeps what was read of the file behind `url`, in place of what was kept of it."""
        if self._off or spans.total > MAX_ENTRY:
            return
        raw = _packed(spans)

        def work(db: sqlite3.Connection) -> None:
            row = (_key(url), name, size, etag, modified, pinned, raw, len(raw), time.time())
            db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            (total,) = db.execute("SELECT COALESCE(SUM(bytes), 0) FROM files").fetchone()
            if total > MAX_TOTAL:
                for key, length in db.execute("SELECT url_hash, bytes FROM files ORDER BY used").fetchall():
                    if total <= MAX_TOTAL * 3 // 4:
                        break
                    db.execute("DELETE FROM files WHERE url_hash = ?", (key,))
                    total -= length

        self._with(work)

    def info(self) -> Info:
        """How much it holds, and where."""
        if self.path is None:
            return Info(None)
        disk = sum(os.path.getsize(p) for p in self._files() if os.path.isfile(p))
        if not os.path.isfile(self.path):
            return Info(self.path, disk=disk)
        row = self._with(lambda db: db.execute("SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM files").fetchone())
        return Info(self.path, row[0], row[1], disk) if row else Info(self.path, disk=disk)

    def clear(self) -> Info:
        """Forgets everything; what it held."""
        held = self.info()
        self.close()
        self._remove()
        if self.path:
            import shutil

            shutil.rmtree(os.path.join(os.path.dirname(self.path), "rules"), ignore_errors=True)  # compiled, users' own
        return held

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _files(self) -> list[str]:
        return [self.path + end for end in ("", "-wal", "-shm")] if self.path else []

    def _remove(self) -> None:
        for path in self._files():
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _with(self, work: Callable[[sqlite3.Connection], R]) -> R | None:
        """`work` in one transaction; None where the cache cannot be used. A damaged database is made anew, once."""
        if self._off:
            return None
        import sqlite3

        with self._lock:
            for attempt in (0, 1):
                try:
                    db = self._database()
                    with db:
                        return work(db)
                except sqlite3.OperationalError:  # locked for too long, a full or read-only disk: go on without
                    self._close()
                    self._off = self._open is None and attempt == 0 and not _writable(self.path)
                    return None
                except (sqlite3.Error, ValueError, TypeError):
                    self._close()
                    self._remove()
                except OSError:
                    self._off = True
                    return None
        return None

    def _database(self) -> sqlite3.Connection:
        if self._open is None:
            import sqlite3

            assert self.path is not None
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            db = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, check_same_thread=False)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                (version,) = db.execute("PRAGMA user_version").fetchone()
                if version != VERSION:
                    with db:
                        if version:
                            db.execute("DROP TABLE IF EXISTS files")
                        db.execute(_TABLE)
                        db.execute(f"PRAGMA user_version = {VERSION}")
            except BaseException:
                db.close()
                raise
            self._open = db
        return self._open


def _writable(path: str | None) -> bool:
    return path is not None and os.access(os.path.dirname(path), os.W_OK)


def _key(url: str) -> str:
    """A digest: a link may hold a secret, which must not come to lie on a disk."""
    import hashlib

    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


def _packed(spans: Spans) -> bytes:
    """The pieces as one compressed run; zlib's own checksum guards it."""
    return zlib.compress(b"".join(_PIECE.pack(at, len(data)) + data for at, data in spans), 1)


def _unpacked(raw: object, size: object) -> Spans | None:
    if not isinstance(raw, bytes) or not isinstance(size, int):
        return None
    work = zlib.decompressobj()
    try:
        data = work.decompress(raw, 2 * MAX_ENTRY)
    except zlib.error:
        return None
    if not work.eof:
        return None
    spans, at = Spans(), 0
    while at < len(data):
        if at + _PIECE.size > len(data):
            return None
        offset, length = _PIECE.unpack_from(data, at)
        at += _PIECE.size
        if at + length > len(data) or offset + length > size:
            return None
        spans.add(offset, data[at : at + length])
        at += length
    return spans
