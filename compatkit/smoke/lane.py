"""Brings weights to a GPU while it computes: read into pinned memory by several threads, copied on a stream of its own.

    file ──(threads, pread)──► pinned slots ──(copy stream)──► ring on the GPU ──► unpacked for one operation

The ring is the only memory that copies go to, so what a run takes of the GPU is bounded whatever the model's size. It
is filled in the order in which the weights will be asked for, which a run on the meta device tells beforehand; a weight
that is asked for out of turn is brought on its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from compatkit.dryrun.plan import Recipe
from compatkit.smoke.fetch import Fetcher, Part

if TYPE_CHECKING:
    import torch

#: Every span starts at a multiple of this in the ring, so that it can be seen as any dtype.
_ALIGN = 512
#: Tensors up to this many bytes stay on the GPU once they are there, up to that many in all.
KEEP, KEPT = 1 << 18, 64 << 20
#: Pinned memory: as many slots of as many bytes: large enough that Python's part in a copy is small beside it.
SLOT, SLOTS = 16 << 20, 16
THREADS = 12


class TooSmall(Exception):
    """The GPU memory allowed does not hold the largest weight; the text says how much does."""


class _Entry(Struct, eq=False):
    """A weight in the ring: where it lies, when it has arrived, and when it was last used."""

    name: str
    start: int
    end: int
    places: list[tuple[int, int]]
    ready: Any = None
    used: Any = None
    given: bool = False


class Traffic(Struct):
    """What was moved: bytes copied from the host, weights that were brought out of turn, seconds spent waiting."""

    bytes: int = 0
    out_of_turn: int = 0
    entries: int = 0
    failed: BaseException | None = field(default=None)


class Lane:
    """Weights for one GPU. Implements `Supply`.

    Args:
        device: a CUDA device.
        ring: bytes of GPU memory that weights pass through; raised to what the two largest weights need where
            `most` allows it.
        most: bytes that the ring may take at most.

    Raises TooSmall where the largest weight is larger than `most`.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        plan: Mapping[str, Recipe],
        dtypes: Mapping[str, torch.dtype],
        device: torch.device,
        ring: int = 768 << 20,
        most: int | None = None,
    ) -> None:
        import torch

        self.device, self.fetcher, self.plan, self.dtypes = device, fetcher, plan, dtypes
        sizes = {name: self._size(name) for name in dtypes if name in plan}
        largest = max(sizes.values(), default=0)
        wanted = max(ring, 2 * largest + _ALIGN)
        if most is not None and wanted > most:
            wanted = max(most, largest + _ALIGN)
            if wanted > most:
                raise TooSmall(f"one weight takes {largest / 1e9:.2f} GB, and {most / 1e9:.2f} GB are left for weights")
        self.traffic = Traffic()
        self.capacity = min(wanted, max(_ALIGN, sum(sizes.values()) + len(sizes) * _ALIGN))
        self._ring = torch.empty(self.capacity, dtype=torch.uint8, device=device)
        self._slots = [torch.empty(SLOT, dtype=torch.uint8, pin_memory=True) for _ in range(SLOTS)]
        self._free: list[Any] = [None] * SLOTS
        self._side = torch.cuda.Stream(device)
        self._kept: dict[str, torch.Tensor] = {}
        self._kept_bytes = 0
        self._files: dict[str, int] = {}
        self._turn = threading.Condition()
        self._live: deque[_Entry] = deque()
        self._arrived: deque[_Entry] = deque()
        self._taken: dict[str, list[_Entry]] = {}
        self._under_way: deque[tuple[Future[None], int, int, int, _Entry | None]] = deque()
        self._coming: dict[str, int] = {}
        self._full = self._stop = False
        self._slot = -1
        self._loader: threading.Thread | None = None
        self._pool: ThreadPoolExecutor | None = None

    def start(self, order: list[str]) -> None:
        """See `Supply.start`."""
        import torch

        self._stop = self._full = False
        todo = [n for n in order if not self._small(n)]
        self._coming = dict(Counter(todo))
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)  # the loader must not wait for the interpreter while kernels are being launched
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        self._pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="read")
        self._loader = threading.Thread(target=self._load, args=(todo,), daemon=True)
        self._loader.start()

    def end(self) -> None:
        """See `Supply.end`. What was brought and not used is dropped."""
        import torch

        with self._turn:
            self._stop = True
            self._turn.notify_all()
        if self._loader is not None:
            self._loader.join()
        if self._pool is not None:
            self._pool.shutdown()
        torch.cuda.synchronize(self.device)
        sys.setswitchinterval(self._switch)
        self._under_way.clear()
        self._live.clear()
        self._arrived.clear()
        self._taken.clear()
        self._loader = self._pool = None

    def close(self) -> None:
        """Give files and pinned memory back."""
        for fd in self._files.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self._files.clear()
        self._slots.clear()
        self._kept.clear()

    def take(self, name: str) -> torch.Tensor:
        """See `Supply.take`."""
        import torch

        kept = self._kept.get(name)
        if kept is not None:
            return kept
        if self._small(name):
            made = self._alone(name)
            self._kept[name] = made
            self._kept_bytes += made.nbytes
            return made
        entry = self._next(name)
        if entry is None:
            self.traffic.out_of_turn += 1
            return self._alone(name)
        torch.cuda.current_stream(self.device).wait_event(entry.ready)
        self._taken.setdefault(name, []).append(entry)
        recipe, dtype = self.plan[name], self.dtypes[name]
        parts = self.fetcher.parts(recipe)
        pieces = iter([self._ring[a:b] for a, b in entry.places])
        brought = [[next(pieces) for _ in part.coding.spans] for part in parts]
        if self.fetcher.direct(recipe, dtype):
            return brought[0][0].view(dtype).view(recipe.shape)
        out = torch.empty(recipe.shape, dtype=dtype, device=self.device)
        turn = iter(brought)
        self.fetcher.fill(parts, out, lambda _: next(turn))
        return out

    def give(self, name: str) -> None:
        """See `Supply.give`."""
        import torch

        entries = self._taken.get(name)
        if not entries:
            return
        entry = entries.pop()
        entry.used = torch.cuda.Event()
        entry.used.record(torch.cuda.current_stream(self.device))
        with self._turn:
            entry.given = True
            self._turn.notify_all()

    def _size(self, name: str) -> int:
        return sum(-(-s.length // _ALIGN) * _ALIGN for p in self._parts(name) for s in p.coding.spans)

    def _parts(self, name: str) -> tuple[Part, ...]:
        return self.fetcher.parts(self.plan[name])

    def _small(self, name: str) -> bool:
        return self._size(name) <= KEEP and (name in self._kept or self._kept_bytes < KEPT)

    def _alone(self, name: str) -> torch.Tensor:
        """A weight brought by itself, while the GPU waits."""
        recipe = self.plan[name]
        self.traffic.bytes += self.fetcher.size(recipe)
        return self.fetcher.tensor(recipe, self.dtypes[name]).to(self.device)

    def _next(self, name: str) -> _Entry | None:
        """The entry of that name once it has arrived; None if it is not to come in this turn."""
        with self._turn:
            while True:
                for at, entry in enumerate(self._arrived):
                    if entry.name == name:
                        for _ in range(at + 1):  # those before it were passed by: the order was another one
                            passed = self._arrived.popleft()
                            passed.given = passed is not entry
                        self._turn.notify_all()
                        return entry
                if self.traffic.failed is not None:
                    raise self.traffic.failed
                if name not in self._coming:
                    return None
                if self._full and self._arrived:  # full of weights nobody asks for
                    self._arrived.popleft().given = True
                    self._turn.notify_all()
                else:
                    self._turn.wait(0.5)

    def _load(self, todo: list[str]) -> None:
        """The loader's thread: brings every weight in order, as the ring has room."""
        try:
            for name in todo:
                if not self._bring(name):
                    return
            while self._under_way:
                self._issue()
        except BaseException as e:
            self.traffic.failed = e
        finally:
            with self._turn:
                self._coming = {}
                self._turn.notify_all()

    def _room(self, size: int) -> int | None:
        """Where `size` bytes of the ring are free for the copy stream; None when stopped."""
        while not self._stop:
            used: list[Any] = []
            with self._turn:
                while self._live and self._live[0].given:
                    used.append(self._live.popleft().used)
                at = self._fits(size)
                self._full = at is None and not self._under_way
                if self._full:
                    self._turn.notify_all()
                    self._turn.wait(0.5)
            for event in used:  # what was there may still be in use: the copy waits on the GPU, not here
                if event is not None:
                    self._side.wait_event(event)
            if at is not None:
                return at
            if self._under_way:
                self._issue()
        return None

    def _fits(self, size: int) -> int | None:
        if not self._live:
            return 0
        tail, head = self._live[0].start, self._live[-1].end
        if self._live[-1].start >= tail:  # not wrapped around
            if head + size <= self.capacity:
                return head
            return 0 if size <= tail else None
        return head if head + size <= tail else None

    def _bring(self, name: str) -> bool:
        """Have a weight read, and issue copies of what has been read before it."""
        assert self._pool is not None
        at = self._room(self._size(name))
        if at is None:
            return False
        entry = _Entry(name, at, at, [])
        chunks: list[tuple[str, int, int, int]] = []  # tensor, offset in it, place in the ring, length
        for part in self._parts(name):
            for span in part.coding.spans:
                entry.places.append((at, at + span.length))
                for i in range(0, span.length, SLOT):
                    chunks.append((span.tensor, span.offset + i, at + i, min(SLOT, span.length - i)))
                at += -(-span.length // _ALIGN) * _ALIGN
        entry.end = at
        with self._turn:
            self._live.append(entry)
        for number, (tensor, offset, place, length) in enumerate(chunks, 1):
            while len(self._under_way) >= SLOTS - 2:
                self._issue()
            self._slot = (self._slot + 1) % SLOTS
            read = self._pool.submit(self._read, self._slot, tensor, offset, length)
            last = entry if number == len(chunks) else None
            self._under_way.append((read, self._slot, place, length, last))
        return not self._stop

    def _issue(self) -> None:
        """Copy the oldest chunk that was read; with its last one a weight has arrived."""
        import torch

        read, slot, at, length, entry = self._under_way.popleft()
        read.result()
        with torch.cuda.stream(self._side):
            self._ring[at : at + length].copy_(self._slots[slot][:length], non_blocking=True)
        event = torch.cuda.Event()
        event.record(self._side)
        self._free[slot] = event
        self.traffic.bytes += length
        if entry is not None:
            entry.ready = event
            self.traffic.entries += 1
            with self._turn:
                self._arrived.append(entry)
                left = self._coming.get(entry.name, 0) - 1
                self._coming.pop(entry.name, None) if left <= 0 else self._coming.update({entry.name: left})
                self._turn.notify_all()

    def _read(self, slot: int, tensor: str, offset: int, length: int) -> None:
        """Fill a slot once its last copy is done; runs in the pool."""
        event = self._free[slot]
        if event is not None:
            event.synchronize()
        into = memoryview(self._slots[slot].numpy())[:length]
        weights = self.fetcher.weights
        if not weights.local(tensor) or not hasattr(os, "preadv"):
            self._slots[slot].numpy()[:length] = weights.raw(tensor)[offset : offset + length]
            return
        path = weights.place(tensor)
        at, done = weights.header.tensors[tensor].offset + offset, 0
        fd = self._fd(path)
        while done < length:
            got = os.preadv(fd, [into[done:]], at + done)
            if not got:
                raise OSError(f"{path} became shorter while it was read")
            done += got

    def _fd(self, path: str) -> int:
        with self._turn:
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return self._files[path]


def ceiling(device: torch.device, nbytes: int = 1 << 30, repeats: int = 5) -> float:
    """Bytes a second that one copy from pinned memory to the GPU reaches: the best of some, timed by the GPU."""
    import torch

    here = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(nbytes, dtype=torch.uint8, device=device)
    best = 0.0
    for _ in range(repeats + 1):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        there.copy_(here, non_blocking=True)
        last.record()
        last.synchronize()
        best = max(best, nbytes / (first.elapsed_time(last) / 1000))
    return best
