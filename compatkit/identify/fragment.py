"""A file that is no model by itself because it is a piece of one: a shard merged alone, a module cut out."""

from __future__ import annotations

from collections import Counter
from math import prod

from compatkit.identify.packing import Unpacked
from compatkit.knowledge.modulepath import plain
from compatkit.knowledge.store import Knowledge
from compatkit.sources.naming import shown
from compatkit.vocabulary import FileProblem

#: Fewer matrices than this may agree with a model by chance.
LEAST = 16


def fragment(source: str, unpacked: Unpacked, knowledge: Knowledge) -> FileProblem | None:
    """The finding of a file of which every matrix is one that some model has, by name and size; None if it is none."""
    table = knowledge.targets()
    modules = table["modules"]
    matrices = 0
    hits: Counter[int] = Counter()
    for name, tensor in unpacked.tensors.items():
        if len(tensor.shape) < 2 or not name.endswith(".weight"):
            continue
        matrices += 1
        path, numbers = plain(name.removesuffix(".weight"))
        size = [tensor.shape[0], prod(tensor.shape[1:])]
        for number, rows in modules.get(path, ()):
            reach = (row[2:] for row in rows if row[:2] == size and len(row) == len(numbers) + 2)
            if any(all(a <= b for a, b in zip(numbers, last, strict=True)) for last in reach):
                hits[number] += 1
    if matrices < LEAST or not hits:
        return None
    number, found = min(hits.items(), key=lambda row: (-row[1], row[0]))  # of equals the oldest
    if found < matrices:
        return None
    family = table["families"][number]
    title = str(knowledge.family(family).get("title") or family)
    return FileProblem(
        "file/fragment",
        f"{shown(source)} is a piece of {title}: each of its {found:,} matrices is one of that model's, by name and "
        "size, and most of the model is not there",
        "Get the whole file; of a split model all shards are needed, and have to be merged together.",
        {"family": family, "tensors": len(unpacked.tensors)},
    )
