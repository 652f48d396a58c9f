"""Local files: whatever a path leads to, it is read, or refused in words, and never waited for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from compatkit.headers import open_header
from compatkit.sources import LocalSource, Source, shown
from compatkit.vocabulary import HeaderError, SourceError
from tests.support.files import write_gguf, write_safetensors

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


def why(path: Path | str) -> str:
    with pytest.raises(SourceError) as caught:
        open_header(path)
    words = str(caught.value)
    assert words.isprintable()
    return words


def test_ranges(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(100)))
    with LocalSource(tmp_path / "x") as source:
        checked: Source = source  # the protocol holds
        assert checked.size == 100
        assert source.read(0, 3) == b"\0\1\2"
        assert source.read(98, 50) == bytes([98, 99])
        assert source.read(100, 1) == source.read(5000, 1) == source.read(0, 0) == b""
        assert source.read(0, 1 << 62) == bytes(range(100))
    source.close()
    with pytest.raises(HeaderError):
        source.read(0, 1)


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def identity() -> str:
        with LocalSource(path) as source:
            return source.identity

    path.write_bytes(b"one")
    first = identity()
    assert first == identity()
    os.utime(path, ns=(1, 1))
    second = identity()
    path.write_bytes(b"three")
    assert len({first, second, identity()}) == 3


def test_siblings_are_bare_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "in/b", "in/c"):
        (tmp_path / name).write_bytes(b"x")
    with LocalSource(tmp_path / "in" / "b") as source:
        found = source.sibling("c")
        assert found
        assert found.name == str(tmp_path / "in" / "c")
        found.close()
        for name in ("../a", "/etc/passwd", "..", ".", "", "nothing", "in/c", "a\\b", "x\0"):
            assert source.sibling(name) is None


def test_no_such_file(tmp_path: Path) -> None:
    assert "does not exist" in why(tmp_path / "nothing")
    assert "does not exist" in why(tmp_path / "no" / "thing")
    assert "does not exist" in why("")
    assert "is not a path" in why("a\0b")
    assert "cannot be opened" in why("x" * 5000)


def test_a_folder(tmp_path: Path) -> None:
    assert "is a folder" in why(tmp_path)


@posix
def test_devices_pipes_and_sockets_are_refused_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe" in why(tmp_path / "pipe")
    assert "a character device" in why("/dev/null")
    assert "a character device" in why("/dev/zero")
    monkeypatch.chdir(tmp_path)  # a socket's path may have 108 bytes only
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        assert "a socket" in why("socket")


@posix
def test_a_pipe_that_takes_the_files_place_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write_safetensors(tmp_path / "x", {})
    os.mkfifo(tmp_path / "pipe")
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **kw: real(plain if str(path).endswith("pipe") else path, **kw))
    assert "a pipe" in why(tmp_path / "pipe")


@posix
def test_links(tmp_path: Path) -> None:
    plain = write_safetensors(tmp_path / "x.safetensors", {"w": ("F32", (1,))})
    (tmp_path / "link.safetensors").symlink_to(plain)
    assert open_header(tmp_path / "link.safetensors").source == str(tmp_path / "link.safetensors")
    (tmp_path / "broken").symlink_to("gone\n")
    assert "is a link to 'gone\\n', which does not exist" in why(tmp_path / "broken")
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be opened" in why(tmp_path / "loop")


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read everything")
def test_permission(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {})
    path.chmod(0)
    assert "may not be read by this user" in why(path)


def test_permission_denied_by_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {})

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "may not be read by this user" in why(path)


@posix
@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_names_in_no_encoding(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\x1b[2J\n.safetensors")
    path = write_safetensors(tmp_path / name, {"w": ("F32", (1,))})
    assert open_header(path).source == str(path)
    assert open_header(os.fsencode(path)).source == str(path)  # type: ignore[arg-type]
    with LocalSource(path) as source:
        source.identity.encode()
    path.write_bytes(b"")
    with pytest.raises(HeaderError) as caught:
        open_header(path)
    assert "\\udce9\\x1b[2J\\n" in caught.value.problem.message
    caught.value.problem.message.encode()


@pytest.mark.parametrize("format", ["safetensors", "gguf"])
def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if format == "gguf":
        path = write_gguf(tmp_path / "x.gguf", {"w": ("F32", (1,))}, {"tokens": ["x" * 300] * 3000})
    else:
        tensors = {f"{'long' * 20}.{i}": ("F32", (1,)) for i in range(3000)}
        path = write_safetensors(tmp_path / "x.safetensors", tensors)
    with LocalSource(path) as source:
        os.truncate(path, 300_000)
        with pytest.raises(HeaderError) as caught:
            open_header(source)
    assert caught.value.problem.rule == "file/unreadable"
    assert "shrank from" in caught.value.problem.message
    assert "300,000 bytes while it was being read" in caught.value.problem.message


def test_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", {})

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("compatkit.sources.local._pread", fail)
    with pytest.raises(HeaderError) as caught:
        open_header(path)
    assert caught.value.problem.rule == "file/unreadable"
    assert "Input/output error" in caught.value.problem.message


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    fds = Path("/proc/self/fd")
    if not fds.is_dir():
        pytest.skip("no /proc")
    good, bad = write_safetensors(tmp_path / "x", {}), tmp_path / "y"
    bad.write_bytes(b"<html>")
    before = len(list(fds.iterdir()))
    for _ in range(5):
        open_header(good)
        with pytest.raises(HeaderError):
            open_header(bad)
        with pytest.raises(SourceError):
            open_header(tmp_path)
    assert len(list(fds.iterdir())) == before


def test_shown() -> None:
    assert shown("plain name.safetensors") == "'plain name.safetensors'"
    assert shown("a\x1b[31m\n\u202eb\udcff") == "'a\\x1b[31m\\n\\u202eb\\udcff'"
    assert len(shown("\x00" * 100_000)) < 600
    assert shown("x" * 200 + "end").endswith("end'")


def test_reading_loads_no_heavy_module(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {"w": ("F32", (1,))})
    other = write_safetensors(tmp_path / "x.safetensors", {"w": ("F32", (1,))})
    code = (
        "import sys; from compatkit.headers import open_header\n"
        "for path in sys.argv[1:]: open_header(path)\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(other)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    heavy = {
        "numpy",
        "torch",
        "yaml",
        "requests",
        "urllib",
        "http",
        "importlib_metadata",
        "pathlib",
        "safetensors",
        "gguf",
    }
    assert not heavy & set(done.stdout.split())
