"""A GGUF of which only the metadata was read: the same component as from the whole header, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from compatkit.headers import open_header
from compatkit.headers.sparse import write_gguf
from compatkit.identify.identify import identify
from compatkit.identify.partly import from_metadata
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.vocabulary import ArraySummary, Header, Unread
from tests.support.corpus import entry, header_of_entry

QWEN = {
    "general.architecture": "qwen3",
    "qwen3.block_count": 36,
    "qwen3.embedding_length": 2560,
    "qwen3.feed_forward_length": 9728,
    "qwen3.attention.head_count": 32,
    "qwen3.attention.head_count_kv": 8,
    "qwen3.attention.key_length": 128,
}
SAME = ("role", "family", "also", "title", "layout", "prefix", "parameters", "facts", "loads_as", "size")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    path = tmp_path / "x.gguf"
    write_gguf(path, example_shapes(load().grammar("qwen3_4b"), "gguf"), "Q4_K", QWEN, 151_936)
    return path


def test_a_brief_look_stops_before_the_vocabulary(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = open_header(encoder)
    assert header.unread is None
    from compatkit.sources.local import LocalSource

    with LocalSource(encoder) as source:
        source.chunk = 1 << 16
        brief = open_header(source, brief=True)
    assert brief.unread is not None
    assert (brief.unread.tensors, dict(brief.tensors)) == (398, {})
    assert brief.metadata["tokenizer.ggml.tokens"] == ArraySummary("string", 151_936)


def test_the_metadata_gives_what_the_whole_header_gives(encoder: Path) -> None:
    from compatkit.sources.local import LocalSource

    with LocalSource(encoder) as source:
        source.chunk = 1 << 16
        brief = open_header(source, brief=True)
    part = from_metadata(brief, load())
    (whole,) = identify(open_header(encoder), load())
    assert part is not None
    assert {n: getattr(part, n) for n in SAME} == {n: getattr(whole, n) for n in SAME}
    assert part.quantization.scheme == "unknown"
    assert part.quantization.bits == pytest.approx(whole.quantization.bits, rel=0.03)
    assert {n.rule for n in part.not_checked} >= {"file/truncated", "file/incomplete"}


def brief_header(metadata: Mapping[str, Any], tensors: int = 398, tokens: int = 151_936, size: int = 2 << 30) -> Header:
    known = {**metadata, "tokenizer.ggml.tokens": ArraySummary("string", tokens)}
    return Header("x.gguf", "gguf", size, 0, {}, known, ("x.gguf",), (), Unread(4000, tensors, "tokenizer.ggml.tokens"))


@pytest.mark.parametrize(
    "header",
    [
        brief_header({**QWEN, "qwen3.embedding_length": 2561}),
        brief_header({**QWEN, "qwen3.block_count": 35}),
        brief_header({**QWEN, "general.architecture": "qwen4"}),
        brief_header({k: v for k, v in QWEN.items() if not k.endswith("feed_forward_length")}),
        brief_header(QWEN, tensors=397),
        brief_header(QWEN, tokens=151_935),
        brief_header(QWEN, size=1 << 20),
        brief_header({**QWEN, "qwen3.block_count": "36"}),
        brief_header({"general.architecture": "qwen3"}),
        replace(brief_header(QWEN), metadata={}),
    ],
)
def test_what_is_not_clear_is_read_whole(header: Header) -> None:
    assert from_metadata(header, load()) is None


def test_a_clear_one_is_told() -> None:
    component = from_metadata(brief_header(QWEN), load())
    assert component is not None
    assert component.family == "qwen3_4b"


def test_every_gguf_encoder_of_the_reference_data(shared: Path) -> None:
    names = sorted(p.name.removesuffix(".json.gz") for p in (shared / "corpus/text_encoder").glob("gguf-*.json.gz"))
    assert names
    for name in names:
        header = header_of_entry(entry(shared, f"text_encoder/{name}"))
        (whole,) = identify(header, load())
        vocabulary = header.tensors["token_embd.weight"].shape[0]
        unread = Unread(4000, len(header.tensors), "tokenizer.ggml.tokens")
        known = {**header.metadata, "tokenizer.ggml.tokens": ArraySummary("string", vocabulary)}
        part = from_metadata(replace(header, tensors={}, metadata=known, unread=unread), load())
        assert part is not None, name
        assert {n: getattr(part, n) for n in SAME} == {n: getattr(whole, n) for n in SAME}, name
