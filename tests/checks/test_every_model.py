"""Every diffusion family with what its own card asks for passes; with another family's encoder or VAE it does not."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from compatkit.checks import judge
from compatkit.identify.identify import identify
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component, Header, Report, Runtime, Stack, Tensor

FAMILIES = Path(__file__).resolve().parents[2] / "rules" / "families"


def ids(role: str) -> list[str]:
    """The families of a role that ComfyUI runs and that show an example."""
    names = sorted(p.stem for p in (FAMILIES / role).glob("*.yaml"))
    return [n for n in names if load().grammar(n).get("example") and comfyui(n)]


def comfyui(family: str) -> dict[str, Any]:
    """What ComfyUI makes of a family."""
    found = (load().family(family).get("runtimes") or {}).get("comfyui")
    return dict(found) if found else {}


@cache
def components(family: str) -> tuple[Component, ...]:
    """A file of the family's first example, in the layout that ComfyUI reads."""
    owner = load().owner(family)
    document = load().grammar(owner)
    layouts = [n for n in comfyui(owner).get("layouts") or () if n in document["layouts"]]
    shapes = example_shapes(document, layouts[0] if layouts else None)
    if needs := (load().family(owner).get("tokenizer") or {}).get("needs"):
        shapes.setdefault(needs, (1000,))
    tensors = {name: Tensor("BF16", shape, 0) for name, shape in shapes.items()}
    metadata = document["example"].get("metadata") or {}
    return tuple(identify(Header(f"{family}.safetensors", "safetensors", 0, 0, tensors, metadata), load()))


def encoders(family: str) -> list[str]:
    """The text encoders its card asks for, the first kind of each."""
    return [str(e["kind"]) for e in load().family(family).get("text_encoders") or ()]


def vae(family: str) -> str | None:
    """The VAE of its latent space."""
    space = (load().family(family).get("latent") or {}).get("space")
    name = f"{space}_vae"
    return name if load().has_family(name) and comfyui(load().owner(name)) else None


def check(family: str, *others: str) -> Report:
    parts = [c for name in (family, *others) for c in components(name)]
    clip_type = comfyui(family).get("clip_type")
    settings = {"clip_type": clip_type} if isinstance(clip_type, str) else {}
    return judge(Stack(tuple(parts), (), settings), load())


def trouble(report: Report) -> list[str]:
    """Errors, warnings and what could not be decided."""
    out = [f"{f.rule}: {f.message}" for f in report.findings if f.level != "info"]
    return out + [f"{n.rule}: {n.why}" for n in report.not_checked if n.blocks]


@pytest.mark.parametrize("family", ids("diffusion"))
def test_a_model_passes_with_what_its_card_asks_for(family: str) -> None:
    decoder = vae(family)
    report = check(family, *encoders(family), *([decoder] if decoder else []))
    assert trouble(report) == []
    assert report.verdict == "pass"


@pytest.mark.parametrize("family", [f for f in ids("diffusion") if encoders(f)])
def test_it_does_not_pass_with_an_encoder_of_another_width(family: str) -> None:
    widths = {e: {c.facts.get("width") for c in components(e)} for e in encoders(family)}
    stranger = "gemma2_9b" if {3584} not in widths.values() else "byt5_small"
    assert check(family, stranger).verdict == "fail"


@pytest.mark.parametrize("family", [f for f in ids("diffusion") if vae(f)])
def test_it_does_not_pass_with_a_vae_of_another_latent(family: str) -> None:
    stranger = "wan22_vae" if vae(family) != "wan22_vae" else "sd15_vae"
    assert check(family, stranger).verdict == "fail"


@pytest.mark.parametrize(("runtimes", "verdict"), [((), "pass"), ((Runtime("diffusers"),), "unknown")])
def test_a_layout_of_which_little_is_known_holds_up_only_whom_asked(
    runtimes: tuple[Runtime, ...], verdict: str
) -> None:
    """A model that only diffusers is known to run, and a VAE in its makers' names: another runtime may be meant."""
    parts = [part for family in ("flux3", "qwen3vl_4b", "flux2_vae") for part in components(family)]
    report = judge(Stack(tuple(parts), runtimes), load())
    assert report.verdict == verdict
    assert any("layout" in n.why for n in report.not_checked)


def test_what_works_on_pictures_needs_no_base() -> None:
    """A background remover beside a model, and the VAE of another space by which that model is shown a picture."""
    parts = [part for family in ("triposplat", "flux2_vae", "birefnet") for part in components(family)]
    assert judge(Stack(tuple(parts)), load()).verdict == "pass"
