"""The reference headers of `../shared/corpus` as headers in memory: no file is written, so a thousand cost seconds."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from compatkit.knowledge.store import Knowledge
from compatkit.vocabulary import Component, Header, Tensor

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}

#: What the corpus calls a layout -> what compatkit calls it.
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


class Answer(NamedTuple):
    """How one entry was answered. `latent` is None where nothing is known to compare with."""

    key: str
    kind: str
    layout: str
    derived: bool
    family: str  # right, unknown, wrong; taken: an unknown family's file was taken for a known one
    found: str
    loads: bool
    latent: bool | None
    misses: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Family, class and latent space together."""
        return self.family == "right" and self.loads and self.latent is not False


def main_component(data: Mapping[str, Any], components: Sequence[Component]) -> Component:
    """The component an entry is about: of a checkpoint its diffusion model."""
    if data["kind"] == "checkpoint":
        return next((c for c in components if c.role == "diffusion"), components[0])
    return components[0]


def is_layout(component: Component, wanted: str, knowledge: Knowledge) -> bool:
    """Whether a component's layout is what the corpus says, allowing for families whose layouts are spelled alike."""
    assert component.family is not None
    if wanted == "gguf":
        return component.layout == "gguf"
    if wanted == "diffusers":
        spelled = knowledge.grammar(component.family)["layouts"]
        return component.layout == "diffusers" or "diffusers" not in spelled
    return component.layout not in ("diffusers", "gguf")  # ComfyUI reads several spellings of some families


def answer(shared: Path, key: str, components: Sequence[Component], knowledge: Knowledge) -> Answer:
    """Compare what was found in an entry with what it is."""
    known = knowledge.members()
    data, seen, right = entry(shared, key), truth(shared)[key], right_families(shared)[key]
    component = main_component(data, components)
    misses = []
    if component.family is None:
        verdict = "unknown"
        if any(r in known for r in right):
            misses.append(f"unknown, not {right[0]}: {component.reason}")
    elif component.family in right:
        verdict = "right"
    else:
        verdict = "wrong" if any(r in known for r in right) else "taken"
        misses.append(f"{component.family}, not {right[0]}")
    layout = LAYOUTS[data["layout"]]
    if verdict == "right" and not is_layout(component, layout, knowledge):
        misses.append(f"layout {component.layout}, not {layout}")
    wanted = seen.get("detected_class") or seen.get("te_model") or seen.get("vae_class")
    wanted = wanted if seen.get("loads_clean") else None
    loads = component.loads_as.get("comfyui")
    if loads != wanted:
        misses.append(f"loads as {loads}, not {wanted}")
    latent = None
    if seen.get("latent_channels") is not None and seen.get("as_expected", seen.get("loads_clean")):
        rank = seen.get("latent_dimensions", seen.get("latent_dim")) + 2
        facts = component.facts.get("latent_channels"), component.facts.get("latent_ndim")
        latent = facts == (seen["latent_channels"], rank)
        if verdict == "right" and not latent:
            misses.append(f"latent channels and rank {facts}, not {(seen['latent_channels'], rank)}")
    derived = key.split("/")[1].startswith(("v-", "gguf-", "diffusers-"))
    return Answer(
        key,
        data["kind"],
        layout,
        derived,
        verdict,
        component.family or "",
        loads == wanted,
        latent,
        tuple(misses),
    )
