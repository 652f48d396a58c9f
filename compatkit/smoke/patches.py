"""Adapters as changes to the stored weights of a base, made as each weight passes by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from compatkit.adapters.base import of_component, own_layout
from compatkit.adapters.keys import spellings
from compatkit.adapters.speller import Speller
from compatkit.convert.changes import Change, read_changes
from compatkit.convert.cut import Refused
from compatkit.convert.deltas import change as difference
from compatkit.convert.scale import factor
from compatkit.convert.values import Unreadable, Value, raw
from compatkit.dryrun.classes import solved
from compatkit.dryrun.plan import Recipe, layout_in_file, weight_plan
from compatkit.knowledge.store import Knowledge
from compatkit.smoke.fetch import Patch
from compatkit.smoke.weights import Weights
from compatkit.vocabulary import Component

if TYPE_CHECKING:
    import torch

#: Rows whose change is computed at once.
_ROWS = 1024
_PLAIN = frozenset({"up", "down"})


class Patched(NamedTuple):
    """What an adapter changes: patches by stored tensor, how many modules, and what could not be applied."""

    patches: dict[str, list[Patch]]
    modules: int
    left_out: tuple[str, ...]


def patches(base: Component, adapter: Component, weights: Weights, strength: float, knowledge: Knowledge) -> Patched:
    """The changes an adapter makes to the weights of a base's file.

    `weights` are the adapter's own. Raises Refused for an adapter that does not fit the base; the text says why.
    """
    own_base = of_component(base, knowledge)
    if own_base is None:
        raise Refused("what the base is made of is not known")
    spelled = spellings(knowledge.adapters("spellings"))
    speller = Speller(own_base, knowledge, spelled)
    shapes = {n: t.shape for n, t in weights.header.tensors.items()}
    metadata = {k: v for k, v in weights.header.metadata.items() if isinstance(v, str)}

    def value(name: str) -> Value:
        tensor = weights.header.tensors[name]
        return Value(tensor.dtype, tensor.shape, lambda: raw(bytes(weights.raw(name)), tensor.dtype, tensor.shape))

    try:
        found = read_changes(shapes, value, spelled, speller, metadata)
    except Unreadable as e:
        raise Refused(str(e)) from None
    plan = _own_plan(base, knowledge)
    out: dict[str, list[Patch]] = {}
    left: list[str] = []
    for one in found.changes:
        try:
            made = _patches(one, plan, strength, adapter.source)
        except (Refused, KeyError) as e:
            left.append(f"{one.module}: {e.args[0] if e.args else e}")
            continue
        for source, patch in made:
            out.setdefault(source, []).append(patch)
    return Patched(out, len(found.changes), tuple(left))


def _own_plan(base: Component, knowledge: Knowledge) -> dict[str, Recipe]:
    """The family's own tensor names -> the rows of the file that hold them."""
    document = knowledge.grammar(str(base.family))
    symbols, options = solved(base, document)
    return weight_plan(document, layout_in_file(base, document), own_layout(document), symbols, options, base.prefix)


def _patches(one: Change, plan: Mapping[str, Recipe], strength: float, origin: str) -> list[tuple[str, Patch]]:
    """(stored tensor, patch) for every run of rows that a change touches."""
    add = _adder(one, strength)
    out: list[tuple[str, Patch]] = []
    done = 0  # rows of the change before this run
    for segment in one.place:
        recipe = plan.get(segment.tensor)
        if recipe is None:
            raise Refused(f"{segment.tensor} is not in the base's file")
        at = 0  # rows of the family's own tensor before this piece
        for piece in recipe.pieces:
            total = piece.shape[0] if piece.shape else 1
            rows = total - piece.start if piece.rows is None else piece.rows
            first, last = max(segment.start, at), min(segment.start + segment.size, at + rows)
            if first < last:
                shift = done + first - segment.start

                def moved(values: torch.Tensor, start: int, *, by: int = shift) -> None:
                    add(values, start + by)

                out.append((piece.source, Patch(piece.start + first - at, last - first, moved, origin)))
            at += rows
        done += segment.size
    return out


def _adder(one: Change, strength: float) -> Callable[[torch.Tensor, int], None]:
    """What adds rows of a change to rows of its weight, in float32, rounded once."""
    kinds = set(one.parts)
    scale = strength * factor(one.alpha, one.rank or 0) if one.math == "product" else strength
    if one.math == "product" and kinds <= _PLAIN | {"scalar"}:
        up, down = (_flat(one.parts[n].numbers()) for n in ("up", "down"))
        scale *= float(one.parts["scalar"].numbers().reshape(-1)[0]) if "scalar" in kinds else 1.0
        return _product(up, down, scale)
    return _whole(one, strength)


def _flat(numbers: Any) -> Any:
    import numpy as np

    return np.ascontiguousarray(numbers.reshape(numbers.shape[0], -1), dtype=np.float32)


def _product(up: Any, down: Any, scale: float) -> Callable[[torch.Tensor, int], None]:
    import torch

    first, second = torch.from_numpy(up), torch.from_numpy(down)

    def add(values: torch.Tensor, start: int) -> None:
        inner = second.to(values.device)
        for at in range(0, len(values), _ROWS):
            rows = values[at : at + _ROWS]
            outer = first[start + at : start + at + len(rows)].to(values.device)
            rows.copy_(rows.float().add_(outer @ inner, alpha=scale))

    return add


def _whole(one: Change, strength: float) -> Callable[[torch.Tensor, int], None]:
    """A change that needs all of its weight at once (rotations, magnitudes, Kronecker products)."""
    import torch

    def add(values: torch.Tensor, start: int) -> None:
        if start or len(values) != one.rows:
            raise Refused(f"{one.module}: a change of this kind to a weight in several pieces is not computed here")
        parts = {n: v.numbers() for n, v in one.parts.items()}
        alpha = one.alpha.number if one.alpha else None
        made = difference(one.math, parts, values.double().cpu().numpy(), alpha)
        values.copy_(values.float() + strength * torch.from_numpy(made).float().to(values.device))

    return add
