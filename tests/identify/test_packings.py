"""Every way a model is packed: family, facts and parameters stay what they are, and the packing is named."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import compatkit
from compatkit.headers import open_header
from compatkit.headers.ggml import TYPES
from compatkit.identify.identify import identify
from compatkit.identify.schemes import metadata_markers, parse_marker
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.packingfile import parse_packings
from compatkit.knowledge.store import load
from compatkit.knowledge.yamlfile import RuleFileError
from compatkit.knowledge.yamlfile import load as load_yaml
from compatkit.vocabulary import Component, Header
from tests.support import packed as make
from tests.support.files import write_safetensors

FAMILIES = (
    "flux_dev",
    "qwen_image",
    "z_image_turbo",
    "wan21_t2v_14b",
    "sd3_medium",
    "lumina2",
    "flux2_klein_4b",
    "hunyuan_video",
    "t5xxl",
    "qwen3_4b",
)
#: What only a marker can tell: without it the names and dtypes mean something else.
MARKED = {"int8_convrot": "int8_tensorwise", "comfy_unlisted": "fp8_scaled"}
PLAIN = {"F64", "F32", "F16", "BF16"}


@cache
def shapes(family: str, layout: str | None = None) -> dict[str, tuple[int, ...]]:
    return example_shapes(load().grammar(family), layout)


@cache
def unpacked(family: str, layout: str | None = None) -> Component:
    return only(make.header({n: ("BF16", s) for n, s in shapes(family, layout).items()}))


def only(header: Header, **settings: Any) -> Component:
    found = identify(header, load(), **settings)
    assert len(found) == 1
    return found[0]


def same(found: Component, base: Component) -> None:
    assert (found.family, found.also, found.layout) == (base.family, base.also, base.layout)
    assert found.facts == base.facts
    assert found.parameters == base.parameters
    assert not found.missing
    assert not found.mismatched
    assert not found.foreign


@pytest.mark.parametrize("scheme", make.SCHEMES)
def test_a_packed_file_is_still_its_model(scheme: str) -> None:
    named = "fp8" if scheme == "fp8_e5m2" else scheme
    for family in FAMILIES:
        packed = make.packed(shapes(family), scheme)
        told = only(packed.header, read=packed.read)
        same(told, unpacked(family))
        assert told.quantization.scheme == named
        untold = only(packed.header)
        same(untold, unpacked(family))
        assert untold.quantization.scheme == MARKED.get(named, named)


@pytest.mark.parametrize("scheme", ["svdquant_int4", "svdquant_fp4"])
@pytest.mark.parametrize(
    ("family", "layout"),
    [("flux_dev", "nunchaku"), ("flux_dev", "diffusers"), ("qwen_image", "nunchaku"), ("qwen_image", "native")],
)
def test_svdquant_in_the_makers_names_and_in_diffusers(family: str, layout: str, scheme: str) -> None:
    packed = make.packed(shapes(family, layout), scheme)
    found = only(packed.header)
    same(found, unpacked(family, layout))
    assert found.layout == layout
    assert found.quantization.scheme == scheme
    assert set(found.loads_as.values()) <= {None, found.loads_as.get("diffusers")}
    assert found.loads_as["comfyui"] is None


@pytest.mark.parametrize(
    "kind", [name for name, _, _ in TYPES.values() if (name not in PLAIN and name[0] != "I") or name[:2] == "IQ"]
)
def test_every_ggml_type(kind: str) -> None:
    family = "z_image_turbo"
    header = make.gguf(shapes(family), kind, {"general.architecture": "lumina2", "general.file_type": 15})
    found = only(header)
    assert found.family == family
    assert found.parameters == unpacked(family).parameters
    assert found.quantization.scheme == kind
    assert found.quantization.notes == ("file type Q4_K_M",)
    block, size = next((b, s) for name, b, s in TYPES.values() if name == kind)
    assert found.quantization.bits == pytest.approx(8 * size / block, rel=0.06)


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        ("fp8", 8.0),
        ("fp8_scaled", 8.0),
        ("nvfp4", 4.5),
        ("mxfp8", 8.25),
        ("int8_tensorwise", 8.0),
        ("w4a8", 4.5),
        ("convrot_w4a4", 4.0),
        ("bnb_nf4", 4.13),
        ("svdquant_int4", 4.6),
        ("dfloat11", 10.3),
        ("mixed", 6.25),
    ],
)
def test_bits_are_counted_with_scales_and_what_stays_unpacked(scheme: str, bits: float) -> None:
    assert only(make.packed(shapes("qwen_image"), scheme).header).quantization.bits == pytest.approx(bits, rel=0.05)


def test_a_mix_names_its_parts() -> None:
    packed = make.packed(shapes("flux_dev"), "mixed")
    found = only(packed.header, read=packed.read)
    count = len(make.linears(shapes("flux_dev")))
    assert found.quantization.formats == {"fp8_scaled": (count + 1) // 2, "nvfp4": count // 2}
    assert sum(r.bytes for r in found.values_read) < 200
    assert 2 <= len(found.values_read) <= 6


def test_rotation_is_noted() -> None:
    packed = make.packed(shapes("qwen_image"), "int8_tensorwise")
    assert only(packed.header, read=packed.read).quantization.notes == ("rotated (ConvRot), groups of 256",)


def test_markers_of_one_kind_that_disagree_are_all_read() -> None:
    packed = make.packed(shapes("qwen_image"), "fp8_scaled")
    names = sorted(packed.contents)
    packed.contents[names[0]] = b'{"format": "float8_e9m9xx"}'[: len(packed.contents[names[0]])]
    names = list(packed.contents)
    packed.contents[names[-1]] = b'{"format": "float8_e9m9fn"}'
    found = only(packed.header, read=packed.read)
    assert found.quantization.scheme == "mixed"
    assert found.quantization.formats["comfy_unlisted"] >= 1
    assert len(found.values_read) == len(names)


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"\xff\xfe", b"nothing", b"[" * 3000, b'"float8_e4m3fn"', b"null"])
def test_a_marker_that_makes_no_sense_says_nothing(raw: bytes) -> None:
    packed = make.packed(shapes("qwen_image"), "fp8_scaled")
    packed.contents.update(dict.fromkeys(packed.contents, raw))
    assert only(packed.header, read=packed.read).quantization.scheme == "fp8_scaled"
    assert parse_marker(raw) is None


def test_what_a_marker_says_is_cleaned() -> None:
    found = parse_marker(json.dumps({"format": "\x1b[31mx" + "y" * 500, "params": {"convrot": True}}).encode())
    assert found is not None
    assert found.format.isprintable()
    assert len(found.format) == 40
    assert found.notes == ("rotated (ConvRot)",)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"layers": 3}', '{"layers": {"a": 1}}', "[" * 3000, None, 7])
def test_metadata_that_make_no_sense_say_nothing(text: Any) -> None:
    assert metadata_markers({"_quantization_metadata": text}) == {}


def test_a_scale_is_a_companion_only_beside_packed_integers() -> None:
    rows = {n: ("BF16", s) for n, s in shapes("flux_dev").items()}
    rows["img_in.scale"] = ("BF16", (5,))
    found = only(make.header(rows))
    assert found.quantization.scheme == "none"
    assert found.foreign == ("img_in.scale",)
    assert "double_blocks.0.img_attn.norm.query_norm.scale" in found.tensors


def test_packings_are_named_in_a_file_whose_model_is_not_known() -> None:
    found = only(make.packed({f"strange.{i}.thing.weight": (512, 256) for i in range(9)}, "bnb_nf4").header)
    assert found.family is None
    assert found.quantization.scheme == "bnb_nf4"
    assert found.parameters == 9 * 512 * 256


def test_a_look_alike_of_other_sizes_is_not_taken_for_packed() -> None:
    wide = {n: tuple(s * 2 if s == 3072 else s for s in shape) for n, shape in shapes("flux2_klein_4b").items()}
    for scheme in ("bnb_nf4", "gptq"):
        assert "flux2_klein_4b" not in only(make.packed(wide, scheme).header).families


def on_disk(path: Path, packed: make.Packed) -> Path:
    rows = {n: (t.dtype, t.shape) for n, t in packed.header.tensors.items()}
    write_safetensors(path, rows, dict(packed.header.metadata))
    tensors = open_header(path).tensors
    with path.open("r+b") as file:
        for name, content in packed.contents.items():
            file.seek(tensors[name].offset)
            file.write(content)
    return path


def test_markers_are_read_from_the_file(tmp_path: Path) -> None:
    path = on_disk(tmp_path / "model.safetensors", make.packed(shapes("z_image_turbo"), "int8_convrot"))
    (found,) = compatkit.inspect(path)
    assert found.quantization.scheme == "int8_convrot"
    assert {r.bytes for r in found.values_read} == {len(b'{"convrot": true, "convrot_groupsize": 256}')}
    (header_only,) = compatkit.inspect(path, headers_only=True)
    assert header_only.quantization.scheme == "int8_tensorwise"
    assert header_only.values_read == ()


@pytest.mark.parametrize(
    ("scheme", "runtime", "level", "says"),
    [
        ("int8_tensorwise", "comfyui@0.26.0", "error", ["int8_tensorwise", "0.27.0", "KeyError", "12.3 GB"]),
        ("int8_tensorwise", "comfyui@0.27.0", None, []),
        ("int8_convrot", "comfyui@0.33.0", "error", ["INT8 ConvRot", "Unknown quantization format", "12.3 GB"]),
        ("mixed", "comfyui@0.7.0", "error", ["a mix of", "NVFP4", "0.8.0"]),
        ("mixed", "comfyui@0.8.0", None, []),
        ("dfloat11", "comfyui", "error", ["DFloat11", "12.3 GB", "noise", "ComfyUI-DFloat11"]),
        ("bnb_nf4", "comfyui", "error", ["NF4", "size mismatch", "12.3 GB"]),
        ("fp8_unnamed", "comfyui", "error", ["fp8", "noise"]),
        ("fp8_scaled_metadata", "comfyui@0.3.70", None, []),
        ("fp8_scaled", "comfyui@0.3.70", "error", ["0.4.0"]),
    ],
)
def test_a_finding_names_the_packing_its_loaders_and_the_plain_size(
    tmp_path: Path, scheme: str, runtime: str, level: str | None, says: list[str]
) -> None:
    path = on_disk(tmp_path / "model.safetensors", make.packed(shapes("z_image_turbo"), scheme))
    findings = [f for f in compatkit.check([path], runtime=[runtime]).findings if f.rule == "quant/needs-loader"]
    assert [f.level for f in findings] == ([level] if level else [])
    text = str([(f.message, f.predicts, f.fix, f.evidence) for f in findings])
    assert [s for s in says if s not in text] == []


def test_a_format_nobody_knows_is_not_judged(tmp_path: Path) -> None:
    path = on_disk(tmp_path / "model.safetensors", make.packed(shapes("z_image_turbo"), "comfy_unlisted"))
    report = compatkit.check([path], runtime=["comfyui"])
    assert report.verdict == "unknown"
    assert not [f for f in report.findings if f.rule == "quant/needs-loader"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1", "a list of packings"),
        ("- 3", "a mapping"),
        ("- {id: x, has: [a], colour: red}", "unknown key"),
        ("- {id: x, has: a}", "wrong type"),
        ("- {has: [a]}", "id is missing"),
        ("- {id: x}", "nothing tells"),
        ("- {id: x, has: [a]}\n- {id: x, has: [b]}", "twice"),
        ("- {id: x, has: [a], loaders: {comfyui: {sinse: 1}}}", "since"),
    ],
)
def test_a_bad_entry_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "packings.yaml"
    path.write_text(text)
    with pytest.raises(RuleFileError, match=why):
        parse_packings(load_yaml(path))
