"""Marker tensors: read together, never weights, and a hole says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compatkit.headers import open_header
from compatkit.headers.small import MAX_BYTES, read_small
from compatkit.sources import LocalSource
from compatkit.vocabulary import SourceError
from tests.support.files import write_safetensors, write_sharded

MARKER = b'{"format": "float8_e4m3fn"}'


def fill(path: Path, **contents: bytes) -> None:
    """Overwrites the data of tensors in place."""
    header = open_header(path)
    with path.open("r+b") as file:
        for name, content in contents.items():
            file.seek(header.tensors[name].offset)
            file.write(content)


def test_read_together_and_holes_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("U8", (len(MARKER),))
    tensors: dict[str, Any] = {"a": small, "w": ("F8_E4M3", (100, 100)), "b": small, "hole": small}
    path = write_safetensors(tmp_path / "x.safetensors", tensors)
    fill(path, a=MARKER, b=MARKER[::-1])
    header = open_header(path)
    with LocalSource(path) as source:
        reads: list[int] = []
        real = LocalSource.read

        def counted(self: LocalSource, offset: int, length: int) -> bytes:
            reads.append(length)
            return real(self, offset, length)

        monkeypatch.setattr(LocalSource, "read", counted)
        assert read_small(header, ["b", "a", "hole", "no such"], source) == {"a": MARKER, "b": MARKER[::-1]}
        assert len(reads) == 1
    assert read_small(header, ["a"]) == {"a": MARKER}
    assert read_small(header, []) == {}


def test_distant_markers_do_not_drag_the_weights_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("U8", (4,))
    path = write_safetensors(tmp_path / "x", {"a": small, "w": ("BF16", (60_000, 60_000)), "b": small})
    fill(path, a=b"aaaa", b=b"bbbb")
    assert read_small(open_header(path), ["a", "b"]) == {"a": b"aaaa", "b": b"bbbb"}


def test_weights_are_not_read(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x", {"w": ("U8", (MAX_BYTES + 1,)), "none": ("U8", (0,))})
    fill(path, w=b"x")
    assert read_small(open_header(path), ["w", "none"]) == {}


@pytest.mark.parametrize("open_one", [True, False])
def test_markers_in_several_shards(tmp_path: Path, open_one: bool) -> None:
    paths = write_sharded(tmp_path, [{"a": ("U8", (4,))}, {"b": ("U8", (4,))}])
    for path, content in zip(paths, (b"aaaa", b"bbbb"), strict=False):
        path.write_bytes(path.read_bytes()[:-4] + content)
    header = open_header(paths[0])
    with LocalSource(paths[0]) as source:
        found = read_small(header, ["a", "b"], source if open_one else None)
    assert found == {"a": b"aaaa", "b": b"bbbb"}
    paths[1].unlink()
    with LocalSource(paths[0]) as source:
        assert read_small(header, ["a"], source) == {"a": b"aaaa"}
        with pytest.raises(SourceError):
            read_small(header, ["b"], source if open_one else None)
