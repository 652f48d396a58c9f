"""Key maps: each operation, how patterns are anchored, and that a map can be walked back to every native tensor."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatkit.knowledge.expr import Expr, evaluate
from compatkit.knowledge.keymap import Mapped, Matcher, apply, render
from compatkit.knowledge.lines import Line
from compatkit.knowledge.patterns import Pattern
from compatkit.knowledge.yamlfile import RuleFileError

SYMBOLS = {"h": 64, "kv": 2, "layers": 3}


def complain(where: tuple[Hashable, ...], message: str) -> Exception:
    return RuleFileError("map", 1, 1, f"{'/'.join(map(str, where))}: {message}")


def lines(**shapes: list[Expr]) -> list[Line]:
    """`attn_qkv=[…]` is the line `attn.qkv`; a run is written `N`."""
    out = []
    for name, shape in shapes.items():
        format_ = name.replace("_", ".").replace("N", "%d")
        out.append(Line(Pattern(format_, ((0, "layers", 1),) * format_.count("%d")), (tuple(shape),)))
    return out


def mapped(operations: list[Any], native: list[Line]) -> list[Mapped]:
    def added(tree: Mapping[str, Any], where: tuple[Hashable, ...]) -> list[Line]:
        return [Line(Pattern(name, ()), (tuple(shape),)) for name, shape in tree.items()]

    return apply(operations, native, complain, ("layouts", "x"), added)


def shapes(result: list[Mapped]) -> dict[str, tuple[Expr, ...] | None]:
    return {m.line.pattern.format: m.line.shapes[0] if m.line.shapes else None for m in result}


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("a.b", "a.b.weight", ("", {}, "weight")),
        ("a.b", "a.b", ("", {}, "")),
        ("a.b", "a.bc.weight", None),  # whole segments
        ("a.b", "xa.b.weight", None),
        ("a.b", "x.a.b.weight", None),  # from the start of the name
        ("**.b", "x.a.b.weight", ("x.a", {}, "weight")),
        ("**.b", "b.weight", ("", {}, "weight")),
        ("**.b", "x.ab.weight", None),
        ("**.a.b", "x.a.c.a.b.w", ("x.a.c", {}, "w")),
        ("l.{i}.w", "l.12.w", ("", {"i": "12"}, "")),
        ("l.{i}.w", "l.%d.w", ("", {"i": "%d"}, "")),  # a run stands for each of its indexes
        ("l.{i}.w", "l.x.w", None),
        ("l.{i}.w", "l.1x.w", None),
        ("norm{i}", "norm2.weight", ("", {"i": "2"}, "weight")),
        ("norm{i}", "norms2.weight", None),
        ("a.*.w", "a.anything.w", ("", {"_star": "anything"}, "")),
        ("a.*.w", "a.b.c.w", None),  # one segment
        ("a+b", "a+b.w", ("", {}, "w")),  # nothing of a name is a regular expression
        ("a+b", "aab.w", None),
    ],
)
def test_patterns_match_whole_segments_from_the_start(
    pattern: str, name: str, found: tuple[str, dict[str, str], str] | None
) -> None:
    assert Matcher(pattern).match(name) == found


def test_a_needle_in_another_name_is_left_alone() -> None:
    """The classic accident of substring maps: `output` inside `attn_output`."""
    native = [Line(Pattern(n, ()), ((1,),)) for n in ("output.weight", "blk.attn_output.weight", "output_norm.weight")]
    assert list(shapes(mapped([{"rename": {"output": "lm_head"}}], native))) == [
        *("lm_head.weight", "blk.attn_output.weight", "output_norm.weight")
    ]


@pytest.mark.parametrize(
    ("to", "captures", "name"),
    [
        ("**.to_q", {}, "lead.to_q.trail"),
        ("to_q", {}, "to_q.trail"),
        ("b.{i}.c", {"i": "%d"}, "b.%d.c.trail"),
        ("b.{3-i}", {"i": "1"}, "b.2.trail"),
        ("b.{i//4}.r.{i%4}", {"i": "6"}, "b.1.r.2.trail"),
        ("*.x", {"_star": "q"}, "q.x.trail"),
    ],
)
def test_the_new_name_keeps_what_stood_around_the_match(to: str, captures: dict[str, str], name: str) -> None:
    assert render(to, "lead", captures, "trail") == name


def test_operations_apply_in_order_each_to_what_the_last_one_made() -> None:
    result = mapped([{"rename": {"a": "b", "b": "c"}}, {"rename": {"c": "d"}}], lines(a_w=[1], x_w=[1]))
    assert list(shapes(result)) == ["d.w", "x.w"]


@pytest.mark.parametrize(
    ("rows", "sizes", "starts"),
    [(["*", 3, "h"], ["h", "h", "h"], [0, "h", ["+", "h", "h"]]), (18, [6, 6, 6], [0, 6, 12])],
)
def test_a_split_cuts_rows_evenly(rows: Expr, sizes: list[Expr], starts: list[Expr]) -> None:
    [*parts, bias] = mapped(
        [{"split": {"from": "**.qkv", "to": ["**.q", "**.k", "**.v"]}}], lines(l_N_qkv_weight=[rows, "h"], l_N_b=["h"])
    )
    assert [p.line.pattern.format for p in parts] == [f"l.%d.{x}.weight" for x in "qkv"]
    assert [p.line.shapes for p in parts] == [((size, "h"),) for size in sizes]
    assert [(p.origin.sources, p.origin.how, p.origin.start, p.origin.size) for p in parts] == [
        ((0,), "rows", start, size) for start, size in zip(starts, sizes, strict=True)
    ]
    assert bias.origin.how == "copy"


def test_a_split_may_be_uneven_and_a_bias_is_split_alike() -> None:
    operation = {"split": {"from": "qkv", "to": ["q", "k", "v"], "rows": ["h", "kv", "kv"]}}
    rows: Expr = ["+", "h", ["*", 2, "kv"]]
    result = mapped([operation], lines(qkv_weight=[rows, "h"], qkv_bias=[rows]))
    assert shapes(result) == {
        "q.weight": ("h", "h"),
        "k.weight": ("kv", "h"),
        "v.weight": ("kv", "h"),
        "q.bias": ("h",),
        "k.bias": ("kv",),
        "v.bias": ("kv",),
    }


def test_a_fusion_joins_rows_of_each_leaf() -> None:
    operation = {"fuse": {"from": ["**.q", "**.kv"], "to": "**.qkv"}}
    native = lines(a_q_weight=["h", 8], a_q_bias=["h"], a_kv_weight=["kv", 8], a_kv_bias=["kv"])
    result = mapped([operation], native)
    assert shapes(result) == {"a.qkv.weight": (["+", "h", "kv"], 8), "a.qkv.bias": (["+", "h", "kv"],)}
    assert [(m.origin.how, m.origin.sources) for m in result] == [("cat", (0, 2)), ("cat", (1, 3))]


def test_dropped_and_added_tensors_have_no_counterpart() -> None:
    result = mapped([{"drop": ["**.freqs"]}, {"add": {"new.w": [2]}}], lines(rope_freqs=[4], a_w=[1]))
    assert shapes(result) == {"a.w": (1,), "new.w": (2,)}
    assert [m.origin.how for m in result] == ["copy", "new"]
    assert result[1].origin.sources == ()


def test_swapped_halves_keep_their_shape() -> None:
    native = lines(out_weight=[["*", 2, "h"], 4], other_weight=["h", 4])
    result = mapped([{"swap": ["out"]}], native)
    assert shapes(result) == shapes(mapped([], native))
    assert [m.origin.how for m in result] == ["swap", "copy"]


def test_a_swap_may_be_for_certain_rows_only() -> None:
    result = mapped([{"swap": [{"**.ada": "2*h"}]}], lines(a_ada=[["*", 2, "h"], 4], b_ada=[["*", 6, "h"], 4]))
    assert [m.origin.how for m in result] == ["swap", "copy"]


@pytest.mark.parametrize(
    ("shape", "becomes"),
    [
        (["h", "c"], (("h", "c"),)),
        (["@0", "@1"], (("h", "c"),)),  # the tensor's own sides
        ([["h", "c"], ["h", "c", 1, 1]], (("h", "c"), ("h", "c", 1, 1))),
    ],
)
def test_a_reshape_changes_the_shape_and_nothing_else(shape: list[Any], becomes: tuple[Any, ...]) -> None:
    [a, b] = mapped([{"reshape": {"**.proj.weight": shape}}], lines(a_proj_weight=["h", "c", 1, 1], b_w=[1]))
    assert a.line.shapes == becomes
    assert a.origin == mapped([], lines(a_proj_weight=[1]))[0].origin
    assert b.line.shapes == ((1,),)


def test_an_operation_that_matches_nothing_does_nothing() -> None:
    native = lines(a_w=["h"])
    operations = [{"rename": {"x": "y"}}, {"drop": ["x"]}, {"swap": ["x"]}, {"reshape": {"x": [1]}}]
    operations += [{"split": {"from": "x", "to": ["y", "z"]}}, {"fuse": {"from": ["x", "y"], "to": "z"}}]
    assert mapped(operations, native) == mapped([], native)


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        ({"rewrite": {"a": "b"}}, "layouts/x/0: an operation is one of rename, split"),
        ({"rename": {"a": "b"}, "drop": ["c"]}, "layouts/x/0: an operation is one of"),
        ("rename", "layouts/x/0: an operation is one of"),
        ({"rename": ["a"]}, "layouts/x/0/rename: rename is not written as"),
        ({"split": {"from": "a"}}, "layouts/x/0/split: split is not written as"),
        ({"split": {"from": "a", "to": ["b", "c"], "rows": ["h"]}}, "layouts/x/0/split: "),
        ({"split": {"from": "a", "to": ["b", "c", "d"]}}, "layouts/x/0/split: "),  # 4 rows in 3 parts
        ({"fuse": {"from": ["a", "b"], "to": "c"}}, "layouts/x/0/fuse: fuse finds only 1 of 2 parts of 'c.w'"),
        ({"rename": {"l.{i}": "m"}}, "layouts/x/0/rename: 'm.w' must keep every index"),
        ({"rename": {"l.{i}": "m.{2-i}"}}, "layouts/x/0/rename: {2-i} needs a literal index"),
        ({"rename": {"l.{3-i}": "m.{i}"}}, "layouts/x/0/rename: "),
        ({"rename": {"l.{i}.{i}": "m.{i}"}}, "layouts/x/0/rename: "),
        ({"rename": {"l.{i}": "a"}}, "layouts/x/0/rename: 'a.w' must keep every index"),
        ({"add": {"a.w": [1]}}, "layouts/x: two tensors would be called 'a.w'"),
        ({"reshape": {"a": ["2*"]}}, "layouts/x/0/reshape: '2*' is not an expression"),
    ],
)
def test_a_map_that_cannot_be_is_refused_where_it_stands(operation: Any, says: str) -> None:
    with pytest.raises(RuleFileError) as refused:
        mapped([operation], lines(a_w=[4], l_N_w=["h"]))
    assert refused.value.message.startswith(says)


QKV = {"split": {"from": "qkv", "to": ["q", "k", "v"]}}


@pytest.mark.parametrize(
    ("operations", "says"),
    [
        ([{"swap": ["qkv"]}, QKV], "layouts/x/1/split: 'qkv.w' is swapped: split it before that"),
        ([QKV, {"swap": ["k"]}], "layouts/x/1/swap: 'k.w' is cut or joined: swap it before that"),
        ([QKV, {"fuse": {"from": ["v", "k"], "to": "vk"}}], "layouts/x/1/fuse: 'vk.w' would join pieces that were not"),
        ([QKV, {"fuse": {"from": ["q", "o"], "to": "qo"}}], "layouts/x/1/fuse: 'qo.w' would join pieces that were not"),
    ],
)
def test_a_map_that_could_not_be_walked_back_is_refused(operations: list[Any], says: str) -> None:
    with pytest.raises(RuleFileError) as refused:
        mapped(operations, lines(qkv_w=[["*", 3, "h"], "h"], o_w=["h", "h"]))
    assert refused.value.message.startswith(says)


def test_pieces_joined_again_in_their_order_are_rows_of_the_source_again() -> None:
    native = lines(qkv_w=[["*", 3, "h"], "h"])
    [kv, q] = mapped([QKV, {"fuse": {"from": ["k", "v"], "to": "kv"}}], native)[::-1]
    assert (q.origin.start, q.origin.size) == (0, "h")
    assert (kv.origin.sources, kv.origin.how, kv.origin.start) == ((0,), "rows", "h")
    assert evaluate(kv.origin.size, SYMBOLS) == 2 * SYMBOLS["h"]


# The inverse: what an origin says about rows must account for every row of the native tensors, once.

Piece = tuple[str, int, int]  # native line, from row, to row


def rebuilt(m: Mapped, native: list[Line]) -> list[Piece]:
    """Which native rows a mapped tensor is made of, from its origin alone."""
    rows = [evaluate(native[s].shapes[0][0], SYMBOLS) for s in m.origin.sources if native[s].shapes]  # type: ignore[index]
    whole = [(native[s].pattern.format, 0, n) for s, n in zip(m.origin.sources, rows, strict=True)]
    if m.origin.how != "rows":
        return whole
    start, size = evaluate(m.origin.start, SYMBOLS), evaluate(m.origin.size, SYMBOLS)
    cut = []
    for name, _, n in whole:
        if start < n and start + size > 0:
            cut.append((name, max(start, 0), min(start + size, n)))
        start -= n
    return cut


OPERATIONS: list[dict[str, Any]] = [
    {"rename": {"l.{i}.qkv": "t.{i}.in_proj", "top": "head"}},
    {"rename": {"**.up": "**.ff.up"}},
    {"split": {"from": "**.qkv", "to": ["**.q", "**.k", "**.v"]}},
    {"split": {"from": "**.in_proj", "to": ["**.q", "**.kv"], "rows": ["h", "2*h"]}},
    {"split": {"from": "**.kv", "to": ["**.k", "**.v"]}},
    {"split": {"from": "**.up", "to": ["**.gate", "**.up"]}},
    {"fuse": {"from": ["**.q", "**.k", "**.v"], "to": "**.qkv"}},
    {"fuse": {"from": ["**.gate", "**.up"], "to": "**.gate_up"}},
    {"split": {"from": "**.gate_up", "to": ["**.x", "**.y"]}},
    {"swap": ["**.up", "top"]},
    {"add": {"l.0.extra.up": [8]}},
]
NATIVE = lines(l_N_qkv_weight=[["*", 3, "h"], "h"], l_N_qkv_bias=[["*", 3, "h"]], l_N_up_weight=[["*", 2, "h"], "h"])
NATIVE += lines(top_weight=["h", "kv"])


@settings(max_examples=200)
@given(st.lists(st.sampled_from(OPERATIONS), max_size=6))
def test_every_native_row_stands_in_the_mapped_tensors_exactly_once(operations: list[dict[str, Any]]) -> None:
    try:
        result = mapped(operations, NATIVE)
    except RuleFileError:
        return  # a map that cannot be walked back, or finds only some parts, may be refused
    for m in result:
        assert m.line.shapes
        rows = 0 if m.origin.how == "new" else evaluate(m.line.shapes[0][0], SYMBOLS)
        assert sum(b - a for _, a, b in rebuilt(m, NATIVE)) == rows, m.line.pattern.format
    for native in NATIVE:
        assert native.shapes
        pieces = sorted(p[1:] for m in result for p in rebuilt(m, NATIVE) if p[0] == native.pattern.format)
        assert [a for a, _ in pieces] == [0, *(b for _, b in pieces)][:-1], native.pattern.format
        assert pieces[-1][1] == evaluate(native.shapes[0][0], SYMBOLS), native.pattern.format
