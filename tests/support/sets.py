"""Sets of components made from the families' own examples: no file is written, none is read."""

from __future__ import annotations

from functools import cache

from compatkit import adapters
from compatkit.identify.identify import identify
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component, Header, Runtime, Stack, Tensor


@cache
def components(family: str, runtime: str = "comfyui") -> tuple[Component, ...]:
    """What a file of the family's first example holds, in a layout that the runtime reads."""
    owner = load().owner(family)
    document = load().grammar(owner)
    entry = (load().family(owner).get("runtimes") or {}).get(runtime) or {}
    wanted = entry.get("layouts") or (["diffusers"] if runtime == "diffusers" else [])
    layouts = [n for n in wanted if n in document["layouts"]]
    shapes = example_shapes(document, layouts[0] if layouts else None)
    if needs := (load().family(owner).get("tokenizer") or {}).get("needs"):
        shapes.setdefault(needs, (1000,))
    tensors = {name: Tensor("BF16", shape, 0) for name, shape in shapes.items()}
    metadata = document["example"].get("metadata") or {}
    return tuple(identify(Header(f"{family}.safetensors", "safetensors", 0, 0, tensors, metadata), load()))


def stack(*families: str | Component, runtime: str = "comfyui", version: str | None = None, **settings: str) -> Stack:
    """A set of families (by id) and components."""
    parts: list[Component] = []
    for one in families:
        parts += components(one, runtime) if isinstance(one, str) else [one]
    return Stack(tuple(parts), (Runtime(runtime, version),), settings)


def lora(module: str, up: tuple[int, int], down: tuple[int, int], blocks: int = 8) -> Component:
    """A LoRA of one module in so many blocks; `{i}` in its name is the block."""
    tensors = {}
    for n in range(blocks):
        for half, shape in (("A", down), ("B", up)):
            name = f"{module.replace('{i}', str(n))}.lora_{half}.weight"
            tensors[name] = Tensor("BF16", shape, 2 * shape[0] * shape[1])
    found = adapters.recognise(Header("lora.safetensors", "safetensors", 0, 0, tensors), load())
    assert found is not None
    return found
