"""The way a runtime takes with a file where its loader looks at the names first: what it reads, what makes it stop.

A class of bases may list `routes` in the runtime's file of `rules/adapters/`. The first whose `when` holds for the file
is taken; what it says (`forms`, `reads`, `companions`, `drops`, `stops`, …) takes the place of what is said for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from compatkit.adapters.base import Base


class Stop(NamedTuple):
    """Why a loader refuses the whole file: its error with the first key it stumbles over."""

    error: str
    key: str


def knows(table: Mapping[str, Any], base: Base) -> bool:
    """Whether the runtime's file says how adapters for this base are read."""
    cls = base.runtime_class(str(table["runtime"]))
    return bool(cls) and (not table.get("routed") or cls in table["routed"])


def routed(table: Mapping[str, Any], base: Base, names: Iterable[str]) -> Mapping[str, Any]:
    """The table as it holds for a file with these names on this base."""
    cls = base.runtime_class(str(table["runtime"]))
    entry = next((e for e in table.get("classes") or () if cls in e.get("classes", ()) and "routes" in e), None)
    every = list(names)
    for route in [*((entry or {}).get("routes") or ()), *(table.get("routes") or ())]:
        if "families" in route and base.family not in route["families"]:
            continue
        if _holds(route.get("when") or {}, every):
            return {**table, "classes": [], **{k: v for k, v in route.items() if k not in ("when", "families")}}
    return table


def _holds(when: Mapping[str, Sequence[str]], names: Sequence[str]) -> bool:
    """All conditions: a text of `any` is in a name, one of `starts` begins a name, one of `begin` every name, …"""
    if "any" in when and not any(text in name for text in when["any"] for name in names):
        return False
    if "starts" in when and not any(name.startswith(tuple(when["starts"])) for name in names):
        return False
    if "begin" in when and not all(name.startswith(tuple(when["begin"])) for name in names):
        return False
    if "either" in when and not any(_holds(one, names) for one in when["either"]):  # type: ignore[arg-type]
        return False
    return not any(text in name for text in when.get("none") or () for name in names)


def stop(table: Mapping[str, Any], names: Sequence[str], modules: Sequence[str], endings: Sequence[str]) -> Stop | None:
    """What makes the runtime refuse the file, None if nothing does.

    Args:
        table: as `routed` gives it.
        names: all keys.
        modules: keys whose module is not found.
        endings: keys with an ending that is not read, or of no adapter.
    """
    unread = [*modules, *endings]
    for entry in table.get("stops") or ():
        at = entry["at"]
        keys = modules if at == "modules" else endings if at == "endings" else unread
        if at == "without":
            keys = [k for k in unread if entry["text"] not in k]
        elif at == "names":
            keys = [k for k in names if k.startswith(tuple(entry["starts"]))]
        elif at == "nowhere":
            keys = [] if any(entry["text"] in k for k in names) else list(names)
        keys = [k for k in keys if not any(text in k for text in entry.get("but") or ())]
        if "ends" in entry:
            keys = [k for k in keys if k.endswith(entry["ends"])]
        if keys:
            return Stop(str(entry["error"]).replace("{key}", keys[0]), keys[0])
    return None
