"""Headers whose shapes are not the model's: packed sides, covered modules, squeezed and flattened GGUF tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatkit.knowledge.store import Knowledge, rules_root
from tests.support.rules import PLAIN, Shapes, families, header, only, plain, solve

MATRICES = [n for n in plain() if n.startswith("blocks") and n.endswith(("qkv.weight", "mlp.weight"))]


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> Knowledge:
    packings = (rules_root() / "packings.yaml").read_text(encoding="utf-8")
    return families(tmp_path_factory.mktemp("rules"), PLAIN, packings=packings)


@given(st.sets(st.sampled_from(MATRICES), min_size=1), st.sampled_from([2, 4, 8]))
def test_a_packed_side_fits_and_binds_nothing(knowledge: Knowledge, packed: set[str], values: int) -> None:
    shapes = plain(64, 3)
    halved = {n: (s[0], s[1] // values) if n in packed else s for n, s in shapes.items()}
    head = header(halved, dtypes=dict.fromkeys(packed, "U8"))
    match = solve(knowledge, head)
    assert match.symbols["hidden"] == 64
    assert (match.missing, match.mismatched) == ([], [])


def test_a_packed_side_must_divide_and_rows_must_agree(knowledge: Knowledge) -> None:
    for shape in ((192, 48), (96, 32)):  # 64 is no multiple of 48; rows are never packed
        shapes = {**plain(64, 3), "blocks.1.attn.qkv.weight": shape}
        match = solve(knowledge, header(shapes, dtypes={"blocks.1.attn.qkv.weight": "U8"}))
        assert match.mismatched == ["blocks.1.attn.qkv.weight"]


def test_only_integers_are_packed(knowledge: Knowledge) -> None:
    shapes = {**plain(64, 3), "blocks.1.attn.qkv.weight": (192, 32)}
    assert solve(knowledge, header(shapes)).mismatched == ["blocks.1.attn.qkv.weight"]


def test_a_companion_is_looked_through_where_its_weight_is(knowledge: Knowledge) -> None:
    scales: Shapes = {n.removesuffix("weight") + "weight_scale": () for n in MATRICES}
    component = only(knowledge, header({**plain(), **scales}, dtypes=dict.fromkeys(MATRICES, "F8_E4M3")))
    assert (component.family, component.foreign) == ("plain", ())
    stray = only(knowledge, header({**plain(), "elsewhere.weight_scale": ()}))
    assert stray.foreign == ("elsewhere.weight_scale",)


def test_a_norm_called_scale_is_no_companion(tmp_path: Path) -> None:
    text = PLAIN.replace('"norm{1,2}": norm(hidden)', "norm.scale: [hidden]")
    packings = (rules_root() / "packings.yaml").read_text(encoding="utf-8")
    shapes: Shapes = {n: s for n, s in plain().items() if ".norm" not in n}
    shapes |= {f"blocks.{i}.norm.scale": (64,) for i in range(3)}
    match = solve(families(tmp_path, text, packings=packings), header(shapes))
    assert (match.distance, match.matched) == (0, set(shapes))


def dfloat11(prefix: str = "") -> tuple[Shapes, dict[str, str]]:
    """`PLAIN` with the weights of each block packed into a few tensors of the block."""
    shapes = {n: s for n, s in plain(prefix=prefix).items() if n.removeprefix(prefix) not in MATRICES}
    dtypes = {}
    for i in range(3):
        for leaf in ("encoded_exponent", "sign_mantissa", "luts", "output_positions", "gaps", "split_positions"):
            shapes[f"{prefix}blocks.{i}.{leaf}"] = (3 * 64 * 64 + 160 * 64,)
            dtypes[f"{prefix}blocks.{i}.{leaf}"] = "U8"
    return shapes, dtypes


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_weights_packed_into_their_module_are_there(knowledge: Knowledge, prefix: str) -> None:
    shapes, dtypes = dfloat11(prefix)
    component = only(knowledge, header(shapes, dtypes=dtypes))
    assert (component.family, component.prefix, component.missing, component.foreign) == ("plain", prefix, (), ())
    assert component.quantization.scheme == "dfloat11"
    assert component.facts["layers"] == 3


def test_a_covered_module_covers_weights_only(knowledge: Knowledge) -> None:
    shapes, dtypes = dfloat11()
    del shapes["blocks.1.norm1.bias"]
    assert only(knowledge, header(shapes, dtypes=dtypes)).missing == ("blocks.1.norm1.bias",)


CONVOLUTION = """\
id: conv
role: vae
tensors:
  conv_in: conv(c, 3, 1)
  "down.{n}": conv(c, c, 3)
  out.weight: [1, c, 1]
"""
CONV: Shapes = {
    "conv_in.weight": (8, 3, 1, 1),
    "conv_in.bias": (8,),
    "out.weight": (1, 8, 1),
    **{f"down.{i}.{leaf}": s for i in range(3) for leaf, s in (("weight", (8, 8, 3, 3)), ("bias", (8,)))},
}


def test_gguf_files_may_have_lost_sides_of_one(tmp_path: Path) -> None:
    knowledge = families(tmp_path, CONVOLUTION)
    squeezed = {**CONV, "conv_in.weight": (8, 3), "out.weight": (8,)}
    assert solve(knowledge, header(squeezed, format_="gguf"), "conv").distance == 0
    assert solve(knowledge, header(squeezed), "conv").mismatched == ["conv_in.weight", "out.weight"]
    other = {**CONV, "conv_in.weight": (8, 4)}
    assert solve(knowledge, header(other, format_="gguf"), "conv").mismatched == ["conv_in.weight"]


def test_the_original_shape_stands_for_the_stored_one(tmp_path: Path) -> None:
    knowledge = families(tmp_path, CONVOLUTION)
    flat = {**CONV, "down.1.weight": (36, 16)}
    key = "comfy.gguf.orig_shape.down.1.weight"
    told = header(flat, format_="gguf", metadata={key: (8, 8, 3, 3)})
    assert solve(knowledge, told, "conv").distance == 0
    for metadata in ({}, {key: (8, 8, 3, 4)}, {key: "8,8,3,3"}, {"comfy.gguf.orig_shape.elsewhere": (8, 8, 3, 3)}):
        match = solve(knowledge, header(flat, format_="gguf", metadata=metadata), "conv")
        assert match.mismatched == ["down.1.weight"], metadata
