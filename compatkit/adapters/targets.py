"""Which base an adapter was made for: what its modules' names, sizes and numbers say, then what its metadata claims."""

from __future__ import annotations

import fnmatch
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import le
from typing import Any

from msgspec import Struct, field

from compatkit.knowledge.modulepath import plain

#: Sizes of a module's weight as far as the adapter tells them.
Size = tuple[int, int] | None

#: A family explains an adapter if it has this share of the modules, and is as good as the best within this.
ENOUGH, NEAR = 0.5, 0.02
_TRAILING_LORA = "/lora"


class Made(Struct, frozen=True):
    """What is known of the base an adapter was made for.

    `families`: those it fits best. `possible`: every family that has all the modules it changes, in their sizes.
    `sure`: structure (names and sizes), names, either "and metadata", metadata, or nothing. `claims`: what the
    metadata says, by field; `contradicts`: a claim that the tensors refute.
    """

    families: tuple[str, ...] = ()
    possible: tuple[str, ...] = ()
    share: float = 0.0
    sure: str = "nothing"
    claims: Mapping[str, str] = field(default_factory=dict)
    contradicts: str = ""


def made_for(
    modules: Sequence[tuple[str, Size]],
    index: Mapping[str, Any],
    metadata: Mapping[str, Any],
    fields: Iterable[Mapping[str, Any]],
) -> Made:
    """The families an adapter's modules (path without prefix, size) fit, narrowed by what its metadata claims."""
    claims, claimed = claimed_families(metadata, fields)
    scores = _scores(modules, index)
    best = max(scores.values(), default=(0.0, 0.0))
    sure = "structure"
    if best[0] < ENOUGH:  # the sizes are nobody's: the names may be somebody's
        scores, sure = _scores([(module, None) for module, _ in modules], index), "names"
        best = max(scores.values(), default=(0.0, 0.0))
    if best[0] < ENOUGH:
        return Made(tuple(claimed), (), best[0], "metadata" if claimed else "nothing", claims)
    possible = tuple(f for f, s in scores.items() if s[0] >= best[0] - NEAR)
    exact = max(scores[f][1] for f in possible)
    families = tuple(f for f in possible if scores[f][1] >= exact - NEAR)
    both = tuple(f for f in possible if f in claimed)
    if both:
        kept = tuple(f for f in families if f in claimed) or both
        return Made(kept, possible, best[0], f"{sure} and metadata", claims)
    refuted = next(iter(claims.values()), "") if claimed else ""
    return Made(families, possible, best[0], sure, claims, refuted)


class _Same(Struct):
    """The modules of one path and size: the highest number at every place, and how many they are."""

    top: list[int]
    count: int = 1


def _within(top: Sequence[int], last: Sequence[int]) -> bool:
    return all(map(le, top, last))


def _scores(modules: Sequence[tuple[str, Size]], index: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Family -> (share of the modules that it has, share of their paths that end where its own end)."""
    known: Mapping[str, Any] = index.get("modules") or {}
    ids: Sequence[str] = index.get("families") or ()
    grouped: dict[str, dict[Size, _Same]] = {}
    for module, size in modules:
        path, numbers = plain(module)
        sizes = grouped.get(path)
        if sizes is None:
            sizes = grouped[path] = {}
        same = sizes.get(size)
        if same is None:
            sizes[size] = _Same(list(numbers))
            continue
        same.count += 1
        for i, number in enumerate(numbers):
            if number > same.top[i]:
                same.top[i] = number
    has: Counter[int] = Counter()
    ends: Counter[int] = Counter()
    for path, sizes in grouped.items():
        unsized = sizes.get(None)
        for family, own in known.get(path, ()):
            fits, end, reached = 0, False, False
            counted = None
            for rows, columns, *last in own:
                same = sizes.get((rows, columns))
                if same is not None and _within(same.top, last):
                    if counted is not same:  # one size may reach to several numbers, in several of its models
                        fits += same.count
                        counted = same
                    end = end or same.top == last
                if unsized is not None and _within(unsized.top, last):
                    reached = True
                    end = end or unsized.top == last
            if unsized is not None and reached:
                fits += unsized.count
            if fits:
                has[family] += fits
                ends[family] += end
    total = max(1, len(modules))
    share = {f: (n / total, ends[f] / max(1, len(grouped))) for f, n in has.items() if n}
    return {ids[f]: share[f] for f in sorted(share)}


def claimed_families(
    metadata: Mapping[str, Any], fields: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, str], list[str]]:
    """What the metadata claims of the base, by field, and the families that would be; known lies are left out."""
    claims: dict[str, str] = {}
    families: list[str] = []
    for entry in fields:
        value = metadata.get(entry["field"])
        if not isinstance(value, str) or not value:
            continue
        claims[entry["field"]] = value
        word = value.strip().lower().removesuffix(_TRAILING_LORA)
        if any(word in lie["values"] and _software(metadata) == lie["software"] for lie in entry.get("lies") or ()):
            continue
        hit = next((v for k, v in (entry.get("values") or {}).items() if fnmatch.fnmatchcase(word, str(k))), None)
        families += [f for f in hit or () if f not in families]
    return claims, families


def _software(metadata: Mapping[str, Any]) -> str:
    """The program that wrote the file, where it says so."""
    text = metadata.get("software")
    if not isinstance(text, str):
        return ""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return str(found.get("name") or "") if isinstance(found, dict) else ""
