"""Header -> the components it holds: tries grammars, keeps the best reading of every part, says what is left over."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from msgspec.structs import replace

from compatkit.identify import metadata
from compatkit.identify.candidates import HANDFUL, HANDFUL_SHARE, Trial, at_root, prefixes_of, under_prefixes
from compatkit.identify.component import build, unknown
from compatkit.identify.fragment import fragment
from compatkit.identify.packing import Packings, Unpacked, View
from compatkit.identify.schemes import Reader
from compatkit.identify.solve import Match, Solver
from compatkit.knowledge.store import Knowledge
from compatkit.sources.naming import shown
from compatkit.vocabulary import Component, FileProblem, Header

#: A reading is believed if at most this share of the expected tensors is missing, and of the shapes wrong …
MISSING_SHARE, MISMATCH_SHARE = 0.01, 0.005
#: … and at most this share of the file's tensors is foreign to it. Small models may still miss or add a few.
FOREIGN_SHARE = 0.02
FEW_MISSING, FEW_FOREIGN = 2, 12
#: A fallback family must explain this share of the whole file: it never carves a part out of an unknown model …
FALLBACK_SHARE = 0.98
#: … and an exact family that reads this share of the file keeps it from being believed.
NEAR_SHARE = 0.5
#: So many families of other sizes are looked at for what to say of an unknown file.
NEAREST = 3
#: A side this long is a width, not a count: a foreign tensor that shares one with the model is a part of the model.
WIDTH = 64


def identify(
    header: Header,
    knowledge: Knowledge,
    *,
    force_role: str | None = None,
    assume: str | None = None,
    read: Reader | None = None,
) -> list[Component]:
    """The models in a header: diffusion models first, then the largest.

    `force_role` keeps only readings of that role; `assume` names a family to take the file for, whatever it looks like
    (every finding that rests on it then says so). `read` gives the bytes of small tensors, where a few of them tell
    more than the header does; without it only the header counts.
    """
    unpacked = packings_of(knowledge).unpack(header, read)
    if assume is not None:
        return [_assumed(header, unpacked, knowledge, assume, read)]
    views: dict[str, View] = {}
    matches = _matches(header, unpacked, knowledge, force_role, views)
    chosen, rejected = _choose(matches, unpacked, knowledge, views)
    components = [build(header, unpacked, knowledge, group, runner_up, read) for group, runner_up in chosen]
    claimed: set[str] = set()
    for group, _ in chosen:
        claimed |= _full_names(group[0])
        claimed.update([group[0].prefix + n for n in (*group[0].foreign, *group[0].tolerated)], group[0].markers)
    left = [n for n in unpacked.tensors if n not in claimed]
    if left:
        tolerated = _globs(tuple(p for group, _ in chosen for p in knowledge.grammar(group[0].family)["tolerate"]))
        # as the family names them, there or above its prefix
        left = [n for n in left if not (tolerated.match(n) or tolerated.match(n.rpartition(".")[2]))]
    if not components or len(left) > max(FEW_FOREIGN, FOREIGN_SHARE * len(unpacked.tensors)):
        part = left if components else list(unpacked.tensors)
        nothing = unknown(header, unpacked, knowledge, part, rejected, force_role)
        if not components and (piece := fragment(header.source, unpacked, knowledge)):
            nothing = replace(nothing, problems=(*nothing.problems, piece))
        components.append(nothing)
    elif left:
        components[0] = replace(components[0], foreign=components[0].foreign + tuple(left))
    return components


_known_packings: WeakKeyDictionary[Knowledge, Packings] = WeakKeyDictionary()


def packings_of(knowledge: Knowledge) -> Packings:
    if knowledge not in _known_packings:
        _known_packings[knowledge] = Packings(knowledge.table("packings"))
    return _known_packings[knowledge]


@lru_cache(maxsize=512)
def _globs(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One regular expression for all glob patterns; nothing matches none."""
    return re.compile("|".join(map(fnmatch.translate, patterns)) or "(?!)")


def _matches(
    header: Header, unpacked: Unpacked, knowledge: Knowledge, role: str | None, views: dict[str, View]
) -> list[Match]:
    """Every reading worth a look. Prefixes are searched only in files that no grammar explains as they stand."""
    out: list[Match] = []
    closed: list[Trial] = []
    members = knowledge.members()

    def solve(trial: Trial) -> Match:
        if trial.prefix not in views:
            views[trial.prefix] = unpacked.view(trial.prefix, header.format == "gguf")
        return Solver(knowledge.grammar(trial.family), trial.layout, views[trial.prefix]).solve()

    for search in (at_root, under_prefixes):
        found = sorted(search(unpacked, knowledge.index, closed), key=lambda t: _is_fallback(t.family, knowledge))
        for trial in found:
            if role and members[trial.family]["role"] != role:
                continue
            if _is_fallback(trial.family, knowledge) and any(_explains(m, unpacked) for m in out):
                break
            document = knowledge.grammar(trial.family)
            refusal = _metadata_refuses(document["metadata"], header, trial.layout == next(iter(document["layouts"])))
            if refusal:
                continue
            out.append(solve(trial))
        if any(_is_whole(m, unpacked) and not _is_fallback(m.family, knowledge) for m in out):
            break
    if all(m.refused for m in out):  # nothing fits: say at least which family of another size has these names
        alike = [t for t in closed if not role or members[t.family]["role"] == role][:NEAREST]
        out += [m for m in map(solve, alike) if m.refused]
    return out


def _is_whole(match: Match, unpacked: Unpacked) -> bool:
    """Whether this reading leaves no tensor of the file over, and misses none."""
    if match.refused or match.missing or match.mismatched:
        return False
    own = match.matched.union(match.markers) if match.markers else match.matched
    return unpacked.tensors.keys() <= own


def _full_names(match: Match) -> set[str]:
    return {match.prefix + n for n in match.matched} if match.prefix else match.matched


def _is_fallback(family: str, knowledge: Knowledge) -> bool:
    """Whether a family only says what kind of model this is (`fallback: true`), for files no exact family explains."""
    return bool(knowledge.members()[family].get("fallback"))


def _explains(match: Match, unpacked: Unpacked) -> bool:
    whole = len(match.matched) >= FALLBACK_SHARE * len(unpacked.tensors)
    return whole and not (match.refused or match.missing or match.mismatched)


def _metadata_refuses(wanted: dict[str, Any], header: Header, own_layout: bool) -> str:
    """Metadata breaks ties only: a key that is absent refuses nothing, unless the family exists through it alone.

    That (`key!`) holds for the family's own layout; another one may have names that tell.
    """
    for key, value in wanted.items():
        required = key.endswith("!")
        found = metadata.value(header, key.rstrip("!"))
        values = value if isinstance(value, list) else [value]
        if found is None:
            if required and own_layout:
                return f"needs metadata {key}"
        elif found not in values:
            return f"metadata {key} is {found!r}"
    return ""


def _believable(match: Match, unpacked: Unpacked) -> bool:
    if match.refused or not match.matched:
        return False
    if match.prefix and len(match.matched) < min(HANDFUL, HANDFUL_SHARE * len(unpacked.tensors)):
        return False  # a handful of names deep inside something else
    few_mismatched = 1 if match.expected >= 50 else 0
    return (
        len(match.missing) <= max(FEW_MISSING, MISSING_SHARE * match.expected)
        and len(match.mismatched) <= max(few_mismatched, MISMATCH_SHARE * match.expected)
        and len(match.matched) > 2 * len(match.missing)
        and len(match.foreign) <= max(FEW_FOREIGN, FOREIGN_SHARE * len(match.matched))
        and not _extends(match, unpacked)
    )


def _extends(match: Match, unpacked: Unpacked) -> bool:
    """Whether foreign tensors have the model's own widths: then it is a relative with more parts, not this family."""
    widths = {v for v in match.symbols.values() if v >= WIDTH}
    maimed = {name.rpartition(".")[0] for name in match.missing}  # a lost weight leaves its scales behind
    for name in match.foreign:
        tensor = unpacked.tensors.get(match.prefix + name)
        if tensor is not None and widths.intersection(tensor.shape) and name.rpartition(".")[0] not in maimed:
            match.refused = f"it has {name} {list(tensor.shape)}, which that family has not"
            return True
    return False


def _choose(
    matches: list[Match], unpacked: Unpacked, knowledge: Knowledge, views: Mapping[str, View]
) -> tuple[list[tuple[list[Match], Match | None]], list[Match]]:
    """For every part of the file the readings that fit it best (several where headers are equal), and the next best."""
    good: list[Match] = []
    rejected: list[Match] = []
    prefixes: set[str] = set()  # of believable readings: what stands under one is not foreign to a model around it
    for match in sorted(matches, key=lambda m: (-len(m.prefix), -len(m.matched))):
        if match.refused:
            rejected.append(match)
            continue
        match.foreign = _foreign(match, views[match.prefix], prefixes)
        _tolerate(match, knowledge)
        if _believable(match, unpacked):
            good.append(match)
            if not _is_fallback(match.family, knowledge):
                prefixes.add(match.prefix)
        else:
            rejected.append(match)
    good = _without_fallbacks(good, rejected, unpacked, knowledge)
    # of equal readings the one under the shortest prefix counts first
    good.sort(key=lambda m: (m.distance - len(m.matched), m.distance, len(m.prefix)))
    chosen: list[tuple[list[Match], Match | None]] = []
    claimed: set[str] = set()
    while good:
        best = good[0]
        if claimed and len(_full_names(best) & claimed) * 10 > len(best.matched):
            good.pop(0)
            continue
        half = len(best.matched) / 2
        rivals = [m for m in good if m.prefix == best.prefix and len(best.matched & m.matched) > half]
        rivals.sort(key=lambda m: (m.distance, -len(m.matched)))
        best = rivals[0]
        equal = [m for m in rivals if (m.distance, len(m.matched)) == (best.distance, len(best.matched))]
        equal.sort(key=lambda m: _age(m.family, knowledge))
        next_best = [m for m in rivals if m.family not in {e.family for e in equal}] + [
            m for m in rejected if m.prefix == best.prefix
        ]
        chosen.append((equal, min(next_best, key=_strangeness) if next_best else None))
        good = [m for m in good if not any(m is r for r in rivals)]
        if good:
            claimed |= _full_names(best)
    chosen.sort(key=lambda row: (knowledge.members()[row[0][0].family]["role"] != "diffusion", -len(row[0][0].matched)))
    return chosen, rejected


def _foreign(match: Match, view: View, prefixes: Iterable[str]) -> list[str]:
    """Names beside the model's own, but for those under a longer prefix, which are another model's."""
    own = match.matched.union(match.markers) if match.markers else match.matched
    if view.tensors.keys() <= own:
        return []
    n = len(match.prefix)
    others = tuple(p[n:] for p in prefixes if len(p) > n and p.startswith(match.prefix))
    return [x for x in view.tensors if x not in own and not x.startswith(others)]


def _without_fallbacks(
    good: list[Match], rejected: list[Match], unpacked: Unpacked, knowledge: Knowledge
) -> list[Match]:
    """Readings as a mere kind of model count only where no exact family reads the file, or no more than a part of it.

    One that tolerates most of a file gives way to an exact family that is only damaged, too: then nothing is known.
    """
    exact = [m for m in good if not _is_fallback(m.family, knowledge)]
    enough = NEAR_SHARE * len(unpacked.tensors)
    if len(exact) == len(good) or any(len(m.matched) >= enough for m in exact):
        return exact
    near = any(len(m.matched) >= enough and not _is_fallback(m.family, knowledge) for m in rejected)
    kept = []
    for match in good:
        explained = len(match.matched) + (0 if near else len(match.tolerated))
        if not _is_fallback(match.family, knowledge) or explained >= FALLBACK_SHARE * len(unpacked.tensors):
            kept.append(match)
        else:
            match.refused = "that explains only a part of the file"
            rejected.append(match)
    return kept


def _strangeness(match: Match) -> tuple[int, int]:
    return (match.distance if not match.refused else 100_000, -len(match.matched))


def _tolerate(match: Match, knowledge: Knowledge) -> None:
    """Move foreign tensors that the family's file tolerates out of the count."""
    patterns = knowledge.grammar(match.family)["tolerate"]
    if patterns and match.foreign:
        tolerated = _globs(tuple(patterns))
        match.tolerated = [n for n in match.foreign if tolerated.match(n)]
        match.foreign = [n for n in match.foreign if not tolerated.match(n)]


def _age(family: str, knowledge: Knowledge) -> tuple[str, str]:
    return (str(knowledge.family(family).get("released", "9999")), family)


def _assumed(header: Header, unpacked: Unpacked, knowledge: Knowledge, family: str, read: Reader | None) -> Component:
    """The file read as the family the user names, under whichever prefix and layout fits best."""
    document = knowledge.grammar(family)
    readings = []
    for prefix in prefixes_of(document["id"], unpacked, knowledge.index):
        for layout in document["layouts"]:
            match = Solver(document, layout, unpacked.view(prefix, header.format == "gguf")).solve(whatever=True)
            readings.append(match)
    best = max(readings, key=lambda m: (len(m.matched), -len(m.prefix)))
    best.family = family
    component = build(header, unpacked, knowledge, [best], None, read)
    component = replace(component, family=family, also=(), assumed=True)
    if best.refused or len(best.matched) * 2 < len(unpacked.tensors) or not best.matched:
        why = best.refused or f"of its {len(unpacked.tensors):,} tensors only {len(best.matched):,} fit that model"
        problem = FileProblem(
            "file/assumed",
            f"{shown(header.source)} is taken for {component.title} on your word, but its tensors say otherwise: {why}",
            "Leave out --assume, or name the family that the file really is.",
            {"family": family, "matched": len(best.matched), "tensors": len(unpacked.tensors)},
        )
        component = replace(component, problems=(*component.problems, problem))
    return component
