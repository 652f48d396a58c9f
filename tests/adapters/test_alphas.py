"""Alphas that are no strengths, metadata that does not agree, names of several conventions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import compatkit
from compatkit.adapters.alphas import number
from compatkit.headers.sparse import write_safetensors
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    write_safetensors(path, example_shapes(load().grammar("z_image_turbo")))
    return path


def lora(
    folder: Path, alpha: Callable[[int], float], metadata: dict[str, str] | None = None, dtype: type = np.float32
) -> Path:
    arrays = {}
    for layer in range(6):
        module = f"lora_unet_layers_{layer}_feed_forward_w1"
        arrays[f"{module}.lora_down.weight"] = np.ones((8, 3840), np.float16)
        arrays[f"{module}.lora_up.weight"] = np.ones((10240, 8), np.float16)
        arrays[f"{module}.alpha"] = np.array(alpha(layer), dtype)
    save_file(arrays, folder / "lora.safetensors", metadata or {})
    return folder / "lora.safetensors"


CASES: dict[str, tuple[Callable[[int], float], str, str]] = {
    "NaN in one module": (lambda n: float("nan") if n == 3 else 8, "error", "1 of 6"),
    "infinite": (lambda n: float("inf"), "error", "6 of 6"),
    "zero in two": (lambda n: 0 if n < 2 else 8, "warning", "2 of 6"),
    "a thousand times the rank": (lambda n: 8000, "warning", "1000"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_alpha_that_is_no_strength_is_said_with_the_first_module(base: Path, tmp_path: Path, case: str) -> None:
    alpha, level, word = CASES[case]
    report = compatkit.check([base, lora(tmp_path, alpha)])
    (finding,) = [f for f in report.findings if f.rule == "lora/alpha"]
    assert finding.level == level
    assert word in finding.message
    assert "lora_unet_layers_" in finding.message


@pytest.mark.parametrize("alpha", [1.0, 8.0, 64.0, 0.05])
def test_alphas_in_use_are_no_finding(base: Path, tmp_path: Path, alpha: float) -> None:
    report = compatkit.check([base, lora(tmp_path, lambda n: alpha)])
    assert not [f for f in report.findings if f.rule == "lora/alpha"]
    (found,) = compatkit.inspect(tmp_path / "lora.safetensors")
    assert found.facts["alpha_over_rank"] == [pytest.approx(alpha / 8, abs=1e-6)]


def test_a_file_whose_alphas_are_all_zero_may_be_a_hole(base: Path, tmp_path: Path) -> None:
    report = compatkit.check([base, lora(tmp_path, lambda n: 0)])
    assert not [f for f in report.findings if f.rule == "lora/alpha"]


def test_headers_only_reads_no_alpha(base: Path, tmp_path: Path) -> None:
    report = compatkit.check([base, lora(tmp_path, lambda n: float("nan"))], headers_only=True)
    assert not [f for f in report.findings if f.rule == "lora/alpha"]


@pytest.mark.parametrize(
    ("claim", "said"), [("16.5", True), ("abc", True), ("8", False), ("8.0", False), ("Dynamic", False)]
)
def test_a_rank_in_the_metadata_that_no_module_has(base: Path, tmp_path: Path, claim: str, said: bool) -> None:
    report = compatkit.check([base, lora(tmp_path, lambda n: 8, {"ss_network_dim": claim, "ss_network_alpha": "x"})])
    assert bool([f for f in report.findings if f.rule == "lora/rank-claim"]) is said


def test_numbers_of_scalars() -> None:
    assert number(b"\x80\x3f", "BF16") == 1.0
    assert number(b"\x00\x3c", "F16") == 1.0
    assert number(b"\x00\x00", "F32") is None
    assert number(b"\x00", "F8_E4M3") is None
