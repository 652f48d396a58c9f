"""There and back: whatever can be converted comes back bit for bit, and is the same change on the way."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from compatkit.adapters.base import Base
from compatkit.convert.cut import Refused
from compatkit.convert.run import convert
from compatkit.knowledge.store import Knowledge, load
from compatkit.sources.network import Network
from tests.convert.making import MAKERS, Arrays, adapter, save, small_base

#: Fused and split in every way that the families have: none, thirds, unequal rows, halves exchanged, joined tensors.
FAMILIES = [
    "sd15", "sdxl", "flux_dev", "flux2_klein_4b", "sd35_medium", "z_image_turbo", "lumina2", "wan21_t2v_14b",
    "qwen_image", "hunyuan_video", "pixart_sigma", "auraflow", "ovis_image", "cogview4", "krea2", "mochi",
]  # fmt: skip
STYLES = ["native", "diffusers", "kohya"]
#: What may be refused where weights are joined or cut: the rows of these cannot always be told apart.
MAY_REFUSE = {"lokr", "glora", "oft", "set", "dora"}


@cache
def knowledge() -> Knowledge:
    return load()


@cache
def base(family: str) -> Base:
    return small_base(knowledge(), family)


def read(path: Path) -> Arrays:
    with safe_open(path, "np") as f:
        return {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118


def turn(source: Path, to: str, output: Path, family: str) -> None:
    convert(
        str(source), to=to, output=str(output), base=base(family), knowledge=knowledge(), force=True, network=Network()
    )


@settings(max_examples=60)
@given(
    family=st.sampled_from(FAMILIES),
    algorithm=st.sampled_from(sorted(MAKERS)),
    style=st.sampled_from(STYLES),
    to=st.sampled_from(STYLES),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([np.float16, np.float32]),
    share=st.sampled_from([0.1, 0.5, 1.0]),
)
@example(
    "ovis_image", "lora", "native", "diffusers", 0, np.float16, 0.5
)  # joined in another order than they are listed
def test_there_and_back_is_the_identity(
    family: str, algorithm: str, style: str, to: str, seed: int, dtype: type, share: float
) -> None:
    made = adapter(base(family), knowledge(), style, algorithm, seed, dtype, share)
    if not made:
        return
    with tempfile.TemporaryDirectory() as folder:
        first = save(Path(folder) / "a.safetensors", made)
        try:
            turn(first, to, Path(folder) / "b.safetensors", family)
            turn(Path(folder) / "b.safetensors", style, Path(folder) / "c.safetensors", family)
        except Refused:
            if algorithm in MAY_REFUSE:
                return
            raise
        back = read(Path(folder) / "c.safetensors")
    assert back.keys() == made.keys()
    for name, array in made.items():
        assert back[name].dtype == array.dtype, name
        assert back[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


@pytest.mark.parametrize("family", ["flux_dev", "z_image_turbo", "sd35_medium", "sdxl"])
def test_a_lora_changes_no_name_but_its_own_style(tmp_path: Path, family: str) -> None:
    made = adapter(base(family), knowledge(), "kohya", "lora", 3, np.float16, 1.0)
    turn(save(tmp_path / "a.safetensors", made), "diffusers", tmp_path / "b.safetensors", family)
    names = read(tmp_path / "b.safetensors")
    assert all(n.startswith(("transformer.", "unet.")) for n in names)
    assert all(n.endswith((".lora_A.weight", ".lora_B.weight")) for n in names)
