"""The numbers of one tensor, from its bytes streamed once in pieces: what `scan` judges.

Exact for every value: NaN, Inf, largest magnitude, all zero, constant, values beyond a limit, zeroed pages of the file.
From a sample of up to 1 in 64 values (all of a small tensor): root mean square, share of zeros and of denormals, and
what the values usually are (their root mean square without the largest hundredth). The
speed comes from integers: the bits of floats order as their magnitudes do, so that two maxima (of the bits as unsigned
and as signed numbers) say all that matters of a piece without a copy of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from compatkit.smoke import blocks
from compatkit.smoke.number import FLOATS, NATIVE, Bits, Bytes, Floats, decode, row_decoder, table
from compatkit.smoke.weights import BLOCKS

#: Bytes looked at in one go: larger than overhead, smaller than a shared cache.
PIECE = 2 << 20
#: The unit of the search for bytes that were never written.
PAGE = 4096
#: Tensors of so many bytes at most (statistics, scales) are decoded as a whole.
SMALL = 1 << 18
#: Runs of zero pages that are kept for each tensor.
RUNS = 64
#: A value beyond this has no float16.
LIMIT = 65504.0

_SAMPLE_RUN = 1 << 10  # neighbouring values of a sample
_SAMPLE_ALL = 1 << 16  # a piece of so many values is a sample by itself
_SAMPLE_SHARE = 64
_FEW, _FEW_IN_ALL = 1 << 10, 1 << 16  # values that are sorted, of a piece and of a tensor
_SPREAD_VALUES = 1 << 17  # no more of them are taken for the statistics
_TOP, _SPREAD = 8, 24  # GGUF blocks dequantised of each piece: those with the largest scales, and some others


class Numbers(Struct):
    """What was measured of one tensor.

    `kind`: float, blocks (GGUF), scale (F8_E8M0), integer, or none (a dtype that nothing here reads). `nan` and `inf`
    count values, of blocks their scales. `first` and `at` are the flat indexes of the first value (or block) that is
    not finite and of a largest one, -1: none or not known. `max_abs` and `rms` leave out what is not finite; for blocks
    they are those of dequantised samples, the ones with the largest scales among them. `zeros` and `denormals` are
    shares of a sample (0 … 1; of denormals: of the values that are not 0). `beyond` counts magnitudes over `LIMIT` (of
    blocks: in samples), `lowest` is the least value of a small tensor. `value` is that of a constant tensor. `runs` are
    (start, end) in the tensor's bytes of zeroed pages. `digest` tells equal tensors.
    """

    kind: str = "none"
    nan: int = 0
    inf: int = 0
    first: int = -1
    at: int = -1
    max_abs: float = 0.0
    beyond: int = 0
    lowest: float | None = None
    rms: float = 0.0
    usual: float = 0.0
    zeros: float = 0.0
    denormals: float = 0.0
    constant: bool = False
    value: float | None = None
    blocks: int = 0
    zero_blocks: int = 0
    zero_rows: int = 0
    runs: list[tuple[int, int]] = field(default_factory=list)
    run_bytes: int = 0
    digest: str = ""
    sampled: int = 0


class Meter:
    """Takes the pieces of one tensor in order; `numbers` are what they come to."""

    def __init__(
        self, dtype: str, shape: tuple[int, ...], nbytes: int, offset: int = 0, *, scale: bool = False
    ) -> None:
        """`offset` is where the tensor starts in its file (for pages). `scale`: its bytes are F8_E8M0, whatever the
        dtype says."""
        self.dtype = "F8_E8M0" if scale else dtype
        self.numbers = Numbers()
        self._offset, self._done, self._nbytes = offset, 0, nbytes
        self._hash = hashlib.blake2b(digest_size=16)
        self._first: int | None = None  # bits of the first value, while all are equal to it
        self._same = True
        self._squares = self._zeros = self._denormals = 0.0
        self._few: list[Floats] = []
        self._kept = 0
        self._row = nbytes // max(1, _rows(shape))
        self._scale = -1  # bits of the largest scale so far
        self.align = 8
        if dtype in BLOCKS:
            self.numbers.kind = "blocks"
            # whole rows where one fits in a piece, so that a row of zeros is seen as one
            self.align = self._row if 0 < self._row <= PIECE else BLOCKS[dtype][1]
        elif self.dtype == "F8_E8M0":
            self.numbers.kind = "scale"
        elif dtype in FLOATS or dtype in ("C64", "F4"):
            self.numbers.kind = "float"
        elif dtype in NATIVE or dtype.startswith("F8_"):
            self.numbers.kind = "float" if dtype.startswith("F8_") else "integer"

    def add(self, raw: Bytes) -> None:
        """The next piece: whole values or blocks."""
        if not raw.size:
            return
        self._pages(raw)
        kind = self.numbers.kind
        if kind == "blocks":
            self._blocks(raw)
        elif self.dtype in FLOATS:
            self._floats(raw, FLOATS[self.dtype])
        elif kind in ("float", "scale"):
            self._decoded(raw)
        elif kind == "integer":
            self._integers(raw)
        self._digest(raw)
        self._done += raw.size

    def finish(self) -> Numbers:
        """The numbers of all pieces."""
        n = self.numbers
        if n.sampled:
            n.rms = float(np.sqrt(self._squares / n.sampled))
            n.zeros = self._zeros / n.sampled
            other = n.sampled - self._zeros
            n.denormals = self._denormals / other if other else 0.0
            few = np.sort(np.concatenate(self._few))[: -max(1, self._kept // 100) or None]
            n.usual = float(np.sqrt(np.square(few, dtype=np.float64).mean())) if few.size else 0.0
        n.constant = self._same and self._first is not None and not (n.nan or n.inf)
        if n.kind == "blocks":
            n.constant = n.blocks > 0 and n.zero_blocks == n.blocks
            n.value = 0.0 if n.constant else None
        elif not n.constant:
            n.value = None
        n.digest = self._hash.hexdigest()
        return n

    # -- plain numbers ------------------------------------------------------------------------------------------------

    def _floats(self, raw: Bytes, bits: Bits) -> None:
        n = self.numbers
        values = raw.view(bits.view)
        start = self._done // values.itemsize
        highest = int(values.max())
        signed = int(values.view(bits.view.replace("u", "i")).max())
        magnitude = max(highest & bits.magnitude if highest > bits.magnitude else highest, signed)
        if magnitude >= (bits.infinite if bits.infinite is not None else bits.nan[0]):
            magnitude = self._not_finite(values & bits.magnitude, bits, start)
        largest = _value(magnitude, self.dtype)
        if largest > n.max_abs or n.at < 0:
            n.max_abs = max(largest, n.max_abs)
            n.at = start
        if largest > LIMIT:
            self._beyond(values & bits.magnitude, bits, start, magnitude)
        self._constant(values)
        if self._nbytes <= SMALL:
            self._lowest(decode(raw, self.dtype))
        self._sample(values, bits)

    def _not_finite(self, magnitudes: NDArray[Any], bits: Bits, start: int) -> int:
        """Counts what is not finite; the bits of the largest finite magnitude."""
        n = self.numbers
        least = bits.nan[0] if bits.infinite is None else bits.infinite
        bad = magnitudes >= least
        infinite = 0 if bits.infinite is None else int(np.count_nonzero(magnitudes == bits.infinite))
        n.inf += infinite
        n.nan += int(np.count_nonzero(bad)) - infinite
        if n.first < 0:
            n.first = start + int(bad.argmax())
        return int(np.max(magnitudes, initial=0, where=~bad))

    def _beyond(self, magnitudes: NDArray[Any], bits: Bits, start: int, largest: int) -> None:
        least = bits.nan[0] if bits.infinite is None else bits.infinite
        limit = int(np.array(LIMIT, dtype=np.float64).astype(_FLOAT[self.dtype]).view(_UINT[self.dtype]))
        limit = limit >> 16 if self.dtype == "BF16" else limit
        self.numbers.beyond += int(np.count_nonzero((magnitudes > limit) & (magnitudes < least)))
        if _value(largest, self.dtype) >= self.numbers.max_abs:
            self.numbers.at = start + int(np.argmax(magnitudes == largest))

    def _decoded(self, raw: Bytes) -> None:
        values = decode(raw, self.dtype)
        n = self.numbers
        start = self._done * values.size // raw.size
        bad = ~np.isfinite(values)
        if bad.any():
            nans = int(np.count_nonzero(np.isnan(values)))
            n.nan, n.inf = n.nan + nans, n.inf + int(np.count_nonzero(bad)) - nans
            n.first = start + int(bad.argmax()) if n.first < 0 else n.first
            values = np.where(bad, 0, values)
        if self._nbytes <= SMALL:
            self._lowest(values)
        largest = float(np.abs(values).max())
        n.beyond += int(np.count_nonzero(np.abs(values) > LIMIT))
        if largest > n.max_abs or n.at < 0:
            n.max_abs, n.at = max(largest, n.max_abs), start + int(np.abs(values).argmax())
        self._constant(raw)
        if self._first is not None and n.value is None:
            n.value = float(values[0])
        self._sampled(values)

    def _integers(self, raw: Bytes) -> None:
        n = self.numbers
        values = raw.view(NATIVE[self.dtype])
        low, high = int(values.min()), int(values.max())
        n.max_abs = max(n.max_abs, float(max(-low, high)))
        self._constant(values)

    def _lowest(self, values: Floats) -> None:
        with np.errstate(invalid="ignore"):
            lowest = float(np.min(values, initial=np.inf, where=np.isfinite(values)))
        if np.isfinite(lowest):
            self.numbers.lowest = lowest if self.numbers.lowest is None else min(lowest, self.numbers.lowest)

    def _constant(self, values: NDArray[Any]) -> None:
        if not self._same:
            return
        bits = values if values.dtype.kind == "u" else values.view(f"<u{values.itemsize}")
        first = int(bits[0])
        if self._first is None:
            self._first = first
            if self.numbers.kind != "integer" and self.dtype in FLOATS:
                magnitude = first & FLOATS[self.dtype].magnitude
                self.numbers.value = _value(magnitude, self.dtype) * (1 if magnitude == first else -1)
            elif self.numbers.kind == "integer":
                self.numbers.value = float(values[0])
        # a look at a few values settles nearly every tensor
        last = int(bits[-1])
        if self.numbers.kind == "float" and self.numbers.max_abs == 0.0:
            self.numbers.value = 0.0  # zeros of either sign are all zero
            return
        self._same = first == self._first == last and bool((bits == self._first).all())

    def _sample(self, values: NDArray[Any], bits: Bits) -> None:
        if values.size > _SAMPLE_ALL:
            runs = values.size // _SAMPLE_RUN
            values = values[: runs * _SAMPLE_RUN].reshape(runs, _SAMPLE_RUN)[::_SAMPLE_SHARE].reshape(-1)
        magnitudes = values & bits.magnitude
        self._denormals += int(np.count_nonzero(magnitudes < bits.normal)) - int(np.count_nonzero(magnitudes == 0))
        self._sampled(decode(np.ascontiguousarray(values).view(np.uint8), self.dtype))

    def _sampled(self, values: Floats) -> None:
        values = values[::_SAMPLE_SHARE] if values.size > _SAMPLE_ALL << 2 else values
        with np.errstate(all="ignore"):
            squares = float(np.square(values, dtype=np.float64).sum())  # no BLAS: its threads cost more than they bring
            if not np.isfinite(squares):
                values = np.where(np.isfinite(values), values, 0)
                squares = float(np.square(values, dtype=np.float64).sum())
        if self._kept < _FEW_IN_ALL:
            self._few.append(np.abs(values[:: max(1, values.size // _FEW)]))
            self._kept += self._few[-1].size
        self._squares += squares
        self._zeros += values.size - int(np.count_nonzero(values))
        self.numbers.sampled += values.size

    # -- GGUF blocks --------------------------------------------------------------------------------------------------

    def _blocks(self, raw: Bytes) -> None:
        n = self.numbers
        step = BLOCKS[self.dtype][1]
        if self.dtype not in blocks.LAYOUTS:
            n.kind = "none"
            return
        start = self._done // step
        scales = blocks.measure(raw, self.dtype)
        count = scales.size.size
        n.blocks += count
        n.nan, n.inf = n.nan + scales.nan, n.inf + scales.inf
        if scales.first >= 0 and n.first < 0:
            n.first = start + scales.first
        zero = scales.size == 0
        zeros = int(np.count_nonzero(zero)) - (scales.nan + scales.inf > 0)
        if zeros > 0:
            n.zero_blocks += zeros
            per_row = self._row // step
            if per_row and count % per_row == 0:
                n.zero_rows += int(np.count_nonzero(zero.reshape(-1, per_row).all(axis=1)))
        self._dequantised(raw, step, scales.size, start)

    def _dequantised(self, raw: Bytes, step: int, size: NDArray[Any], start: int) -> None:
        """Samples: the blocks with the largest scales, and some spread over all."""
        n = self.numbers
        try:
            decoder = row_decoder(self.dtype)
        except KeyError:
            return
        few = _SPREAD if n.sampled < _SPREAD_VALUES else 1
        chosen = np.linspace(0, size.size - 1, min(few, size.size)).astype(np.int64)
        highest = int(size.max())
        if highest <= self._scale:  # no larger scale than before: no larger values
            top = chosen[:0]
        else:
            top = np.argpartition(size, -_TOP)[-_TOP:] if size.size > _TOP else np.arange(size.size)
            self._scale = highest
        both = raw.reshape(-1, step)[np.concatenate((top, chosen))]
        values = decoder(both)
        with np.errstate(all="ignore"):
            finite = np.where(np.isfinite(values), values, 0)
        magnitudes = np.abs(finite[: top.size]).max(axis=1, initial=0)
        if magnitudes.size and (float(magnitudes.max()) > n.max_abs or n.at < 0):
            n.max_abs, n.at = max(float(magnitudes.max()), n.max_abs), start + int(top[int(magnitudes.argmax())])
        self._sampled(finite[top.size :].reshape(-1))
        n.beyond += int(np.count_nonzero(np.abs(finite[: top.size]) > LIMIT))

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _pages(self, raw: Bytes) -> None:
        """Whole pages of the file that hold nothing but zero bytes."""
        begin = self._offset + self._done
        skip = -begin % PAGE
        pages = (raw.size - skip) // PAGE
        if pages <= 0:
            return
        words = raw[skip : skip + pages * PAGE].view("<u8").reshape(pages, PAGE // 8)
        candidates = np.flatnonzero(words[:, 0] == 0)
        if not candidates.size:
            return
        empty = candidates[~words[candidates].any(axis=1)]
        if not empty.size:
            return
        n = self.numbers
        n.run_bytes += int(empty.size) * PAGE
        for first, last in _streaks(empty):
            span = (self._done + skip + first * PAGE, self._done + skip + last * PAGE)
            if n.runs and n.runs[-1][1] == span[0]:
                n.runs[-1] = (n.runs[-1][0], span[1])
            elif len(n.runs) < RUNS:
                n.runs.append(span)

    def _digest(self, raw: Bytes) -> None:
        """A piece of each piece: equal tensors have equal digests, others nearly never (equality is checked)."""
        self._hash.update(raw[:2048].tobytes())
        self._hash.update(raw[-2048:].tobytes())


_FLOAT = {"F16": "<f2", "BF16": "<f4", "F32": "<f4", "F64": "<f8", "F8_E4M3": "<f4", "F8_E5M2": "<f4"}
_UINT = {"F16": "<u2", "BF16": "<u4", "F32": "<u4", "F64": "<u8", "F8_E4M3": "<u4", "F8_E5M2": "<u4"}


def _value(magnitude: int, dtype: str) -> float:
    """The number that the bits of a magnitude stand for."""
    if dtype.startswith("F8_"):
        return float(table(dtype)[magnitude])
    if dtype == "BF16":
        return float(np.array(magnitude << 16, dtype="<u4").view("<f4"))
    return float(np.array(magnitude, dtype=_UINT[dtype]).view(_FLOAT[dtype]))


def _streaks(indexes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring indexes, as (first, one after the last)."""
    breaks = np.flatnonzero(np.diff(indexes) != 1)
    starts = np.concatenate(([0], breaks + 1))
    ends = np.concatenate((breaks, [indexes.size - 1]))
    for a, b in zip(starts.tolist(), ends.tolist(), strict=True):
        yield int(indexes[a]), int(indexes[b]) + 1


def _rows(shape: tuple[int, ...]) -> int:
    rows = 1
    for side in shape[:-1]:
        rows *= side
    return rows
