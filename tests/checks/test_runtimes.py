"""What runtimes with a table of models of their own make of every family, and the sets that they run."""

from __future__ import annotations

from typing import Any

import pytest

from compatkit.checks.engine import judge
from compatkit.checks.loaders import Loader, at_least, known_to
from compatkit.knowledge.store import Knowledge, load
from compatkit.vocabulary import Component, Quantization, Report, Runtime, Stack


@pytest.fixture(scope="module")
def known() -> Knowledge:
    return load()


def part(known: Knowledge, family: str, role: str = "diffusion", **more: Any) -> Component:
    example = known.grammar(family)["example"] or {}
    layout = more.pop("layout", "native")
    return Component(
        source=more.pop("source", f"{family}.safetensors"),
        format=more.pop("format", "safetensors"),
        size=1,
        header_bytes=1,
        role=role,
        family=family,
        also=(),
        layout=layout,
        prefix=more.pop("prefix", ""),
        quantization=Quantization("none", {"BF16": 1}),
        parameters=1,
        key_groups={},
        loads_as={},
        evidence=(),
        facts=dict(example.get("symbols") or {}),
        **more,
    )


def report(known: Knowledge, runtime: str, *components: Component) -> Report:
    name, _, version = runtime.partition("@")
    return judge(Stack(tuple(components), (Runtime(name, version or None),)), known)


def errors(found: Report) -> list[str]:
    return [f.rule for f in found.findings if f.level == "error"]


#: family, layout -> the rule that is broken, and a word of what the user would see.
SD_CPP = {
    ("flux_dev", "native"): "",
    ("flux_dev", "diffusers"): "loader/layout: model metadata validation failed",
    ("z_image_turbo", "native"): "",
    ("z_image_turbo", "diffusers"): "loader/layout: model metadata validation failed",
    ("qwen_image", "native"): "",
    ("wan21_t2v_14b", "native"): "",
    ("wan21_camera", "native"): "loader/model-unsupported: patch_embedding.weight' has wrong shape",
    ("hunyuan_video", "original"): "loader/model-unsupported: GGML_ASSERT",
    ("hunyuan_video15", "original_fused"): "",
    ("hidream_i1", "native"): "loader/model-unsupported: get sd version from file failed",
    ("lumina2", "native"): "loader/model-unsupported: cap_pad_token' not in model metadata",
    ("ltx2", "native"): "",
    ("ltxv_13b", "native"): "loader/model-unsupported: audio_adaln_single",
    ("sd15", "diffusers"): "",
    ("sdxl", "diffusers"): "loader/layout: model metadata validation failed",
    ("sefi_image", "native"): "",
    ("krea2", "native"): "",
}


@pytest.mark.parametrize(("family", "layout"), SD_CPP)
def test_what_stable_diffusion_cpp_makes_of_a_model(known: Knowledge, family: str, layout: str) -> None:
    wanted, _, seen = SD_CPP[family, layout].partition(": ")
    found = report(known, "sd.cpp", part(known, family, layout=layout))
    assert errors(found) == ([wanted] if wanted else [])
    assert found.verdict == ("fail" if wanted else "pass")
    if wanted:
        assert seen in found.findings[0].predicts["sd.cpp"]


INVOKEAI = {
    ("sd15", "native"): "",
    ("sdxl", "diffusers"): "",
    ("sd35_large", "native"): "loader/layout: installed as unknown",
    ("sd35_large", "diffusers"): "",
    ("flux_dev", "native"): "",
    ("flux2_klein_9b", "native"): "",
    ("z_image_turbo", "diffusers"): "",
    ("krea2", "diffusers"): "",
    ("wan22_ti2v_5b", "native"): "",
    ("wan21_i2v_14b", "native"): "loader/model-unsupported: Wan 2.1 models are not supported",
    ("hidream_i1", "native"): "loader/model-unsupported: installed as unknown",
    ("qwen_image", "native"): "",
}


@pytest.mark.parametrize(("family", "layout"), INVOKEAI)
def test_what_invokeai_makes_of_a_model(known: Knowledge, family: str, layout: str) -> None:
    wanted, _, seen = INVOKEAI[family, layout].partition(": ")
    found = report(known, "invokeai", part(known, family, layout=layout))
    assert errors(found) == ([wanted] if wanted else [])
    assert found.verdict == ("fail" if wanted else "pass")
    if wanted:
        assert seen in found.findings[0].predicts["invokeai"]


def test_a_format_is_opened_for_some_families_only(known: Knowledge) -> None:
    gguf = {"format": "gguf", "layout": "gguf"}
    assert errors(report(known, "invokeai", part(known, "sdxl", **gguf))) == ["loader/format"]
    assert errors(report(known, "invokeai", part(known, "flux_dev", **gguf))) == []


def test_an_encoder_that_is_taken_as_a_folder_leaves_it_open(known: Knowledge) -> None:
    model = part(known, "flux_dev")
    encoders = part(known, "t5xxl", "text_encoder"), part(known, "clip_l", "text_encoder")
    assert report(known, "invokeai", model, *encoders).verdict == "unknown"


def test_a_unet_apart_from_its_encoders_is_not_found(known: Knowledge) -> None:
    unet, clip = part(known, "sd15"), part(known, "clip_l", "text_encoder")
    assert errors(report(known, "sd.cpp", unet, clip)) == ["loader/apart"]
    clip_in_it = part(known, "clip_l", "text_encoder", source="c.safetensors", prefix="cond_stage_model.transformer.")
    whole = [part(known, "sd15", source="c.safetensors", prefix="model.diffusion_model."), clip_in_it]
    assert errors(report(known, "sd.cpp", *whole)) == []
    folder = part(known, "sd15", layout="diffusers", declared={"part": "unet", "pipeline": "P"})
    assert errors(report(known, "sd.cpp", folder, clip)) == []
    placed = part(known, "sd15", layout="diffusers", source="folder/unet/diffusion_pytorch_model.safetensors")
    assert "loader/apart" in errors(report(known, "sd.cpp", placed, clip))  # where a file lies is no evidence
    assert "loader/apart" not in errors(report(known, "comfyui", unet, clip))


def test_a_model_is_known_since_a_version_and_an_open_one_leaves_it_open(known: Knowledge) -> None:
    model, other = part(known, "z_image_turbo"), part(known, "hidream_i1")
    for version, verdict in (
        ("master-300-abcdef0", "fail"),
        ("master-400-abcdef0", "pass"),
        ("2025-11-01", "fail"),
        ("97d29908", "pass"),
        ("fedcba9", "unknown"),
    ):
        assert report(known, f"sd.cpp@{version}", model).verdict == verdict, version
    for version, verdict in (("master-900-abcdef0", "unknown"), ("97d29908", "fail"), ("34a6fd4e", "fail")):
        assert report(known, f"sd.cpp@{version}", other).verdict == verdict, version


def test_a_model_taken_for_another_is_a_warning(known: Knowledge) -> None:
    found = report(known, "sd.cpp", part(known, "wan22_s2v"))
    assert [(f.rule, f.level) for f in found.findings] == [("loader/misread", "warning")]


@pytest.mark.parametrize("runtime", ["sd.cpp", "invokeai"])
def test_every_model_of_a_table_is_a_family_and_every_class_of_the_adapters_a_model(
    known: Knowledge, runtime: str
) -> None:
    models, table = known.models(runtime), known.adapters(runtime)
    assert all(known.has_family(f) for f in models)
    classes = {e["class"] for e in models.values() if "class" in e}
    classes |= {str(known.family(f)["runtimes"][runtime]["class"]) for f in known.members()
                if (known.family(f).get("runtimes") or {}).get(runtime)}  # fmt: skip
    assert {c for entry in table.get("classes") or () for c in entry["classes"]} <= classes
    loader = Loader(runtime, known.runtime(runtime))
    reference = loader.table["reference"]["version"]
    since = {e["since"] for e in models.values() if e.get("since")}
    assert {at_least(reference, s, loader.table) for s in since} == {"yes"}


def test_what_a_familys_own_file_says_counts_first(known: Knowledge) -> None:
    loader = Loader("sd.cpp", known.runtime("sd.cpp"))
    card = {"id": "x", "runtimes": {"sd.cpp": {"class": "Own"}}}
    assert known_to(card, "flux_dev", loader, known) is card
    assert known_to({"id": "x"}, "flux_dev", loader, known)["runtimes"]["sd.cpp"]["class"] == "Flux"


def test_a_family_whose_fate_was_not_seen_is_unknown_and_not_refused(known: Knowledge) -> None:
    found = report(known, "sd.cpp", part(known, "svd"))
    assert (found.verdict, errors(found)) == ("unknown", [])
    assert errors(report(known, "sd.cpp", part(known, "mochi"))) == ["loader/model-unsupported"]
