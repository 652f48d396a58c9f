"""One run's way to the network: its connections, its cache, what it may do and what it has cost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from compatkit.sources.trouble import trouble

if TYPE_CHECKING:
    from compatkit.sources.cache import Cache
    from compatkit.sources.client import Client, Counters

T = TypeVar("T")
R = TypeVar("R")

#: Threads that read files at the same time; the client bounds its connections itself.
WORKERS = 16


class Network:
    """Made at the start of a run and handed to every source that is opened; costs nothing until one is remote.

    `offline` answers from the cache alone. `full` reads whole headers where a part would do. `seconds` bounds one
    request with all its retries.
    """

    def __init__(self, *, offline: bool = False, full: bool = False, seconds: float | None = None) -> None:
        self.offline = offline
        self.full = full
        self._seconds = seconds
        self._lock = threading.Lock()
        self._counters: Counters | None = None
        self._client: Client | None = None
        self._cache: Cache | None = None

    @property
    def counters(self) -> Counters:
        """What this run has sent and received so far."""
        with self._lock:
            if self._counters is None:
                from compatkit.sources.client import Counters

                self._counters = Counters()
            return self._counters

    @property
    def requests(self) -> int:
        """Requests sent so far."""
        return self._counters.requests if self._counters else 0

    @property
    def bytes(self) -> int:
        """Bytes received so far (of bodies, not of headers)."""
        return self._counters.bytes if self._counters else 0

    def client(self, name: str) -> Client:
        """The HTTP client. Raises `SourceError` if this run is offline; `name` is the source that asked."""
        self.allow(name)
        counters = self.counters
        with self._lock:
            if self._client is None:
                from compatkit.sources.client import Client

                self._client = Client(counters, seconds=self._seconds)
            return self._client

    def allow(self, name: str) -> None:
        """Raises `SourceError` if this run is offline."""
        if self.offline:
            raise trouble(
                "file/offline",
                name,
                "was not read: the run is offline and the header cache does not hold what is needed of it",
                "Run once without --offline, or give a file on this machine.",
            )

    @property
    def cache(self) -> Cache:
        """The header cache (it may be switched off, and is then always empty)."""
        with self._lock:
            if self._cache is None:
                from compatkit.sources.cache import Cache

                self._cache = Cache.default()
            return self._cache

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`work` of every item at once, in threads; results in order. The first error is raised after all are done."""
        return mapped(work, items, WORKERS)

    def close(self) -> None:
        """Closes connections and cache."""
        with self._lock:
            client, cache, self._client, self._cache = self._client, self._cache, None, None
        if client:
            client.close()
        if cache:
            cache.close()

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()


def mapped(work: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """`work` of every item, in order; in threads if there is more than one of both."""
    listed = list(items)
    if workers < 2 or len(listed) < 2:
        return [work(item) for item in listed]
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(min(workers, len(listed)))
    try:
        futures = [pool.submit(work, item) for item in listed]
        return [f.result() for f in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
