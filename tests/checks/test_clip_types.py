"""The right encoders of every model under every CLIP type: one finding at most, and its numbers disagree."""

from __future__ import annotations

import re
from functools import cache

import pytest

from compatkit.checks import judge
from compatkit.checks.routing import types
from compatkit.knowledge.store import load
from compatkit.vocabulary import Finding, Report, Stack
from tests.checks.test_every_model import comfyui, components, encoders, ids

SEVERAL = [f for f in ids("diffusion") if len(encoders(f)) > 1]
MULTIPLIED = re.compile(r"\((?:N|1)x(\d+) and (\d+)x")
NORMED = re.compile(r"normalized_shape=\[(\d+)\].*size\[1, N, (\d+)\]")
MISMATCH = re.compile(r"torch\.Size\(\[([\d, ]+)\]\).*torch\.Size\(\[([\d, ]+)\]\)")


@cache
def clip_types() -> tuple[list[str], list[str]]:
    one, several, _ = types(load().table("runtimes")["comfyui"])
    return sorted(one), sorted(several)


def check(family: str, *others: str, clip_type: str) -> Report:
    parts = tuple(c for name in (family, *others) for c in components(name))
    return judge(Stack(parts, (), {"clip_type": clip_type}), load())


def loud(report: Report) -> list[Finding]:
    return [f for f in report.findings if f.level != "info"]


@pytest.mark.parametrize("family", [f for f in ids("diffusion") if encoders(f)])
def test_one_cause_is_one_finding_and_predicts_a_real_disagreement(family: str) -> None:
    one, several = clip_types()
    for clip_type in several if len(encoders(family)) > 1 else one:
        found = loud(check(family, *encoders(family), clip_type=clip_type))
        assert len(found) <= 1, [(clip_type, f.message) for f in found]
        for finding in found:
            usual = comfyui(family).get("clip_type")
            assert usual is None or f"Set clip_type to {usual}" in finding.fix
            for pattern in (MULTIPLIED, NORMED, MISMATCH):
                for left, right in pattern.findall(" ".join(finding.predicts.values())):
                    assert left != right, (clip_type, finding.predicts)


@pytest.mark.parametrize("family", SEVERAL)
def test_a_set_without_an_encoder_that_may_be_absent_passes_under_its_own_type(family: str) -> None:
    card = load().family(family)
    needed = [str(e["kind"]) for e in card["text_encoders"] if not e.get("optional")]
    if len(needed) == len(encoders(family)) or not needed:
        pytest.skip("it needs all of them, or any of them")
    found = loud(check(family, *needed, clip_type=comfyui(family)["clip_type"]))
    # unless its file alone is loaded as another class
    assert [f.rule for f in found if "alone it is loaded" not in f.message] == []


def test_a_class_of_fixed_widths_gives_them_whatever_the_files_are() -> None:
    (finding,) = loud(check("flux_dev", "clip_l", "t5xxl", clip_type="sdxl"))
    assert finding.rule == "encoder/clip-type"
    assert finding.predicts["comfyui"] == "mat1 and mat2 shapes cannot be multiplied (Nx2048 and 4096x3072)"
    assert finding.evidence["output_width"] == 2048
    assert finding.evidence["context_dim"] == 4096


def test_an_encoder_that_no_one_reads_is_said_in_a_sentence_that_ends() -> None:
    for family, end in (("svd", "takes no text encoder."), ("sd3_medium", "T5 v1.1 XXL (encoder).")):
        own = ["clip_l", "clip_g"] if family == "sd3_medium" else []
        report = check(family, *own, "gemma2_2b", clip_type="sd3")
        assert next(f.message for f in report.findings if f.rule == "encoder/surplus").endswith(end)
