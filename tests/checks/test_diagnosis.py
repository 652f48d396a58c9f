"""From error texts to causes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatkit import api
from compatkit.checks.diagnosis import diagnose
from compatkit.knowledge.store import load
from compatkit.vocabulary import Finding


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("RuntimeError: mat1 and mat2 shapes cannot be multiplied (333x2560 and 4096x3072)", "encoder/width"),
        ("mat1 and mat2 shapes cannot be multiplied (257x1664 and 1280x5120)", "adapter/image-encoder"),
        ("mat1 and mat2 shapes cannot be multiplied (1x768 and 2816x1280)", "encoder/missing"),
        (
            "Given normalized_shape=[3584], expected input with shape [*, 3584], but got input of size[1, 9, 2048]",
            "encoder/width",
        ),
        (
            "Given normalized_shape=[3584], expected input with shape [*3584], but got input of size[1, 9, 2048]",
            "encoder/width",
        ),
        (
            "Given groups=1, weight of size [512, 4, 3, 3], expected input[1, 16, 64, 64] to have 4 channels, but got "
            "16 channels instead",
            "vae/latent-channels",
        ),
        (
            "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [1, 16, 1, 8, 8]",
            "vae/latent-rank",
        ),
        ("lora key not loaded: diffusion_model.layers.3.attention.to_k.lora_A.weight", "lora/key-style"),
        ("lora key not loaded: lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "lora/te-ignored"),
        (
            "ERROR lora diffusion_model.blocks.0.ffn.0.weight shape '[8, 8]' is invalid for input of size 7",
            "lora/shape",
        ),
        ("Unexpected text model architecture type in GGUF file: 'phi3'", "loader/arch-unsupported"),
        ("safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge", "file/not-a-model"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB", "host/memory"),
        ("OSError: [Errno 28] No space left on device", "host/disk"),
        ("ValueError: invalid tokenizer", "encoder/tokenizer"),
    ],
)
def test_a_message_has_its_cause_first(text: str, rule: str) -> None:
    causes = api.diagnose(f"got prompt\n{text}\nPrompt executed in 3.2 seconds")
    assert causes[0].rule == rule
    assert causes[0].matched == text


def test_numbers_are_captured_and_said() -> None:
    cause = api.diagnose("mat1 and mat2 shapes cannot be multiplied (77x2304 and 2560x3840)")[0]
    assert cause.captured == {"tokens": 77, "given": 2304, "wanted": 2560, "out": 3840}
    assert "2304" in cause.message
    assert "2560" in cause.message


def test_a_flood_is_one_cause_with_its_count() -> None:
    log = "\n".join(f"lora key not loaded: diffusion_model.layers.{i}.x.lora_A.weight" for i in range(500))
    cause = api.diagnose(log)[0]
    assert cause.lines == 500


def test_a_finding_of_the_set_comes_first() -> None:
    knowledge = load()
    text = "mat1 and mat2 shapes cannot be multiplied (77x2304 and 2560x3840)\nCUDA out of memory"
    finding = Finding("encoder/width", "error", (0, 1), "these two files", fix="that file")
    causes = diagnose(text, knowledge.table("errors"), knowledge.table("known"), [finding])
    assert causes[0].rule == "encoder/width"
    assert causes[0].confirmed
    assert causes[0].message == "these two files"
    assert causes[1].rule == "host/memory"


def test_nothing_known_gives_nothing() -> None:
    assert api.diagnose("To see the GUI go to: http://127.0.0.1:8188") == []


@given(st.text(max_size=300))
def test_no_text_breaks_it(text: str) -> None:
    for cause in api.diagnose(text):
        assert 0 < cause.score <= 1
