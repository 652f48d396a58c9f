"""What the text encoders of a set add to a runtime's key map: an adapter may train them too."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from compatkit.adapters.base import Base
from compatkit.adapters.names import Target, held_names

_WEIGHT = ".weight"
_TREE = "transformer"


def encoder_names(
    encoders: Sequence[Base], table: Mapping[str, Any]
) -> tuple[dict[str, Target], dict[str, tuple[int | None, ...]]]:
    """(module name -> target, target -> shape) of the encoders that are loaded together, as the runtime names them."""
    kinds = {e.family for e in encoders}
    names: dict[str, Target] = {}
    shapes: dict[str, tuple[int | None, ...]] = {}
    for encoder in encoders:
        weights = {held: encoder.shapes[own] for own, held in held_names(encoder, table).items()}
        for entry in table.get("encoders") or ():
            if not _holds(entry, encoder.family, kinds):
                continue
            own_name = (entry.get("as") or {}).get(encoder.family) or called(encoder.family, table)
            for form in entry["forms"]:
                _form(form, weights, own_name, names, shapes)
    return names, shapes


def called(family: str, table: Mapping[str, Any]) -> str:
    """What a runtime's module tree calls a text encoder; its family's id where nothing else is known."""
    return next((e["as"][family] for e in table.get("encoders") or () if family in (e.get("as") or {})), family)


def _holds(entry: Mapping[str, Any], family: str, kinds: set[str]) -> bool:
    if family not in entry["kinds"] and entry["kinds"] != ["*"]:
        return False
    if entry.get("alone") and len(kinds) > 1:
        return False
    return set(entry.get("with") or ()) <= kinds and not kinds & set(entry.get("without") or ())


def _form(
    form: Mapping[str, Any],
    weights: Mapping[str, tuple[int | None, ...]],
    tree: str,
    names: dict[str, Target],
    shapes: dict[str, tuple[int | None, ...]],
) -> None:
    below, only = str(form.get("below") or ""), form.get("only")
    for own, shape in weights.items():
        if not own.endswith(_WEIGHT):
            continue
        full = f"{tree}.{_TREE}.{own}"
        module = own[: -len(_WEIGHT)]
        if below and not module.startswith(below):
            continue
        module = module[len(below) :]
        if only and not any(fnmatch.fnmatchcase(module, pattern) for pattern in only):
            continue
        shapes[full] = shape
        if form.get("named"):
            module = full[: -len(_WEIGHT)]
        for prefix in form["prefixes"]:
            names[prefix + (module.replace(".", "_") if form.get("joined") else module)] = Target(full)
            if form.get("named") and not tree.startswith("clip_"):
                names[f"{prefix}{_TREE}.{own[: -len(_WEIGHT)]}"] = Target(full)
