"""`pull` when things go wrong: whatever happens, a file in place is whole and the right one."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compatkit.fetch import hubfile, transfer
from compatkit.fetch import pull as pulls
from compatkit.fetch.places import Placed, placed
from compatkit.fetch.pull import pull
from compatkit.fetch.transfer import part_of
from compatkit.knowledge.store import load
from compatkit.sources.open import Network
from compatkit.stacks import lockfile
from compatkit.vocabulary import SourceError
from tests.support.servers import Handler, Repo, Request, Server, hub_server, range_server, reply_file

ROOT = Path(__file__).resolve().parents[2]
SIZE = 3_000_017
Lock = Callable[..., list[Placed]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE", 1 << 18)
    monkeypatch.setattr(transfer, "_SLOW_START", 0.0)
    monkeypatch.setattr(hubfile, "_SLOW_START", 0.0)


@pytest.fixture
def served(tmp_path: Path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    for name in ("a.bin", "b.bin"):
        (folder / name).write_bytes(random.Random(name).randbytes(SIZE))
    return folder


def document(served: Path, url: Callable[[str], str], sha256: bool = True, **more: object) -> dict[str, object]:
    def entry(path: Path) -> dict[str, object]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if sha256 else None
        file = {"name": path.name, "source": url(path.name), "size": path.stat().st_size, "sha256": digest, **more}
        return {"asked": url(path.name), "source": url(path.name), "role": "vae", "files": [file]}

    return {"lock": 1, "verdict": "pass", "sources": [entry(p) for p in sorted(served.iterdir())]}


@pytest.fixture
def files(served: Path, tmp_path: Path) -> Lock:
    def make(url: Callable[[str], str], sha256: bool = True, **more: object) -> list[Placed]:
        path = tmp_path / "stack.lock"
        path.write_text(json.dumps(document(served, url, sha256, **more)))
        return placed(lockfile.load(str(path)), str(tmp_path / "to"), "flat", {})

    return make


def in_place(tmp_path: Path) -> list[str]:
    to = tmp_path / "to"
    return sorted(p.name for p in to.iterdir() if not p.name.startswith(".")) if to.exists() else []


def whole(served: Path, tmp_path: Path) -> bool:
    return in_place(tmp_path) == ["a.bin", "b.bin"] and all(
        (tmp_path / "to" / p.name).read_bytes() == p.read_bytes() for p in served.iterdir()
    )


def run(todo: list[Placed], tmp_path: Path, **more: object) -> pulls.Outcome:
    with Network() as network:
        return pull(todo, str(tmp_path / "to"), network, **more)  # type: ignore[arg-type]


def test_files_arrive_and_a_second_run_asks_for_nothing(served: Path, files: Lock, tmp_path: Path) -> None:
    with range_server(served) as server:
        todo = files(server.url)
        assert not run(todo, tmp_path).failed
        assert whole(served, tmp_path)
        assert SIZE * 2 <= server.sent < SIZE * 2.01
        before = len(server.log)
        again = run(todo, tmp_path)
        assert len(server.log) == before
        assert len(again.present) == 2
    assert not list((tmp_path / "to").glob(".*.part"))


def test_connections_cut_at_random_bytes(served: Path, files: Lock, tmp_path: Path) -> None:
    chance = random.Random(7)

    def answer(handler: Handler, request: Request) -> None:
        if chance.random() < 0.5:
            reply_file(handler, request, served / request.path)
            return
        start = int(request.range.removeprefix("bytes=").partition("-")[0])
        body = (served / request.path).read_bytes()[start : start + (1 << 18)]
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{SIZE}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: chance.randrange(1, len(body) + 1)])
        handler.close_connection = True

    with Server(answer) as server:
        assert not run(files(server.url), tmp_path).failed
    assert whole(served, tmp_path)


def test_wrong_bytes_are_never_in_place(served: Path, files: Lock, tmp_path: Path) -> None:
    with range_server(served) as server:
        todo = files(server.url)
        data = bytearray((served / "a.bin").read_bytes())
        data[SIZE // 2] ^= 1
        (served / "a.bin").write_bytes(data)
        outcome = run(todo, tmp_path)
    assert in_place(tmp_path) == ["b.bin"]
    assert "SHA-256" in outcome.failed[0]
    assert not Path(part_of(todo[0])).exists()  # it would be resumed for ever


def test_a_damaged_part_is_thrown_away_and_fetched_anew(served: Path, files: Lock, tmp_path: Path) -> None:
    with range_server(served) as server:
        todo = files(server.url)
        (tmp_path / "to").mkdir()
        Path(part_of(todo[0])).write_bytes(b"x" * 1_000_000)
        Path(part_of(todo[1])).write_bytes(b"x" * (SIZE + 5))
        assert not run(todo, tmp_path).failed
    assert whole(served, tmp_path)


def test_what_is_there_of_a_file_is_not_fetched_again(served: Path, files: Lock, tmp_path: Path) -> None:
    with range_server(served) as server:
        todo = files(server.url)
        (tmp_path / "to").mkdir()
        Path(part_of(todo[0])).write_bytes((served / "a.bin").read_bytes()[:2_000_000])
        assert not run(todo, tmp_path).failed
        assert whole(served, tmp_path)
        assert server.sent < SIZE * 2 - 1_900_000


def test_another_version_on_the_server_is_refused_without_a_checksum(served: Path, files: Lock, tmp_path: Path) -> None:
    with range_server(served) as server:
        outcome = run(files(server.url, sha256=False, etag='"old"'), tmp_path)
    assert len(outcome.failed) == 2
    assert '"old"' in outcome.failed[0]
    assert in_place(tmp_path) == []


def test_no_room_is_seen_before_the_first_byte(
    served: Path, files: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pulls.shutil, "disk_usage", lambda path: usage._replace(free=pulls.MARGIN + SIZE))
    with range_server(served) as server:
        with pytest.raises(SourceError, match="Nothing was begun"):
            run(files(server.url), tmp_path)
        assert server.log == []


def test_a_disk_that_fills_up_leaves_parts_to_resume(
    served: Path, files: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with range_server(served) as server:
        todo = files(server.url)
        with monkeypatch.context() as patch:
            patch.setattr(transfer, "_write", _quota(1_200_000, transfer._write))
            outcome = run(todo, tmp_path)
        assert all("disk is full" in line for line in outcome.failed)
        assert in_place(tmp_path) == []
        assert sum(Path(part_of(p)).stat().st_size for p in todo) > 500_000
        sent = server.sent
        assert not run(todo, tmp_path).failed
        assert server.sent - sent < SIZE * 2 - 500_000
    assert whole(served, tmp_path)


def _quota(allowed: int, write: Callable[..., None]) -> Callable[..., None]:
    class Full:
        def __init__(self, out: object) -> None:
            self.out = out

        def write(self, data: bytes) -> None:
            nonlocal allowed
            if len(data) > allowed:
                raise OSError(28, "No space left on device")
            allowed -= len(data)
            self.out.write(data)  # type: ignore[attr-defined]

        def flush(self) -> None:
            self.out.flush()  # type: ignore[attr-defined]

    return lambda out, data, placed: write(Full(out), data, placed)


def test_two_pulls_at_once(served: Path, files: Lock, tmp_path: Path) -> None:
    with range_server(served, latency=0.2) as server:
        todo = files(server.url)
        lock = tmp_path / "stack.lock"
        first = _start(lock, tmp_path)
        _until(lambda: len(server.log) > 0)
        with pytest.raises(SourceError, match="another pull"):
            run(todo, tmp_path)
        out, err = first.communicate(timeout=60)
        assert first.returncode == 0, out + err
    assert whole(served, tmp_path)


def _start(lock: Path, tmp_path: Path) -> subprocess.Popen[str]:
    code = (
        "import compatkit.fetch.transfer as t; t.PIECE = 1 << 18; import huggingface_hub.constants as c; "
        "c.DOWNLOAD_CHUNK_SIZE = 1 << 18; from compatkit.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "pull", str(lock), "--to", str(tmp_path / "to"), "--layout", "flat"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_again_and_again(served: Path, files: Lock, tmp_path: Path) -> None:
    with range_server(served, latency=0.05) as server:
        todo = files(server.url)
        for kills in (3, 8, 15):
            before = len(server.log)
            running = _start(tmp_path / "stack.lock", tmp_path)
            _until(lambda before=before, kills=kills: len(server.log) >= before + kills)  # type: ignore[misc]
            running.send_signal(signal.SIGKILL)
            running.wait(30)
            for name in in_place(tmp_path):
                assert (tmp_path / "to" / name).read_bytes() == (served / name).read_bytes()
        running = _start(tmp_path / "stack.lock", tmp_path)
        out, err = running.communicate(timeout=60)
        assert running.returncode == 0, out + err
        # each kill costs at most a piece in flight for each file
        assert server.sent <= SIZE * 2 + 3 * 2 * (1 << 18)
    assert whole(served, tmp_path)
    assert len(todo) == 2


def test_a_file_of_another_content_is_not_overwritten(served: Path, files: Lock, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "a.bin").write_bytes(b"mine")
    with range_server(served) as server:
        todo = files(server.url)
        with pytest.raises(SourceError, match="--force"):
            run(todo, tmp_path)
        assert (tmp_path / "to" / "a.bin").read_bytes() == b"mine"
        assert not run(todo, tmp_path, force=True).failed
    assert whole(served, tmp_path)


def test_a_link_that_is_gone_is_said_at_once(served: Path, files: Lock, tmp_path: Path) -> None:
    with Server(lambda handler, request: handler.reply(request, 404)) as server:
        outcome = run(files(server.url), tmp_path)
        assert len(server.log) == 2
    assert len(outcome.failed) == 2
    assert "404" in outcome.failed[0]


def test_nothing_is_left_of_a_file_that_is_not_there(served: Path, files: Lock, tmp_path: Path) -> None:
    def page(handler: Handler, request: Request) -> None:
        handler.reply(request, 404 if request.path == "a.bin" else 200, {}, b"<html>log in</html>")

    with Server(page) as server:
        assert len(run(files(server.url), tmp_path).failed) == 2
    assert not list((tmp_path / "to").glob(".*.part"))


@pytest.mark.parametrize("size", [SIZE - 100_000, SIZE + 100_000])
def test_a_source_here_of_another_size_is_refused(served: Path, files: Lock, tmp_path: Path, size: int) -> None:
    todo = files(lambda name: str(served / name), sha256=False)
    os.truncate(served / "a.bin", size)
    outcome = run(todo, tmp_path)
    assert in_place(tmp_path) == ["b.bin"]
    assert f"{size:,} bytes now; {SIZE:,} are locked" in outcome.failed[0]
    assert not list((tmp_path / "to").glob(".*.part"))


def test_a_file_that_crawls_is_given_up(served: Path, files: Lock, tmp_path: Path) -> None:
    def answer(handler: Handler, request: Request) -> None:
        start = int(request.range.removeprefix("bytes=").partition("-")[0])
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{SIZE - 1}/{SIZE}")
        handler.send_header("Content-Length", str(SIZE - start))
        handler.end_headers()
        for _ in range(300):
            handler.wfile.write(b"1234567890")
            handler.wfile.flush()
            time.sleep(0.1)

    with Server(answer) as server, Network(seconds=0.5) as network:
        begun = time.monotonic()
        outcome = pull(files(server.url), str(tmp_path / "to"), network)
        assert time.monotonic() - begun < 15  # and not for as long as something comes
    assert all("too slowly" in line for line in outcome.failed)


def test_files_of_the_hub_with_a_token_for_it_alone(
    served: Path, files: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = Repo(served, token="hf_secret")
    with (
        Server(lambda handler, request: reply_file(handler, request, Path("/" + request.path))) as cdn,
        hub_server({"org/repo": repo}, cdn=cdn) as hub,
    ):
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert not run(files(lambda name: f"hf://org/repo@{repo.commit}/{name}"), tmp_path).failed
        assert whole(served, tmp_path)
        assert all("hf_secret" not in str(r.headers) for r in cdn.log)
        assert cdn.sent >= SIZE * 2


def test_places_are_the_runtimes(served: Path, files: Lock, tmp_path: Path) -> None:
    files(lambda name: f"https://host/{name}")
    lock = lockfile.load(str(tmp_path / "stack.lock"))
    folders = load().runtime("comfyui")["folders"]
    there = [p.path for p in placed(lock, "/x/ComfyUI", "comfyui", folders)]
    assert there == ["/x/ComfyUI/models/vae/a.bin", "/x/ComfyUI/models/vae/b.bin"]
    assert placed(lock, "/x/models", "comfyui", folders)[0].path == "/x/models/vae/a.bin"
    with pytest.raises(SourceError, match="diffusers folder"):
        placed(lock, "/x", "diffusers", folders)


def test_two_files_of_one_name_are_refused(served: Path, files: Lock, tmp_path: Path) -> None:
    files(lambda name: f"https://host/{name}")
    path = tmp_path / "stack.lock"
    path.write_text(path.read_text().replace('"name": "b.bin"', '"name": "a.bin"'))
    with pytest.raises(SourceError, match="another name"):
        placed(lockfile.load(str(path)), "/x", "flat", {})


def hub_files(served: Path, files: Lock, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> list[Placed]:
    """The files of `served` as a repository's, at the endpoint of a server of the test."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return files(lambda name: f"hf://org/repo@{Repo(served).commit}/{name}")


def test_a_hub_file_whose_connections_are_cut_is_resumed(
    served: Path, files: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(3)
    repo = Repo(served)
    sent: list[int] = []

    def answer(handler: Handler, request: Request) -> None:
        path = served / request.path.split("/")[-1]
        if handler.command == "HEAD" or chance.random() < 0.2:
            reply_file(handler, request, path, {"X-Repo-Commit": repo.commit})
            return
        start = int(request.range.removeprefix("bytes=").partition("-")[0] or 0) if request.range else 0
        body = path.read_bytes()[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{SIZE - 1}/{SIZE}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        cut = chance.randrange(1, len(body) + 1)
        sent.append(cut)
        handler.wfile.write(body[:cut])
        handler.close_connection = True

    with Server(answer) as server:
        todo = hub_files(served, files, monkeypatch, server.endpoint)
        for _ in range(6):
            if not run(todo, tmp_path).failed:
                break
    assert whole(served, tmp_path)
    assert not list((tmp_path / "to").glob(".*.part"))


def test_wrong_bytes_from_the_hub_are_never_in_place(
    served: Path, files: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server({"org/repo": Repo(served)}) as hub:
        todo = hub_files(served, files, monkeypatch, hub.endpoint)
        data = bytearray((served / "a.bin").read_bytes())
        data[SIZE // 2] ^= 1
        (served / "a.bin").write_bytes(data)
        outcome = run(todo, tmp_path)
    assert in_place(tmp_path) == ["b.bin"]
    assert "SHA-256" in outcome.failed[0]
    assert not Path(part_of(todo[0])).exists()


def test_a_pull_from_the_hub_that_is_killed_goes_on(
    served: Path, files: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = Repo(served)

    def answer(handler: Handler, request: Request) -> None:
        path = served / request.path.split("/")[-1]
        if handler.command == "HEAD":
            reply_file(handler, request, path, {"X-Repo-Commit": repo.commit})
            return
        start = int(request.range.removeprefix("bytes=").partition("-")[0]) if request.range else 0
        body = path.read_bytes()[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Range", f"bytes {start}-{SIZE - 1}/{SIZE}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for at in range(0, len(body), 1 << 16):
            handler.wfile.write(body[at : at + (1 << 16)])
            request.sent += len(body[at : at + (1 << 16)])
            time.sleep(0.02)

    with Server(answer) as server:
        todo = hub_files(served, files, monkeypatch, server.endpoint)
        running = _start(tmp_path / "stack.lock", tmp_path)
        _until(lambda: server.sent > SIZE)
        running.send_signal(signal.SIGKILL)
        running.wait(30)
        assert in_place(tmp_path) == []
        before = len(server.log)
        running = _start(tmp_path / "stack.lock", tmp_path)
        out, err = running.communicate(timeout=90)
        assert running.returncode == 0, out + err
        assert any(r.range and not r.range.startswith("bytes=0-") for r in server.log[before:])
    assert whole(served, tmp_path)
    assert len(todo) == 2


@pytest.mark.parametrize(("code", "status", "says"), [("GatedRepo", 403, "gated"), ("EntryNotFound", 404, "not exist")])
def test_what_the_hub_refuses_is_said_at_once(
    served: Path, files: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, status: int, says: str
) -> None:
    with Server(lambda handler, request: handler.reply(request, status, {"X-Error-Code": code})) as server:
        outcome = run(hub_files(served, files, monkeypatch, server.endpoint), tmp_path)
        assert len(server.log) <= 4
    assert len(outcome.failed) == 2
    assert says in outcome.failed[0]
