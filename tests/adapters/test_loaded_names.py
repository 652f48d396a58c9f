"""Names that ComfyUI takes for weights, as its own key maps were seen to have them: what of its module tree is named
otherwise than the files, names it maps for weights that are not there, and text encoders."""

from __future__ import annotations

import pytest

from compatkit.adapters.base import Base, of_family
from compatkit.adapters.coverage import coverage
from compatkit.adapters.encoders import encoder_names
from compatkit.adapters.keys import spellings
from compatkit.adapters.names import Target, held_names, held_weights, key_map
from compatkit.knowledge.store import load

KNOWN = load()
TABLE = KNOWN.adapters("comfyui")


def base(family: str) -> Base:
    found = of_family(family, KNOWN)
    assert found is not None
    return found


def mapped(family: str, module: str) -> tuple[Target | None, tuple[int | None, ...] | None]:
    """What a module's name stands for, and the shape of that weight in the module tree."""
    own = base(family)
    held = held_names(own, TABLE)
    weights = held_weights(own, TABLE, KNOWN, held)
    target = key_map(own, TABLE, KNOWN, lambda _: True, held, [module], list(weights)).get(module)
    return target, weights.get(target.weight) if target else None


#: (family, module as spelled, weight, its shape where the base has it).
SEEN: list[tuple[str, str, str, tuple[int, ...] | None]] = [
    (
        "cascade_c",
        "lora_prior_unet_down_blocks_0_2_attention_attn_to_q",
        "down_blocks.0.2.attention.attn.to_q.weight",
        (2048, 2048),
    ),
    (
        "cascade_b",
        "diffusion_model.up_blocks.0.2.attention.attn.out_proj",
        "up_blocks.0.2.attention.attn.out_proj.weight",
        (1280, 1280),
    ),
    (
        "chroma",
        "lora_unet_distilled_guidance_layer_norms_0",
        "distilled_guidance_layer.norms.0.weight",
        (5120,),
    ),
    (
        "pixeldit",
        "lora_unet_pixel_embedder_proj",
        "pixel_embedder.proj.weight",
        (16, 3),
    ),
    (
        "svd",
        "lora_unet_down_blocks_0_resnets_0_conv1",
        "input_blocks.1.0.in_layers.2.weight",
        (320, 320, 3, 3),
    ),
    (
        "playground25",
        "unet.down_blocks.1.attentions.0.proj_in",
        "input_blocks.4.1.proj_in.weight",
        (640, 640),
    ),
    (
        "sdxl",
        "lora_unet_down_blocks_2_resnets_1_conv_shortcut",
        "input_blocks.8.0.skip_connection.weight",
        None,
    ),
    (
        "sd15",
        "lora_unet_add_embedding_linear_2",
        "label_emb.0.2.weight",
        None,
    ),
    (
        "pixart_alpha",
        "transformer.adaln_single.emb.resolution_embedder.linear_1",
        "csize_embedder.mlp.0.weight",
        (384, 256),
    ),
    (
        "z_image_turbo",
        "context_refiner.0.adaLN_modulation.0",
        "context_refiner.0.adaLN_modulation.0.weight",
        None,
    ),
]


@pytest.mark.parametrize(("family", "module", "weight", "shape"), SEEN, ids=[f"{s[0]} {s[1]}" for s in SEEN])
def test_a_name_stands_for_the_weight_that_was_seen(
    family: str, module: str, weight: str, shape: tuple[int, ...] | None
) -> None:
    assert mapped(family, module) == (Target(weight), shape)


@pytest.mark.parametrize(
    ("family", "module"),
    [
        ("svd", "lora_unet_down_blocks_0_resnets_0_spatial_res_block_conv1"),
        ("cascade_c", "diffusion_model.down_blocks.0.2.attention.attn.in_proj_weight"),
        ("pixeldit", "lora_unet_core_pixel_embedder_proj"),
        ("sd_x4_upscaler", "lora_unet_class_embedding"),
    ],
)
def test_a_name_of_the_file_or_of_diffusers_is_not_taken_where_the_module_tree_has_another(
    family: str, module: str
) -> None:
    assert mapped(family, module) == (None, None)


@pytest.mark.parametrize(
    ("kinds", "module", "weight"),
    [
        (
            "qwen2.5_vl_7b",
            "text_encoders.qwen25_7b.transformer.model.norm",
            "qwen25_7b.transformer.model.norm",
        ),
        (
            "qwen2.5_vl_7b",
            "lora_te_layers_0_self_attn_q_proj",
            "qwen25_7b.transformer.model.layers.0.self_attn.q_proj",
        ),
        (
            "qwen3vl_4b",
            "lora_te_layers_0_mlp_up_proj",
            "qwen3vl_4b.transformer.model.layers.0.mlp.up_proj",
        ),
        (
            "umt5_xxl",
            "text_encoders.umt5xxl.transformer.shared",
            "umt5xxl.transformer.shared",
        ),
        (
            "t5xxl_old",
            "lora_te1_encoder_final_layer_norm",
            "t5xxl.transformer.encoder.final_layer_norm",
        ),
        (
            "clip_l clip_g t5xxl",
            "lora_prior_te_text_projection",
            "clip_g.transformer.text_projection",
        ),
    ],
)
def test_an_encoders_module_is_called_as_its_tree_calls_it(kinds: str, module: str, weight: str) -> None:
    names, shapes = encoder_names([base(kind) for kind in kinds.split()], TABLE)
    assert names[module] == Target(f"{weight}.weight")
    assert f"{weight}.weight" in shapes


def test_an_encoder_beside_another_has_no_names_of_one_alone() -> None:
    names, _ = encoder_names([base("llava_llama3_8b"), base("clip_l")], TABLE)
    assert "lora_te_layers_0_self_attn_q_proj" not in names
    assert "text_encoders.llama.transformer.model.layers.0.self_attn.q_proj" in names


def test_the_difference_of_a_bias_is_lost_where_a_module_stands_for_some_rows() -> None:
    spelled = spellings(KNOWN.adapters("spellings"))
    tensors = {
        "transformer.transformer_blocks.0.attn.to_k.diff": (3072, 3072),
        "transformer.transformer_blocks.0.attn.to_k.diff_b": (3072,),
    }
    found = coverage(tensors, spelled, base("flux_dev"), TABLE, KNOWN)
    assert (found.verdict, found.matched, len(found.absent), found.mismatches) == ("partial", 2, 1, [])
    whole = {"transformer.transformer_blocks.0.attn.to_out.0.diff_b": (3072,)}
    assert coverage(whole, spelled, base("flux_dev"), TABLE, KNOWN).verdict == "full"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"up": (3072,), "down": (1, 3072)}, "no product"),
        ({"up": (3072, 4), "down": (4,)}, "no product"),
        ({"up": (3072, 4), "down": (4, 3072), "dora": ()}, "single number"),
    ],
)
def test_tensors_of_one_side_cannot_be_applied(tensors: dict[str, tuple[int, ...]], says: str) -> None:
    endings = {"up": ".lora_B.weight", "down": ".lora_A.weight", "dora": ".dora_scale"}
    named = {f"diffusion_model.double_blocks.0.img_attn.proj{endings[p]}": s for p, s in tensors.items()}
    found = coverage(named, spellings(KNOWN.adapters("spellings")), base("flux_dev"), TABLE, KNOWN)
    assert found.verdict == "shape_mismatch"
    assert says in found.mismatches[0].problem
