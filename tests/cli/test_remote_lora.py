"""The alphas of a LoRA that lies elsewhere: read where they stand together, else named as not read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.support.servers import range_server

LAYERS, ROWS, COLUMNS, RANK = 24, 10240, 3840, 8


def lora(path: Path, alpha: float, *, together: bool) -> None:
    """A LoRA whose alphas stand before all matrices, as writers that sort by dtype put them, or each beside its own."""
    alphas, matrices = [], []
    for layer in range(LAYERS):
        module = f"lora_unet_layers_{layer}_feed_forward_w1"
        alphas.append([(f"{module}.alpha", "F32", (), 4)])
        sides = {"lora_down": (RANK, COLUMNS), "lora_up": (ROWS, RANK)}
        matrices.append([(f"{module}.{n}.weight", "F16", s, 2 * s[0] * s[1]) for n, s in sides.items()])
    order = [*alphas, *matrices] if together else [part for pair in zip(alphas, matrices, strict=True) for part in pair]
    table, places, at = {}, [], 0
    for name, dtype, shape, size in [row for part in order for row in part]:
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        places += [at] if dtype == "F32" else []
        at += size
    text = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + at)
        for place in places:
            file.seek(start + place)
            file.write(struct.pack("<f", alpha))


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"COMPATKIT_CACHE": str(tmp_path / "cache"), "COMPATKIT_TIMEOUT": "5"}


@pytest.mark.parametrize("alpha", [8.0, float("nan")])
def test_alphas_that_stand_together_cost_no_request_of_their_own(
    run: Run, tmp_path: Path, env: dict[str, str], alpha: float
) -> None:
    lora(tmp_path / "lora.safetensors", alpha, together=True)
    with range_server(tmp_path) as server:
        found = json.loads(run("check", server.url("lora.safetensors"), "--format", "json", env=env).stdout)
    broken = alpha != alpha
    assert found["verdict"] == ("fail" if broken else "pass")
    assert [f["rule"] for f in found["findings"]] == (["lora/alpha"] if broken else [])
    assert "lora/alpha" in found["checked"]
    assert found["cost"]["requests"] == 1
    again = json.loads(
        run("check", server.url("lora.safetensors"), "--offline", "--format", "json", env=env).stdout or "{}"
    )
    assert [f["rule"] for f in again["findings"]] == (["lora/alpha"] if broken else [])


def test_alphas_all_over_the_file_are_not_read_and_that_is_said(run: Run, tmp_path: Path, env: dict[str, str]) -> None:
    lora(tmp_path / "lora.safetensors", float("nan"), together=False)
    with range_server(tmp_path) as server:
        found = json.loads(run("check", server.url("lora.safetensors"), "--format", "json", env=env).stdout)
    assert "lora/alpha" not in found["checked"]
    (why,) = [n["why"] for n in found["not_checked"] if n["rule"] == "lora/alpha"]
    assert "lora.safetensors" in why
    assert found["cost"]["requests"] == 1
    local = json.loads(run("check", str(tmp_path / "lora.safetensors"), "--format", "json", env=env).stdout)
    assert [f["rule"] for f in local["findings"]] == ["lora/alpha"]
