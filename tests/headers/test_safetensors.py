"""The safetensors reader against the safetensors library, over everything the library can say about a file."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from compatkit.headers import open_header
from compatkit.headers.safetensors import BITS
from compatkit.vocabulary import FileProblem, Header, HeaderError, Tensor
from tests.support.files import SAFETENSORS_BITS, safetensors_bytes, safetensors_header, write_safetensors


def problem_of(path: Path) -> FileProblem:
    with pytest.raises(HeaderError) as caught:
        open_header(path)
    return caught.value.problem


def outcome(path: Path) -> tuple[Header | None, FileProblem | None]:
    """What comes of a file that may be good or bad: its header or the one problem."""
    try:
        return open_header(path), None
    except HeaderError as error:
        return None, error.problem


def refuse(tmp_path: Path, content: bytes, name: str = "x.safetensors") -> FileProblem:
    path = tmp_path / name
    path.write_bytes(content)
    return problem_of(path)


def library_reads(path: Path) -> bool:
    try:
        with safe_open(path, "np") as file:
            file.keys()
    except SafetensorError:
        return False
    return True


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_dtypes_are_those_of_the_library(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(safetensors_bytes({"a": entry("?")}))
    with pytest.raises(SafetensorError) as caught, safe_open(tmp_path / "x", "np"):
        pass
    listed = str(caught.value).split("expected one of")[1].split(" at line")[0]
    assert {word.strip(" `") for word in listed.split(",")} == set(BITS)
    assert BITS == SAFETENSORS_BITS


@pytest.mark.parametrize("dtype", sorted(BITS))
def test_every_dtype_as_the_library_reads_it(tmp_path: Path, dtype: str) -> None:
    tensors = {
        "scalarlike": (dtype, (8,)),
        "matrix": (dtype, (3, 16)),
        "none": (dtype, (0, 5)),
        "five": (dtype, (1, 2, 2, 1, 4)),
    }
    path = write_safetensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    header = open_header(path)
    with safe_open(path, "np") as file:
        assert set(file.keys()) == set(header.tensors)
        assert file.metadata() == header.metadata
        for name in tensors:
            piece = file.get_slice(name)
            assert (piece.get_dtype(), tuple(piece.get_shape())) == header.tensors[name][:2]
    assert header.header_bytes + sum(t.nbytes for t in header.tensors.values()) == header.size == path.stat().st_size
    assert header.tensors["matrix"].nbytes == 48 * BITS[dtype] // 8


def test_offsets_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    content = safetensors_bytes({"b": entry(offsets=(2, 6)), "a": entry(shape=(2,), offsets=(0, 2))}, b"AAbbbb")
    (tmp_path / "x.safetensors").write_bytes(content)
    header = open_header(tmp_path / "x.safetensors")
    b = header.tensors["b"]
    assert content[b.offset : b.offset + b.nbytes] == b"bbbb"
    assert header.tensors["a"] == Tensor("U8", (2,), 2, header.header_bytes, 0)
    assert list(header.tensors) == ["b", "a"]  # the order of the file's own list
    assert header.shards == (header.source,) == (str(tmp_path / "x.safetensors"),)


GOOD: dict[str, bytes] = {
    "no tensors": safetensors_bytes(b"{}"),
    "trailing blanks": safetensors_bytes(json.dumps({"a": entry()}).encode() + b" \n\t\r  ", b"1234"),
    "unknown fields": safetensors_bytes({"a": {**entry(), "note": [[1], {"x": None}]}}, b"1234"),
    "null metadata": safetensors_bytes({"__metadata__": None, "a": entry()}, b"1234"),
    "a scalar": safetensors_bytes({"a": entry("F32", (), (0, 4))}, b"1234"),
    "a zero beside a large side": safetensors_bytes({"a": entry("F32", (0, 2**63, 4), (0, 0))}),
    "zero-sized tensors between": safetensors_bytes(
        {"a": entry(), "z": entry("F32", (0,), (4, 4)), "b": entry(offsets=(4, 8))}, b"12345678"
    ),
    "odd names": safetensors_bytes({"": entry(), "a\n\u202e☃": entry(offsets=(4, 8))}, b"12345678"),
    "surrogate pairs": safetensors_bytes(b'{"\\ud83d\\ude00":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_the_library_accepts_is_accepted(tmp_path: Path, case: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD[case])
    assert library_reads(path)
    assert open_header(path).problems == ()


BAD: dict[str, tuple[bytes, str, str]] = {
    "overlap": (
        safetensors_bytes({"a": entry(), "b": entry(offsets=(2, 6))}, b"123456"),
        "file/corrupt",
        "tensors 'a' and 'b' both claim bytes",
    ),
    "hole": (
        safetensors_bytes({"a": entry(), "b": entry(offsets=(6, 10))}, b"1234567890"),
        "file/corrupt",
        "between tensors 'a' and 'b' belong to none",
    ),
    "hole at the start": (
        safetensors_bytes({"a": entry(offsets=(2, 6))}, b"123456"),
        "file/corrupt",
        "before the first tensor 'a' belong to none",
    ),
    "trailing data": (safetensors_bytes({"a": entry()}, b"12345"), "file/corrupt", "goes on for 1 byte"),
    "data without tensors": (safetensors_bytes(b"{}", b"12"), "file/corrupt", "goes on for 2 bytes"),
    "shape and bytes differ": (
        safetensors_bytes({"a": entry("F32", (2, 3), (0, 20))}, bytes(20)),
        "file/corrupt",
        "dtype F32 and shape [2, 3] needs 24 bytes, but is given 20",
    ),
    "unknown dtype": (safetensors_bytes({"a": entry("Q4")}, b"1234"), "file/unknown-dtype", "dtype 'Q4'"),
    "duplicate name": (
        safetensors_bytes(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
            b"12",
        ),
        "file/corrupt",
        "names 'a' twice",
    ),
    "duplicate metadata": (
        safetensors_bytes(b'{"__metadata__":{"a":"b"},"__metadata__":{"a":"c"}}'),
        "file/corrupt",
        "names '__metadata__' twice",
    ),
    "duplicate field": (
        safetensors_bytes(b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
        "file/corrupt",
        "has 'dtype' twice",
    ),
    "duplicate field, its letters written as numbers": (
        safetensors_bytes(b'{"a":{"dtype":"U8","d\\u0074ype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
        "file/corrupt",
        "has 'dtype' twice",
    ),
    "no shape": (safetensors_bytes({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, b"1"), "file/corrupt", "no 'shape'"),
    "entry is no object": (safetensors_bytes({"a": 5}), "file/corrupt", "'a' is not described by an object"),
    "negative side": (safetensors_bytes({"a": entry(shape=(-4,))}, b"1234"), "file/corrupt", "[-4]"),
    "float side": (safetensors_bytes({"a": entry(shape=(4.0,))}, b"1234"), "file/corrupt", "[4.0]"),
    "true as a side": (safetensors_bytes({"a": entry(shape=(True,), offsets=(0, 1))}, b"1"), "file/corrupt", "[True]"),
    "side of 2^70": (safetensors_bytes({"a": entry(shape=(2**70,))}, b"1234"), "file/corrupt", "no list of sizes"),
    "elements overflow": (
        safetensors_bytes({"a": entry(shape=(2**63, 4, 0), offsets=(0, 0))}),
        "file/corrupt",
        "more elements than 64 bits can count",
    ),
    "reversed offsets": (
        safetensors_bytes({"a": entry(shape=(0,), offsets=(4, 0))}, b"1234"),
        "file/corrupt",
        "before",
    ),
    "three offsets": (safetensors_bytes({"a": entry(offsets=(0, 4, 5))}, b"1234"), "file/corrupt", "no pair"),
    "nested shape": (safetensors_bytes({"a": entry(shape=([4],))}, b"1234"), "file/corrupt", "[a list]"),
    "half a byte": (safetensors_bytes({"a": entry("F4", (3,), (0, 1))}, b"1"), "file/corrupt", "fill whole bytes"),
    "NaN": (
        safetensors_bytes(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"1"),
        "file/corrupt",
        "NaN is not JSON",
    ),
    "metadata of numbers": (
        safetensors_bytes({"__metadata__": {"a": 1}}),
        "file/corrupt",
        "value that is not a string",
    ),
    "metadata is a list": (safetensors_bytes({"__metadata__": ["a"]}), "file/corrupt", "not an object of strings"),
    "an array": (safetensors_bytes(b"[]        "), "file/corrupt", "should start with '{' at byte 8"),
    "a leading blank": (safetensors_bytes(b" {}"), "file/corrupt", "should start with '{' at byte 8"),
    "not UTF-8": (
        safetensors_bytes(b'{"\xff":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
        "file/corrupt",
        "not UTF-8 at byte 10",
    ),
    "half a character": (
        safetensors_bytes(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
        "file/corrupt",
        "half a character",
    ),
    "control character": (
        safetensors_bytes(b'{"a\x01":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"1"),
        "file/corrupt",
        "not JSON at byte 11",
    ),
    "bytes after the JSON": (safetensors_bytes(b"{}\0\0"), "file/corrupt", "not JSON at byte 10"),
    "200,000 nested arrays": (
        safetensors_bytes(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        "file/corrupt",
        "nested deeper",
    ),
    "a number of 5,000 digits": (safetensors_bytes(b'{"a":' + b"9" * 5000 + b"}"), "file/corrupt", "not JSON"),
    "header length 2^62": (safetensors_bytes(b"{}", length=1 << 62), "file/corrupt", "4,611,686,018,427,387,904 bytes"),
    "header length over the limit": (safetensors_bytes(b"{}", length=100_000_001), "file/corrupt", "100,000,001 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_the_library_refuses_is_refused_and_named(tmp_path: Path, case: str) -> None:
    content, rule, words = BAD[case]
    found = refuse(tmp_path, content)
    assert (found.rule, found.level) == (rule, "error")
    assert words in found.message
    assert "x.safetensors" in found.message
    assert found.fix
    assert found.message.isprintable()
    if case not in ("a leading blank",):  # the format forbids it, the library does not look
        assert not library_reads(tmp_path / "x.safetensors")


def test_truncated_data_is_said_with_both_sizes(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {"a": ("F32", (1000,)), "b": ("F32", (1000,))})
    whole = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(whole // 2)
    found = problem_of(path)
    assert found.rule == "file/truncated"
    assert found.evidence == {"size": whole // 2, "declared": whole, "tensors_cut": 2}
    assert f"{whole // 2:,}" in found.message
    assert f"{whole:,}" in found.message
    assert f"{whole:,}" in found.fix


@pytest.mark.parametrize("keep", [1, 7, 8, 9, 20])
def test_truncated_header(tmp_path: Path, keep: int) -> None:
    content = safetensors_bytes({"a": entry()}, b"1234")
    found = refuse(tmp_path, content[:keep])
    assert found.rule == "file/truncated"
    assert found.evidence["size"] == keep
    assert found.evidence["declared_at_least"] > keep


def test_the_same_metadata_key_twice_is_harmless_and_said(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes(b'{"__metadata__":{"a":"b","a":"c"}}'))
    header = open_header(path)
    with safe_open(path, "np") as file:
        assert file.metadata() == header.metadata == {"a": "c"}
    assert [p.level for p in header.problems] == ["info"]


def test_names_cannot_forge_a_report(tmp_path: Path) -> None:
    evil = "a\n\x1b[31mfile/ok\u202e" + "x" * 10_000
    found = refuse(tmp_path, safetensors_bytes({evil: entry("??")}), "e\x1b[2J\nvil.safetensors")
    assert found.message.isprintable()
    assert len(found.message) < 600


def test_a_header_of_brackets_costs_no_more_than_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_bytes(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"))
    tracemalloc.start()
    try:
        found = problem_of(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "mostly brackets" in found.message
    assert peak < 5 * path.stat().st_size


def test_a_sparse_12_gb_file_is_read_by_its_header(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {f"layer.{i}": ("BF16", (6144, 32768)) for i in range(30)})
    assert path.stat().st_size > 12e9
    tracemalloc.start()
    try:
        header = open_header(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(header.tensors) == 30
    assert peak < 2_000_000


names = st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda n: n != "__metadata__")
shapes = st.lists(st.integers(0, 6).map(lambda n: n * 4), max_size=4).map(tuple)
tensor_lists = st.dictionaries(
    names,
    st.tuples(st.sampled_from(sorted(BITS)), shapes).filter(lambda t: t[1] or BITS[t[0]] >= 8),
    max_size=8,
)


@given(tensor_lists, st.none() | st.dictionaries(names, names, max_size=4))
def test_any_well_formed_file_reads_as_written(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    metadata: dict[str, str] | None,
) -> None:
    path = write_safetensors(tmp_path_factory.getbasetemp() / "any.safetensors", tensors, metadata)
    header = open_header(path)
    assert {name: t[:2] for name, t in header.tensors.items()} == tensors
    assert header.metadata == (metadata or {})
    assert library_reads(path)


@given(tensor_lists, st.data())
def test_no_byte_changed_or_lost_escapes_as_anything_but_a_header_error(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[str, tuple[int, ...]]], data: st.DataObject
) -> None:
    top, size = safetensors_header(tensors, {"format": "pt"})
    content = bytearray(safetensors_bytes(top, bytes(size)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content)) | st.just(len(content))) :]
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    header, found = outcome(path)
    if found:
        assert found.message.isprintable()
        # what we refuse the library refuses too, but for names written twice, of which it believes the last
        assert "twice" in found.message or not library_reads(path)
    elif header:
        assert library_reads(path), "the library is stricter"
        with safe_open(path, "np") as file:
            assert {n: file.get_slice(n).get_dtype() for n in file.offset_keys()} == {
                n: t.dtype for n, t in header.tensors.items()
            }


@pytest.mark.parametrize("length", [0, 1, 2, 8, 100, 99_999_999])
def test_claimed_lengths_allocate_nothing(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{" + b" " * 50)
    tracemalloc.start()
    try:
        problem_of(path)
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


def test_more_tensors_than_any_model_has_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compatkit.headers.safetensors.MAX_TENSORS", 3)
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    write_safetensors(good, {str(i): ("F16", (1,)) for i in range(3)})
    write_safetensors(bad, {str(i): ("F16", (1,)) for i in range(4)})
    assert outcome(good)[1] is None
    problem = problem_of(bad)
    assert problem.rule == "file/not-a-model"
    assert "4 tensors" in problem.message
