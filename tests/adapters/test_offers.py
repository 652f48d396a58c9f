"""`compatkit convert` is offered where it helps, and a damaged LoRA is not blamed on its names or its base."""

from __future__ import annotations

from pathlib import Path

import pytest

import compatkit
from compatkit.headers.sparse import write_safetensors
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.vocabulary import Report

Shapes = dict[str, tuple[int, ...]]
MODULES = [f"layers.{n}.attention.{m}" for n in range(4) for m in ("to_q", "to_k", "to_v")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    write_safetensors(path, example_shapes(load().grammar("z_image_turbo")))
    return path


def peft(prefix: str, modules: list[str]) -> Shapes:
    pairs = [(f"{prefix}{m}.lora_{x}.weight", s) for m in modules for x, s in (("A", (4, 3840)), ("B", (3840, 4)))]
    return dict(pairs)


def kron(prefix: str, modules: list[str]) -> Shapes:
    return {f"{prefix}{m}.lokr_{w}": s for m in modules for w, s in (("w1", (16, 16)), ("w2", (240, 240)))}


def judged(folder: Path, base: Path, shapes: Shapes, runtime: str = "comfyui") -> Report:
    write_safetensors(folder / "lora.safetensors", shapes)
    return compatkit.check([base, folder / "lora.safetensors"], runtime=[runtime])


def offers(report: Report) -> bool:
    return any("compatkit convert" in f.fix for f in report.findings)


def test_pairs_in_names_nobody_reads_are_offered_a_conversion(base: Path, tmp_path: Path) -> None:
    assert offers(judged(tmp_path, base, peft("base_model.model.", MODULES)))


def test_a_weight_in_two_spellings_is_not(base: Path, tmp_path: Path) -> None:
    report = judged(tmp_path, base, peft("base_model.model.", MODULES) | peft("transformer.", MODULES))
    assert any(f.rule.startswith("lora/") for f in report.findings)
    assert not offers(report)


def test_what_a_cut_goes_through_is_not(base: Path, tmp_path: Path) -> None:
    report = judged(tmp_path, base, kron("base_model.model.", MODULES))
    assert [f for f in report.findings if f.rule == "lora/key-style"]
    assert not offers(report)


def test_what_would_not_be_read_either_is_not(base: Path, tmp_path: Path) -> None:
    shapes = peft("transformer.", MODULES) | {f"transformer.{m}.dora_scale": (3840, 1) for m in MODULES}
    report = judged(tmp_path, base, shapes, "sd.cpp")
    assert [f for f in report.findings if f.rule == "lora/dora-dropped"]
    assert not offers(report)


def test_one_half_alone_is_damage_and_nothing_else(base: Path, tmp_path: Path) -> None:
    shapes = {n: s for n, s in peft("diffusion_model.", MODULES).items() if n.endswith("lora_A.weight")}
    rules = {f.rule for f in judged(tmp_path, base, shapes).findings if f.level != "info"}
    assert rules == {"lora/damaged"}


def test_ranks_that_differ_are_not_blamed_on_the_base(base: Path, tmp_path: Path) -> None:
    shapes = peft("diffusion_model.", MODULES)
    shapes["diffusion_model.layers.0.attention.to_q.lora_A.weight"] = (8, 3840)
    rules = {f.rule for f in judged(tmp_path, base, shapes).findings}
    assert "lora/damaged" in rules
    assert not rules & {"lora/shape", "lora/sibling"}
