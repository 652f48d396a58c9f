"""The scan of one file: every tensor streamed once through `measure`, in the order in which it stands on the disk.

Runs in the worker process; what it finds leaves as events (plain values), so that nothing is lost if it has to end.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from msgspec.structs import asdict

from compatkit.headers.small import read_small
from compatkit.identify.packing import Packings, Unpacked
from compatkit.knowledge.store import Knowledge
from compatkit.smoke.measure import PIECE, Meter, Numbers
from compatkit.smoke.number import FLOATS, decode
from compatkit.smoke.weights import BLOCKS, Weights
from compatkit.sources.network import Network
from compatkit.vocabulary import Header, Tensor

Emit = Callable[[Mapping[str, Any]], None]

#: Of one tensor, so many bytes of the map are held at most before they are let go.
HELD = 64 << 20
#: The disk is asked for so many bytes at a time, one such stretch before they are needed.
AHEAD = 16 << 20
#: Ratios of the largest magnitude to the usual one from which on the value's place is looked up.
_PEAK = 64.0

#: Kinds of tensors that are compared with each other.
_ALIKE = ("float", "blocks", "integer")

_NONE = asdict(Numbers())


def scan(
    source: str, emit: Emit, knowledge: Knowledge, *, only: Sequence[str] = (), network: Network | None = None
) -> None:
    """Measure the tensors of one file (of a whole split model) whose names match one of `only` (none: all).

    Emits `file` (how many tensors and bytes are to come), `tensor` for each (what differs from a `Numbers` that found
    nothing), `bytes` as they pass, `twins` (pairs of equal tensors) at the end, `unread` for what cannot be measured.

    Raises:
        SourceError, HeaderError: the file cannot be read, or not any more.
    """
    with Weights.open(source, network=network) as weights:
        header = weights.header
        packings = Packings(knowledge.table("packings"))
        unpacked = packings.unpack(header, _reader(weights))
        names = [n for n in header.tensors if not only or any(fnmatch.fnmatchcase(n, p) for p in only)]
        names.sort(key=lambda n: (header.tensors[n].shard, header.tensors[n].offset))
        total = sum(header.tensors[n].nbytes for n in names)
        whole = {
            "shards": header.shards,
            "tensors": len(header.tensors),
            "size": header.size,
            "unwritten": _unwritten(header),
        }
        emit({"event": "file", "source": source, "chosen": len(names), "bytes": total, **whole})
        digests: dict[tuple[Any, ...], list[str]] = {}
        for i, name in enumerate(names):
            if i + 1 < len(names):
                weights.ahead(names[i + 1])
            numbers = _one(weights, name, unpacked, emit)
            tensor = header.tensors[name]
            if (
                numbers
                and numbers.kind in ("float", "blocks", "integer")
                and _sides(tensor) > 1
                and not numbers.constant
            ):
                digests.setdefault((tensor.dtype, tensor.shape, numbers.digest), []).append(name)
        emit({"event": "twins", "pairs": _twins(weights, digests.values())})


def _reader(weights: Weights) -> Callable[[Any], dict[str, bytes]]:
    return partial(read_small, weights.header, source=weights.source)


def _one(weights: Weights, name: str, unpacked: Unpacked, emit: Emit) -> Numbers | None:
    tensor = weights.header.tensors[name]
    if why := weights.unplaced(name):
        emit({"event": "unread", "tensor": name, "why": why})
        emit({"event": "bytes", "n": tensor.nbytes})
        return None
    owner = unpacked.companions.get(name)
    meter = Meter(
        tensor.dtype, tensor.shape, tensor.nbytes, tensor.offset, scale=_is_e8m0(name, tensor, owner, unpacked)
    )
    held = done = 0
    for piece in weights.pieces(name, _piece(tensor), meter.align):
        if done // AHEAD != (done + piece.size) // AHEAD:
            weights.ahead(name, (done // AHEAD + 2) * AHEAD, AHEAD)
        done += piece.size
        meter.add(piece)
        held += piece.size
        if held >= HELD:
            weights.release(name)
            held = 0
        emit({"event": "bytes", "n": int(piece.size)})
    numbers = meter.finish()
    if numbers.kind == "none" and tensor.nbytes:
        emit({"event": "unread", "tensor": name, "why": f"{tensor.dtype} is a dtype whose values are not decoded here"})
    row = {k: v for k, v in asdict(numbers).items() if v != _NONE[k]}
    row.pop("digest", None)
    row |= tensor._asdict()
    if owner is not None:
        row["owner"] = owner
    if name in unpacked.beside:
        row["packed"] = True
    if numbers.beyond or numbers.max_abs > _PEAK * numbers.usual > 0:
        row["at"] = _place(weights, name, numbers, meter.align)
    row |= _zero_spans(weights, name, numbers)
    emit({"event": "tensor", "tensor": name, **row})
    weights.release(name)
    return numbers


def _piece(tensor: Tensor) -> int:
    return PIECE << 2 if tensor.dtype in BLOCKS else PIECE


def _is_e8m0(name: str, tensor: Tensor, owner: str | None, unpacked: Unpacked) -> bool:
    """Whether bytes beside a packed weight are powers of two: their packing says which of its scales are."""
    if owner is None or tensor.dtype != "U8":
        return False
    suffix = name[owner.rfind(".") + 1 :]
    entries = unpacked.candidates.get(owner, ())
    return bool(entries) and "F8_E8M0" in (entries[0].get("scale_dtypes") or {}).get(suffix, ())


def _place(weights: Weights, name: str, numbers: Numbers, align: int) -> int:
    """The flat index of the largest finite value (of blocks: of its block), looked for where it was seen."""
    tensor = weights.header.tensors[name]
    if numbers.at < 0 or tensor.dtype not in FLOATS or numbers.beyond:
        return numbers.at
    if not weights.local(name):  # only the piece is known, and it is gone
        return -1
    width = tensor.nbytes // max(1, tensor.elements)
    start = numbers.at * width // PIECE * PIECE
    values = np.abs(decode(weights.raw(name)[start : start + PIECE], tensor.dtype))
    with np.errstate(invalid="ignore"):
        return start // width + int(np.where(np.isfinite(values), values, -1).argmax())


def _zero_spans(weights: Weights, name: str, numbers: Numbers) -> dict[str, Any]:
    """The exact extents, in bytes of the tensor, of runs of zero pages inside other data; the longest first."""
    if not numbers.runs or numbers.constant or not weights.local(name):
        return {"runs": []}
    raw = weights.raw(name)
    spans = []
    for start, end in sorted(numbers.runs, key=lambda r: r[0] - r[1])[:8]:
        before = np.flatnonzero(raw[max(0, start - 4096) : start][::-1])
        after = np.flatnonzero(raw[end : end + 4096])
        first = start - (int(before[0]) if before.size else min(start, 4096))
        last = end + (int(after[0]) if after.size else min(raw.size - end, 4096))
        spans.append([first, last])
    return {"runs": spans}


def _twins(weights: Weights, groups: Any) -> list[tuple[str, str]]:
    """(first, other) of tensors that are equal byte for byte."""
    pairs: list[tuple[str, str]] = []
    for names in groups:
        for other in names[1:]:
            if len(pairs) >= 4096:
                return pairs
            if not weights.local(names[0]) or _equal(weights, names[0], other):
                pairs.append((names[0], other))
    return pairs


def _equal(weights: Weights, one: str, other: str) -> bool:
    a, b = weights.raw(one), weights.raw(other)
    same = all(np.array_equal(a[i : i + PIECE], b[i : i + PIECE]) for i in range(0, a.size, PIECE))
    weights.release(one)
    weights.release(other)
    return same


def _sides(tensor: Tensor) -> int:
    return sum(side > 1 for side in tensor.shape)


def _unwritten(header: Header) -> int:
    """Bytes of local files for which no disk space was ever taken (sparse files); 0 where that cannot be told."""
    total = 0
    for shard in header.shards:
        try:
            info = os.stat(shard)  # noqa: PTH116
        except (OSError, ValueError):
            continue
        total += max(0, info.st_size - getattr(info, "st_blocks", info.st_size) * 512)
    return total
