"""The reference headers of `../shared/corpus` as headers in memory: no file is written, so a thousand cost seconds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from compatkit.vocabulary import Header, Tensor

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}

#: What the corpus calls a layout -> what compatkit calls it. A GGUF file is `gguf`, whatever its names.
LAYOUTS = {"comfy": "native", "diffusers": "diffusers", "gguf": "gguf", "hf": "hf"}


@cache
def right_families(shared: Path) -> Mapping[str, list[str]]:
    """`kind/id` of every entry -> the family ids that are right for it."""
    entries = json.loads((shared / "corpus" / "family_ids.json").read_text())["entries"]
    return {key: right if isinstance(right, list) else [right] for key, right in entries.items()}


@cache
def truth(shared: Path) -> Mapping[str, Mapping[str, Any]]:
    """`kind/id` of every entry -> what ComfyUI was observed to do with it."""
    table: Mapping[str, Mapping[str, Any]] = json.loads((shared / "corpus" / "truth.json").read_text())
    return table


def entry(shared: Path, key: str) -> dict[str, Any]:
    """One entry as it stands in the corpus."""
    data: dict[str, Any] = json.loads(gzip.decompress((shared / "corpus" / f"{key}.json.gz").read_bytes()))
    return data


def header_of_entry(data: Mapping[str, Any]) -> Header:
    """The header that the file an entry describes would have. It is named `model`: a name is no evidence."""
    tensors = {}
    offset = 0
    for name, (dtype, shape) in data["tensors"].items():
        nbytes = prod(shape) * _BYTES.get(dtype, 1)
        tensors[name] = Tensor(dtype, tuple(shape), nbytes, offset)
        offset += nbytes
    metadata = data.get("metadata") or {}
    suffix = "safetensors"
    if data["format"] == "gguf":
        suffix = "gguf"
        metadata = {k: tuple(v["value"]) if isinstance(v["value"], list) else v["value"] for k, v in metadata.items()}
    return Header(f"model.{suffix}", data["format"], offset, 0, tensors, metadata)


def header(shared: Path, key: str) -> Header:
    """The header of one entry, `kind/id`."""
    return header_of_entry(entry(shared, key))
