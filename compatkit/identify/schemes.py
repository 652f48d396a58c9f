"""Which packing a weight is in: told by the tensors beside it, its dtype, and what a marker says where it can be read.

A marker is a tensor `<module>.comfy_quant` that holds a few words of JSON, or an entry of the same JSON for that module
in the file's metadata. Markers of one length beside weights of one kind say the same in practice, so three of each kind
are read; only where those disagree are all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

#: Reads small tensors by name; what cannot be read, or holds nothing but zeros, is left out.
Reader = Callable[[Iterable[str]], Mapping[str, bytes]]

MARKER = "comfy_quant"
SCALE = "weight_scale"
MARKER_METADATA = "_quantization_metadata"
_SHOWN = 40


class Signs(NamedTuple):
    """What shows how a weight is packed: dtype, (suffix, dtype) of the tensors beside it, what it is called.

    `rows`: its scales are a plain list, one for each row. `format` is what a marker calls it: None where no marker was
    read, and "" for one that names none.
    """

    dtype: str
    beside: tuple[tuple[str, str], ...]
    name: str = "weight"
    rows: bool = False
    format: str | None = None


class Schemes:
    """The entries of `rules/packings.yaml`, asked for one weight at a time. Holds for one file."""

    def __init__(self, entries: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any], top: set[str]) -> None:
        self.entries = entries
        self._metadata = metadata
        self._top = top
        self._known: dict[Signs, tuple[Mapping[str, Any], ...]] = {}

    def of(self, signs: Signs) -> tuple[Mapping[str, Any], ...]:
        """The entry these signs mean; several where only the weight's true shape can tell, none where nothing fits."""
        found = self._known.get(signs)
        if found is None:
            found = self._known[signs] = self._candidates(signs)
        return found

    def _candidates(self, signs: Signs) -> tuple[Mapping[str, Any], ...]:
        here = [e for e in self.entries if all(k in self._metadata for k in e.get("metadata", ()))]
        if signs.format is not None:
            named = [e for e in here if signs.format in e.get("formats", ()) and self._beside(e, signs)]
            return tuple(named[:1] or [e for e in here if "*" in e.get("formats", ())][:1])
        fitting = [e for e in here if self._fits(e, signs)]
        return tuple(e for e in fitting if _marks(e) == _marks(fitting[0]))

    def _fits(self, entry: Mapping[str, Any], signs: Signs) -> bool:
        suffixes = dict(signs.beside)
        some = entry.get("has_any", ())
        if not (entry.get("has") or some) or entry.get("weight", "weight") != signs.name:
            return False
        if entry.get("scales") == "rows" and not signs.rows:
            return False
        return (
            all(m in suffixes for m in entry.get("has", ()))
            and (not some or any(m in suffixes for m in some))
            and (not entry.get("dtypes") or signs.dtype in entry["dtypes"])
            and all(suffixes.get(s) in wanted for s, wanted in (entry.get("scale_dtypes") or {}).items())
            and (not entry.get("top_level") or not self._top.isdisjoint(entry["top_level"]))
        )

    @staticmethod
    def _beside(entry: Mapping[str, Any], signs: Signs) -> bool:
        """Whether a named format may be this entry: one that lives through metadata has no marker tensors."""
        return not entry.get("metadata") or MARKER not in dict(signs.beside)

    def plain(self, dtypes: Iterable[str]) -> Mapping[str, Any]:
        """The entry that is told by the weights' dtype alone; empty for ordinary weights."""
        there = set(dtypes)
        alone = (e for e in self.entries if not any(e.get(k) for k in ("has", "has_any", "formats", "weight")))
        return next((e for e in alone if there.intersection(e["dtypes"])), {})


def _marks(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(k) for k in ("has", "has_any", "dtypes", "scale_dtypes", "scales", "metadata"))


def pack(entry: Mapping[str, Any], dtype: str) -> int:
    """How many values one element of the stored weight holds; 0 where that is not fixed."""
    values = entry.get("pack", 0)
    return int(values.get(dtype, 0) if isinstance(values, Mapping) else values)


def flat(entry: Mapping[str, Any], dtype: str) -> bool:
    """Whether neither side of the stored weight is a side of the model's."""
    values = entry.get("flat", False)
    return dtype in values if isinstance(values, list) else bool(values)


def suits(entry: Mapping[str, Any], dtype: str, stored: int, elements: int) -> bool:
    """Whether so many stored elements can be a weight of so many values."""
    values = pack(entry, dtype)
    return not values or 0 <= stored * values - elements < values


class Marker(NamedTuple):
    """What one marker says: the format's name ("" if it names none), and remarks a reader may want."""

    format: str
    notes: tuple[str, ...] = ()


def parse_marker(raw: Any) -> Marker | None:
    """A marker's JSON, as bytes or already parsed; None for what is not one."""
    if isinstance(raw, bytes):
        try:
            raw = json.loads(raw.rstrip(b"\0"))
        except (ValueError, RecursionError):
            return None
    if not isinstance(raw, Mapping):
        return None
    name = raw.get("format")
    inner = raw.get("params")
    params = {**(inner if isinstance(inner, Mapping) else {}), **raw}
    notes = []
    size = params.get("convrot_groupsize")
    if params.get("convrot") or isinstance(size, int):
        notes.append(f"rotated (ConvRot), groups of {size}" if isinstance(size, int) else "rotated (ConvRot)")
    if params.get("full_precision_matrix_mult"):
        notes.append("multiplied in full precision")
    return Marker(_clean(name) if isinstance(name, str) else "", tuple(notes))


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:_SHOWN])


def metadata_markers(metadata: Mapping[str, Any]) -> dict[str, Marker]:
    """Module -> what the file's metadata say of it."""
    text = metadata.get(MARKER_METADATA)
    if not isinstance(text, str):
        return {}
    try:
        layers = json.loads(text)["layers"]
        rows = {str(k): parse_marker(v) for k, v in layers.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}
    return {k: v for k, v in rows.items() if v is not None}


def read_markers(kinds: Mapping[Any, Sequence[str]], read: Reader) -> tuple[dict[str, Marker], dict[str, int]]:
    """Marker tensor -> what it says, for all of each kind, and the bytes of those that were read.

    Three of a kind stand for it, if they agree.
    """
    samples = {k: list(dict.fromkeys((names[0], names[len(names) // 2], names[-1]))) for k, names in kinds.items()}
    raw = dict(read([n for names in samples.values() for n in names]))
    said: dict[str, Marker] = {}
    differ: list[str] = []
    for kind, names in kinds.items():
        heard = {m for n in samples[kind] if n in raw and (m := parse_marker(raw[n])) is not None}
        if len(heard) == 1:
            said.update(dict.fromkeys(names, heard.pop()))
        elif heard:
            differ += names
    if differ:
        more = read([n for n in differ if n not in raw])
        raw.update(more)
        said.update({n: m for n in differ if n in raw and (m := parse_marker(raw[n])) is not None})
    return said, {n: len(b) for n, b in raw.items()}
