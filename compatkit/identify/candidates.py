"""Which grammars are worth trying on a header, and under which prefix.

The signature index maps a few telling tensor names of every grammar to its number. Every name of the header is looked up
as it stands and, unless that already explains the file, with its first segments cut off: so any prefix is found, known or
not, and a checkpoint's parts with it. The cost follows the header's names and the grammars that share names with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from compatkit.identify.packing import Unpacked, View

#: A prefix has at most this many segments (`text_encoders.t5xxl.transformer.`, `model.diffusion_model.`).
MAX_PREFIX = 5


class Trial(NamedTuple):
    """A grammar to try: its number in the index, family, layout, and the prefix its names were found under."""

    grammar: int
    family: str
    layout: str
    prefix: str
    hits: int


def trials(unpacked: Unpacked, index: Mapping[str, Any], gguf: bool, views: dict[str, View]) -> Iterator[Trial]:
    """Grammars in order of how many of their telling names are there, those the gates refuse left out."""
    hits = _hits(unpacked, index["names"])
    order = sorted(hits.items(), key=lambda row: (-row[1] / index["grammars"][row[0][1]][2], row[0]))
    for (prefix, number), count in order:
        family, layout, wanted, gates = index["grammars"][number]
        if count * 2 < wanted:
            continue
        if prefix not in views:
            views[prefix] = unpacked.view(prefix, gguf)
        if all(_open(gate, views[prefix]) for gate in gates):
            yield Trial(number, family, layout, prefix, count)


def _hits(unpacked: Unpacked, telling: Mapping[str, list[int]]) -> Counter[tuple[str, int]]:
    hits: Counter[tuple[str, int]] = Counter()
    for name in unpacked.tensors:
        if name in telling:
            for number in telling[name]:
                hits["", number] += 1
    for name in unpacked.tensors:
        at = name.find(".")
        for _ in range(MAX_PREFIX):
            if at < 0:
                break
            rest = name[at + 1 :]
            if rest in telling:
                for number in telling[rest]:
                    hits[name[: at + 1], number] += 1
            at = name.find(".", at + 1)
    if unpacked.covers:  # packed modules hide their weights: count what they would show
        for name, numbers in telling.items():
            if name not in unpacked.tensors and name.endswith(".weight") and _below(name, unpacked.covers):
                for number in numbers:
                    hits["", number] += 1
    return hits


def _below(name: str, covers: set[str]) -> bool:
    end = name.rfind(".")
    while end > 0:
        if name[:end] in covers:
            return True
        end = name.rfind(".", 0, end)
    return False


def _open(gate: list[Any], view: View) -> bool:
    """Whether a `where` value of the family agrees with what the header shows, as far as a glance tells."""
    _, allowed, sides, runs = gate
    votes: Counter[bool] = Counter()
    for name, axis, rank in sides:
        tensor = view.tensors.get(name)
        if tensor is not None and len(tensor.shape) == rank and not (name in view.loose and axis == rank - 1):
            votes[tensor.shape[axis] in allowed] += 1
    for format_, starts, position, start, step in runs:
        index = list(starts)
        longest = max(allowed)
        index[position] = start + max(0, (longest - start - 1) // step) * step
        last = format_ % tuple(index)
        index[position] = start + -(-(longest - start) // step) * step
        beyond = format_ % tuple(index)
        if beyond in view.tensors:
            votes[False] += 1
        elif len(allowed) == 1 and longest > start:
            votes[last in view.tensors or view.covered(last)] += 1
    return not votes or votes[True] >= votes[False]
