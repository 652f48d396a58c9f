"""LoRA names in InvokeAI: which files its probe refuses, and which modules its converters reach."""

from __future__ import annotations

import pytest

from compatkit.adapters.base import of_family
from compatkit.adapters.coverage import Coverage, coverage
from compatkit.adapters.keys import spellings
from compatkit.adapters.routes import knows
from compatkit.checks.loaders import Loader, known_to
from compatkit.knowledge.store import Knowledge, load

RUNTIME = "invokeai"
AB, UD = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")


@pytest.fixture(scope="module")
def known() -> Knowledge:
    return load()


def covered(known: Knowledge, family: str, names: list[str], endings: tuple[str, str]) -> Coverage:
    """What is read of a LoRA of these modules; sizes are not given, so none can be wrong."""
    base = of_family(family, known)
    assert base is not None
    base = base.known_by(known_to(base.card, family, Loader(RUNTIME, known.runtime(RUNTIME)), known))
    table = known.adapters(RUNTIME)
    assert knows(table, base)
    tensors: dict[str, tuple[int, ...] | None] = {f"{n}.{e}": None for n in names for e in endings}
    return coverage(tensors, spellings(known.adapters("spellings")), base, table, known)


FLUX = ["single_transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_q_proj"]


@pytest.mark.parametrize(
    ("family", "names", "endings", "refused", "reached"),
    [
        ("sd15", ["lora_unet_down_blocks_0_attentions_0_proj_in"], UD, "", 1),
        ("sd15", ["lora_unet_input_blocks_1_1_proj_in"], UD, "", 0),  # SD 1.x takes diffusers' names only
        ("sd15", ["unet.down_blocks.0.attentions.0.proj_in"], AB, "heuristics", 0),
        ("sdxl", ["lora_unet_input_blocks_4_1_proj_in"], UD, "", 1),
        ("sdxl", ["lora_unet_down_blocks_1_attentions_0_proj_in"], UD, "", 1),
        ("sdxl", ["unet.down_blocks.1.attentions.0.proj_in"], AB, "Unrecognized SDXL LoRA key prefix: 'unet.", 0),
        ("flux_dev", ["lora_unet_double_blocks_0_img_attn_proj", "lora_unet_single_blocks_0_linear1"], UD, "", 2),
        ("flux_dev", [f"transformer.{n}" for n in FLUX], AB, "", 2),
        ("flux_dev", FLUX, AB, "heuristics", 0),
        ("flux_dev", ["diffusion_model.double_blocks.0.img_attn.proj"], AB, "", 1),
        ("flux_dev", ["diffusion_model.double_blocks.0.img_attn.proj"], UD, "Unsupported lora format", 0),
        ("flux_dev", ["double_blocks.0.processor.proj_lora1"], ("down.weight", "up.weight"), "", 1),
        ("flux2_klein_4b", ["transformer.transformer_blocks.0.ff.linear_in"], AB, "", 1),
        ("flux2_klein_4b", ["base_model.model.double_blocks.0.img_attn.proj"], AB, "", 1),
        ("flux2_klein_4b", ["diffusion_model.double_blocks.0.img_attn.proj"], AB, "", 0),
        ("z_image_turbo", ["diffusion_model.layers.0.attention.to_q"], AB, "", 1),
        ("z_image_turbo", ["diffusion_model.layers.0.attention.qkv"], AB, "", 0),
        ("z_image_turbo", ["layers.0.attention.to_q"], AB, "heuristics", 0),
        ("z_image_turbo", ["lora_unet__layers_0_attention_to_q"], UD, "", 1),
        ("z_image_turbo", ["lora_unet__layers_0_attention_to_out_0"], UD, "", 0),
        ("z_image_turbo", ["lora_unet_layers_0_attention_to_q"], UD, "heuristics", 0),
        ("qwen_image", ["transformer_blocks.0.attn.to_q"], AB, "", 1),
        ("qwen_image", ["diffusion_model.transformer_blocks.0.attn.to_q"], AB, "heuristics", 0),
        ("krea2", ["transformer.text_fusion.projector", "transformer.transformer_blocks.0.attn.to_q"], AB, "", 2),
        ("anima", ["diffusion_model.blocks.0.self_attn.q_proj"], AB, "", 1),
        ("wan22_ti2v_5b", ["diffusion_model.blocks.0.self_attn.q"], AB, "", 1),
        ("wan22_ti2v_5b", ["blocks.0.attn1.to_q"], AB, "", 1),
        ("wan22_ti2v_5b", ["unet.blocks.0.attn1.to_q"], AB, "heuristics", 0),
    ],
)
def test_which_files_it_takes_and_which_modules_it_reaches(
    known: Knowledge, family: str, names: list[str], endings: tuple[str, str], refused: str, reached: int
) -> None:
    found = covered(known, family, names, endings)
    assert (refused in found.refused) if refused else not found.refused
    assert found.modules_matched == reached


@pytest.mark.parametrize("family", ["sd35_large", "cogview4", "ernie_image"])
def test_models_without_loras_are_not_judged(known: Knowledge, family: str) -> None:
    base = of_family(family, known)
    assert base is not None
    base = base.known_by(known_to(base.card, family, Loader(RUNTIME, known.runtime(RUNTIME)), known))
    assert not knows(known.adapters(RUNTIME), base)
