"""What a picture is by its pixels alone: black, of one colour, noise, a grid, burnt out, not a number, or none of it.

`ok` means that nothing is wrong that pixels show. They do not show a wrong picture with the texture of a picture: wrong
weights, a wrong VAE of the same shape, mixed-up channels and wrong scales may look natural to every statistic here, and
so may noise that was blurred. Latents (`judge_latent`) and the VAE's round trip tell more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import asdict
from numpy.typing import ArrayLike, NDArray

Plane = NDArray[np.float64]

#: What `Picture.cannot_tell` says of a picture that looks right.
CANNOT_TELL = "pixels do not tell a wrong picture with a natural texture from a right one: look at it"

#: Nothing brighter than this is seen as more than black (of 1).
_DARK = 8 / 255
#: A range of brightness below this is one colour.
_FLAT = 8 / 255
#: Where a grid that a network leaves repeats: a latent is 8 pixels, a patch of them 16, more where VAEs shrink more.
_PERIODS = (8, 16, 32)
#: A grid's lines are so much steeper than the rest, as a ratio and in brightness: the blocks of a JPEG are not.
_STEEPER, _STEP = 1.6, 0.03


class Picture(Struct, frozen=True):
    """The verdict on a picture and what it rests on.

    `verdict`: ok, black, constant, noise, grid, saturated or nan; `why` says in words what gave it away. Brightness is
    luminance, 0 … 1. `nan`: share of values that are not finite; `clipped`: share at either end; `burnt`: share of
    pixels whose colour is clipped in some channel and is no grey; `flatness`: of the spectrum (1: white noise);
    `neighbours`: correlation of neighbouring pixels; `slope`: of the spectrum (natural pictures: -3.5 … -1.4);
    `entropy` of the brightness in bits; `period` of a grid in pixels (0: none) and `grid`, how much steeper its lines
    are than the rest.
    """

    verdict: str
    why: str = ""
    width: int = 0
    height: int = 0
    nan: float = 0.0
    mean: float = 0.0
    std: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0
    clipped: float = 0.0
    burnt: float = 0.0
    entropy: float = 0.0
    flatness: float = 0.0
    neighbours: float = 0.0
    slope: float = 0.0
    period: int = 0
    grid: float = 0.0

    @property
    def cannot_tell(self) -> str:
        """What this verdict leaves open; empty where it leaves nothing."""
        return CANNOT_TELL if self.verdict == "ok" else ""

    def statistics(self) -> dict[str, Any]:
        """Everything, rounded, as JSON has it."""
        return {k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(self).items()}

    def fields(self, path: str = "") -> dict[str, Any]:
        """The fields of `subjects.PICTURE`."""
        names = ("verdict", "nan", "mean", "std", "clipped", "flatness", "neighbours", "period", "why")
        return {**{n: getattr(self, n) for n in names}, "path": path}


def as_image(array: ArrayLike) -> NDArray[np.float64]:
    """float64 [height, width, channels], 0 … 1, of what VAEs and image libraries give.

    Takes [H, W], [H, W, C] and [C, H, W] (C 1, 3 or 4; the alpha of four channels is left out), with leading sides of
    1; unsigned bytes are divided by 255. Values beyond 0 … 1 stay as they are.

    Raises:
        ValueError: an array of another shape.
    """
    a = np.asarray(array)
    scale = 255.0 if a.dtype == np.uint8 else 1.0
    while a.ndim > 3 and a.shape[0] == 1:
        a = a[0]
    if a.ndim == 4:  # a film: its first frame, whichever side counts the frames
        a = a[0] if a.shape[-1] in (1, 3, 4) or a.shape[1] in (1, 3, 4) else a[:, 0]
    if a.ndim == 2:
        a = a[:, :, None]
    if a.ndim != 3 or not a.size:
        raise ValueError(f"a picture has height, width and channels, not the shape {list(np.shape(array))}")
    if a.shape[-1] not in (1, 3, 4) and a.shape[0] in (1, 3, 4):
        a = np.moveaxis(a, 0, -1)
    if a.shape[-1] not in (1, 3, 4):
        raise ValueError(f"a picture has 1, 3 or 4 channels, not {a.shape[-1]}")
    return a[:, :, :3].astype(np.float64) / scale


def judge_picture(array: ArrayLike) -> Picture:
    """The verdict on a picture, of the forms `as_image` takes; brightness 0 … 1 (not -1 … 1).

    Raises:
        ValueError: it is no picture by its shape.
    """
    image = as_image(array)
    height, width = image.shape[:2]
    size = {"width": width, "height": height}
    bad = ~np.isfinite(image)
    if bad.any():
        share = float(bad.mean())
        return Picture("nan", f"{_percent(share)} of its values are NaN or infinite", **size, nan=share)
    clipped = float(((image <= 1 / 512) | (image >= 1 - 1 / 512)).mean())
    shown = np.clip(image, 0.0, 1.0)
    grey = shown @ np.array([0.299, 0.587, 0.114]) if shown.shape[2] == 3 else shown[:, :, 0]
    lowest, highest = (float(v) for v in (shown.min(), shown.max()))
    basic: dict[str, Any] = {
        **size,
        "mean": float(grey.mean()),
        "std": float(grey.std()),
        "lowest": lowest,
        "highest": highest,
        "clipped": clipped,
        "burnt": _burnt(shown),
        "entropy": _entropy(grey),
    }
    if highest <= _DARK:
        return Picture("black", f"its brightest value is {_percent(highest)} of white", **basic)
    spread = [float(np.subtract(*np.percentile(shown[:, :, c], [99.5, 0.5]))) for c in range(shown.shape[2])]
    if max(spread) <= _FLAT:
        colour = ", ".join(f"{v:.2f}" for v in shown.mean(axis=(0, 1)))
        return Picture("constant", f"it is {colour} everywhere", **basic)
    plane = max((shown[:, :, c] for c in range(shown.shape[2])), key=lambda p: float(p.std()))
    spectrum = _spectrum(plane)
    neighbours = _neighbours(plane)
    period, strength = _grid(plane)
    more: dict[str, Any] = {**basic, "neighbours": neighbours, **spectrum, "period": period, "grid": strength}
    if period:
        return Picture("grid", f"lines repeat every {period} pixels in both directions", **more)
    if neighbours < 0.2 and spectrum["flatness"] > 0.3:
        return Picture("noise", "its pixels have nothing to do with their neighbours", **more)
    if (basic["burnt"] > 0.15 and clipped > 0.75) or (basic["burnt"] > 0.5 and clipped > 0.6):
        why = f"{_percent(clipped)} of its values lie at an end of their range, not only in black, white and grey"
        return Picture("saturated", why, **more)
    return Picture("ok", "", **more)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _burnt(image: NDArray[np.float64]) -> float:
    """Share of pixels with a channel at an end of the range and another one far from it: no black, white or grey."""
    if image.shape[2] != 3:
        return 0.0
    low, high = image.min(axis=2), image.max(axis=2)
    ends = (low <= 1 / 512) | (high >= 1 - 1 / 512)
    return float((ends & (high - low > 0.35)).mean())


def _entropy(grey: Plane) -> float:
    counts = np.bincount(np.minimum(grey * 256, 255).astype(np.int64).ravel(), minlength=256)
    p = counts[counts > 0] / grey.size
    return float(-(p * np.log2(p)).sum())


def _neighbours(plane: Plane) -> float:
    """Correlation of a pixel with the next, the mean of both directions."""
    out = []
    for a, b in ((plane[:, 1:], plane[:, :-1]), (plane[1:], plane[:-1])):
        if a.size > 1 and a.std() > 0 and b.std() > 0:
            out.append(float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())))
    return float(np.mean(out)) if out else 0.0


def _spectrum(plane: Plane) -> dict[str, float]:
    """Flatness and slope of the power spectrum, a Hann window over the picture."""
    h, w = plane.shape
    if min(h, w) < 8:
        return {"flatness": 0.0, "slope": -2.0}
    window = np.hanning(h)[:, None] * np.hanning(w)[None, :]
    power = np.abs(np.fft.rfft2((plane - plane.mean()) * window)) ** 2
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None, :]
    radius = np.sqrt(fy**2 + fx**2)
    inside = (radius > 2 / min(h, w)) & (radius <= 0.5)
    p, r = power[inside] + 1e-12, radius[inside]
    flatness = float(np.exp(np.log(p).mean()) / p.mean())
    bands = np.geomspace(2 / min(h, w), 0.5, 13)
    which = np.digitize(r, bands)
    rows = [(float(np.log(r[which == i].mean())), float(np.log(np.median(p[which == i])))) for i in range(1, 13)
            if (which == i).sum() >= 4]  # fmt: skip
    if len(rows) < 3:
        return {"flatness": flatness, "slope": -2.0}
    x, y = np.array(rows).T
    return {"flatness": flatness, "slope": float(np.polyfit(x, y, 1)[0])}


def _grid(plane: Plane) -> tuple[int, float]:
    """(period, how strong) of lines that repeat in both directions, (0, strongest) if there is no grid.

    The mean step from each column to the next is folded by the period: a grid has its steps at one place of it, and in
    each quarter of the picture at the same one. Bricks and tiles of a photograph do not keep to a power of two over the
    whole picture.
    """
    best = (0, 0.0)
    for period in _PERIODS:
        if min(plane.shape) < 4 * period:
            break
        across, down = _folded(plane, period), _folded(plane.T, period)
        strength = max(min(across, down), _tiled(plane, period))
        if strength > best[1]:
            best = (period, strength)
    return best if best[1] > _STEEPER else (0, best[1])


def _tiled(plane: Plane, period: int) -> float:
    """Over 2 where the picture is one tile again and again: equal after a period and another thing after half of it."""

    def shifted(by: int) -> float:
        pairs = ((plane[:, by:], plane[:, :-by]), (plane[by:], plane[:-by]))
        return min(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) if a.std() * b.std() > 0 else 0.0 for a, b in pairs)

    whole = shifted(period)
    return 3.0 if whole > 0.95 and shifted(period // 2) < whole - 0.3 else 0.0


def _folded(plane: Plane, period: int) -> float:
    """How much steeper the steps at one place of the period are than elsewhere; the least over parts of the picture."""
    steps = np.abs(np.diff(plane, axis=1))
    usable = steps.shape[1] // period * period
    whole = steps[:, :usable].mean(axis=0).reshape(-1, period)
    place = int(whole.mean(axis=0).argmax())
    least = np.inf
    for rows in np.array_split(steps[:, :usable], 2):
        for columns in np.array_split(rows.reshape(rows.shape[0], -1, period), 2, axis=1):
            profile = columns.mean(axis=(0, 1))
            others = np.delete(profile, [place, (place + 1) % period, (place - 1) % period])
            # the strongest of the other places, not their mean: a coarse picture has strong ones of its own
            rest = float(np.max(others)) + 1e-4
            line = float(profile[place])
            least = min(least, line / rest if line - rest > _STEP else min(line / rest, 1.0))
    return float(least)
