"""What the weights of a set weigh beside the memory of cards: bars for the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from compatkit.vocabulary import Component, Report

GIB = 1 << 30
_VRAM = re.compile(r"Total VRAM (\d+) MB")


class Bar(NamedTuple):
    """The weights of one component, as a share (percent) of the scale."""

    number: int
    role: str
    size: int
    percent: float


class Mark(NamedTuple):
    """The memory of a card on the scale. `fits`: the largest component fits; `all_fits`: all of them do at once."""

    title: str
    size: int
    percent: float
    fits: bool
    all_fits: bool


class Memory(NamedTuple):
    """Bars and marks. `known`: the one mark is the card of the run, and not a choice of common sizes."""

    bars: list[Bar]
    total: int
    marks: list[Mark]
    known: bool


def memory(report: Report, cards: Iterable[Mapping[str, Any]], said: Mapping[str, str]) -> Memory | None:
    """The bars of a set; None where there are no weights.

    Args:
        cards: `rules/gpus.yaml`.
        said: what a log says of the run; the card it names is the one that counts.
    """
    sizes = [(i, c.role, weight(c)) for i, c in enumerate(report.components, 1)]
    sizes = [s for s in sizes if s[2] > 0]
    if not sizes:
        return None
    total, largest = sum(s[2] for s in sizes), max(s[2] for s in sizes)
    card = _card(said)
    chosen = [card] if card else _common(cards, largest, total)
    scale = max([total, *(size for _, size in chosen)]) * 1.02
    bars = [Bar(n, role, size, 100 * size / scale) for n, role, size in sizes]
    marks = [Mark(t, size, 100 * size / scale, largest <= size, total <= size) for t, size in chosen]
    return Memory(bars, total, marks, card is not None)


def weight(component: Component) -> int:
    """Bytes of a component's tensors."""
    return sum(t.nbytes for t in component.tensors.values())


def _card(said: Mapping[str, str]) -> tuple[str, int] | None:
    found = _VRAM.search(said.get("memory", ""))
    if not found:
        return None
    return said.get("GPU", "").partition(" ")[2] or "the card of the log", int(found[1]) << 20


def _common(cards: Iterable[Mapping[str, Any]], largest: int, total: int) -> list[tuple[str, int]]:
    """Of the sizes that cards are sold with: the last that is too small, those between, the first that takes it all."""
    sizes: Sequence[int] = sorted({int(c["memory"]) * GIB for c in cards})
    small = [s for s in sizes if s < largest][-1:]
    between = [s for s in sizes if largest <= s < total]
    large = [s for s in sizes if s >= total][:1]
    return [(f"{s // GIB} GiB", s) for s in [*small, *between[:3], *large]]
