"""The GGUF reader against the gguf package, and against files that package falls over."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st

from compatkit.headers import ggml, open_header
from compatkit.headers import gguf as reader
from compatkit.vocabulary import ArraySummary, FileProblem, Header, HeaderError
from tests.support.files import GGML, Typed, gguf_bytes, gguf_string, gguf_tensor, gguf_value, write_gguf


def outcome(path: Path) -> tuple[Header | None, FileProblem | None]:
    """What comes of a file that may be good or bad: its header or the one problem."""
    try:
        return open_header(path), None
    except HeaderError as error:
        return None, error.problem


def refuse(tmp_path: Path, content: bytes) -> FileProblem:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    header, found = outcome(path)
    assert header is None
    assert found is not None
    assert found.message.isprintable()
    assert "x.gguf" in found.message
    assert found.fix
    return found


def start(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def padded(head: bytes, data: int = 0) -> bytes:
    return head + bytes(-len(head) % 32 + data)


@contextmanager
def at_most(limit: int) -> Iterator[None]:
    """Fails if more than `limit` bytes were allocated at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def test_types_are_those_of_the_package() -> None:
    assert {int(code): (code.name, *sizes) for code, sizes in GGML_QUANT_SIZES.items()} == ggml.TYPES
    assert not set(ggml.REMOVED) & {int(t) for t in GGMLQuantizationType}
    for name, triple in GGML.items():
        assert ggml.TYPES[triple[0]] == (name, *triple[1:])


@pytest.mark.parametrize("code", sorted(ggml.TYPES))
@pytest.mark.parametrize("version", [2, 3])
def test_every_type_as_the_package_reads_it(tmp_path: Path, code: int, version: int) -> None:
    _, block, size = ggml.TYPES[code]
    kind = (code, block, size)
    tensors = {"a.weight": (kind, (3, 2 * block)), "b": (kind, (block,)), "c": (kind, (2, 3, 1, block))}
    path = write_gguf(tmp_path / "x.gguf", tensors, {"general.architecture": "test"}, version=version)
    assert_equal_to_package(path)


def assert_equal_to_package(path: Path) -> Header:
    """Reads with both and compares names, types, shapes, bytes, offsets, and all metadata that is kept."""
    header, theirs = open_header(path), gguf.GGUFReader(path)
    assert list(header.tensors) == [t.name for t in theirs.tensors]
    for t in theirs.tensors:
        ours = header.tensors[t.name]
        assert ours.dtype == t.tensor_type.name
        assert ours.shape == tuple(int(n) for n in reversed(t.shape))
        assert (ours.nbytes, ours.offset) == (t.n_bytes, t.data_offset)
        assert ours.elements == t.n_elements
    assert header.header_bytes == theirs.data_offset
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(header.metadata) == list(fields)
    for key, field in fields.items():
        value, expected = header.metadata[key], field.contents()
        if isinstance(value, ArraySummary):
            kind = field.types[1].name.lower()
            assert value == ArraySummary(kind, len(field.data))
        else:
            assert (list(value) if isinstance(value, tuple) else value) == expected
    assert header.problems == ()
    return header


def test_a_file_of_the_packages_own_writer(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("n.u8", 200)
    writer.add_int8("n.i8", -3)
    writer.add_uint16("n.u16", 60_000)
    writer.add_int16("n.i16", -3)
    writer.add_uint32("n.u32", 4_000_000_000)
    writer.add_int32("n.i32", -3)
    writer.add_uint64("n.u64", 1 << 63)
    writer.add_int64("n.i64", -(1 << 62))
    writer.add_float32("n.f32", 0.5)
    writer.add_float64("n.f64", 0.1)
    writer.add_bool("n.bool", True)
    writer.add_string("text", "zwölf ☃\n")
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("strings", ["a", "", "ccc"])
    writer.add_array("floats", [0.5] * 65)
    writer.add_token_list([f"token {i}" for i in range(5000)])
    writer.add_custom_alignment(128)
    writer.add_tensor("w", np.ones((5, 7), np.float32))
    writer.add_tensor("h", np.ones((3,), np.float16))
    writer.add_tensor("q", np.zeros((4, 36), np.uint8), raw_dtype=GGMLQuantizationType.Q4_0)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    header = assert_equal_to_package(path)
    assert header.metadata["strings"] == ("a", "", "ccc")
    assert header.metadata["tokenizer.ggml.tokens"] == ArraySummary("string", 5000)
    assert header.metadata["floats"] == ArraySummary("float32", 65)
    assert header.metadata["n.bool"] is True
    assert header.tensors["q"].shape == (4, 64)
    assert all(t.offset % 128 == 0 for t in header.tensors.values())


def test_no_metadata_at_all(tmp_path: Path) -> None:
    header = open_header(write_gguf(tmp_path / "x.gguf", {"w": ("F16", (2, 3))}))
    assert header.metadata == {}
    assert header.tensors["w"][:3] == ("F16", (2, 3), 12)


def test_original_shapes_of_reshaped_tensors_are_kept(tmp_path: Path) -> None:
    keys = {f"comfy.gguf.orig_shape.conv.{i}": Typed("int32", [320, 4, 3, 3]) for i in range(300)}
    header = open_header(write_gguf(tmp_path / "x.gguf", {"conv.0": ("Q4_K", (45, 256))}, keys))
    assert header.metadata["comfy.gguf.orig_shape.conv.299"] == (320, 4, 3, 3)
    assert len(header.metadata) == 300


@pytest.mark.parametrize(
    "lengths",
    [
        [5] * 3000,
        [0] * 3000,
        [39, 40, 41] * 1000,
        [7] * 1500 + [300] + [7] * 1500,  # longer than a low byte can say
        [255, 256, 257] * 400,
        [3] * 1100 + [70_000] * 12 + [3] * 1100,
        [600_000, *[4] * 1100],
    ],
    ids=["short", "empty", "edge", "one long", "around 256", "very long", "over a piece"],
)
@pytest.mark.parametrize("chunk", [64, 1000, 1 << 18])
def test_vocabularies_of_any_string_lengths(
    tmp_path: Path, lengths: list[int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compatkit.sources import LocalSource

    # the content imitates lengths, keys and types: a walk that lost its step would go on happily
    text = b"\x08\0\0\0\0\0\0\0" * 90_000
    tokens = [text[: n or 0] for n in lengths]
    path = write_gguf(tmp_path / "x.gguf", {"w": ("F32", (4,))}, {"tokens": tokens, "last": 7})
    with LocalSource(path) as source:
        source.chunk = chunk
        header = open_header(source)
    assert header.metadata == {"tokens": ArraySummary("string", len(lengths)), "last": 7}
    assert header.tensors["w"].shape == (4,)


def test_nested_arrays(tmp_path: Path) -> None:
    values = {"pairs": [[1, 2], [3, 4]], "many": [[1]] * 100, "deep": [[[["x"]]]]}
    header = open_header(write_gguf(tmp_path / "x.gguf", {}, values))
    assert header.metadata["pairs"] == ((1, 2), (3, 4))
    assert header.metadata["many"] == ArraySummary("array", 100)
    assert header.metadata["deep"] == ((((("x",)),),),)


def test_text_too_long_to_keep_is_summarised(tmp_path: Path) -> None:
    values = {"long": "x" * (reader.KEEP_STRING + 1), "after": "y"} | {f"k{i}": "z" * 250_000 for i in range(80)}
    path = write_gguf(tmp_path / "x.gguf", {}, values)
    with at_most(40_000_000):
        header = open_header(path)
    assert header.metadata["long"] == ArraySummary("byte", reader.KEEP_STRING + 1)
    assert header.metadata["after"] == "y"
    assert header.metadata["k79"] == ArraySummary("byte", 250_000)


def test_damaged_text_does_not_stop_the_reading(tmp_path: Path) -> None:
    header = open_header(write_gguf(tmp_path / "x.gguf", {}, {"general.name": b"caf\xe9"}))
    assert header.metadata["general.name"] == "caf\ufffd"


def entry(name: str | bytes = "w", sides: tuple[int, ...] = (4,), code: int = 0, offset: int = 0) -> bytes:
    return gguf_tensor(name, sides, code, offset)


def nested(depth: int) -> bytes:
    return struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 4, 0)


BAD: dict[str, tuple[bytes, str, str]] = {
    "v1": (b"GGUF" + struct.pack("<III", 1, 0, 0) + bytes(20), "file/gguf-version", "GGUF v1 (byte 4), older than"),
    "v0": (padded(start(version=0)), "file/corrupt", "version 0, which there never was"),
    "v4": (padded(start(version=4)), "file/gguf-version", "GGUF v4 (byte 4), newer than"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(8), "file/big-endian", "a GGUF v3 for big-endian"),
    "2^60 tensors": (padded(start(tensors=1 << 60)), "file/corrupt", "bytes 8..16 claim 1,152,921,504,606,846,976"),
    "2^60 keys": (padded(start(keys=1 << 60)), "file/corrupt", "bytes 16..24 claim"),
    "more tensors than bytes": (
        padded(start(tensors=1000)),
        "file/truncated",
        "1,000 tensors take at least 24,0",
    ),
    "key of 2^62 bytes": (
        padded(start(keys=1) + struct.pack("<Q", 1 << 62), 64),
        "file/corrupt",
        "is 4,611,686,018,427,387,904 bytes long",
    ),
    "string of 2^62 bytes": (
        padded(start(keys=1) + gguf_string("k") + struct.pack("<IQ", 8, 1 << 62), 64),
        "file/corrupt",
        "the value of 'k' at byte 45 claims 4,611,686,018,427,387,904 bytes",
    ),
    "string array of 2^60": (
        padded(start(keys=1) + gguf_string("k") + struct.pack("<IIQ", 9, 8, 1 << 60), 64),
        "file/corrupt",
        "the value of 'k'",
    ),
    "number array of 2^60": (
        padded(start(keys=1) + gguf_string("k") + struct.pack("<IIQ", 9, 4, 1 << 60), 64),
        "file/corrupt",
        "the value of 'k'",
    ),
    "array of 2^60 arrays": (
        padded(start(keys=1) + gguf_string("k") + struct.pack("<IIQ", 9, 9, 1 << 60), 64),
        "file/corrupt",
        "the value of 'k'",
    ),
    "20,000 nested arrays": (
        padded(start(keys=1) + gguf_string("k") + nested(20_000)),
        "file/corrupt",
        "nests arrays more than 4 deep",
    ),
    "100,000 arrays in an array": (
        padded(start(keys=1) + gguf_string("k") + struct.pack("<IIQ", 9, 9, 100_000), 1_200_000),
        "file/corrupt",
        "over 65,536 arrays in arrays",
    ),
    "unknown value type": (
        padded(start(keys=1) + gguf_string("k") + struct.pack("<I", 13), 64),
        "file/corrupt",
        "type 13",
    ),
    "duplicate key": (
        padded(start(keys=2) + (gguf_string("k") + gguf_value(1)) * 2),
        "file/corrupt",
        "'k' stands there twice",
    ),
    "key that is not UTF-8": (
        padded(start(keys=1) + gguf_string(b"\xff") + gguf_value(1)),
        "file/corrupt",
        "a metadata key at byte 24 is not UTF-8",
    ),
    "alignment 3": (
        padded(start(keys=1) + gguf_string("general.alignment") + gguf_value(3)),
        "file/corrupt",
        "general.alignment is '3'",
    ),
    "alignment 0": (
        padded(start(keys=1) + gguf_string("general.alignment") + gguf_value(0)),
        "file/corrupt",
        "general.alignment is '0'",
    ),
    "alignment of another type": (
        padded(start(keys=1) + gguf_string("general.alignment") + gguf_value(Typed("uint64", 32))),
        "file/corrupt",
        "general.alignment is '32'",
    ),
    "duplicate tensor": (padded(start(2) + entry() + entry(offset=32), 64), "file/corrupt", "'w' stands there twice"),
    "overlap": (
        padded(start(2) + entry("a", (16,)) + entry("b", (16,), offset=32), 128),
        "file/corrupt",
        "tensors 'a' and 'b' both claim bytes",
    ),
    "misaligned": (
        padded(start(1) + entry(offset=4), 64),
        "file/corrupt",
        "data byte 4, no multiple of the alignment 32",
    ),
    "offset far outside": (
        padded(start(2) + entry("a") + entry("b", offset=1 << 40), 64),
        "file/corrupt",
        "tensor 'b' claims bytes 1,099,5",
    ),
    "offset that wraps": (padded(start(1) + entry(offset=(1 << 64) - 32), 64), "file/corrupt", "tensor 'w' claims"),
    "removed type": (
        padded(start(1) + entry(code=31), 64),
        "file/unknown-dtype",
        "Q4_0_4_4, which ggml no longer reads",
    ),
    "unknown type": (padded(start(1) + entry(code=999), 64), "file/unknown-dtype", "ggml type 999"),
    "part of a block": (padded(start(1) + entry(sides=(100,), code=12), 4096), "file/corrupt", "blocks of 256"),
    "a scalar of a block type": (padded(start(1) + entry(sides=(), code=12), 4096), "file/corrupt", "rows of 1"),
    "200 dimensions": (padded(start(1) + entry(sides=(1,) * 200), 4096), "file/corrupt", "200 dimensions"),
    "2^32 dimensions": (
        padded(start(1) + gguf_string("w") + b"\xff" * 4, 64),
        "file/corrupt",
        "4,294,967,295 dimensions",
    ),
    "elements overflow": (padded(start(1) + entry(sides=(1 << 40, 1 << 40)), 64), "file/corrupt", "64 bits can count"),
    "header cut in a key": (
        (start(0, 1) + gguf_string("general.architecture"))[:40],
        "file/truncated",
        "metadata key 1 of 1",
    ),
    "header cut in the table": (
        (start(1, 1) + gguf_string("k") + gguf_value("x" * 30) + entry())[:-4],
        "file/truncated",
        "the description of tensor 1 of 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_and_named(tmp_path: Path, case: str) -> None:
    content, rule, words = BAD[case]
    with at_most(3_000_000):
        found = refuse(tmp_path, content)
    assert (found.rule, found.level) == (rule, "error")
    assert words in found.message


@pytest.mark.parametrize("keep", range(1, 24))
def test_a_file_cut_in_its_first_bytes(tmp_path: Path, keep: int) -> None:
    found = refuse(tmp_path, start()[:keep])
    assert found.rule == "file/truncated"
    assert found.evidence["size"] == keep
    assert found.evidence["declared_at_least"] > keep


def test_truncated_data_is_said_with_both_sizes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", dict.fromkeys("abc", ("Q8_0", (64, 64))))
    whole = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(whole - 5000)
    _, found = outcome(path)
    assert found
    assert found.rule == "file/truncated"
    assert found.evidence == {"size": whole - 5000, "declared": whole, "tensors_cut": 2}
    assert f"{whole:,}" in found.message


def test_bytes_after_the_last_tensor_are_harmless_and_said(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {"w": ("F32", (8,))})
    with path.open("ab") as file:
        file.write(bytes(100))
    assert [(p.rule, p.level) for p in open_header(path).problems] == [("file/trailing-data", "info")]


def test_the_last_tensor_need_not_be_padded(tmp_path: Path) -> None:
    head, _ = gguf_bytes({"a": ("F32", (1,)), "b": ("F32", (1,))})
    path = tmp_path / "x.gguf"
    path.write_bytes(head + bytes(36))
    assert open_header(path).problems == ()
    assert_equal_to_package(path)


def test_zero_filled_space_ends_soon(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(start(keys=1) + gguf_string("k") + struct.pack("<IIQ", 9, 8, 1 << 26))
    with path.open("r+b") as file:
        file.truncate(12 << 30)
    _, found = outcome(path)
    assert found
    assert "does not end within 268,435,456 bytes" in found.message or "claims" in found.message


def test_gguf_12_gb_sparse(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {f"blk.{i}.weight": ("Q8_0", (65536, 8192)) for i in range(22)})
    assert path.stat().st_size > 12e9
    with at_most(1_000_000):
        assert len(open_header(path).tensors) == 22


names = st.text(st.characters(codec="utf-8"), max_size=12)
scalars: st.SearchStrategy[Any] = st.one_of(
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(st.characters(codec="utf-8")),
)
values: st.SearchStrategy[Any] = scalars | st.lists(st.integers(0, 9), max_size=80) | st.lists(names, max_size=80)
keyed = st.dictionaries(names.filter(lambda n: n != "general.alignment"), values, max_size=6)
tensor_lists = st.dictionaries(
    names,
    st.sampled_from(sorted(GGML)).flatmap(
        lambda kind: st.tuples(
            st.just(kind), st.lists(st.integers(1, 3), max_size=3).map(lambda s: (*s, 2 * GGML[kind][1]))
        )
    ),
    max_size=6,
)


def kept(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) <= 64:
        return tuple(value)
    return ArraySummary("string" if isinstance(value[0], str) else "uint32", len(value))


@given(tensor_lists, keyed, st.sampled_from([8, 32, 64, 4096]), st.sampled_from([2, 3]))
def test_any_well_formed_file_reads_as_written(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    metadata: dict[str, Any],
    alignment: int,
    version: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    write_gguf(path, tensors, metadata, alignment=alignment, version=version)
    header = open_header(path)
    assert {name: t[:2] for name, t in header.tensors.items()} == tensors
    assert {k: v for k, v in header.metadata.items() if k != "general.alignment"} == {
        k: kept(v) for k, v in metadata.items()
    }
    assert header.problems == ()


@given(tensor_lists, keyed, st.data())
def test_no_byte_changed_or_lost_escapes_as_anything_but_a_header_error(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    metadata: dict[str, Any],
    data: st.DataObject,
) -> None:
    head, size = gguf_bytes(tensors, metadata)
    content = bytearray(head + bytes(size))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content)) | st.just(len(content))) :]
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content)
    with at_most(8_000_000):
        header, found = outcome(path)
    if found:
        assert found.message.isprintable()
    elif header:
        end = max((t.offset + t.nbytes for t in header.tensors.values()), default=0)
        assert end <= len(content)
