"""LoRA names in stable-diffusion.cpp: dots made of underscores, fused weights read from their first part on."""

from __future__ import annotations

import pytest

from compatkit.adapters.base import of_family
from compatkit.adapters.coverage import Coverage, coverage
from compatkit.adapters.keys import spellings
from compatkit.adapters.names import parted
from compatkit.checks.loaders import Loader, known_to
from compatkit.knowledge.store import Knowledge, load

RUNTIME = "sd.cpp"


@pytest.fixture(scope="module")
def known() -> Knowledge:
    return load()


def covered(known: Knowledge, family: str, modules: dict[str, tuple[int, int]], endings: str = "AB") -> Coverage:
    """What is read of a LoRA of rank 4: module -> (rows, columns)."""
    base = of_family(family, known)
    assert base is not None
    base = base.known_by(known_to(base.card, family, Loader(RUNTIME, known.runtime(RUNTIME)), known))
    tensors: dict[str, tuple[int, ...] | None] = {}
    for name, (rows, columns) in modules.items():
        down, up = (".lora_A.weight", ".lora_B.weight") if endings == "AB" else (".lora_down.weight", ".lora_up.weight")
        tensors |= {name + down: (4, columns), name + up: (rows, 4)}
    return coverage(tensors, spellings(known.adapters("spellings")), base, known.adapters(RUNTIME), known)


def test_underscores_become_dots_but_for_its_own_words() -> None:
    assert parted("blocks_0_cross_attn_k", ["cross_attn"]) == "blocks.0.cross_attn.k"
    assert parted("blocks_0_k_img", ["cross_attn"]) == "blocks.0.k.img"


@pytest.mark.parametrize(
    ("family", "module", "size", "matched"),
    [
        ("wan21_t2v_14b", "lora_unet_blocks_0_cross_attn_k", (5120, 5120), 2),
        ("wan21_i2v_14b", "lora_unet_blocks_0_cross_attn_k_img", (5120, 5120), 0),  # k_img is none of its words
        ("wan21_i2v_14b", "diffusion_model.blocks.0.cross_attn.k_img", (5120, 5120), 2),
        ("z_image_turbo", "lora_unet_layers_0_feed_forward_w1", (10240, 3840), 0),
        ("z_image_turbo", "diffusion_model.layers.0.feed_forward.w1", (10240, 3840), 2),
        ("z_image_turbo", "base_model.model.layers.0.feed_forward.w1", (10240, 3840), 0),
        ("flux_dev", "lora_transformer_transformer_blocks_0_attn_to_out_0", (3072, 3072), 0),
        ("flux_dev", "transformer_blocks.0.attn.to_out.0", (3072, 3072), 2),
        ("sd15", "lora_unet_down_blocks_0_attentions_0_proj_in", (320, 320), 2),
        ("sd15", "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q", (320, 320), 2),
        ("sd15", "lora_unet_time_embedding_linear_1", (1280, 320), 0),
        ("flux2_dev", "transformer.single_transformer_blocks.37.proj_out", (6144, 24576), 2),
        ("flux2_dev", "transformer.single_transformer_blocks.38.proj_out", (6144, 24576), 0),  # its list ends at 37
    ],
)
def test_which_names_it_finds(known: Knowledge, family: str, module: str, size: tuple[int, int], matched: int) -> None:
    assert covered(known, family, {module: size}).matched == matched


def test_a_split_weight_is_read_from_its_first_part_on(known: Knowledge) -> None:
    q, k, v = (f"transformer.transformer_blocks.0.attn.to_{x}" for x in "qkv")
    size = (3072, 3072)
    assert covered(known, "flux_dev", {q: size, k: size, v: size}).verdict == "full"
    assert covered(known, "flux_dev", {q: size, k: size}).verdict == "full"  # the rest is filled with zeros
    alone = covered(known, "flux_dev", {k: size, v: size})
    assert (alone.verdict, alone.matched) == ("none", 0)
    assert covered(known, "flux_dev", {q: size, v: size}).matched == 2


def test_too_few_rows_are_padded_and_other_columns_are_not(known: Knowledge) -> None:
    module = "diffusion_model.double_blocks.0.img_attn.proj"
    assert covered(known, "flux_dev", {module: (1024, 3072)}).verdict == "full"
    assert covered(known, "flux_dev", {module: (4096, 3072)}).verdict == "shape_mismatch"
    assert covered(known, "flux_dev", {module: (3072, 1024)}).verdict == "shape_mismatch"
