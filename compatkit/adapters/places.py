"""Where the names of a layout lie in a model's own tensors: every spelled tensor is a list of runs of own rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from compatkit.adapters.base import Base, of_family, own_layout
from compatkit.knowledge.expr import evaluate
from compatkit.knowledge.patterns import Pattern, names
from compatkit.knowledge.protocol import Rules


class Segment(NamedTuple):
    """Rows `start` … `start + size` of one of the model's own tensors."""

    tensor: str
    start: int
    size: int


#: What a spelled tensor consists of, in the order of its rows.
Place = tuple[Segment, ...]
_ENDINGS = (".weight", ".scale")
_BIAS = ".bias"


class Module(NamedTuple):
    """A module as a layout spells it: where its weight lies, and its bias."""

    name: str
    weight: Place | None
    bias: Place | None


def total(place: Place) -> int:
    """Rows of a spelled tensor."""
    return sum(s.size for s in place)


def layout_modules(base: Base, document: Mapping[str, Any], layout: str) -> dict[str, Module]:
    """Module name -> module, of every tensor that the base has in a layout of its family's file."""
    weights: dict[str, Place] = {}
    biases: dict[str, Place] = {}
    for name, place in _places(base, document, layout):
        if name.endswith(_BIAS):
            biases[name[: -len(_BIAS)]] = place
            continue
        ending = next((e for e in _ENDINGS if name.endswith(e)), "")
        weights[name[: len(name) - len(ending)]] = place
    every = {**weights, **biases}
    return {n: Module(n, weights.get(n), biases.get(n)) for n in every}


def _places(base: Base, document: Mapping[str, Any], layout: str) -> Iterator[tuple[str, Place]]:
    lines = document["layouts"][layout]["lines"]
    own = document["layouts"][own_layout(document)]["lines"]
    origins = document["layouts"][layout]["origins"]
    for number, (format_, ranges, _, _, when) in enumerate(lines):
        sources, how, start, size = origins[number] if origins else ([number], "copy", 0, 0)
        if how == "new":
            continue
        try:
            if when != 1 and not evaluate(when, base.symbols):
                continue
            here = list(names(Pattern(format_, ranges), base.symbols))
            there = [list(names(Pattern(own[s][0], own[s][1]), base.symbols)) for s in sources]
            cut = (evaluate(start, base.symbols), evaluate(size, base.symbols)) if how == "rows" else None
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
        for i, name in enumerate(here):
            if any(i >= len(t) for t in there):
                break
            whole = [_whole(t[i], base.shapes) for t in there]
            if any(w is None for w in whole):
                continue
            runs = [w for w in whole if w is not None]
            if how == "swap":
                run, half = runs[0], runs[0].size // 2
                if run.size % 2:
                    continue
                yield name, (Segment(run.tensor, half, half), Segment(run.tensor, 0, half))
            else:
                yield name, tuple(_cut(runs, *cut)) if cut else tuple(runs)


def _whole(tensor: str, shapes: Mapping[str, tuple[int | None, ...]]) -> Segment | None:
    shape = shapes.get(tensor)
    if shape is None or (shape and shape[0] is None):
        return None
    return Segment(tensor, 0, shape[0] or 0 if shape else 1)


def _cut(runs: Sequence[Segment], start: int, size: int) -> Iterator[Segment]:
    """Rows `start` … `start + size` of the runs joined."""
    at = 0
    for run in runs:
        first, last = max(start, at), min(start + size, at + run.size)
        if first < last:
            yield Segment(run.tensor, run.start + first - at, last - first)
        at += run.size


def encoder_bases(card: Mapping[str, Any], knowledge: Rules) -> list[Base]:
    """The text encoders of a family in the order of its pipeline, one for each place."""
    out = []
    for entry in card.get("text_encoders") or ():
        kind = str(entry.get("kind") or "")
        base = of_family(knowledge.owner(kind), knowledge) if kind and knowledge.has_family(kind) else None
        if base is not None:
            out.append(base)
    return out
