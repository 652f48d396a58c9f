"""Tiny model files for tests, written byte by byte and without any of compatkit's own code.

    write_safetensors(path, {"a.weight": ("BF16", (3840, 2560))}, {"format": "pt"})
    write_gguf(path, {"a.weight": ("Q4_K", (3840, 2560))}, {"general.architecture": "flux"})

Shapes are in torch order for both. The data are zeros; with `sparse` (the default) they take no disk, so that a file
may well claim 12 GB. For files that must be wrong, assemble the pieces: `safetensors_bytes`, `gguf_tensor`, …
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SAFETENSORS_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}

#: name -> (code, elements per block, bytes per block), what tests usually need; any other can be given as such a triple
GGML = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q5_0": (6, 32, 22),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136),
    "I32": (26, 1, 4),
    "BF16": (30, 1, 2),
    "MXFP4": (39, 32, 17),
    "NVFP4": (40, 64, 36),
}

GGUF_CODES = {
    "uint8": (0, "<B"),
    "int8": (1, "<b"),
    "uint16": (2, "<H"),
    "int16": (3, "<h"),
    "uint32": (4, "<I"),
    "int32": (5, "<i"),
    "float32": (6, "<f"),
    "bool": (7, "<?"),
    "uint64": (10, "<Q"),
    "int64": (11, "<q"),
    "float64": (12, "<d"),
}


class Typed(NamedTuple):
    """A metadata value of a GGUF type that cannot be guessed from Python's: `Typed("uint16", 3)` or `(…, [3, 4])`."""

    type: str
    value: Any


def _elements(shape: Sequence[int]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n


def safetensors_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], int]:
    """(the JSON header as an object, bytes of data that must follow)."""
    top: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata is not None else {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = _elements(shape) * SAFETENSORS_BITS[dtype] // 8
        top[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return top, at


def safetensors_bytes(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A whole file from a header as an object or as raw bytes; `length` to lie about its length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[str, Sequence[int]]],
    metadata: Mapping[str, str] | None = None,
    *,
    sparse: bool = True,
) -> Path:
    """Writes a well-formed safetensors file of zeros and returns its path."""
    top, size = safetensors_header(tensors, metadata)
    return _write(path, safetensors_bytes(top), size, sparse)


def gguf_string(text: str | bytes) -> bytes:
    """A string as GGUF writes it."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(value: Any) -> bytes:
    """Type code and value. Python ints become uint32, floats float32, lists arrays of what their first entry is."""
    code, raw = _coded(value)
    return struct.pack("<I", code) + raw


def _coded(value: Any) -> tuple[int, bytes]:
    if isinstance(value, Typed):
        code, layout = GGUF_CODES[value.type]
        if isinstance(value.value, (list, tuple)):
            entries = b"".join(struct.pack(layout, v) for v in value.value)
            return 9, struct.pack("<IQ", code, len(value.value)) + entries
        return code, struct.pack(layout, value.value)
    if isinstance(value, bool):
        return _coded(Typed("bool", value))
    if isinstance(value, int):
        return _coded(Typed("uint32", value))
    if isinstance(value, float):
        return _coded(Typed("float32", value))
    if isinstance(value, (str, bytes)):
        return 8, gguf_string(value)
    coded = [_coded(v) for v in value]
    code = coded[0][0] if coded else 4
    assert all(c == code for c, _ in coded), "a GGUF array holds one type"
    return 9, struct.pack("<IQ", code, len(coded)) + b"".join(raw for _, raw in coded)


def gguf_tensor(name: str | bytes, sides: Sequence[int], code: int, offset: int) -> bytes:
    """One entry of the tensor table; `sides` in the file's order (innermost first)."""
    return gguf_string(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, code, offset)


def gguf_bytes(
    tensors: Mapping[str, tuple[str | tuple[int, int, int], Sequence[int]]],
    metadata: Mapping[str, Any] | None = None,
    *,
    version: int = 3,
    alignment: int = 32,
) -> tuple[bytes, int]:
    """(everything up to the data, padded; bytes of data that must follow)."""
    metadata = dict(metadata or {})
    if alignment != 32:
        metadata["general.alignment"] = alignment
    out = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    out += [gguf_string(key) + gguf_value(value) for key, value in metadata.items()]
    at = end = 0
    for name, (dtype, shape) in tensors.items():
        code, block, size = GGML[dtype] if isinstance(dtype, str) else dtype
        out.append(gguf_tensor(name, list(reversed(shape)), code, at))
        end = at + _elements(shape) // block * size
        at = -(-end // alignment) * alignment
    head = b"".join(out)
    return head + bytes(-len(head) % alignment), at


def write_gguf(
    path: Path,
    tensors: Mapping[str, tuple[str | tuple[int, int, int], Sequence[int]]],
    metadata: Mapping[str, Any] | None = None,
    *,
    version: int = 3,
    alignment: int = 32,
    sparse: bool = True,
) -> Path:
    """Writes a well-formed GGUF file of zeros and returns its path."""
    head, size = gguf_bytes(tensors, metadata, version=version, alignment=alignment)
    return _write(path, head, size, sparse)


def write_sharded(
    folder: Path,
    shards: Sequence[Mapping[str, tuple[str, Sequence[int]]]],
    *,
    stem: str = "model",
    index: bool = True,
) -> list[Path]:
    """Writes sharded safetensors (and their index, last in the list) into `folder`."""
    paths: list[Path] = []
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        paths.append(write_safetensors(folder / name, tensors))
        weight_map |= dict.fromkeys(tensors, name)
        total += safetensors_header(tensors)[1]
    if index:
        paths.append(folder / f"{stem}.safetensors.index.json")
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        paths[-1].write_text(json.dumps(content), encoding="utf-8")
    return paths


def _write(path: Path, head: bytes, data: int, sparse: bool) -> Path:
    with path.open("wb") as out:
        out.write(head)
        if sparse:
            out.truncate(len(head) + data)
        else:
            out.write(bytes(data))
    return path
