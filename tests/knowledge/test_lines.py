"""From the tree of a family file to tensors: parts, tables, conditions, optional groups, choices."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from compatkit.identify.shapes import expected_shapes
from compatkit.knowledge.yamlfile import RuleFileError
from tests.support.rules import families

Shapes = dict[str, tuple[int | None, ...] | None]


def expand(
    folder: Path, body: str, symbols: dict[str, int] | None = None, options: dict[str, Any] | None = None
) -> Shapes:
    """The tensors of a family whose file is `body` below id and role."""
    knowledge = families(folder, f"id: x\nrole: diffusion\n{body}")
    return expected_shapes(knowledge.grammar("x"), "native", symbols or {}, options or {})


def tensors(text: str) -> str:
    return "tensors:\n" + indent(text.strip("\n"), "  ")


def test_keys_are_joined_and_a_part_is_put_below_them(tmp_path: Path) -> None:
    body = tensors("img_in: lin(hidden, 16)\nattn: {norm: scale(hidden), proj.out: 'linw(hidden, 2*hidden)'}\n")
    assert expand(tmp_path, body, {"hidden": 8}) == {
        "img_in.weight": (8, 16),
        "img_in.bias": (8,),
        "attn.norm.weight": (8,),
        "attn.proj.out.weight": (8, 16),
    }


def test_shapes_may_be_empty_free_alternatives_or_any(tmp_path: Path) -> None:
    body = tensors('scale: []\npos: [1, _, c]\nproj.weight: [[c, c], [c, c, 1, 1]]\nspiece: any\n"": [c]\n')
    assert expand(tmp_path, body, {"c": 4}) == {
        "scale": (),
        "pos": (1, None, 4),
        "proj.weight": (4, 4),  # the first is the one that is written
        "spiece": None,
        "": (4,),
    }


def test_parts_call_parts_with_expressions_and_keep_the_family_s_symbols(tmp_path: Path) -> None:
    body = """
parts:
  "ff(c, w)": {up: "linw(w, c)", down: "linw(c, w)"}
  "block(c)": {ff: "ff(c, max(4*c, least))", norm: scale(c)}
tensors:
  mid: block(2*ch)
"""
    assert expand(tmp_path, body, {"ch": 3, "least": 50}) == {
        "mid.ff.up.weight": (50, 6),
        "mid.ff.down.weight": (6, 50),
        "mid.norm.weight": (6,),
    }


def test_a_family_s_part_stands_before_the_shared_one(tmp_path: Path) -> None:
    body = 'parts: {"lin(o, i)": {w: [i, o]}}\ntensors: {a: "lin(2, 3)"}\n'
    assert expand(tmp_path, body) == {"a.w": (3, 2)}


@pytest.mark.parametrize("run", ["{..n}", "{n}"])
def test_a_run_s_length_may_be_a_parameter_at_every_depth(tmp_path: Path, run: str) -> None:
    body = f"""
parts:
  "inner(n)": {{"layers.{run}": "scale(c)"}}
  "outer(n)": {{"stages.{run}": "inner(2*n)"}}
tensors:
  a: outer(1)
  b: outer(depth)
"""
    names = set(expand(tmp_path, body, {"c": 4, "depth": 2}))
    assert {n for n in names if n.startswith("a")} == {f"a.stages.0.layers.{i}.weight" for i in range(2)}
    assert {n for n in names if n.startswith("b")} == {
        f"b.stages.{s}.layers.{i}.weight" for s in range(2) for i in range(4)
    }


def test_the_same_run_may_differ_from_parent_to_parent(tmp_path: Path) -> None:
    body = """
parts:
  "st(n)": {"blocks.{..n}.w": [2]}
tensors:
  "down.[]": {st: {0: [2], 2: [deep]}}
"""
    assert set(expand(tmp_path, body, {"deep": 3})) == {
        *("down.0.blocks.0.w", "down.0.blocks.1.w"),
        *("down.2.blocks.0.w", "down.2.blocks.1.w", "down.2.blocks.2.w"),
    }


def test_a_table_has_the_indexes_it_lists_and_no_other(tmp_path: Path) -> None:
    body = tensors('"in.[].0": {lin: {1: [c, c], 4: [2*c, c]}, scale: {3: [c], 5: 2*c}}')
    assert expand(tmp_path, body, {"c": 4}) == {
        "in.1.0.weight": (4, 4),
        "in.1.0.bias": (4,),
        "in.4.0.weight": (8, 4),
        "in.4.0.bias": (8,),
        "in.3.0.weight": (4,),
        "in.5.0.weight": (8,),
    }


def test_a_condition_is_settled_when_the_rules_are_compiled_if_it_can_be(tmp_path: Path) -> None:
    body = """
parts:
  "res(o, i)": {conv: "linw(o, i)", "skip if o != i": "linw(o, i)"}
tensors:
  same: res(ch, ch)
  other: res(2*ch, ch)
  numbers: res(4, 4)
"""
    assert set(expand(tmp_path, body, {"ch": 4})) == {
        *("same.conv.weight", "other.conv.weight", "other.skip.weight", "numbers.conv.weight")
    }
    lines = families(tmp_path, f"id: x\nrole: vae\n{body}").grammar("x")["layouts"]["native"]["lines"]
    assert len(lines) == 4
    assert [line[0] for line in lines if line[4] != 1] == ["other.skip.weight"]  # `2*ch != ch` is left


@pytest.mark.parametrize(("size", "there"), [(1, set()), (2, {"a.w"}), (9, {"a.w", "a.b.w"})])
def test_a_condition_on_a_symbol_is_a_line_that_may_be_absent(tmp_path: Path, size: int, there: set[str]) -> None:
    body = tensors('always: [n]\n"a if n > 1": {w: [n], "b if n > 8": {w: [n]}}')
    assert set(expand(tmp_path, body, {"n": size})) == {"always", *there}


def test_optional_tensors_are_there_as_the_options_say(tmp_path: Path) -> None:
    body = """
tensors: {a: [1]}
optional:
  guidance: {guidance_in: "lin(2, 2)"}
  vision: {tower: {"layers.{deep}": scale(2)}}
"""
    assert set(expand(tmp_path, body, {"deep": 2})) == {"a"}
    assert set(expand(tmp_path, body, {"deep": 1}, {"guidance": True})) == {
        "a",
        "guidance_in.weight",
        "guidance_in.bias",
    }
    assert set(expand(tmp_path, body, {"deep": 1}, {"vision": True})) == {"a", "tower.layers.0.weight"}


def test_of_a_choice_one_alternative_is_there(tmp_path: Path) -> None:
    body = "tensors: {a: [1]}\none_of: {mlp: {gated: {'w{1,2,3}': [2]}, plain: {fc: [2]}}}\n"
    assert set(expand(tmp_path, body, options={"mlp": "gated"})) == {"a", "w1", "w2", "w3"}
    assert set(expand(tmp_path, body, options={"mlp": "plain"})) == {"a", "fc"}


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("a: nolin(1, 2)", (4, 3), "there is no part 'nolin'"),
        ("a: lin(1)", (4, 3), "lin(o, i) takes 2 arguments, got 1"),
        ("a: lin(1, 2, 3)", (4, 3), "lin(o, i) takes 2 arguments, got 3"),
        ("a: {b: 'lin(max(1, 2), 3*)'}", (4, 7), "'3*' is not an expression"),
        ("a: [hidden, 2**3]", (4, 3), "'2**3'"),
        ("a: 5", (4, 3), "expected a shape"),
        ("a: hidden", (4, 3), "expected a shape"),
        ('"b.{n..m..0}": [1]', (4, 3), "the step must be"),
        ('"b.{n": [1]', (4, 3), "braces do not pair"),
        ('"a if o ~ i": [1]', (4, 3), "not an expression"),
        ('"t.[]": lin(1, 2)', (4, 3), "a table is written"),
        ('"t.[]": {lin: [1, 2]}', (4, 12), "a table is written"),
        ('"t.[]": {lin: {0: [1, 2], 1: [1]}}', (4, 29), "takes 2 arguments, got 1"),
        ('"t.[]": {lin: {0: [1, 2], 1: [1, 2 3]}}', (4, 29), "'2 3' is not an expression"),
    ],
)
def test_a_mistake_is_named_where_it_stands(tmp_path: Path, text: str, at: tuple[int, int], says: str) -> None:
    with pytest.raises(RuleFileError) as refused:
        expand(tmp_path, tensors(text))
    assert (refused.value.line, refused.value.column) == at
    assert says in refused.value.message
    assert str(refused.value).startswith(f"{tmp_path}/families/diffusion/f0.yaml:{at[0]}:{at[1]}: ")


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ('"again(c)": {a: again(c)}', "without end"),
        ('"again(c)": {a: other(c)}\n  "other(c)": {b: again(c)}', "without end"),
        ("nothing: {a: [1]}", "a part is written name(parameters)"),
    ],
)
def test_parts_that_cannot_be_expanded_are_refused(tmp_path: Path, parts: str, says: str) -> None:
    with pytest.raises(RuleFileError, match=says.replace("(", r"\(").replace(")", r"\)")):
        expand(tmp_path, f"parts:\n  {parts}\n" + tensors("a: again(1)"))


def test_a_family_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuleFileError, match="no tensors"):
        expand(tmp_path, "title: nothing\n")
