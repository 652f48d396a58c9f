"""Servers that tests start on this machine: one that serves ranges, one like the Hub, and ones that misbehave.

with RangeServer(folder) as server:
    HttpSource(network, server.url("model.safetensors"))
    server.log  # every request: path, range, headers, bytes of body sent
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Request:
    """One request as the server saw it."""

    path: str
    range: str
    headers: Mapping[str, str]
    status: int = 0
    sent: int = 0


@dataclass
class Server:
    """Answers on 127.0.0.1 until it is closed. `answer(handler, request)` decides everything."""

    answer: Callable[[Handler, Request], None]
    latency: float = 0.0
    log: list[Request] = field(default_factory=list)
    at_once: int = 0  # the most requests in progress at the same time

    def __post_init__(self) -> None:
        server = self
        self._now, self._lock = 0, threading.Lock()

        class Bound(Handler):
            owner = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def url(self, path: str = "") -> str:
        """The link to a path on it."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/{path}"

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is set to."""
        return self.url().rstrip("/")

    @property
    def sent(self) -> int:
        """Bytes of bodies sent in all."""
        return sum(r.sent for r in self.log)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def handle(self, handler: Handler) -> None:
        """One request, logged."""
        request = Request(
            unquote(urlsplit(handler.path).path)[1:],
            handler.headers.get("Range", ""),
            {name.title(): value for name, value in handler.headers.items()},
        )
        with self._lock:
            self.log.append(request)
            self._now += 1
            self.at_once = max(self.at_once, self._now)
        try:
            time.sleep(self.latency)
            self.answer(handler, request)
        finally:
            with self._lock:
                self._now -= 1


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 with connections kept open."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: Server

    def do_GET(self) -> None:
        """Every request is one of these."""
        try:
            self.owner.handle(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def reply(self, request: Request, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """A whole answer."""
        request.status = status
        self.send_response(status)
        fields = {"Content-Length": str(len(body)), **(headers or {})}
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            request.sent += len(body)


def reply_file(handler: Handler, request: Request, path: Path, extra: Mapping[str, str] | None = None) -> None:
    """A file, by range, with an ETag, as good servers do it."""
    if not path.is_file():
        handler.reply(request, 404, {"Content-Type": "text/plain"}, b"not found")
        return
    size = path.stat().st_size
    tag = '"' + hashlib.md5(f"{path}{size}{path.stat().st_mtime_ns}".encode()).hexdigest() + '"'
    headers = {"ETag": tag, "Accept-Ranges": "bytes", **(extra or {})}
    if request.headers.get("If-None-Match") == tag:
        handler.reply(request, 304, {"ETag": tag})
        return
    if request.range:
        first, _, last = request.range.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or size - 1), size - 1)
        if start >= size:
            handler.reply(request, 416, {"Content-Range": f"bytes */{size}"})
            return
        with path.open("rb") as f:
            f.seek(start)
            body = f.read(end - start + 1)
        handler.reply(request, 206, {**headers, "Content-Range": f"bytes {start}-{end}/{size}"}, body)
        return
    handler.reply(request, 200, headers, path.read_bytes())


def range_server(folder: Path, latency: float = 0.0) -> Server:
    """Serves the files of a folder."""
    return Server(lambda handler, request: reply_file(handler, request, folder / request.path), latency)


@dataclass
class Repo:
    """A repository of the Hub-like server. `token`: needed to read it; `gated`: even the right one is refused."""

    files: Path
    commit: str = "c0ffee" * 6 + "c0ff"
    token: str = ""
    gated: bool = False
    older: Mapping[str, Path] = field(default_factory=dict)  # commit -> what was there then


def _lfs(file: Path) -> dict[str, Any]:
    """What the Hub says of a large file. Those that tests make of holes are too large to hash."""
    if not 10_000 < file.stat().st_size < 64 << 20:
        return {}
    return {"lfs": {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "size": file.stat().st_size}}


def hub_server(repos: Mapping[str, Repo], *, cdn: Server | None = None, latency: float = 0.0) -> Server:
    """As the Hub: lists and resolves repositories. Large files come from `cdn` (any server whose root is `/`), if
    given."""

    def answer(handler: Handler, request: Request) -> None:
        steps = request.path.split("/")
        if steps[0] == "api":
            name, revision, path = "/".join(steps[2:4]), "/".join(steps[5:]), ""
        else:
            name, revision, path = "/".join(steps[:2]), steps[3] if len(steps) > 3 else "", "/".join(steps[4:])
        repo = repos.get(name)
        sent = request.headers.get("Authorization", "")
        if repo is None or (repo.token and not repo.gated and sent != f"Bearer {repo.token}"):
            handler.reply(request, 401, {"X-Error-Code": "RepoNotFound"}, b'{"error":"Repository not found"}')
        elif repo.gated:
            handler.reply(
                request, 403 if sent else 401, {"X-Error-Code": "GatedRepo"}, b"Access to model is restricted"
            )
        elif revision not in ("main", repo.commit, *repo.older):
            handler.reply(request, 404, {"X-Error-Code": "RevisionNotFound"})
        elif not path:
            rows = [
                {"rfilename": f.relative_to(repo.files).as_posix(), "size": f.stat().st_size} | _lfs(f)
                for f in sorted(repo.files.rglob("*"))
                if f.is_file()
            ]
            body = json.dumps({"sha": repo.commit, "siblings": rows}).encode()
            tag = '"' + hashlib.md5(body).hexdigest() + '"'
            if request.headers.get("If-None-Match") == tag:
                handler.reply(request, 304, {"ETag": tag})
            else:
                handler.reply(request, 200, {"ETag": tag}, body)
        else:
            file = repo.older.get(revision, repo.files) / path
            if not file.is_file():
                handler.reply(request, 404, {"X-Error-Code": "EntryNotFound"})
            elif cdn is not None and file.stat().st_size > 10_000:
                linked = '"' + hashlib.sha256(f"{file}{file.stat().st_mtime_ns}".encode()).hexdigest() + '"'
                handler.reply(
                    request,
                    302,
                    {
                        "Location": cdn.url(str(file)[1:]) + "?X-Amz-Signature=secret",
                        "X-Linked-ETag": linked,
                        "X-Linked-Size": str(file.stat().st_size),
                        "X-Repo-Commit": repo.commit,
                    },
                )
            else:
                reply_file(handler, request, file, {"X-Repo-Commit": repo.commit})

    return Server(answer, latency)
