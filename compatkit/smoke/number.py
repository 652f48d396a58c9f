"""Stored dtypes as numbers: what numpy has natively, and bfloat16, fp8, fp4 and power-of-two scales by table.

Names are those of `Header`: safetensors' for safetensors and torch files, ggml's for GGUF. All bytes are little-endian.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

#: dtypes that numpy reads as they stand.
NATIVE: dict[str, str] = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "<u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "<u1",
}  # fmt: skip


class Bits(NamedTuple):
    """A float dtype by its bits: width, unsigned view, mask of sign left out, infinity's bits, first normal's bits.

    A magnitude equal to `infinite` is Inf and above it NaN; `infinite` is None where the dtype has no infinity, and
    then `nan` lists its NaN magnitudes.
    """

    view: str
    magnitude: int
    infinite: int | None
    normal: int
    nan: tuple[int, ...] = ()


#: IEEE 754 and its relatives; fp8 by the OCP specification, the FNUZ kinds (one NaN, at minus zero) by ONNX's.
FLOATS: dict[str, Bits] = {
    "F16": Bits("<u2", 0x7FFF, 0x7C00, 0x0400),
    "BF16": Bits("<u2", 0x7FFF, 0x7F80, 0x0080),
    "F32": Bits("<u4", 0x7FFFFFFF, 0x7F800000, 0x00800000),
    "F64": Bits("<u8", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000, 0x0010000000000000),
    "F8_E4M3": Bits("<u1", 0x7F, None, 0x08, (0x7F,)),
    "F8_E5M2": Bits("<u1", 0x7F, 0x7C, 0x04),
}
#: Bytes that decode by a table of 256 values.
_TABLES = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"})

#: The eight magnitudes of fp4 (E2M1).
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@cache
def table(dtype: str) -> Floats:
    """float32 [256]: the value of every byte of an fp8 dtype or of F8_E8M0 (2**(byte - 127), 255 is NaN).

    Raises KeyError for any other dtype.
    """
    byte = np.arange(256)
    if dtype == "F8_E8M0":
        with np.errstate(over="ignore"):
            out = np.ldexp(np.float32(1), byte - 127).astype(np.float32)
        out[255] = np.nan
        return out
    exponent_bits, bias, special = {
        "F8_E4M3": (4, 7, "fn"),
        "F8_E5M2": (5, 15, "ieee"),
        "F8_E4M3FNUZ": (4, 8, "fnuz"),
        "F8_E5M2FNUZ": (5, 16, "fnuz"),
    }[dtype]
    mantissa_bits = 7 - exponent_bits
    sign = np.where(byte & 0x80, -1.0, 1.0)
    exponent = (byte & 0x7F) >> mantissa_bits
    mantissa = (byte & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    normal = (1 + mantissa) * 2.0 ** (exponent - bias)
    out = (sign * np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), normal)).astype(np.float32)
    if special == "fn":
        out[[0x7F, 0xFF]] = np.nan
    elif special == "fnuz":
        out[0x80] = np.nan
    else:
        top = exponent == 31
        out[top] = np.where(mantissa[top] == 0, sign[top] * np.inf, np.nan)
    return out


def decode(raw: Bytes, dtype: str) -> Floats:
    """The values of contiguous bytes as a flat float32 array (a view where the bytes are F32 already).

    Integers become the numbers they are. C64 gives real and imaginary parts in turn. F4 gives two values a byte, the
    low half first.

    Raises:
        KeyError: a dtype that is not known here, among them the block types of GGUF.
    """
    if dtype == "F32":
        return raw.view("<f4")
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "C64":
        return raw.view("<f4")
    if dtype in _TABLES:
        return np.take(table(dtype), raw)
    if dtype == "F4":
        halves = np.stack((raw & 15, raw >> 4), axis=-1).reshape(-1)
        values = np.array([*_E2M1, *(-v for v in _E2M1)], dtype=np.float32)
        return np.take(values, halves)
    with np.errstate(over="ignore", invalid="ignore"):  # a float64 beyond float32 becomes Inf; a NaN stays one
        return raw.view(NATIVE[dtype]).astype(np.float32)


def bf16(values: Floats) -> NDArray[np.uint16]:
    """float32 -> the bits of bfloat16, rounded to nearest even as torch rounds; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    out: NDArray[np.uint16] = np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
    return out


def row_decoder(dtype: str) -> Callable[[Bytes], Floats]:
    """What turns rows of GGUF blocks, uint8 [rows, bytes of a row], into float32 [rows, columns].

    Raises:
        KeyError: ggml's type is not one that the gguf package dequantises.
    """
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[dtype]
    if kind not in quants._type_traits:
        raise KeyError(dtype)

    def rows(blocks: Bytes) -> Floats:
        with np.errstate(all="ignore"):  # Inf and NaN scales are what is looked for
            return quants.dequantize(blocks, kind).astype(np.float32, copy=False)

    return rows
