"""`values:` of a family file: facts that one number of one small tensor decides, where the header cannot.

    values:
      - tensor: "layers.{layers-2}.ffn_norm1.weight"   # one name of the family's own layout; indexes may be computed
        statistic: std                                 # std (of all elements), mean, max_abs, min, max; sha256 of bytes
        compare: "< 0.42"                              # what the number is held against; `== 0123…` for sha256
        sets: fp16                                     # the fact; true or false, unless the next two say otherwise
        then: true
        otherwise: false
        why: …
        sources: [{what: …, ref: …}]

The tensor is found in every layout that only renames it. It is read when the file is this family's, and not otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compatkit.knowledge.expr import Expr, ExprError
from compatkit.knowledge.keymap import Origin
from compatkit.knowledge.lines import Line
from compatkit.knowledge.patterns import Pattern, parse_pattern
from compatkit.knowledge.yamlfile import RuleFile

STATISTICS = ("std", "mean", "max_abs", "min", "max", "sha256")
_KEYS = ("tensor", "statistic", "compare", "sets", "then", "otherwise", "why", "sources")
_COMPARE = re.compile(r"\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*\Z")


def parse_values(
    file: RuleFile, entries: Sequence[Any], layouts: Sequence[tuple[str, Sequence[Line], Sequence[Origin]]]
) -> list[dict[str, Any]]:
    """The entries as compiled: `places` maps a layout to `[format, indexes]`. The first layout is the family's own.

    Raises:
        RuleFileError: at what is wrong.
    """
    out = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise file.error(("values", i), "a value is a mapping")
        for key in entry:
            if key not in _KEYS:
                raise file.error(("values", i, key), f"unknown key {key!r} (known: {', '.join(_KEYS)})")
        for key in ("tensor", "statistic", "compare", "sets"):
            if key not in entry:
                raise file.error(("values", i), f"{key} is missing")
        if entry["statistic"] not in STATISTICS:
            raise file.error(("values", i, "statistic"), f"one of {', '.join(STATISTICS)}")
        try:
            pattern = parse_pattern(str(entry["tensor"]))
        except ExprError as e:
            raise file.error(("values", i, "tensor"), str(e)) from None
        places = _places(pattern, layouts)
        if not places:
            raise file.error(("values", i, "tensor"), f"the family has no tensor {entry['tensor']!r}")
        operator, limit = _comparison(file, i, entry)
        out.append(
            {
                "places": places,
                "statistic": entry["statistic"],
                "operator": operator,
                "limit": limit,
                "sets": str(entry["sets"]),
                "then": entry.get("then", True),
                "otherwise": entry.get("otherwise", False),
            }
        )
    return out


def _comparison(file: RuleFile, i: int, entry: Mapping[str, Any]) -> tuple[str, Any]:
    found = _COMPARE.match(str(entry["compare"]))
    if not found:
        raise file.error(("values", i, "compare"), "a comparison and a limit, like '< 0.42'")
    if entry["statistic"] == "sha256":
        if found[1] not in ("==", "!=") or not re.fullmatch("[0-9a-f]{64}", found[2]):
            raise file.error(("values", i, "compare"), "a sha256 is compared with == or != and 64 hex digits")
        return found[1], found[2]
    try:
        return found[1], float(found[2])
    except ValueError:
        raise file.error(("values", i, "compare"), f"{found[2]!r} is no number") from None


def _places(
    pattern: Pattern, layouts: Sequence[tuple[str, Sequence[Line], Sequence[Origin]]]
) -> dict[str, tuple[str, list[Expr]]]:
    name, own, _ = layouts[0]
    for number, line in enumerate(own):
        indexes = _indexes(line, pattern)
        if indexes is None:
            continue
        places = {name: (line.pattern.format, indexes)}
        for other, lines, origins in layouts[1:]:
            for mapped, origin in zip(lines, origins, strict=True):
                if origin.sources == (number,) and origin.how == "copy":
                    places[other] = (mapped.pattern.format, indexes)
        return places
    return {}


def _indexes(line: Line, pattern: Pattern) -> list[Expr] | None:
    """What stands at each run of a line, if the line has this name."""
    found = re.fullmatch(re.escape(line.pattern.format).replace("%d", r"(\d+|%d)"), pattern.format)
    if found is None:
        return None
    starts = iter([start for start, _, _ in pattern.ranges])
    return [next(starts) if piece == "%d" else int(piece) for piece in found.groups()]
