"""Name patterns of the shape grammar: `layers.{layers}.attention.to_{q,k,v}.weight`.

Spelling inside braces:

    {layers}      a run: 0 .. layers-1, and `layers` is bound to its length
    {a..b}        a, a+1, … b-1 (`{..b}` starts at 0); where b is a bare symbol the run binds it
    {a..b..s}     every s-th index
    {n-1}         one index, computed
    {q,k,v}       alternatives, each a name of its own

A compiled pattern is `(format, ranges)`: a %-format with one %d per range, and `[start, stop, step]` expressions.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from compatkit.knowledge.expr import Expr, ExprError, evaluate, parse

Range = tuple[Expr, Expr, int]

_BRACES = re.compile(r"\{([^{}]*)\}")
_SYMBOL = re.compile(r"[A-Za-z_]\w*\Z")


class Pattern(NamedTuple):
    """A set of names: `format % indexes` for every combination of indexes in `ranges`."""

    format: str
    ranges: tuple[Range, ...]


def expand_alternatives(text: str) -> list[str]:
    """`to_{q,k}.weight` -> [`to_q.weight`, `to_k.weight`]; runs are left alone."""
    pieces: list[list[str]] = []
    position = 0
    for match in _BRACES.finditer(text):
        pieces.append([text[position : match.start()]])
        inside = match[1]
        pieces.append([s.strip() for s in inside.split(",")] if "," in inside else [match[0]])
        position = match.end()
    pieces.append([text[position:]])
    return ["".join(combination) for combination in itertools.product(*pieces)]


def parse_pattern(text: str, substitute: Mapping[str, Expr] | None = None) -> Pattern:
    """Compile one name pattern without alternatives.

    Raises:
        ExprError: an index that is not understood.
    """
    format_, ranges, position = "", [], 0
    for match in _BRACES.finditer(text):
        format_ += text[position : match.start()].replace("%", "%%")
        ranges.append(_range(match[1].strip(), substitute or {}))
        format_ += "%d"
        position = match.end()
    format_ += text[position:].replace("%", "%%")
    if "{" in format_ or "}" in format_:
        raise ExprError(f"{text!r}: braces do not pair")
    return settle(Pattern(format_, tuple(ranges)))


def _range(inside: str, sub: Mapping[str, Expr]) -> Range:
    if ".." in inside:
        bounds = inside.split("..")
        if len(bounds) > 3:
            raise ExprError(f"{{{inside}}}: at most start..stop..step")
        start = parse(bounds[0], sub) if bounds[0].strip() else 0
        step = parse(bounds[2], sub) if len(bounds) == 3 else 1
        if not isinstance(step, int) or step < 1:
            raise ExprError(f"{{{inside}}}: the step must be a number, 1 or more")
        return (start, parse(bounds[1], sub), step)
    index = parse(inside, sub)
    if _SYMBOL.match(inside):
        return (0, index, 1)
    return (index, ["+", index, 1] if not isinstance(index, int) else index + 1, 1)


def settle(pattern: Pattern) -> Pattern:
    """Write ranges that hold exactly one known index into the name itself."""
    kept: list[Range] = []
    parts = pattern.format.replace("%%", "\0").split("%d")
    out = parts[0]
    for piece, (start, stop, step) in zip(parts[1:], pattern.ranges, strict=True):
        if isinstance(start, int) and isinstance(stop, int) and stop == start + 1:
            out += f"{start}{piece}"
        else:
            kept.append((start, stop, step))
            out += f"%d{piece}"
    return Pattern(out.replace("\0", "%%"), tuple(kept))


def names(pattern: Pattern, env: Mapping[str, int]) -> Iterator[str]:
    """Every name of the pattern under `env`. Raises KeyError for an unbound symbol."""
    format_, ranges = pattern
    if not ranges:
        yield format_ % ()
        return
    spans = [range(evaluate(a, env), evaluate(b, env), s) for a, b, s in ranges]
    if len(spans) == 1:
        for i in spans[0]:
            yield format_ % i
        return
    for combination in itertools.product(*spans):
        yield format_ % combination


def count(pattern: Pattern, env: Mapping[str, int]) -> int:
    """How many names the pattern has under `env`, without listing them."""
    n = 1
    for a, b, s in pattern.ranges:
        n *= max(0, -((evaluate(a, env) - evaluate(b, env)) // s))  # len(range()) has a limit
    return n


def first_name(pattern: Pattern) -> str | None:
    """The name with every index at its start, if the starts are plain numbers."""
    starts = [a for a, _, _ in pattern.ranges]
    if not all(isinstance(a, int) for a in starts):
        return None
    return pattern.format % tuple(starts)
