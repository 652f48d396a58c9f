"""Verdict, first line, what was checked and what was not; and that nothing a component holds can break a judgement."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compatkit.checks import judge
from compatkit.vocabulary import Candidate, Component, FileProblem, Quantization, Runtime, Stack
from tests.checks.fake import FACTS, FAMILIES, FakeRules, broken, check, component, rules_of


def test_a_file_nobody_knows_makes_the_verdict_unknown() -> None:
    nearest = Candidate("sdxl", "native", "", 3, ("a",), ("b",), ())
    unknown = component(None, "odd.safetensors", runner_up=nearest, reason="nearest is sdxl, but 1 tensor is missing")
    report = check(component("z_image_turbo"), component("qwen3_4b"), component("flux1_vae"), unknown)
    assert report.verdict == "unknown"
    assert report.headline == "unknown (diffusion, text encoder, vae; 1 of 4 not identified)"
    [note] = [f for f in report.findings if f.rule == "component/unknown"]
    assert "sdxl" in note.message
    assert note.level == "info"


def test_an_error_outweighs_an_unknown_file() -> None:
    report = check(component("z_image_turbo"), component("gemma2_2b"), component(None))
    assert report.verdict == "fail"


@pytest.mark.parametrize("role", ["llm", "upscaler", "embedding"])
def test_some_roles_are_identified_by_their_architecture(role: str) -> None:
    report = check(component("z_image_turbo"), component("qwen3_4b"), component(None, role=role))
    assert report.verdict == "pass"
    assert role in report.judged


@pytest.mark.parametrize("role", ["lora", "controlnet", "ip_adapter", "mmproj"])
def test_an_adapter_that_nothing_can_compare_leaves_the_verdict_open(role: str) -> None:
    report = check(component("z_image_turbo"), component("sdxl", role=role, name="adapter.safetensors"))
    assert report.verdict == "unknown"
    assert any("adapter.safetensors" in n.why and n.blocks for n in report.not_checked)


def test_a_file_with_holes_is_incomplete() -> None:
    report = check(component("wan21_t2v_14b", missing=("patch_embedding.weight",), foreign=("x", "y", "z", "w")))
    assert rules_of(report, "error") == ["file/incomplete"]
    assert "patch_embedding.weight" in report.findings[0].message
    [foreign] = [f for f in report.findings if f.rule == "file/foreign"]
    assert "4 tensors" in foreign.message
    assert rules_of(check(component("sdxl", mismatched=("a [3]",))), "error") == ["file/mismatched"]


def test_what_rests_on_the_users_word_says_so() -> None:
    report = check(component("z_image_turbo", assumed=True), component("gemma2_2b"))
    assert "your word that z_image_turbo.safetensors is Z-Image-Turbo" in report.findings[0].message


def test_renaming_a_file_changes_nothing() -> None:
    first = check(component("z_image_turbo", "a.safetensors"), component("gemma2_2b", "b.safetensors"))
    second = check(component("z_image_turbo", "sdxl.safetensors"), component("gemma2_2b", "qwen_3_4b.safetensors"))
    assert first.verdict == second.verdict
    assert rules_of(first) == rules_of(second)
    assert first.checked == second.checked


def test_settings_that_nothing_reads_are_named() -> None:
    given = {"steps": "9", "cfg": "1", "dtype": "bf16", "vram": "24GB", "width": "1024", "driver": "550"}
    report = check(component("z_image_turbo"), **given)
    said = " ".join(n.why for n in report.not_checked)
    assert all(f"{k}={v}" in said for k, v in given.items())
    assert report.verdict == "pass"


def test_the_same_finding_for_two_runtimes_is_one() -> None:
    parts = component("z_image_turbo"), component("gemma2_2b")
    report = check(*parts, runtime=("comfyui", "diffusers"))
    [width] = [f for f in report.findings if f.rule == "encoder/width"]
    assert set(width.predicts) == {"comfyui", "diffusers"}


def test_a_problem_of_a_checkpoint_is_told_once() -> None:
    parts = [
        component(f, "ckpt.safetensors", prefix=f"{f}.", problems=(broken(),)) for f in ("sdxl", "clip_l", "clip_g")
    ]
    report = check(*parts)
    [finding] = [f for f in report.findings if f.rule == "file/truncated"]
    assert finding.components == (0, 1, 2)


def test_a_rule_that_cannot_be_evaluated_is_reported_as_its_own_fault() -> None:
    bad = {
        "id": "policy/bad", "level": "error", "title": "t", "binds": "component", "require": "component.closest > 3",
        "message": "m", "why": "w",
    }  # fmt: skip
    report = judge(Stack((component("sdxl"),)), FakeRules(), extra_rules=[bad])
    [note] = [n for n in report.not_checked if n.rule == "policy/bad"]
    assert note.blocks
    assert "at fault" in note.why
    assert report.verdict == "unknown"


def test_a_users_rule_joins_in_and_may_replace_one() -> None:
    rule = {
        "id": "policy/no-gguf", "level": "error", "title": "t", "binds": "component",
        "require": "component.format != 'gguf'", "message": "{{ component.name }} is a GGUF", "why": "w",
    }  # fmt: skip
    report = judge(Stack((component("flux_dev", "x.gguf"),)), FakeRules(), extra_rules=[rule])
    assert "policy/no-gguf" in rules_of(report)
    quiet = {**rule, "id": "loader/arch-unsupported", "require": "true"}
    assert "loader/arch-unsupported" not in rules_of(
        judge(Stack((component("flux_dev", "x.gguf"),)), FakeRules(), extra_rules=[quiet])
    )


def test_a_runtime_nobody_wrote_down_is_refused() -> None:
    with pytest.raises(KeyError):
        check(component("sdxl"), runtime=("webui",))


def test_an_empty_set_is_unknown() -> None:
    assert check().verdict == "unknown"


values = st.one_of(st.none(), st.integers(-(1 << 70), 1 << 70), st.text(max_size=5), st.floats(), st.booleans())
facts = st.dictionaries(
    st.sampled_from(
        ["width", "vocab", "context_dim", "pooled_dim", "hidden", "latent_space", "latent_channels", "latent_ndim"]
    ),
    st.one_of(values, st.lists(values, max_size=3)),
    max_size=6,
)


@st.composite
def components(draw: st.DrawFn) -> Component:
    family = draw(st.sampled_from([None, "nobody", *FAMILIES]))
    role = draw(st.sampled_from(["diffusion", "text_encoder", "vae", "llm", "unknown", "lora", "x"]))
    if family in FAMILIES and draw(st.booleans()):
        role = FAMILIES[family]["role"]
    known: dict[str, Any] = dict(FACTS.get(family or "", {})) if draw(st.booleans()) else {}
    return Component(
        source=draw(st.text(max_size=8)),
        format=draw(st.sampled_from(["safetensors", "gguf", "unreadable", ""])),
        size=draw(st.integers(0, 1 << 66)),
        header_bytes=0,
        role=role,
        family=family,
        also=tuple(draw(st.lists(st.sampled_from([*FAMILIES, "nobody"]), max_size=2))),
        layout=draw(st.sampled_from(["native", "diffusers", "gguf", "unknown", "odd"])),
        prefix=draw(st.sampled_from(["", "model.diffusion_model.", "vae.", "x."])),
        quantization=Quantization(draw(st.sampled_from(["none", "dfloat11", "odd", "Q4_K", ""])), {"Q8_K": 1}),
        parameters=draw(st.integers(0, 1 << 66)),
        key_groups={},
        loads_as={},
        facts={**known, **draw(facts)},
        evidence=(),
        metadata=draw(st.sampled_from([{}, {"general.architecture": "flux"}, {"general.architecture": 3}])),
        missing=tuple(draw(st.lists(st.text(max_size=4), max_size=4))),
        problems=tuple(draw(st.lists(st.just(FileProblem("file/corrupt", "m")), max_size=2))),
        assumed=draw(st.booleans()),
    )


@given(
    st.lists(components(), max_size=5),
    st.lists(st.sampled_from(["comfyui", "comfyui@0.3.1", "comfyui-gguf@x", "diffusers", "sd.cpp@1"]), max_size=2),
    st.dictionaries(
        st.sampled_from(["clip_type", "steps"]), st.sampled_from(["flux", "sdxl", "wan", "x", ""]), max_size=2
    ),
    st.lists(st.sampled_from(["vae", "text_encoder", "lora"]), max_size=2),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_judging_never_raises_and_never_passes_what_is_not_known(
    parts: list[Component], runtimes: list[str], given_settings: dict[str, str], require: list[str]
) -> None:
    wanted = tuple(Runtime(*r.split("@", 1)) for r in runtimes)
    report = judge(Stack(tuple(parts), wanted, given_settings, tuple(require)), FakeRules())
    assert report.verdict in ("pass", "fail", "unknown")
    if any(c.role == "unknown" for c in parts) or not parts:
        assert report.verdict != "pass"
    assert (report.verdict == "fail") == any(f.level == "error" for f in report.findings)
    assert not [n for n in report.not_checked if "at fault" in n.why]
    assert all(f.message for f in report.findings)


def test_a_packed_file_is_refused_even_if_its_model_is_not_known() -> None:
    packed = component(None, "m.safetensors", scheme="dfloat11")
    report = check(packed, component("qwen3_4b"), component("flux1_vae"))
    assert rules_of(report, "error") == ["quant/needs-loader"]
    assert "DFloat11" in report.findings[0].message


def test_a_heap_of_files_gives_a_few_findings_of_each_kind() -> None:
    models = [component("z_image_turbo", f"m{i}.safetensors") for i in range(12)]
    encoders = [component("gemma2_2b", f"e{i}.safetensors") for i in range(12)]
    report = check(*models, *encoders)
    assert report.verdict == "fail"
    assert rules_of(report).count("encoder/surplus") <= 50
    assert any("more findings of this kind" in n.why for n in report.not_checked)
