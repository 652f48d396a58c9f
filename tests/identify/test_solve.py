"""Solving one grammar: symbols from shapes, runs from names, and what does not agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatkit.identify.solve import MAX_NAMES, Match
from compatkit.knowledge.store import Knowledge
from tests.support.rules import PLAIN, families, header, plain, solve

Shapes = dict[str, tuple[int, ...]]


def read(folder: Path, tree: str, shapes: Shapes, more: str = "", **options: Any) -> Match:
    """How a family of these tensors reads a header."""
    body = "".join(f"  {line}\n" for line in tree.strip("\n").splitlines())
    return solve(families(folder, f"id: x\nrole: diffusion\ntensors:\n{body}{more}"), header(shapes, **options), "x")


@pytest.fixture(scope="module")
def plainly(tmp_path_factory: pytest.TempPathFactory) -> Knowledge:
    return families(tmp_path_factory.mktemp("rules"), PLAIN)


sizes = st.fixed_dictionaries(
    {
        "hidden": st.integers(1, 9999),
        "layers": st.integers(1, 12),
        "patch": st.integers(1, 99),
        "ffn": st.integers(1, 9999),
    }
)


@given(sizes)
def test_matching_is_solving(plainly: Knowledge, size: dict[str, Any]) -> None:
    match = solve(plainly, header(plain(**size)))
    assert match.symbols == size
    assert match.matched == set(plain(**size))
    assert (match.expected, match.distance, match.refused) == (len(plain(**size)), 0, "")


@given(sizes, st.data())
def test_a_lost_tensor_is_missing_and_nothing_else_is(
    plainly: Knowledge, size: dict[str, Any], data: st.DataObject
) -> None:
    shapes = plain(**{**size, "layers": size["layers"] + 1})
    lost = data.draw(st.sampled_from([n for n in shapes if "mlp" not in n and "img_in" not in n]))  # `ffn` has one line
    del shapes[lost]
    match = solve(plainly, header(shapes))
    assert (match.missing, match.mismatched, match.matched) == ([lost], [], set(shapes))


@given(sizes, st.data())
def test_a_tensor_of_another_shape_is_named_and_binds_nothing(
    plainly: Knowledge, size: dict[str, Any], data: st.DataObject
) -> None:
    shapes = plain(**{**size, "layers": 3})
    odd = data.draw(st.sampled_from([n for n in shapes if "norm" in n]))
    shapes[odd] = (size["hidden"] + 1,)
    match = solve(plainly, header(shapes))
    assert match.symbols["hidden"] == size["hidden"]
    assert (match.missing, match.mismatched) == ([], [odd])


@pytest.mark.parametrize("lost", ["blocks.0.norm1.weight", "blocks.2.norm1.weight", "blocks.4.norm1.weight"])
def test_a_hole_does_not_end_a_run(plainly: Knowledge, lost: str) -> None:
    shapes = plain(layers=5)
    del shapes[lost]
    match = solve(plainly, header(shapes))
    assert match.symbols["layers"] == 5
    assert match.missing == [lost]


def test_a_run_of_which_nothing_is_there_is_missing(plainly: Knowledge) -> None:
    """Else a family that is a relative plus a run of its own would be one tensor away from that relative."""
    match = solve(plainly, header(plain(layers=0)))
    assert match.symbols["layers"] == 0
    assert set(match.missing) == {n for n in plain(layers=1) if n.startswith("blocks")}


def test_an_expression_is_solved_for_a_symbol_that_stands_nowhere_alone(tmp_path: Path) -> None:
    tree = "a: [4*adaln, _]\nb: [hidden, 2*adaln+heads]\nc: [heads]\nd: [hidden]"
    match = read(tmp_path, tree, {"a": (1024, 7), "b": (64, 520), "c": (8,), "d": (64,)})
    assert match.symbols == {"adaln": 256, "hidden": 64, "heads": 8}
    assert match.distance == 0
    other = read(tmp_path, tree, {"a": (1023, 7), "b": (64, 520), "c": (8,), "d": (64,)})
    assert other.symbols["adaln"] == 256
    assert other.mismatched == ["a"]


def test_a_symbol_nothing_tells_leaves_its_line_missing(tmp_path: Path) -> None:
    match = read(tmp_path, "a: [c]\nb: [unseen]\n'd.{unseen..2*unseen}': [1]", {"a": (4,)})
    assert match.symbols == {"c": 4}
    assert match.missing == ["b", "d.0"]


def test_two_symbols_may_be_equal_and_literals_decide(tmp_path: Path) -> None:
    tree = "q: [width, hidden]\nkernel: [hidden, 3]\nfree: [hidden, _]"
    assert read(tmp_path, tree, {"q": (64, 64), "kernel": (64, 3), "free": (64, 5)}).distance == 0
    assert read(tmp_path, tree, {"q": (64, 64), "kernel": (64, 5), "free": (64, 5)}).mismatched == ["kernel"]


def test_shapes_may_have_alternatives_and_blobs_any(tmp_path: Path) -> None:
    tree = "proj: [[c, c], [c, c, 1, 1]]\nspiece: any\nscale: []\nnorm: [c]"
    for proj in ((8, 8), (8, 8, 1, 1)):
        assert read(tmp_path, tree, {"proj": proj, "spiece": (12345,), "scale": (), "norm": (8,)}).distance == 0
    assert read(tmp_path, tree, {"proj": (8, 8, 1), "spiece": (1,), "scale": (1,), "norm": (8,)}).mismatched == [
        *("proj", "scale")
    ]


def test_strided_and_interleaved_runs(tmp_path: Path) -> None:
    tree = "'l.{0..n..2}.a': [1]\n'l.{1..n..2}.b': [1]"
    for n in (1, 4, 5, 8):
        shapes: Shapes = {f"l.{i}.{'ab'[i % 2]}": (1,) for i in range(n)}
        match = read(tmp_path, tree, shapes)
        assert (match.symbols["n"], match.distance, len(match.matched)) == (n, 0, n)


def test_a_computed_index_follows_its_run(tmp_path: Path) -> None:
    tree = "'l.{n}.w': [1]\n'l.{n-1}.last': [1]\n'l.{n//2..n}.late': [1]"
    names = [*(f"l.{i}.w" for i in range(6)), "l.5.last", *(f"l.{i}.late" for i in (3, 4, 5))]
    shapes: Shapes = dict.fromkeys(names, (1,))
    assert read(tmp_path, tree, shapes).distance == 0
    del shapes["l.5.w"]
    assert read(tmp_path, tree, shapes).missing  # 5 blocks, or 6 with one lost: never silently whole


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ("where: {c: 8}", ""),
        ("where: {c: [8, 16]}", ""),
        ("where: {c: 16}", "c is 8, not 16"),
        ("where: {c: [16, 32]}", "c is 8, not 16 or 32"),
        ("where: {n: 3}", "n is 2, not 3"),
        ("where: {c: '>= 9'}", "c >= 9 does not hold"),
        ("require: [c % n == 0]", ""),
        ("require: [n*c == 17]", "(n*c) == 17 does not hold"),
        ("require: [unseen == 1]", ""),  # what is not known refuses nothing
        ("forbid: [other]", ""),
        ("forbid: [b.1]", "has b.1"),
        ('forbid: ["b.*"]', "has b.0"),
    ],
)
def test_a_family_says_what_it_is_not(tmp_path: Path, more: str, refused: str) -> None:
    assert read(tmp_path, "a: [c]\n'b.{n}': [c]", {"a": (8,), "b.0": (8,), "b.1": (8,)}, more + "\n").refused == refused


OPTIONS = """\
optional:
  guidance: {guidance_in: "lin(c, 4)"}
  tower: {tower: {"layers.{deep}": scale(c), pool: scale(c), "head?": scale(c)}}
one_of:
  mlp: {gated: {"w{1,2,3}": [c]}, plain: {fc: [c]}}
"""
ALWAYS: Shapes = {"a": (8,), "b": (8,), "fc": (8,)}
TOWER: Shapes = {**{f"tower.layers.{i}.weight": (8,) for i in range(4)}, "tower.pool.weight": (8,)}


@pytest.mark.parametrize(
    ("added", "options"),
    [
        ({}, {"guidance": False, "tower": False, "mlp": "plain"}),
        ({"guidance_in.weight": (8, 4), "guidance_in.bias": (8,)}, {"guidance": True, "tower": False, "mlp": "plain"}),
        (TOWER, {"guidance": False, "tower": True, "mlp": "plain"}),
        ({**TOWER, "tower.head.weight": (8,)}, {"guidance": False, "tower": True, "mlp": "plain"}),
    ],
)
def test_optional_tensors_are_there_whole_or_not_at_all(tmp_path: Path, added: Shapes, options: dict[str, Any]) -> None:
    match = read(tmp_path, "a: [c]\nb: [c]", {**ALWAYS, **added}, OPTIONS)
    assert match.options == options
    assert (match.distance, match.matched) == (0, {*ALWAYS, *added})


def test_an_optional_part_that_is_mostly_there_has_lost_tensors(tmp_path: Path) -> None:
    shapes = {**ALWAYS, **TOWER}
    del shapes["tower.pool.weight"]
    match = read(tmp_path, "a: [c]\nb: [c]", shapes, OPTIONS)
    assert match.options["tower"] is True
    assert match.missing == ["tower.pool.weight"]


def test_the_alternative_that_is_there_most_is_the_one(tmp_path: Path) -> None:
    shapes: Shapes = {"a": (8,), "b": (8,), "w1": (8,), "w3": (8,)}
    match = read(tmp_path, "a: [c]\nb: [c]", shapes, OPTIONS)
    assert match.options["mlp"] == "gated"
    assert match.missing == ["w2"]


def test_a_size_in_a_header_never_becomes_a_loop(tmp_path: Path) -> None:
    """A run whose bound stands in a shape is as long as a hostile file says."""
    tree = "size: [n]\nother: [n]\n'w.{..4*n}': [1]\n'v.{..n+0}.{..4*n..2}': [1]"
    for n in (MAX_NAMES + 1, 2**64 - 1):
        match = read(tmp_path, tree, {"size": (n,), "other": (n,)})
        assert match.missing == ["w.0", "v.0.0"]
