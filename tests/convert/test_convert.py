"""What a converted file holds, held against numbers computed here; what is refused, and in which words."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from compatkit.adapters.base import Base
from compatkit.convert.cut import Refused
from compatkit.convert.record import KEY
from compatkit.convert.run import convert
from compatkit.fetch.written import Exists, beside
from compatkit.knowledge.store import Knowledge, load
from compatkit.sources.network import Network
from compatkit.vocabulary import SourceError
from tests.convert.making import Arrays, save, small_base
from tests.support.servers import range_server

H = 96  # a small FLUX.1's hidden size
QKV = "double_blocks_0_img_attn_qkv"
SPLIT = [f"transformer.transformer_blocks.0.attn.to_{n}" for n in "qkv"]


@pytest.fixture(scope="module")
def known() -> Knowledge:
    return load()


@pytest.fixture(scope="module")
def flux(known: Knowledge) -> Base:
    base = small_base(known, "flux_dev")
    assert base.symbols["hidden"] == H
    return base


def read(path: Path) -> Arrays:
    with safe_open(path, "np") as f:
        return {n: f.get_tensor(n) for n in f.keys()}  # noqa: SIM118


def listed(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as f:
        return dict(f.metadata() or {})


def turn(known: Knowledge, base: Any, arrays: Arrays, to: str, folder: Path, **more: Any) -> Arrays:
    source = save(folder / "in.safetensors", arrays, more.pop("metadata", None))
    out = folder / "out.safetensors"
    convert(str(source), to=to, output=str(out), base=base, knowledge=known, force=True, network=Network(), **more)
    return read(out)


def pair(rows: int, columns: int, rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    own = np.random.default_rng(seed)
    return own.standard_normal((rows, rank)).astype(np.float32), own.standard_normal((rank, columns)).astype(np.float32)


def test_a_fused_weight_is_split_by_rows_and_the_scale_is_in_the_matrix(
    known: Knowledge, flux: Base, tmp_path: Path
) -> None:
    up, down = pair(3 * H, H, 8)
    made = turn(known, flux, {
        f"lora_unet_{QKV}.lora_up.weight": up, f"lora_unet_{QKV}.lora_down.weight": down,
        f"lora_unet_{QKV}.alpha": np.float32(2),
    }, "diffusers", tmp_path)  # fmt: skip
    assert set(made) == {f"{m}.lora_{x}.weight" for m in SPLIT for x in "AB"}
    for n, module in enumerate(SPLIT):
        assert np.array_equal(made[f"{module}.lora_A.weight"], down)
        assert np.array_equal(made[f"{module}.lora_B.weight"], up[n * H : (n + 1) * H] * 0.25)


def test_split_weights_of_other_ranks_and_alphas_become_one(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    ranks, alphas = [2, 5, 3], [2.0, 1.0, 12.0]
    arrays: Arrays = {}
    wanted = []
    for n, (rank, alpha) in enumerate(zip(ranks, alphas, strict=True)):
        up, down = pair(H, H, rank, n)
        module = "lycoris_" + SPLIT[n].removeprefix("transformer.").replace(".", "_")
        arrays |= {
            f"{module}.lora_up.weight": up,
            f"{module}.lora_down.weight": down,
            f"{module}.alpha": np.float32(alpha),
        }
        wanted.append(alpha / rank * up @ down)
    made = turn(known, flux, arrays, "kohya", tmp_path)
    up, down, alpha = (made[f"lora_unet_{QKV}.{e}"] for e in ("lora_up.weight", "lora_down.weight", "alpha"))
    assert down.shape == (10, H)
    assert np.allclose(alpha / 10 * up.astype(np.float64) @ down, np.concatenate(wanted), rtol=1e-6, atol=1e-6)


def test_a_part_that_is_not_trained_is_zero_rows(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    arrays: Arrays = {}
    for n in (0, 2):
        up, down = pair(H, H, 4, n)
        arrays |= {f"{SPLIT[n]}.lora_B.weight": up, f"{SPLIT[n]}.lora_A.weight": down}
    made = turn(known, flux, arrays, "native", tmp_path)
    change = made["diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight"]
    change = change @ made["diffusion_model.double_blocks.0.img_attn.qkv.lora_down.weight"]
    assert np.allclose(change[:H], arrays[f"{SPLIT[0]}.lora_B.weight"] @ arrays[f"{SPLIT[0]}.lora_A.weight"], atol=1e-5)
    assert not change[H : 2 * H].any()


def test_shift_and_scale_of_the_last_layer_change_places(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    up, down = pair(2 * H, H, 4)
    made = turn(known, flux, {
        "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight": up,
        "lora_unet_final_layer_adaLN_modulation_1.lora_down.weight": down,
    }, "diffusers", tmp_path)  # fmt: skip
    assert np.array_equal(made["transformer.norm_out.linear.lora_B.weight"], np.concatenate([up[H:], up[:H]]))


def test_a_scale_that_16_bits_cannot_take_up_makes_them_32(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    up, down = pair(3 * H, H, 3)
    half = up.astype(np.float16)
    made = turn(known, flux, {
        f"lora_unet_{QKV}.lora_up.weight": half, f"lora_unet_{QKV}.lora_down.weight": down.astype(np.float16),
        f"lora_unet_{QKV}.alpha": np.float16(1),
    }, "diffusers", tmp_path)  # fmt: skip
    found = made[f"{SPLIT[0]}.lora_B.weight"]
    assert found.dtype == np.float32
    assert np.allclose(found, half[:H].astype(np.float64) / 3, rtol=1e-7)
    assert made[f"{SPLIT[0]}.lora_A.weight"].dtype == np.float16


def test_an_alpha_in_the_metadata_is_used_and_goes_back_there(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    up, down = pair(H, H, 8)
    told = {"transformer.r": 8, "transformer.lora_alpha": 4, "transformer.alpha_pattern": {"attn.to_k": 16}}
    arrays = {f"{m}.lora_{x}.weight": a for m in SPLIT[:2] for x, a in (("B", up), ("A", down))}
    text = {"lora_adapter_metadata": json.dumps(told), "format": "pt"}
    made = turn(known, flux, arrays, "kohya", tmp_path, metadata=text)
    whole = made[f"lora_unet_{QKV}.alpha"] / made[f"lora_unet_{QKV}.lora_down.weight"].shape[0]
    whole = whole * made[f"lora_unet_{QKV}.lora_up.weight"] @ made[f"lora_unet_{QKV}.lora_down.weight"]
    assert np.allclose(whole[:H], 0.5 * up @ down, atol=1e-5)
    assert np.allclose(whole[H : 2 * H], 2 * up @ down, atol=1e-5)
    there = metadata(tmp_path / "out.safetensors")
    assert "lora_adapter_metadata" not in there
    assert there["format"] == "pt"
    back = tmp_path / "back.safetensors"
    convert(str(tmp_path / "out.safetensors"), to="diffusers", output=str(back), base=flux, knowledge=known,
            network=Network())  # fmt: skip
    assert metadata(back)["lora_adapter_metadata"] == text["lora_adapter_metadata"]
    assert {n: a.tobytes() for n, a in read(back).items()} == {n: a.tobytes() for n, a in arrays.items()}


def test_pefts_alpha_beside_the_file_is_read(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    up, down = pair(H, H, 8)
    folder = tmp_path / "peft"
    folder.mkdir()
    module = "base_model.model.transformer_blocks.0.attn.to_out.0"
    save(folder / "adapter_model.safetensors", {f"{module}.lora_B.weight": up, f"{module}.lora_A.weight": down})
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16, "use_rslora": False}))
    out = tmp_path / "out.safetensors"
    convert(str(folder), to="native", output=str(out), base=flux, knowledge=known, network=Network())
    assert read(out)["diffusion_model.double_blocks.0.img_attn.proj.alpha"] == 16


def test_a_dora_of_peft_becomes_one_of_kohya(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    up, down = pair(H, H, 2)
    magnitude = np.arange(1, H + 1, dtype=np.float32)
    module = "transformer.transformer_blocks.0.attn.to_out.0"
    arrays = {
        f"{module}.lora_B.weight": up, f"{module}.lora_A.weight": down, f"{module}.lora_magnitude_vector": magnitude,
    }  # fmt: skip
    made = turn(known, flux, arrays, "kohya", tmp_path)
    assert made["lora_unet_double_blocks_0_img_attn_proj.dora_scale"].shape == (H, 1)
    assert made["lora_unet_double_blocks_0_img_attn_proj.dora_scale"].ravel().tolist() == magnitude.tolist()


def test_encoders_are_renamed_too(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    up, down = pair(768, 768, 2)
    arrays = {}
    for module in (
        "lora_te1_text_model_encoder_layers_3_self_attn_q_proj",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    ):
        size = 768 if "te1" in module else 4096
        up, down = pair(size, size, 2)
        arrays |= {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down, f"{module}.alpha": np.float32(2)}
    made = turn(known, flux, arrays, "diffusers", tmp_path)
    assert set(made) == {
        f"{m}.lora_{x}.weight"
        for m in (
            "text_encoder.text_model.encoder.layers.3.self_attn.q_proj",
            "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
        )
        for x in "AB"
    }  # fmt: skip


def one(module: str, rows: int = H, columns: int = H, **more: Any) -> Arrays:
    up, down = pair(rows, columns, 4)
    return {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down, **more}


REFUSED: dict[str, tuple[Arrays, str, str]] = {
    "a module the base has not": (one("lora_unet_no_such_module"), "native", "lora_unet_no_such_module"),
    "another size": (one(f"lora_unet_{QKV}", 2 * H), "native", "does not fit"),
    "the same rows twice": (
        {**one(f"lora_unet_{QKV}", 3 * H), **one("transformer.transformer_blocks.0.attn.to_q")}, "native", "twice",
    ),
    "half a pair": ({f"lora_unet_{QKV}.lora_up.weight": pair(3 * H, H, 4)[0]}, "native", "half"),
    "magnitudes by column across a cut": (
        one(f"lora_unet_{QKV}", 3 * H, **{f"lora_unet_{QKV}.dora_scale": np.ones((1, H), np.float32)}), "diffusers",
        "magnitudes",
    ),
    "a CP decomposition where nothing names its middle": (
        {
            "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight": np.ones((10, 2, 1, 1), np.float32),
            "lora_unet_down_blocks_0_resnets_0_conv1.lora_mid.weight": np.ones((2, 2, 3, 3), np.float32),
            "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": np.ones((2, 10, 1, 1), np.float32),
        }, "diffusers", "middle",
    ),
    "an alpha that no number is": (
        one(f"lora_unet_{QKV}", 3 * H, **{f"lora_unet_{QKV}.alpha": np.float32("nan")}), "diffusers", "alpha is nan",
    ),
    "an alpha of zero into a matrix": (
        one(f"lora_unet_{QKV}", 3 * H, **{f"lora_unet_{QKV}.alpha": np.float32(0)}), "diffusers", "alpha is 0",
    ),
    "a Kronecker product cut through": (
        {
            f"lora_unet_{QKV}.lokr_w1": np.ones((2, 2), np.float32),
            f"lora_unet_{QKV}.lokr_w2": np.ones((3 * H // 2, H // 2), np.float32),
        },
        "diffusers", "Kronecker",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_lost_is_refused_and_nothing_is_written(
    known: Knowledge, flux: Base, tmp_path: Path, case: str
) -> None:
    arrays, to, word = REFUSED[case]
    base = small_base(known, "sd15") if "down_blocks" in next(iter(arrays)) else flux
    with pytest.raises(Refused, match=word) as refused:
        turn(known, base, arrays, to, tmp_path)
    assert "lora_unet_" in str(refused.value) or "transformer" in str(refused.value)
    assert listed(tmp_path) == ["in.safetensors"]


def test_metadata_and_foreign_tensors_are_kept(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    arrays = {**one(f"lora_unet_{QKV}", 3 * H), "some.thing": np.arange(3, dtype=np.float32)}
    made = turn(known, flux, arrays, "native", tmp_path, metadata={"ss_network_dim": "4"})
    assert made["some.thing"].tolist() == [0, 1, 2]
    told = metadata(tmp_path / "out.safetensors")
    assert told["ss_network_dim"] == "4"
    record = json.loads(told[KEY])
    assert (record["base"], record["to"], record["source"]) == ("flux_dev", "native", "in.safetensors")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 1}', '{"version":1,"from":{"style":"diffusers"}}', '"x"', "null"]
)
def test_a_record_that_is_not_ours_does_no_harm(known: Knowledge, flux: Base, tmp_path: Path, text: str) -> None:
    made = turn(known, flux, one(f"lora_unet_{QKV}", 3 * H), "diffusers", tmp_path, metadata={KEY: text})
    assert len(made) == 6


def test_a_file_edited_after_a_conversion_is_converted_as_it_is(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    up, down = pair(3 * H, H, 3)
    arrays = {f"lora_unet_{QKV}.lora_up.weight": up, f"lora_unet_{QKV}.lora_down.weight": down,
              f"lora_unet_{QKV}.alpha": np.float32(1)}  # fmt: skip
    made = turn(known, flux, arrays, "diffusers", tmp_path)
    made[f"{SPLIT[1]}.lora_B.weight"] = made[f"{SPLIT[1]}.lora_B.weight"] * np.float32(1.7)
    again = turn(known, flux, made, "kohya", tmp_path, metadata=metadata(tmp_path / "out.safetensors"))
    scale = again[f"lora_unet_{QKV}.alpha"] / again[f"lora_unet_{QKV}.lora_down.weight"].shape[0]
    whole = scale * again[f"lora_unet_{QKV}.lora_up.weight"] @ again[f"lora_unet_{QKV}.lora_down.weight"]
    assert np.allclose(whole[H : 2 * H], 1.7 / 3 * up[H : 2 * H] @ down, atol=1e-4)


def test_nothing_is_replaced_unasked(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    source = save(tmp_path / "in.safetensors", one(f"lora_unet_{QKV}", 3 * H))
    with pytest.raises(Exists):
        convert(str(source), to="native", output=str(out), base=flux, knowledge=known, network=Network())
    assert out.read_bytes() == b"precious"


def test_a_file_that_came_out_wrong_is_thrown_away(
    known: Knowledge, flux: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compatkit.convert import cut

    right = cut.take

    def wrong(math: str, parts: Any, ranges: Any, rows: int, scaled: bool) -> Any:
        return right(math, parts, [((start + H) % rows, size) for start, size in ranges], rows, scaled)

    monkeypatch.setattr("compatkit.convert.build.take", wrong)
    with pytest.raises(Refused, match="thrown away"):
        turn(known, flux, one(f"lora_unet_{QKV}", 3 * H), "diffusers", tmp_path)
    assert listed(tmp_path) == ["in.safetensors"]


def test_a_kill_leaves_what_was_there(tmp_path: Path) -> None:
    """The output is put in place in one step: killed before it, the old file is whole."""
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    with writing(out) as process:
        process.send_signal(signal.SIGKILL)
    assert out.read_bytes() == b"old"
    assert len(listed(tmp_path)) == 2
    with writing(out) as process:  # the next run's is the only one beside it
        assert len(listed(tmp_path)) == 2
        with beside(str(out), True) as stream:  # and one at the same time takes none away
            stream.write(b"new")
            assert len(listed(tmp_path)) == 3
        assert len(listed(tmp_path)) == 2
        process.send_signal(signal.SIGKILL)
    with beside(str(out), True) as stream:
        stream.write(b"newer")
    assert out.read_bytes() == b"newer"
    assert listed(tmp_path) == ["out.safetensors"]


def test_being_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    with writing(tmp_path / "out.safetensors") as process:
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert listed(tmp_path) == []


def test_what_is_left_under_two_names_is_not_written_to(tmp_path: Path) -> None:
    """Killed between the link and the removal: the left-over is the good file."""
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"good")
    os.link(out, tmp_path / ".out.safetensors.compatkit.part")
    with beside(str(out), True) as stream:
        stream.write(b"half")
        stream.flush()
        assert out.read_bytes() == b"good"
    assert listed(tmp_path) == ["out.safetensors"]


@contextlib.contextmanager
def writing(out: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing a file, and its end."""
    code = f"""
import time
from compatkit.cli.convert_command import _ended_cleanly
from compatkit.fetch.written import beside
with _ended_cleanly(), beside({str(out)!r}, True) as stream:
    stream.write(b"x" * 1000); stream.flush(); print("writing", flush=True); time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "writing"
    try:
        yield process
        process.communicate(timeout=10)
    finally:
        process.kill()


def test_a_file_elsewhere(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    save(served / "x.safetensors", one(f"lora_unet_{QKV}", 3 * H))
    with range_server(served) as server:
        convert(server.url("x.safetensors"), to="diffusers", output=str(tmp_path / "o.safetensors"), base=flux,
                knowledge=known, network=Network())  # fmt: skip
    assert len(read(tmp_path / "o.safetensors")) == 6
    assert listed(tmp_path) == ["o.safetensors", "served"]


def test_the_base_is_a_family_a_title_or_what_the_tensors_say(known: Knowledge, tmp_path: Path) -> None:
    module = "lora_unet_layers_0_attention_qkv"
    up, down = pair(11520, 3840, 1)
    arrays = {f"{module}.lora_up.weight": up.astype(np.float16), f"{module}.lora_down.weight": down.astype(np.float16)}
    for base in ("z_image_turbo", "z-image-turbo", None):
        assert len(turn(known, base, arrays, "diffusers", tmp_path)) == 6
    with pytest.raises(SourceError, match="did you mean the family"):
        turn(known, "z_image_turbu", arrays, "diffusers", tmp_path)
    with pytest.raises(SourceError, match="--base"):
        turn(known, None, one("lora_unet_nobody_knows_me"), "diffusers", tmp_path)
    with pytest.raises(SourceError, match="not a diffusion model"):
        turn(known, "clip_l", arrays, "diffusers", tmp_path)


def test_no_adapter_no_conversion(known: Knowledge, flux: Base, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="adapter"):
        turn(known, flux, {"a.weight": np.ones(3, np.float32)}, "native", tmp_path)
