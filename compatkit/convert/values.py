"""Values of tensors: raw bytes as arrays, and the numbers they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from compatkit.vocabulary import Tensor

Array = NDArray[Any]

#: What holds the bits of each dtype; numpy has no type for some of them.
_RAW: dict[str, str] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E4M3FNUZ": "u1",
    "F8_E5M2FNUZ": "u1", "F8_E8M0": "u1", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8",
    "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


class Unreadable(ValueError):
    """Values of a type that nothing here can compute with."""


class Value(Struct, frozen=True):
    """One tensor: its dtype and shape, and where its bits come from.

    `load` gives the raw array (of `_RAW`'s type for the dtype); `ref` is the tensor of the source file that it is bit
    for bit, so that it can be copied without being held.
    """

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], Array]
    ref: Tensor | None = None

    def numbers(self) -> Array:
        """The values as float64, or float32 where the type is no wider."""
        return decode(self.load(), self.dtype)


def raw(data: bytes, dtype: str, shape: Sequence[int]) -> Array:
    """The raw array of a tensor's bytes. Raises Unreadable for packed types."""
    if dtype not in _RAW:
        raise Unreadable(f"tensors of type {dtype} cannot be cut")
    return np.frombuffer(data, dtype=np.dtype(_RAW[dtype])).reshape(tuple(shape))


def made(array: Array, dtype: str) -> Value:
    """A value that was computed."""
    kept = np.ascontiguousarray(array)
    return Value(dtype, tuple(array.shape), lambda: kept)


def decode(array: Array, dtype: str) -> Array:
    """Numbers of a raw array. Raises Unreadable for types that are no floats of a known kind."""
    if dtype in ("F64", "F32"):
        return array
    if dtype == "F16":
        return array.astype(np.float32)
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E5M2":
        return (array.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype == "F8_E4M3":
        return _e4m3()[array]
    if dtype in _RAW:
        return array.astype(np.float64)
    raise Unreadable(f"tensors of type {dtype} cannot be computed with")


def encode(numbers: Array, dtype: str) -> Array:
    """The nearest raw values of a dtype; only for F64, F32, F16 and BF16."""
    if dtype == "F64":
        return numbers.astype(np.float64)
    single = numbers.astype(np.float32)
    if dtype == "F32":
        return single
    with np.errstate(over="ignore"):
        if dtype == "F16":
            return numbers.astype(np.float16)
    bits = single.view(np.uint32)
    even = ((bits >> 16) & 1) + 0x7FFF
    return np.where(np.isnan(single), bits >> 16 | 0x40, (bits + even) >> 16).astype(np.uint16)


def can_hold(dtype: str) -> bool:
    """Whether `encode` can write this dtype."""
    return dtype in ("F64", "F32", "F16", "BF16")


def is_float(dtype: str) -> bool:
    """Whether the dtype holds numbers that `decode` knows."""
    return dtype in _FLOATS


def same(one: Value, other: Value) -> bool:
    """Whether two tensors are equal bit for bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.load().tobytes() == other.load().tobytes()


_table: list[Array] = []


def _e4m3() -> Array:
    if not _table:
        codes = np.arange(256)
        sign, exponent, fraction = codes >> 7, (codes >> 3) & 15, codes & 7
        value = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
        value = np.where((codes & 0x7F) == 0x7F, np.nan, value)
        _table.append(np.where(sign == 1, -value, value).astype(np.float32))
    return _table[0]
