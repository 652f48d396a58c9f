"""Files for the eye: the picture as PNG, and what each layer of a forward gave as an SVG.

The plot is written by hand: a few hundred bars and labels are a page of SVG, which every browser and report shows and
scales, and matplotlib would be 60 MB of installation for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from compatkit.smoke.picture import as_image

#: The largest float16.
FP16 = 65504.0


class Bar(NamedTuple):
    """One operation or module of a forward: its name, its largest magnitude, how many of its values were not finite."""

    name: str
    max_abs: float
    nonfinite: int = 0


def save_png(array: ArrayLike, path: str | Path) -> str:
    """Write a picture (as `picture.as_image` takes it, 0 … 1) as PNG; what is not finite becomes magenta.

    Returns the path as it was given. Raises OSError if it cannot be written, ImportError without pillow.
    """
    from PIL import Image

    image = as_image(array)
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    bad = ~np.isfinite(image).all(axis=2)
    pixels = (np.clip(np.where(np.isfinite(image), image, 0.0), 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
    pixels[bad] = (255, 0, 255)
    Image.fromarray(pixels, "RGB").save(path, format="PNG")
    return str(path)


def activation_plot(bars: Sequence[Bar], title: str = "") -> str:
    """The text of an SVG: one bar for each layer in the order they ran, on a logarithmic scale, with the end of fp16.

    Bars are blue, orange above a quarter of fp16's range, red beyond it or where a value was not finite; each shows its
    name and number where the mouse rests on it. The first that
    is beyond fp16 or not finite is named, or the largest.
    """
    left, top, high, bottom = 62, 46, 300, 30
    step = max(1.0, min(14.0, 1000 / max(1, len(bars))))
    wide = max(360.0, step * len(bars))
    across, down = round(left + wide + 24), top + high + bottom
    finite = [b.max_abs for b in bars if 0 < b.max_abs < math.inf]
    least = math.floor(math.log10(max(min(finite, default=0.01), 1e-8)))
    most = math.ceil(math.log10(max(max(finite, default=1.0), FP16 * 1.2)))

    def y(value: float) -> float:
        at = (math.log10(min(max(value, 10.0**least), 10.0**most)) - least) / max(1, most - least)
        return top + high * (1 - at)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{across}" height="{down}" viewBox="0 0 {across} {down}" '
        'font-family="system-ui, sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{left}" y="18" font-size="14" font-weight="600" fill="#1b1f24">{escape(title)}</text>',
    ]
    decades = range(least, most + 1, max(1, (most - least) // 8))
    for power in decades:
        out.append(_line(left, y(10.0**power), left + wide, "#e4e7eb"))
        out.append(
            f'<text x="{left - 6}" y="{y(10.0**power) + 4:.1f}" text-anchor="end" fill="#57606a">1e{power}</text>'
        )
    for i, bar in enumerate(bars):
        broken = bar.nonfinite > 0 or not math.isfinite(bar.max_abs)
        colour = "#cf222e" if broken or bar.max_abs > FP16 else "#d98200" if bar.max_abs > FP16 / 4 else "#3b78c3"
        head = top if not math.isfinite(bar.max_abs) else y(bar.max_abs)
        note = f", {bar.nonfinite:,} not finite" if bar.nonfinite else ""
        out.append(
            f'<rect x="{left + i * step:.2f}" y="{head:.1f}" width="{max(step * 0.86, 0.8):.2f}" '
            f'height="{max(top + high - head, 1):.1f}" fill="{colour}">'
            f"<title>{escape(bar.name)}: {bar.max_abs:.4g}{note}</title></rect>"
        )
    out.append(_line(left, y(FP16), left + wide, "#cf222e", dash=True))
    out.append(f'<text x="{left + 4}" y="{y(FP16) - 4:.1f}" fill="#cf222e">fp16 ends: 65504</text>')
    out += _named(bars, left, step, wide, top + high + 20)
    return "\n".join([*out, "</svg>", ""])


def _line(x1: float, y: float, x2: float, colour: str, dash: bool = False) -> str:
    style = ' stroke-dasharray="5 4"' if dash else ""
    return f'<line x1="{x1}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y:.1f}" stroke="{colour}"{style}/>'


def _named(bars: Sequence[Bar], left: float, step: float, wide: float, below: float) -> Iterable[str]:
    """Below the bars: the first that is beyond fp16 or not finite, else the largest."""
    if not bars:
        return [f'<text x="{left}" y="{below}" fill="#57606a">nothing ran</text>']
    broken = next((i for i, b in enumerate(bars) if b.nonfinite or not b.max_abs <= FP16), None)
    at = broken if broken is not None else max(range(len(bars)), key=lambda i: bars[i].max_abs)
    bar = bars[at]
    finite = not bar.nonfinite and math.isfinite(bar.max_abs)
    what = "largest" if broken is None else "first beyond fp16" if finite else "first that is not finite"
    x = left + (at + 0.5) * step
    end = "end" if at * step > wide / 2 else "start"
    return [
        f'<path d="M{x:.1f} {below - 16:.1f} l-4 7 h8 z" fill="#1b1f24"/>',
        f'<text x="{x:.1f}" y="{below + 4:.1f}" text-anchor="{end}" fill="#1b1f24">'
        f"{what}: {escape(bar.name)} {bar.max_abs:.4g}</text>",
    ]
