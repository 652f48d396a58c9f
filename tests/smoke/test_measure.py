"""What `Meter` says of a tensor against a look at each value, whatever the bits and however they come in pieces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatkit.smoke import blocks
from compatkit.smoke.measure import Meter, Numbers
from compatkit.smoke.number import FLOATS, bf16, decode, table

DTYPES = ["F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"]
WIDTH = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}


def measured(raw: bytes, dtype: str, piece: int = 1 << 20) -> Numbers:
    data = np.frombuffer(raw, np.uint8)
    meter = Meter(dtype, (data.size // WIDTH.get(dtype, 1),), data.size)
    for at in range(0, data.size, piece):
        meter.add(data[at : at + piece])
    return meter.finish()


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@given(st.sampled_from(DTYPES), st.binary(min_size=8, max_size=400), st.sampled_from([8, 16, 64, 4096]))
def test_counts_and_the_largest_are_exact(dtype: str, raw: bytes, piece: int) -> None:
    raw = raw[: len(raw) // 8 * 8]
    numbers = measured(raw, dtype, piece)
    data = np.frombuffer(raw, np.uint8)
    values = data.view("<f8") if dtype == "F64" else decode(data, dtype).astype(np.float64)
    finite = np.isfinite(values)
    assert numbers.nan == np.count_nonzero(np.isnan(values))
    assert numbers.inf == np.count_nonzero(np.isinf(values))
    assert numbers.max_abs == np.abs(values[finite]).max(initial=0.0)
    assert numbers.beyond == np.count_nonzero(np.abs(values[finite]) > 65504)
    assert numbers.first == (int((~finite).argmax()) if not finite.all() else -1)
    same = finite.all() and (np.all(data.reshape(-1, len(data) // len(values)) == data[: len(data) // len(values)]))
    zero = finite.all() and not values.any()
    assert numbers.constant == bool(same or zero)
    if numbers.constant:
        assert numbers.value == pytest.approx(float(values[0]), rel=1e-6) or values[0] == 0


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_samples_come_near_the_truth(dtype: str) -> None:
    draw = np.random.default_rng(0)
    values = (draw.standard_normal(1 << 20) * 0.02).astype(np.float32)
    values[draw.random(values.size) < 0.25] = 0.0
    raw = (bf16(values) if dtype == "BF16" else values.astype((WIDTH[dtype] == 2 and "<f2") or "<f4")).tobytes()
    numbers = measured(raw, dtype, 1 << 20)
    assert numbers.rms == pytest.approx(float(np.sqrt(np.mean(values**2))), rel=0.05)
    assert numbers.zeros == pytest.approx(0.25, abs=0.02)
    assert 0.8 * numbers.rms < numbers.usual < numbers.rms
    assert 0 < numbers.sampled < values.size


def test_what_is_usual_leaves_out_what_is_not() -> None:
    values = np.full(20_000, 0.02, np.float32)
    values[::2] *= -1
    values[77] = 1e6
    assert measured(values.tobytes(), "F32").usual == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize("piece", [4096, 8192, 40960])
def test_runs_of_zero_pages_grow_together(piece: int) -> None:
    values = np.random.default_rng(1).integers(1, 255, 100 * 4096, dtype=np.uint8)
    values[10 * 4096 : 30 * 4096] = 0
    values[50 * 4096 + 8 : 52 * 4096] = 0
    numbers = measured(values.tobytes(), "U8", piece)
    assert numbers.runs == [(10 * 4096, 30 * 4096), (51 * 4096, 52 * 4096)]


def test_pages_are_those_of_the_file() -> None:
    values = np.ones(64 * 1024, np.uint8)
    values[4096 - 100 : 8192 - 100] = 0  # one page of a file in which the tensor starts at byte 100
    meter = Meter("U8", (values.size,), values.size, offset=100)
    meter.add(values)
    assert meter.finish().runs == [(4096 - 100, 8192 - 100)]


def test_memory_does_not_grow_with_runs() -> None:
    values = np.ones(4096 * 4000, np.uint8)
    values.reshape(-1, 4096)[::2] = 0
    assert len(measured(values.tobytes(), "U8").runs) <= 64


@pytest.mark.parametrize("dtype", sorted(blocks.LAYOUTS))
@pytest.mark.filterwarnings("ignore")
def test_scales_stand_where_gguf_reads_them(dtype: str) -> None:
    """A scale made NaN (or the type's largest) changes what the gguf package makes of that block, and of no other."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[dtype]
    if kind not in gguf.quants._type_traits:
        pytest.skip(f"the gguf package does not decode {dtype}")
    size = blocks.BLOCKS[dtype][1]
    raw = np.random.default_rng(2).integers(1, 0x3C, (4, size), dtype=np.uint8)
    layout = blocks.LAYOUTS[dtype]
    for at, how in (*layout.scales, *layout.mins):
        changed = raw.copy()
        if how == "iq1m":
            changed[2, at + 1 : at + 8 : 2] |= 0xF0
        elif how in ("f16", "f32"):
            changed[2, at : at + (2 if how == "f16" else 4)] = 0xFF
        else:
            changed[2, at] = 0x7F if how == "ue4m3" else 0xFF
        found = blocks.measure(changed.reshape(-1), dtype)
        assert (found.nan, found.inf, found.first) == (1, 0, 2)
        before, after = (gguf.dequantize(x.reshape(1, -1), kind).reshape(4, -1) for x in (raw, changed))
        same = [bool(np.array_equal(before[i], after[i], equal_nan=True)) for i in range(4)]
        assert same == [True, True, False, True]
        if how in ("f16", "f32", "iq1m"):
            assert np.isnan(after[2]).any()


def test_tables_are_exact() -> None:
    assert table("F8_E4M3")[0x7E] == 448
    assert table("F8_E5M2")[0x7B] == 57344
    assert table("F8_E4M3")[1] == 2.0**-9
    assert table("F8_E8M0")[127] == 1
    assert np.isnan(table("F8_E8M0")[255])
    assert set(FLOATS) >= {"F16", "BF16", "F32", "F64"}
    np.testing.assert_array_equal(decode(np.array([0x21, 0x9F], np.uint8), "F4"), [0.5, 1.0, -6.0, -0.5])
