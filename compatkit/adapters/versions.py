"""A runtime's file of `rules/adapters/` as it holds for one version: what was taken up later is left out.

Anything in the file may say `since`: a form of names, a conversion, an encoder's form. A mapping there says it for some
of a form's prefixes (prefix -> version). `reads_since` says it for algorithms and endings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Has = Callable[[str], bool]


def as_of(table: Mapping[str, Any], has: Has) -> dict[str, Any]:
    """The table without what a runtime does not have yet; `has(version)` says whether it is that version or later."""
    out = dict(table)
    for key in ("forms", "conversions"):
        if key in table:
            out[key] = kept(table[key], has)
    for key in ("classes", "encoders"):
        if key in table:
            out[key] = [{**e, "forms": kept(e["forms"], has)} if "forms" in e else e for e in table[key]]
    later = {k for k, version in (table.get("reads_since") or {}).items() if not has(str(version))}
    if later:
        out["reads"] = {
            name: endings if endings == "all" else [e for e in endings if e not in later]
            for name, endings in table["reads"].items()
            if name not in later
        }
    return out


def versions(table: Mapping[str, Any]) -> set[str]:
    """Every version that took something up."""
    entries = [*(table.get("forms") or ()), *(table.get("conversions") or ())]
    entries += [f for key in ("classes", "encoders") for e in table.get(key) or () for f in e.get("forms") or ()]
    return {v for entry in entries for v in _said(entry)} | {str(v) for v in (table.get("reads_since") or {}).values()}


def _said(entry: Mapping[str, Any]) -> Iterator[str]:
    since = entry.get("since")
    yield from map(str, since.values() if isinstance(since, Mapping) else [since] if since else ())


def kept(entries: Iterable[Mapping[str, Any]], has: Has) -> list[Mapping[str, Any]]:
    """Those of the entries, with those of their prefixes, that were there."""
    out: list[Mapping[str, Any]] = []
    for entry in entries:
        since = entry.get("since")
        if isinstance(since, Mapping):
            prefixes = [p for p in entry["prefixes"] if p not in since or has(str(since[p]))]
            if prefixes:
                out.append({**entry, "prefixes": prefixes})
        elif not since or has(str(since)):
            out.append(entry)
    return out
