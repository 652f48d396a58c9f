"""Algorithms that are renamed but not cut: everything stays bit for bit, also there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from compatkit.convert.cut import Refused
from compatkit.convert.run import convert
from compatkit.knowledge.store import load
from compatkit.sources.network import Network
from tests.convert.making import Arrays, save, small_base

CONV = "lora_unet_down_blocks_0_resnets_0_conv1"  # 10 rows, 10 columns, 3 x 3 in the small base
LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def ones(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float16)


ALGORITHMS: dict[str, Arrays] = {
    "LoCon": {f"{CONV}.lora_up.weight": ones(10, 4, 1, 1), f"{CONV}.lora_down.weight": ones(4, 10, 3, 3)},
    "CP decomposition": {
        f"{CONV}.lora_up.weight": ones(10, 4, 1, 1), f"{CONV}.lora_down.weight": ones(4, 10, 1, 1),
        f"{CONV}.lora_mid.weight": ones(4, 4, 3, 3), f"{CONV}.alpha": ones(),
    },
    "Tucker LoHa": {
        f"{CONV}.hada_t1": ones(4, 4, 3, 3), f"{CONV}.hada_w1_a": ones(4, 10), f"{CONV}.hada_w1_b": ones(4, 10),
        f"{CONV}.hada_t2": ones(4, 4, 3, 3), f"{CONV}.hada_w2_a": ones(4, 10), f"{CONV}.hada_w2_b": ones(4, 10),
    },
    "LoKr of a convolution": {
        f"{CONV}.lokr_w1": ones(2, 2), f"{CONV}.lokr_w2": ones(5, 5, 3, 3), f"{CONV}.alpha": ones(),
    },
    "differences of weight and bias": {f"{CONV}.diff": ones(10, 10, 3, 3), f"{CONV}.diff_b": ones(10)},
    "(IA)3": {f"{LINEAR}.weight": ones(40, 1), f"{LINEAR}.on_input": np.array([False])},
    "BOFT": {f"{LINEAR}.oft_blocks": ones(2, 10, 4, 4), f"{LINEAR}.alpha": ones()},
    "OFT with a constraint": {f"{LINEAR}.oft_blocks": ones(10, 4, 4), f"{LINEAR}.alpha": ones()},
    "DoRA by columns": {
        f"{LINEAR}.lora_up.weight": ones(40, 4), f"{LINEAR}.lora_down.weight": ones(4, 40),
        f"{LINEAR}.dora_scale": ones(1, 40),
    },
    "a norm": {"lora_unet_conv_norm_out.w_norm": ones(10), "lora_unet_conv_norm_out.b_norm": ones(10)},
}  # fmt: skip


def read(path: Path) -> Arrays:
    with safe_open(path, "np") as f:
        return {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118


@pytest.mark.parametrize("title", ALGORITHMS)
def test_renamed_and_back(tmp_path: Path, title: str) -> None:
    known = load()
    base = small_base(known, "sd15")
    arrays = ALGORITHMS[title]
    paths = [save(tmp_path / "a.safetensors", arrays), tmp_path / "b.safetensors", tmp_path / "c.safetensors"]
    for source, out, to in ((paths[0], paths[1], "native"), (paths[1], paths[2], "kohya")):
        convert(str(source), to=to, output=str(out), base=base, knowledge=known, network=Network())
    there, back = read(paths[1]), read(paths[2])
    assert all(n.startswith("diffusion_model.") for n in there)
    assert sorted(a.tobytes() for a in there.values()) == sorted(a.tobytes() for a in arrays.values())
    assert {n: a.tobytes() for n, a in back.items()} == {n: a.tobytes() for n, a in arrays.items()}


def test_magnitudes_by_column_have_no_name_in_diffusers(tmp_path: Path) -> None:
    known = load()
    source = save(tmp_path / "a.safetensors", ALGORITHMS["DoRA by columns"])
    with pytest.raises(Refused, match="one for each column"):
        convert(str(source), to="diffusers", output=str(tmp_path / "b.safetensors"), base=small_base(known, "sd15"),
                knowledge=known, network=Network())  # fmt: skip
