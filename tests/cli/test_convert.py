"""`compatkit convert` as a user runs it, and the commands that findings name."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.conftest import Run

Arrays = dict[str, np.ndarray]


def pairs(prefix: str, names: list[str], up: str, down: str, rows: int = 3840) -> Arrays:
    out: Arrays = {}
    for name in names:
        out[f"{prefix}{name}{down}"] = np.ones((4, 3840), np.float16)
        out[f"{prefix}{name}{up}"] = np.ones((rows, 4), np.float16)
    return out


SPLIT = [f"layers.{n}.attention.to_{x}" for n in range(30) for x in ("q", "k", "v", "out.0")]
PEFT = pairs("base_model.model.", SPLIT, ".lora_B.weight", ".lora_A.weight")
KOHYA = pairs("lora_unet_", [n.replace(".", "_") for n in SPLIT], ".lora_up.weight", ".lora_down.weight")
BARE = pairs("", SPLIT, ".lora_B.weight", ".lora_A.weight")
FUSED = pairs(
    "diffusion_model.", [f"layers.{n}.attention.qkv" for n in range(30)], ".lora_B.weight", ".lora_A.weight", 11520
)
DORA = {**pairs("transformer.", SPLIT, ".lora_B.weight", ".lora_A.weight"),
        **{f"transformer.{n}.lora_magnitude_vector": np.ones(3840, np.float16) for n in SPLIT}}  # fmt: skip

#: What a user has, in which runtime, and the finding whose fix is a command.
SICK: dict[str, tuple[Arrays, str, str]] = {
    "PEFT's names in ComfyUI": (PEFT, "comfyui", "lora/key-style"),
    "kohya's names of split weights in ComfyUI": (KOHYA, "comfyui", "lora/key-style"),
    "bare names in diffusers": (BARE, "diffusers", "lora/key-style"),
    "fused weights in diffusers": (FUSED, "diffusers", "lora/key-style"),
    "a DoRA of PEFT in ComfyUI": (DORA, "comfyui", "lora/dora-dropped"),
}


@pytest.mark.parametrize("case", SICK)
def test_the_command_that_a_finding_names_cures_it(
    run: Run, model: Callable[..., Path], tmp_path: Path, case: str
) -> None:
    arrays, runtime, rule = SICK[case]
    base = model("base of mine.safetensors", "z_image_turbo")
    lora = tmp_path / "my lora.safetensors"
    save_file(arrays, lora)
    sick = json.loads(run("check", base, lora, "--runtime", runtime, "--format", "json").stdout)
    (finding,) = [f for f in sick["findings"] if f["rule"] == rule]
    command = shlex.split(finding["fix"].partition(": ")[2])
    assert command[:2] == ["compatkit", "convert"]
    done = run(*command[1:])
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
    cured = run("check", base, command[-1], "--runtime", runtime, "--format", "json")
    assert cured.returncode == 0
    (entry,) = json.loads(cured.stdout)["adapters"]
    assert entry["verdict"] == "full"


def test_what_it_says_and_its_exit_codes(run: Run, tmp_path: Path) -> None:
    save_file(BARE, tmp_path / "a.safetensors")
    done = run("convert", "a.safetensors", "--to", "kohya", "--base", "z_image_turbo", "-o", "b.safetensors")
    assert done.returncode == 0
    assert "60 modules: 30 joined" in done.stdout
    assert "comfyui reads 180 of 180 keys" in done.stdout
    again = run("convert", "a.safetensors", "--to", "kohya", "-o", "b.safetensors")
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert run("convert", "a.safetensors", "--to", "kohya", "-o", "b.safetensors", "--force").returncode == 0
    wrong = run("convert", "a.safetensors", "--to", "kohya", "--base", "sdxl", "-o", "c.safetensors")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("Not converted: layers.0.attention.to_k")
    assert not (tmp_path / "c.safetensors").exists()
    for arguments, said in (
        (["nothing.safetensors", "--to", "native", "-o", "d.safetensors"], "does not exist"),
        (["a.safetensors", "--to", "native", "-o", "d.bin"], ".safetensors"),
        (["a.safetensors", "--to", "native", "-o", "no/such/folder/d.safetensors"], "cannot be written"),
        (["a.safetensors", "--to", "native", "--base", "zimage", "-o", "d.safetensors"], "no such family"),
        (["a.safetensors", "--to", "elsewhere", "-o", "d.safetensors"], "elsewhere"),
    ):
        refused = run("convert", *arguments)
        assert refused.returncode == 2, arguments
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr


def test_json_says_what_was_written_or_why_not(run: Run, tmp_path: Path) -> None:
    save_file(BARE, tmp_path / "a.safetensors")
    schema = jsonschema.Draft202012Validator(json.loads(run("schema").stdout))
    done = run("convert", "a.safetensors", "--to", "kohya", "-o", "b.safetensors", "--format", "json")
    answer = json.loads(done.stdout)
    schema.validate(answer)
    assert (answer["keys_before"], answer["keys_after"], answer["read"]["comfyui"]) == (240, 180, [180, 180])
    wrong = run(
        "convert", "a.safetensors", "--to", "kohya", "--base", "sdxl", "-o", "c.safetensors", "--format", "json"
    )
    assert (wrong.returncode, wrong.stderr) == (1, "")
    schema.validate(json.loads(wrong.stdout))
    assert json.loads(wrong.stdout)["refused"].startswith("layers.0.attention.to_k")


@pytest.mark.parametrize("damage", ["rank 0", "metadata nested deeply", "one number as a matrix"])
def test_odd_files_are_refused_in_a_sentence(run: Run, tmp_path: Path, damage: str) -> None:
    arrays = dict(BARE)
    metadata = {}
    first = "layers.0.attention.to_q"
    if damage == "rank 0":
        arrays[f"{first}.lora_A.weight"] = np.ones((0, 3840), np.float16)
        arrays[f"{first}.lora_B.weight"] = np.ones((3840, 0), np.float16)
    elif damage == "one number as a matrix":
        arrays[f"{first}.lora_B.weight"] = np.ones((), np.float16)
    else:
        metadata = {"lora_adapter_metadata": '{"a":' + "[" * 100_000, "compatkit_convert": "[" * 100_000}
    save_file(arrays, tmp_path / "a.safetensors", metadata)
    done = run("convert", "a.safetensors", "--to", "native", "--base", "z_image_turbo", "-o", "b.safetensors")
    assert done.returncode == (0 if metadata else 1)
    assert "Traceback" not in done.stderr
    assert "Internal" not in done.stderr


def test_a_round_trip_on_the_command_line(run: Run, tmp_path: Path) -> None:
    save_file(BARE, tmp_path / "a.safetensors")
    run("convert", "a.safetensors", "--to", "diffusers", "--base", "z_image_turbo", "-o", "b.safetensors")
    run("convert", "b.safetensors", "--to", "kohya", "-o", "c.safetensors")
    assert run("convert", "c.safetensors", "--to", "diffusers", "-o", "d.safetensors").returncode == 0
    one, other = load_file(tmp_path / "b.safetensors"), load_file(tmp_path / "d.safetensors")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[n], other[n]) for n in one)
