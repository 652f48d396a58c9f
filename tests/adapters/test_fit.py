"""Shapes of changes against shapes of weights, by algorithm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatkit.adapters.fit import FITS, broadcast, matrix

SIDE = st.integers(1, 64)


@given(SIDE, SIDE, st.integers(1, 16))
def test_a_product_fits_the_weight_it_was_made_for_and_no_other(rows: int, columns: int, rank: int) -> None:
    parts = {"up": (rows, rank), "down": (rank, columns)}
    assert FITS["product"](parts, (rows, columns)) == ""
    assert matrix("product", parts) == (rows, columns)
    problem = FITS["product"](parts, (rows, columns + 1))
    assert str(rows * columns) in problem or f"[{rows}, {columns}]" in problem


@given(SIDE, SIDE, st.integers(1, 8), st.integers(1, 8), st.integers(1, 8))
def test_kronecker_factors_multiply_their_sides(a: int, b: int, c: int, d: int, rank: int) -> None:
    full = {"w1": (a, b), "w2": (c, d)}
    split = {"w1": (a, b), "w2_a": (c, rank), "w2_b": (rank, d)}
    for parts in (full, split):
        assert FITS["kronecker"](parts, (a * c, b * d)) == ""
        assert matrix("kronecker", parts) == (a * c, b * d)
        assert FITS["kronecker"](parts, (a * c + 1, b * d)) != ""


@pytest.mark.parametrize(
    ("math", "parts", "weight", "says"),
    [
        ("product", {"up": (8, 4), "down": (3, 8)}, (8, 8), "ranks 4 and 3"),
        ("product", {"up": (), "down": (3, 8)}, (8, 8), "no product"),
        ("product", {"up": (8, 4), "down": (4, 8), "mid": (4, 5, 3, 3)}, (8, 8, 3, 3), "does not fit between"),
        ("product", {"up": (8, 4), "down": (4, 8), "dora": (3, 1)}, (8, 8), "magnitudes"),
        ("product", {"up": (8, 4), "down": (4, 8), "reshape": (4, 8)}, (8, 8), "less than"),
        ("hadamard", {"w1_a": (8, 2), "w1_b": (3, 8), "w2_a": (8, 2), "w2_b": (2, 8)}, (8, 8), "ranks 2 and 3"),
        ("kronecker", {"w1": (2, 2)}, (8, 8), "not there"),
        ("blocks", {"blocks": (2, 4, 4)}, (9, 8), "the weight has 9"),
        ("blocks", {"blocks": (2, 2, 4, 4)}, (8, 8), "without an alpha"),
        ("full", {"weight": (8, 7)}, (8, 8), "[8, 7]"),
        ("set", {"weight": (3,)}, (8,), "[3]"),
    ],
)
def test_what_does_not_go_together_is_said(
    math: str, parts: dict[str, tuple[int, ...]], weight: tuple[int, ...], says: str
) -> None:
    assert says in FITS[math](parts, weight)


@pytest.mark.parametrize(
    ("math", "parts", "weight"),
    [
        ("product", {"up": (8, 4, 1, 1), "down": (4, 8, 3, 3)}, (8, 8, 3, 3)),
        ("product", {"up": (8, 4), "down": (4, 8), "mid": (4, 4, 3, 3)}, (8, 8, 3, 3)),
        ("product", {"up": (8, 4), "down": (4, 6), "dora": (8, 1)}, (8, 6)),
        ("product", {"up": (8, 4), "down": (4, 6), "dora": (1, 6)}, (8, 6)),
        ("product", {"up": (8, 4), "down": (4, 16), "reshape": (8, 16)}, (8, 8)),
        ("hadamard", {"w1_a": (8, 2), "w1_b": (2, 6), "w2_a": (8, 2), "w2_b": (2, 6)}, (8, 6)),
        (
            "hadamard",
            {"w1_a": (2, 8), "w1_b": (2, 6), "w2_a": (2, 8), "w2_b": (2, 6), "t1": (2, 2, 3, 3), "t2": (2, 2, 3, 3)},
            (8, 6, 3, 3),
        ),
        ("blocks", {"blocks": (2, 4, 4)}, (8, 5)),
        ("set", {"weight": ()}, (8,)),
    ],
)
def test_what_fits_gives_nothing(math: str, parts: dict[str, tuple[int, ...]], weight: tuple[int, ...]) -> None:
    assert FITS[math](parts, weight) == ""


def test_shapes_broadcast_as_tensors_do() -> None:
    assert broadcast((8, 1), (1, 6)) == (8, 6)
    assert broadcast((3,), (8,)) is None
    assert broadcast((), (2, 2)) == (2, 2)
