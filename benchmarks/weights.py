"""Writes model files of full size with sane random weights, from the grammar of a family: no one's weights are needed.

    python -m benchmarks.weights z_image_turbo model.safetensors [--kind bf16|fp16|fp8_scaled|nvfp4] [--layout native]
    python -m benchmarks.weights z_image_turbo model.gguf --kind q8_0|q4_k_m

Matrices are normal with a variance of one over their columns, so that activations keep their size through a network;
norms are about one, biases small. The numbers come from a pool that is written again and again at other places: a
file of 12 GB takes half a minute, and its statistics are those of independent draws.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from compatkit.dryrun.classes import run_lengths
from compatkit.headers.ggml import TYPES
from compatkit.identify.shapes import expected_shapes
from compatkit.knowledge.store import load

Shape = tuple[int, ...]
Row = tuple[str, Shape]
_POOL = 1 << 22
_CODES = {name: (code, values, nbytes) for code, (name, values, nbytes) in TYPES.items()}
_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}
KINDS = ("bf16", "fp16", "fp32", "fp8", "fp8_scaled", "nvfp4", "q8_0", "q4_k_m")


def shapes_of(family: str, layout: str = "", depth: int | None = None, **more: Any) -> dict[str, Shape]:
    """Name -> shape of a family's first example, in its own or another layout; `depth` caps every run of blocks.

    `more` replaces symbols and options of the example.
    """
    document = load().grammar(family)
    example = document["example"]
    symbols = {**example.get("symbols", {}), **{k: v for k, v in more.items() if not isinstance(v, bool | str)}}
    options = {**example.get("options", {}), **{k: v for k, v in more.items() if isinstance(v, bool | str)}}
    if depth is not None:
        runs = run_lengths(document)
        symbols = {k: min(v, depth) if k in runs else v for k, v in symbols.items()}
    own = layout or next(iter(document["layouts"]))
    found = expected_shapes(document, own, symbols, options)
    return {n: tuple(1 if side is None else side for side in s or ()) for n, s in found.items()}


class Numbers:
    """Endless random bytes that decode to values of a wanted spread."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self._normal = self.rng.standard_normal(_POOL, dtype=np.float32)
        self._pools: dict[tuple[str, float, float], NDArray[np.uint8]] = {}
        self._at = 0

    def write(self, file: BinaryIO, dtype: str, count: int, spread: float, mean: float = 0.0) -> None:
        """`count` values as `dtype`, normal around `mean`."""
        pool = self._pool(dtype, spread, mean)
        values, nbytes = (1, _BYTES[dtype]) if dtype in _BYTES else _CODES[dtype][1:]
        left = count // values * nbytes
        while left:
            start = self._at % (len(pool) // nbytes) * nbytes
            piece = pool[start : start + left]
            file.write(piece.data)
            left -= len(piece)
            self._at += 7919  # another place the next time

    def _pool(self, dtype: str, spread: float, mean: float) -> NDArray[np.uint8]:
        key = (dtype, spread, mean)
        if key not in self._pools:
            self._pools[key] = self._made(dtype, spread, mean)
        return self._pools[key]

    def _made(self, dtype: str, spread: float, mean: float) -> NDArray[np.uint8]:
        values = self._normal * np.float32(spread) + np.float32(mean)
        if dtype in _CODES and _CODES[dtype][1] > 1:
            return self._blocks(dtype, spread)
        if dtype == "F8_E4M3":  # three bits of mantissa, cut off; tiny ones become zero
            bits = values.view(np.uint32)
            exponent = ((bits >> 23) & 0xFF).astype(np.int32) - 127 + 7
            code = np.where(exponent > 0, (np.clip(exponent, 0, 15) << 3) | ((bits >> 20) & 7), 0)
            made: NDArray[np.uint8] = (np.minimum(code, 0x7E) | ((bits >> 24) & 0x80)).astype(np.uint8)
            return made
        if dtype == "U8":
            return self.rng.integers(0, 256, _POOL, dtype=np.uint8)
        if dtype == "BF16":
            bits = values.view(np.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype("<f2" if dtype == "F16" else "<f4").view(np.uint8)

    def _blocks(self, dtype: str, spread: float) -> NDArray[np.uint8]:
        """Blocks whose codes are uniform, with scales that give their values about this spread."""
        _, values, nbytes = _CODES[dtype]
        count = _POOL // values
        out = self.rng.integers(0, 256, (count, nbytes), dtype=np.uint8)
        # the spread of the codes times the mean of the scales beside them; minima in the middle
        places: Mapping[str, tuple[tuple[int, float], ...]] = {
            "Q8_0": ((0, 1 / 74),),
            "Q4_K": ((0, 1 / 170), (2, 7.5 / 170)),
            "Q6_K": ((208, 1 / 1370),),
            "Q5_K": ((0, 1 / 340), (2, 15.5 / 340)),
        }
        for at, factor in places[dtype]:
            near = spread * factor * (1 + 0.1 * self._normal[:count])
            out[:, at : at + 2] = near.astype("<f2").view(np.uint8).reshape(count, 2)
        if dtype in ("Q4_K", "Q5_K"):  # scales equal to minima, so that the codes are centred
            pairs = self.rng.integers(16, 48, (count, 4), dtype=np.uint8)
            out[:, 4:8] = out[:, 8:12] = pairs
            low = pairs & 15
            out[:, 12:16] = low | (low << 4)
        return out.reshape(-1)


def spread_of(name: str, shape: Shape) -> tuple[float, float]:
    """(spread, mean) of a tensor's values."""
    if name.endswith("bias") or not shape:
        return 0.02, 0.0
    if len(shape) == 1:
        return 0.02, 1.0
    return float(np.float32(prod(shape[1:]) ** -0.5)), 0.0


def rows_of(shapes: Mapping[str, Shape], kind: str) -> list[tuple[str, str, Shape]]:
    """(name, dtype, shape) of everything a file of that kind stores."""
    out: list[tuple[str, str, Shape]] = []
    plain = {"fp16": "F16", "fp32": "F32"}.get(kind, "BF16")
    for name, shape in shapes.items():
        matrix = name.endswith(".weight") and len(shape) == 2 and min(shape) >= 64
        stem = name.removesuffix(".weight")
        if kind == "fp8" and matrix:
            out.append((name, "F8_E4M3", shape))
        elif kind == "fp8_scaled" and matrix:
            out += [(name, "F8_E4M3", shape), (f"{stem}.weight_scale", "F32", ()), (f"{stem}.comfy_quant", "U8", (0,))]
        elif kind == "nvfp4" and matrix and shape[1] % 64 == 0 and shape[0] % 128 == 0:
            out += [
                (name, "U8", (shape[0], shape[1] // 2)),
                (f"{stem}.weight_scale", "F8_E4M3", (shape[0], shape[1] // 16)),
            ]
            out += [(f"{stem}.weight_scale_2", "F32", ()), (f"{stem}.comfy_quant", "U8", (0,))]
        else:
            out.append((name, plain, shape))
    return out


def write_safetensors(path: Path, shapes: Mapping[str, Shape], kind: str = "bf16", seed: int = 0) -> None:
    """A safetensors file of these tensors."""
    marker = json.dumps({"format": "nvfp4" if kind == "nvfp4" else "float8_e4m3fn"}).encode()
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    rows, at = rows_of(shapes, kind), 0
    for name, dtype, shape in rows:
        shape = (len(marker),) if name.endswith(".comfy_quant") else shape
        size = prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)  # data that starts at a multiple of 64
    numbers = Numbers(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, shape in rows:
            if name.endswith(".comfy_quant"):
                file.write(marker)
            elif name.endswith((".weight_scale", ".weight_scale_2")) and dtype == "F32":
                columns = shapes[name.rpartition(".")[0] + ".weight"][1]
                # codes of fp8 are stored around one; those of fp4 are spread by about 3, and their scales near one
                file.write(struct.pack("<f", columns**-0.5 / (1.0 if kind == "fp8_scaled" else 3.0)))
            elif dtype == "F8_E4M3":
                scaled = kind == "fp8_scaled" or name.endswith("_scale")
                spread = (0.05, 1.0) if name.endswith("_scale") else (1.0, 0.0) if scaled else spread_of(name, shape)
                numbers.write(file, dtype, prod(shape), *spread)
            else:
                numbers.write(file, dtype, prod(shape), *spread_of(name, shape))


def ggml_type(name: str, shape: Shape, kind: str) -> str:
    """How llama.cpp's quantiser stores a tensor in a file of that kind."""
    if len(shape) != 2 or min(shape) < 64 or not name.endswith(".weight"):
        return "F32"
    if kind == "q8_0" or shape[1] % 256:
        return "Q8_0" if shape[1] % 32 == 0 else "F16"
    more = any(part in name for part in ("w2.", "down", "attn_v", "to_v", "linear2"))
    return "Q6_K" if more and sum(map(ord, name)) % 2 else "Q4_K"


def write_gguf(path: Path, shapes: Mapping[str, Shape], kind: str, architecture: str, seed: int = 0) -> None:
    """A GGUF file of these tensors."""
    from gguf import GGMLQuantizationType, GGUFWriter

    types = {name: ggml_type(name, shape, kind) for name, shape in shapes.items()}
    writer = GGUFWriter(path, architecture)
    sizes = {}
    for name, shape in shapes.items():
        shape = shape or (1,)
        _, values, nbytes = _CODES[types[name]]
        sizes[name] = prod(shape) // values * nbytes
        stored = (*shape[:-1], shape[-1] // values * nbytes) if values > 1 else shape
        dtype = np.dtype(np.uint8 if values > 1 else {"F32": np.float32, "F16": np.float16}[types[name]])
        kind_ = GGMLQuantizationType[types[name]] if values > 1 else None
        writer.add_tensor_info(name, stored, dtype, sizes[name], kind_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    numbers = Numbers(seed)
    file = writer.fout[0]  # type: ignore[index]
    file.write(b"\0" * (-file.tell() % writer.data_alignment))
    for name, shape in shapes.items():
        numbers.write(file, types[name], prod(shape), *spread_of(name, shape))
        file.write(b"\0" * (-sizes[name] % writer.data_alignment))
    writer.close()


def write(
    path: Path, family: str, kind: str = "bf16", *, layout: str = "", depth: int | None = None, **more: Any
) -> None:
    """A file of a family, in safetensors or GGUF as `kind` says."""
    shapes = shapes_of(family, layout, depth, **more)
    if kind in ("q8_0", "q4_k_m"):
        runtimes = load().family(family).get("runtimes") or {}
        write_gguf(path, shapes, kind, str((runtimes.get("comfyui-gguf") or {}).get("arch", "unknown")))
    else:
        write_safetensors(path, shapes, kind)


def main() -> int:
    """Write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family")
    parser.add_argument("path", type=Path)
    parser.add_argument("--kind", default="bf16", choices=KINDS)
    parser.add_argument("--layout", default="")
    parser.add_argument("--depth", type=int)
    given = parser.parse_args()
    write(given.path, given.family, given.kind, layout=given.layout, depth=given.depth)
    return 0


if __name__ == "__main__":
    sys.exit(main())
