"""Key maps: how another layout spells the tensors of a family's own.

A map is a list of operations, each anchored on whole segments of a name:

    - rename: {"double_blocks.{i}.img_attn.proj": "transformer_blocks.{i}.attn.to_out.0"}
    - split:  {from: "**.attention.qkv", to: ["**.attention.to_q", "**.attention.to_k", "**.attention.to_v"]}
    - fuse:   {from: ["**.q", "**.k"], to: "**.qk"}
    - drop:   ["**.rope.freqs"]          # own tensors that this layout has not
    - swap:   ["final_layer.adaLN.1"]    # halves along rows are exchanged; `{name: rows}`: where it has so many
    - reshape: {"**.proj_in.weight": [o, i], "**.attn.q.weight": ["@0", "@1"]}   # `@0`: the tensor's own first side
    - add:    {tree}                     # tensors only this layout has

`{i}` stands for one index, `*` for one segment, `**` (first only) for any leading segments; what follows the match is
kept. `split` takes `rows` (sizes) where the pieces are unequal. A `to` index may be computed from a literal one:
`{3-i}`. Operations apply in order, each to the names the ones before it made.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from compatkit.knowledge.expr import Expr, ExprError, evaluate, parse
from compatkit.knowledge.lines import Complain, Line, Shape, _shapes
from compatkit.knowledge.patterns import Pattern

OPERATIONS = ("rename", "split", "fuse", "drop", "swap", "reshape", "add")


class Origin(Struct, frozen=True):
    """Where a mapped line's tensors come from: lines of the family's own layout, and how they are cut or joined.

    `how` is "copy", "rows" (rows `start` .. `start + size` of the sources joined), "cat" (the sources joined by rows),
    "swap" (the halves of the source exchanged) or "new".
    """

    sources: tuple[int, ...]
    how: str = "copy"
    start: Expr = 0
    size: Expr = 0


class Mapped(Struct, frozen=True):
    """A line in the other layout, and its origin."""

    line: Line
    origin: Origin


_TOKEN = re.compile(r"\{([^{}]*)\}")


class Matcher:
    """One `from` pattern, ready to be tried on the names of lines."""

    def __init__(self, text: str) -> None:
        self.text = text
        captures = [t.strip() for t in _TOKEN.findall(text)]
        odd = next((c for c in captures if not c.isidentifier()), None)
        if odd is not None:
            raise ExprError(f"{text!r}: {{{odd}}} must be a name; an index is computed on the other side")
        if len(set(captures)) < len(captures) or text.split(".").count("*") > 1:
            raise ExprError(f"{text!r}: every index needs a name of its own, and * may stand once")
        segments = text.split(".")
        self.anywhere = segments[0] == "**"
        self.segments = segments[1:] if self.anywhere else segments
        inside = r"\.".join(_segment_regex(s) for s in self.segments)
        lead = r"(?:(?P<_lead>.+?)\.)?" if self.anywhere else "(?P<_lead>)"
        self.regex = re.compile(rf"{lead}{inside}(?:\.(?P<_trail>.+))?")
        #: A name that does not hold this text (start with it, if `**` does not lead) is not looked at further.
        plain = [s for s in self.segments if "{" not in s and s != "*"]
        self.needle = max(plain, key=len, default="") if self.anywhere else re.split(r"[{*]", text)[0]

    def match(self, name: str) -> tuple[str, dict[str, str], str] | None:
        """(leading text, captures, trailing text) of the first match, or None. Index runs are `%d` in `name`."""
        if not (self.needle in name if self.anywhere else name.startswith(self.needle)):
            return None
        found = self.regex.fullmatch(name)
        if not found:
            return None
        captures = found.groupdict()
        lead, trail = captures.pop("_lead"), captures.pop("_trail")
        return lead or "", captures, trail or ""


def _segment_regex(segment: str) -> str:
    if segment == "*":
        return r"(?P<_star>[^.]+)"
    out, position = "", 0
    for token in _TOKEN.finditer(segment):
        out += re.escape(segment[position : token.start()]) + rf"(?P<{token[1].strip()}>\d+|%d)"
        position = token.end()
    return out + re.escape(segment[position:])


def render(to: str, lead: str, captures: Mapping[str, str], trail: str) -> str:
    """The new name. Raises ExprError where an index would have to be computed from a run."""
    segments = to.split(".")
    if segments[0] == "**":
        segments = segments[1:]
    else:
        lead = ""
    out = []
    for segment in segments:
        if segment == "*":
            out.append(captures.get("_star", ""))
            continue
        out.append(_TOKEN.sub(lambda t: _index(t[1].strip(), captures), segment))
    return ".".join(p for p in (lead, ".".join(out), trail) if p)


def _index(inside: str, captures: Mapping[str, str]) -> str:
    if inside in captures:
        return captures[inside]
    expr = parse(inside)
    numbers = {k: int(v) for k, v in captures.items() if v.isdigit()}
    try:
        return str(evaluate(expr, numbers))
    except KeyError:
        raise ExprError(f"{{{inside}}} needs a literal index, and the name has a run there") from None


def apply(
    operations: list[Any], lines: list[Line], complain: Complain, where: tuple[Hashable, ...], expand_added: Any
) -> list[Mapped]:
    """The lines of the other layout.

    `expand_added(tree, where) -> list[Line]` expands what `add` brings.
    """
    mapped = [Mapped(line, Origin((i,))) for i, line in enumerate(lines)]
    for number, operation in enumerate(operations):
        at = (*where, number)
        if not isinstance(operation, Mapping) or len(operation) != 1 or next(iter(operation)) not in OPERATIONS:
            raise complain(at, f"an operation is one of {', '.join(OPERATIONS)}")
        kind, argument = next(iter(operation.items()))
        try:
            if kind == "add":
                mapped += [Mapped(line, Origin((), "new")) for line in expand_added(argument, (*at, kind))]
            elif kind == "split":
                mapped = _split(argument, mapped)
            elif kind == "fuse":
                mapped = _fuse(argument, mapped)
            elif kind == "rename":
                for source, target in argument.items():
                    mapped = _rename(Matcher(str(source)), str(target), mapped)
            elif kind == "drop":
                matchers = [Matcher(str(p)) for p in argument]
                mapped = [m for m in mapped if not any(x.match(m.line.pattern.format) for x in matchers)]
            elif kind == "swap":
                mapped = [_swapped(m) if _swaps(argument, m) else m for m in mapped]
            else:
                for source, shape in argument.items():
                    mapped = _reshape(Matcher(str(source)), shape, mapped)
        except ExprError as e:
            raise complain((*at, kind), str(e)) from None
        except (AttributeError, TypeError, KeyError, ValueError):
            raise complain((*at, kind), f"{kind} is not written as the documentation of key maps says") from None
    twin = _twin(mapped)
    if twin:
        raise complain(where, f"two tensors would be called {twin!r}")
    return mapped


def _twin(mapped: list[Mapped]) -> str:
    """A name that two tensors would have, or ''."""
    seen: dict[str, set[str]] = {}
    for m in mapped:
        if m.line.group < 0 and m.line.when == 1:
            indexes = str(m.line.pattern.ranges) if m.line.pattern.ranges else ""
            others = seen.setdefault(m.line.pattern.format, set())
            if indexes in others:
                return m.line.pattern.format.replace("%d", "{}")
            others.add(indexes)
    return ""


def _named(line: Line, name: str) -> Line:
    if name.count("%d") != line.pattern.format.count("%d"):
        raise ExprError(f"{name!r} must keep every index of {line.pattern.format!r}")
    return replace(line, pattern=Pattern(name, line.pattern.ranges))


def _swaps(argument: list[Any], m: Mapped) -> bool:
    """Whether a line is one of those to swap: by its name, and by its rows where an entry is `{name: rows}`."""
    for entry in argument:
        for name, rows in entry.items() if isinstance(entry, Mapping) else [(entry, None)]:
            if Matcher(str(name)).match(m.line.pattern.format):
                first = m.line.shapes[0][0] if m.line.shapes and m.line.shapes[0] else None
                if rows is None or first == parse(rows):
                    return True
    return False


def _swapped(m: Mapped) -> Mapped:
    turned = {"copy": "swap", "swap": "copy", "new": "new"}.get(m.origin.how)
    if turned is None:
        raise ExprError(f"{m.line.pattern.format!r} is cut or joined: swap it before that")
    return replace(m, origin=replace(m.origin, how=turned))


def _rename(matcher: Matcher, target: str, mapped: list[Mapped]) -> list[Mapped]:
    out = []
    for m in mapped:
        found = matcher.match(m.line.pattern.format)
        out.append(replace(m, line=_named(m.line, render(target, *found))) if found else m)
    return out


def _split(argument: Mapping[str, Any], mapped: list[Mapped]) -> list[Mapped]:
    matcher, targets = Matcher(argument["from"]), argument["to"]
    sizes = [parse(r) for r in argument["rows"]] if "rows" in argument else None
    out = []
    for m in mapped:
        found = matcher.match(m.line.pattern.format)
        if not found or not m.line.shapes or not m.line.shapes[0]:
            out.append(m)
            continue
        rows = m.line.shapes[0][0]
        parts = sizes or [_divide(rows, len(targets))] * len(targets)
        start: Expr = 0
        for target, size in zip(targets, parts, strict=True):
            shapes = tuple((size, *shape[1:]) for shape in m.line.shapes)
            line = replace(_named(m.line, render(target, *found)), shapes=shapes)
            out.append(Mapped(line, _cut(m, start, size)))
            start = parse(0) if size is None else _plus(start, size)
    return out


def _cut(m: Mapped, start: Expr, size: Expr) -> Origin:
    """The origin of some rows of `m`, which may itself be cut or joined."""
    if m.origin.how == "new":
        return m.origin
    if m.origin.how == "swap":
        raise ExprError(f"{m.line.pattern.format!r} is swapped: split it before that")
    return Origin(m.origin.sources, "rows", _plus(m.origin.start, start), size)


def _plus(a: Expr, b: Expr) -> Expr:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return b if a == 0 else a if b == 0 else ["+", a, b]


def _divide(rows: Expr, n: int) -> Expr:
    if rows is None:
        return None
    if isinstance(rows, int):
        if rows % n:
            raise ExprError(f"{rows} rows do not split into {n} equal parts: say `rows`")
        return rows // n
    if isinstance(rows, list) and rows[0] == "*" and rows[1] == n:
        return rows[2]
    return ["/", rows, n]


def _fuse(argument: Mapping[str, Any], mapped: list[Mapped]) -> list[Mapped]:
    matchers, target = [Matcher(p) for p in argument["from"]], argument["to"]
    waiting: dict[tuple[str, str, int, str], dict[int, Mapped]] = {}
    out: list[Mapped] = []
    for m in mapped:
        for position, matcher in enumerate(matchers):
            found = matcher.match(m.line.pattern.format)
            if found:
                name = render(target, *found)
                key = (name, str(m.line.pattern.ranges), m.line.group, str(m.line.when))
                pieces = waiting.setdefault(key, {})
                if position in pieces:
                    raise ExprError(f"{m.line.pattern.format!r} is there twice")
                pieces[position] = m
                if len(pieces) == len(matchers):
                    out.append(_joined(name, [pieces[i] for i in range(len(matchers))]))
                    del waiting[key]
                break
        else:
            out.append(m)
    if waiting:
        (name, _, _, _), pieces = next(iter(waiting.items()))
        raise ExprError(f"fuse finds only {len(pieces)} of {len(matchers)} parts of {name!r}")
    return out


def _joined(name: str, pieces: list[Mapped]) -> Mapped:
    first = pieces[0].line
    shape: Shape | None = None
    if all(p.line.shapes for p in pieces):
        rows: Expr = 0
        for p in pieces:
            rows = _plus(rows, p.line.shapes[0][0])  # type: ignore[index]
        shape = (rows, *first.shapes[0][1:])  # type: ignore[index]
    line = replace(_named(first, name), shapes=(shape,) if shape else None)
    return Mapped(line, _union(name, [p.origin for p in pieces]))


def _union(name: str, origins: list[Origin]) -> Origin:
    """The origin of tensors joined by rows: whole ones, or pieces that lay side by side before."""
    first = origins[0]
    kinds = {o.how for o in origins}
    if kinds <= {"copy", "cat"}:
        return Origin(tuple(s for o in origins for s in o.sources), "cat")
    if kinds == {"new"}:
        return first
    end = first.start
    for o in origins:
        if o.how != "rows" or o.sources != first.sources or o.start != end:
            raise ExprError(f"{name!r} would join pieces that were not side by side: fuse before they are cut")
        end = _plus(end, o.size)
    size: Expr = 0
    for o in origins:
        size = _plus(size, o.size)
    return replace(first, size=size)


def _reshape(matcher: Matcher, shape: list[Any], mapped: list[Mapped]) -> list[Mapped]:
    out = []
    for m in mapped:
        if m.line.shapes and matcher.match(m.line.pattern.format):
            m = replace(
                m, line=replace(m.line, shapes=tuple(s for own in m.line.shapes for s in _reshaped(shape, own)))
            )
        out.append(m)
    return out


def _reshaped(shape: list[Any], own: Shape) -> tuple[Shape, ...]:
    """`shape` as written, its `@n` replaced by the sides the tensor has; none where it has no such side."""
    wanted = [int(side[1:]) if isinstance(side, str) and side.startswith("@") else None for side in shape]
    if any(n is not None and n >= len(own) for n in wanted):
        return ()
    if all(n is None for n in wanted):
        return _shapes(shape, {})
    return (tuple(own[n] if n is not None else parse(side) for n, side in zip(wanted, shape, strict=True)),)
