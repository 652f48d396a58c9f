"""Which class a runtime builds for an encoder file, and how wide its output is.

The tables stand in `rules/runtimes/`: an encoder is taken for one of `te_models`, whose `routes` depend on the CLIP
type; several files loaded together make one class of `together`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from compatkit.checks.parts import Part


class Route(Struct, frozen=True):
    """The class built for a CLIP type, and what it makes of the file."""

    cls: str
    taps: int | None = None
    vocab: int | None = None
    parts: tuple[str, ...] = ()
    together: bool = False
    concat: bool = False
    gives: tuple[tuple[str, int], ...] = ()


def taken_for(part: Part, runtime: str, helper: str | None) -> str | None:
    """The runtime's name of this encoder, as the card says; a helper's own entry counts first."""
    runtimes = part.card.get("runtimes") or {}
    for name in (helper, runtime):
        entry = runtimes.get(name) if name else None
        if isinstance(entry, Mapping) and entry.get("te_model"):
            return str(entry["te_model"])
    return None


def types(table: Mapping[str, Any]) -> tuple[set[str], set[str], str | None]:
    """CLIP types for one file, for several files, and the one an unknown name falls back to."""
    kinds = table.get("clip_types") or {}
    fallback = kinds.get("fallback")
    return set(kinds.get("single") or ()), set(kinds.get("several") or ()), str(fallback) if fallback else None


def single(table: Mapping[str, Any], te_model: str | None, clip_type: str | None) -> Route | None:
    """The route of one file; None where the table does not know the encoder."""
    model = (table.get("te_models") or {}).get(te_model or "")
    if not model:
        return None
    chosen = None
    for route in model.get("routes") or ():
        if clip_type in (route.get("types") or ()):
            chosen = route
            break
        if not route.get("types"):
            chosen = route
    if chosen is None:
        return None
    return Route(str(chosen["class"]), int(chosen.get("taps", 1)), chosen.get("vocab"))


def together(table: Mapping[str, Any], clip_type: str | None, count: int) -> Route | None:
    """The class made of several files: by their number if that decides alone, else by type, else the default one."""
    default = None
    for entry in table.get("together") or ():
        if entry.get("count") == count:
            return _joined(entry)
        if "count" in entry:
            continue
        if clip_type in (entry.get("types") or ()):
            return _joined(entry)
        if not entry.get("types"):
            default = entry
    return _joined(default) if default else None


def _joined(entry: Mapping[str, Any]) -> Route:
    parts = tuple(str(p) for p in entry.get("parts") or ())
    gives = tuple((str(into), int(width)) for into, width in (entry.get("gives") or {}).items())
    return Route(str(entry["class"]), None, None, parts, True, bool(entry.get("concat")), gives)


def vocab_in(table: Mapping[str, Any], entry_class: str, te_model: str | None) -> int | None:
    """Token rows that a joined class expects of one of its parts."""
    for entry in table.get("together") or ():
        if entry["class"] == entry_class and te_model in (entry.get("vocab") or {}):
            return int(entry["vocab"][te_model])
    route = single(table, te_model, None)
    return route.vocab if route else None


def embedding(table: Mapping[str, Any], te_model: str | None) -> str | None:
    """The name of the token embedding as the runtime spells it."""
    model = (table.get("te_models") or {}).get(te_model or "") or {}
    name = model.get("embedding")
    return str(name) if name else None


def usual_type(card: Mapping[str, Any], runtime: str) -> str | None:
    """The CLIP type usual for a diffusion family."""
    entry = (card.get("runtimes") or {}).get(runtime)
    value = entry.get("clip_type") if isinstance(entry, Mapping) else None
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return str(value) if value else None
