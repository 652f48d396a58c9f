"""What image encoders give is among their facts, so that what takes their features can be held against it."""

from __future__ import annotations

import pytest

from compatkit.checks import judge
from compatkit.identify.identify import identify
from compatkit.identify.selftest import header_of
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component, Report, Stack


def _set(*families: str) -> Report:
    parts: list[Component] = []
    for family in families:
        parts += identify(header_of(example_shapes(load().grammar(family)), f"{family}.safetensors"), load())
    return judge(Stack(tuple(parts), (), {}), load())


@pytest.mark.parametrize(
    ("taker", "eye"),
    [("flux_redux", "siglip_so400m"), ("hunyuan_video15", "siglip_so400m"), ("sd21_unclip", "clip_vision_h")],
)
def test_the_image_encoder_it_was_made_for_fits(taker: str, eye: str) -> None:
    report = _set(taker, eye)
    assert "adapter/image-encoder" in report.checked
    assert not [f for f in report.findings if f.rule == "adapter/image-encoder"]


@pytest.mark.parametrize(("taker", "eye"), [("flux_redux", "clip_vision_h"), ("sd21_unclip", "dinov2_g")])
def test_another_one_does_not(taker: str, eye: str) -> None:
    [finding] = [f for f in _set(taker, eye).findings if f.rule == "adapter/image-encoder"]
    assert finding.level == "error"
