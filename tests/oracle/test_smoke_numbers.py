"""Numbers of stored weights against torch's own: every byte of fp8, bfloat16's rounding, counts and extremes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from compatkit.smoke.measure import Meter  # noqa: E402
from compatkit.smoke.number import bf16, table  # noqa: E402

FP8 = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


@pytest.mark.parametrize("dtype", FP8)
def test_every_byte_is_what_torch_makes_of_it(dtype: str) -> None:
    theirs = torch.arange(256, dtype=torch.uint8).view(getattr(torch, FP8[dtype])).float().numpy()
    np.testing.assert_array_equal(table(dtype), theirs)


def test_bfloat16_rounds_as_torch_does() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    values = bits.view(np.float32)
    theirs = torch.from_numpy(values.copy()).bfloat16()
    ours = torch.from_numpy(bf16(values)).view(torch.bfloat16)
    assert torch.equal(ours.isnan(), theirs.isnan())
    keep = ~theirs.isnan()
    assert torch.equal(ours[keep].view(torch.uint16), theirs[keep].view(torch.uint16))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_extremes_are_torchs(dtype: str) -> None:
    own = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[dtype]
    values = torch.randn(3_000_000, generator=torch.Generator().manual_seed(0)).to(own)
    raw = values.view(torch.uint8).numpy()
    meter = Meter(dtype, (values.numel(),), raw.size)
    for at in range(0, raw.size, 1 << 20):
        meter.add(raw[at : at + (1 << 20)])
    low, high = torch.aminmax(values)
    assert meter.finish().max_abs == max(-float(low), float(high))
