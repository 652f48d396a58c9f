"""Every reference header: the right family, layout and latent space, and none is taken for what it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from compatkit.identify.identify import identify
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component
from tests.support.corpus import answer, entry, header, header_of_entry, main_component, right_families


@pytest.mark.parametrize("kind", ["diffusion", "text_encoder", "vae", "checkpoint"])
def test_every_header_is_what_it_is(shared: Path, kind: str) -> None:
    """Family, layout, latent channels and rank, and what ComfyUI makes of it."""
    keys = [key for key in right_families(shared) if key.startswith(f"{kind}/")]
    assert keys
    misses = {}
    for key in keys:
        found = answer(shared, key, identify(header(shared, key), load()), load())
        if found.misses:
            misses[key] = found.misses
    assert misses == {}


def parts(shared: Path, key: str) -> list[Component]:
    return identify(header(shared, f"checkpoint/{key}"), load())


@pytest.mark.parametrize(
    ("key", "roles"),
    [
        ("ckpt-sdxl-base", ["diffusion", "text_encoder", "text_encoder", "vae"]),
        ("ckpt-sd15", ["diffusion", "text_encoder", "vae"]),
        ("ckpt-sd3-medium-incl-clips-t5", ["diffusion", "text_encoder", "text_encoder", "text_encoder", "vae"]),
        ("ckpt-flux-dev-fp8-aio", ["diffusion", "text_encoder", "text_encoder", "vae"]),
    ],
)
def test_a_checkpoint_is_split_into_its_parts(shared: Path, key: str, roles: list[str]) -> None:
    components = parts(shared, key)
    assert sorted(c.role for c in components) == sorted(roles)
    assert all(c.family for c in components)
    claimed = [name for c in components for name in c.tensors]
    assert len(claimed) == len(set(claimed)), "a tensor in two components"


def test_a_header_has_one_component_unless_it_is_a_checkpoint(shared: Path) -> None:
    several = {}
    for key in right_families(shared):
        kind, name = key.split("/")
        if kind != "checkpoint" and not name.startswith("v-"):
            components = identify(header(shared, key), load())
            if len(components) > 1:
                several[key] = [(c.role, c.family, len(c.tensors)) for c in components]
    assert several == {}


def test_neither_the_order_of_tensors_nor_the_name_of_the_file_changes_an_answer(shared: Path) -> None:
    for key in list(right_families(shared))[::23]:
        data = entry(shared, key)
        first = main_component(data, identify(header_of_entry(data), load()))
        data["tensors"] = dict(reversed(data["tensors"].items()))
        data["id"] = "flux1-dev.safetensors"
        again = main_component(data, identify(header_of_entry(data), load()))
        for field in (
            "role",
            "families",
            "layout",
            "prefix",
            "parameters",
            "facts",
            "loads_as",
            "key_groups",
            "evidence",
        ):
            assert getattr(again, field) == getattr(first, field), (key, field)
        assert again.quantization.scheme == first.quantization.scheme
        assert sorted(again.missing + again.foreign) == sorted(first.missing + first.foreign)
