"""Files behind HTTP: what is asked of good servers, and how bad ones end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from compatkit.headers import open_header
from compatkit.sources.http import FIRST, WHOLE, HttpSource
from compatkit.sources.network import Network
from compatkit.vocabulary import HeaderError, SourceError
from tests.support.files import write_gguf, write_safetensors, write_sharded
from tests.support.servers import Handler, Request, Server, range_server, reply_file


def tensors(count: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {f"layers.{i}.weight": ("BF16", (640, 1280)) for i in range(count)}


def test_a_short_header_is_one_request(tmp_path: Path, network: Network) -> None:
    write_safetensors(tmp_path / "x.safetensors", tensors(100))
    with range_server(tmp_path) as server, HttpSource(network, server.url("x.safetensors")) as source:
        header = open_header(source)
    assert len(header.tensors) == 100
    assert [r.range for r in server.log] == [f"bytes=0-{FIRST - 1}"]
    assert (network.requests, network.bytes) == (1, FIRST)


def test_a_long_header_is_two_requests_and_no_byte_too_many(tmp_path: Path, network: Network) -> None:
    write_safetensors(tmp_path / "x.safetensors", tensors(4000))
    with range_server(tmp_path) as server, HttpSource(network, server.url("x.safetensors")) as source:
        header = open_header(source)
    assert header.header_bytes > 2 * FIRST
    assert len(server.log) == 2
    assert server.sent == header.header_bytes


def test_a_gguf_with_a_vocabulary_reads_no_byte_twice(tmp_path: Path, network: Network) -> None:
    vocabulary = [f"token {i:07d}" for i in range(150_000)]
    write_gguf(tmp_path / "x.gguf", {"a.weight": ("F16", (8, 8))}, {"tokens": vocabulary})
    with range_server(tmp_path) as server, HttpSource(network, server.url("x.gguf")) as source:
        header = open_header(source)
    spans = sorted(tuple(map(int, r.range.removeprefix("bytes=").split("-"))) for r in server.log)
    assert all(a[1] < b[0] for a, b in pairwise(spans))
    assert server.sent <= 1.1 * header.header_bytes


def test_connections_are_kept(tmp_path: Path, network: Network) -> None:
    write_safetensors(tmp_path / "x.safetensors", tensors(4000))
    ports = set()

    def answer(handler: Handler, request: Request) -> None:
        ports.add(handler.client_address[1])
        reply_file(handler, request, tmp_path / request.path)

    with Server(answer) as server, HttpSource(network, server.url("x.safetensors")) as source:
        open_header(source)
    assert len(server.log) == 2
    assert len(ports) == 1


def test_shards_are_read_at_once_and_their_first_reads_are_small(tmp_path: Path, network: Network) -> None:
    write_sharded(tmp_path, [{f"m{i}.w": ("BF16", (64, 64))} for i in range(60)])
    with range_server(tmp_path, latency=0.05) as server:
        start = time.perf_counter()
        with HttpSource(network, server.url("model.safetensors.index.json")) as source:
            header = open_header(source)
        took = time.perf_counter() - start
    assert len(header.tensors) == 60
    assert not header.problems
    assert len(server.log) == 61
    assert server.at_once > 4
    assert server.sent < 400_000
    assert took < 61 * 0.05 * 0.8


def test_a_shard_that_is_not_there_is_named(tmp_path: Path, network: Network) -> None:
    *_, last, _ = write_sharded(tmp_path, [{f"m{i}.w": ("BF16", (64, 64))} for i in range(3)])
    last.unlink()
    with range_server(tmp_path) as server, HttpSource(network, server.url("model.safetensors.index.json")) as source:
        header = open_header(source)
    assert [p.rule for p in header.problems] == ["file/missing-shard"]
    assert "00003-of-00003" in header.problems[0].message


def test_a_redirect_elsewhere_is_followed_once(tmp_path: Path, network: Network) -> None:
    write_safetensors(tmp_path / "x.safetensors", tensors(4000))
    with range_server(tmp_path) as far:
        target = far.url("x.safetensors")
        with (
            Server(lambda h, r: h.reply(r, 302, {"Location": target})) as near,
            HttpSource(network, near.url("x.safetensors")) as source,
        ):
            open_header(source)
    assert (len(near.log), len(far.log)) == (1, 2)


# -- servers that misbehave: (answer, rule, words, bytes of body at most) --------------------------------------------


def whole_file(handler: Handler, request: Request) -> None:
    """Ignores the range: announces 6 GB and sends as much as is taken."""
    request.status = 200
    handler.send_response(200)
    handler.send_header("Content-Length", str(6 << 30))
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(bytes(1 << 16))
        request.sent += 1 << 16


def endless(handler: Handler, request: Request) -> None:
    """Ignores the range and does not say how much will come."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    for _ in range(200):
        handler.wfile.write(b"x" * (1 << 16))


def drip(handler: Handler, request: Request) -> None:
    """Sends a byte of header now and then, for ever."""
    handler.wfile.write(b"HTTP/1.1 206 Partial Content\r\n")
    for i in range(200):
        handler.wfile.write(f"X-{i}: y\r\n".encode())
        handler.wfile.flush()
        time.sleep(0.1)


def loop(handler: Handler, request: Request) -> None:
    handler.reply(request, 302, {"Location": "/" + request.path})


def chain(handler: Handler, request: Request) -> None:
    handler.reply(request, 302, {"Location": f"/{request.path}x"})


def early(handler: Handler, request: Request) -> None:
    """Promises a range and closes after a little of it, every time."""
    handler.send_response(206)
    first = int(request.range.removeprefix("bytes=").partition("-")[0])
    handler.send_header("Content-Range", f"bytes {first}-{first + 99_999}/1000000000")
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"x" * 1000)
    handler.close_connection = True


def replied(
    status: int, headers: dict[str, str] | None = None, body: bytes = b""
) -> Callable[[Handler, Request], None]:
    """Always this answer."""
    return lambda handler, request: handler.reply(request, status, headers, body)


BODY = b"x" * 1000
PAGE = b"<!DOCTYPE html><html><title>Log in</title>" + b" " * 600_000
HOSTILE: dict[str, tuple[Any, str, str]] = {
    "ignores range": (whole_file, "file/no-range", "ignores the range"),
    "ignores range, no length": (endless, "file/no-range", "ignores the range"),
    "long web page": (replied(200, {"Content-Type": "text/html"}, PAGE), "file/web-page", "web page"),
    "drips": (drip, "file/unreachable", "in time"),
    "hangs": (lambda h, r: time.sleep(3), "file/unreachable", "in time"),
    "redirects in a circle": (loop, "file/unreachable", "in a circle"),
    "redirects on and on": (chain, "file/unreachable", "more than 5 times"),
    "redirects to ftp": (replied(302, {"Location": "ftp://example.org/x"}), "file/unreachable", "ftp"),
    "redirects nowhere": (replied(302), "file/unreachable", "302"),
    "closes early": (early, "file/unreachable", "closed the connection early"),
    "closes at once": (lambda h, r: setattr(h, "close_connection", True), "file/unreachable", "127.0.0.1"),
    "no HTTP": (lambda h, r: h.wfile.write(b"hello\r\n\r\n"), "file/unreachable", "HTTP"),
    "other bytes": (replied(206, {"Content-Range": "bytes 5-1004/2000"}, BODY), "file/no-range", "5..1,004"),
    "no Content-Range": (replied(206, {}, BODY), "file/no-range", "Content-Range"),
    "no size": (replied(206, {"Content-Range": "bytes 0-999/*"}, BODY), "file/no-range", "how large"),
    "lies about the length": (replied(206, {"Content-Range": "bytes 0-99/2000"}, BODY), "file/no-range", "1,000 bytes"),
    "compressed": (
        replied(206, {"Content-Range": "bytes 0-999/2000", "Content-Encoding": "gzip"}, BODY),
        "file/no-range",
        "compressed",
    ),
    "401": (replied(401), "file/gated", "401"),
    "403": (replied(403), "file/gated", "403"),
    "404": (replied(404), "file/not-found", "404"),
    "410": (replied(410), "file/not-found", "410"),
    "416": (replied(416), "file/no-range", "416"),
    "429": (replied(429, {"Retry-After": "3600"}), "file/unreachable", "3600"),
    "500": (replied(500), "file/unreachable", "500"),
    "503": (replied(503, {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}), "file/unreachable", "503"),
    "204": (replied(204), "file/unreachable", "204"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_bad_server_is_one_sentence_few_bytes_and_little_time(kind: str, network: Network) -> None:
    answer, rule, words = HOSTILE[kind]
    with Server(answer) as server:
        start = time.monotonic()
        with pytest.raises(SourceError) as error:
            HttpSource(network, server.url("x.safetensors"))
        took = time.monotonic() - start
    assert error.value.problem is not None
    assert error.value.problem.rule == rule
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "x.safetensors" in str(error.value)
    assert network.bytes <= WHOLE
    assert took < 6


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (b"<!DOCTYPE html><html><title>Log in</title></html>", "file/web-page"),
        (b'{"error": "Access to this resource is restricted"}', "file/web-page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n", "file/lfs-pointer"),
        (b"", "file/empty"),
    ],
)
def test_a_short_answer_with_200_is_examined_as_a_file(body: bytes, rule: str, network: Network) -> None:
    with (
        Server(replied(200, {"Content-Type": "text/html"}, body)) as server,
        HttpSource(network, server.url("x.safetensors")) as source,
        pytest.raises(HeaderError) as error,
    ):
        open_header(source)
    assert error.value.problem.rule == rule


def test_an_empty_file_is_named(tmp_path: Path, network: Network) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    with (
        range_server(tmp_path) as server,
        HttpSource(network, server.url("x.safetensors")) as source,
        pytest.raises(HeaderError) as error,
    ):
        open_header(source)
    assert error.value.problem.rule == "file/empty"


def test_a_file_that_is_shorter_than_its_header_says_is_truncated(tmp_path: Path, network: Network) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", tensors(100))
    with path.open("r+b") as f:
        f.truncate(1_000_000)
    with (
        range_server(tmp_path) as server,
        HttpSource(network, server.url("x.safetensors")) as source,
        pytest.raises(HeaderError) as error,
    ):
        open_header(source)
    assert error.value.problem.rule == "file/truncated"


def test_a_server_that_is_busy_once_is_asked_again(tmp_path: Path, network: Network) -> None:
    write_safetensors(tmp_path / "x.safetensors", tensors(10))

    def answer(handler: Handler, request: Request) -> None:
        if len(server.log) == 1:
            handler.reply(request, 503, {"Retry-After": "1"})
        else:
            reply_file(handler, request, tmp_path / request.path)

    with Server(answer) as server, Network(seconds=5) as patient, HttpSource(patient, server.url("x.safetensors")) as s:
        assert len(open_header(s).tensors) == 10
    assert patient.requests == 2


@pytest.mark.parametrize("pause", [0.05, 30.0])
def test_a_server_that_sends_a_little_for_ever_is_given_up(tmp_path: Path, pause: float) -> None:
    release = threading.Event()

    def answer(handler: Handler, request: Request) -> None:
        first, _, last = request.range.removeprefix("bytes=").partition("-")
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {first}-{last}/{1 << 20}")
        handler.send_header("Content-Length", str(int(last) - int(first) + 1))
        handler.end_headers()
        while not release.wait(pause):
            handler.wfile.write(b"1234567890")
            handler.wfile.flush()

    begun = time.monotonic()
    with Server(answer) as server, Network(seconds=1) as hasty:
        with pytest.raises(SourceError, match="could not be read"):
            HttpSource(hasty, server.url("x.safetensors"))
        took = time.monotonic() - begun
        release.set()
    assert took < 2.9  # all resumes together


def test_what_was_cut_off_is_resumed_not_repeated(tmp_path: Path, network: Network) -> None:
    path = write_safetensors(tmp_path / "x.safetensors", tensors(4000))
    raw, size = path.read_bytes()[:1_000_000], path.stat().st_size

    def answer(handler: Handler, request: Request) -> None:
        first, _, last = request.range.removeprefix("bytes=").partition("-")
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        handler.send_header("Content-Length", str(int(last) - int(first) + 1))
        handler.end_headers()
        handler.wfile.write(raw[int(first) : min(int(last) + 1, int(first) + 70_000)])
        request.sent = min(int(last) + 1 - int(first), 70_000)
        handler.close_connection = True

    with Server(answer) as server, HttpSource(network, server.url("x.safetensors")) as source:
        header = open_header(source)
    assert len(header.tensors) == 4000
    assert server.sent == header.header_bytes


def test_a_file_that_changes_between_two_reads_is_not_believed(tmp_path: Path, network: Network) -> None:
    write_safetensors(tmp_path / "x.safetensors", tensors(4000))

    def answer(handler: Handler, request: Request) -> None:
        if len(server.log) == 2:
            write_safetensors(tmp_path / "x.safetensors", tensors(4001))
        reply_file(handler, request, tmp_path / request.path)

    with (
        Server(answer) as server,
        HttpSource(network, server.url("x.safetensors")) as source,
        pytest.raises(SourceError, match="changed on the server"),
    ):
        open_header(source)


def test_https_is_not_left_for_http() -> None:
    from compatkit.sources.client import Client, ClientError

    with pytest.raises(ClientError, match="plain http"):
        Client._next("https://example.org/x", "http://example.org/x")


def test_closing_the_run_ends_what_is_under_way(tmp_path: Path) -> None:
    import threading

    release = threading.Event()
    with Server(lambda h, r: release.wait(30) and None) as server, Network(seconds=20) as network:
        client = network.client("x")
        threading.Timer(0.3, client.close).start()
        start = time.monotonic()
        with pytest.raises(SourceError):
            HttpSource(network, server.url("x"))
        assert time.monotonic() - start < 15  # well before the 20 s after which it would end by itself
        release.set()


def test_a_proxy_of_the_environment_is_used(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str | None]] = []

    def answer(handler: Handler, request: Request) -> None:
        seen.append((handler.path, handler.headers.get("Proxy-Authorization")))
        handler.reply(request, 404)

    with Server(answer) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.endpoint.replace("http://", "http://user:password@"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(SourceError, match="404"):
            HttpSource(network, "http://models.example/x.gguf")
    assert seen == [("http://models.example/x.gguf", "Basic dXNlcjpwYXNzd29yZA==")]
