"""From a scan's rows to what the rules look at: every tensor beside its peers, every model as a whole."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compatkit.sources.naming import base_name
from compatkit.vocabulary import Component, Tensor

Row = Mapping[str, Any]

_PAGE = 4096
_MOST = 1e9  # ratios above are no more telling, and must fit where rules make whole numbers of them
_SLACK = 16  # zero bytes that data may well begin or end with
_NUMBER = re.compile(r"(?<![^._/])\d+(?![^._/])")


def size(n: float) -> str:
    """12309866400 -> 12.3 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def number(value: float) -> str:
    """A value as a sentence shows it: 0.0312, 1657, 1.5e+05."""
    return f"{value:.4g}"


class Measured:
    """The rows of one component's tensors, and what they say together."""

    def __init__(
        self, component: Component, rows: Mapping[str, Row], files: Mapping[str, str], unwritten: int = 0
    ) -> None:
        """`rows`: tensor -> its row; `files`: tensor -> the file that holds it."""
        self.component = component
        self.rows = {n: r for n, r in rows.items() if n in component.tensors}
        self.files = files
        self.unwritten = unwritten
        self._peers = _peers(self.rows, component.tensors)

    def tensors(self) -> Iterator[dict[str, Any]]:
        """The fields of `subjects.MEASURED` for each tensor."""
        for name, row in self.rows.items():
            yield self._tensor(name, row, self.component.tensors[name])

    def _tensor(self, name: str, row: Row, tensor: Tensor) -> dict[str, Any]:
        kind = row.get("kind", "none")
        dims = _dims(tensor, row)
        largest, usual = float(row.get("max_abs", 0.0)), float(row.get("usual", 0.0))
        peers = self._peers.get(_key(name, tensor), ())
        peer_max = statistics.median(peers) if len(peers) > 1 else 0.0
        constant = bool(row.get("constant")) and tensor.elements > 1
        loose, share = _loose_blocks(row, tensor)
        hole, hole_at = _hole(row, tensor) if kind != "integer" or row.get("packed") else (0, 0)
        # codes of several weights in a word, or with a zero point of their own, are no values yet
        code = bool(row.get("packed")) and kind != "blocks"
        factor = self._scale_of(name) if code and (kind == "float" or tensor.dtype == "I8") else 0.0 if code else 1.0
        return {
            "name": name,
            "module": name.rpartition(".")[0] or name,
            "file": base_name(self.files.get(name, self.component.source)),
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "values": tensor.elements,
            "elements": f"{tensor.elements:,}",
            "dims": dims,
            "kind": kind,
            "owner": row.get("owner"),
            "packed": bool(row.get("packed")),
            "nan": row.get("nan", 0),
            "inf": row.get("inf", 0),
            "nan_words": f"{row.get('nan', 0):,}",
            "inf_words": f"{row.get('inf', 0):,}",
            "bad_at": where(row.get("first", -1), tensor, kind),
            "max_abs": largest,
            "max_words": number(largest),
            "max_at": where(row.get("at", -1), tensor, kind) if row.get("beyond") or largest > 64 * usual > 0 else "",
            "scaled_max": largest * factor,
            "beyond": row.get("beyond", 0),
            "lowest": row.get("lowest"),
            "rms": float(row.get("rms", 0.0)),
            "peak": min(largest / usual, _MOST) if usual else 0.0,
            "peers": max(0, len(peers) - 1),
            "peer_max": peer_max,
            "peer_ratio": min(largest / peer_max, _MOST) if peer_max else 1.0,
            "zero": constant and row.get("value") == 0,
            "constant": constant,
            "value": row.get("value") if constant else None,
            "zeros": row.get("zeros", 0.0),
            "denormals": row.get("denormals", 0.0),
            "blocks": row.get("blocks", 0),
            "zero_blocks": loose,
            "zero_block_share": share,
            "hole": hole,
            "hole_at": f"{hole_at:,}",
        }

    def _scale_of(self, name: str) -> float:
        """The largest of the scales beside a packed weight, where there is one for the tensor or for each row."""
        rows = self.component.tensors[name].shape[:1]
        found = [
            float(row.get("max_abs", 0.0))
            for other, row in self.rows.items()
            if row.get("owner") == name
            and "scale" in other.rpartition(".")[2]
            and "input" not in other.rpartition(".")[2]
            and (self.component.tensors[other].elements == 1 or self.component.tensors[other].shape[:1] == rows)
        ]
        return math.prod(found) if found else 1.0

    def whole(self, twins: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """The fields of `subjects.WEIGHTS`. `twins` are pairs of equal tensors of the file."""
        matrices = [n for n, r in self.rows.items() if r.get("kind") != "integer" and _dims(self._t(n), r) > 1]
        zero = [n for n in matrices if self.rows[n].get("constant") and self.rows[n].get("value") == 0]
        blocks, single = _same(self.component.tensors, [p for p in twins if p[0] in self.rows and p[1] in self.rows])
        return {
            "tensors": len(self.rows),
            "matrices": len(matrices),
            "zero_matrices": len(zero),
            "all_zero": len(matrices) > 1 and len(zero) == len(matrices),
            "unwritten": self.unwritten,
            "unwritten_words": size(self.unwritten),
            "size_words": size(sum(self._t(n).nbytes for n in self.rows)),
            "same_blocks": blocks,
            "same_tensors": single,
        }

    def _t(self, name: str) -> Tensor:
        return self.component.tensors[name]

    def typical(self) -> float | None:
        """The median root mean square of the matrices, None if none was measured."""
        found = [float(r["rms"]) for n, r in self.rows.items() if r.get("rms") and _dims(self._t(n), r) > 1]
        return statistics.median(found) if found else None


def where(index: int, tensor: Tensor, kind: str) -> str:
    """Where the value with that flat index stands: `[3, 17]`, `block 12 of row 4`; empty if it is not known."""
    if index < 0:
        return ""
    if kind == "blocks":
        rows = math.prod(tensor.shape[:-1]) if len(tensor.shape) > 1 else 1
        size_of = _block_bytes(tensor.dtype)
        per_row = tensor.nbytes // size_of // max(1, rows) if size_of else 0
        return f"block {index % per_row:,} of row {index // per_row:,}" if per_row else f"block {index:,}"
    index //= 2 if tensor.dtype == "C64" else 1  # a complex number is two of those that were looked at
    out = []
    for side in reversed(tensor.shape):
        index, at = divmod(index, max(1, side))
        out.append(at)
    return f"[{', '.join(map(str, reversed(out)))}]" if out else "its one value"


def _block_bytes(dtype: str) -> int:
    from compatkit.headers.ggml import TYPES

    return next((bytes_ for name, _, bytes_ in TYPES.values() if name == dtype), 0)


def _dims(tensor: Tensor, row: Row) -> int:
    sides = sum(side > 1 for side in tensor.shape)
    return max(sides, 2) if row.get("packed") and tensor.elements > 1 else sides


def _key(name: str, tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return _NUMBER.sub("#", name), tensor.shape


def _peers(rows: Mapping[str, Row], tensors: Mapping[str, Tensor]) -> dict[tuple[str, tuple[int, ...]], list[float]]:
    out: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    for name, row in rows.items():
        out.setdefault(_key(name, tensors[name]), []).append(float(row.get("max_abs", 0.0)))
    return out


def _loose_blocks(row: Row, tensor: Tensor) -> tuple[int, float]:
    """Zero blocks outside rows that are zero as a whole, and their share of all blocks."""
    blocks = int(row.get("blocks", 0))
    if not blocks or row.get("constant"):
        return 0, 0.0
    rows = math.prod(tensor.shape[:-1]) if len(tensor.shape) > 1 else 1
    loose = int(row.get("zero_blocks", 0)) - int(row.get("zero_rows", 0)) * (blocks // max(1, rows))
    return max(0, loose), max(0, loose) / blocks


def _hole(row: Row, tensor: Tensor) -> tuple[int, int]:
    """Bytes of the longest run of zeros that begins and ends where pages of the file do, and where it starts there.

    A run of whole rows is no hole: embeddings have rows that were never used.
    """
    rows = math.prod(tensor.shape[:-1]) if len(tensor.shape) > 1 else 1
    width = tensor.nbytes // max(1, rows)
    for first, last in row.get("runs") or ():
        begin, end = tensor.offset + first, tensor.offset + last
        if width and not first % width and not last % width:
            continue
        starts = first == 0 or -begin % _PAGE <= _SLACK
        ends = last == tensor.nbytes or end % _PAGE <= _SLACK
        if starts and ends and last - first >= _PAGE:
            return last - first, begin
    return 0, 0


def _same(tensors: Mapping[str, Tensor], twins: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Blocks all of whose matrices equal those of another, and single tensors that do."""
    shared: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for one, other in twins:
        found = _block_pair(one, other)
        if found:
            shared.setdefault(found, []).append((one, other))
    blocks, single = [], []
    for (a, b), pairs in shared.items():
        matrices = [n for n, t in tensors.items() if n.startswith(f"{a}.") and sum(s > 1 for s in t.shape) > 1]
        if len(pairs) > 1 and len(pairs) >= len(matrices):
            blocks.append(f"{b} = {a}")
        else:
            single += [f"{other} = {one}" for one, other in pairs if one.endswith("weight")]
    return blocks, single


def _block_pair(one: str, other: str) -> tuple[str, str] | None:
    """The blocks that two tensors belong to, where their names differ in exactly one number."""
    a, b = one.split("."), other.split(".")
    if len(a) != len(b):
        return None
    differ = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if len(differ) != 1 or not (a[differ[0]].isdigit() and b[differ[0]].isdigit()):
        return None
    upto = differ[0] + 1
    return ".".join(a[:upto]), ".".join(b[:upto])
