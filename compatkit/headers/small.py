"""The bytes of tensors so small that they are part of the header in spirit: a few words of JSON that name a packing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from compatkit.sources.local import LocalSource
from compatkit.sources.naming import base_name, shown
from compatkit.vocabulary import Header, SourceError, Tensor

if TYPE_CHECKING:
    from compatkit.sources import Source

#: Tensors of more bytes than this are weights; they are never read here.
MAX_BYTES = 1 << 14
#: So many bytes at most are read in all, whatever the header lists.
MAX_TOTAL = 1 << 22

# Two tensors closer than this are had in one read: a request costs more than the bytes between.
_GAP = 1 << 16


def read_small(header: Header, names: Iterable[str], source: Source | None = None) -> dict[str, bytes]:
    """The raw bytes of those tensors of `header` that are at most `MAX_BYTES` long, by name.

    `source` is the open source that `header` came from; without it the local files in `header.shards` are opened. A
    tensor whose bytes are all zero is left out: it may be a hole in the file, and decides nothing. So is an unknown or
    a larger one. Neighbours are read together.

    Raises `SourceError` if a shard is gone since, `HeaderError` (`file/unreadable`) if it shrank.
    """
    found: dict[str, bytes] = {}
    left = MAX_TOTAL
    for run in small_runs(header, names):
        first, last = run[0][1], run[-1][1]
        length = last.offset + last.nbytes - first.offset
        left -= length
        if left < 0:
            break
        raw = _read(header, first.shard, first.offset, length, source)
        for name, t in run:
            piece = raw[t.offset - first.offset :][: t.nbytes]
            if piece.strip(b"\0"):
                found[name] = piece
    return found


def small_runs(header: Header, names: Iterable[str]) -> list[list[tuple[str, Tensor]]]:
    """Those of the tensors that `read_small` reads, in the groups that it reads at once."""
    wanted = [(n, t) for n in names if (t := header.tensors.get(n)) is not None and _is_small(t)]
    wanted.sort(key=lambda item: (item[1].shard, item[1].offset))
    runs: list[list[tuple[str, Tensor]]] = []
    at = 0
    while at < len(wanted):
        runs.append(_run(wanted, at))
        at += len(runs[-1])
    return runs


def _is_small(t: Tensor) -> bool:
    return 0 < t.nbytes <= MAX_BYTES and t.offset > 0  # at 0 stands a header: the tensor's place is not known


def _run(wanted: list[tuple[str, Tensor]], at: int) -> list[tuple[str, Tensor]]:
    """Number `at` of `wanted` and all that follow it closely in the same shard."""
    run = [wanted[at]]
    for number in range(at + 1, len(wanted)):
        before, t = run[-1][1], wanted[number][1]
        if t.shard != before.shard or t.offset - before.offset - before.nbytes > _GAP:
            break
        run.append(wanted[number])
    return run


def _read(header: Header, shard: int, offset: int, length: int, source: Source | None) -> bytes:
    name = header.shards[shard]
    if source is None:
        with LocalSource(name) as opened:
            return opened.read(offset, length)
    if name == source.name:
        return source.read(offset, length)
    beside = source.sibling(base_name(name.replace("\\", "/")))
    if beside is None:
        raise SourceError(f"{shown(name)} does not exist any more")
    with beside:
        return beside.read(offset, length)
