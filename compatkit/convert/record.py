"""The provenance of a converted file, kept in its metadata: what it was made from, and what the way back needs.

Names say most of it; what they do not say (endings, alphas, the ranks of parts that became one) stands in a table whose
most common row is written once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct, field

KEY = "compatkit_convert"
_VERSION = 1


class Row(Struct, frozen=True):
    """What one module of a pair of matrices had: its alpha (None: no tensor), rank, and whether its scale went into the
    matrix `up`, which was of `dtype`."""

    alpha: float | None
    alpha_dtype: str | None
    alpha_shape: tuple[int, ...]
    rank: int
    dtype: str
    folded: bool

    def as_list(self) -> list[Any]:
        """For JSON."""
        return [self.alpha, self.alpha_dtype, list(self.alpha_shape), self.rank, self.dtype, self.folded]


class Record(Struct):
    """All of it. `style` is what the file was written in, `layout` the layout its names were of."""

    style: str
    layout: str
    prefix: str
    pair: dict[str, str] = field(default_factory=dict)
    magnitude: str = ""
    rows: dict[str, Row] = field(default_factory=dict)
    common: Row | None = None
    absent: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def row(self, module: str) -> Row | None:
        """What is known of a module of the original."""
        return self.rows.get(module, self.common)


def dump(record: Record, tool: str, base: str, to: str, source: str) -> str:
    """The text for the metadata."""
    counted = Counter(json.dumps(r.as_list()) for r in record.rows.values())
    common = counted.most_common(1)[0][0] if counted else None
    odd: dict[str, list[str]] = {}
    for module, row in record.rows.items():
        text = json.dumps(row.as_list())
        if text != common:
            odd.setdefault(text, []).append(module)
    found = {
        "version": _VERSION,
        "tool": tool,
        "source": source,
        "base": base,
        "to": to,
        "from": {
            "style": record.style,
            "layout": record.layout,
            "prefix": record.prefix,
            "pair": record.pair,
            "magnitude": record.magnitude,
            "row": json.loads(common) if common else None,
            "rows": [[json.loads(text), modules] for text, modules in odd.items()],
            "absent": sorted(record.absent),
            "renamed": record.renamed,
            "metadata": record.metadata,
        },
    }
    return json.dumps(found, separators=(",", ":"), ensure_ascii=True)


def load(metadata: Mapping[str, Any]) -> Record | None:
    """The record in a file's metadata; None if there is none, or one that is not understood."""
    text = metadata.get(KEY)
    if not isinstance(text, str):
        return None
    try:
        found = json.loads(text)
        if found["version"] != _VERSION:
            return None
        own = found["from"]
        rows = {str(m): _row(row) for row, modules in own["rows"] for m in modules}
        return Record(
            str(own["style"]),
            str(own["layout"]),
            str(own["prefix"]),
            _texts(own["pair"]),
            str(own["magnitude"]),
            rows,
            _row(own["row"]) if own["row"] else None,
            set(map(str, own["absent"])),
            _texts(own["renamed"]),
            _texts(own["metadata"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None


def base(metadata: Mapping[str, Any]) -> str | None:
    """The family that a converted file says it is for."""
    text = metadata.get(KEY)
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    told = found.get("base") if isinstance(found, dict) else None
    return told if isinstance(told, str) else None


def _row(entry: Iterable[Any]) -> Row:
    alpha, dtype, shape, rank, kind, folded = entry
    if not isinstance(rank, int) or not isinstance(kind, str) or not isinstance(dtype, str | None):
        raise TypeError
    return Row(None if alpha is None else float(alpha), dtype, tuple(int(s) for s in shape), rank, kind, bool(folded))


def _texts(entry: Mapping[Any, Any]) -> dict[str, str]:
    return {str(k): str(v) for k, v in entry.items()}
