"""Small models with the statistics of real ones, and a way to damage single bytes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compatkit.headers import open_header
from compatkit.smoke.number import bf16, table
from tests.support.files import safetensors_bytes, safetensors_header

Array = NDArray[Any]

LAYERS, WIDTH, HIDDEN = 4, 128, 256


class Raw(NamedTuple):
    """A tensor as a file stores it."""

    dtype: str
    data: bytes
    shape: tuple[int, ...]


def stored(values: Array, dtype: str) -> Raw:
    """float32 values in a dtype of safetensors."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if dtype == "BF16":
        return Raw(dtype, bf16(values).tobytes(), values.shape)
    if dtype.startswith("F8_"):
        grid = table(dtype)[:0x7F] if dtype == "F8_E4M3" else table(dtype)[:0x7C]
        nearest = np.abs(np.abs(values).reshape(-1, 1) - grid[None, :]).argmin(axis=1).astype(np.uint8)
        return Raw(dtype, (nearest | (np.signbit(values).reshape(-1) << 7)).astype(np.uint8).tobytes(), values.shape)
    with np.errstate(over="ignore"):
        return Raw(dtype, values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes(), values.shape)


def weights(seed: int = 0, layers: int = LAYERS) -> dict[str, Array]:
    """A transformer's tensors, float32: matrices of deviation 0.02 with a few tails, norms around 1, biases near 0."""
    draw = np.random.default_rng(seed)

    def matrix(*shape: int) -> Array:
        return (draw.standard_normal(shape) * 0.02 * (1 + 3 * (draw.random(shape) < 0.001))).astype(np.float32)

    out: dict[str, Array] = {"x_embedder.weight": matrix(WIDTH, 64), "x_embedder.bias": matrix(WIDTH)}
    for i in range(layers):
        out[f"layers.{i}.attention.qkv.weight"] = matrix(3 * WIDTH, WIDTH)
        out[f"layers.{i}.attention.out.weight"] = matrix(WIDTH, WIDTH)
        out[f"layers.{i}.feed_forward.w1.weight"] = matrix(HIDDEN, WIDTH)
        out[f"layers.{i}.feed_forward.w2.weight"] = matrix(WIDTH, HIDDEN)
        out[f"layers.{i}.norm.weight"] = (1 + 0.1 * draw.standard_normal(WIDTH)).astype(np.float32)
    out["final.weight"] = matrix(64, WIDTH)
    return out


def write(path: Path, tensors: Mapping[str, Raw], metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file."""
    header, _ = safetensors_header({n: (t.dtype, t.shape) for n, t in tensors.items()}, metadata)
    path.write_bytes(safetensors_bytes(header, b"".join(t.data for t in tensors.values())))
    return path


def write_model(path: Path, values: Mapping[str, Array] | None = None, dtype: str = "BF16") -> Path:
    """A safetensors file of `weights`, or of other values, all in one dtype."""
    return write(path, {n: stored(v, dtype) for n, v in (values or weights()).items()})


def write_gguf(path: Path, type_name: str, values: Mapping[str, Array] | None = None) -> Path:
    """The same as GGUF, quantised and written by the gguf package; K-quants, which it does not make, are made up."""
    import gguf

    kind = gguf.GGMLQuantizationType[type_name]
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (values or weights()).items():
        if value.ndim < 2 or value.shape[1] % gguf.GGML_QUANT_SIZES[kind][0]:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, quantised(value, type_name), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantised(value: Array, type_name: str) -> Array:
    """uint8 [rows, bytes of a row]; where gguf has no encoder, random bits under plausible scales."""
    import gguf

    from compatkit.smoke.blocks import LAYOUTS

    kind = gguf.GGMLQuantizationType[type_name]
    try:
        out: Array = gguf.quantize(value, kind)
    except NotImplementedError:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        draw = np.random.default_rng(int(np.abs(value).sum() * 1e6))
        out = draw.integers(0, 256, (value.shape[0], value.shape[1] // elements, size), dtype=np.uint8)
        for at, field in (*LAYOUTS[type_name].scales, *LAYOUTS[type_name].mins):
            if field == "f16":
                scales = (draw.random(out.shape[:2]) * 2e-5 + 1e-5).astype("<f2")
                out[:, :, at : at + 2] = scales.view(np.uint8).reshape(*out.shape[:2], 2)
            elif field == "f32":
                scales = (draw.random(out.shape[:2]) * 2e-5 + 1e-5).astype("<f4")
                out[:, :, at : at + 4] = scales.view(np.uint8).reshape(*out.shape[:2], 4)
            elif field == "iq1m":  # the top four bits of four uint16 make one float16
                bits = np.full(out.shape[:2], np.float16(1e-3).view(np.uint16))
                for i in range(4):
                    out[:, :, at + 2 * i + 1] &= 0x0F
                    out[:, :, at + 2 * i + 1] |= ((bits >> (4 * i) & 0xF) << 4).astype(np.uint8)
            else:
                out[:, :, at] = 0x30 if field == "ue4m3" else 0x70
        out = out.reshape(value.shape[0], -1)
    return out


def patch(path: Path, tensor: str, data: bytes, at: int = 0) -> Path:
    """Write bytes into a tensor, `at` bytes behind its start."""
    place = open_header(path).tensors[tensor].offset + at
    with path.open("r+b") as f:
        f.seek(place)
        f.write(data)
    return path


def lora(alpha: float | None = 16.0, rank: int = 16, modules: Iterable[str] = ("to_q", "to_v")) -> dict[str, Array]:
    """A LoRA in kohya's spelling, as small as trained ones are."""
    draw = np.random.default_rng(3)
    out: dict[str, Array] = {}
    for i in range(2):
        for name in modules:
            module = f"lora_unet_down_blocks_{i}_attentions_0_transformer_blocks_0_attn1_{name}"
            out[f"{module}.lora_down.weight"] = (draw.standard_normal((rank, 320)) * 0.03).astype(np.float32)
            out[f"{module}.lora_up.weight"] = (draw.standard_normal((320, rank)) * 0.01).astype(np.float32)
            if alpha is not None:
                out[f"{module}.alpha"] = np.array(alpha, dtype=np.float32)
    return out
