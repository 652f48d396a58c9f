"""A latent's channels as an SVG: each one's mean and deviation, before the band that the VAE expects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from compatkit.smoke.latents import Latent

_LEFT, _TOP, _HIGH, _BOTTOM = 52, 46, 220, 46


def channel_plot(
    latent: Latent, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, title: str = ""
) -> str:
    """The text of an SVG: for each channel a bar from one deviation below its mean to one above, the mean as a line,
    over a grey band of the same for `mean` and `std` (none: 0 and 1). A channel that misses the band is red.

    Numbers of a channel stand where the mouse rests on it; the verdict and why below.
    """
    n = latent.channels
    expected = list(mean) if mean is not None else [0.0] * n
    spread = list(std) if std is not None else [1.0] * n
    rows = [(m, s, e, d) for m, s, e, d in zip(latent.mean, latent.std, expected, spread, strict=True)]
    known = [v for m, s, e, d in rows for v in (m - s, m + s, e - d, e + d) if math.isfinite(v)] or [-1.0, 1.0]
    low, high = min(known), max(known)
    pad = 0.05 * (high - low) or 1.0
    low, high = low - pad, high + pad
    step = max(8.0, min(28.0, 900 / max(1, n)))
    wide = step * n

    def y(value: float) -> float:
        return _TOP + _HIGH * (1 - (min(max(value, low), high) - low) / (high - low))

    across, down = round(_LEFT + max(wide, 360) + 20), _TOP + _HIGH + _BOTTOM
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{across}" height="{down}" viewBox="0 0 {across} {down}" '
        'font-family="system-ui, sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{_LEFT}" y="18" font-size="14" font-weight="600" fill="#1b1f24">{escape(title)}</text>',
    ]
    for value in _ticks(low, high):
        out.append(
            f'<line x1="{_LEFT}" y1="{y(value):.1f}" x2="{_LEFT + wide:.1f}" y2="{y(value):.1f}" stroke="#e4e7eb"/>'
            f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#57606a">{value:g}</text>'
        )
    off = 0
    for i, (m, s, e, d) in enumerate(rows):
        x = _LEFT + i * step
        told = f"channel {i}: mean {m:.3g}, deviation {s:.3g}; expected {e:.3g} and {d:.3g}"
        missed = not (math.isfinite(m) and math.isfinite(s)) or m + s < e - d or m - s > e + d
        off += missed
        colour = "#cf222e" if missed else "#3b78c3"
        out.append(
            f"<g><title>{escape(told)}</title>"
            + _box(x, step * 0.92, y(e + d), y(e - d), "#d5dbe1")
            + _box(x + step * 0.22, step * 0.48, y(m + s), y(m - s), colour)
            + f'<line x1="{x + step * 0.1:.1f}" x2="{x + step * 0.82:.1f}" y1="{y(m):.1f}" y2="{y(m):.1f}" '
            'stroke="#1b1f24" stroke-width="1.5"/></g>'
        )
    says = f"{latent.verdict}: {latent.why}" if latent.why else "ok: no channel is far from what the VAE expects"
    if off and not latent.why:
        says = f"ok, but for {off} of {n} channels, which one picture may well have"
    grey = f'<text x="{_LEFT}" y="{_TOP + _HIGH + 18}" fill="#57606a">'
    out.append(f"{grey}{n} channels; blue: mean and deviation, grey: what the VAE expects</text>")
    out.append(f'<text x="{_LEFT}" y="{_TOP + _HIGH + 36}" fill="#1b1f24">{escape(says)}</text>')
    return "\n".join([*out, "</svg>", ""])


def _box(x: float, width: float, top: float, bottom: float, colour: str) -> str:
    if not (math.isfinite(top) and math.isfinite(bottom)):
        return ""
    return f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{max(bottom - top, 1):.1f}" fill="{colour}"/>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two, about six of them."""
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    size = next((f * power for f in (1, 2, 5, 10) if f * power >= raw), power)
    first = math.ceil(low / size)
    return [round(size * (first + i), 10) for i in range(int((high - size * first) / size) + 1)]
