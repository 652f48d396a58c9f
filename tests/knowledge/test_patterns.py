"""Name patterns: alternatives, runs, strides, single indexes, and the names they stand for."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from compatkit.knowledge.expr import ExprError
from compatkit.knowledge.patterns import (
    Pattern,
    count,
    expand_alternatives,
    first_name,
    names,
    parse_pattern,
    settle,
)


def listed(text: str, **env: int) -> list[str]:
    return list(names(parse_pattern(text), env))


@pytest.mark.parametrize(
    ("text", "names_"),
    [
        ("img_in.weight", ["img_in.weight"]),
        ("to_{q,k}.weight", ["to_q.weight", "to_k.weight"]),
        ("norm{1,2}", ["norm1", "norm2"]),
        ("{a, b}.{x,y}", ["a.x", "a.y", "b.x", "b.y"]),
        ("layers.{layers}.{q,k}", ["layers.{layers}.q", "layers.{layers}.k"]),
        ("up.{..n}", ["up.{..n}"]),
    ],
)
def test_alternatives_are_names_of_their_own_and_runs_are_left_alone(text: str, names_: list[str]) -> None:
    assert expand_alternatives(text) == names_


@pytest.mark.parametrize(
    ("text", "env", "names_"),
    [
        ("layers.{layers}.w", {"layers": 3}, ["layers.0.w", "layers.1.w", "layers.2.w"]),
        ("layers.{layers}.w", {"layers": 0}, []),
        ("b{..n}", {"n": 2}, ["b0", "b1"]),
        ("b.{2..n}", {"n": 4}, ["b.2", "b.3"]),
        ("b.{a..n}", {"a": 1, "n": 3}, ["b.1", "b.2"]),
        ("b.{1..n..4}", {"n": 10}, ["b.1", "b.5", "b.9"]),
        ("b.{n-1}.w", {"n": 4}, ["b.3.w"]),
        ("b.{2*n}", {"n": 4}, ["b.8"]),
        ("b.{7}.w", {}, ["b.7.w"]),
        ("b.{n//2+1..n}", {"n": 6}, ["b.4", "b.5"]),
        ("a.{n}.b.{m}", {"n": 2, "m": 2}, ["a.0.b.0", "a.0.b.1", "a.1.b.0", "a.1.b.1"]),
        ("100%.{n}", {"n": 1}, ["100%.0"]),
        ("100%", {}, ["100%"]),
    ],
)
def test_runs_strides_and_single_indexes(text: str, env: dict[str, int], names_: list[str]) -> None:
    assert listed(text, **env) == names_


@pytest.mark.parametrize(
    "text",
    [
        *("b.{a..b..0}", "b.{a..b..-1}", "b.{a..b..x}", "b.{a..b..2..3}", "b.{..}", "b.{}", "b.{a b}"),
        *("b.{n", "b.n}", "b.{{n}}", "b.{f(n)}"),
    ],
)
def test_a_bad_index_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ExprError) as refused:
        parse_pattern(text)
    assert "\n" not in str(refused.value)


def test_an_unbound_run_is_named() -> None:
    with pytest.raises(KeyError, match="layers"):
        listed("layers.{layers}.w")


def test_parameters_stand_in_runs_too() -> None:
    assert parse_pattern("b.{..n}", {"n": "depth"}) == Pattern("b.%d", ((0, "depth", 1),))
    assert list(names(parse_pattern("b.{i}", {"i": 4}), {})) == [f"b.{i}" for i in range(4)]


@pytest.mark.parametrize(
    ("text", "first"), [("b.{2..n}.w", "b.2.w"), ("b.{n}", "b.0"), ("b.{n-1}", None), ("50%.{n}", "50%.0"), ("w", "w")]
)
def test_the_first_name_is_known_where_the_starts_are(text: str, first: str | None) -> None:
    assert first_name(parse_pattern(text)) == first


pieces = st.sampled_from(["blocks.", "norm", ".w", "100%", "."])
ranges = st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(1, 3))


@st.composite
def patterns(draw: st.DrawFn) -> tuple[Pattern, list[str]]:
    """A pattern with known bounds, and its names, put together in another way."""
    spans = draw(st.lists(ranges, max_size=3))
    texts = [draw(pieces) for _ in range(len(spans) + 1)]
    format_ = "%d".join(t.replace("%", "%%") for t in texts)
    every = []
    for indexes in itertools.product(*(range(*s) for s in spans)):
        every.append(texts[0] + "".join(f"{i}{t}" for i, t in zip(indexes, texts[1:], strict=True)))
    return Pattern(format_, tuple(spans)), every


@given(patterns())
def test_counting_is_listing_without_the_list(pattern: tuple[Pattern, list[str]]) -> None:
    compiled, every = pattern
    assert list(names(compiled, {})) == every
    assert count(compiled, {}) == len(every)


@given(patterns())
def test_settling_writes_known_indexes_into_the_name_and_changes_no_name(pattern: tuple[Pattern, list[str]]) -> None:
    compiled, every = pattern
    settled = settle(compiled)
    assert list(names(settled, {})) == every
    assert all(stop != start + 1 for start, stop, _ in settled.ranges)


@given(patterns())
def test_the_first_name_is_the_first(pattern: tuple[Pattern, list[str]]) -> None:
    compiled, every = pattern
    assume(every)
    assert first_name(compiled) == every[0]
