"""Image-prompt adapters and models that see, against the image encoders there are: which fits, the message if none."""

from __future__ import annotations

import pytest

from compatkit.checks import judge
from compatkit.identify.identify import identify
from compatkit.identify.shapes import expected_shapes
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component, Header, Report, Stack, Tensor
from tests.checks.test_every_model import components

PLUS = {"width": 768, "inner": 768, "depth": 4, "tokens": 16}
#: Family, form, width it takes -> the encoder that is right.
RIGHT = [
    ("ip_adapter_sd15", "plain", 1024, "clip_vision_h"),
    ("ip_adapter_sd15", "plain", 1280, "clip_vision_g"),
    ("ip_adapter_sd15", "plus", 1280, "clip_vision_h"),
    ("ip_adapter_sdxl", "plain", 1280, "clip_vision_g"),
    ("ip_adapter_sdxl", "plain", 1024, "clip_vision_h"),
    ("ip_adapter_sdxl", "plus", 1280, "clip_vision_h"),
]


def adapter(family: str, form: str, image_dim: int) -> tuple[Component, ...]:
    document = load().grammar(family)
    symbols = {"context_dim": 768 if "15" in family else 2048, "image_dim": image_dim} | (
        PLUS if form == "plus" else {}
    )
    shapes = expected_shapes(document, next(iter(document["layouts"])), symbols, {"projection": form})
    tensors = {n: Tensor("F16", tuple(1 if x is None else x for x in s or ()), 0) for n, s in shapes.items()}
    return tuple(identify(Header("adapter.safetensors", "safetensors", 0, 0, tensors, {}), load()))


def check(*parts: Component) -> Report:
    return judge(Stack(parts, (), {}), load())


@pytest.mark.parametrize(("family", "form", "width", "right"), RIGHT)
@pytest.mark.parametrize("encoder", ["clip_vision_l", "clip_vision_h", "clip_vision_g"])
def test_one_encoder_fits(family: str, form: str, width: int, right: str, encoder: str) -> None:
    report = check(*adapter(family, form, width), *components(encoder))
    found = [f for f in report.findings if f.level == "error"]
    assert [f.rule for f in found] == ([] if encoder == right else ["adapter/image-encoder"])
    for finding in found:
        assert load().family(right)["title"] in finding.fix
        assert f"{width}]) from checkpoint" in finding.predicts["comfyui"]


@pytest.mark.parametrize(
    ("taker", "encoder", "text"),
    [
        (
            "wan21_i2v_14b",
            "clip_vision_l",
            "Given normalized_shape=[1280], expected input with shape [*, 1280], but got input of size[1, 257, 1024]",
        ),
        ("flux_redux", "clip_vision_h", "mat1 and mat2 shapes cannot be multiplied (257x1280 and 1152x12288)"),
        ("flux_redux", "clip_vision_l_336", "mat1 and mat2 shapes cannot be multiplied (577x1024 and 1152x12288)"),
    ],
)
def test_the_message_names_the_operation_and_the_pieces_of_the_picture(taker: str, encoder: str, text: str) -> None:
    (finding,) = [f for f in check(*components(taker), *components(encoder)).findings if f.level == "error"]
    assert finding.predicts["comfyui"] == text
