"""Where two models meet: the operation that sees the other side's tensor first. Data of the family's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def junction_fields(card: Mapping[str, Any], name: str | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A junction of a card as rules see it, its symbols replaced by the facts of the file."""
    entry = (card.get("junctions") or {}).get(name or "")
    if not isinstance(entry, Mapping):
        return {}
    weight = [_side(side, facts) for side in entry.get("weight") or ()]
    if any(side is None for side in weight):
        weight = []
    return {
        "op": entry.get("op"),
        "module": entry.get("module"),
        "rows": weight[0] if weight else None,
        "weight": weight,
    }


def _side(side: Any, facts: Mapping[str, Any]) -> int | None:
    value = facts.get(side) if isinstance(side, str) else side
    return value if isinstance(value, int) and not isinstance(value, bool) else None
