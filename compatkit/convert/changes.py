"""An adapter file as changes of a base's own tensors: which tensors of the file, on which rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from compatkit.adapters.fit import FITS, Shape
from compatkit.adapters.keys import Key, Spellings
from compatkit.adapters.places import Module, Place, total
from compatkit.adapters.speller import Speller
from compatkit.convert.cut import Refused
from compatkit.convert.scale import Alpha, alpha_of
from compatkit.convert.values import Value

#: Parts that stand beside an algorithm's own.
COMPANIONS = ("alpha", "dora", "dora_peft", "scalar")
#: The outer and inner matrices of algorithms that are products: rows belong to the outer ones, ranks to both.
OUTER_INNER = {"product": (("up", "down"),), "hadamard": (("w1_a", "w1_b"), ("w2_a", "w2_b"))}
_SHOWN = 3
_ADAPTER_METADATA = "lora_adapter_metadata"


class Change(Struct):
    """What one algorithm does to one tensor of the base: the module as the file spells it, its tensors by part, and the
    rows of the base that its output rows are, in order."""

    module: str
    algorithm: str
    math: str
    kind: str
    place: Place
    layout: str
    parts: dict[str, Value]
    endings: dict[str, str]
    alpha: Alpha | None = None
    folded: bool = False

    @property
    def rows(self) -> int:
        """How many rows its output has."""
        return total(self.place)

    @property
    def rank(self) -> int | None:
        """The rank of the product, or of each of two products; None for other algorithms."""
        inner = OUTER_INNER[self.math][0][1] if self.math in OUTER_INNER else ""
        return self.parts[inner].shape[0] if inner else None


class Adapter(Struct):
    """A whole file: its changes, and tensors that are of no adapter."""

    changes: list[Change]
    junk: list[str]
    alphas_from: str = ""


def read_changes(
    names: Mapping[str, Shape],
    value: Callable[[str], Value],
    spelled: Spellings,
    speller: Speller,
    metadata: Mapping[str, str],
    config: Mapping[str, Any] | None = None,
) -> Adapter:
    """Every change of a file.

    Args:
        names: the file's tensors and their shapes.
        value: a tensor's value by its name.
        spelled: the spellings of adapters.
        speller: the base's names.
        metadata: of the file; PEFT keeps alpha there.
        config: of the `adapter_config.json` beside it, if there is one.

    Raises:
        Refused: modules that the base does not have or that do not fit it, two modules for the same rows.
    """
    keys, junk = spelled.keys(names)
    modules: dict[str, dict[str, Key]] = {}
    for key in keys:
        modules.setdefault(key.module, {})[key.ending] = key
    told = _told(metadata, config) if not any(k.sense.part == "alpha" for k in keys) else None
    changes: list[Change] = []
    lost: list[str] = []
    for module, own in modules.items():
        found = speller.find(module)
        made = _module(module, own, found, value, spelled)
        if made is None:
            lost.append(module)
            continue
        for change in made:
            if told is not None and change.math == "product":
                path = module[len(spelled.convention(module).prefix) :]
                change.alpha = told(path, change.rank or 0)
        changes += made
    if lost:
        title = speller.base.card.get("title") or speller.base.family
        raise Refused(f"{_some(lost)}: no such {'module' if len(lost) == 1 else 'modules'} in {title}")
    _fits(changes, speller)
    _once(changes)
    return Adapter(changes, junk, _source(metadata, config) if told else "")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _module(
    module: str,
    own: Mapping[str, Key],
    found: tuple[Module, str] | None,
    value: Callable[[str], Value],
    spelled: Spellings,
) -> list[Change] | None:
    if found is None:
        return None
    where, layout = found
    groups: dict[tuple[str, str], dict[str, Key]] = {}
    beside: dict[str, Key] = {}
    for key in own.values():
        sense = key.sense
        if not sense.algorithm:
            if sense.part not in COMPANIONS:
                raise Refused(
                    f"{key.name} is a whole tensor beside a LoRA: what a loader makes of it is its own matter"
                )
            beside[sense.part] = key
            continue
        full = spelled.algorithms[sense.algorithm]["math"] == "full"
        kind = "bias" if full and sense.part == "bias" else "weight"
        parts = groups.setdefault((sense.algorithm, kind), {})
        if sense.part in parts:
            raise Refused(f"{module} has its {sense.part} twice: {parts[sense.part].name} and {key.name}")
        parts[sense.part] = key
    if not groups:
        raise Refused(f"{module} has {', '.join(sorted(beside))}, but nothing that it would belong to")
    out = []
    first = next((g for g in groups if spelled.algorithms[g[0]]["math"] != "full"), next(iter(groups)))
    for (algorithm, kind), parts in groups.items():
        place = where.bias if kind == "bias" else where.weight
        if place is None:
            raise Refused(f"{module} has no {kind} in the base")
        change = Change(
            module,
            algorithm,
            str(spelled.algorithms[algorithm]["math"]),
            kind,
            place,
            layout,
            {p: value(k.name) for p, k in parts.items()},
            {p: k.ending for p, k in parts.items()},
        )
        if (algorithm, kind) == first:
            for part, key in beside.items():
                if part == "alpha":
                    try:
                        change.alpha = alpha_of(value(key.name))
                    except Refused as e:
                        raise Refused(f"{module}: {e}") from None
                else:
                    change.parts[part] = value(key.name)
                change.endings[part] = key.ending
        out.append(change)
    return out


def _fits(changes: list[Change], speller: Speller) -> None:
    """Every change must have the size of the rows it is for."""
    for change in changes:
        if any(0 in v.shape for v in change.parts.values()):
            raise Refused(f"{change.module} has a tensor of no elements (rank 0)")
        check = FITS.get(change.math)
        if check is None:
            continue
        shapes = {p: v.shape for p, v in change.parts.items() if p != "reshape"}
        if change.kind == "bias":
            shapes = {"weight": shapes["bias"]}
        elif change.math == "full" and "weight" not in shapes:
            continue
        own = speller.shapes[change.place[0].tensor]
        if None in own:
            continue
        wanted = (change.rows, *(s for s in own[1:] if s is not None))
        if "alpha" in change.endings:
            shapes["alpha"] = ()
        try:
            problem = check(shapes, wanted) if change.math != "product" or {"up", "down"} <= shapes.keys() else ""
        except KeyError as e:
            raise Refused(f"{change.module} has no {e.args[0]}") from None
        if change.math == "product" and not {"up", "down"} <= shapes.keys():
            raise Refused(f"{change.module} has one half of its pair of matrices only: the file lacks the other")
        if "reshape" in change.parts:
            problem = ""
        if problem:
            raise Refused(f"{change.module} does not fit the base: {problem}")


def _once(changes: list[Change]) -> None:
    """No rows may be changed by two modules in the same way: which of them counts is each loader's own choice."""
    taken: dict[tuple[str, str], list[tuple[int, int, Change]]] = {}
    for change in changes:
        for segment in change.place:
            rows = taken.setdefault((segment.tensor, change.algorithm), [])
            end = segment.start + segment.size
            for first, last, other in rows:
                if segment.start < last and first < end:
                    raise Refused(f"{other.module} and {change.module} change the same weight: the file holds it twice")
            rows.append((segment.start, end, change))


def _source(metadata: Mapping[str, str], config: Mapping[str, Any] | None) -> str:
    return "its metadata" if _ADAPTER_METADATA in metadata else "adapter_config.json" if config else ""


def _told(metadata: Mapping[str, str], config: Mapping[str, Any] | None) -> Callable[[str, int], Alpha | None] | None:
    """The alpha of a module as PEFT keeps it beside the tensors: module path, rank -> alpha; None if none is said."""
    found: Any = config
    text = metadata.get(_ADAPTER_METADATA)
    if isinstance(text, str):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
    if not isinstance(found, Mapping):
        return None
    fields: dict[str, Any] = {}
    for key, entry in found.items():
        fields.setdefault(str(key).rpartition(".")[2], entry)
    general, patterns = fields.get("lora_alpha"), fields.get("alpha_pattern") or {}
    if isinstance(general, bool) or not isinstance(general, int | float) or not isinstance(patterns, Mapping):
        return None

    def alpha(path: str, rank: int) -> Alpha | None:
        number = next((v for k, v in patterns.items() if path == k or path.endswith(f".{k}")), general)
        if isinstance(number, bool) or not isinstance(number, int | float):
            return None
        if fields.get("use_rslora") and rank:
            number = number * rank**0.5
        return None if number == rank else Alpha(float(number))

    return alpha
