"""The number a change is multiplied with: alpha / rank, where it stands, and how it goes into the matrices and back."""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from compatkit.convert.cut import Refused
from compatkit.convert.values import Value, can_hold, decode, encode, made


class Alpha(Struct, frozen=True):
    """An alpha: the number, and the tensor where it was one (dtype None: it stood in the metadata)."""

    number: float
    dtype: str | None = None
    shape: tuple[int, ...] = ()
    value: Value | None = None


def alpha_of(value: Value) -> Alpha:
    """Read an alpha tensor. Raises Refused for one that is no single number."""
    array = value.numbers().reshape(-1)
    if array.size != 1:
        raise Refused(f"its alpha is {array.size} numbers")
    return Alpha(float(array[0]), value.dtype, value.shape, value)


def alpha_value(alpha: Alpha, dtype: str) -> Value:
    """The tensor of an alpha, in its own dtype or `dtype`, in F32 or F64 where that cannot hold it."""
    if alpha.value is not None:
        return alpha.value
    number = np.asarray(alpha.number, dtype=np.float64)
    for kind in (alpha.dtype or dtype, dtype, "F32", "F64"):
        if can_hold(kind):
            array = encode(number.reshape(-1), kind)
            if kind == "F64" or np.array_equal(decode(array, kind), number.reshape(-1), equal_nan=True):
                return made(array.reshape(alpha.shape), kind)
    raise AssertionError  # F64 holds every number


def factor(alpha: Alpha | None, rank: int) -> float:
    """alpha / rank; 1 without an alpha. Raises Refused for a scale that no matrix can take up."""
    if alpha is None:
        return 1.0
    if not rank:
        raise Refused("its rank is 0")
    scale = alpha.number / rank
    if not isfinite(scale) or scale == 0:
        raise Refused(f"its alpha is {alpha.number:g}")
    return scale


class Folded(NamedTuple):
    """A matrix with the scale in it, and whether it had to become wider for that."""

    value: Value
    wider: bool


def fold(value: Value, scale: float) -> Folded:
    """A matrix times a scale: in its own dtype where that is exact, else in a wider one from which it can be had back.

    16-bit matrices go to float32 (exact to one part in 16 million), float32 to float64, unless no bit is lost.
    """
    if scale == 1:
        return Folded(value, False)
    numbers = value.numbers().astype(np.float64)
    product = numbers * scale
    kinds = [value.dtype] if can_hold(value.dtype) else []
    for kind in [*kinds, "F32", "F64"]:
        array = encode(product, kind)
        back = decode(array, kind).astype(np.float64)
        if kind == value.dtype and kind != "F64":
            good = np.array_equal(back, product, equal_nan=True)
        else:
            good = _returns(back, scale, numbers, value.dtype)
        if good or kind == "F64":
            return Folded(made(array, kind), kind != value.dtype)
    raise AssertionError


def unfold(value: Value, scale: float, dtype: str) -> Value | None:
    """The matrix that `fold` made `value` of, in its dtype; None if it was another."""
    if scale == 1:
        array = encode(value.numbers(), dtype) if can_hold(dtype) else value.load()
        kept = value.dtype == dtype or bool(np.array_equal(decode(array, dtype), value.numbers(), equal_nan=True))
        return (value if value.dtype == dtype else made(array, dtype)) if kept else None
    if not can_hold(dtype):
        return None
    numbers = value.numbers().astype(np.float64)
    array = encode(numbers / scale, dtype)
    again = fold(made(array, dtype), scale).value
    # parts that were joined share the widest type of all of them: numbers count, not types
    if not np.array_equal(again.numbers().astype(np.float64), value.numbers().astype(np.float64), equal_nan=True):
        return None
    return made(array, dtype)


def _returns(back: np.ndarray, scale: float, numbers: np.ndarray, dtype: str) -> bool:
    if not can_hold(dtype):
        return True  # 8 bits: nothing here writes them, so there is no way back to keep open
    with np.errstate(over="ignore", invalid="ignore"):
        again = decode(encode(back / scale, dtype), dtype)
    whole = np.isfinite(back).all() or not np.isfinite(numbers).all()
    return bool(np.array_equal(again, numbers, equal_nan=True) and whole)
