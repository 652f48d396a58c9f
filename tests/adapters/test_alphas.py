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
    folder: Path,
    alpha: Callable[[int], float],
    metadata: dict[str, str] | None = None,
    dtype: type = np.float32,
    fill: float = 1,
) -> Path:
    arrays = {}
    for layer in range(6):
        module = f"lora_unet_layers_{layer}_feed_forward_w1"
        arrays[f"{module}.lora_down.weight"] = np.full((8, 3840), fill, np.float16)
        arrays[f"{module}.lora_up.weight"] = np.full((10240, 8), fill, np.float16)
        arrays[f"{module}.alpha"] = np.array(alpha(layer), dtype)
    save_file(arrays, folder / "lora.safetensors", metadata or {})
    return folder / "lora.safetensors"


CASES: dict[str, tuple[Callable[[int], float], str, str]] = {
    "NaN in one module": (lambda n: float("nan") if n == 3 else 8, "error", "1 of 6"),
    "infinite": (lambda n: float("inf"), "error", "6 of 6"),
    "zero in two": (lambda n: 0 if n < 2 else 8, "warning", "2 of 6"),
    "zero in all": (lambda n: 0, "warning", "6 of 6"),
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
    report = compatkit.check([base, lora(tmp_path, lambda n: 0, fill=0)])
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


def pair(layers: int = 4) -> dict[str, np.ndarray]:
    """A LoRA of a few modules, as arrays that tests then spoil."""
    out: dict[str, np.ndarray] = {}
    for layer in range(layers):
        module = f"diffusion_model.layers.{layer}.feed_forward.w1"
        out[f"{module}.lora_A.weight"] = np.ones((8, 3840), np.float16)
        out[f"{module}.lora_B.weight"] = np.ones((10240, 8), np.float16)
        out[f"{module}.alpha"] = np.array(8.0, np.float32)
    return out


FIRST = "diffusion_model.layers.0.feed_forward.w1"
SPOILT: dict[str, tuple[dict[str, np.ndarray | None], str, str]] = {
    "no alpha of a number": ({"alpha": np.array(np.nan, np.float32)}, "lora/alpha", "1 of 4"),
    "two alphas in one": ({"alpha": np.ones(2, np.float32)}, "lora/damaged", "2 numbers instead of one"),
    "half of a pair": ({"lora_A.weight": None}, "lora/damaged", f"{FIRST}.lora_A.weight"),
    "ranks that differ": ({"lora_A.weight": np.ones((4, 3840), np.float16)}, "lora/damaged", "ranks 8 and 4 differ"),
    "a half of one side": ({"lora_A.weight": np.ones(3840, np.float16)}, "lora/damaged", "is no product"),
    "rank 0": ({"lora_A.weight": np.ones((0, 3840), np.float16)}, "lora/damaged", "rank 0"),
}


@pytest.mark.parametrize("case", SPOILT)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "on a base"])
def test_a_fault_of_the_file_itself_is_found_with_and_without_a_base(
    base: Path, tmp_path: Path, case: str, alone: bool
) -> None:
    changes, rule, words = SPOILT[case]
    arrays = pair()
    for ending, value in changes.items():
        if value is None:
            del arrays[f"{FIRST}.{ending}"]
        else:
            arrays[f"{FIRST}.{ending}"] = value
    save_file(arrays, tmp_path / "lora.safetensors")
    report = compatkit.check([tmp_path / "lora.safetensors"] if alone else [base, tmp_path / "lora.safetensors"])
    assert report.verdict == "fail"
    errors = [f for f in report.findings if f.level == "error"]
    assert any(words in f.message for f in errors)
    if alone:
        assert [f.rule for f in errors] == [rule]


def test_a_sound_file_alone_is_checked_and_passes(tmp_path: Path) -> None:
    save_file(pair(), tmp_path / "lora.safetensors")
    report = compatkit.check([tmp_path / "lora.safetensors"])
    assert (report.verdict, report.findings) == ("pass", ())
    assert {"lora/damaged", "lora/alpha", "lora/claim"} <= set(report.checked)


@pytest.mark.parametrize("before", ["_orig_mod.", "pipe.dit.", "module.diffusion_model."])
def test_names_of_a_wrapper_before_the_modules_are_names_of_the_same_base(
    base: Path, tmp_path: Path, before: str
) -> None:
    save_file(
        {k.replace("diffusion_model.", before): v for k, v in pair().items()},
        tmp_path / "lora.safetensors",
    )
    report = compatkit.check([base, tmp_path / "lora.safetensors"])
    assert [f.rule for f in report.findings if f.level == "error"] == ["lora/key-style"]
    (found,) = compatkit.inspect(tmp_path / "lora.safetensors")
    assert "z_image_turbo" in found.facts["targets"]
