"""Verdicts on pictures that the test draws itself, on latents and round trips; the PNG and the plot."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compatkit.smoke.channels import channel_plot
from compatkit.smoke.draw import Bar, activation_plot, save_png
from compatkit.smoke.latents import colour_card, judge_latent, judge_round_trip
from compatkit.smoke.picture import as_image, judge_picture

SIDE = 256
Image = np.ndarray[Any, Any]


def natural(seed: int = 0, side: int = SIDE) -> Image:
    """A picture with the statistics of one: 1/f texture, a few shapes with sharp edges, light that falls off."""
    draw = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    f[0, 0] = 1
    y, x = np.mgrid[0:side, 0:side] / side
    out = np.empty((side, side, 3))
    shared = np.fft.irfft2(np.fft.rfft2(draw.standard_normal((side, side))) / f**1.3, s=(side, side))
    for c in range(3):
        own = np.fft.irfft2(np.fft.rfft2(draw.standard_normal((side, side))) / f**1.5, s=(side, side))
        texture = shared / shared.std() + 0.4 * own / own.std()
        out[:, :, c] = 0.45 + 0.13 * texture + 0.15 * (x - 0.5)
    for _ in range(6):
        cx, cy, r = draw.random(3) * (1, 1, 0.15)
        out[(x - cx) ** 2 + (y - cy) ** 2 < r**2] = draw.random(3)
    return out.clip(0, 1)


def noise(*shape: int, seed: int = 0) -> Image:
    return np.random.default_rng(seed).random(shape)


def lines(image: Image, period: int, depth: float) -> Image:
    out = image.copy()
    out[::period] -= depth
    out[:, ::period] -= depth
    return out.clip(0, 1)


OK = {
    "natural": natural(),
    "another": natural(5),
    "dark": natural(1) * 0.1,
    "bright": 1 - natural(2) * 0.1,
    "low contrast": 0.5 + (natural(3) - 0.5) * 0.1,
    "grey": natural(4)[:, :, :1],
    "noisy": (natural(6) + 0.15 * np.random.default_rng(0).standard_normal((SIDE, SIDE, 3))).clip(0, 1),
    "card": colour_card(SIDE),
    "checkerboard of 25 pixels": np.kron(np.indices((11, 11)).sum(0) % 2, np.ones((25, 25)))[:SIDE, :SIDE].astype(
        float
    ),
    "silhouette": (natural(7)[:, :, 0] > 0.5).astype(float),
    "gradient": np.mgrid[0:SIDE, 0:SIDE][0] / SIDE,
    "bricks": lines(natural(8) * 0.5 + 0.3, 21, 0.1),
    "wide": natural(9)[:96],
    "enlarged": np.kron(natural(10, 64), np.ones((4, 4, 1))),
    "blocks as in a JPEG": (natural(11) + 0.01 * np.kron(noise(32, 32, 3), np.ones((8, 8, 1)))).clip(0, 1),
    "lawn": (0.4 + 0.05 * np.random.default_rng(1).standard_normal((SIDE, SIDE)) + 0.3 * (natural(12)[:, :, 0] - 0.5)),
}
BAD = {
    "black": (np.zeros((SIDE, SIDE, 3)), "black"),
    "nearly black": ((0.004 * noise(SIDE, SIDE, 3)), "black"),
    "grey": (np.full((SIDE, SIDE, 3), 0.5), "constant"),
    "nearly one colour": (0.5 + 0.004 * np.random.default_rng(0).standard_normal((SIDE, SIDE, 3)), "constant"),
    "white": (np.ones((SIDE, SIDE, 3)), "constant"),
    "noise": (noise(SIDE, SIDE, 3), "noise"),
    "grey noise": (noise(SIDE, SIDE), "noise"),
    "noise of two values": ((noise(SIDE, SIDE, 3) < 0.5).astype(float), "noise"),
    "a picture under noise": ((natural() * 0.3 + 0.35 + 0.4 * (noise(SIDE, SIDE, 3) - 0.5)).clip(0, 1), "noise"),
    "squares of noise": (np.kron(noise(SIDE // 8, SIDE // 8, 3), np.ones((8, 8, 1))), "grid"),
    "one tile": (np.tile(noise(16, 16, 3), (16, 16, 1)), "grid"),
    "lines over a picture": (lines(natural(), 16, 0.15), "grid"),
    "fine lines": (lines(natural(), 8, 0.15), "grid"),
    "lines over noise": (lines(noise(SIDE, SIDE, 3) * 0.3 + 0.6, 16, 0.4), "grid"),
    "burnt out": (((natural() - 0.5) * 40 * (1, -1, 1) + 0.5).clip(0, 1), "saturated"),
}


@pytest.mark.parametrize("name", OK)
def test_no_alarm(name: str) -> None:
    picture = judge_picture(OK[name])
    assert picture.verdict == "ok", picture
    assert picture.cannot_tell


@pytest.mark.parametrize("name", BAD)
def test_what_pixels_show(name: str) -> None:
    array, verdict = BAD[name]
    picture = judge_picture(array)
    assert picture.verdict == verdict, picture
    assert picture.why
    assert not picture.cannot_tell


def test_the_period_of_a_grid_is_said() -> None:
    assert judge_picture(BAD["lines over a picture"][0]).period == 16
    assert "16 pixels" in judge_picture(BAD["lines over a picture"][0]).why


def test_one_pixel_that_is_no_number() -> None:
    image = natural()
    image[3, 4, 1] = np.nan
    picture = judge_picture(image)
    assert (picture.verdict, picture.nan) == ("nan", pytest.approx(1 / image.size))


@pytest.mark.parametrize(
    "made",
    [
        lambda i: (i * 255).astype(np.uint8),
        lambda i: np.moveaxis(i, -1, 0),
        lambda i: np.moveaxis(i, -1, 0)[None],
        lambda i: np.concatenate((i, np.ones((*i.shape[:2], 1))), axis=-1),
        lambda i: i.astype(np.float16),
    ],
)
def test_every_form_of_a_picture(made: Any) -> None:
    np.testing.assert_allclose(as_image(made(natural())), natural(), atol=0.005)
    assert judge_picture(made(natural())).verdict == "ok"


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4, 5, 6), (5, 5, 7), (0, 4, 3)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a picture has"):
        judge_picture(np.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 1), (2, 2, 3), (7, 9), (16, 16, 3), (8, 300)])
def test_small_pictures_do_not_break_it(shape: tuple[int, ...]) -> None:
    assert judge_picture(noise(*shape)).verdict in {"ok", "noise", "constant", "grid", "saturated"}


# -- latents --------------------------------------------------------------------------------------------------------

MEAN = np.array(
    [-0.76, -0.71, 0.36, 0.11, -0.17, 0.10, -0.44, 0.36, -0.14, 0.29, -0.38, 0.22, 0.55, -0.11, 0.19, -0.25]
)
STD = np.array([2.8, 1.5, 2.0, 2.6, 2.1, 1.7, 1.9, 1.6, 2.3, 1.8, 2.4, 1.5, 2.1, 2.5, 1.9, 2.2])


def latent(mean: Image = MEAN * 3, std: Image = STD) -> Image:
    draw = np.random.default_rng(0).standard_normal((1, mean.size, 24, 24))
    return draw * std[None, :, None, None] + mean[None, :, None, None]


@pytest.mark.parametrize(
    ("array", "expected", "verdict"),
    [
        (latent(), (MEAN * 3, STD), "ok"),
        (latent() * 0.9, (MEAN * 3, STD), "ok"),
        (latent(MEAN * 9)[:, ::-1], (MEAN * 9, STD), "permuted"),
        (latent() * 6, (MEAN * 3, STD), "scale"),
        (latent() * 0.1, (MEAN * 3, STD), "scale"),
        (latent() + 9, (MEAN * 3, STD), "shift"),
        (latent(), (STD, MEAN * 3), "statistics"),
        (np.random.default_rng(1).standard_normal((4, 32, 32)), (None, None), "ok"),
        (np.random.default_rng(1).standard_normal((4, 32, 32)) * 5.5, (None, None), "scale"),
        (np.full((4, 8, 8), np.nan), (None, None), "nan"),
    ],
)
def test_latents(array: Image, expected: tuple[Any, Any], verdict: str) -> None:
    judged = judge_latent(array, *expected)
    assert judged.verdict == verdict, judged
    assert bool(judged.why) == (verdict != "ok")


def test_statistics_of_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="4 channels"):
        judge_latent(np.zeros((4, 8, 8)), [0.0] * 16, [1.0] * 16)


def test_round_trip() -> None:
    card = colour_card(128)
    assert judge_round_trip(card, card).psnr == 99
    near = judge_round_trip(card, card + 0.05)
    assert 25 < near.psnr < 28
    broken = judge_round_trip(card, np.full_like(card, np.nan))
    assert broken.nan == 1.0
    assert broken.psnr < 10
    with pytest.raises(ValueError, match="comes back as"):
        judge_round_trip(card, colour_card(64))


# -- files ----------------------------------------------------------------------------------------------------------


def test_png(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image", reason="pillow comes with the extra `smoke`")
    image = natural()
    image[5, 6] = np.nan
    save_png(image, tmp_path / "a.png")
    back = np.asarray(pil.open(tmp_path / "a.png"))
    assert tuple(back[5, 6]) == (255, 0, 255)
    np.testing.assert_allclose(back[10:] / 255, image[10:], atol=0.003)


@pytest.mark.parametrize(
    ("bars", "named"),
    [
        ([Bar("a <b>", 1.0), Bar("b", 30.0)], "largest: b 30"),
        ([Bar("a", 1.0), Bar("b", 1e5), Bar("c", 3e7)], "first beyond fp16: b 1e+05"),
        ([Bar("a", 1.0), Bar("b", float("inf"), 7), Bar("c", float("nan"), 7)], "first that is not finite: b inf"),
        ([Bar("a", 0.0)], "largest: a 0"),
        ([], "nothing ran"),
        ([Bar(f"layer {i}", 10.0 ** (i % 9 - 3)) for i in range(3000)], "first beyond fp16"),
    ],
)
def test_the_plot_is_an_svg_that_names_what_matters(bars: list[Bar], named: str) -> None:
    text = activation_plot(bars, "a & b")
    root = ET.fromstring(text)
    said = "".join(root.itertext())
    assert named in said
    assert "a & b" in said
    assert len(root.findall(".//{http://www.w3.org/2000/svg}title")) == len(bars)
    assert float(root.attrib["width"]) < 3200


@pytest.mark.parametrize(
    ("array", "said", "red"), [(latent(), "ok: no channel is far", 0), (latent() + 9, "shift: the mean of channel", 16)]
)
def test_channels_are_drawn_before_what_is_expected(array: Image, said: str, red: int) -> None:
    text = channel_plot(judge_latent(array, MEAN * 3, STD), list(MEAN * 3), list(STD), "a < b")
    root = ET.fromstring(text)
    assert said in "".join(root.itertext())
    assert len(root.findall(".//{http://www.w3.org/2000/svg}title")) == 16
    drawn = sum(r.get("fill") == "#cf222e" for r in root.iter("{http://www.w3.org/2000/svg}rect"))
    assert drawn == red


def test_a_latent_of_nothing_but_nan_can_be_drawn() -> None:
    judged = judge_latent(np.full((4, 8, 8), np.nan))
    assert "nan: 100 %" in "".join(ET.fromstring(channel_plot(judged)).itertext())
