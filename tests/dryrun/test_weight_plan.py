"""Weight plans on small families: what is fused, cut, exchanged or renamed is found again row by row, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from compatkit.dryrun.plan import Piece, Recipe, layout_in_file, weight_plan
from compatkit.identify.identify import identify
from compatkit.identify.shapes import expected_shapes
from compatkit.knowledge.store import Knowledge
from tests.support.rules import PLAIN, families, header

LAYOUTS = """\
layouts:
  cut:
    - split: {from: "**.attn.qkv", to: ["**.attn.q", "**.attn.k", "**.attn.v"]}
    - rename: {img_in: patch_in}
    - swap: [final]
  joined:
    - fuse: {from: ["**.norm1", "**.norm2"], to: "**.norms"}
    - drop: [final.bias]
    - reshape: {"**.mlp.weight": [ffn, hidden, 1]}
    - add: {extra: "lin(2, 2)"}
"""
SYMBOLS = {"hidden": 4, "patch": 6, "layers": 2, "ffn": 8}
Values = Mapping[str, list[int]]


@pytest.fixture
def plain(tmp_path: Path) -> Knowledge:
    return families(tmp_path, PLAIN + LAYOUTS)


def rows(knowledge: Knowledge, layout: str) -> dict[str, list[int]]:
    """Numbered rows for every tensor of a layout, as if the file had only them."""
    shapes = expected_shapes(knowledge.grammar("plain"), layout, SYMBOLS, {})
    return {n: [1000 * i + r for r in range((s or (1,))[0] or 1)] for i, (n, s) in enumerate(shapes.items())}


def made(recipe: Recipe, values: Values, prefix: str = "") -> list[int]:
    out: list[int] = []
    for piece in recipe.pieces:
        all_rows = values[piece.source.removeprefix(prefix)]
        out += all_rows if piece.rows is None else all_rows[piece.start : piece.start + piece.rows]
    return out


def plan(knowledge: Knowledge, of_file: str, of_class: str, prefix: str = "") -> dict[str, Recipe]:
    return weight_plan(knowledge.grammar("plain"), of_file, of_class, SYMBOLS, {}, prefix)


def test_a_fused_projection_is_cut_and_halves_are_exchanged(plain: Knowledge) -> None:
    own = rows(plain, "native")
    recipes = plan(plain, "native", "cut")
    qkv = own["blocks.1.attn.qkv.weight"]
    assert made(recipes["blocks.1.attn.k.weight"], own) == qkv[4:8]
    assert recipes["blocks.1.attn.k.weight"].pieces == (Piece("blocks.1.attn.qkv.weight", (12, 4), 4, 4),)
    final = own["final.weight"]
    assert made(recipes["final.weight"], own) == final[3:] + final[:3]
    assert recipes["patch_in.bias"].plain
    assert not recipes["final.bias"].plain


def test_cut_projections_are_joined_and_the_exchange_undone(plain: Knowledge) -> None:
    cut = rows(plain, "cut")
    recipes = plan(plain, "cut", "native")
    assert made(recipes["blocks.0.attn.qkv.bias"], cut) == [
        *(r for part in "qkv" for r in cut[f"blocks.0.attn.{part}.bias"]),
    ]
    assert [p.rows for p in recipes["blocks.0.attn.qkv.bias"].pieces] == [None, None, None]
    final = cut["final.bias"]
    assert made(recipes["final.bias"], cut) == final[3:] + final[:3]


def test_between_two_layouts_that_are_not_the_family_s_own(plain: Knowledge) -> None:
    cut, joined = rows(plain, "cut"), plan(plain, "cut", "joined")
    assert made(joined["blocks.1.norms.weight"], cut) == cut["blocks.1.norm1.weight"] + cut["blocks.1.norm2.weight"]
    assert joined["blocks.0.mlp.weight"].shape == (8, 4, 1)
    back = plan(plain, "joined", "cut")
    assert back["blocks.1.norm2.bias"].pieces == (Piece("blocks.1.norms.bias", (8,), 4, 4),)
    assert back["blocks.0.mlp.weight"].shape == (8, 4)


def test_what_a_layout_lacks_or_adds_has_no_recipe(plain: Knowledge) -> None:
    assert "final.bias" not in plan(plain, "joined", "native")
    assert "final.bias" not in plan(plain, "joined", "cut")
    assert "extra.weight" not in plan(plain, "native", "joined")
    assert "extra.weight" in plan(plain, "joined", "joined")


def test_sources_carry_the_prefix_of_the_file(plain: Knowledge) -> None:
    recipe = plan(plain, "native", "cut", "model.")["patch_in.weight"]
    assert recipe.pieces == (Piece("model.img_in.weight", (4, 6)),)


@pytest.mark.parametrize("layout", ["native", "cut", "joined"])
@pytest.mark.parametrize("gguf", [False, True])
def test_the_layout_of_a_file_is_read_from_its_names(plain: Knowledge, layout: str, gguf: bool) -> None:
    shapes = expected_shapes(plain.grammar("plain"), layout, SYMBOLS, {})
    known = {n: tuple(s or 1 for s in shape or ()) for n, shape in shapes.items()}
    made_of = header(known, format_="gguf" if gguf else "safetensors")
    found = identify(made_of, plain)[0]
    assert layout_in_file(found, plain.grammar("plain")) == layout
