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
    for (prefix, number), count in sorted(enough.items(), key=lambda row: (-row[1] / grammars[row[0][1]][2], row[0])):
        family, layout, _, gates = grammars[number]
        trial = Trial(number, family, layout, prefix, count)
        if all(_open(gate, unpacked, prefix) for gate in gates):
            yield trial
        else:
            closed.append(trial)


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
    """Of the names under each prefix only those are looked up that begin with two segments of a telling name.

    The names are sorted: all that stand below one prefix lie side by side and are found by bisection. A prefix with no
    more than a handful of names below it is a module, not a model.
    """
    hits = Hits()
    names = sorted(unpacked.tensors)
    least = min(HANDFUL, HANDFUL_SHARE * len(names))

    def count(prefix: str, head: str, at: int, end: int) -> None:
        """Look up `head` and all names below it, as they read behind the prefix."""
        below = names[bisect_left(names, f"{head}.", at, end) : bisect_left(names, f"{head}/", at, end)]
        for name in (head, *below) if head in unpacked.tensors else below:
            for number in telling.get(name[len(prefix) :], ()):
                hits[prefix, number] += 1

    pending = [("", 0, len(names), 0)]  # a prefix, its first name, one past its last, how many segments it has
    while pending:
        prefix, at, end, depth = pending.pop()
        while at < end:
            segment, dot, _ = names[at][len(prefix) :].partition(".")
            head = prefix + segment
            stop = bisect_left(names, f"{head}/", at, end) if dot else at + 1  # "/" follows "."
            if depth and dot:
                for second in heads.get(segment, ()):
                    count(prefix, f"{head}.{second}", at, stop)
            elif depth:
                count(prefix, head, at, stop)
            if dot and depth < MAX_PREFIX and stop - at >= least:
                pending.append((f"{head}.", at, stop, depth + 1))
            at = stop
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
            if last in tensors or (last.endswith(".weight") and _below(last, unpacked.covers)):
                votes[True] += 1
            elif prefix + format_ % tuple(starts) in tensors:  # else an optional run that is not there at all
                votes[False] += 1
    return not votes or votes[True] >= votes[False]
