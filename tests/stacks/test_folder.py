"""A diffusers folder as one source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from compatkit import api
from compatkit.headers.sparse import write_safetensors
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.stacks import folder
from compatkit.vocabulary import SourceError

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A Lumina 2 folder, with changes to its index and configs."""

    def build(
        pipeline: str = "Lumina2Pipeline", cls: str = "Lumina2Transformer2DModel", family: str = "lumina2"
    ) -> Path:
        root = tmp_path / "model"
        parts = {"transformer": (cls, family, "diffusers"), "vae": ("AutoencoderKL", "flux1_vae", "diffusers")}
        index = {"_class_name": pipeline, "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
        for name, (part_class, part_family, layout) in parts.items():
            (root / name).mkdir(parents=True)
            (root / name / "config.json").write_text(json.dumps({"_class_name": part_class}))
            shapes = example_shapes(load().grammar(part_family), layout)
            write_safetensors(root / name / "diffusion_pytorch_model.safetensors", shapes)
            index[name] = ["diffusers", part_class]
        (root / "scheduler").mkdir()
        (root / "model_index.json").write_text(json.dumps(index))
        return root

    return build


def test_a_folder_that_is_what_it_says_passes(make: Make) -> None:
    report = api.check([make()], runtime=["diffusers"])
    assert report.verdict == "pass", report.findings
    assert [c.role for c in report.components] == ["diffusion", "vae"]
    assert report.components[0].declared["pipeline"] == "Lumina2Pipeline"


@pytest.mark.parametrize(
    "changed",
    [
        {"pipeline": "ZImagePipeline"},
        {"cls": "LuminaNextDiT2DModel"},
        {"family": "z_image_turbo"},
        {"pipeline": "LuminaText2ImgPipeline", "cls": "ZImageTransformer2DModel", "family": "z_image_turbo"},
    ],
)
def test_names_and_tensors_that_disagree_fail(make: Make, changed: dict[str, str]) -> None:
    report = api.check([make(**changed)], runtime=["diffusers"])
    assert report.verdict == "fail"
    assert "loader/pipeline-class" in {f.rule for f in report.findings}


def test_weights_that_are_missing_are_said(make: Make) -> None:
    root = make()
    (root / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    report = api.check([root], runtime=["diffusers"])
    assert report.verdict == "fail"
    assert "file/missing-shard" in {f.rule for f in report.findings}


def test_a_folder_of_one_model(make: Make) -> None:
    (component,) = api.inspect(make() / "transformer")
    assert component.family == "lumina2"
    assert component.declared == {"class": "Lumina2Transformer2DModel"}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"_class_name": 1, "../x": ["a", "b"]}', "[" * 100_000])
def test_a_bad_index_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(SourceError) as error:
        api.inspect(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_that_describes_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.txt").write_text("x")
    with pytest.raises(SourceError, match=r"model_index\.json"):
        api.inspect(tmp_path)


def test_the_plain_weights_stand_before_a_variant(tmp_path: Path) -> None:
    names = [
        "model.fp16.safetensors", "model.safetensors", "pytorch_model.bin", "model-00001-of-00002.safetensors",
        "optimizer.bin", "README.md",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert folder.weights_of(str(tmp_path)) == "model.safetensors"
    (tmp_path / "model.safetensors").unlink()
    assert folder.weights_of(str(tmp_path)) == "model.fp16.safetensors"
    (tmp_path / "model.safetensors.index.json").write_bytes(b"{}")
    assert folder.weights_of(str(tmp_path)) == "model.safetensors.index.json"
