"""Places that an fsspec driver reads; `memory://` is one that needs no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compatkit import api
from compatkit.headers import open_header
from compatkit.sources.network import Network
from compatkit.sources.open import open_folder, open_source
from compatkit.vocabulary import SourceError
from tests.support.files import write_safetensors, write_sharded

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    write_safetensors(tmp_path / "x.safetensors", {f"l{i}.w": ("BF16", (8, 8)) for i in range(3000)})
    write_sharded(tmp_path, [{f"m{i}.w": ("BF16", (8, 8))} for i in range(3)])
    for path in tmp_path.glob("*.*"):
        fs.pipe_file(f"/models/{path.name}", path.read_bytes())
    yield fs
    fs.rm("/models", recursive=True)


def test_a_file_is_read_in_ranges(memory: Any, network: Network) -> None:
    with open_source("memory://models/x.safetensors", network=network) as source:
        header = open_header(source)
    assert len(header.tensors) == 3000
    assert network.bytes == header.header_bytes


def test_shards_lie_beside_their_index(memory: Any, network: Network) -> None:
    with open_source("memory://models/model.safetensors.index.json", network=network) as source:
        header = open_header(source)
    assert len(header.tensors) == 3
    assert not header.problems


def test_a_folder_is_listed(memory: Any, network: Network) -> None:
    folder = open_folder("memory://models", network=network)
    assert "x.safetensors" in folder.names()
    assert folder.has("x.safetensors")
    assert not folder.has("y.safetensors")
    with pytest.raises(SourceError, match=r"model_index\.json"):
        api.inspect("memory://models")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("memory://models/nothing.safetensors", "does not exist"),
        ("gopher://models/x.safetensors", "no kind of source gopher"),
        ("s3://bucket/x.safetensors", "driver that is not installed"),
        ("simplecache::memory://models/x.safetensors", "does not exist|chained"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(text: str, says: str, network: Network) -> None:
    if text.startswith("s3") and _installed("s3fs"):
        pytest.skip("the driver is installed here")
    with pytest.raises(SourceError, match=says) as error:
        open_source(text, network=network)
    assert "\n" not in str(error.value)


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_offline_means_drivers_too(memory: Any) -> None:
    with Network(offline=True) as network, pytest.raises(SourceError, match="offline"):
        open_source("memory://models/x.safetensors", network=network)
