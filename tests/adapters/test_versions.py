"""Forms of names, endings and conversions that a runtime took up later."""

from __future__ import annotations

from pathlib import Path

import pytest

import compatkit
from compatkit.adapters.versions import as_of, versions
from compatkit.headers.sparse import write_safetensors
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load

TABLE = {
    "forms": [{"prefixes": ["a.", "b."], "since": {"b.": "2"}}, {"prefixes": ["c."], "since": "3"}],
    "classes": [{"classes": ["X"], "forms": [{"prefixes": ["d."], "since": "4"}]}],
    "conversions": [{"id": "e", "when": [], "since": "2"}],
    "reads": {"lora": [".x", ".y"], "oft": "all"},
    "reads_since": {"oft": "3", ".y": "2"},
}


def as_it_was(version: int) -> dict[str, object]:
    return as_of(TABLE, lambda wanted: version >= int(wanted))


def test_what_came_later_is_left_out() -> None:
    assert versions(TABLE) == {"2", "3", "4"}
    first = as_it_was(1)
    assert first["forms"] == [{"prefixes": ["a."], "since": {"b.": "2"}}]
    assert first["conversions"] == []
    assert first["reads"] == {"lora": [".x"]}
    assert first["classes"] == [{"classes": ["X"], "forms": []}]
    assert {**as_it_was(4)} == TABLE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("versions")


#: (family, one of its modules as the LoRA spells it, its weight, endings, first version that reads it).
TAKEN_UP = [
    ("qwen_image", "transformer_blocks.0.attn.to_q", (3072, 3072), "lora_{}.weight", "0.3.50"),
    ("qwen_image", "diffusion_model.transformer_blocks.0.attn.to_q", (3072, 3072), "lora_{}.default.weight", "0.3.50"),
    ("flux2_klein_4b", "transformer_blocks.0.attn.to_out.0", (3072, 3072), "lora_{}.default.weight", "0.11.0"),
    ("ltxv_2b", "transformer_blocks.0.attn1.to_q", (2048, 2048), "lora_{}.weight", "0.25.0"),
    ("hidream_i1", "transformer.caption_projection.0.linear", (2560, 4096), "lora_{}.weight", "0.3.39"),
    ("ernie_image", "transformer.layers.0.mlp.gate_proj", (12288, 4096), "lora_{}.weight", "0.21.0"),
]


@pytest.mark.parametrize(("family", "module", "weight", "ending", "since"), TAKEN_UP)
def test_the_first_version_that_reads_a_file_is_named(
    folder: Path, family: str, module: str, weight: tuple[int, int], ending: str, since: str
) -> None:
    base = folder / f"{family}.safetensors"
    if not base.exists():
        write_safetensors(base, example_shapes(load().grammar(family)))
    lora = folder / "lora.safetensors"
    rows, columns = weight
    shapes = {f"{module}.{ending.format('A')}": (4, columns), f"{module}.{ending.format('B')}": (rows, 4)}
    write_safetensors(lora, shapes)
    *head, last = (int(n) for n in since.split("."))
    before = ".".join(map(str, (*head, last - 1))) if last else f"{head[0]}.{head[1] - 1}.9"
    old = compatkit.check([base, lora], runtime=[f"comfyui@{before}"])
    new = compatkit.check([base, lora], runtime=[f"comfyui@{since}"])
    assert new.adapters[0]["verdict"] in ("full", "shape_mismatch")
    assert old.adapters[0]["verdict"] == "none"
    assert any(since in f.message + f.fix for f in old.findings if f.rule in ("lora/key-style", "lora/none"))
