"""What is no model is named for what it is, whatever its name."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatkit.headers import MEANINGS, open_header
from compatkit.sources.local import LocalSource
from compatkit.vocabulary import FileProblem, HeaderError
from tests.support.files import safetensors_bytes, write_gguf, write_safetensors


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 9000)
    return out.getvalue()


def tarred(name: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return out.getvalue()


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1/0",)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12309866400\n"
TORCH_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)

CASES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "file/empty", "is empty"),
    "LFS pointer": (POINTER, "file/lfs-pointer", "the real file has 12,309,866,400 bytes (sha256:4d7a"),
    "LFS pointer, cut": (POINTER[:60], "file/lfs-pointer", "a Git LFS pointer of 60 bytes"),
    "Xet pointer": (b"# xet version 0\nfilesize = 123\nhash = 'abc'\n", "file/lfs-pointer", "a Xet pointer"),
    "HTML": (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "file/web-page", "titled 'Sign in'"),
    "HTML after blanks": (b"\xef\xbb\xbf\r\n <HTML>", "file/web-page", "a web page"),
    "XML error": (
        b"<?xml version='1.0'?><Error><Message>No such key</Message></Error>",
        "file/web-page",
        "'No such key'",
    ),
    "JSON error": (b'{"error": "Repository not found"}', "file/web-page", "says 'Repository not found'"),
    "JSON with a brace at byte 8": (b'{"abcde":{"x": 1}, "error": "no"}', "file/web-page", "says 'no'"),
    "text error": (b"Entry not found", "file/web-page", "'Entry not found'"),
    "text": (b"# A readme\n" * 100, "file/not-a-model", "plain text, not a model"),
    "text with a secret": (b"HF_TOKEN=hf_AbCdEfGh0123456789\n", "file/not-a-model", "plain text, not a model"),
    "error with a secret": (b"error: denied, token=abc", "file/web-page", "an error message in plain text"),
    "index": (b'{"weight_map": {"a": "b"}}', "file/not-a-model", "the index of a split model"),
    "diffusers config": (b'{"_class_name": "UNet2DConditionModel"}', "file/not-a-model", "a diffusers config"),
    "transformers config": (b'{"model_type": "qwen3"}', "file/not-a-model", "a transformers config"),
    "workflow": (b'{"nodes": [], "links": []}', "file/not-a-model", "a ComfyUI workflow"),
    "API workflow": (b'{"3": {"class_type": "KSampler"}}', "file/not-a-model", "a ComfyUI workflow"),
    "other JSON": (b'{"a": 1}', "file/not-a-model", "JSON, not a model"),
    "JSON list": (b"[1, 2, 3, 4, 5]", "file/not-a-model", "JSON (list)"),
    "torch zip of rubbish": (
        zipped("archive/data.pkl", "archive/data/0"),
        "file/corrupt",
        "its data.pkl holds the byte",
    ),
    "DDUF": (zipped("model_index.json", "vae/x.safetensors"), "file/not-a-model", "DDUF"),
    "npz": (zipped("a.npy"), "file/not-a-model", "NumPy"),
    "zip": (zipped("readme.txt"), "file/not-a-model", "is a zip archive"),
    "bomb": (pickle.dumps(Bomb(), 2), "file/pickle-code", "would call builtins.eval('1/0')"),
    "pickle 4": (pickle.dumps({"a": 1}, 4), "file/pickle", "a Python pickle (protocol 4)"),
    "legacy torch, cut": (TORCH_LEGACY, "file/truncated", "its pickle has no end"),
    "torch tar": (tarred("sys_info"), "file/pickle", "a torch checkpoint of the oldest kind"),
    "tar": (tarred("readme"), "file/not-a-model", "a tar archive"),
    "gzip": (gzip.compress(b"x"), "file/not-a-model", "a gzip archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(30), "file/not-a-model", "a 7z archive"),
    "RAR": (b"Rar!\x1a\x07\x01" + bytes(30), "file/not-a-model", "a RAR archive"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(30), "file/not-a-model", "a PNG picture"),
    "MP4": (b"\0\0\0\x20ftypisom" + bytes(30), "file/not-a-model", "an MP4 video"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(30), "file/not-a-model", "HDF5"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x051.9.0", "file/not-a-model", "ONNX"),
    "GGML": (b"lmgg" + bytes(30), "file/gguf-version", "a GGML file"),
    "GGJT": (b"tjgg\x03\0\0\0" + bytes(30), "file/gguf-version", "a GGJT file"),
    "zeros": (bytes(10_000), "file/corrupt", "all zeros in its first 4,096 bytes"),
}


def problem_of(path: Path) -> FileProblem:
    with pytest.raises(HeaderError) as caught:
        open_header(path)
    return caught.value.problem


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf", ".bin", ".json", ""])
@pytest.mark.parametrize("case", CASES)
def test_named_for_what_it_is(tmp_path: Path, case: str, suffix: str) -> None:
    content, rule, words = CASES[case]
    if case == "index" and suffix == ".json":
        pytest.skip("there it is an index and no disguise")
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    found = problem_of(path)
    assert (found.rule, found.level) == (rule, "error")
    assert words in found.message
    assert f"model{suffix}" in found.message
    assert found.fix
    json.dumps(dict(found.evidence))


def test_evidence_of_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(POINTER)
    evidence = problem_of(tmp_path / "x").evidence
    assert evidence == {"size": len(POINTER), "real_size": 12309866400, "oid": "sha256:" + "4d7a" * 16}


def test_random_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x07\xa3\xff\x13" * 50)
    assert problem_of(tmp_path / "x.safetensors").rule == "file/corrupt"
    (tmp_path / "x").write_bytes(b"\x07\xa3\xff\x13" * 50)
    assert problem_of(tmp_path / "x").rule == "file/not-a-model"


@pytest.mark.parametrize("name", ["x.safetensors", "x.SFT", "x.bin", "x.ckpt", "x.pt"])
def test_gguf_under_a_wrong_suffix_is_read_and_said(tmp_path: Path, name: str) -> None:
    header = open_header(write_gguf(tmp_path / name, {"w": ("F32", (1,))}))
    assert list(header.tensors) == ["w"]
    assert [(p.rule, p.level) for p in header.problems] == [("file/wrong-suffix", "error")]
    assert "GGUF inside" in header.problems[0].message
    assert ".gguf" in header.problems[0].fix


@pytest.mark.parametrize("name", ["x.gguf", "x.ckpt", "x.pth"])
def test_safetensors_under_a_wrong_suffix_is_read_and_said(tmp_path: Path, name: str) -> None:
    header = open_header(write_safetensors(tmp_path / name, {"w": ("F32", (1,))}))
    assert [p.rule for p in header.problems] == ["file/wrong-suffix"]


@pytest.mark.parametrize("name", ["4d7a214614ab2935", "x.SafeTensors", "x.safetensors.bak", ".safetensors", "x.sft"])
def test_other_names_are_no_problem(tmp_path: Path, name: str) -> None:
    assert open_header(write_safetensors(tmp_path / name, {"w": ("F32", (1,))})).problems == ()


def test_every_id_has_a_meaning() -> None:
    assert all(rule.startswith("file/") and meaning.endswith(".") for rule, meaning in MEANINGS.items())
    assert {rule for _, rule, _ in CASES.values()} <= set(MEANINGS)


@given(st.binary(max_size=200), st.sampled_from(["x.safetensors", "x.gguf", "x.json", "x-00001-of-00002.safetensors"]))
def test_any_bytes_make_a_header_or_one_problem(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        open_header(path)
    except HeaderError as error:
        found = error.problem
    else:
        return
    assert found.rule in MEANINGS
    assert found.message.isprintable()


@pytest.mark.parametrize("depth", range(880, 1000, 4))
def test_nesting_at_the_edge_of_the_interpreters_patience(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "x.safetensors"
    shape = b"[" * depth + b"]" * depth
    path.write_bytes(safetensors_bytes(b'{"a":{"dtype":"U8","shape":' + shape + b',"data_offsets":[0,1]}}', b"1"))
    assert problem_of(path).rule == "file/corrupt"


@pytest.mark.parametrize(
    "data",
    [b"HF_TOKEN=hf_AbCdEf", b"HF_TOKEN=hf_AbCdEf\xff\xfe\n" + b"\x01" * 50, b"error denied TOKEN=hf_AbCdEf\n" * 9],
)
@pytest.mark.parametrize("name", ["x.safetensors", "x.gguf", "x.env"])
def test_what_may_be_a_secret_is_not_quoted(tmp_path: Path, data: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with LocalSource(path) as source, pytest.raises(HeaderError) as error:
        open_header(source)
    assert "TOKEN" not in str(error.value.problem)
    assert "hf_" not in str(error.value.problem)
