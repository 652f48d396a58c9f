"""Pieces of models: one shard alone, a module cut out; and what only looks like one."""

from __future__ import annotations

import pytest

from compatkit.identify.identify import identify
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component, Header, Tensor


def seen(shapes: dict[str, tuple[int, ...]]) -> list[Component]:
    tensors = {name: Tensor("BF16", shape, 0) for name, shape in shapes.items()}
    return identify(Header("x.safetensors", "safetensors", 0, 0, tensors), load())


def pieces(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    return [p.message for c in seen(shapes) for p in c.problems if p.rule == "file/fragment"]


@pytest.mark.parametrize(("family", "layout"), [("flux_dev", "diffusers"), ("z_image_turbo", None), ("sdxl", None)])
def test_the_last_tensors_of_a_model_alone_are_a_piece_of_it(family: str, layout: str | None) -> None:
    shapes = example_shapes(load().grammar(family), layout)
    last = dict(sorted(shapes.items())[-len(shapes) // 4 :])
    if [c.family for c in seen(last)] != [None]:
        pytest.skip("so much of this model is still recognised, and told to be incomplete")
    [message] = pieces(last)
    assert str(load().family(family)["title"]) in message
    assert pieces(shapes) == []


def test_a_module_is_a_piece_and_a_few_matrices_are_nothing() -> None:
    shapes = example_shapes(load().grammar("flux_dev"), "diffusers")
    block = {n: s for n, s in shapes.items() if n.startswith("single_transformer_blocks.")}
    assert len(pieces(block)) == 1
    assert pieces(dict(list(block.items())[:12])) == []


def test_other_sizes_or_one_foreign_matrix_are_no_piece() -> None:
    shapes = example_shapes(load().grammar("flux_dev"), "diffusers")
    block = {n: s for n, s in shapes.items() if n.startswith("single_transformer_blocks.")}
    assert pieces({**block, "my_own.weight": (64, 64)}) == []
    assert pieces({n: tuple(2 * x for x in s) for n, s in block.items()}) == []
