"""Sources as the user names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from compatkit import api
from compatkit.headers.sparse import write_safetensors
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.stacks.files import parse_request, requests
from compatkit.vocabulary import SourceError


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, example_shapes(load().grammar("clip_l")))
    return path


def test_a_role_before_the_source() -> None:
    assert parse_request("vae=a/b.safetensors").role == "vae"
    assert parse_request("a=b.safetensors").source == "a=b.safetensors"
    assert parse_request("a=b.safetensors").role is None


def test_a_word_that_is_no_role_is_refused_with_the_nearest(encoder: Path) -> None:
    with pytest.raises(SourceError, match="text_encoder"):
        parse_request(f"text_encodr={encoder}")


def test_a_file_in_a_role_it_does_not_have(encoder: Path) -> None:
    report = api.check([f"vae={encoder}"])
    assert report.verdict == "fail"
    finding = next(f for f in report.findings if f.rule == "file/wrong-role")
    assert "CLIP" in finding.message
    assert report.components[0].role == "text_encoder"
    assert api.check([f"text_encoder={encoder}"]).verdict == "pass"


def test_a_file_named_twice_counts_once_and_is_said(encoder: Path) -> None:
    report = api.check([str(encoder), f"{encoder.parent}/./{encoder.name}"])
    assert len(report.components) == 1
    (finding,) = [f for f in report.findings if f.rule == "file/twice"]
    assert (finding.level, finding.evidence) == ("info", {"times": 2})
    assert not [f for f in api.check([str(encoder)]).findings if f.rule == "file/twice"]


def test_assumptions_must_name_a_source_and_a_family() -> None:
    knowledge = load()
    assert requests(["d/a.gguf"], {"a.gguf": "sdxl"}, knowledge)[0].assume == "sdxl"
    with pytest.raises(SourceError, match="not among the sources"):
        requests(["d/a.gguf"], {"b.gguf": "sdxl"}, knowledge)
    with pytest.raises(SourceError, match="sdxl"):
        requests(["d/a.gguf"], {"a.gguf": "sdxll"}, knowledge)
