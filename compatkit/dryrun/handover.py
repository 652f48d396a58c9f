"""A component on its way into the process with torch: what its class is configured by, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compatkit.vocabulary import Component, Quantization, Tensor


def packed(component: Component) -> dict[str, Any]:
    """What `unpacked` needs, as values of JSON."""
    return {
        "source": component.source,
        "format": component.format,
        "role": component.role,
        "family": component.family,
        "also": list(component.also),
        "layout": component.layout,
        "prefix": component.prefix,
        "reason": component.reason,
        "facts": {k: v for k, v in component.facts.items() if isinstance(v, bool | int | float | str)},
        "tensors": {name: [t.dtype, list(t.shape), t.nbytes] for name, t in component.tensors.items()},
    }


def unpacked(values: Mapping[str, Any]) -> Component:
    """The component again, without what only a report shows."""
    tensors = {name: Tensor(dtype, tuple(shape), nbytes) for name, (dtype, shape, nbytes) in values["tensors"].items()}
    return Component(
        source=values["source"],
        format=values["format"],
        size=0,
        header_bytes=0,
        role=values["role"],
        family=values["family"],
        also=tuple(values["also"]),
        layout=values["layout"],
        prefix=values["prefix"],
        quantization=Quantization("none", {}),
        parameters=0,
        key_groups={},
        loads_as={},
        facts=values["facts"],
        evidence=(),
        tensors=tensors,
        reason=values["reason"],
    )
