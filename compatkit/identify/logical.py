"""A header as the plain model would have it: quantised weights in their logical shapes, without scales and markers."""

from __future__ import annotations

from msgspec.structs import replace

from compatkit.identify.identify import packings_of
from compatkit.knowledge.store import Knowledge
from compatkit.sources.naming import shown
from compatkit.vocabulary import Header, Tensor


def logical(header: Header, knowledge: Knowledge) -> Header:
    """The header without its quantisation.

    Raises:
        ValueError: its weights are packed so that their shapes cannot be told from the header.
    """
    unpacked = packings_of(knowledge).unpack(header, None)
    tensors: dict[str, Tensor] = {}
    for name, tensor in unpacked.tensors.items():
        count = unpacked.counts.get(name)
        if name in unpacked.opaque:
            raise ValueError(
                f"{shown(header.source)}: {shown(name)} is packed so that its shape is not in the header; draft from a "
                "file that is not quantised"
            )
        rows = tensor.shape[0] if tensor.shape else 0
        if count and count != tensor.elements and rows and count % rows == 0:
            tensor = tensor._replace(shape=(rows, count // rows))
        tensors[name] = tensor
    return replace(header, tensors=tensors)
