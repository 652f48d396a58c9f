"""Undoes what a converter to GGUF changed in values: a class computes with the numbers it was published with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compatkit.smoke.fetch import Patch
from compatkit.vocabulary import Header

if TYPE_CHECKING:
    import torch


def undone(header: Header, entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Patch]]:
    """The patches of a GGUF file by stored tensor, from `rules/gguf_values.yaml`; none for any other file."""
    architecture = header.metadata.get("general.architecture")
    if header.format != "gguf" or not isinstance(architecture, str):
        return {}
    out: dict[str, list[Patch]] = {}
    for entry in entries:
        if architecture not in entry["architectures"]:
            continue
        patterns = [re.compile(p) for p in entry["names"]]
        for name, tensor in header.tensors.items():
            if tensor.shape and any(p.search(name) for p in patterns):
                patch = _patch(entry, tensor.shape[0], header.metadata)
                if patch is not None:
                    out.setdefault(name, []).append(patch)
    return out


def _patch(entry: Mapping[str, Any], rows: int, metadata: Mapping[str, Any]) -> Patch | None:
    if "add" in entry:
        by = float(entry["add"])

        def shift(values: torch.Tensor, first: int) -> None:
            values += by

        return Patch(0, rows, shift, wide=True)
    heads = metadata.get(entry["heads"])
    if not isinstance(heads, int) or heads <= 0 or rows % (2 * heads):
        return None

    def put_back(values: torch.Tensor, first: int) -> None:
        if len(values) != rows:
            raise ValueError("heads are put back in whole weights only")
        # rows of a head lie as (first half, second half) in turn, and belong one half after the other
        ordered = values.view(heads, rows // heads // 2, 2, -1).transpose(1, 2).reshape(rows, -1)
        values.copy_(ordered)

    return Patch(0, rows, put_back)
