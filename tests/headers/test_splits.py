"""Models in several files: one header, and every way the parts can disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compatkit.headers import open_header
from compatkit.vocabulary import FileProblem, HeaderError
from tests.support.files import Typed, write_gguf, write_safetensors, write_sharded

PARTS = [{"a": ("F32", (2, 2)), "b": ("BF16", (4,))}, {"c": ("F32", (8,))}, {"d": ("U8", (3,))}]


def rules(problems: tuple[FileProblem, ...]) -> list[tuple[str, str]]:
    return [(p.rule, p.level) for p in problems]


def change(index: Path, **changes: Any) -> None:
    """Rewrites an index: keyword `weight_map` entries are merged, `None` removes."""
    content = json.loads(index.read_text())
    for key, value in changes.items():
        content[key] = {k: v for k, v in {**content[key], **value}.items() if v is not None}
    index.write_text(json.dumps(content))


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("given", range(3))
def test_any_shard_gives_the_whole(tmp_path: Path, given: int, index: bool) -> None:
    paths = write_sharded(tmp_path, PARTS, index=index)
    header = open_header(paths[given])
    assert header.source == str(paths[given])
    assert header.shards == tuple(map(str, paths[:3]))
    assert {n: (t.dtype, t.shape, t.shard) for n, t in header.tensors.items()} == {
        n: (*spec, shard) for shard, part in enumerate(PARTS) for n, spec in part.items()
    }
    assert header.size == sum(p.stat().st_size for p in paths[:3])
    assert header.header_bytes == header.size - sum(t.nbytes for t in header.tensors.values())
    assert header.problems == ()


def test_the_index_gives_the_whole(tmp_path: Path) -> None:
    paths = write_sharded(tmp_path, PARTS)
    header = open_header(paths[-1])
    assert header.source == str(paths[-1])
    assert list(header.tensors) == ["a", "b", "c", "d"]
    assert header.problems == ()


def test_an_index_beside_a_folder_less_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_sharded(tmp_path, PARTS)
    monkeypatch.chdir(tmp_path)
    assert open_header(paths[-1].name).shards == tuple(p.name for p in paths[:3])


def test_a_variants_index_is_found(tmp_path: Path) -> None:
    paths = write_sharded(tmp_path, PARTS, stem="model.fp16")
    # the index says that 'd' is in the second shard: proof that it was read
    paths[-1] = paths[-1].rename(tmp_path / "model.safetensors.index.fp16.json")
    change(paths[-1], weight_map={"d": paths[1].name})
    assert len(open_header(paths[0]).shards) == 2


def test_shards_may_have_any_names_an_index_gives_them(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "one", PARTS[0])
    write_safetensors(tmp_path / "two", PARTS[1])
    index = tmp_path / "x.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one", "b": "one", "c": "two"}}))
    assert list(open_header(index).tensors) == ["a", "b", "c"]


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard(tmp_path: Path, index: bool) -> None:
    paths = write_sharded(tmp_path, PARTS, index=index)
    paths[1].unlink()
    header = open_header(paths[0])
    assert list(header.tensors) == ["a", "b", "d"]
    assert header.tensors["d"].shard == 1
    assert rules(header.problems) == [("file/missing-shard", "error")]
    assert "1 of 3 parts" in header.problems[0].message
    assert paths[1].name in header.problems[0].message


def test_a_lonely_shard_is_not_the_model(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "model-00002-of-00003.safetensors", PARTS[1])
    assert rules(open_header(path).problems) == [("file/missing-shard", "error")]


def test_no_shard_at_all(tmp_path: Path) -> None:
    paths = write_sharded(tmp_path, PARTS)
    for path in paths[:3]:
        path.unlink()
    with pytest.raises(HeaderError) as caught:
        open_header(paths[-1])
    assert caught.value.problem.rule == "file/missing-shard"


def test_a_damaged_shard_does_not_hide_the_others(tmp_path: Path) -> None:
    paths = write_sharded(tmp_path, PARTS)
    paths[1].write_bytes(paths[1].read_bytes()[:-5])
    header = open_header(paths[-1])
    assert list(header.tensors) == ["a", "b", "d"]
    assert rules(header.problems) == [("file/truncated", "error")]
    assert paths[1].name in header.problems[0].message


def test_a_shard_that_is_no_file(tmp_path: Path) -> None:
    paths = write_sharded(tmp_path, PARTS)
    paths[1].unlink()
    paths[1].mkdir()
    assert rules(open_header(paths[0]).problems) == [("file/unreadable", "error")]


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"weight_map": {"e": "model-00001-of-00003.safetensors"}}, "error", "promises 1 tensor that no shard holds"),
        ({"weight_map": {"b": "model-00003-of-00003.safetensors"}}, "warning", "places 1 tensor in the wrong shard"),
        ({"weight_map": {"b": None}}, "warning", "hold 1 tensor that the index does not list, first 'b'"),
        ({"metadata": {"total_size": 1}}, "info", "promises 1 byte of data, the shards hold 59"),
    ],
)
def test_an_index_that_disagrees(tmp_path: Path, changes: dict[str, Any], level: str, words: str) -> None:
    paths = write_sharded(tmp_path, PARTS)
    write_safetensors(paths[2], {**PARTS[2], "spare": ("U8", (0,))})
    change(paths[-1], weight_map={"spare": paths[2].name})
    change(paths[-1], **changes)
    problems = open_header(paths[-1]).problems
    assert ("file/shard-mismatch", level) in rules(problems)
    assert any(words in p.message for p in problems)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "C:x", "a\\b", "a\0b", "\n/\x1b[2J"]
)
def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "in").mkdir()
    write_safetensors(tmp_path / "model.safetensors", PARTS[0])
    paths = write_sharded(tmp_path / "in", PARTS)
    change(paths[-1], weight_map={"a": file})
    with pytest.raises(HeaderError) as caught:
        open_header(paths[-1])
    assert caught.value.problem.rule == "file/shard-mismatch"
    assert "outside the index's folder" in caught.value.problem.message
    assert caught.value.problem.message.isprintable()


def test_an_index_of_nonsense(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for content in ({"weight_map": ["a"]}, {"weight_map": {"a": 5}}, {"weight_map": {}}):
        index.write_text(json.dumps(content))
        with pytest.raises(HeaderError):
            open_header(index)
    index.write_text('{"weight_map": ' + "[" * 100_000)
    with pytest.raises(HeaderError) as caught:
        open_header(index)
    assert caught.value.problem.rule == "file/not-a-model"


def test_the_same_tensor_in_two_shards(tmp_path: Path) -> None:
    paths = write_sharded(tmp_path, [PARTS[0], PARTS[0]], index=False)
    header = open_header(paths[0])
    assert rules(header.problems) == [("file/shard-mismatch", "error")]
    assert "2 tensors stand in two parts, first 'a' in" in header.problems[0].message


def test_names_like_a_part_of_one_or_of_too_many_are_plain_files(tmp_path: Path) -> None:
    for name in ("x-00001-of-00001", "x-00000-of-00003", "x-00004-of-00003", "x-00001-of-99999", "x-1-of-3"):
        path = write_safetensors(tmp_path / f"{name}.safetensors", PARTS[0])
        assert open_header(path).problems == ()


def write_split(folder: Path, parts: int = 3, total: int | None = None, stem: str = "model") -> list[Path]:
    paths = []
    for no in range(parts):
        metadata: dict[str, Any] = {"general.architecture": "llama", "general.name": "whole"} if not no else {}
        metadata |= {
            "split.no": Typed("uint16", no),
            "split.count": Typed("uint16", parts),
            "split.tensors.count": Typed("int32", parts if total is None else total),
        }
        path = folder / f"{stem}-{no + 1:05d}-of-{parts:05d}.gguf"
        paths.append(write_gguf(path, {f"blk.{no}.weight": ("Q8_0", (32, 32))}, metadata))
    return paths


@pytest.mark.parametrize("given", range(3))
def test_any_part_of_a_split_gguf_gives_the_whole(tmp_path: Path, given: int) -> None:
    paths = write_split(tmp_path)
    header = open_header(paths[given])
    assert header.format == "gguf"
    assert header.shards == tuple(map(str, paths))
    assert {n: t.shard for n, t in header.tensors.items()} == {f"blk.{i}.weight": i for i in range(3)}
    assert header.metadata["general.name"] == "whole"
    assert header.metadata["split.no"] == 0
    assert header.size == sum(p.stat().st_size for p in paths)
    assert header.problems == ()


def test_a_missing_part(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[0].unlink()
    assert rules(open_header(paths[1]).problems) == [("file/missing-shard", "error")]


def test_a_renamed_part_cannot_find_the_others(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    header = open_header(paths[1].rename(tmp_path / "second.gguf"))
    assert rules(header.problems) == [("file/shard-mismatch", "error")]
    assert "-00002-of-00003.gguf" in header.problems[0].message
    assert len(header.tensors) == 1


def test_parts_that_disagree(tmp_path: Path) -> None:
    paths = write_split(tmp_path, total=7)
    assert [p.message.split(": ", 1)[1] for p in open_header(paths[0]).problems] == [
        "its parts hold 3 tensors, 7 were promised"
    ]
    other = write_split(tmp_path, 2, stem="other")
    paths[2].write_bytes(other[1].read_bytes())
    problems = open_header(paths[0]).problems
    assert {p.rule for p in problems} == {"file/shard-mismatch"}
    assert any("one of '2' parts, not of 3" in p.message for p in problems)


def test_a_split_of_one_is_a_plain_file(tmp_path: Path) -> None:
    (path,) = write_split(tmp_path, 1)
    assert open_header(path.rename(tmp_path / "x.gguf")).problems == ()


@pytest.mark.parametrize("count", [Typed("uint32", 1 << 31), Typed("int32", -3), "three", [1, 2]])
def test_a_split_count_of_nonsense(tmp_path: Path, count: Any) -> None:
    path = write_gguf(tmp_path / "x-00001-of-00003.gguf", {"w": ("F32", (1,))}, {"split.count": count})
    assert list(open_header(path).tensors) == ["w"]
