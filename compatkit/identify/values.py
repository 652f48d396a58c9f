"""Facts a few kilobytes decide where the header cannot: a small tensor is read, and one number of it compared.

Nothing is read but for a family that says so (`values:` in its file), and every read is listed. A tensor that is too
large, missing, packed, or all zeros (a hole in the file) decides nothing.
"""

from __future__ import annotations

import math
import operator
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from compatkit.identify.packing import Unpacked
from compatkit.identify.schemes import Reader
from compatkit.identify.solve import Match
from compatkit.knowledge.expr import evaluate
from compatkit.vocabulary import Header, ValueRead

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def decide(
    values: Sequence[Mapping[str, Any]], match: Match, unpacked: Unpacked, header: Header, read: Reader
) -> tuple[dict[str, Any], list[ValueRead]]:
    """The facts these values tell about a matched file, and what was read for them."""
    names = {i: name for i, value in enumerate(values) if (name := _name(value, match, unpacked))}
    raw = read(names.values()) if names else {}
    facts: dict[str, Any] = {}
    reads: list[ValueRead] = []
    for i, name in names.items():
        if name not in raw:
            continue
        value = values[i]
        number = statistic(value["statistic"], raw[name], header.tensors[name].dtype)
        if number is None:
            reads.append(ValueRead(name, len(raw[name])))
            continue
        holds = _COMPARE[value["operator"]](number, value["limit"])
        fact = facts[value["sets"]] = value["then"] if holds else value["otherwise"]
        shown = f"{number:.4g}" if isinstance(number, float) else f"{number[:12]}…"
        limit = value["limit"] if isinstance(number, float) else f"{value['limit'][:12]}…"
        compared = f"{'' if holds else 'not '}{value['operator']} {limit}"
        says = f"{value['statistic']} {shown}, {compared}: {value['sets']} {str(fact).lower()}"
        reads.append(ValueRead(name, len(raw[name]), says))
    return facts, reads


def _name(value: Mapping[str, Any], match: Match, unpacked: Unpacked) -> str:
    """The tensor's name in the file, or ''."""
    place = value["places"].get(match.layout)
    if place is None:
        return ""
    try:
        name = match.prefix + str(place[0] % tuple(evaluate(e, match.symbols) for e in place[1]))
    except KeyError:
        return ""
    return name if name in unpacked.tensors and name not in unpacked.loose else ""


def statistic(kind: str, raw: bytes, dtype: str) -> float | str | None:
    """One number of a tensor's bytes; None where they cannot be decoded or hold something that is no number."""
    if kind == "sha256":
        from hashlib import sha256  # loads OpenSSL: only for the few files that are told by a value

        return sha256(raw).hexdigest()
    numbers = decode(raw, dtype)
    if not numbers or not all(map(math.isfinite, numbers)):
        return None
    if kind == "max_abs":
        return max(map(abs, numbers))
    if kind in ("min", "max"):
        return min(numbers) if kind == "min" else max(numbers)
    mean = math.fsum(numbers) / len(numbers)
    if kind == "mean":
        return mean
    return math.sqrt(math.fsum([(x - mean) ** 2 for x in numbers]) / len(numbers))


def decode(raw: bytes, dtype: str) -> Sequence[float] | None:
    """The numbers in a plain floating-point tensor, little-endian; None for any other type."""
    if dtype in ("F64", "F32", "F16"):
        code, size = {"F64": ("d", 8), "F32": ("f", 4), "F16": ("e", 2)}[dtype]
        return struct.unpack(f"<{len(raw) // size}{code}", raw[: len(raw) // size * size])
    if dtype == "BF16":
        wide = bytearray(len(raw) // 2 * 4)
        wide[2::4], wide[3::4] = raw[0 : len(raw) // 2 * 2 : 2], raw[1::2]
        return struct.unpack(f"<{len(wide) // 4}f", wide)
    if dtype in ("F8_E4M3", "F8_E5M2"):
        table = _fp8(dtype)
        return array("d", [table[byte] for byte in raw])
    return None


@cache
def _fp8(dtype: str) -> tuple[float, ...]:
    if dtype == "F8_E5M2":  # the upper half of an F16
        return tuple(struct.unpack("<e", bytes((0, byte)))[0] for byte in range(256))
    out = []
    for byte in range(256):
        exponent, fraction = byte >> 3 & 15, byte & 7
        size = fraction / 8 * 2.0**-6 if not exponent else (1 + fraction / 8) * 2.0 ** (exponent - 7)
        size = math.nan if exponent == 15 and fraction == 7 else size
        out.append(-size if byte & 128 else size)
    return tuple(out)
