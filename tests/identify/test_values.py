"""Facts that one number of a small tensor decides: read only where a family asks, listed, and never from a hole."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import compatkit
from compatkit.headers import open_header
from compatkit.identify.identify import identify
from compatkit.identify.shapes import example_shapes
from compatkit.identify.values import decode, statistic
from compatkit.knowledge.store import Knowledge, load
from compatkit.knowledge.yamlfile import RuleFileError
from compatkit.render.document import component_document
from tests.support.files import write_safetensors
from tests.support.packed import header
from tests.support.rules import PLAIN, families, plain

NORM = "layers.28.ffn_norm1.weight"
BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"


@cache
def shapes(family: str, layout: str | None = None) -> dict[str, tuple[int, ...]]:
    return example_shapes(load().grammar(family), layout)


def spread(count: int, deviation: float) -> list[float]:
    """Numbers around 1 with this standard deviation, exactly."""
    return [1 + deviation * (-1) ** i for i in range(count)]


def bf16(numbers: Iterable[float]) -> bytes:
    return b"".join(struct.pack("<f", x)[2:] for x in numbers)


def model(path: Path, family: str, contents: dict[str, bytes], layout: str | None = None, prefix: str = "") -> Path:
    write_safetensors(path, {prefix + n: ("BF16", s) for n, s in shapes(family, layout).items()})
    tensors = open_header(path).tensors
    with path.open("r+b") as file:
        for name, raw in contents.items():
            assert len(raw) == tensors[name].nbytes
            file.seek(tensors[name].offset)
            file.write(raw)
    return path


@pytest.mark.parametrize(("deviation", "allowed"), [(0.25, True), (0.375, True), (0.5, False), (3.0, False)])
@pytest.mark.parametrize(
    ("layout", "prefix"), [(None, ""), ("diffusers", ""), (None, "model.diffusion_model."), ("nunchaku", "")]
)
def test_one_norm_tells_whether_fp16_holds(
    tmp_path: Path, deviation: float, allowed: bool, layout: str | None, prefix: str
) -> None:
    name = prefix + NORM
    raw = bf16(spread(3840, deviation))
    (found,) = compatkit.inspect(model(tmp_path / "m.safetensors", "z_image_turbo", {name: raw}, layout, prefix))
    assert found.facts["fp16"] is allowed
    assert [(r.tensor, r.bytes) for r in found.values_read] == [(name, 7680)]
    assert f"std {deviation:.4g}" in found.values_read[0].says
    assert any(name in e and "fp16" in e for e in found.evidence)
    document = component_document(found)
    assert document["values_read"] == [{"tensor": name, "bytes": 7680, "says": found.values_read[0].says}]
    json.dumps(document)


@pytest.mark.parametrize(("deviation", "prediction"), [(0.05, "eps"), (0.125, "v")])
def test_one_bias_tells_what_an_old_model_predicts(tmp_path: Path, deviation: float, prediction: str) -> None:
    raw = bf16(spread(320, deviation))
    (found,) = compatkit.inspect(model(tmp_path / "m.safetensors", "sd20", {BIAS: raw}))
    assert found.facts["prediction"] == prediction


def test_a_hole_decides_nothing(tmp_path: Path) -> None:
    (found,) = compatkit.inspect(model(tmp_path / "m.safetensors", "z_image_turbo", {}))
    assert "fp16" not in found.facts
    assert found.values_read == ()


def test_headers_only_reads_nothing(tmp_path: Path) -> None:
    path = model(tmp_path / "m.safetensors", "z_image_turbo", {NORM: bf16(spread(3840, 0.1))})
    (found,) = compatkit.inspect(path, headers_only=True)
    assert "fp16" not in found.facts
    assert found.values_read == ()
    (judged,) = compatkit.check([path], headers_only=True).components
    assert judged.values_read == ()
    assert compatkit.check([path]).components[0].values_read


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_no_number_decides_nothing(tmp_path: Path, odd: float) -> None:
    raw = bf16([odd, *spread(3839, 0.1)])
    (found,) = compatkit.inspect(model(tmp_path / "m.safetensors", "z_image_turbo", {NORM: raw}))
    assert "fp16" not in found.facts
    assert [r.says for r in found.values_read] == [""]


def test_only_a_family_that_asks_is_read() -> None:
    asked: list[list[str]] = []

    def read(names: Iterable[str]) -> dict[str, bytes]:
        asked.append(list(names))
        return {}

    for family in ("flux_dev", "sdxl", "sd2_inpaint", "t5xxl"):
        identify(header({n: ("BF16", s) for n, s in shapes(family).items()}), load(), read=read)
    assert asked == []
    identify(header({n: ("BF16", s) for n, s in shapes("z_image_turbo").items()}), load(), read=read)
    assert asked == [[NORM]]


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_numbers_are_decoded_as_torch_would(dtype: str) -> None:
    numpy = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    kind = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(dtype, "")
    kind = kind or {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}[dtype]
    raw = bytes(range(256)) * 8
    expected = torch.frombuffer(bytearray(raw), dtype=getattr(torch, kind)).to(torch.float64).numpy()
    assert numpy.array_equal(numpy.array(decode(raw, dtype)), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("byte", "dtype", "number"),
    [(0x00, "F8_E4M3", 0.0), (0x38, "F8_E4M3", 1.0), (0xB8, "F8_E4M3", -1.0), (0x7E, "F8_E4M3", 448.0),
     (0x01, "F8_E4M3", 2.0**-9), (0x3C, "F8_E5M2", 1.0), (0x7B, "F8_E5M2", 57344.0)],
)  # fmt: skip
def test_fp8(byte: int, dtype: str, number: float) -> None:
    assert list(decode(bytes([byte]), dtype) or ()) == [number]


def test_statistics() -> None:
    numbers = [random.Random(3).uniform(-2, 1) for _ in range(999)]
    raw = struct.pack("<999d", *numbers)
    mean = sum(numbers) / 999
    assert statistic("mean", raw, "F64") == pytest.approx(mean)
    assert statistic("std", raw, "F64") == pytest.approx((sum((x - mean) ** 2 for x in numbers) / 999) ** 0.5)
    assert statistic("min", raw, "F64") == min(numbers)
    assert statistic("max", raw, "F64") == max(numbers)
    assert statistic("max_abs", raw, "F64") == max(map(abs, numbers))
    assert statistic("sha256", raw, "U8") == hashlib.sha256(raw).hexdigest()
    assert statistic("std", raw, "Q4_K") is None
    assert statistic("std", b"", "F32") is None


VALUE = """\
values:
  - {tensor: "blocks.{layers-1}.norm2.weight", statistic: mean, compare: ">= 0.5", sets: tuned}
"""
MAPPED = """\
layouts:
  other:
    - rename: {"blocks.{i}.norm2": "steps.{i}.post"}
  fused:
    - fuse: {from: ["**.norm1", "**.norm2"], to: "**.norms"}
"""


def told(knowledge: Knowledge, names: dict[str, str], value: float) -> Any:
    rows = {names.get(n, n): ("F32", s) for n, s in plain().items()}
    target = names.get("blocks.2.norm2.weight", "blocks.2.norm2.weight")
    raw = {target: struct.pack("<64f", *[value] * 64)}
    (found,) = identify(header(rows), knowledge, read=lambda wanted: {n: raw[n] for n in wanted if n in raw})
    return found.facts.get("tuned")


def test_a_family_says_what_its_values_mean(tmp_path: Path) -> None:
    knowledge = families(tmp_path, PLAIN + VALUE + MAPPED)
    assert told(knowledge, {}, 0.75) is True
    assert told(knowledge, {}, 0.25) is False
    other = {n: n.replace("blocks.", "steps.").replace("norm2", "post") for n in plain() if "norm2" in n}
    assert told(knowledge, other, 0.75) is True


def test_relatives_do_not_inherit_values(tmp_path: Path) -> None:
    more = "id: more\nlike: plain\nadd: {extra: [7]}\n"
    knowledge = families(tmp_path, PLAIN + VALUE, more)
    assert knowledge.grammar("plain")["values"]
    assert not knowledge.grammar("more")["values"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("{statistic: std, compare: '< 1', sets: x}", "tensor is missing"),
        ("{tensor: nowhere, statistic: std, compare: '< 1', sets: x}", "no tensor 'nowhere'"),
        ("{tensor: final.bias, statistic: median, compare: '< 1', sets: x}", "one of std"),
        ("{tensor: final.bias, statistic: std, compare: 'below 1', sets: x}", "a comparison"),
        ("{tensor: final.bias, statistic: std, compare: '< one', sets: x}", "no number"),
        ("{tensor: final.bias, statistic: sha256, compare: '== abc', sets: x}", "64 hex digits"),
        ("{tensor: final.bias, statistic: std, compare: '< 1', sets: x, colour: red}", "unknown key"),
        ("{tensor: 'blocks.{', statistic: std, compare: '< 1', sets: x}", "brace"),
        ("7", "a mapping"),
    ],
)
def test_a_bad_value_is_refused(tmp_path: Path, value: str, why: str) -> None:
    with pytest.raises(RuleFileError, match=why):
        families(tmp_path, PLAIN + f"values:\n  - {value}\n")
