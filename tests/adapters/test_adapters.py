"""Recognition, key maps and coverage, over the real rules."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Any

import pytest

from compatkit import adapters
from compatkit.adapters.base import Base, of_family
from compatkit.adapters.coverage import Coverage, coverage
from compatkit.adapters.encoders import encoder_names
from compatkit.adapters.keys import Spellings, spellings
from compatkit.adapters.names import held_names, key_map
from compatkit.adapters.targets import claimed_families
from compatkit.identify.identify import identify
from compatkit.knowledge.store import Knowledge, load
from tests.support.rules import header

Shape = tuple[int, ...]

#: Bases with an example of their own; every key map below is walked for each.
BASES = ["sd15", "sdxl", "flux_dev", "chroma", "z_image_turbo", "wan21_t2v_14b", "qwen_image", "sd35_medium", "krea2"]


@pytest.fixture(scope="module")
def known() -> Knowledge:
    return load()


@pytest.fixture(scope="module")
def spelled(known: Knowledge) -> Spellings:
    return spellings(known.adapters("spellings"))


def base(known: Knowledge, family: str) -> Base:
    found = of_family(family, known)
    assert found is not None
    return found


def pairs(modules: Mapping[str, tuple[int, int]], rank: int = 4, style: str = "AB") -> dict[str, Shape]:
    """A LoRA of these modules (name -> rows, columns)."""
    down, up = (".lora_A.weight", ".lora_B.weight") if style == "AB" else (".lora_down.weight", ".lora_up.weight")
    out: dict[str, Shape] = {}
    for module, (rows, columns) in modules.items():
        out |= {module + down: (rank, columns), module + up: (rows, rank)}
        if style != "AB":
            out[f"{module}.alpha"] = ()
    return out


def split_layers(prefix: str, layers: int = 30) -> dict[str, tuple[int, int]]:
    """The attention of Z-Image in diffusers' names, and a feed-forward half."""
    out = {}
    for i in range(layers):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            out[f"{prefix}layers.{i}.attention.{name}"] = (3840, 3840)
        out[f"{prefix}layers.{i}.feed_forward.w1"] = (10240, 3840)
    return out


def cover(known: Knowledge, spelled: Spellings, tensors: Mapping[str, Any], family: str, **more: Any) -> Coverage:
    return coverage(tensors, spelled, base(known, family), known.adapters("comfyui"), known, **more)


@pytest.mark.parametrize("family", BASES)
def test_every_name_of_the_model_itself_is_mapped_to_itself(known: Knowledge, family: str) -> None:
    own, table = base(known, family), known.adapters("comfyui")
    held = held_names(own, table)
    names = key_map(own, table, known, lambda _: True, held)
    for name in held.values():
        if name.endswith(".weight"):
            module = name.removesuffix(".weight")
            assert names[f"diffusion_model.{module}"].weight == name
            assert names["lora_unet_" + module.replace(".", "_")].weight == name


@pytest.mark.parametrize("family", BASES)
def test_rows_of_a_fused_weight_lie_inside_it_and_do_not_overlap(known: Knowledge, family: str) -> None:
    own, table = base(known, family), known.adapters("comfyui")
    held = held_names(own, table)
    shapes = {held[n]: s for n, s in own.shapes.items()}
    taken: dict[str, set[tuple[int, int]]] = {}
    for name, target in key_map(own, table, known, lambda _: True, held).items():
        if target.rows and target.weight in shapes and not name.endswith("linear1_qkv"):
            taken.setdefault(target.weight, set()).add(target.rows)
    for weight, rows in taken.items():
        ordered = sorted(rows)
        assert all(a + n <= b for (a, n), (b, _) in pairwise(ordered)), weight
        assert ordered[-1][0] + ordered[-1][1] <= (shapes[weight][0] or 0), weight


def test_split_attention_is_read_since_a_version(known: Knowledge, spelled: Spellings) -> None:
    tensors = pairs(split_layers("diffusion_model."))
    now = cover(known, spelled, tensors, "z_image_turbo")
    assert (now.verdict, now.matched, now.modules_matched) == ("full", 300, 150)
    before = cover(known, spelled, tensors, "z_image_turbo", has=lambda version: False)
    assert (before.verdict, before.matched, before.keys) == ("partial", 60, 300)
    assert before.reasons == {"module": 240}


def test_the_same_modules_under_other_prefixes(known: Knowledge, spelled: Spellings) -> None:
    for prefix, verdict in {"transformer.": "full", "": "full", "base_model.model.": "none"}.items():
        assert cover(known, spelled, pairs(split_layers(prefix)), "z_image_turbo").verdict == verdict


def test_a_weight_of_another_size_is_a_mismatch_with_both_numbers(known: Knowledge, spelled: Spellings) -> None:
    module = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = pairs({module: (640, 2048)}, style="kohya")
    assert cover(known, spelled, tensors, "sdxl").verdict == "full"
    wrong = cover(known, spelled, tensors, "sd15")
    assert wrong.verdict == "shape_mismatch"
    assert wrong.mismatches[0].made == (640, 2048)
    assert wrong.mismatches[0].expected == (640, 768)


def test_a_target_that_the_base_lacks_is_matched_but_not_full(known: Knowledge, spelled: Spellings) -> None:
    found = cover(known, spelled, pairs({"transformer.transformer_blocks.0.norm1.linear": (18432, 3072)}), "chroma")
    assert (found.verdict, found.matched, len(found.absent)) == ("partial", 2, 1)


def test_junk_halves_and_mixed_conventions_are_told_apart(known: Knowledge, spelled: Spellings) -> None:
    tensors = {
        **pairs({"diffusion_model.layers.0.attention.qkv": (11520, 3840)}),
        **pairs({"lora_unet_layers_0_attention_qkv": (11520, 3840)}, style="kohya"),
        "diffusion_model.layers.1.feed_forward.w1.lora_B.weight": (10240, 4),
        "optimizer.step": (1,),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": (),
    }
    found = cover(known, spelled, tensors, "z_image_turbo")
    assert found.twice == ["layers.0.attention.qkv.weight"]
    assert found.crash.endswith("w1.lora_A.weight")
    assert found.reasons["junk"] == 1
    assert found.reasons["encoder"] == 1


def test_a_magnitude_that_is_not_read_is_counted(known: Knowledge, spelled: Spellings) -> None:
    module = "diffusion_model.layers.0.attention.out"
    tensors = pairs({module: (3840, 3840)}) | {f"{module}.lora_magnitude_vector": (3840,)}
    found = cover(known, spelled, tensors, "z_image_turbo")
    assert (found.verdict, found.ignored["dora_peft"]) == ("partial", 1)


def test_encoders_add_their_names(known: Knowledge, spelled: Spellings) -> None:
    tensors = pairs({"lora_te2_encoder_block_0_layer_0_SelfAttention_q": (4096, 4096)}, style="kohya")
    alone = cover(known, spelled, tensors, "flux_dev")
    assert (alone.verdict, alone.reasons["encoder"]) == ("none", 3)
    names, shapes = encoder_names([base(known, "clip_l"), base(known, "t5xxl")], known.adapters("comfyui"))
    together = cover(known, spelled, tensors, "flux_dev", encoders=names, encoder_shapes=shapes)
    assert together.verdict == "full"


def test_a_control_lora_is_rewritten_first(known: Knowledge, spelled: Spellings) -> None:
    tensors = pairs({"img_in": (3072, 128), "double_blocks.0.img_attn.proj": (3072, 3072)}) | {
        "single_blocks.0.norm.key_norm.scale": (128,),
        "img_in.lora_B.bias": (3072,),
    }
    found = cover(known, spelled, tensors, "flux_dev")
    assert (found.conversion != "", found.keys, found.verdict) == (True, 7, "full")
    assert cover(known, spelled, tensors, "flux_fill").verdict == "shape_mismatch"


@pytest.mark.parametrize(
    ("key", "module", "algorithm"),
    [
        ("lora_unet_a_b.lora_down.weight", "lora_unet_a_b", "lora"),
        ("unet.a.processor.to_q_lora.up.weight", "unet.a.processor.to_q", "lora"),
        ("a.b.lora_A.default.weight", "a.b", "lora"),
        ("a.b.lora_A.style7.weight", "a.b", "lora"),
        ("text_encoder.a.lora_linear_layer.down.weight", "text_encoder.a", "lora"),
        ("x.hada_w1_a", "x", "loha"),
        ("x.lokr_w2_b", "x", "lokr"),
        ("x.oft_blocks", "x", "oft"),
        ("x.diff_b", "x", "diff"),
        ("d.0.processor.qkv_lora2.up.weight", "d.0.processor.qkv_lora2", "lora"),
    ],
)
def test_a_key_is_split_into_module_and_sense(spelled: Spellings, key: str, module: str, algorithm: str) -> None:
    [[found], junk] = spelled.keys([key])
    assert (found.module, found.sense.algorithm, junk) == (module, algorithm, [])


def test_a_weight_of_a_model_is_no_key(spelled: Spellings) -> None:
    assert spelled.keys(["double_blocks.0.img_attn.qkv.weight"])[0] == []
    assert [k.sense.algorithm for k in spelled.keys(["a.weight", "a.on_input"])[0]] == ["ia3", "ia3"]


def test_what_an_adapter_is_stands_in_its_facts(known: Knowledge) -> None:
    tensors = pairs(split_layers("diffusion_model."), rank=32)
    component = adapters.recognise(header(tensors, metadata={"ss_base_model_version": "zimage"}), known)
    assert component is not None
    assert (component.role, component.layout, component.prefix) == ("lora", "native", "diffusion_model.")
    assert component.facts["algorithm"] == "lora"
    assert component.facts["ranks"] == [32]
    assert component.facts["targets"] == ["z_image_turbo"]
    assert component.facts["targets_sure"] == "structure and metadata"
    assert component.key_groups == {"layers": 300}


def test_a_base_of_several_sizes_is_told_by_the_blocks_of_the_one_it_has_the_width_of(known: Knowledge) -> None:
    """Anima is Cosmos-Predict2 of 2B with an adapter before it: a LoRA of the blocks alone is for either."""
    for layers, width, families in ((28, 2048, ["cosmos_predict2_t2i", "anima"]), (36, 5120, ["cosmos_predict2_t2i"])):
        modules = {
            f"diffusion_model.blocks.{i}.self_attn.{n}_proj": (width, width) for i in range(layers) for n in "qkv"
        }
        component = adapters.recognise(header(pairs(modules)), known)
        assert component is not None
        assert [f for f in component.facts["targets"] if f in families] == families
        assert ("anima" in component.facts["targets"]) is ("anima" in families)


def test_modules_of_several_widths_in_one_model_are_all_its_own(known: Knowledge) -> None:
    """A narrow block's numbers end before those of a wide one of the same path: each width counts by itself."""
    base = of_family("sdxl", known)
    assert base is not None
    modules = {}
    for name, shape in base.shapes.items():
        rows, *columns = [side or 0 for side in shape]
        if name.endswith(".weight") and columns:
            modules["lora_unet_" + name.removesuffix(".weight").replace(".", "_")] = (rows, prod(columns))
    component = adapters.recognise(header(pairs(modules)), known)
    assert component is not None
    assert (component.facts["targets_share"], component.facts["targets_sure"]) == (1.0, "structure")


def test_metadata_does_not_win_over_tensors(known: Knowledge) -> None:
    component = adapters.recognise(
        header(pairs(split_layers("transformer.")), metadata={"ss_base_model_version": "sdxl_base_v1-0"}), known
    )
    assert component is not None
    assert "z_image_turbo" in component.facts["targets"]
    assert component.facts["claim_refuted"] == "sdxl_base_v1-0"


def test_a_claim_known_to_lie_counts_for_nothing(known: Knowledge) -> None:
    fields = known.adapters("spellings")["metadata"]
    lie = {"ss_base_model_version": "sd_1.5", "software": '{"name": "ai-toolkit"}'}
    assert claimed_families(lie, fields)[1] == []
    assert claimed_families({"ss_base_model_version": "sd_1.5"}, fields)[1] == ["sd15"]
    assert claimed_families({"ss_base_model_version": "sd_1.5", "software": "[]"}, fields)[1] == ["sd15"]


@pytest.mark.parametrize("metadata", [{"ss_network_dim": "Dynamic"}, {"lora_adapter_metadata": "{"}, {"software": "x"}])
def test_odd_metadata_and_empty_tensors_are_no_error(known: Knowledge, metadata: dict[str, str]) -> None:
    component = adapters.recognise(
        header(
            {"a.lora_A.weight": (0, 8), "a.lora_B.weight": (8, 0), "b.lokr_w1": (), "b.lokr_w2_a": (2,)},
            metadata=metadata,
        ),
        known,
    )
    assert component is not None
    assert component.facts["empty"] == 1
    assert component.facts["ranks"] == [0]


def test_a_model_is_no_adapter(known: Knowledge) -> None:
    model = header({n: tuple(x or 1 for x in s) for n, s in base(known, "sd15").shapes.items()})
    assert adapters.share(model, known) == 0.0
    assert adapters.recognise(model, known) is None
    assert identify(model, known)[0].role == "diffusion"


def test_observed_loading_of_real_files_agrees(known: Knowledge, shared: Any) -> None:
    from benchmarks.lora import pairs as rows

    found = list(rows(shared / "lora", known, ["lorainspector__krea2", "invoke__flux_control"], False))
    assert found
    assert [r for r in found if (r["seen"], r["seen_keys"]) != (r["found"], r["found_keys"])] == []


def test_families_of_one_kin_have_the_widths_that_adapters_need(known: Knowledge) -> None:
    """A LoRA goes from one to another of a kin as a matter of course: their text cannot be of another width."""
    for group in known.adapters("spellings")["kin"]:
        widths = {known.fixed(f, "context_dim") for f in group if known.has_family(f)}
        assert len(widths - {None}) <= 1, group
