"""Which blocks of a base an adapter changes: what a map of its coverage is drawn from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

#: A model with more blocks is summed up by what is drawn first.
MOST = 400
_PREFIXES = ("diffusion_model.", "transformer.", "unet.")
_DIGITS = 6


def blocks(
    weights: Mapping[str, Collection[Any]], changed: Collection[str], failed: Iterable[str]
) -> list[dict[str, Any]]:
    """Per block, in the base's order: its matrices, those that the adapter changes, those it cannot be put on.

    Args:
        weights: the base's weights by the runtime's name, with their shapes.
        changed: names of weights that are mapped to; `failed`: those of them whose shapes do not fit.
    """
    bad, touched = set(failed), set(changed)
    out: dict[str, dict[str, Any]] = {}
    for name, shape in weights.items():
        if len(shape) < 2 or not name.endswith(".weight"):
            continue
        run, index = block_of(name)
        label = run if index is None else f"{run}.{index}"
        entry = out.get(label)
        if entry is None:
            if len(out) >= MOST:
                break
            entry = out[label] = {"run": run, "index": index, "weights": 0, "changed": 0, "failed": 0}
        entry["weights"] += 1
        entry["failed"] += name in bad
        entry["changed"] += name in touched and name not in bad
    return list(out.values())


def block_of(name: str) -> tuple[str, int | None]:
    """(run, index) of a weight: `layers.3.attention.qkv.weight` is block 3 of `layers`; outside of runs no index."""
    bare = name.removeprefix("model.")
    plain = next((bare[len(p) :] for p in _PREFIXES if bare.startswith(p)), name)
    segments = plain.split(".")
    for i, segment in enumerate(segments[1:-1], 1):
        if segment.isdecimal():
            return (".".join(segments[:i]), int(segment)) if len(segment) < _DIGITS else (segments[0], None)
    return segments[0], None
