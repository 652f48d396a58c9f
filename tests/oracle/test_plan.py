"""Weight plans against diffusers' own converters: the same rows of the same tensors, whatever a key map fuses or swaps.

A converter looks at names and rows only, so every tensor is as thin as it may be: its rows are numbered, its other
sides are 1. Models have one block of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest

from compatkit.dryrun.classes import run_lengths
from compatkit.dryrun.plan import Recipe, weight_plan
from compatkit.identify.shapes import expected_shapes
from compatkit.knowledge.store import load

torch = pytest.importorskip("torch", reason="torch holds what the converters convert: `make oracle` installs it")
utils = pytest.importorskip("diffusers.loaders.single_file_utils", reason="the converters are diffusers'")

KNOWLEDGE = load()
#: family -> (converter, layout it reads)
CONVERTERS: dict[str, tuple[str, str]] = {
    "flux_dev": ("convert_flux_transformer_checkpoint_to_diffusers", "native"),
    "flux_schnell": ("convert_flux_transformer_checkpoint_to_diffusers", "native"),
    "flux2_dev": ("convert_flux2_transformer_checkpoint_to_diffusers", "native"),
    "chroma": ("convert_chroma_transformer_checkpoint_to_diffusers", "native"),
    "sd3_medium": ("convert_sd3_transformer_checkpoint_to_diffusers", "native"),
    "sd35_large": ("convert_sd3_transformer_checkpoint_to_diffusers", "native"),
    "auraflow": ("convert_auraflow_transformer_checkpoint_to_diffusers", "native"),
    "lumina2": ("convert_lumina2_to_diffusers", "native"),
    "z_image_turbo": ("convert_z_image_transformer_checkpoint_to_diffusers", "native"),
    "hunyuan_video": ("convert_hunyuan_video_transformer_to_diffusers", "original"),
    "wan21_t2v_14b": ("convert_wan_transformer_to_diffusers", "native"),
    "wan21_i2v_14b": ("convert_wan_transformer_to_diffusers", "native"),
    "wan21_vae": ("convert_wan_vae_to_diffusers", "native"),
    "ltxv_2b": ("convert_ltx_transformer_checkpoint_to_diffusers", "native"),
    "ltx2": ("convert_ltx2_transformer_to_diffusers", "native"),
    "mochi": ("convert_mochi_transformer_checkpoint_to_diffusers", "native"),
    "sana": ("convert_sana_transformer_to_diffusers", "native"),
    "cosmos_predict2_t2i": ("convert_cosmos_transformer_checkpoint_to_diffusers", "native"),
    "krea2": ("convert_krea2_transformer_checkpoint_to_diffusers", "native"),
}
#: Converters that count the released model's blocks, and tensors that they expect and throw away.
FIXED_DEPTH, THROWN_AWAY = {"mochi"}, {"sana": ("pos_embed",)}


def numbered(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A thin tensor for each: row r of the n-th holds n million and r."""
    made = {}
    for n, (name, shape) in enumerate(shapes.items()):
        rows = shape[0] if shape else 1
        values = torch.arange(rows, dtype=torch.float64) + n * 1_000_000
        made[name] = values.reshape(rows, *(1 for _ in shape[1:])) if shape else values.reshape(())
    return made


def thin(recipe: Recipe, tensors: Mapping[str, Any]) -> Any:
    """What a recipe makes of thin tensors: its rows, one below the other."""
    parts = []
    for piece in recipe.pieces:
        values = tensors[piece.source].reshape(-1)
        parts.append(values if piece.rows is None else values[piece.start : piece.start + piece.rows])
    return torch.cat(parts)


@cache
def small(family: str) -> tuple[Mapping[str, Any], dict[str, int], dict[str, Any]]:
    """(grammar, symbols with one block of each kind, options) of a family's first example."""
    document = KNOWLEDGE.grammar(family)
    example = document["example"]
    runs = run_lengths(document)
    fixed = family in FIXED_DEPTH
    symbols = {k: min(v, 2) if k in runs and not fixed else v for k, v in example["symbols"].items()}
    return document, symbols, dict(example.get("options") or {})


@pytest.mark.parametrize("family", CONVERTERS)
def test_a_plan_takes_the_rows_that_the_converter_takes(family: str) -> None:
    document, symbols, options = small(family)
    converter, source = CONVERTERS[family]
    convert: Callable[..., Any] = getattr(utils, converter)
    shapes = {
        n: tuple(s or 1 for s in shape or ())
        for n, shape in expected_shapes(document, source, symbols, options).items()
    }
    tensors = numbered({**shapes, **dict.fromkeys(THROWN_AWAY.get(family, ()), (1,))})
    converted = convert(dict(tensors), config={})
    plan = weight_plan(document, source, "diffusers", symbols, options)
    assert set(plan) <= set(converted)
    wrong = [n for n, r in plan.items() if not torch.equal(thin(r, tensors), converted[n].reshape(-1).double())]
    assert wrong == []
    assert {n for n in converted if n not in plan} == set()


@pytest.mark.parametrize("family", CONVERTERS)
def test_a_plan_backwards_gives_what_it_was_made_from(family: str) -> None:
    document, symbols, options = small(family)
    source = CONVERTERS[family][1]
    shapes = {
        n: tuple(s or 1 for s in shape or ())
        for n, shape in expected_shapes(document, source, symbols, options).items()
    }
    tensors = numbered(shapes)
    there = {n: thin(r, tensors) for n, r in weight_plan(document, source, "diffusers", symbols, options).items()}
    back = weight_plan(document, "diffusers", source, symbols, options)
    assert all(torch.equal(thin(r, there), tensors[n].reshape(-1)) for n, r in back.items())
    assert len(back) > len(shapes) // 2
