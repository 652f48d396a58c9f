"""Every packing that the rules know: clean files give nothing, a broken scale is found beside its weight."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compatkit.identify.packing import Packings
from compatkit.knowledge.store import load
from tests.smoke.models import Raw, stored, write
from tests.support.files import SAFETENSORS_BITS
from tests.support.packed import SCHEMES, Packed, packed

SHAPES = {
    f"layers.{i}.{name}.weight": shape
    for i in range(3)
    for name, shape in {"attention.qkv": (384, 128), "feed_forward.w1": (256, 128), "norm": (128,)}.items()
}
FLOATS = ("F32", "F16", "BF16")


def filled(made: Packed) -> dict[str, Raw]:
    """Contents as a quantiser would leave them: scales positive and small, codes any."""
    draw = np.random.default_rng(0)
    out: dict[str, Raw] = {}
    for name, tensor in made.header.tensors.items():
        if name in made.contents:
            out[name] = Raw(tensor.dtype, made.contents[name], tensor.shape)
        elif tensor.dtype in FLOATS:
            values = draw.random(tensor.shape) * 0.01 + 0.01
            out[name] = stored(
                np.asarray(values if "scale" in name or "absmax" in name else values - 0.015), tensor.dtype
            )
        elif tensor.dtype.startswith("F8_E4M3") or tensor.dtype.startswith("F8_E5M2"):
            out[name] = Raw(
                tensor.dtype, draw.integers(0x20, 0x60, prod(tensor.shape), dtype=np.uint8).tobytes(), tensor.shape
            )
        else:
            size = prod(tensor.shape) * SAFETENSORS_BITS[tensor.dtype] // 8
            out[name] = Raw(tensor.dtype, draw.integers(1, 120, size, dtype=np.uint8).tobytes(), tensor.shape)
    return out


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_packing(scan: Any, tmp_path: Path, scheme: str) -> None:
    made = packed(SHAPES, scheme)
    tensors = filled(made)
    metadata = {k: str(v) for k, v in made.header.metadata.items()}
    report = scan(write(tmp_path / "clean.safetensors", tensors, metadata))
    assert [(f.rule, f.message) for f in report.findings if f.rule.startswith("smoke/")] == []

    unpacked = Packings(load().table("packings")).unpack(made.header, made.read)
    floats = [n for n in unpacked.companions if made.header.tensors[n].dtype in FLOATS]
    for name in floats[:6]:
        tensor = made.header.tensors[name]
        values = np.full(tensor.shape, 0.01, np.float32)
        values.reshape(-1)[-1] = np.nan
        broken = {**tensors, name: stored(values, tensor.dtype)}
        found = scan(write(tmp_path / "broken.safetensors", broken, metadata)).findings
        (finding,) = (f for f in found if f.rule.startswith("smoke/") and f.level == "error")
        assert (finding.rule, finding.evidence["tensor"]) == ("smoke/scale", name)
        assert unpacked.companions[name] in finding.message


def test_most_packings_have_scales_to_break() -> None:
    """So that the test above cannot pass for want of anything to look at."""
    schemes = Packings(load().table("packings"))
    with_scales = 0
    for scheme in SCHEMES:
        made = packed(SHAPES, scheme)
        names = schemes.unpack(made.header, made.read).companions
        with_scales += any(made.header.tensors[n].dtype in FLOATS for n in names)
    assert with_scales > len(SCHEMES) // 2
