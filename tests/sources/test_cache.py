"""What was read of far files, between runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatkit.headers import open_header
from compatkit.sources import cache as module
from compatkit.sources.cache import Cache, location
from compatkit.sources.http import HttpSource
from compatkit.sources.network import Network
from compatkit.sources.spans import Spans
from compatkit.vocabulary import SourceError
from tests.support.files import write_safetensors
from tests.support.servers import Handler, Request, Server, range_server, reply_file

ROOT = Path(__file__).resolve().parents[2]


def spans(*pieces: tuple[int, bytes]) -> Spans:
    made = Spans()
    for at, data in pieces:
        made.add(at, data)
    return made


PIECES = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 50)), max_size=12)


@given(PIECES, st.integers(0, 200), st.integers(1, 60))
def test_spans_hold_what_was_put_in_and_know_the_rest(pieces: list[tuple[int, int]], at: int, length: int) -> None:
    whole = bytes(i % 251 for i in range(300))
    made = spans(*((a, whole[a : a + n]) for a, n in pieces))
    here = {i for a, n in pieces for i in range(a, a + n)}
    gaps = list(made.missing(at, length))
    assert {i for a, b in gaps for i in range(a, b)} == set(range(at, at + length)) - here
    assert made.total == len(here)
    for a, b in gaps:
        made.add(a, whole[a:b])
    assert made.take(at, length) == whole[at : at + length]


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    with_secret = "https://example.org/x?token=SECRET"
    first = Cache(str(tmp_path))
    first.put(with_secret, "x", 100, '"tag"', "", "", spans((0, b"abc"), (50, b"def")))
    first.close()
    again = Cache(str(tmp_path))
    entry = again.get(with_secret)
    assert entry is not None
    assert (entry.size, entry.etag, list(entry.spans)) == (100, '"tag"', [(0, b"abc"), (50, b"def")])
    assert again.get("https://example.org/y") is None
    again.close()
    assert not any(b"SECRET" in p.read_bytes() for p in tmp_path.iterdir())


def test_a_second_run_costs_one_question_and_no_bytes(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {f"l{i}.w": ("BF16", (64, 64)) for i in range(3000)})
    with range_server(tmp_path) as server:
        for run in range(2):
            with Network() as network, HttpSource(network, server.url("x.safetensors")) as source:
                assert len(open_header(source).tensors) == 3000
            if run:
                assert (network.requests, network.bytes) == (1, 0)


def test_a_server_that_knows_no_conditions_costs_one_byte(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"l.w": ("BF16", (640, 640))})

    def answer(handler: Handler, request: Request) -> None:
        reply_file(handler, Request(request.path, request.range, {}), tmp_path / request.path)

    with Server(answer) as server:
        for _ in range(2):
            with Network() as network, HttpSource(network, server.url("x.safetensors")) as source:
                open_header(source)
    assert (network.requests, network.bytes) == (1, 1)


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    with range_server(tmp_path) as server:
        for name in ("a.w", "other.w"):
            write_safetensors(tmp_path / "x.safetensors", {name: ("BF16", (640, 640))})
            with Network() as network, HttpSource(network, server.url("x.safetensors")) as source:
                assert list(open_header(source).tensors) == [name]


def test_offline_answers_from_the_cache_and_from_nothing_else(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"l.w": ("BF16", (640, 640))})
    with range_server(tmp_path) as server:
        url = server.url("x.safetensors")
        with Network(offline=True) as network, pytest.raises(SourceError, match="offline") as error:
            HttpSource(network, url)
        assert error.value.problem is not None
        assert error.value.problem.rule == "file/offline"
        with Network() as network, HttpSource(network, url) as source:
            open_header(source)
    with Network(offline=True) as network, HttpSource(network, url) as source:
        assert len(open_header(source).tensors) == 1
        assert network.requests == 0


def test_without_a_version_nothing_is_kept(tmp_path: Path) -> None:
    def answer(handler: Handler, request: Request) -> None:
        body = (tmp_path / "x.safetensors").read_bytes()
        handler.reply(request, 206, {"Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}"}, body)

    write_safetensors(tmp_path / "x.safetensors", {"l.w": ("BF16", (64, 64))})
    with Server(answer) as server:
        for _ in range(2):
            with Network() as network, HttpSource(network, server.url("x.safetensors")) as source:
                open_header(source)
            assert network.bytes > 8000


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"no database at all" * 100,
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:4096] + os.urandom(len(raw) - 4096),
        lambda raw: b"",
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, damage: object) -> None:
    first = Cache(str(tmp_path))
    for i in range(30):
        first.put(f"https://example.org/{i}", "x", 100_000, '"t"', "", "", spans((0, os.urandom(5000))))
    first.close()
    database = tmp_path / "headers.sqlite"
    database.write_bytes(damage(database.read_bytes()))  # type: ignore[operator]
    again = Cache(str(tmp_path))
    again.get("https://example.org/3")
    again.put("https://example.org/new", "x", 10, '"t"', "", "", spans((0, b"abc")))
    entry = again.get("https://example.org/new")
    again.close()
    assert entry is not None
    assert list(entry.spans) == [(0, b"abc")]


def test_a_changed_row_is_not_believed(tmp_path: Path) -> None:
    import sqlite3

    first = Cache(str(tmp_path))
    first.put("https://example.org/x", "x", 100, '"t"', "", "", spans((0, b"abc" * 20)))
    first.close()
    with sqlite3.connect(tmp_path / "headers.sqlite") as db:
        (raw,) = db.execute("SELECT pieces FROM files").fetchone()
        db.execute("UPDATE files SET pieces = ?", (raw[:-6] + bytes([raw[-6] ^ 1]) + raw[-5:],))
    db.close()
    assert Cache(str(tmp_path)).get("https://example.org/x") is None


def test_the_longest_unused_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOTAL", 40_000)
    cache = Cache(str(tmp_path))
    for i in range(12):
        cache.put(f"https://example.org/{i}", "x", 10_000, '"t"', "", "", spans((0, os.urandom(5000))))
    assert cache.get("https://example.org/0") is None
    assert cache.get("https://example.org/11") is not None
    assert cache.info().bytes <= 40_000
    cache.close()


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from compatkit.sources.cache import Cache; from compatkit.sources.spans import Spans\n"
        "c = Cache(sys.argv[1])\n"
        "for i in range(40):\n"
        "    s = Spans(); s.add(0, bytes([i]) * 3000)\n"
        "    c.put(f'https://example.org/{i}', 'x', 3000, sys.argv[2], '', '', s)\n"
        "    e = c.get(f'https://example.org/{i}')\n"
        "    assert e and e.spans.take(0, 3000) == bytes([i]) * 3000\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)], env=env) for n in range(4)]
    assert [r.wait(60) for r in runs] == [0, 0, 0, 0]
    assert Cache(str(tmp_path)).info().files == 40


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(str(tmp_path / "file" / "below"))
    cache.put("https://example.org/x", "x", 3, '"t"', "", "", spans((0, b"abc")))
    assert cache.get("https://example.org/x") is None
    assert cache.info().files == 0


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert location() == str(tmp_path / "cache")
    monkeypatch.setenv("COMPATKIT_CACHE", "off")
    assert location() is None
    assert Cache.default().info().path is None
    monkeypatch.delenv("COMPATKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert location() == str(tmp_path / "compatkit")
