"""What must hold of every family in `rules/`: its layouts are the same model, each tensor with a name of its own."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest

from compatkit.identify.shapes import Shape, expected_shapes
from compatkit.knowledge import yamlfile
from compatkit.knowledge.expr import evaluate
from compatkit.knowledge.family import resolve_like
from compatkit.knowledge.keymap import Mapped, apply
from compatkit.knowledge.lines import Line
from compatkit.knowledge.patterns import Pattern, count
from compatkit.knowledge.store import load, rules_root

Symbols = Mapping[str, int]


@cache
def documents() -> dict[str, dict[str, Any]]:
    members = load().members()
    return {f: load().grammar(f) for f, m in sorted(members.items()) if not m.get("abstract") and "sibling_of" not in m}


@cache
def rule_files(kind: str) -> dict[str, yamlfile.RuleFile]:
    files = [yamlfile.load(p) for p in sorted((rules_root() / kind).rglob("*.yaml"))]
    return {f.data["id"] if kind == "families" else f.path.stem: f for f in files}


LAYOUTS = [(f, layout) for f, document in documents().items() for layout in document["layouts"]]
MAPPED = [(f, layout) for f, layout in LAYOUTS if layout != next(iter(documents()[f]["layouts"]))]


def lines_of(document: Mapping[str, Any], layout: str) -> list[Line]:
    rows = document["layouts"][layout]["lines"]
    return [Line(Pattern(f, tuple(map(tuple, r))), s, group, when) for f, r, s, group, when in rows]


def operations_of(family: str, layout: str) -> Iterator[Any]:
    """The layout's operations as written, shared key maps put in their place."""
    files = rule_files("families")
    data, _ = resolve_like(files[family], files)
    spec = data["layouts"][layout]
    queue = list(spec) if isinstance(spec, list) else [spec]
    while queue:
        operation = queue.pop(0)
        if set(operation) == {"use"}:
            queue[:0] = rule_files("keymaps")[operation["use"]].data["operations"]
        else:
            yield operation


def shape_of(line: Line, symbols: Symbols) -> Shape:
    if line.shapes is None:
        return None
    return tuple(None if side is None else evaluate(side, symbols) for side in line.shapes[0])


def there(line: Line, symbols: Symbols) -> bool:
    """Whether the example has a value for every symbol of the line: a part it has not may have symbols of its own."""
    try:
        return bool(evaluate(line.when, symbols)) and (
            shape_of(line, symbols) is None or count(line.pattern, symbols) >= 0
        )
    except KeyError:
        return False


def rows(line: Line, symbols: Symbols) -> int | None:
    shape = shape_of(line, symbols)
    return 1 if shape == () else shape[0] if shape else None


def elements(line: Line, symbols: Symbols) -> int:
    return prod(side or 1 for side in shape_of(line, symbols) or ())


def pieces(m: Mapped, native: list[Line], symbols: Symbols) -> Iterator[tuple[int, int, int]]:
    """(native line, from row, to row) of what a mapped tensor is made of, as its origin says."""
    whole = [(s, rows(native[s], symbols) or 0) for s in m.origin.sources]
    start, size = 0, sum(n for _, n in whole)
    if m.origin.how == "rows":
        start, size = evaluate(m.origin.start, symbols), evaluate(m.origin.size, symbols)
        assert start >= 0
        assert start + size <= sum(n for _, n in whole), f"{m.line.pattern.format}: rows beyond the end"
    for source, n in whole:
        if start < n and start + size > 0:
            yield source, max(start, 0), min(start + size, n)
        start -= n


@pytest.mark.parametrize(("family", "layout"), MAPPED)
def test_a_layout_holds_every_native_row_once_but_what_it_drops(family: str, layout: str) -> None:
    document = documents()[family]
    symbols: Symbols = document["example"].get("symbols", {})
    native = lines_of(document, next(iter(document["layouts"])))
    kept = [o for o in operations_of(family, layout) if "drop" not in o]

    def complain(where: tuple[Hashable, ...], message: str) -> Exception:
        return AssertionError(message)

    mapped = apply(kept, native, complain, ("layouts", layout), lambda tree, where: [])
    covered: dict[int, list[tuple[int, int]]] = {}
    for m in mapped:
        if not all(there(native[s], symbols) for s in m.origin.sources):
            continue
        for source, start, stop in pieces(m, native, symbols):
            covered.setdefault(source, []).append((start, stop))
        if m.origin.how in ("rows", "cat") and m.line.shapes:
            taken = sum(stop - start for _, start, stop in pieces(m, native, symbols))
            assert taken == rows(m.line, symbols), m.line.pattern.format
        elif m.origin.sources:
            source_line = native[m.origin.sources[0]]
            assert elements(m.line, symbols) == elements(source_line, symbols), m.line.pattern.format
    for number, line in enumerate(native):
        if there(line, symbols):
            at = 0
            for start, stop in sorted(covered.get(number, ())):
                assert start == at, f"{line.pattern.format}: rows {at} to {start} are nowhere, or twice"
                at = stop
            assert at == (rows(line, symbols) or 0), f"{line.pattern.format}: its last rows are nowhere"


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_no_two_tensors_of_an_example_have_one_name(family: str, layout: str) -> None:
    document = documents()[family]
    symbols, options = document["example"].get("symbols", {}), document["example"].get("options", {})
    names = expected_shapes(document, layout, symbols, options)
    present: list[bool] = []
    for fact, parent, choice, value in document["groups"]:
        here = options.get(choice) == value if choice else bool(fact and options.get(fact))
        present.append(here and (parent < 0 or present[parent]))
    lines = [x for x in lines_of(document, layout) if x.group < 0 or present[x.group]]
    listed = sum(count(x.pattern, symbols) for x in lines if x.when == 1 or evaluate(x.when, symbols))
    markers = {n for fact, marks in document["markers"].items() if options.get(fact) for n in marks}
    assert listed == len(set(names) - markers)


def test_every_family_shows_an_example_with_a_value_for_every_symbol_it_needs() -> None:
    for family, document in documents().items():
        layout = next(iter(document["layouts"]))
        shapes = expected_shapes(
            document, layout, document["example"]["symbols"], document["example"].get("options", {})
        )
        assert shapes, family


def test_the_files_of_families_stand_where_their_role_is() -> None:
    folders = {"diffusion": {"diffusion"}, "text_encoder": {"text_encoder", "llm"}, "vae": {"vae"}}
    for document in documents().values():
        folder = Path(document["card"]["source_file"]).parent.name
        if folder in folders:
            assert document["card"]["role"] in folders[folder], document["id"]
