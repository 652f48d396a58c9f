"""Writes model files that are all header: the data is a hole, so that 12 GB cost no disk. For the demo and fixtures."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compatkit.headers.ggml import TYPES

Shapes = Mapping[str, tuple[int, ...]]

_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1}


def write_safetensors(
    path: Path,
    shapes: Shapes,
    dtype: str = "BF16",
    metadata: Mapping[str, str] | None = None,
    dtypes: Mapping[str, str] | None = None,
) -> int:
    """A safetensors file with these tensors; returns its size in bytes. Overwrites `path`.

    All are `dtype`, but for those that `dtypes` names.
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, shape in shapes.items():
        own = (dtypes or {}).get(name, dtype)
        end = offset + _elements(shape) * _BYTES[own]
        table[name] = {"dtype": own, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _write(path, struct.pack("<Q", len(text)) + text, offset)


def write_gguf(path: Path, shapes: Shapes, type_name: str, metadata: Mapping[str, Any], vocabulary: int = 0) -> int:
    """A GGUF v3 file: matrices in `type_name` where its blocks fit, all else F32; returns its size in bytes.

    `metadata` values are texts or unsigned numbers. `vocabulary` adds that many invented tokens and merges, so that the
    header is as long as a real encoder's. Overwrites `path`.
    """
    keys = [_text(k) + _value(v) for k, v in metadata.items()]
    if vocabulary:
        for key, word in (("tokenizer.ggml.tokens", "token{}"), ("tokenizer.ggml.merges", "to ken{}")):
            words = b"".join(_text(word.format(i)) for i in range(vocabulary))
            keys.append(_text(key) + struct.pack("<IIQ", 9, 8, vocabulary) + words)
    table, offset = [], 0
    for name, shape in shapes.items():
        code, block, size = _placed(type_name, shape)
        sides = tuple(reversed(shape))
        table.append(_text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, code, offset))
        offset += -(-(_elements(shape) // block * size) // 32) * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(table), len(keys)) + b"".join(keys) + b"".join(table)
    return _write(path, head + b"\0" * (-len(head) % 32), offset)


def _placed(type_name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Code, elements and bytes of a block for a tensor: the wanted type for matrices it fits, else F32."""
    for code, (name, block, size) in TYPES.items():
        if name == type_name and len(shape) == 2 and shape[-1] % block == 0:
            return code, block, size
    return 0, 1, 4


def _write(path: Path, head: bytes, data: int) -> int:
    with path.open("wb") as f:
        f.write(head)
        f.truncate(len(head) + data)
    return len(head) + data


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: str | int) -> bytes:
    return struct.pack("<I", 8) + _text(value) if isinstance(value, str) else struct.pack("<II", 4, value)


def _elements(shape: tuple[int, ...]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n
