"""From error texts to causes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from compatkit import api
from compatkit.checks.diagnosis import diagnose
from compatkit.knowledge.store import load
from compatkit.vocabulary import Finding

MESSAGES = yaml.safe_load(Path(__file__).with_name("messages.yaml").read_text(encoding="utf-8"))
#: Numbers of three digits and more that a pattern may name: HTTP, error numbers of systems, exit codes, SHA-256, 100 %.
NUMBERS = {"100", "111", "256", "1006", "401", "403", "404", "1455", "137"}


@pytest.mark.parametrize(("group", "text"), [(g, t) for g, texts in MESSAGES.items() for t in texts])
def test_a_message_has_its_cause_first(group: str, text: str) -> None:
    causes = api.diagnose(f"got prompt\n{text}\nPrompt executed in 3.2 seconds")
    assert causes[0].rule.partition("/")[0] == group, [c.rule for c in causes]
    assert causes[0].matched == text


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("mat1 and mat2 shapes cannot be multiplied (1x768 and 2816x1280)", "encoder/missing"),
        ("lora key not loaded: lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "lora/te-ignored"),
        ("clip missing: ['text_projection.weight']", "encoder/reading"),
        ("lora key not loaded: a.b.lora_A.weight", "lora/key-style"),
        ("invalid load key, 'v'", "file/lfs-pointer"),
    ],
)
def test_what_a_message_holds_tells_causes_of_a_kind_apart(text: str, rule: str) -> None:
    assert api.diagnose(text)[0].rule == rule


@pytest.mark.parametrize(
    ("frame", "rule"),
    [
        ('File "nodes.py", in decode\n    self.first_stage_model.decode(z)', "vae/latent-rank"),
        ('File "samplers.py", in apply_model', "workflow/latent"),
    ],
)
def test_the_traceback_says_which_part_was_running(frame: str, rule: str) -> None:
    log = f"Traceback (most recent call last):\n  {frame}\nValueError: not enough values to unpack (expected 5, got 4)"
    assert api.diagnose(log)[0].rule == rule


def test_an_exception_stands_before_warnings() -> None:
    log = "lora key not loaded: a.lora_A.weight\n" * 40 + "torch.OutOfMemoryError: CUDA out of memory."
    assert [c.rule for c in api.diagnose(log)][:2] == ["host/memory", "lora/key-style"]


def test_the_first_three_causes_are_of_different_kinds() -> None:
    causes = api.diagnose("mat1 and mat2 shapes cannot be multiplied (99x2304 and 2560x3840)")[:3]
    assert len({c.rule.partition("/")[0] for c in causes}) == 3


def test_what_a_complaint_speaks_of_counts_only_where_no_message_is_known() -> None:
    assert api.diagnose("my vae is strange")[0].rule.startswith("vae/")
    assert api.diagnose("my vae is strange")[0].score < 0.5
    assert api.diagnose("my vae is strange\nCUDA out of memory")[0].rule == "host/memory"
    ordinary = "VAE load device: cuda:0, offload device: cpu, dtype: torch.bfloat16\nmodel_type FLOW\n" * 6
    assert api.diagnose(ordinary) == []


def test_no_entry_quotes_numbers_of_an_incident() -> None:
    for entry in load().table("errors"):
        for pattern in entry["patterns"]:
            plain = re.sub(r"\\.|\{[\d,]+\}|\[[^\]]*\]", "", pattern)
            assert set(re.findall(r"\d{3,}", plain)) <= NUMBERS, entry["id"]


def test_what_a_log_says_of_the_run() -> None:
    log = """pytorch version: 2.7.1+cu128
Device: cuda:0 NVIDIA Some Card : cudaMallocAsync
ComfyUI version: 0.3.76
VAE load device: cuda:0, offload device: cpu, dtype: torch.bfloat16
Requested to load SomeTEModel
Requested to load SomeModel
model weight dtype torch.bfloat16, manual cast: None
"""
    assert api.run_facts(log) == {
        "ComfyUI": "0.3.76",
        "torch": "2.7.1+cu128",
        "GPU": "cuda:0 NVIDIA Some Card",
        "model dtype": "torch.bfloat16, manual cast: None",
        "VAE dtype": "torch.bfloat16",
        "loaded": "SomeTEModel, SomeModel",
    }


def test_a_finding_about_other_numbers_explains_nothing() -> None:
    knowledge = load()
    text = "mat1 and mat2 shapes cannot be multiplied (77x2304 and 2560x3840)"
    other = Finding("encoder/width", "error", (0, 1), "of another set", evidence={"context_dim": 4096, "width": 768})
    causes = diagnose(text, knowledge.table("errors"), knowledge.table("known"), [other])
    assert not any(c.confirmed for c in causes)


def test_a_long_log_is_read_from_both_ends() -> None:
    log = "\n".join(["GGUF magic invalid", *(f"step {i}" for i in range(100_000)), "CUDA out of memory"])
    assert {"file/not-a-model", "host/memory"} <= {c.rule for c in api.diagnose(log)}


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


def test_widths_that_only_one_pair_has_are_named() -> None:
    known = load().table("known")
    cause = api.diagnose("mat1 and mat2 shapes cannot be multiplied (512x7680 and 12288x4096)")[0]
    assert known["gives"]["7680"] in cause.message
    assert known["takes"]["12288x4096"] in cause.message
    # a width and the model's own tell more than the width
    assert known["takes"]["4096x5120"] != known["takes"]["4096x3072"]
    plain = api.diagnose(
        "Given normalized_shape=[9], expected input with shape [*, 9], but got input of size[1, 4, 8]"
    )[0]
    assert "(as" not in plain.message
