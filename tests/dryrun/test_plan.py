"""Which operations a set is run on: who meets whom, with which shapes, in which order."""

from __future__ import annotations

from typing import Any

from compatkit.checks.engine import collected
from compatkit.dryrun.meetings import plan
from compatkit.dryrun.planner import Plan
from compatkit.dryrun.probe import Probe
from compatkit.knowledge.store import load
from compatkit.vocabulary import Stack
from tests.support.sets import lora, stack

KINDS = ("loading", "encoder", "vae", "adapter", "attachment")


def planned(made: Stack) -> Plan:
    return plan(collected(made, load(), KINDS))


def of(made: Plan, about: str) -> list[Probe]:
    return [p for p in made.probes if p.about == about]


def ops(probe: Probe) -> list[str]:
    return [s["op"] for s in probe.steps]


def last(probe: Probe) -> dict[str, Any]:
    return next(s for s in reversed(probe.steps) if "weight" in s)


def test_text_features_meet_the_first_operation_of_the_model() -> None:
    [probe] = of(planned(stack("z_image_turbo", "gemma2_2b")), "context")
    assert probe.input == (1, 18, 2304)
    assert ops(probe)[0] == "rms_norm"
    assert probe.steps[0]["module"] == "cap_embedder.0"
    assert probe.steps[0]["weight"] == [2560]
    assert probe.components == (0, 1)


def test_another_runtime_has_other_operations_and_names() -> None:
    [probe] = of(planned(stack("z_image_turbo", "gemma2_2b", runtime="diffusers")), "context")
    assert ops(probe) == ["flat", "mul"]
    [probe] = of(planned(stack("flux_dev", "clip_l", "t5xxl", runtime="diffusers")), "context")
    assert probe.steps[0]["module"] == "context_embedder"


def test_a_pooled_vector_has_the_models_own_numbers_beside_it() -> None:
    made = planned(stack("sdxl", "clip_l", "clip_g"))
    [pooled], [context] = of(made, "pooled"), of(made, "context")
    assert pooled.input == (1, 1280)
    assert pooled.steps[0] == {"op": "beside", "size": 1536, "dim": -1}
    assert last(pooled)["weight"] == [1280, 2816]
    assert context.input == (1, 77, 2048)  # both encoders side by side
    assert pooled.order < context.order  # the vector goes in before any block runs


def test_an_encoder_that_is_cut_to_size_may_be_wider() -> None:
    [probe] = of(planned(stack("flux_dev", "clip_l", "t5xxl")), "pooled")
    assert probe.steps[0] == {"op": "cut", "size": 768}


def test_zeros_stand_for_an_optional_encoder_that_is_not_there() -> None:
    [probe] = of(planned(stack("sd3_medium", "clip_g", "t5xxl")), "pooled")
    assert probe.input == (1, 768 + 1280)
    assert probe.notes


def test_a_file_that_is_alone_feeds_every_input() -> None:
    [context] = of(planned(stack("flux_dev", "clip_l")), "context")
    assert context.input == (1, 18, 768)


def test_an_input_that_nothing_reaches() -> None:
    made = planned(stack("flux_dev", "clip_l", "qwen3_4b", clip_type="flux"))
    [probe] = of(made, "unfed")
    assert probe.input is None
    assert ops(probe) == ["none"]
    assert last(probe)["module"] == "txt_in"


def test_the_token_embedding_is_compared_while_loading() -> None:
    [probe] = of(planned(stack("z_image_turbo", "umt5_xxl", clip_type="lumina2")), "load")
    assert probe.steps[0]["given"] == [256384, 4096]
    assert probe.steps[0]["weight"] == [32128, 4096]
    assert probe.steps[0]["class"] == "T5"


def test_a_video_latent_into_a_picture_vae_depends_on_the_version() -> None:
    made = of(planned(stack("qwen_image", "flux1_vae")), "vae")
    assert [(p.when, ops(p)[0]) for p in made] == [("", "frame"), ("VAEDecodeTiled", "conv2d")]
    assert made[0].input == (1, 16, 1, 128, 128)
    [old] = of(planned(stack("qwen_image", "flux1_vae", version="0.3.70")), "vae")
    assert (old.when, ops(old)) == ("", ["conv2d"])
    [library] = of(planned(stack("qwen_image", "flux1_vae", runtime="diffusers")), "vae")
    assert ops(library) == ["conv2d"]


def test_a_normalised_latent_meets_the_statistics_first() -> None:
    [probe] = of(planned(stack("sdxl", "flux2_vae")), "vae")
    assert probe.steps[0]["op"] == "stats"
    assert probe.steps[0]["weight"] == [1, 128, 1, 1]


def test_a_lora_is_multiplied_and_laid_on_its_weight() -> None:
    fits = lora("diffusion_model.layers.{i}.attention.out", (3840, 16), (16, 3840))
    [probe] = of(planned(stack("z_image_turbo", fits)), "lora")
    assert (probe.input, last(probe)["weight"]) == ((3840, 16), [3840, 3840])
    wrong = lora("diffusion_model.layers.{i}.attention.out", (2304, 16), (16, 2304))
    [probe] = of(planned(stack("z_image_turbo", wrong)), "lora")
    assert probe.input == (2304, 16)
    assert probe.steps[0]["weight"] == [16, 2304]


def test_a_controlnet_takes_latent_and_text_and_adds_to_the_model() -> None:
    made = of(planned(stack("sd15", "controlnet_sd15")), "adapter")
    assert {p.junction: ops(p)[-1] for p in made} == {"latent_in": "conv2d", "context_dim": "linear", "residual": "add"}
    on_sdxl = {p.junction: p for p in of(planned(stack("sdxl", "controlnet_sd15")), "adapter")}
    assert on_sdxl["context_dim"].input == (1, 77, 2048)


def test_the_tokens_of_an_ip_adapter_meet_the_models_queries() -> None:
    [probe] = of(planned(stack("sdxl", "ip_adapter_sd15")), "adapter")
    assert probe.steps[-1]["op"] == "attention"
    assert probe.input == (1, 4, 320)


def test_image_features_meet_what_takes_them() -> None:
    [probe] = of(planned(stack("ip_adapter_sd15", "clip_vision_g", "sd15")), "image")
    assert probe.input == (1, 1280)
    assert last(probe)["weight"] == [3072, 1024]


def test_what_the_runtime_does_not_open_meets_nothing_and_that_is_said() -> None:
    made = planned(stack("wan21_t2v_14b", "umt5_xxl", "qwen_image_layered_vae", runtime="diffusers"))
    assert of(made, "context")
    refused = planned(stack("boogu", "qwen3vl_8b", runtime="diffusers"))
    assert not of(refused, "context")
    assert any("does not load" in g.why and g.blocks for g in refused.gaps)


def test_one_file_alone_meets_only_itself() -> None:
    made = planned(stack("z_image_turbo"))
    assert {p.about for p in made.probes} == {"latent"}
    assert not made.gaps


def test_a_runtime_without_torch_is_not_probed_with_it() -> None:
    made = planned(stack("z_image_turbo", "gemma2_2b", "flux1_vae", runtime="sd.cpp"))
    assert made.probes == []
    assert any("does not compute with torch" in g.why and g.blocks for g in made.gaps)
