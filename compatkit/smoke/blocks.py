"""Where the scales stand in each block type of ggml: all that can be NaN, Inf or zero in a quantised GGUF tensor.

Layouts are those of ggml's block structs as the gguf package 0.19.0 decodes them (`gguf/quants.py`). A field is
(offset in the block, kind); the first fields are multipliers, `mins` are added. Kinds: f16, f32, e8m0 (2**(byte - 127);
255 is NaN in the OCP specification), ue4m3 (fp8 without a sign; 0x7F is NaN), iq1m (a float16 in the top four bits of
four uint16).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compatkit.smoke.number import Bytes
from compatkit.smoke.weights import BLOCKS


class Layout(NamedTuple):
    """Scale fields of a block type."""

    scales: tuple[tuple[int, str], ...]
    mins: tuple[tuple[int, str], ...] = ()


_AT_0 = Layout(((0, "f16"),))

LAYOUTS: dict[str, Layout] = {
    "Q4_0": _AT_0,
    "Q4_1": Layout(((0, "f16"),), ((2, "f16"),)),
    "Q5_0": _AT_0,
    "Q5_1": Layout(((0, "f16"),), ((2, "f16"),)),
    "Q8_0": _AT_0,
    "Q2_K": Layout(((80, "f16"),), ((82, "f16"),)),
    "Q3_K": Layout(((108, "f16"),)),
    "Q4_K": Layout(((0, "f16"),), ((2, "f16"),)),
    "Q5_K": Layout(((0, "f16"),), ((2, "f16"),)),
    "Q6_K": Layout(((208, "f16"),)),
    "Q8_K": Layout(((0, "f32"),)),
    "IQ2_XXS": _AT_0,
    "IQ2_XS": _AT_0,
    "IQ2_S": _AT_0,
    "IQ3_XXS": _AT_0,
    "IQ3_S": _AT_0,
    "IQ1_S": _AT_0,
    "IQ1_M": Layout(((48, "iq1m"),)),
    "IQ4_NL": _AT_0,
    "IQ4_XS": _AT_0,
    "TQ1_0": Layout(((52, "f16"),)),
    "TQ2_0": Layout(((64, "f16"),)),
    "MXFP4": Layout(((0, "e8m0"),)),
    "NVFP4": Layout(tuple((i, "ue4m3") for i in range(4))),
    "Q1_0": _AT_0,
}


#: kind -> (unsigned view of one field, infinity's bits or None, the least NaN's bits)
_KINDS = {
    "f16": ("<u2", 0x7C00, 0x7C01),
    "f32": ("<u4", 0x7F800000, 0x7F800001),
    "iq1m": ("<u2", 0x7C00, 0x7C01),
    "e8m0": ("<u1", None, 0xFF),
    "ue4m3": ("<u1", None, 0x7F),
}
_SIGN_OFF = {"f16": 0x7FFF, "f32": 0x7FFFFFFF, "iq1m": 0x7FFF, "e8m0": 0xFF, "ue4m3": 0x7F}


class Scales(NamedTuple):
    """What the scales of a run of blocks say.

    `nan` and `inf` count fields, `first` is the block of the first that is not finite (-1: none). `size` [blocks] grows
    with the largest field of a block (magnitudes as bits, an order and no value): 0 where all of them are 0 or not
    finite.
    """

    nan: int
    inf: int
    first: int
    size: NDArray[Any]


def measure(raw: Bytes, dtype: str) -> Scales:
    """The scales of contiguous blocks of one type. Raises KeyError for a type whose layout is not known."""
    layout = LAYOUTS[dtype]
    step = BLOCKS[dtype][1]
    blocks = raw.size // step
    size: NDArray[Any] | None = None
    nan = inf = 0
    first = -1
    for at, kind in (*layout.scales, *layout.mins):
        bits = _magnitudes(raw, blocks, step, at, kind)
        _, infinite, least_nan = _KINDS[kind]
        if blocks and int(bits.max()) >= (least_nan if infinite is None else infinite):
            bad = bits >= (least_nan if infinite is None else infinite)
            nans = int(np.count_nonzero(bits >= least_nan))
            nan, inf = nan + nans, inf + int(np.count_nonzero(bad)) - nans
            where = int(bad.argmax())
            first = where if first < 0 else min(first, where)
            bits[bad] = 0
        size = bits if size is None else np.maximum(size, bits, out=size)
    return Scales(nan, inf, first, np.zeros(0, np.uint16) if size is None else size)


def _magnitudes(raw: Bytes, blocks: int, step: int, at: int, kind: str) -> NDArray[Any]:
    """[blocks], own memory: the bits of one field of every block, without a sign."""

    def field(offset: int) -> NDArray[Any]:
        return np.ndarray((blocks,), _KINDS[kind][0], raw, offset, (step,))

    if kind == "iq1m":
        parts = [field(at + 2 * i) & 0xF000 for i in range(4)]
        bits: NDArray[Any] = parts[0] >> 12 | parts[1] >> 8 | parts[2] >> 4 | parts[3]
        return bits & 0x7FFF
    out: NDArray[Any] = field(at) & np.array(_SIGN_OFF[kind], dtype=_KINDS[kind][0])
    return out
