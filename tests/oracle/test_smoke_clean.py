"""Models as their libraries make them, before any training: the weight scan has nothing to say above info."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from compatkit.knowledge.store import load  # noqa: E402
from compatkit.smoke import session, supervise, worker  # noqa: E402

SMALL: dict[str, Callable[[], Any]] = {
    "unet": lambda: diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
    "vae": lambda: diffusers.AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    "transformer": lambda: diffusers.FluxTransformer2DModel(
        num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=32,
        pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    ),
    "text encoder": lambda: transformers.T5EncoderModel(
        transformers.T5Config(d_model=64, d_ff=128, num_layers=3, num_heads=4, d_kv=16, vocab_size=1000)
    ),
    "upscaler with masks": lambda: transformers.Swin2SRForImageSuperResolution(
        transformers.Swin2SRConfig(embed_dim=32, depths=[2, 2], num_heads=[2, 2])
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_as_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str) -> None:
    from compatkit import api

    state = SMALL[kind]().state_dict()
    cast = {k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v for k, v in state.items()}
    save_file({k: v.contiguous().clone() for k, v in cast.items()}, tmp_path / "m.safetensors")

    def run(job: Any, on_event: Any, **_: Any) -> supervise.Outcome:
        worker.work(job, on_event)
        return supervise.Outcome("", 0.0, 0)

    monkeypatch.setattr(supervise, "run", run)
    source = str(tmp_path / "m.safetensors")
    report = session.scan(api.check([source]), [source], load(), session.Limits())
    assert report.smoke["scan"]["files"][0]["tensors"] == len(state)
    assert not [n for n in report.not_checked if n.rule == "smoke/scan"]
    loud = [f.message for f in report.findings if f.rule.startswith("smoke/") and f.level != "info"]
    assert loud == []
