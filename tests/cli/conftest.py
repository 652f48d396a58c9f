"""Sets of small but complete model files, made from the grammars, and a way to run the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compatkit.headers.sparse import write_gguf, write_safetensors
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run compatkit in a process of its own, in the test's folder."""

    def call(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "compatkit", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return call


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """Write one family's file, full size and sparse, into the test's folder."""

    def make(name: str, family: str, *, layout: str | None = None, arch: str = "", vocabulary: int = 0) -> Path:
        shapes = example_shapes(load().grammar(family), layout)
        path = tmp_path / name
        if name.endswith(".gguf"):
            write_gguf(path, shapes, "Q4_K", {"general.architecture": arch}, vocabulary)
        else:
            write_safetensors(path, shapes)
        return path

    return make


@pytest.fixture
def right_set(model: Callable[..., Path]) -> list[Path]:
    """A diffusion model, its encoder and its VAE."""
    return [
        model("dit.gguf", "z_image_turbo", arch="lumina2"),
        model("encoder.gguf", "qwen3_4b", layout="gguf", arch="qwen3"),
        model("vae.safetensors", "flux1_vae"),
    ]


@pytest.fixture
def wrong_set(model: Callable[..., Path]) -> list[Path]:
    """The same with an encoder of another width."""
    return [
        model("dit.gguf", "z_image_turbo", arch="lumina2"),
        model("encoder.safetensors", "gemma2_2b"),
        model("vae.safetensors", "flux1_vae"),
    ]
