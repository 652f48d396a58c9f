"""A latent's channels against the VAE's own statistics, and the VAE's round trip of a test card."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import ArrayLike, NDArray

from compatkit.smoke.picture import Picture, as_image, judge_picture

Values = NDArray[np.float64]

#: A channel may vary so many times more or less than expected: pictures differ.
_LEAST, _MOST = 0.4, 2.5
#: A channel's mean may lie so many of its expected deviations off.
_FAR = 2.0


class Latent(Struct, frozen=True):
    """The verdict on a latent: ok, nan, scale, shift, permuted or statistics.

    `mean` and `std` are per channel, as measured; `std_ratio` is the median over channels of the measured deviation
    over the expected one, `shift` the largest distance of a mean, in expected deviations. `statistics`: the expected
    numbers themselves cannot be right.
    """

    verdict: str
    why: str
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    std_ratio: float = 1.0
    shift: float = 0.0

    def fields(self) -> dict[str, Any]:
        """The fields of `subjects.LATENT`."""
        return {n: getattr(self, n) for n in ("verdict", "channels", "std_ratio", "shift", "why")}

    def statistics(self) -> dict[str, Any]:
        """Everything, rounded, as JSON has it."""
        return {
            **self.fields(),
            "mean": [round(v, 5) for v in self.mean],
            "std": [round(v, 5) for v in self.std],
        }


def judge_latent(
    latent: ArrayLike,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    axis: int | None = None,
) -> Latent:
    """The verdict on a latent against what the VAE expects of each of its channels.

    Args:
        latent: [channels, …] or [1, channels, …], in the scale that `mean` and `std` speak of: for a VAE with one
            scaling factor the latent after it (mean 0 and deviation 1 are then expected), for one with statistics for
            each channel the latent as the decoder takes it.
        mean, std: expected, one number a channel; none: 0 and 1.
        axis: the channels' axis, where it is not the first (or the second, after a batch of one).

    Raises:
        ValueError: the numbers of channels differ.
    """
    a = np.asarray(latent, dtype=np.float64)
    if axis is None:
        axis = 1 if a.ndim > 3 and a.shape[0] == 1 else 0
    rows = np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1)
    count = rows.shape[0]
    finite = np.isfinite(rows)
    known = np.where(finite, rows, 0.0)
    n = np.maximum(finite.sum(axis=1), 1)
    found_mean = known.sum(axis=1) / n
    found_std = np.sqrt(np.maximum((known**2).sum(axis=1) / n - found_mean**2, 0.0))
    told = tuple(map(float, found_mean)), tuple(map(float, found_std))
    if not finite.all():
        share = 100 * (1 - float(finite.mean()))
        channels = int((~finite).any(axis=1).sum())
        return Latent("nan", f"{share:.3g} % of its values, in {channels} channels, are NaN or infinite", count, *told)
    expected = np.zeros(count) if mean is None else np.asarray(mean, dtype=np.float64)
    spread = np.ones(count) if std is None else np.asarray(std, dtype=np.float64)
    if expected.shape != (count,) or spread.shape != (count,):
        raise ValueError(f"the latent has {count} channels, the statistics {expected.size} and {spread.size}")
    if not (np.isfinite(expected).all() and np.isfinite(spread).all() and (spread > 0).all()):
        swapped = " - means and deviations may be swapped" if (spread <= 0).any() else ""
        return Latent(
            "statistics", f"the VAE's own statistics cannot be right: a deviation is not above 0{swapped}", count, *told
        )
    ratio = float(np.median(found_std / spread))
    distance = np.abs(found_mean - expected) / spread
    numbers: tuple[Any, ...] = (count, *told, round(ratio, 4), round(float(distance.max()), 4))
    if order := _permuted(found_mean, found_std, expected, spread):
        return Latent("permuted", f"its channels fit the VAE's in another order: {order}", *numbers)
    if not _LEAST <= ratio <= _MOST:
        how = f"{ratio:.3g} times as much as" if ratio > 1 else f"only {ratio:.3g} times as much as"
        return Latent("scale", f"its channels vary {how} the VAE expects", *numbers)
    if float(np.median(distance)) > 1.0 or float(distance.max()) > 2 * _FAR:
        worst = int(distance.argmax())
        why = f"the mean of channel {worst} is {found_mean[worst]:.3g}, {distance[worst]:.2g} deviations from"
        return Latent("shift", f"{why} the expected {expected[worst]:.3g}", *numbers)
    return Latent("ok", "", *numbers)


def _permuted(mean: Values, std: Values, expected: Values, spread: Values) -> str:
    """The order in which channels fit far better than as they stand; empty if there is none that does.

    Only where the expected means differ enough to tell channels apart.
    """
    if expected.size < 3 or float(np.std(expected / spread)) < 0.2:
        return ""
    z = (expected - mean) / spread
    as_is = float(np.mean(z**2) + np.mean(np.log(np.maximum(std, 1e-9) / spread) ** 2))
    to = np.empty(expected.size, dtype=np.int64)
    to[np.argsort(mean)] = np.argsort(expected)  # one-dimensional: sorted to sorted is the best
    moved = (expected[to] - mean) / spread[to]
    best = float(np.mean(moved**2) + np.mean(np.log(np.maximum(std, 1e-9) / spread[to]) ** 2))
    if as_is < 1.0 or best > 0.3 * as_is or bool((to == np.arange(to.size)).all()):
        return ""
    pairs = [f"{i} as {int(t)}" for i, t in enumerate(to) if i != t]
    return ", ".join(pairs[:4]) + (", …" if len(pairs) > 4 else "")


def colour_card(side: int = 256) -> NDArray[np.float32]:
    """float32 [side, side, 3], 0 … 1: bars, ramps, discs and lines by arithmetic, of which a VAE gives most back.

    `side` is a multiple of 16.
    """
    y, x = np.mgrid[0:side, 0:side] / (side - 1)
    card = np.stack((0.15 + 0.7 * x, 0.15 + 0.7 * y, 0.85 - 0.35 * (x + y)), axis=-1)
    bars = np.array(
        [[0.9, 0.9, 0.9], [0.85, 0.8, 0.1], [0.1, 0.75, 0.8], [0.15, 0.7, 0.2], [0.75, 0.2, 0.7], [0.8, 0.15, 0.15],
         [0.15, 0.2, 0.8], [0.08, 0.08, 0.08]]
    )  # fmt: skip
    top = y < 0.25
    card[top] = bars[np.minimum((x[top] * 8).astype(np.int64), 7)]
    for cx, cy, r, colour in (
        (0.3, 0.55, 0.16, (0.9, 0.55, 0.2)),
        (0.68, 0.6, 0.2, (0.2, 0.35, 0.6)),
        (0.7, 0.58, 0.09, (0.95, 0.9, 0.8)),
    ):
        inside = (x - cx) ** 2 + (y - cy) ** 2 < r**2
        card[inside] = colour
    stripes = (y > 0.85) & (((x * side).astype(np.int64) // (side // 32)) % 2 == 0)
    card[stripes] = (0.1, 0.1, 0.1)
    return card.astype(np.float32)


class RoundTrip(Struct, frozen=True):
    """What came back of a picture: `psnr` in dB (at most 99), the share of values that are not finite, the verdict."""

    psnr: float
    nan: float
    picture: Picture

    def fields(self) -> dict[str, Any]:
        """The fields of `subjects.ROUND_TRIP`."""
        return {"psnr": self.psnr, "nan": self.nan, "verdict": self.picture.verdict}


def judge_round_trip(before: ArrayLike, after: ArrayLike) -> RoundTrip:
    """How well `after`, encoded and decoded, is `before`; both as `picture.as_image` takes them, 0 … 1.

    Raises:
        ValueError: they are of different sizes.
    """
    a, b = as_image(before), as_image(after)
    if a.shape != b.shape:
        raise ValueError(f"the picture comes back as {list(b.shape)}, it went in as {list(a.shape)}")
    bad = ~np.isfinite(b)
    error = float(np.mean((a - np.clip(np.where(bad, 0.0, b), 0.0, 1.0)) ** 2))
    psnr = 99.0 if error < 1e-9 else round(-10 * log10(error), 2)
    return RoundTrip(psnr, float(bad.mean()), judge_picture(after))
