"""Headers as state dicts: tensors of the file's names, shapes and dtypes, without weights."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

#: safetensors' names; a type this torch does not have is taken for bytes of the same width.
_DTYPES: Mapping[str, tuple[str, torch.dtype]] = {
    "F64": ("float64", torch.float64),
    "F32": ("float32", torch.float32),
    "F16": ("float16", torch.float16),
    "BF16": ("bfloat16", torch.bfloat16),
    "F8_E4M3": ("float8_e4m3fn", torch.uint8),
    "F8_E5M2": ("float8_e5m2", torch.uint8),
    "F8_E8M0": ("float8_e8m0fnu", torch.uint8),
    "I64": ("int64", torch.int64),
    "I32": ("int32", torch.int32),
    "I16": ("int16", torch.int16),
    "I8": ("int8", torch.int8),
    "U8": ("uint8", torch.uint8),
    "U16": ("uint16", torch.int16),
    "U32": ("uint32", torch.int32),
    "U64": ("uint64", torch.int64),
    "BOOL": ("bool", torch.bool),
    "C64": ("complex64", torch.complex64),
}
#: A vocabulary that a file carries as a tensor of bytes, of which only the length is known: empty, but well formed.
_VOCABULARY = json.dumps(
    {"config": {"default_num_special_tokens": 1000, "default_vocab_size": 131072}, "vocab": [], "special_tokens": []}
).encode()


def dtype(name: str) -> torch.dtype:
    """The torch type of a file's type; anything packed or unknown counts as half precision."""
    known = _DTYPES.get(name)
    if known is None:
        return torch.float16
    found = getattr(torch, known[0], known[1])
    return found if isinstance(found, torch.dtype) else known[1]


def state_dict(tensors: Mapping[str, Sequence[Any]], values: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """`{name: [dtype, shape]}` as tensors; `values` are the bytes, in base64, of those that were read."""
    return {name: _tensor(str(d), list(shape), values.get(name)) for name, (d, shape) in tensors.items()}


def _tensor(kind: str, shape: list[int], value: str | None) -> torch.Tensor:
    wanted = dtype(kind)
    if value is not None:
        raw = bytearray(base64.b64decode(value))
        return torch.frombuffer(raw, dtype=torch.uint8).clone().view(wanted).reshape(shape)
    if kind in ("U8", "I8") and len(shape) == 1 and shape[0] >= len(_VOCABULARY):
        return torch.frombuffer(bytearray(_VOCABULARY), dtype=torch.uint8).clone()
    if not shape or shape == [1]:
        return torch.ones(shape, dtype=torch.float32).to(wanted)  # a scale, a flag: code may look at it
    return torch.empty(shape, dtype=wanted, device="meta")
