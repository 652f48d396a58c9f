"""The schema of `rules/packings.yaml`: how quantised and packed files spell their tensors.

id, title
has          suffixes that must stand beside the weight (or be what it is called)
has_any      of these, at least one
dtypes       the weight's dtype is one of these; an entry with dtypes alone is told by them
scale_dtypes suffix -> dtypes it may have
scales       "rows": its weight_scale is a plain list, one for each row
top_level    tensors that stand alone in the file, one of which must be there
metadata     keys that the file's metadata must have
formats      what a marker calls it ("" a marker that names none, "*" any other)
companions   tensors beside a weight; `beside`: only beside a weight of these dtypes
weight       what the packed weight is called (default: weight)
covers       weights below the module vanish into the companions; `count`: the one with an element for each of them
pack         values in one element of the weight, or dtype -> values
flat         no side of the stored weight is the model's (true, or the dtypes where that is so)
minor        it stands beside another scheme and makes no mix of it
loaders      runtime -> {since: which version, null where that is not known, note}; {known: false}: not known at all
effect       what a loader does that does not know it; predicts: its error text, by runtime; fix: what to do
"""

from __future__ import annotations

from typing import Any

from compatkit.knowledge.yamlfile import RuleFile, nearest

_KEYS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "title": str,
    "has": list,
    "has_any": list,
    "dtypes": list,
    "scale_dtypes": dict,
    "scales": str,
    "top_level": list,
    "metadata": list,
    "formats": list,
    "companions": list,
    "beside": list,
    "weight": str,
    "covers": bool,
    "count": str,
    "pack": (int, dict),
    "flat": (bool, list),
    "minor": bool,
    "loaders": dict,
    "effect": str,
    "predicts": dict,
    "fix": str,
    "note": str,
    "sources": list,
}
_LOADER_KEYS = ("since", "note", "known")


def parse_packings(file: RuleFile) -> list[dict[str, Any]]:
    """The entries in order. Raises RuleFileError at what is wrong."""
    if not isinstance(file.data, list):
        raise file.error((), "a list of packings")
    for i, entry in enumerate(file.data):
        if not isinstance(entry, dict):
            raise file.error((i,), "a packing is a mapping")
        for key, value in entry.items():
            if key not in _KEYS:
                raise file.error((i, key), f"unknown key {key!r}{nearest(str(key), _KEYS)}")
            if not isinstance(value, _KEYS[key]):
                raise file.error((i, key), f"{key} has the wrong type: {type(value).__name__}")
        if any(entry.get("id") == other.get("id") for other in file.data[:i]):
            raise file.error((i, "id"), f"{entry['id']!r} is there twice")
        if "id" not in entry:
            raise file.error((i,), "id is missing")
        if not any(entry.get(k) for k in ("has", "has_any", "dtypes", "formats")):
            raise file.error((i,), f"nothing tells {entry['id']!r}: has, has_any, dtypes or formats")
        for runtime, loader in (entry.get("loaders") or {}).items():
            for key in loader if isinstance(loader, dict) else ("",):
                if key not in _LOADER_KEYS:
                    hint = nearest(str(key), _LOADER_KEYS)
                    raise file.error((i, "loaders", runtime), f"{runtime}: {{since, note, known}}{hint}")
    return list(file.data)
