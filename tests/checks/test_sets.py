"""The sets of the field reports, and the pairs around them, with their verdicts and numbers."""

from __future__ import annotations

import pytest

from tests.checks.fake import broken, check, component, gguf, rules_of

Z = "z_image_turbo"
OLD_GGUF = ("comfyui-gguf@795e451",)


def test_the_encoder_of_another_family_fails_with_both_widths_and_the_error() -> None:
    report = check(
        gguf(Z, "lumina2"), component("gemma2_2b"), component("flux1_vae"), runtime=OLD_GGUF, clip_type="lumina2"
    )
    assert report.verdict == "fail"
    [finding] = [f for f in report.findings if f.level == "error"]
    assert finding.rule == "encoder/width"
    assert finding.components == (0, 1)
    assert "2560" in finding.message
    assert "2304" in finding.message
    assert "Gemma-2-2B" in finding.message
    assert finding.predicts == {
        "comfyui": "Given normalized_shape=[2560], expected input with shape [*, 2560], "
        "but got input of size[1, N, 2304]"
    }
    assert "Qwen3-4B" in finding.fix
    assert finding.evidence["output_width"] == 2304
    assert finding.evidence["context_dim"] == 2560
    assert report.headline == "fail (diffusion, text encoder, vae)"


def test_a_file_that_must_be_replaced_gets_no_second_fix_for_how_it_is_stored() -> None:
    wrong = gguf("gemma2_2b", "gemma2")
    report = check(gguf(Z, "lumina2"), wrong, component("flux1_vae"), runtime=OLD_GGUF, clip_type="lumina2")
    assert rules_of(report, "error") == ["encoder/width", "loader/arch-unsupported"]
    assert [bool(f.fix) for f in report.findings if f.level == "error"] == [True, False]
    right = check(gguf(Z, "lumina2"), gguf("qwen3_4b", "gemma2"), runtime=OLD_GGUF, clip_type="lumina2")
    assert [f.fix for f in right.findings if f.rule == "loader/arch-unsupported"] == [
        "Use the safetensors file of the same model."
    ]


def test_an_encoder_no_runtime_knows_is_compared_by_its_hidden_size() -> None:
    report = check(component(Z), component("gemma2_9b"), component("flux1_vae"), clip_type="lumina2")
    assert rules_of(report, "error") == ["encoder/width"]
    assert "3584" in report.findings[0].message


@pytest.mark.parametrize("clip_type", ["lumina2", None])
def test_equal_width_and_another_model_is_an_error_of_its_own(clip_type: str | None) -> None:
    settings = {"clip_type": clip_type} if clip_type else {}
    report = check(component(Z), component("gemma3_4b"), component("flux1_vae"), **settings)
    assert rules_of(report, "error") == ["encoder/kind"]
    [finding] = [f for f in report.findings if f.level == "error"]
    assert "black" in finding.message
    assert "black" in finding.predicts["comfyui"]


def test_an_architecture_is_refused_by_an_old_loader_and_accepted_by_a_new_one() -> None:
    parts = gguf(Z, "lumina2"), gguf("gemma3_4b", "gemma3"), component("flux1_vae")
    old = check(*parts, runtime=OLD_GGUF)
    assert rules_of(old, "error") == ["encoder/kind", "loader/arch-unsupported"]
    finding = old.findings[1]
    assert finding.predicts["comfyui"] == "Unexpected text model architecture type in GGUF file: 'gemma3'"
    assert "6ea2651e" in finding.message  # the fix is that of encoder/kind: another file
    new = check(*parts, runtime=("comfyui-gguf@6ea2651e",))
    assert rules_of(new, "error") == ["encoder/kind"]
    unnamed = check(*parts)
    assert rules_of(unnamed, "error") == ["encoder/kind"]
    assert rules_of(unnamed, "warning") == ["loader/arch-recent"]


def test_a_loader_version_nobody_wrote_down_leaves_the_answer_open() -> None:
    parts = gguf(Z, "lumina2"), gguf("qwen3_4b", "qwen3"), component("flux1_vae")
    report = check(*parts, runtime=("comfyui-gguf@deadbeef",))
    assert report.verdict == "unknown"
    assert any("deadbeef" in n.why and n.blocks for n in report.not_checked)
    early = check(*parts, runtime=("comfyui-gguf@2025-08-05",))
    assert rules_of(early, "error") == ["loader/arch-unsupported"]
    assert check(*parts, runtime=("comfyui-gguf@2025-12-02",)).verdict == "pass"
    assert check(*parts, runtime=("comfyui-gguf@latest",)).verdict == "pass"


def test_image_latents_do_not_go_into_a_video_vae() -> None:
    report = check(component(Z), component("qwen3_4b"), component("wan21_vae"))
    assert rules_of(report, "error") == ["vae/latent-rank", "vae/latent-space"]
    rank, space = report.findings[:2]
    assert "4D" in rank.message
    assert "5D" in rank.message
    assert rank.predicts["comfyui"] == "IndexError: tuple index out of range"
    assert "wan21" in space.message
    assert "flux1" in space.message
    assert "FLUX.1 VAE" in space.fix


def test_video_latents_do_not_go_into_an_image_vae() -> None:
    report = check(component("qwen_image"), component("qwen2.5_vl_7b"), component("flux1_vae"))
    assert rules_of(report, "error") == ["vae/latent-rank", "vae/latent-space"]
    expected = "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [1, 16, 1, 128, 128]"
    assert expected in report.findings[0].predicts["comfyui"]


@pytest.mark.parametrize(
    ("model", "encoder", "vae", "text"),
    [
        (
            Z, "qwen3_4b", "sdxl_vae",
            "Given groups=1, weight of size [4, 4, 1, 1], expected input[1, 16, 128, 128] to have 4 channels, "
            "but got 16 channels instead",
        ),
        (
            "wan21_t2v_14b", "umt5_xxl", "wan22_vae",
            "Given groups=1, weight of size [48, 48, 1, 1, 1], expected input[1, 16, 1, 128, 128] to have 48 channels, "
            "but got 16 channels instead",
        ),
        (Z, "qwen3_4b", "flux2_vae", "The size of tensor a (16) must match the size of tensor b (128)"),
        (Z, "qwen3_4b", "wan22_vae", "IndexError: tuple index out of range"),
    ],
)  # fmt: skip
def test_channels_that_differ_give_torchs_own_words(model: str, encoder: str, vae: str, text: str) -> None:
    report = check(component(model), component(encoder), component(vae))
    [finding] = [f for f in report.findings if f.rule == "vae/latent-channels"]
    assert text in finding.predicts["comfyui"]
    assert "vae/latent-space" not in rules_of(report)


def test_the_planned_set_passes_and_a_vision_encoder_fails() -> None:
    fine = check(
        gguf(Z, "lumina2"), gguf("qwen3_4b", "qwen3"), component("flux1_vae"), runtime=OLD_GGUF, clip_type="lumina2",
        steps="9", cfg="1",
    )  # fmt: skip
    assert fine.verdict == "pass"
    assert rules_of(fine, "error") + rules_of(fine, "warning") == []
    assert {"encoder/width", "encoder/kind", "encoder/missing", "vae/latent-channels"} <= set(fine.checked)
    assert any("steps=9 not read" in n.why for n in fine.not_checked)  # these families say nothing of steps
    wrong = check(gguf(Z, "lumina2"), gguf("qwen2.5_vl_7b", "qwen2vl"), component("flux1_vae"), runtime=OLD_GGUF)
    assert rules_of(wrong, "error") == ["encoder/width"]
    assert "3584" in wrong.findings[0].message


def test_a_vae_that_fits_by_one_reading_passes_with_a_note_that_names_both() -> None:
    report = check(component(Z), component("qwen3_4b"), component("flux1_vae"))
    assert report.verdict == "pass"
    [note] = [f for f in report.findings if f.rule == "vae/ambiguous-space"]
    assert note.level == "info"
    assert "flux1" in note.message
    assert "sd3" in note.message


def test_compressed_weights_need_their_loader() -> None:
    report = check(component(Z, scheme="dfloat11", size=7_900_000_000), component("qwen3_4b"), component("flux1_vae"))
    assert rules_of(report, "error") == ["quant/needs-loader"]
    [finding] = [f for f in report.findings if f.level == "error"]
    assert "DFloat11" in finding.message
    assert "7.9 GB" in finding.message
    assert "12.3 GB" in finding.message
    assert finding.predicts["comfyui"] == "noise or black images"


def test_a_scheme_may_need_a_newer_version() -> None:
    model = component(Z, scheme="fp8_scaled")
    assert check(model, runtime=("comfyui@0.3.75",)).findings[0].rule == "quant/needs-loader"
    assert check(model, runtime=("comfyui@0.3.80",)).verdict == "pass"
    assert check(model).verdict == "pass"
    assert check(component(Z, scheme="novel")).verdict == "unknown"


def test_a_truncated_file_fails_with_the_readers_words() -> None:
    unreadable = component(None, "z.safetensors", problems=(broken(),), format="unreadable")
    report = check(unreadable, component("qwen3_4b"), component("flux1_vae"))
    assert report.verdict == "fail"
    assert rules_of(report) == ["file/truncated"]
    assert report.findings[0].message == "the file is cut short"
    assert "file/truncated" in report.checked


def test_a_model_newer_than_the_runtime_is_told() -> None:
    report = check(component(Z), runtime=("comfyui@0.3.60",))
    assert rules_of(report, "error") == ["loader/too-old"]
    assert check(component(Z), runtime=("comfyui@783545f",)).verdict == "pass"
    assert check(component(Z), runtime=("comfyui@abcdef0",)).verdict == "unknown"
