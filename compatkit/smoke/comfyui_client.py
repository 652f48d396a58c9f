"""A running ComfyUI as seen over HTTP: what it has, submitting a graph, following it, fetching what it made.

Only the server the user named is asked, every answer is read up to a bound, and every wait has an end. Progress comes
over the websocket where the package websocket-client is installed and the server keeps the connection; else, and after
a connection is lost, the history is asked every second.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from compatkit.vocabulary import SourceError

#: Bytes of one answer: the list of nodes with their files is the longest.
MOST = 64 << 20
MOST_PICTURE = 64 << 20
#: Seconds for one request, and between two looks at the history.
REQUEST = 30.0
EVERY = 1.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ServerError(Exception):
    """The server cannot be used. `state` is "unreachable" or "foreign" (what answers is no ComfyUI)."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state


class Run(Struct):
    """What became of a graph. `state`: done, error, rejected, interrupted, timeout or lost (the server went away).

    Of an error: the node's id and class, the exception's type and text, its traceback. Of a rejection: a row for each
    thing the server did not like, (node id, class, text). `pictures` are what the history lists: file name, subfolder
    and kind. `dropped`: the websocket ended early.
    """

    state: str
    message: str = ""
    node: str = ""
    node_class: str = ""
    error: str = ""
    traceback: str = ""
    rejected: list[tuple[str, str, str]] = field(default_factory=list)
    pictures: list[Mapping[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    dropped: bool = False


class Server:
    """A client of one server.

    Raises:
        SourceError: the address is not one of a web server.
    """

    def __init__(self, address: str, timeout: float = REQUEST) -> None:
        text = address if "://" in address else f"http://{address}"
        parts = urllib.parse.urlsplit(text)
        try:
            port_ok = parts.port is None or parts.port > 0
        except ValueError:
            port_ok = False
        if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok:
            raise SourceError(
                f"--comfyui {address}: give the address of a running server, such as http://127.0.0.1:8188"
            )
        self.base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        host = parts.netloc.rpartition("@")[2]
        self.shown = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"  # without what may be a password
        self.client = uuid.uuid4().hex
        self.timeout = timeout
        local: dict[str, str] | None = (
            {} if parts.hostname in _LOOPBACK else None
        )  # no proxy reaches this machine's own server
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler(local)).open

    def object_info(self) -> dict[str, Any]:
        """Every node class the server has, with its inputs; inputs that are files list the files.

        Raises:
            ServerError: it does not answer, or is no ComfyUI.
        """
        found = self._json("/object_info")
        if not isinstance(found, dict) or not any(isinstance(v, dict) and "input" in v for v in found.values()):
            raise ServerError("foreign", f"{self.shown} answers, but not as ComfyUI does (no list of nodes)")
        return found

    def version(self) -> str:
        """The server's version; empty where it does not tell."""
        with contextlib.suppress(ServerError):
            system = self._json("/system_stats")
            if isinstance(system, dict) and isinstance(system.get("system"), dict):
                return str(system["system"].get("comfyui_version") or "")
        return ""

    def run(self, graph: Mapping[str, Any], seconds: float) -> Run:
        """Submit a graph and wait for its end, `seconds` at most; then it is taken off the server again.

        Raises:
            ServerError: the server does not answer, or is no ComfyUI.
        """
        start = time.monotonic()
        link = self._link()
        prompt = ""
        run = Run("interrupted")
        try:
            status, answer = self._post("/prompt", {"prompt": graph, "client_id": self.client})
            if not isinstance(answer, dict):
                raise ServerError("foreign", f"{self.shown} answers, but not as ComfyUI does")
            prompt = str(answer.get("prompt_id") or "")
            if status != 200 or not prompt:
                run = _rejected(answer)
                prompt = ""
                return run
            run = self._followed(prompt, link, start + seconds)
            return run
        finally:
            run.seconds = round(time.monotonic() - start, 3)
            if link is not None:
                with contextlib.suppress(Exception):
                    link.close()
            if prompt and run.state in ("timeout", "interrupted"):
                self._withdraw(prompt)

    def picture(self, where: Mapping[str, str]) -> bytes:
        """The bytes of one picture of the history.

        Raises:
            ServerError: it cannot be fetched, or is too large.
        """
        query = urllib.parse.urlencode({k: where.get(k, "") for k in ("filename", "subfolder", "type")})
        _, raw = self._request(f"/view?{query}", None, MOST_PICTURE)
        return raw

    # -- following

    def _followed(self, prompt: str, link: Any, end: float) -> Run:
        looked, dropped, misses = 0.0, link is None, 0
        while time.monotonic() < end:
            if link is not None:
                event, link = self._event(link, min(EVERY, max(end - time.monotonic(), 0.05)))
                dropped = dropped or link is None
                run = _told(event, prompt) if event else None
                if run is not None:
                    return self._finished(run, prompt, dropped)
                if event is not None and link is not None:
                    continue
            if time.monotonic() - looked >= EVERY:
                looked = time.monotonic()
                try:
                    run = self._history(prompt)
                    misses = 0
                except ServerError as e:
                    misses += 1
                    if misses >= 5:
                        return Run("lost", str(e), dropped=dropped)
                    run = None
                if run is not None:
                    run.dropped = dropped
                    return run
            if link is None:
                time.sleep(min(EVERY / 4, max(end - time.monotonic(), 0)))
        return Run("timeout", dropped=dropped)

    def _finished(self, run: Run, prompt: str, dropped: bool) -> Run:
        """What the websocket said, with the pictures of the history, which is written a moment later."""
        run.dropped = dropped
        if run.state == "done":
            for _ in range(20):
                with contextlib.suppress(ServerError):
                    past = self._history(prompt)
                    if past is not None:
                        run.pictures = past.pictures
                        break
                time.sleep(0.1)
        return run

    def _history(self, prompt: str) -> Run | None:
        """The run as the history has it; None while it goes on."""
        found = self._json(f"/history/{urllib.parse.quote(prompt)}")
        entry = found.get(prompt) if isinstance(found, dict) else None
        if not isinstance(entry, dict):
            return None
        found = entry.get("status")
        status: Mapping[str, Any] = found if isinstance(found, dict) else {}
        for message in status.get("messages") or ():
            if isinstance(message, list) and len(message) == 2:
                run = _told({"type": message[0], "data": message[1]}, prompt)
                if run is not None and run.state != "done":
                    return run
        if status.get("status_str") == "error":
            return Run("error", "the server says that it failed, not why")
        return Run("done", pictures=_pictures(entry.get("outputs")))

    def _link(self) -> Any:
        """A websocket to the server; None where there can be none."""
        try:
            import websocket
        except ImportError:
            return None
        scheme, _, rest = self.base.partition("://")
        address = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/ws?clientId={self.client}"
        with contextlib.suppress(Exception):
            return websocket.create_connection(address, timeout=min(self.timeout, 10.0))
        return None

    @staticmethod
    def _event(link: Any, seconds: float) -> tuple[Mapping[str, Any] | None, Any]:
        """(the next message, the connection or None if it ended); no message: (None, connection)."""
        import websocket

        try:
            link.settimeout(seconds)
            said = link.recv()
        except (websocket.WebSocketTimeoutException, TimeoutError):
            return None, link
        except (websocket.WebSocketException, OSError, ValueError):
            return None, None
        if said == "" or said is None:
            return None, None
        if isinstance(said, bytes):  # a preview
            return {}, link
        try:
            event = json.loads(said)
        except ValueError:
            return {}, link
        return (event if isinstance(event, dict) else {}), link

    def _withdraw(self, prompt: str) -> None:
        """Take a graph off the queue, and stop it if it runs; other people's graphs are left alone."""
        with contextlib.suppress(ServerError, Exception):
            self._post("/queue", {"delete": [prompt]})
            queue = self._json("/queue")
            running = queue.get("queue_running") if isinstance(queue, dict) else None
            if any(isinstance(row, list) and prompt in row for row in running or ()):
                self._post("/interrupt", {"prompt_id": prompt})

    # -- requests

    def _json(self, path: str) -> Any:
        status, raw = self._request(path, None, MOST)
        return self._parsed(status, raw)

    def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        status, raw = self._request(path, json.dumps(body).encode(), MOST)
        if not raw.strip():
            return status, {}
        return status, self._parsed(status, raw, (400,))

    def _parsed(self, status: int, raw: bytes, also: tuple[int, ...] = ()) -> Any:
        try:
            value = json.loads(raw)
        except ValueError:
            start = raw[:200].lstrip().lower()
            what = "a web page" if start.startswith((b"<!doctype", b"<html")) else "something that is no JSON"
            code = f" (HTTP {status})" if status != 200 else ""
            message = f"{self.shown} answers with {what}{code}, not as ComfyUI's server does"
            raise ServerError("foreign", message) from None
        if status != 200 and status not in also:
            raise ServerError("foreign", f"{self.shown} answers with HTTP {status}, not as ComfyUI's server does")
        return value

    def _request(self, path: str, body: bytes | None, most: int) -> tuple[int, bytes]:
        headers = {"User-Agent": "compatkit", "Accept": "*/*"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.base + path, data=body, headers=headers)
        try:
            with self._open(request, timeout=self.timeout) as answer:
                return int(answer.status), self._read(answer, most)
        except urllib.error.HTTPError as e:
            with e:
                if e.code in (401, 403):
                    raise ServerError("unreachable", f"{self.shown} asks for a login (HTTP {e.code})") from None
                return e.code, self._read(e, most)
        except TimeoutError:
            raise ServerError("unreachable", f"{self.shown} gave no answer within {self.timeout:.0f} s") from None
        except urllib.error.URLError as e:
            raise ServerError("unreachable", f"{self.shown} cannot be reached: {_reason(e.reason)}") from None
        except (OSError, ValueError) as e:
            raise ServerError("unreachable", f"{self.shown} cannot be reached: {_reason(e)}") from None
        except Exception as e:  # http.client's own: an answer that is no HTTP
            said = " ".join(str(e).split())[:120] or type(e).__name__
            raise ServerError("foreign", f"{self.shown} does not speak HTTP as a server does: {said}") from None

    def _read(self, answer: Any, most: int) -> bytes:
        raw: bytes = answer.read(most + 1)
        if len(raw) > most:
            raise ServerError("foreign", f"{self.shown} answers with more than {most >> 20} MB")
        return raw


def _reason(reason: Any) -> str:
    if isinstance(reason, ConnectionRefusedError):
        return "connection refused (nothing listens on that port)"
    if isinstance(reason, socket.gaierror):
        return "there is no host of that name"
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    return str(getattr(reason, "strerror", None) or reason)


def _told(event: Mapping[str, Any], prompt: str) -> Run | None:
    """What a message means for this graph; None for one that ends nothing."""
    data = event.get("data")
    if not isinstance(data, dict) or str(data.get("prompt_id", "")) != prompt:
        return None
    kind = event.get("type")
    node, kind_of_node = str(data.get("node_id") or ""), str(data.get("node_type") or "")
    if kind == "execution_error":
        lines = data.get("traceback")
        return Run(
            "error",
            str(data.get("exception_message") or "").strip(),
            node,
            kind_of_node,
            str(data.get("exception_type") or ""),
            "".join(map(str, lines)) if isinstance(lines, list) else str(lines or ""),
        )
    if kind == "execution_interrupted":
        return Run("interrupted", node=node, node_class=kind_of_node)
    if kind == "execution_success" or (kind == "executing" and "node" in data and data["node"] is None):
        return Run("done")
    return None


def _rejected(answer: Mapping[str, Any]) -> Run:
    """What the server did not like about the graph."""
    error = answer.get("error")
    message = str(error.get("message") or "") if isinstance(error, dict) else str(error or "")
    details = str(error.get("details") or "") if isinstance(error, dict) else ""
    rows = []
    nodes = answer.get("node_errors")
    for node, entry in nodes.items() if isinstance(nodes, dict) else ():
        for problem in entry.get("errors") or () if isinstance(entry, dict) else ():
            if isinstance(problem, dict):
                texts = [str(problem.get(k) or "") for k in ("message", "details")]
                rows.append((str(node), str(entry.get("class_type") or ""), ": ".join(t for t in texts if t)))
    said = ": ".join(s for s in (message, details) if s)
    return Run("rejected", said or "the server gives no reason", rejected=rows)


def _pictures(outputs: Any) -> list[Mapping[str, str]]:
    out: list[Mapping[str, str]] = []
    for entry in outputs.values() if isinstance(outputs, dict) else ():
        for image in entry.get("images") or () if isinstance(entry, dict) else ():
            if isinstance(image, dict) and image.get("filename"):
                out.append({k: str(image.get(k) or "") for k in ("filename", "subfolder", "type")})
    return out
