"""Settings that are given by hand, beside plain files."""

from __future__ import annotations

from pathlib import Path

import pytest

import compatkit
from compatkit.headers.sparse import write_safetensors
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.vocabulary import Report


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_safetensors(path, example_shapes(load().grammar("z_image_turbo")))
    return path


def judged(model: Path, node: str) -> Report:
    return compatkit.check([model], latent_node=node)


def test_the_node_that_makes_the_latent_is_held_against_the_model(model: Path) -> None:
    assert judged(model, "EmptySD3LatentImage").verdict == "pass"
    report = judged(model, "EmptyHunyuanLatentVideo")
    (finding,) = [f for f in report.findings if f.level == "error"]
    assert (finding.rule, report.verdict) == ("workflow/latent", "fail")
    assert "5D" in finding.message


def test_channels_that_the_sampler_makes_right_are_no_error(model: Path) -> None:
    report = judged(model, "EmptyFlux2LatentImage")
    assert {f.rule for f in report.findings if f.rule.startswith("workflow/")} == {"workflow/latent-repaired"}
    assert report.verdict == "pass"


def test_a_node_that_nobody_described_is_said_not_to_be_read(model: Path) -> None:
    report = judged(model, "SomebodysLatent")
    assert "workflow/latent" not in report.checked
    assert any("latent_node=SomebodysLatent" in n.why for n in report.not_checked)
