"""Encoders against models: taps, joined widths, missing and surplus ones, CLIP types, siblings."""

from __future__ import annotations

import pytest

from compatkit.checks import judge
from compatkit.vocabulary import Component, Report, Runtime, Stack
from tests.checks.fake import FAMILIES, FakeRules, check, component, gguf, rules_of

KLEIN = "flux2_klein_4b"


def test_the_same_encoder_is_wide_enough_with_the_right_type_only() -> None:
    assert check(component(KLEIN), component("qwen3_4b")).verdict == "pass"
    assert check(component(KLEIN), component("qwen3_4b"), clip_type="flux2").verdict == "pass"
    wrong = check(component(KLEIN), component("qwen3_4b"), clip_type="lumina2")
    assert rules_of(wrong, "error") == ["encoder/clip-type"]
    [kind] = wrong.findings[:1]
    assert "flux2" in kind.fix
    assert "7680" in kind.message
    assert kind.predicts["comfyui"] == "mat1 and mat2 shapes cannot be multiplied (Nx2560 and 7680x3072)"


def test_the_type_of_another_model_widens_an_encoder_too_much() -> None:
    report = check(component("z_image_turbo"), component("qwen3_4b"), clip_type="flux2")
    assert rules_of(report, "error") == ["encoder/clip-type"]
    assert "size[1, N, 7680]" in report.findings[0].predicts["comfyui"]


def test_a_type_that_builds_another_vocabulary_is_named_as_the_cause() -> None:
    assert check(component("wan21_t2v_14b"), component("umt5_xxl"), clip_type="wan").verdict == "pass"
    report = check(component("wan21_t2v_14b"), component("umt5_xxl"), clip_type="stable_diffusion")
    assert rules_of(report, "error") == ["encoder/clip-type"]
    assert "torch.Size([256384, 4096])" in report.findings[0].predicts["comfyui"]


def test_a_type_that_only_changes_the_template_is_a_warning() -> None:
    report = check(component("qwen_image"), component("qwen2.5_vl_7b"), clip_type="hunyuan_image")
    assert report.verdict == "pass"
    assert rules_of(report, "warning") == ["encoder/clip-class"]
    assert rules_of(check(component("qwen_image"), component("qwen2.5_vl_7b"), clip_type="wan"), "warning") == []


def test_a_type_the_loader_does_not_know_is_told() -> None:
    report = check(component("z_image_turbo"), component("qwen3_4b"), clip_type="z_image")
    assert rules_of(report, "warning") == ["encoder/clip-type-unknown"]


def test_types_mean_nothing_to_a_runtime_without_them() -> None:
    report = check(
        component(KLEIN, layout="diffusers"), component("qwen3_4b"), runtime=("diffusers",), clip_type="lumina2"
    )
    assert "encoder/width" not in rules_of(report)


def test_two_encoders_make_one_input_together() -> None:
    assert check(component("sdxl"), component("clip_l"), component("clip_g"), clip_type="sdxl").verdict == "pass"
    assert check(component("sdxl"), component("clip_l"), component("clip_g")).verdict == "pass"
    lone = check(component("sdxl"), component("clip_l"))
    assert rules_of(lone, "error") == ["encoder/missing"]
    assert "CLIP-G" in lone.findings[0].message
    swapped = check(component("sdxl"), component("clip_l"), component("t5xxl"))
    assert rules_of(swapped, "error") == ["encoder/width"]
    assert "1280" in swapped.findings[0].message


def test_a_single_encoder_model_under_a_type_for_two() -> None:
    report = check(component("sd15"), component("clip_l"), component("clip_g"), clip_type="sdxl")
    assert rules_of(report, "error") == ["encoder/clip-type"]
    assert "(Nx2048 and 768x" in report.findings[0].predicts["comfyui"]
    plain = check(component("sd15"), component("clip_l"), component("clip_g"))
    assert plain.verdict == "pass"
    assert rules_of(plain, "info") == ["encoder/surplus"]


def test_optional_and_padded_encoders() -> None:
    full = component("sd3_medium"), component("clip_l"), component("clip_g"), component("t5xxl")
    assert check(*full, clip_type="sd3").verdict == "pass"
    assert check(*full[:3]).verdict == "pass"
    assert rules_of(check(*full[:2]), "error") == ["encoder/missing"]
    only_wrong = check(full[0], component("gemma2_2b"))
    assert only_wrong.verdict == "fail"


def test_four_encoders_and_a_vocabulary_the_model_needs() -> None:
    encoders = [component(k) for k in ("clip_l", "clip_g", "t5xxl", "llama3_8b")]
    assert check(component("hidream_i1"), *encoders, clip_type="hidream").verdict == "pass"
    encoders[3] = component("llama3_8b", facts={"vocab": 128320})
    assert rules_of(check(component("hidream_i1"), *encoders), "error") == ["encoder/vocab"]


def test_wrong_encoders_of_a_model_with_two() -> None:
    wrong = check(component("flux_dev"), component("clip_l"), component("umt5_xxl"))
    assert rules_of(wrong, "error") == ["encoder/kind"]
    assert "torch.Size([256384, 4096])" in wrong.findings[0].predicts["comfyui"]
    odd = check(component("flux_dev"), component("clip_l"), component("qwen3_4b"), clip_type="flux")
    assert rules_of(odd, "error") == ["encoder/width"]
    assert "clip missing" in odd.findings[0].predicts["comfyui"]
    extra = check(component("flux_dev"), component("clip_l"), component("t5xxl"), component("clip_g"))
    assert extra.verdict == "pass"
    assert rules_of(extra, "info") == ["encoder/surplus"]


def test_no_encoder_is_no_fault_unless_one_is_required() -> None:
    report = check(component("z_image_turbo"), component("flux1_vae"))
    assert report.verdict == "pass"
    assert report.headline == "pass (diffusion, vae; no text encoder given)"
    assert {n.rule for n in report.not_checked if n.why == "no text encoder given"} >= {
        "encoder/width",
        "encoder/kind",
        "encoder/missing",
    }
    assert not any(n.blocks for n in report.not_checked)
    required = check(component("z_image_turbo"), component("flux1_vae"), require=["text_encoder"])
    assert rules_of(required, "error") == ["encoder/missing"]
    bare = check(component("z_image_turbo"), require=["vae", "diffusion"])
    assert rules_of(bare, "error") == ["component/missing"]
    assert bare.findings[0].fix == "Add the FLUX.1 VAE (ae)."


def test_an_encoder_alone_is_not_judged_against_anything() -> None:
    report = check(component("qwen3_4b"))
    assert report.verdict == "pass"
    assert report.headline == "pass (text encoder; no diffusion model given)"
    assert ("encoder/width", "no diffusion model given") in {(n.rule, n.why) for n in report.not_checked}


def test_a_language_model_stands_like_a_wrong_encoder() -> None:
    llm = component(None, "other.gguf", role="llm", facts={"width": 5120}, metadata={"general.architecture": "qwen3"})
    assert rules_of(check(component("z_image_turbo"), llm), "error") == ["encoder/width"]
    report = check(component("z_image_turbo"), component("qwen3_4b"), llm)
    assert report.verdict == "pass"
    assert rules_of(report, "info") == ["encoder/surplus"]


def test_an_unidentified_encoder_leaves_the_verdict_open() -> None:
    report = check(component("z_image_turbo"), component(None, "te.safetensors", role="text_encoder"))
    assert report.verdict == "unknown"
    assert "encoder/missing" not in rules_of(report)
    assert any(n.rule.startswith("encoder/") and n.blocks for n in report.not_checked)


def test_a_check_holds_if_it_holds_for_one_sibling() -> None:
    families = {**FAMILIES, "z_image_base": {**FAMILIES["lumina2"], "title": "Sibling"}}
    stack = Stack((component("z_image_turbo", also=("z_image_base",)), component("gemma2_2b", facts={"width": 2560})))
    report = judge(stack, FakeRules(families))
    assert not [f for f in report.findings if f.level == "error" and f.rule == "encoder/kind"]
    [note] = [f for f in report.findings if f.rule == "encoder/reading"]
    assert "z_image_base" in note.message


def test_two_models_share_the_encoders_of_a_set() -> None:
    pair = (
        component("sdxl"),
        component("z_image_turbo"),
        component("clip_l"),
        component("clip_g"),
        component("qwen3_4b"),
    )
    report = check(*pair)
    assert report.verdict == "pass"
    assert "encoder/surplus" not in rules_of(report)
    without = check(*pair[:4])
    assert without.verdict == "pass", "the second model's encoder is not given at all"


def test_the_parts_of_a_checkpoint_are_wired_by_the_model_not_by_the_type() -> None:
    parts = [
        component("sdxl", "ckpt.safetensors", prefix="model.diffusion_model."),
        component("clip_l", "ckpt.safetensors", prefix="conditioner.embedders.0.transformer."),
        component("clip_g", "ckpt.safetensors", prefix="conditioner.embedders.1.model."),
        component("sdxl_vae", "ckpt.safetensors", prefix="first_stage_model."),
    ]
    report = check(*parts)
    assert report.verdict == "pass"
    assert rules_of(report, "error") == []
    assert check(*parts, clip_type="flux").verdict == "pass"
    alone = check(component("sdxl"), component("sdxl_vae", prefix="first_stage_model."))
    assert rules_of(alone, "error") == ["loader/layout"]
    assert alone.findings[0].predicts["comfyui"] == "ERROR: VAE is invalid: None"


def test_an_encoder_whose_width_is_not_known_leaves_the_verdict_open() -> None:
    report = check(component("z_image_turbo"), component("qwen3_4b", facts={"width": None}))
    assert report.verdict == "unknown"


def test_a_name_that_is_read_from_the_tensors_only_since_a_version() -> None:
    parts = (gguf("z_image_turbo", "pig"), component("qwen3_4b"))
    assert rules_of(check(*parts, runtime=("comfyui-gguf@2025-03-01",)), "error") == ["loader/arch-unsupported"]
    assert rules_of(check(*parts, runtime=("comfyui-gguf@2025-12-18",)), "error") == []


@pytest.mark.parametrize("architecture", [None, "pig"])
def test_a_text_encoder_without_architecture_is_refused_and_a_model_is_not(architecture: str | None) -> None:
    report = check(gguf("z_image_turbo", architecture), gguf("qwen3_4b", architecture))
    assert [f.components for f in report.findings if f.rule == "loader/arch-unsupported"] == [(1,)]
    assert "incompatible with llama.cpp" in report.findings[0].predicts["comfyui"]


def test_a_vae_has_no_gguf_loader_and_some_types_no_decoder() -> None:
    assert rules_of(check(component("flux1_vae", "ae.gguf")), "error")[0] == "loader/format"
    odd = component("z_image_turbo", "z.gguf", dtypes={"Q8_K": 3}, metadata={"general.architecture": "lumina2"})
    assert rules_of(check(odd), "error") == ["quant/type-unsupported"]
    slow = component("z_image_turbo", "z.gguf", dtypes={"IQ2_XS": 3}, metadata={"general.architecture": "lumina2"})
    assert rules_of(check(slow), "info") == ["quant/slow-type"]


def test_a_runtime_without_the_model_is_told_and_one_nobody_described_leaves_it_open() -> None:
    runtimes = {"comfyui": {"class": "X"}, "diffusers": None}
    families = {**FAMILIES, "sdxl": {**FAMILIES["sdxl"], "runtimes": runtimes}}
    for wanted, verdict in (("comfyui", "pass"), ("diffusers", "fail"), ("sd.cpp", "unknown")):
        report = judge(Stack((component("sdxl"),), (Runtime(wanted),)), FakeRules(families))
        assert report.verdict == verdict
    assert rules_of(judge(Stack((component("sdxl"),), (Runtime("diffusers"),)), FakeRules(families)), "error") == [
        "loader/model-unsupported"
    ]


def test_a_tokenizer_that_is_not_in_the_file() -> None:
    bare = component("umt5_xxl", facts={"spiece_model": False})
    report = check(component("wan21_t2v_14b"), bare, clip_type="wan")
    assert rules_of(report, "error") == ["encoder/tokenizer"]
    assert report.findings[0].predicts == {"comfyui": "ValueError: invalid tokenizer"}
    assert check(component("wan21_t2v_14b"), component("umt5_xxl", facts={"spiece_model": True})).verdict == "pass"
    assert "encoder/tokenizer" not in check(component("wan21_t2v_14b"), component("umt5_xxl")).checked


def test_a_file_that_was_not_identified_may_be_the_missing_one() -> None:
    odd = component(None, "t5.safetensors")
    report = check(component("flux_dev"), component("clip_l"), odd, clip_type="flux")
    assert report.verdict == "unknown"
    assert rules_of(report, "error") == []
    assert any("t5.safetensors may hold it" in n.why for n in report.not_checked)
    required = check(component("flux_dev"), odd, require=["vae"])
    assert required.verdict == "unknown"
    lone = check(component("flux_dev"), component("clip_l"), clip_type="flux")
    assert rules_of(lone, "error") == ["encoder/missing"]


def test_an_unidentified_file_beside_a_whole_set_changes_no_class() -> None:
    whole = component("wan21_t2v_14b"), component("umt5_xxl")
    report = check(*whole, component(None, "lora.safetensors"), clip_type="wan")
    assert report.verdict == "unknown"
    assert rules_of(report, "error") == []


def test_a_model_that_runs_with_any_of_its_encoders_needs_one() -> None:
    slots = [{**slot, "optional": True} for slot in FAMILIES["sd3_medium"]["text_encoders"]]
    rules = FakeRules({**FAMILIES, "sd3_medium": {**FAMILIES["sd3_medium"], "text_encoders": slots}})

    def report(*parts: Component) -> Report:
        return judge(Stack((component("sd3_medium"), *parts), required_roles=("text_encoder",)), rules)

    [missing] = [f for f in report().findings if f.rule == "encoder/missing"]
    assert "at least one" in missing.message
    assert "encoder/missing" not in rules_of(report(component("clip_l")))
