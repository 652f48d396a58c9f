"""From the tree of a family file to its lines: name pattern, shape, group, condition.

Parts are macros over expressions: they are expanded here, symbolically, so that nothing of them is left when a header
is solved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from msgspec import Struct, field

from compatkit.knowledge.expr import Expr, ExprError, parse
from compatkit.knowledge.patterns import Pattern, expand_alternatives, parse_pattern

#: A shape: expressions, with None for "any size". A line's shapes are alternatives; None instead of a list: any shape.
Shape = tuple[Expr | None, ...]

_CALL = re.compile(r"([A-Za-z_]\w*)\s*\((.*)\)\s*\Z")
_MAX_LINES = 20_000


class Line(Struct, frozen=True):
    """Tensors of one name pattern, with the shapes they may have."""

    pattern: Pattern
    shapes: tuple[Shape, ...] | None
    group: int = -1
    when: Expr = 1


class Group(Struct):
    """Tensors that are there all or none. `choice` names a `one_of` it is an alternative of.

    `fact` is set to true/false (optional) or, for a choice, to `value` when this alternative is the one present.
    """

    fact: str = ""
    parent: int = -1
    choice: str = ""
    value: str = ""


class Part(Struct):
    """A named piece of a state dict with parameters: `lin(o, i)`."""

    parameters: tuple[str, ...]
    body: Any


Complain = Callable[[tuple[Hashable, ...], str], Exception]


def parse_parts(
    data: Mapping[str, Any], complain: Complain, where: tuple[Hashable, ...] = ("parts",)
) -> dict[str, Part]:
    """`{"lin(o, i)": body}` -> parts by name."""
    parts: dict[str, Part] = {}
    for head, body in data.items():
        match = _CALL.match(head)
        if not match:
            raise complain((*where, head), f"a part is written name(parameters), not {head!r}")
        parts[match[1]] = Part(tuple(p.strip() for p in match[2].split(",") if p.strip()), body)
    return parts


class Expansion(Struct):
    """Expands trees into lines. One per family."""

    parts: Mapping[str, Part]
    complain: Complain
    lines: list[Line] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def group(self, **fields: Any) -> int:
        """A new group's number."""
        self.groups.append(Group(**fields))
        return len(self.groups) - 1

    def tree(
        self,
        tree: Any,
        where: tuple[Hashable, ...],
        name: str = "",
        sub: Mapping[str, Expr] | None = None,
        group: int = -1,
        when: Expr = 1,
        depth: int = 0,
    ) -> None:
        """Expand one node: a mapping of names, a shape, `any`, or a call of a part."""
        if depth > 24 or len(self.lines) > _MAX_LINES:
            raise self.complain(where, "parts call each other without end")
        try:
            if isinstance(tree, Mapping):
                for key, value in tree.items():
                    self._entry(str(key), value, (*where, key), name, sub or {}, group, when, depth)
            elif isinstance(tree, list) or tree == "any":
                shapes = None if tree == "any" else _shapes(tree, sub or {})
                for text in expand_alternatives(name):
                    self.lines.append(Line(_pattern(text), shapes, group, when))
            elif isinstance(tree, str) and (match := _CALL.match(tree)):
                self._call(match[1], _arguments(match[2]), where, name, sub or {}, group, when, depth)
            else:
                raise self.complain(
                    where, f"expected a shape like [o, i], a part like lin(o, i), or a mapping; got {tree!r}"
                )
        except ExprError as e:
            raise self.complain(where, str(e)) from None

    def _entry(
        self,
        key: str,
        value: Any,
        where: tuple[Hashable, ...],
        name: str,
        sub: Mapping[str, Expr],
        group: int,
        when: Expr,
        depth: int,
    ) -> None:
        key, _, condition = key.partition(" if ")
        if condition:
            test = self._parse(condition, sub, where)
            if test == 0:
                return
            when = when if test == 1 else test if when == 1 else ["and", when, test]
        if key.endswith("?"):
            key, group = key[:-1], self.group(parent=group)
        key = _substitute_runs(key.strip(), sub)
        full = f"{name}.{key}" if name and key else name or key
        if "[]" not in key:
            self.tree(value, where, full, sub, group, when, depth + 1)
            return
        if not isinstance(value, Mapping):
            raise self.complain(where, "a table is written {part: {index: [arguments]}}")
        for part, rows in value.items():
            if not isinstance(rows, Mapping):
                raise self.complain((*where, part), "a table is written {part: {index: [arguments]}}")
            for index, arguments in rows.items():
                at = full.replace("[]", str(index))
                listed = arguments if isinstance(arguments, list) else [arguments]
                self._call(str(part), listed, (*where, part, index), at, sub, group, when, depth)

    def _call(
        self,
        part_name: str,
        arguments: list[Any],
        where: tuple[Hashable, ...],
        name: str,
        sub: Mapping[str, Expr],
        group: int,
        when: Expr,
        depth: int,
    ) -> None:
        part = self.parts.get(part_name)
        if part is None:
            raise self.complain(where, f"there is no part {part_name!r} (known: {', '.join(sorted(self.parts))})")
        if len(arguments) != len(part.parameters):
            wanted = f"{part_name}({', '.join(part.parameters)})"
            raise self.complain(where, f"{wanted} takes {len(part.parameters)} arguments, got {len(arguments)}")
        bound = {p: self._parse(a, sub, where) for p, a in zip(part.parameters, arguments, strict=True)}
        self.tree(part.body, where, name, {**sub, **bound}, group, when, depth + 1)

    def _parse(self, text: Any, sub: Mapping[str, Expr], where: tuple[Hashable, ...]) -> Expr:
        try:
            return parse(text, sub)
        except ExprError as e:
            raise self.complain(where, str(e)) from None


def _arguments(text: str) -> list[str]:
    """Split `o, max(a, b)` at its top-level commas."""
    out, level, piece = [], 0, ""
    for ch in text:
        level += (ch == "(") - (ch == ")")
        if ch == "," and level == 0:
            out.append(piece)
            piece = ""
        else:
            piece += ch
    return [a.strip() for a in [*out, piece] if a.strip()]


def _shapes(value: list[Any], sub: Mapping[str, Expr]) -> tuple[Shape, ...]:
    alternatives = value if value and all(isinstance(v, list) for v in value) else [value]
    return tuple(tuple(None if side == "_" else parse(side, sub) for side in shape) for shape in alternatives)


_BRACES = re.compile(r"\{([^{}]*)\}")


def _substitute_runs(key: str, sub: Mapping[str, Expr]) -> str:
    """Put a part's arguments into the runs of its names, as text, so that names stay joinable."""
    if "{" not in key or not sub:
        return key

    def one(match: re.Match[str]) -> str:
        if "," in match[1]:
            return match[0]
        pieces = [_as_text(p, sub) for p in match[1].split("..")]
        inside = "..".join(pieces)
        if ".." not in inside and inside != match[1].strip() and re.fullmatch(r"[A-Za-z_]\w*", match[1].strip()):
            inside = ".." + inside  # {n} with n given: still a run of n
        return "{" + inside + "}"

    return _BRACES.sub(one, key)


def _as_text(piece: str, sub: Mapping[str, Expr]) -> str:
    from compatkit.knowledge.expr import text

    return text(parse(piece, sub)) if piece.strip() else ""


_cache: dict[str, Pattern] = {}


def _pattern(text: str) -> Pattern:
    if text not in _cache:
        _cache[text] = parse_pattern(text)
    return _cache[text]
