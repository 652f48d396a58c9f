"""The alphas of an adapter: single numbers among its tensors that say how strongly each change counts."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from math import isfinite
from typing import Any

from compatkit.adapters.keys import Key, Spellings
from compatkit.vocabulary import Tensor

#: The bytes of one small tensor.
Scalar = Callable[[Tensor], bytes]
_FORMATS = {"F32": "<f", "F16": "<e", "F64": "<d", "I64": "<q", "I32": "<i", "I16": "<h", "U8": "<B", "I8": "<b"}
#: alpha / rank beyond these is no strength that anything was trained at: the widest in use are 1 / 256 and 8.
LEAST, MOST = 1 / 1024, 16.0
#: Modules of a file, and bytes of each of their matrices, that tell a file from a hole.
_LOOKED, _START = 2, 256
#: Algorithms whose scale is alpha / rank in every loader.
_SCALED = ("product", "hadamard")


def number(raw: bytes, dtype: str) -> float | None:
    """The number in a scalar's bytes, None for a dtype that is no plain number."""
    if dtype == "BF16" and len(raw) == 2:
        return float(struct.unpack("<f", b"\0\0" + raw)[0])
    layout = _FORMATS.get(dtype)
    if layout is None or struct.calcsize(layout) != len(raw):
        return None
    return float(struct.unpack(layout, raw)[0])


def alpha_facts(
    modules: Mapping[str, Sequence[Key]], tensors: Mapping[str, Tensor], spelled: Spellings, read: Scalar
) -> dict[str, Any]:
    """What the alphas say: alpha / rank from least to most, and the modules whose alpha is no number, 0, or far off.

    A file whose alphas are all zero may be a hole: they count only where its matrices hold something.
    """
    scales: list[float] = []
    broken: list[str] = []
    zero: list[str] = []
    far: list[str] = []
    for module, keys in modules.items():
        own = [k.name for k in keys if k.sense.part == "alpha" and not k.sense.algorithm]
        if not own or tensors[own[0]].elements != 1 or not tensors[own[0]].offset:
            continue
        alpha = tensors[own[0]]
        found = number(read(alpha), alpha.dtype)
        if found is None:
            continue
        rank = _rank(keys, tensors, spelled)
        if not isfinite(found):
            broken.append(module)
        elif found == 0:
            zero.append(module)
        elif rank:
            scales.append(found / rank)
            if not LEAST <= abs(found / rank) <= MOST:
                far.append(module)
    if not scales and not broken and not (zero and _filled(modules, tensors, read)):
        return {}
    facts: dict[str, Any] = {}
    if scales:
        facts["alpha_over_rank"] = sorted({round(min(scales), 6), round(max(scales), 6)})
    for name, found_ in (("alpha_broken", broken), ("alpha_zero", zero), ("alpha_far", far)):
        if found_:
            facts[name], facts[f"{name}_first"] = len(found_), found_[0]
    return facts


def _filled(modules: Mapping[str, Sequence[Key]], tensors: Mapping[str, Tensor], read: Scalar) -> bool:
    """Whether the start of one of the first matrices is anything but zeros."""
    names = [k.name for keys in islice(modules.values(), _LOOKED) for k in keys if k.sense.algorithm]
    starts = (tensors[n]._replace(nbytes=min(_START, tensors[n].nbytes)) for n in names if tensors[n].offset)
    return any(any(read(start)) for start in starts)


def _rank(keys: Sequence[Key], tensors: Mapping[str, Tensor], spelled: Spellings) -> int | None:
    for key in keys:
        entry = spelled.algorithms.get(key.sense.algorithm)
        if entry and entry["math"] in _SCALED and entry["rank"][0] == key.sense.part:
            shape = tensors[key.name].shape
            return int(shape[entry["rank"][1]]) if len(shape) > entry["rank"][1] else None
    return None
