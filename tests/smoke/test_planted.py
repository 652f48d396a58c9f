"""Faults planted in small models: each is found and named with its file and tensor, and clean models show none."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compatkit.headers import open_header
from compatkit.headers.ggml import TYPES
from compatkit.smoke.blocks import LAYOUTS
from compatkit.smoke.weights import BLOCKS
from compatkit.vocabulary import Finding, Report
from tests.smoke.models import (
    HIDDEN,
    WIDTH,
    Raw,
    lora,
    patch,
    stored,
    weights,
    write,
    write_gguf,
    write_model,
)
from tests.support.files import SAFETENSORS_BITS
from tests.support.files import write_gguf as gguf_file

W2 = "layers.2.feed_forward.w2.weight"
QKV = "layers.1.attention.qkv.weight"


def smoke(report: Report) -> list[Finding]:
    return [f for f in report.findings if f.rule.startswith("smoke/")]


def found(report: Report, rule: str, tensor: str, level: str = "error") -> Finding:
    """The one finding, which must name file and tensor."""
    mine = [f for f in smoke(report) if f.rule == rule]
    assert len(mine) == 1, [(f.rule, f.level, f.message) for f in smoke(report)]
    assert mine[0].level == level
    assert Path(report.components[0].source).name in mine[0].message
    assert tensor in mine[0].message
    assert tensor in {
        mine[0].evidence.get("tensor"),
        *mine[0].evidence.get("tensors", ()),
        mine[0].evidence.get("module"),
    }
    assert (report.verdict == "fail") == any(f.level == "error" for f in report.findings)
    return mine[0]


def changed(path: Path, dtype: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A model in which `change` changed some values."""
    values = weights()
    change(values)
    return write_model(path, values, dtype)


# -- clean models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2"])
def test_a_clean_model_gives_nothing(scan: Any, tmp_path: Path, dtype: str) -> None:
    report = scan(write_model(tmp_path / "m.safetensors", dtype=dtype))
    assert smoke(report) == []
    assert report.smoke["scan"]["files"][0]["tensors"] == len(weights())


@pytest.mark.parametrize("type_name", sorted(LAYOUTS))
def test_a_clean_gguf_gives_nothing(scan: Any, tmp_path: Path, type_name: str) -> None:
    values = {n: np.tile(v, (1, 2)) if v.ndim == 2 else v for n, v in weights(layers=2).items()}  # rows of whole blocks
    report = scan(write_gguf(tmp_path / "m.gguf", type_name, values))
    assert [(f.rule, f.message) for f in smoke(report)] == []
    kinds = {r["kind"] for r in report.smoke["scan"]["files"][0]["measured"].values()}
    assert kinds == {"float", "blocks"}


def test_norms_and_biases_as_they_start_are_only_info(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["layers.0.norm.weight"][:] = 1.0
        values["x_embedder.bias"][:] = 0.0

    report = scan(changed(tmp_path / "m.safetensors", "BF16", change))
    assert {(f.rule, f.level) for f in smoke(report)} == {("smoke/constant", "info"), ("smoke/zero", "info")}


def test_unused_rows_of_an_embedding_are_no_hole(scan: Any, tmp_path: Path) -> None:
    values = weights()
    values["embed.weight"] = np.random.default_rng(1).standard_normal((300, 768)).astype(np.float32)
    values["embed.weight"][100:220] = 0.0
    assert smoke(scan(write_model(tmp_path / "m.safetensors", values))) == []


def test_positions_and_markers_are_no_weights(scan: Any, tmp_path: Path) -> None:
    tensors = {n: stored(v, "BF16") for n, v in weights().items()}
    tensors["position_ids"] = Raw("I64", np.arange(77, dtype="<i8").tobytes(), (1, 77))
    tensors["mask"] = Raw("BOOL", bytes(64), (8, 8))
    tensors["zero.comfy_quant"] = Raw("U8", bytes(32), (32,))
    assert smoke(scan(write(tmp_path / "m.safetensors", tensors))) == []


def test_a_large_norm_is_no_outlier(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        for i in range(4):
            values[f"layers.{i}.norm.weight"][:] *= 300 * (i + 1)

    assert smoke(scan(changed(tmp_path / "m.safetensors", "F32", change))) == []


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_one_nan(scan: Any, tmp_path: Path, dtype: str) -> None:
    def change(values: dict[str, Any]) -> None:
        values[W2][3, 17] = np.nan

    finding = found(scan(changed(tmp_path / "m.safetensors", dtype, change)), "smoke/nan", W2)
    assert finding.evidence["count"] == 1
    assert "[3, 17]" in finding.message


def test_one_nan_in_fp8(scan: Any, tmp_path: Path) -> None:
    path = patch(write_model(tmp_path / "m.safetensors", dtype="F8_E4M3"), W2, b"\xff", 3 * HIDDEN + 17)
    assert "[3, 17]" in found(scan(path), "smoke/nan", W2).message


@pytest.mark.parametrize(("byte", "rule"), [(0x7C, "smoke/inf"), (0xFE, "smoke/nan")])
def test_fp8_e5m2_has_both(scan: Any, tmp_path: Path, byte: int, rule: str) -> None:
    path = patch(write_model(tmp_path / "m.safetensors", dtype="F8_E5M2"), W2, bytes([byte]), 5)
    found(scan(path), rule, W2)


def test_many_nans_are_one_finding_with_every_count(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values[W2][:] = np.nan
        values[QKV][:2] = np.nan

    finding = found(scan(changed(tmp_path / "m.safetensors", "BF16", change)), "smoke/nan", W2)
    assert finding.evidence["count"] == WIDTH * HIDDEN
    assert finding.evidence["tensors"] == [W2, QKV]
    assert QKV in finding.message


def test_a_value_that_has_no_fp16(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values[QKV][0, 5] = -70000.0

    finding = found(scan(changed(tmp_path / "m.safetensors", "F16", change)), "smoke/inf", QKV)
    assert "bf16" in finding.fix


def test_an_outlier_of_a_million(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values[W2][100, 200] = 1e6

    finding = found(scan(changed(tmp_path / "m.safetensors", "BF16", change)), "smoke/huge", W2, "warning")
    assert "[100, 200]" in finding.message
    assert finding.evidence["max_abs"] == pytest.approx(1e6, rel=0.01)


def test_a_norm_beyond_fp16_is_a_warning_too(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["layers.2.norm.weight"][7] = 65600.0

    found(scan(changed(tmp_path / "m.safetensors", "F32", change)), "smoke/huge", "layers.2.norm.weight", "warning")


def test_fp16s_largest_number_is_none(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        for i in range(4):
            values[f"layers.{i}.norm.weight"][7] = 65504.0

    assert smoke(scan(changed(tmp_path / "m.safetensors", "F16", change))) == []


@pytest.mark.parametrize(("dtype", "value", "rule"), [("BF16", 0x3CA4, "smoke/huge"), ("F16", 0x251F, "smoke/outlier")])
def test_a_flipped_bit_of_an_exponent(scan: Any, tmp_path: Path, dtype: str, value: int, rule: str) -> None:
    """The highest bit of 0.02's exponent: 6.8e36 in bfloat16, 1311 in float16."""
    path = write_model(tmp_path / "m.safetensors", dtype=dtype)
    patch(path, W2, struct.pack("<H", value ^ 1 << 14), 2 * (7 * HIDDEN + 11))
    assert "[7, 11]" in found(scan(path), rule, W2, "warning").message


def test_an_outlier_is_judged_beside_the_other_blocks(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        for i in range(4):  # in each block: then the model is so
            values[f"layers.{i}.attention.qkv.weight"][1, 1] = 40.0
        values[W2][5, 5] = 40.0

    found(scan(changed(tmp_path / "m.safetensors", "BF16", change)), "smoke/outlier", W2, "warning")


def test_denormals(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values[W2][:] *= 1e-4

    finding = found(scan(changed(tmp_path / "m.safetensors", "F16", change)), "smoke/denormal", W2, "warning")
    assert finding.evidence["share"] > 0.9


def test_what_fp8_without_a_scale_loses(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values[W2][:] *= 0.01

    found(scan(changed(tmp_path / "m.safetensors", "F8_E4M3", change)), "smoke/underflow", W2, "warning")


def test_a_zeroed_layer(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        for name, value in values.items():
            if name.startswith("layers.2."):
                value[:] = 0.0

    report = scan(changed(tmp_path / "m.safetensors", "BF16", change))
    levels = {f.level: f for f in smoke(report) if f.rule == "smoke/zero"}
    assert set(levels) == {"warning", "info"}  # four matrices, one norm
    assert len(levels["warning"].evidence["tensors"]) == 4
    assert levels["info"].evidence["tensor"] == "layers.2.norm.weight"


def test_zeros_of_both_signs_are_zero(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values[W2][:] = 0.0
        values[W2][::2] = -0.0

    found(scan(changed(tmp_path / "m.safetensors", "BF16", change)), "smoke/zero", W2, "warning")


def test_a_constant_matrix(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values[W2][:] = 0.5

    finding = found(scan(changed(tmp_path / "m.safetensors", "BF16", change)), "smoke/constant", W2, "warning")
    assert finding.evidence["value"] == 0.5


def test_one_other_value_makes_it_no_constant(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values[W2][:] = 0.5
        values[W2][60, 60] = 0.25

    assert not [
        f for f in smoke(scan(changed(tmp_path / "m.safetensors", "BF16", change))) if f.rule == "smoke/constant"
    ]


def test_a_block_written_twice(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        for name in [n for n in values if n.startswith("layers.1.")]:
            values[name.replace("layers.1.", "layers.3.")] = values[name].copy()

    report = scan(changed(tmp_path / "m.safetensors", "BF16", change))
    (finding,) = smoke(report)
    assert (finding.rule, finding.level) == ("smoke/duplicate", "warning")
    assert "layers.3 = layers.1" in finding.message


def test_one_tensor_written_twice_is_info(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["layers.3.attention.out.weight"] = values["layers.1.attention.out.weight"]

    (finding,) = smoke(scan(changed(tmp_path / "m.safetensors", "BF16", change)))
    assert (finding.rule, finding.level) == ("smoke/duplicate", "info")


def test_swapped_statistics_of_latents(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        draw = np.random.default_rng(2)
        values["latents_std"] = draw.standard_normal(16).astype(np.float32)
        values["latents_mean"] = draw.random(16).astype(np.float32) + 1

    finding = found(scan(changed(tmp_path / "vae.safetensors", "F32", change)), "smoke/deviation", "latents_std")
    assert "means" in finding.message


def test_a_negative_variance(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["bn.running_var"] = np.ones(128, np.float32)
        values["bn.running_var"][4] = -0.5

    found(scan(changed(tmp_path / "vae.safetensors", "F32", change)), "smoke/deviation", "bn.running_var")


# -- the file -------------------------------------------------------------------------------------------------------


def large(path: Path) -> Path:
    values = weights()
    values[W2] = (np.random.default_rng(5).standard_normal((515, 1027)) * 0.02).astype(np.float32)
    return write_model(path, values)


def test_a_hole_in_the_file(scan: Any, tmp_path: Path) -> None:
    path = large(tmp_path / "m.safetensors")
    start = -(-open_header(path).tensors[W2].offset // 4096) * 4096 + 8192
    with path.open("r+b") as f:
        f.seek(start)
        f.write(bytes(3 * 4096))
    finding = found(scan(path), "smoke/hole", W2)
    assert finding.evidence["count"] == pytest.approx(3 * 4096, abs=32)
    assert f"{start:,}"[:4] in finding.message


def test_a_hole_that_begins_before_the_tensor(scan: Any, tmp_path: Path) -> None:
    path = large(tmp_path / "m.safetensors")
    end = -(-open_header(path).tensors[W2].offset // 4096) * 4096 + 4096
    with path.open("r+b") as f:
        f.seek(end - 8192)
        f.write(bytes(8192))
    found(scan(path), "smoke/hole", W2)


def test_zeros_that_end_elsewhere_are_no_hole(scan: Any, tmp_path: Path) -> None:
    path = large(tmp_path / "m.safetensors")
    start = -(-open_header(path).tensors[W2].offset // 4096) * 4096 + 8192
    with path.open("r+b") as f:
        f.seek(start + 1000)
        f.write(bytes(3 * 4096))
    assert smoke(scan(path)) == []


def test_a_file_that_was_only_reserved(scan: Any, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors", {n: np.zeros_like(v) for n, v in weights().items()})
    (finding,) = (f for f in smoke(scan(path)) if f.level == "error")
    assert finding.rule == "smoke/unwritten"
    assert "m.safetensors" in finding.message


def test_a_truncated_file_is_a_finding_of_its_own(scan: Any, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors")
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size - 5000)
    report = scan(path)
    assert report.verdict == "fail"
    assert [f.rule for f in report.findings] == ["file/truncated"]


# -- quantised ------------------------------------------------------------------------------------------------------


def with_scale(path: Path, type_name: str, value: float, field: int = 0, block: int = 9) -> Path:
    values = {n: np.tile(v, (1, 2)) if v.ndim == 2 else v for n, v in weights().items()}
    write_gguf(path, type_name, values)
    layout = LAYOUTS[type_name]
    at, kind = (*layout.scales, *layout.mins)[field]
    start = block * BLOCKS[type_name][1] + at
    if kind in ("f16", "f32"):
        return patch(path, QKV, struct.pack("<e" if kind == "f16" else "<f", value), start)
    if kind == "iq1m":
        bits = struct.unpack("<H", struct.pack("<e", value))[0]
        for i in range(4):
            patch(path, QKV, bytes([(bits >> (4 * i) & 0xF) << 4]), start + 2 * i + 1)
        return path
    return patch(path, QKV, b"\xff" if kind == "e8m0" else b"\x7f", start)


@pytest.mark.parametrize("type_name", sorted(LAYOUTS))
def test_one_scale_that_is_none(scan: Any, tmp_path: Path, type_name: str) -> None:
    finding = found(scan(with_scale(tmp_path / "m.gguf", type_name, float("inf"))), "smoke/scale", QKV)
    assert finding.evidence["count"] == 1
    assert type_name in finding.message
    assert "block" in finding.message


@pytest.mark.parametrize("type_name", ["Q4_K", "Q5_1", "Q2_K"])
def test_one_minimum_that_is_none(scan: Any, tmp_path: Path, type_name: str) -> None:
    path = with_scale(tmp_path / "m.gguf", type_name, float("nan"), field=1)
    assert "NaN" in found(scan(path), "smoke/scale", QKV).message


def test_a_scale_a_thousand_times_too_large(scan: Any, tmp_path: Path) -> None:
    report = scan(with_scale(tmp_path / "m.gguf", "Q8_0", 60000.0))
    found(report, "smoke/huge", QKV, "warning")


def test_a_layer_whose_scales_are_all_zero(scan: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "Q8_0")
    header = open_header(path)
    patch(path, QKV, b"".join(b"\0\0" + b"\x11" * 32 for _ in range(header.tensors[QKV].nbytes // 34)))
    found(scan(path), "smoke/zero", QKV, "warning")


def test_some_blocks_whose_scales_are_zero(scan: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "Q8_0")
    for block in range(0, 1500, 5):
        patch(path, QKV, b"\0\0", block * 34)
    finding = found(scan(path), "smoke/zero-blocks", QKV, "warning")
    assert finding.evidence["count"] == 300


def test_whole_rows_of_zero_blocks_are_nothing(scan: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "Q8_0")
    row = WIDTH // 32 * 34
    patch(path, QKV, bytes(40 * row), 8 * row)
    assert smoke(scan(path)) == []


def fp8_scaled(**change: Any) -> dict[str, Raw]:
    out: dict[str, Raw] = {}
    for name, value in weights().items():
        if value.ndim < 2:
            out[name] = stored(value, "BF16")
            continue
        scale = np.array(change.get(name, np.abs(value).max() / 448), dtype=np.float32)
        out[name] = stored(value / (np.abs(value).max() / 448), "F8_E4M3")
        module = name.removesuffix(".weight")
        out[f"{module}.weight_scale"] = stored(scale, "F32")
        marker = b'{"format": "float8_e4m3fn"}'
        out[f"{module}.comfy_quant"] = Raw("U8", marker, (len(marker),))
    return out


def test_clean_fp8_with_scales_gives_nothing(scan: Any, tmp_path: Path) -> None:
    assert smoke(scan(write(tmp_path / "m.safetensors", fp8_scaled()))) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_beside_fp8_that_is_none(scan: Any, tmp_path: Path, value: float) -> None:
    path = write(tmp_path / "m.safetensors", fp8_scaled(**{QKV: value}))
    finding = found(scan(path), "smoke/scale", "layers.1.attention.qkv.weight_scale")
    assert QKV in finding.message


def test_a_scale_beside_fp8_that_is_zero(scan: Any, tmp_path: Path) -> None:
    tensors = fp8_scaled()
    tensors["layers.1.attention.qkv.weight_scale"] = stored(np.zeros((3 * WIDTH, 1), np.float32), "F32")
    report = scan(write(tmp_path / "m.safetensors", tensors))
    assert QKV in found(report, "smoke/zero", "layers.1.attention.qkv.weight_scale", "warning").message


def test_a_scale_that_makes_weights_huge(scan: Any, tmp_path: Path) -> None:
    found(scan(write(tmp_path / "m.safetensors", fp8_scaled(**{QKV: 1000.0}))), "smoke/huge", QKV, "warning")


def test_power_of_two_scales(scan: Any, tmp_path: Path) -> None:
    tensors = {n: stored(v, "BF16") for n, v in weights().items() if n != QKV}
    marker = b'{"format": "mxfp8"}'
    tensors[QKV] = stored(weights()[QKV] * 1000, "F8_E4M3")
    scales = np.full((3 * WIDTH, WIDTH // 32), 117, np.uint8)
    tensors["layers.1.attention.qkv.weight_scale"] = Raw("U8", scales.tobytes(), scales.shape)
    tensors["layers.1.attention.qkv.comfy_quant"] = Raw("U8", marker, (len(marker),))
    assert smoke(scan(write(tmp_path / "clean.safetensors", tensors))) == []
    scales[5, 1] = 255
    tensors["layers.1.attention.qkv.weight_scale"] = Raw("U8", scales.tobytes(), scales.shape)
    report = scan(write(tmp_path / "m.safetensors", tensors))
    assert "[5, 1]" in found(report, "smoke/scale", "layers.1.attention.qkv.weight_scale").message


def nf4(absmax: Mapping[str, Any]) -> dict[str, Raw]:
    draw = np.random.default_rng(4)
    out: dict[str, Raw] = {}
    for name, value in weights().items():
        if value.ndim < 2:
            out[name] = stored(value, "BF16")
            continue
        packed = draw.integers(0, 256, value.size // 2, dtype=np.uint8)
        out[name] = Raw("U8", packed.tobytes(), (packed.size, 1))
        scales = (draw.random(value.size // 64) * 0.05 + 0.03).astype(np.float32)
        scales[0] = absmax.get(name, scales[0])
        out[f"{name}.absmax"] = stored(scales, "F32")
        out[f"{name}.quant_map"] = stored(np.linspace(-1, 1, 16), "F32")
        state = b'{"quant_type": "nf4", "blocksize": 64}'
        out[f"{name}.quant_state.bitsandbytes__nf4"] = Raw("U8", state, (len(state),))
    return out


def test_nf4(scan: Any, tmp_path: Path) -> None:
    assert smoke(scan(write(tmp_path / "clean.safetensors", nf4({})))) == []
    finding = found(scan(write(tmp_path / "m.safetensors", nf4({QKV: np.nan}))), "smoke/scale", f"{QKV}.absmax")
    assert QKV in finding.message


def test_packed_weights_that_are_zero(scan: Any, tmp_path: Path) -> None:
    tensors = nf4({})
    tensors[QKV] = tensors[QKV]._replace(data=bytes(len(tensors[QKV].data)))
    found(scan(write(tmp_path / "m.safetensors", tensors)), "smoke/zero", QKV, "warning")


# -- adapters -------------------------------------------------------------------------------------------------------

MODULE = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize("alpha", [16.0, 1.0, None, 32.0])
def test_a_clean_lora_gives_nothing(scan: Any, tmp_path: Path, alpha: float | None) -> None:
    assert smoke(scan(write_model(tmp_path / "l.safetensors", lora(alpha), "F16"))) == []


def test_a_lora_with_a_huge_alpha(scan: Any, tmp_path: Path) -> None:
    values = lora()
    values[f"{MODULE}.alpha"][...] = 50000.0
    finding = found(scan(write_model(tmp_path / "l.safetensors", values, "BF16")), "smoke/strength", MODULE, "warning")
    assert finding.evidence["rank"] == 16


def test_a_lora_with_an_alpha_that_is_no_number(scan: Any, tmp_path: Path) -> None:
    values = lora()
    values[f"{MODULE}.alpha"][...] = np.nan
    found(scan(write_model(tmp_path / "l.safetensors", values, "F32")), "smoke/nan", f"{MODULE}.alpha")


def test_a_lora_that_went_astray(scan: Any, tmp_path: Path) -> None:
    values = lora()
    values[f"{MODULE}.lora_up.weight"] *= 1000
    found(scan(write_model(tmp_path / "l.safetensors", values, "F16")), "smoke/strength", MODULE, "warning")


def test_a_lora_that_was_never_trained(scan: Any, tmp_path: Path) -> None:
    values = lora()
    values[f"{MODULE}.lora_up.weight"][:] = 0
    finding = found(
        scan(write_model(tmp_path / "l.safetensors", values, "F16")),
        "smoke/zero",
        f"{MODULE}.lora_up.weight",
        "warning",
    )
    assert "never trained" in finding.message


def test_a_causal_mask_is_no_weight(scan: Any, tmp_path: Path) -> None:
    values = weights()
    values["text.attn_mask"] = np.triu(np.full((77, 77), -np.inf, np.float32), 1)
    assert smoke(scan(write_model(tmp_path / "m.safetensors", values, "F32"))) == []


# -- damaged bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_data_that_slipped_by_one_byte(scan: Any, tmp_path: Path, dtype: str) -> None:
    path = write_model(tmp_path / "m.safetensors", dtype=dtype)
    header = open_header(path)
    tensor = header.tensors[W2]
    raw = path.read_bytes()
    patch(path, W2, raw[tensor.offset + 1 : tensor.offset + tensor.nbytes + 1])
    rules = {f.rule for f in smoke(scan(path)) if W2 in f.message or W2 in f.evidence.get("tensors", ())}
    assert rules & {"smoke/nan", "smoke/inf", "smoke/huge"}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_a_sector_of_other_bytes(scan: Any, tmp_path: Path, dtype: str) -> None:
    path = write_model(tmp_path / "m.safetensors", dtype=dtype)
    patch(path, W2, np.random.default_rng(3).bytes(4096), 512)
    rules = {f.rule for f in smoke(scan(path)) if W2 in f.message}
    assert rules & {"smoke/nan", "smoke/inf", "smoke/huge"}


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
def test_a_sector_of_other_bytes_in_blocks(scan: Any, tmp_path: Path, type_name: str) -> None:
    values = {n: np.tile(v, (1, 4)) if v.ndim == 2 else v for n, v in weights().items()}
    path = patch(write_gguf(tmp_path / "m.gguf", type_name, values), W2, np.random.default_rng(3).bytes(16384), 1024)
    rules = {f.rule for f in smoke(scan(path)) if W2 in f.message}
    assert rules & {"smoke/scale", "smoke/huge", "smoke/outlier"}


@pytest.mark.parametrize("dtype", sorted(SAFETENSORS_BITS))
def test_any_bytes_of_any_dtype_can_be_looked_at(scan: Any, tmp_path: Path, dtype: str) -> None:
    draw = np.random.default_rng(11)
    shapes = {"a.weight": (24, 40), "b.weight": (64,), "c": (1, 1, 8), "empty": (0, 8)}
    tensors = {
        n: Raw(dtype, draw.bytes(int(np.prod(shape)) * SAFETENSORS_BITS[dtype] // 8), shape)
        for n, shape in shapes.items()
    }
    report = scan(write(tmp_path / "m.safetensors", tensors))
    unread = [n.why for n in report.not_checked if "not read" in n.why]
    assert bool(unread) == dtype.startswith("F6_")  # six bits: nothing ships it, and it is said


@pytest.mark.parametrize("type_name", sorted(BLOCKS))
def test_any_bytes_of_any_block_type_can_be_looked_at(scan: Any, tmp_path: Path, type_name: str) -> None:
    code, (elements, size) = next(c for c, row in TYPES.items() if row[0] == type_name), BLOCKS[type_name]
    path = gguf_file(tmp_path / "m.gguf", {"a.weight": ((code, elements, size), (6, 2 * elements))}, {})
    patch(path, "a.weight", np.random.default_rng(12).bytes(12 * size))
    report = scan(path)
    unread = [n.why for n in report.not_checked if "not read" in n.why]
    assert bool(unread) == (type_name not in LAYOUTS)


def lycoris(kind: str, size: float, alpha: float = 8.0) -> dict[str, Any]:
    """One module each of LoHa, LoKr (in factors and whole) and a full difference."""
    draw = np.random.default_rng(9)

    def matrix(*shape: int) -> Any:
        return (draw.standard_normal(shape) * size).astype(np.float32)

    parts = {
        "loha": {f"hada_w{i}_{s}": matrix(*((320, 8) if s == "a" else (8, 320))) for i in (1, 2) for s in "ab"},
        "lokr": {"lokr_w1": matrix(16, 16), "lokr_w2_a": matrix(20, 8), "lokr_w2_b": matrix(8, 20)},
        "lokr_whole": {"lokr_w1": matrix(16, 16), "lokr_w2": matrix(20, 20)},
        "full": {"diff": matrix(320, 320)},
    }  # fmt: skip
    out = {f"{MODULE}.{part}": value for part, value in parts[kind].items()}
    return out | ({} if kind == "full" else {f"{MODULE}.alpha": np.array(alpha, np.float32)})


@pytest.mark.parametrize("kind", ["loha", "lokr", "lokr_whole", "full"])
def test_other_adapters_that_went_astray(scan: Any, tmp_path: Path, kind: str) -> None:
    small = {"loha": 0.1, "lokr": 0.05, "lokr_whole": 0.05, "full": 0.001}[kind]
    assert smoke(scan(write_model(tmp_path / "l.safetensors", lycoris(kind, small), "F32"))) == []
    path = write_model(tmp_path / "big.safetensors", lycoris(kind, 3.0), "F32")
    found(scan(path), "smoke/strength", MODULE, "warning")


def test_an_alpha_that_does_not_count_is_not_held_against_it(scan: Any, tmp_path: Path) -> None:
    """A LoKr of two whole factors has no rank; trainers write any alpha."""
    path = write_model(tmp_path / "l.safetensors", lycoris("lokr_whole", 0.05, alpha=1e4), "F32")
    assert smoke(scan(path)) == []


def test_ratios_beyond_all_bounds_do_not_break_the_rules(scan: Any, tmp_path: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values[W2][:] = 1e-37
        values[W2][1, 1] = 60000.0

    found(scan(changed(tmp_path / "m.safetensors", "F32", change)), "smoke/outlier", W2, "warning")
