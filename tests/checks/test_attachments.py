"""Every ControlNet, IP-Adapter and the like of the rules, at its own size, on bases it is for and on others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import compatkit
from compatkit.headers.sparse import write_safetensors
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.vocabulary import Report

KNOWN = load()
ADAPTERS = sorted(f for f, m in KNOWN.members().items() if not m.get("abstract") and "sibling_of" not in m)
ADAPTERS = [f for f in ADAPTERS if (KNOWN.family(f).get("targets") or {}).get("families")]
BASES = ("sd15", "sdxl", "flux_dev", "sd35_large", "qwen_image", "wan21_t2v_14b", "kolors")


def targets(adapter: str) -> set[str]:
    entry: Mapping[str, Any] = KNOWN.family(adapter)["targets"]
    return {KNOWN.owner(f) for f in entry["families"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def check(folder: Path, base: str, adapter: str) -> Report:
    paths = []
    for family in (base, adapter):
        path = folder / f"{family}.safetensors"
        if not path.exists():
            write_safetensors(path, example_shapes(KNOWN.grammar(family)))
        paths.append(path)
    return compatkit.check(paths, runtime=["comfyui"])


def said(report: Report) -> list[tuple[str, str]]:
    return [(f.rule, f.level) for f in report.findings if f.rule.startswith("adapter/")]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_is_known_and_not_for_every_base(folder: Path, adapter: str) -> None:
    wrong = next(b for b in BASES if b not in targets(adapter))
    report = check(folder, wrong, adapter)
    assert adapter in report.components[1].families
    assert any(level == "error" for _, level in said(report)), wrong


#: Of another size than the base's example: SD3's ControlNet has a width for each of its bases.
OTHER_SIZE = {("controlnet_sd3", "sd35_large")}
RIGHT = [(a, b) for a in ADAPTERS for b in BASES if b in targets(a) and (a, b) not in OTHER_SIZE]


@pytest.mark.parametrize(("adapter", "base"), RIGHT, ids=[f"{a} on {b}" for a, b in RIGHT])
def test_an_adapter_fits_the_base_it_is_for(folder: Path, adapter: str, base: str) -> None:
    assert said(check(folder, base, adapter)) == []
