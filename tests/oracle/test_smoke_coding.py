"""Packed weights unpacked with torch: against the gguf package, torch's own fp8, and the definitions of the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from compatkit.smoke import ggml  # noqa: E402
from compatkit.smoke.coding import Undecodable, coding, e4m3, untile  # noqa: E402
from compatkit.vocabulary import Tensor  # noqa: E402

ROWS, COLUMNS = 8, 512


@pytest.mark.parametrize("kind", sorted(ggml.FORMATS))
def test_every_block_format_gives_what_the_gguf_package_gives(kind: str) -> None:
    from gguf import GGMLQuantizationType, quants

    values, nbytes = ggml.SIZES[kind]
    raw = np.random.default_rng(1).integers(0, 256, (37, nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted = quants.dequantize(raw, GGMLQuantizationType[kind]).reshape(-1)
    out = torch.empty(37 * values)
    ggml.unpack(torch.from_numpy(raw).flatten(), kind, out)
    assert np.allclose(out.numpy(), wanted, rtol=1e-6, atol=0, equal_nan=True)


def test_blocks_are_rounded_once_into_a_narrow_dtype() -> None:
    raw = torch.randint(0, 256, (100 * 34,), dtype=torch.uint8)
    raw.view(100, 34)[:, :2] = torch.tensor([0.01], dtype=torch.float16).view(torch.uint8)
    wide, narrow = torch.empty(3200), torch.empty(3200, dtype=torch.bfloat16)
    ggml.unpack(raw, "Q8_0", wide)
    ggml.unpack(raw, "Q8_0", narrow)
    assert torch.equal(narrow, wide.bfloat16())


def test_bytes_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="do not hold"):
        ggml.unpack(torch.zeros(35, dtype=torch.uint8), "Q8_0", torch.empty(32))


def test_fp8_by_its_bits_is_torchs_fp8() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(e4m3(every).nan_to_num(nan=7e7), every.view(torch.float8_e4m3fn).float().nan_to_num(nan=7e7))


class File:
    """Stored tensors by name: their bytes, and what a header says of them."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.tensors: dict[str, Tensor] = {}

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: Any) -> None:
        raw = data if isinstance(data, bytes) else bytes(data.contiguous().view(torch.uint8).flatten().numpy())
        self.data[name] = raw
        self.tensors[name] = Tensor(dtype, shape, len(raw))

    def values(self, name: str, shape: tuple[int, ...], start: int = 0, rows: int | None = None) -> Any:
        made = coding(self.tensors, name, shape, start, rows, read=self.data.__getitem__)
        parts = []
        for s in made.spans:
            piece = self.data[s.tensor][s.offset : s.offset + s.length]
            assert len(piece) == s.length, f"{s} reaches beyond {len(self.data[s.tensor])} bytes"
            parts.append(torch.frombuffer(bytearray(piece), dtype=torch.uint8))
        out = torch.empty((shape[0] - start if rows is None else rows) * int(np.prod(shape[1:])))
        made.decode(parts, out)
        return out.view(-1, *shape[1:])


@pytest.fixture
def file() -> File:
    torch.manual_seed(0)
    return File()


SHAPE = (ROWS, COLUMNS)
CUTS = [(0, None), (2, 3)]


def cut(whole: Any, start: int, rows: int | None) -> Any:
    return whole[start:] if rows is None else whole[start : start + rows]


@pytest.mark.parametrize(("start", "rows"), CUTS)
@pytest.mark.parametrize("name", ["weight_scale", "scale_weight"])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_scaled_fp8(file: File, start: int, rows: int | None, name: str, each: bool, dtype: str) -> None:
    kind = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}[dtype]
    stored = torch.randn(SHAPE).to(kind)
    scale = torch.rand(ROWS, 1) if each else torch.rand(1)
    file.add("m.weight", dtype, SHAPE, stored)
    file.add(f"m.{name}", "F32", tuple(scale.shape), scale)
    assert torch.allclose(file.values("m.weight", SHAPE, start, rows), cut(stored.float() * scale, start, rows))


@pytest.mark.parametrize(("start", "rows"), CUTS)
@pytest.mark.parametrize("name", ["weight_scale", "SCB"])
def test_int8_with_scales_of_rows(file: File, start: int, rows: int | None, name: str) -> None:
    stored, scale = torch.randint(-127, 128, SHAPE, dtype=torch.int8), torch.rand(ROWS)
    file.add("m.weight", "I8", SHAPE, stored)
    file.add(f"m.{name}", "F32", (ROWS,), scale)
    factor = 1 / 127 if name == "SCB" else 1.0
    assert torch.allclose(
        file.values("m.weight", SHAPE, start, rows), cut(stored.float() * factor * scale[:, None], start, rows)
    )


def tiled(scales: Any) -> Any:
    """Scales in tiles of 128 x 4, written out by the formula of cuBLAS' documentation."""
    down, across = -(-scales.shape[0] // 128), -(-scales.shape[1] // 4)
    out = torch.zeros(down * across * 512, dtype=torch.uint8)
    for r in range(scales.shape[0]):
        for c in range(scales.shape[1]):
            inside = (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4
            out[(r // 128 * across + c // 4) * 512 + inside] = scales[r, c]
    return out


def test_tiles_of_scales_are_put_back_into_rows() -> None:
    scales = torch.randint(0, 256, (200, 10), dtype=torch.uint8)
    assert torch.equal(untile(tiled(scales), 200, 10), scales)
    with pytest.raises(Undecodable, match="do not make"):
        untile(torch.zeros(100, dtype=torch.uint8), 200, 10)


@pytest.mark.parametrize(("start", "rows"), CUTS)
def test_nvfp4_has_the_first_value_in_the_high_half_and_two_scales(file: File, start: int, rows: int | None) -> None:
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    codes = torch.randint(0, 16, SHAPE, dtype=torch.uint8)
    scales = torch.rand(ROWS, COLUMNS // 16).to(torch.float8_e4m3fn)
    file.add("m.weight", "U8", (ROWS, COLUMNS // 2), (codes[:, ::2] << 4) | codes[:, 1::2])
    file.add("m.weight_scale", "F8_E4M3", (128, COLUMNS // 16), tiled(scales.view(torch.uint8)))
    file.add("m.weight_scale_2", "F32", (), torch.tensor([0.25]))
    wanted = table[codes.long()] * scales.float().repeat_interleave(16, 1) * 0.25
    assert torch.allclose(file.values("m.weight", SHAPE, start, rows), cut(wanted, start, rows))


def test_mxfp8_has_powers_of_two_for_blocks_of_32(file: File) -> None:
    stored = torch.randn(SHAPE).to(torch.float8_e4m3fn)
    exponents = torch.randint(120, 134, (ROWS, COLUMNS // 32), dtype=torch.uint8)
    file.add("m.weight", "F8_E4M3", SHAPE, stored)
    file.add("m.weight_scale", "U8", (128, COLUMNS // 32), tiled(exponents))
    wanted = stored.float() * torch.exp2(exponents.float() - 127).repeat_interleave(32, 1)
    assert torch.allclose(file.values("m.weight", SHAPE), wanted)


@pytest.mark.parametrize(("start", "rows"), CUTS)
@pytest.mark.parametrize("nested", [False, True])
def test_nf4_has_a_table_and_blocks_of_64(file: File, start: int, rows: int | None, nested: bool) -> None:
    table, codes = torch.linspace(-1, 1, 16), torch.randint(0, 16, SHAPE, dtype=torch.uint8)
    flat = codes.flatten()
    file.add("m.weight", "U8", (ROWS * COLUMNS // 2, 1), (flat[::2] << 4) | flat[1::2])
    file.add("m.weight.quant_map", "F32", (16,), table)
    state: Mapping[str, Any] = {"blocksize": 64, "quant_type": "nf4", "shape": list(SHAPE)}
    blocks = ROWS * COLUMNS // 64
    if nested:
        steps, outer = torch.rand(256), torch.rand(1)
        packed = torch.randint(0, 256, (blocks,), dtype=torch.uint8)
        scales = steps[packed.long()] * outer[0] + 0.5
        file.add("m.weight.absmax", "U8", (blocks,), packed)
        file.add("m.weight.nested_absmax", "F32", (1,), outer)
        file.add("m.weight.nested_quant_map", "F32", (256,), steps)
        state = {**state, "nested_blocksize": 256, "nested_offset": 0.5}
    else:
        scales = torch.rand(blocks)
        file.add("m.weight.absmax", "F32", (blocks,), scales)
    text = json.dumps(state).encode()
    file.add("m.weight.quant_state.bitsandbytes__nf4", "U8", (len(text),), text)
    wanted = (table[flat.long()].view(-1, 64) * scales[:, None]).view(SHAPE)
    assert torch.allclose(file.values("m.weight", SHAPE, start, rows), cut(wanted, start, rows))


def test_what_is_not_known_is_refused_with_its_name(file: File) -> None:
    file.add("m.qweight", "I32", (64, 64), torch.zeros(64, 64, dtype=torch.int32))
    with pytest.raises(Undecodable, match=r"m\.weight is not in the file"):
        file.values("m.weight", SHAPE)
    file.add("m.weight", "I8", SHAPE, torch.zeros(SHAPE, dtype=torch.int8))
    text = json.dumps({"convrot": True}).encode()
    file.add("m.weight_scale", "F32", (ROWS,), torch.ones(ROWS))
    file.add("m.comfy_quant", "U8", (len(text),), text)
    with pytest.raises(Undecodable, match="convrot"):
        file.values("m.weight", SHAPE)


def test_a_shape_the_bytes_do_not_have_is_refused(file: File, tmp_path: Path) -> None:
    file.add("m.weight", "BF16", (4, 4), torch.zeros(4, 4, dtype=torch.bfloat16))
    with pytest.raises(Undecodable, match="cannot be unpacked"):
        file.values("m.weight", (4, 8))
    with pytest.raises(Undecodable, match="has 4 rows"):
        file.values("m.weight", (4, 4), 2, 3)
