"""Expressions: what they mean, what is refused, and solving for one symbol. The oracle is Python's own arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compatkit.knowledge.expr import ExprError, evaluate, fold, parse, solve_for, symbols, text

NAMES = ("hidden", "heads", "o", "i")
BINARY: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": lambda a, b: a // b if b else -1,
    "/": lambda a, b: a // b if b and a % b == 0 else -1,
    "%": lambda a, b: a % b if b else -1,
    "==": lambda a, b: int(a == b),
    "!=": lambda a, b: int(a != b),
    "<": lambda a, b: int(a < b),
    "<=": lambda a, b: int(a <= b),
    ">": lambda a, b: int(a > b),
    ">=": lambda a, b: int(a >= b),
    "and": lambda a, b: int(bool(a) and bool(b)),
    "or": lambda a, b: int(bool(a) or bool(b)),
    "max": max,
    "min": min,
    "ceil_to": lambda a, b: -(-a // b) * b if b else -1,
}
#: A tree of (operator, left, right), ("not", operand), a name or a number.
Tree = Any
trees: st.SearchStrategy[Tree] = st.recursive(
    st.sampled_from(NAMES) | st.integers(0, 99),
    lambda inner: st.tuples(st.sampled_from(sorted(BINARY)), inner, inner) | st.tuples(st.just("not"), inner),
    max_leaves=12,
)
values = st.fixed_dictionaries({name: st.integers(0, 9999) for name in NAMES})


def written(tree: Tree) -> str:
    if not isinstance(tree, tuple):
        return str(tree)
    if tree[0] == "not":
        return f"(not {written(tree[1])})"
    if tree[0].isidentifier() and tree[0] not in ("and", "or"):
        return f"{tree[0]}({written(tree[1])}, {written(tree[2])})"
    return f"({written(tree[1])} {tree[0]} {written(tree[2])})"


def meant(tree: Tree, env: dict[str, int]) -> int:
    if isinstance(tree, str):
        return env[tree]
    if isinstance(tree, int):
        return tree
    if tree[0] == "not":
        return int(not meant(tree[1], env))
    return BINARY[tree[0]](meant(tree[1], env), meant(tree[2], env))


def names_in(tree: Tree) -> set[str]:
    if isinstance(tree, str):
        return {tree}
    return set().union(*map(names_in, tree[1:])) if isinstance(tree, tuple) else set()


@given(trees, values)
def test_a_parsed_expression_means_what_its_text_says(tree: Tree, env: dict[str, int]) -> None:
    assert evaluate(parse(written(tree)), env) == meant(tree, env)


@settings(max_examples=150)
@example(("not", ("and", "o", "i")), {"hidden": 0, "heads": 0, "o": 0, "i": 0})
@given(trees, values)
def test_written_out_again_it_still_means_the_same(tree: Tree, env: dict[str, int]) -> None:
    again = text(parse(written(tree)))
    assert evaluate(parse(again), env) == meant(tree, env), again


@given(trees, values)
def test_folding_computes_early_and_changes_nothing(tree: Tree, env: dict[str, int]) -> None:
    known = {name: value for name, value in env.items() if value % 2}
    folded = parse(written(tree), known)
    assert symbols(folded) <= names_in(tree) - set(known)
    assert evaluate(folded, env) == meant(tree, env)


@pytest.mark.parametrize(
    ("source", "compiled"),
    [
        ("3*hidden", ["*", 3, "hidden"]),
        ("2*3", 6),
        ("1*hidden", "hidden"),
        ("hidden*1", "hidden"),
        ("o != o", 0),
        ("o == o", 1),
        ("-2", -2),
        (True, 1),
        (7, 7),
        (" hidden ", "hidden"),
        ("a if wide else b//2", ["if", "wide", "a", ["//", "b", 2]]),
        ("a if 2 > 1 else b", "a"),
        ("ceil_to(8*hidden/3, 256)", ["ceil_to", ["/", ["*", 8, "hidden"], 3], 256]),
    ],
)
def test_what_rules_write_is_compiled_to_plain_values(source: str | int, compiled: object) -> None:
    assert parse(source) == compiled


def test_parameters_are_replaced_by_what_they_stand_for() -> None:
    assert parse("4*c + n", {"c": ["*", 2, "ch"], "n": 3}) == ["+", ["*", 4, ["*", 2, "ch"]], 3]
    assert parse("o != i", {"o": "ch", "i": "ch"}) == 0


@pytest.mark.parametrize(
    "source",
    [
        *("hidden +", "", "a.b", "a[0]", "f(x)", "max(a)", "max(a, b, c)", "max(a, key=b)", "[a]"),
        *("1 < a < 3", "lambda: 1", "'a'", "1.5*a", "a ** 2", "~a", "a := 1", "__import__('os')", "a & b", "a\0b"),
        *("+".join("a" * 5000), "-" * 5000 + "a", "(" * 300 + "a" + ")" * 300),
    ],
)
def test_anything_else_is_refused_in_one_sentence(source: str) -> None:
    with pytest.raises(ExprError) as refused:
        parse(source)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "value"),
    [("10 / 4", -1), ("8 / 4", 2), ("8 / 0", -1), ("9 // 2", 4), ("9 // 0", -1), ("9 % 0", -1), ("ceil_to(9, 0)", -1)],
)
def test_division_is_exact_and_never_raises(source: str, value: int) -> None:
    assert evaluate(parse(source), {}) == value


@pytest.mark.parametrize(("wide", "value"), [(1, 7), (0, 3)])
def test_only_the_chosen_side_of_a_condition_is_computed(wide: int, value: int) -> None:
    chosen = parse("a if wide else b")
    assert evaluate(chosen, {"wide": wide, "a" if wide else "b": value}) == value


def test_a_symbol_without_a_value_is_named() -> None:
    with pytest.raises(KeyError, match="heads"):
        evaluate(parse("hidden // heads"), {"hidden": 8})


@given(st.integers(1, 64), st.integers(0, 4096), st.integers(0, 100_000), st.integers(1, 9))
def test_a_linear_expression_is_solved_for_its_symbol(factor: int, offset: int, x: int, other: int) -> None:
    expr = parse(f"{factor}*x*k + {offset}")
    assert solve_for(expr, "x", factor * x * other + offset, {"k": other}) == x


@given(trees, values, st.integers(-10, 100_000))
def test_whatever_it_solves_holds(tree: Tree, env: dict[str, int], wanted: int) -> None:
    expr = parse(written(tree))
    found = solve_for(expr, "hidden", wanted, {k: v for k, v in env.items() if k != "hidden"})
    if found is not None:
        assert found >= 0
        assert evaluate(expr, {**env, "hidden": found}) == wanted


@pytest.mark.parametrize(
    ("source", "wanted", "env"),
    [
        ("3*x", 10, {}),  # does not divide
        ("x + 5", 3, {}),  # would be negative
        ("x*x", 9, {}),  # not linear
        ("x % 8", 3, {}),
        ("5", 5, {}),  # the symbol is not in it
        ("x + y", 9, {}),  # another one is not bound
        ("max(x, 4000)", 4000, {}),  # any smaller value would do
    ],
)
def test_what_has_no_single_answer_is_left_alone(source: str, wanted: int, env: dict[str, int]) -> None:
    assert solve_for(parse(source), "x", wanted, env) is None


def test_folding_a_settled_list_gives_a_number() -> None:
    assert fold(["max", 3, 8]) == 8
    assert fold("a") == "a"
