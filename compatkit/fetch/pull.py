"""Everything a lock names, onto a disk: room first, then in parallel, each file verified before it is in place."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from msgspec import Struct

from compatkit.fetch.places import Placed
from compatkit.fetch.transfer import fetch, had, present
from compatkit.sources.naming import shown
from compatkit.sources.open import Network
from compatkit.vocabulary import SourceError

WORKERS = 4
#: Kept free beyond the files themselves.
MARGIN = 64 << 20
_STATE = ".compatkit"


class Counts(Struct):
    """What a pull has done so far, for whoever shows it."""

    files: int = 0
    files_done: int = 0
    bytes: int = 0
    bytes_done: int = 0


class Outcome(Struct, frozen=True):
    """How a pull ended: files that were there, files that were brought, a sentence for each that failed."""

    present: Sequence[Placed]
    brought: Sequence[Placed]
    failed: Sequence[str]


def pull(
    files: Sequence[Placed],
    root: str,
    network: Network,
    *,
    force: bool = False,
    show: Callable[[Counts], None] | None = None,
) -> Outcome:
    """Bring every file into place.

    `force` replaces files that are there with other content. `show` is called whenever there is something new to show.

    Raises:
        SourceError: nothing was begun: another pull is at work, there is no room, or a file of another content is
            there.
    """
    from filelock import FileLock, Timeout

    state = os.path.join(root, _STATE)
    try:
        os.makedirs(state, exist_ok=True)
        guard = FileLock(os.path.join(state, "pull.lock"), timeout=0)
        with guard:
            return _pull(files, state, network, force, show or (lambda counts: None))
    except Timeout:
        raise SourceError(f"another pull is at work in {shown(root)}; run this one again when it is done") from None
    except OSError as e:
        raise SourceError(f"{shown(root)} cannot be written: {e.strerror or e}") from None


def _pull(
    files: Sequence[Placed], state: str, network: Network, force: bool, show: Callable[[Counts], None]
) -> Outcome:
    record = os.path.join(state, "verified.json")
    known = _known(record)
    there = [p for p in files if present(p, known)]
    todo = [p for p in files if p not in there]
    blocked = [p for p in todo if os.path.lexists(p.path)]
    if blocked and not force:
        names = ", ".join(shown(p.path) for p in blocked[:3])
        raise SourceError(f"{names}: there already, with other content than is locked; --force replaces it")
    _room(todo)
    counts = Counts(len(files), len(there), sum(p.file.size for p in todo))
    lock, stop = threading.Lock(), threading.Event()

    def progress(added: int) -> None:
        with lock:
            counts.bytes_done += added
            show(counts)

    brought, failed = [], []
    pool = ThreadPoolExecutor(WORKERS)
    try:
        running = {pool.submit(fetch, p, network, progress, stop.is_set): p for p in todo}
        for future in as_completed(running):
            placed = running[future]
            try:
                future.result()
            except SourceError as e:
                failed.append(str(e))
            except OSError as e:
                failed.append(f"{shown(placed.path)} cannot be written: {e.strerror or e}")
            else:
                brought.append(placed)
                _remember(placed, known)
                with lock:
                    counts.files_done += 1
                    show(counts)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        _keep(record, known)
    return Outcome(there, brought, failed)


def _room(todo: Sequence[Placed]) -> None:
    """Refuse before the first byte if a disk cannot hold what is still missing."""
    needs: dict[int, tuple[str, int]] = {}
    for p in todo:
        folder = os.path.dirname(os.path.abspath(p.path))
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        missing = p.file.size - had(p)
        device = os.stat(folder).st_dev
        needs[device] = (folder, needs.get(device, ("", 0))[1] + max(0, missing))
    for folder, missing in needs.values():
        free = shutil.disk_usage(folder).free
        if missing and free < missing + MARGIN:
            raise SourceError(
                f"{shown(folder)} has {free / 1e9:.1f} GB free; {missing / 1e9:.1f} GB are still to be downloaded. "
                "Nothing was begun"
            )


def _known(record: str) -> dict[str, Any]:
    try:
        with open(record, "rb") as f:
            data = json.load(f)
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _remember(placed: Placed, known: dict[str, Any]) -> None:
    info = os.stat(placed.path)
    if placed.file.sha256:
        known[placed.path] = [info.st_size, info.st_mtime_ns, placed.file.sha256]


def _keep(record: str, known: Mapping[str, Any]) -> None:
    try:
        with open(record + ".new", "w", encoding="utf-8") as f:
            json.dump(known, f)
        os.replace(record + ".new", record)
    except OSError:
        pass  # the next pull hashes once more
