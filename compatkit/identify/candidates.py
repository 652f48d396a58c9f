"""Which grammars are worth trying on a header, and under which prefix.

The signature index maps a few telling tensor names of every grammar to its number. Every name of the header is looked
up as it stands (`at_root`) and, unless that already explains the file, with its first segments cut off
(`under_prefixes`): so any prefix is found, known or not, and a checkpoint's parts with it. The cost follows the
header's names and the grammars that share names with it, not the grammars there are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from compatkit.identify.packing import Unpacked

#: A prefix has at most this many segments (`text_encoders.t5xxl.transformer.`, `model.diffusion_model.`).
MAX_PREFIX = 5
#: A family that the user names is looked for behind so many prefixes.
MOST_PREFIXES = 4
#: Fewer names than this, and a smaller share of the file's, are no model of their own behind a prefix.
HANDFUL, HANDFUL_SHARE = 12, 0.02
#: How many telling names were found of (prefix, grammar).
Hits = Counter[tuple[str, int]]


class Trial(NamedTuple):
    """A grammar to try: its number in the index, family, layout, and the prefix its names were found under."""

    grammar: int
    family: str
    layout: str
    prefix: str
    hits: int


def at_root(unpacked: Unpacked, index: Mapping[str, Any], closed: list[Trial]) -> Iterator[Trial]:
    """Grammars whose telling names stand in the header as they are. Those of other sizes are put into `closed`."""
    return _ordered(_root_hits(unpacked, index["names"]), unpacked, index, closed)


def under_prefixes(unpacked: Unpacked, index: Mapping[str, Any], closed: list[Trial]) -> Iterator[Trial]:
    """Grammars whose telling names stand in the header behind a prefix. Those of other sizes are put into `closed`."""
    return _ordered(_prefix_hits(unpacked, index["names"], index["heads"]), unpacked, index, closed)


def prefixes_of(family: str, unpacked: Unpacked, index: Mapping[str, Any]) -> list[str]:
    """The prefixes behind which a family's telling names stand, the likeliest first; none is always among them."""
    own = {n for n, (owner, *_) in enumerate(index["grammars"]) if owner == family}
    telling = {name: kept for name, numbers in index["names"].items() if (kept := own.intersection(numbers))}
    hits = Counter[str]()
    for (prefix, _), count in _prefix_hits(unpacked, telling, index["heads"]).items():
        hits[prefix] += count
    return [*sorted(hits, key=lambda p: (-hits[p], len(p), p))[:MOST_PREFIXES], ""]


def _ordered(hits: Hits, unpacked: Unpacked, index: Mapping[str, Any], closed: list[Trial]) -> Iterator[Trial]:
    """In order of how many of their telling names are there."""
    grammars = index["grammars"]
    enough = {key: count for key, count in hits.items() if count * 2 >= grammars[key[1]][2]}
    small = _small({prefix for prefix, _ in enough}, unpacked)
    for (prefix, number), count in sorted(enough.items(), key=lambda row: (-row[1] / grammars[row[0][1]][2], row[0])):
        family, layout, _, gates = grammars[number]
        if prefix in small:
            continue
        trial = Trial(number, family, layout, prefix, count)
        if all(_open(gate, unpacked, prefix) for gate in gates):
            yield trial
        else:
            closed.append(trial)


def _small(prefixes: set[str], unpacked: Unpacked) -> set[str]:
    """Prefixes under which only a handful of the file's names stand: a module, not a model."""
    if prefixes <= {""}:
        return set()
    names = sorted(unpacked.tensors)
    least = min(HANDFUL, HANDFUL_SHARE * len(names))
    return {p for p in prefixes if p and bisect_left(names, f"{p[:-1]}/") - bisect_left(names, p) < least}


def _root_hits(unpacked: Unpacked, telling: Mapping[str, list[int]]) -> Hits:
    hits = Hits()
    for name in unpacked.tensors.keys() & telling.keys():
        for number in telling[name]:
            hits["", number] += 1
    if unpacked.covers:  # packed modules hide their weights: count what they would show
        for name, numbers in telling.items():
            if name.endswith(".weight") and name not in unpacked.tensors and _below(name, unpacked.covers):
                for number in numbers:
                    hits["", number] += 1
    return hits


def _prefix_hits(unpacked: Unpacked, telling: Mapping[str, Iterable[int]], heads: Mapping[str, list[str]]) -> Hits:
    """Only names that go on, somewhere, with the two first segments of a telling name are looked at closely."""
    hits = Hits()
    for name in unpacked.tensors:
        segments = name.split(".")
        for at, segment in enumerate(segments[1 : MAX_PREFIX + 1], 1):
            seconds = heads.get(segment)
            if seconds is None or (segments[at + 1] if at + 1 < len(segments) else "") not in seconds:
                continue
            rest = ".".join(segments[at:])
            for number in telling.get(rest, ()):
                hits[name[: -len(rest)], number] += 1
    return hits


def _below(name: str, covers: set[str]) -> bool:
    end = name.rfind(".")
    while end > 0:
        if name[:end] in covers:
            return True
        end = name.rfind(".", 0, end)
    return False


def _open(gate: list[Any], unpacked: Unpacked, prefix: str) -> bool:
    """Whether a `where` value of the family agrees with what the header shows, as far as a glance tells."""
    _, allowed, sides, runs = gate
    tensors, hidden = unpacked.tensors, unpacked.hidden
    votes: Counter[bool] = Counter()
    for name, axis, rank in sides:
        tensor = tensors.get(prefix + name)
        if tensor is not None and len(tensor.shape) == rank and not hidden(prefix + name, axis, rank):
            votes[tensor.shape[axis] in allowed] += 1
    for format_, starts, position, start, step in runs:
        index = list(starts)
        longest = max(allowed)
        index[position] = start + max(0, (longest - start - 1) // step) * step
        last = prefix + format_ % tuple(index)
        index[position] = start + -(-(longest - start) // step) * step
        if prefix + format_ % tuple(index) in tensors:  # one beyond the longest
            votes[False] += 1
        elif len(allowed) == 1 and longest > start:
            votes[last in tensors or (last.endswith(".weight") and _below(last, unpacked.covers))] += 1
    return not votes or votes[True] >= votes[False]
