"""Where two models meet: the operation that sees the other side's tensor first. Data of the family's card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compatkit.checks.parts import Part


def junction_fields(card: Mapping[str, Any], name: str | None, part: Part, takes: int | None) -> dict[str, Any]:
    """A junction of a card as rules see it; its weight from the card with the file's facts, else from the file.

    `takes` is the width or the channels it takes: a weight that says otherwise (a packed one) is not shown.
    """
    entry = (card.get("junctions") or {}).get(name or "")
    if not isinstance(entry, Mapping):
        return {}
    weight: list[Any] = [_side(side, part) for side in entry.get("weight") or ()]
    if not weight or None in weight:
        weight = _in_file(_there(entry.get("module"), part, takes), part)
    if len(weight) < 2 or takes not in weight[1:2]:
        weight = []
    return {
        "op": entry.get("op"),
        "module": _there(entry.get("module"), part, takes),
        "rows": weight[0] if weight else None,
        "weight": weight,
    }


def _there(module: Any, part: Part, takes: int | None) -> Any:
    """Of several modules the first in the file that takes this width; a card of one kind of file names one."""
    if not isinstance(module, list) or not module:
        return module
    return next((m for m in module if takes in _in_file(m, part)[1:2]), module[0])


def _side(side: Any, part: Part) -> int | None:
    if isinstance(side, str):
        return part.number(side)
    return side if isinstance(side, int) and not isinstance(side, bool) else None


def _in_file(module: Any, part: Part) -> list[int]:
    tensor = part.component.tensors.get(f"{part.component.prefix}{module}.weight")
    return list(tensor.shape) if tensor else []
