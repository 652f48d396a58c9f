"""HTTP/1.1 as this project needs it: small ranged reads, bounded in bytes and in time, over connections kept alive.

Built on the standard library's `http.client`: redirects, retries, deadlines and where a token may go are decided
here in any case, and a request library would add 50 to 100 ms of imports to a command that takes 300. Proxies of the
environment are used; certificates are the system's (SSL_CERT_FILE, SSL_CERT_DIR), else certifi's where it is installed.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from msgspec import Struct, field

from compatkit import __version__
from compatkit.sources.alarm import Alarm, shut
from compatkit.sources.proxies import login_of, proxy_for

if TYPE_CHECKING:
    import http.client
    import ssl

#: A server's first sign of life; silence between two pieces of an answer; one request with all its retries.
CONNECT_SECONDS, SILENCE_SECONDS, TOTAL_SECONDS = 5.0, 8.0, 20.0
#: A slower transfer than this many bytes per second is given up.
SLOWEST = 32_768
ATTEMPTS = 3
#: The longest wait that a server may ask for (Retry-After).
MAX_WAIT = 5.0
MAX_REDIRECTS = 5
#: Connections at once, over all servers.
CONNECTIONS = 16
#: So much of an unwanted body is read to keep the connection; a longer one is not worth it.
_DRAIN = 4096
_PIECE = 1 << 16
_RETRIED = {408, 429, 500, 502, 503, 504}
_LOOPBACK = re.compile(r"127(?:\.\d{1,3}){3}", re.A)
_REDIRECTS = {301, 302, 303, 307, 308}


class ClientError(Exception):
    """A request that got no usable answer. `what` completes a sentence that begins with the source's name."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Head(Struct, frozen=True):
    """The start of an answer. Header names are lower-case; of repeated ones the first counts."""

    status: int
    headers: Mapping[str, str]
    url: str


class Answer(Struct, frozen=True):
    """An answer, with as much of its body as was wanted. `hops` are the redirects before it.

    `whole` says that the body ended where the server said it would; `cut` why it did not.
    """

    head: Head
    body: bytes
    hops: tuple[Head, ...] = ()
    whole: bool = True
    cut: str = ""


class Counters(Struct):
    """What was sent and received, over all threads."""

    requests: int = 0
    bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, requests: int = 0, received: int = 0) -> None:
        """Counts."""
        with self.lock:
            self.requests += requests
            self.bytes += received


def origin(url: str) -> tuple[str, str, int]:
    """(scheme, host, port): the only place a token for `url` may go."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def may_carry_token(url: str) -> bool:
    """Whether a token may be sent there: over TLS, or to this machine."""
    scheme, host, _ = origin(url)
    return scheme == "https" or host in ("localhost", "::1") or _LOOPBACK.fullmatch(host) is not None


#: Given the start of an answer, how many bytes of its body are wanted.
Plan = Callable[[Head], int]


class Client:
    """Connections to any number of servers, used from any number of threads."""

    def __init__(self, counters: Counters, *, seconds: float | None = None) -> None:
        asked = seconds or _number(os.environ.get("COMPATKIT_TIMEOUT"))
        self.total = asked or TOTAL_SECONDS
        self.silence = min(SILENCE_SECONDS, self.total)
        self.counters = counters
        self._idle: dict[tuple[str, str, int], list[http.client.HTTPConnection]] = {}
        self._busy: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._gate = threading.BoundedSemaphore(CONNECTIONS)
        self._tls: ssl.SSLContext | None = None
        self.closed = False

    def get(
        self, url: str, headers: Mapping[str, str], plan: Plan, token: str = "", deadline: float | None = None
    ) -> Answer:
        """Gets `url`, with retries and redirects. `token` goes to the origin of `url` and nowhere else.

        `deadline`, on the clock of `time.monotonic`, is for a request that goes on where others broke off; every byte
        that comes moves it, at the rate `SLOWEST`.

        Raises:
            ClientError: there was no answer at all, or one that leads nowhere. An error status is an answer.
        """
        if deadline is None:
            deadline = time.monotonic() + self.total
        error: ClientError | None = None
        answer: Answer | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                wait = 0.2 * 2**attempt
                if answer is not None:
                    asked = _retry_after(answer.head.headers)
                    if asked > min(MAX_WAIT, deadline - time.monotonic() - 1):
                        break
                    wait = max(wait, asked)
                if time.monotonic() + wait + 1 > deadline:
                    break
                time.sleep(wait)
            try:
                answer, error = self._follow(url, headers, plan, token, deadline), None
            except _Transient as e:
                error, answer = ClientError(e.what), None
                continue
            if answer.head.status not in _RETRIED:
                return answer
        if answer is not None:
            return answer
        assert error is not None
        raise error

    def _follow(self, url: str, headers: Mapping[str, str], plan: Plan, token: str, deadline: float) -> Answer:
        home, seen = origin(url), {url}
        hops: list[Head] = []
        while True:
            sent = dict(headers)
            if token and origin(url) == home and may_carry_token(url):
                sent["Authorization"] = f"Bearer {token}"
            answer = self._once(url, sent, lambda head: 0 if head.status in _REDIRECTS else plan(head), deadline)
            target = answer.head.headers.get("location", "")
            if answer.head.status not in _REDIRECTS or not target:
                return Answer(answer.head, answer.body, tuple(hops), answer.whole, answer.cut)
            hops.append(answer.head)
            if plan(answer.head) < 0:  # what the redirect itself says is enough
                return Answer(answer.head, b"", tuple(hops))
            url = self._next(url, target)
            if url in seen or len(hops) > MAX_REDIRECTS:
                loop = "in a circle" if url in seen else f"more than {MAX_REDIRECTS} times"
                raise ClientError(f"could not be read: the server redirects {loop}")
            seen.add(url)

    @staticmethod
    def _next(url: str, target: str) -> str:
        try:
            new = urljoin(url, target)
            parts, old = urlsplit(new), urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise ClientError("could not be read: the server redirects to something that is no URL") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ClientError(
                f"could not be read: the server redirects to {parts.scheme or 'something'}, not to http(s)"
            )
        if parts.scheme == "http" and old.scheme == "https":
            raise ClientError("could not be read: the server redirects from https to plain http, which is refused")
        return parts._replace(fragment="").geturl()

    def _once(self, url: str, headers: Mapping[str, str], plan: Plan, deadline: float) -> Answer:
        import http.client

        parts, key = urlsplit(url), origin(url)
        with self._gate:
            while True:
                connection, used = self._connection(key)
                self.counters.add(requests=1)
                try:
                    with Alarm(connection, deadline - time.monotonic(), self.silence):
                        connection.request(
                            "GET", _target(parts, connection), headers=self._headers(headers, connection)
                        )
                        sock = connection.sock  # let go of where the answer ends the connection
                        response = connection.getresponse()
                except (OSError, http.client.HTTPException, ValueError) as e:
                    self._drop(connection)
                    if used and isinstance(e, ConnectionError):  # it had been closed while it was idle
                        self.counters.add(requests=-1)
                        continue
                    raise self._explained(e, parts, deadline) from None
                try:
                    return self._body(connection, sock, key, response, plan, url, deadline)
                finally:
                    with self._lock:
                        self._busy.discard(connection)

    def _body(
        self,
        connection: http.client.HTTPConnection,
        sock: socket.socket,
        key: tuple[str, str, int],
        response: http.client.HTTPResponse,
        plan: Plan,
        url: str,
        deadline: float,
    ) -> Answer:
        fields: dict[str, str] = {}
        for name, value in response.getheaders():
            fields.setdefault(name.lower(), value.strip())
        head = Head(response.status, fields, url)
        wanted = max(0, plan(head))
        pieces, left, cut = [], wanted, ""

        def piece(most: int) -> bytes:
            if response.isclosed():
                return b""
            sock.settimeout(max(0.05, min(self.silence, deadline - time.monotonic())))
            data = response.read1(min(most, _PIECE))
            self.counters.add(received=len(data))
            return data

        try:
            while left:
                data = piece(left)
                if not data:
                    if response.length:  # http.client counts down what was promised
                        cut = "the server closed the connection early"
                    break
                pieces.append(data)
                left -= len(data)
                deadline += len(data) / SLOWEST
                if left and time.monotonic() > deadline:
                    cut = "the server sends too slowly"
                    break
            if not cut and not response.isclosed() and (response.length or 0) <= _DRAIN and response.length is not None:
                while response.length and time.monotonic() < deadline and piece(_DRAIN):
                    pass
                if not response.length:
                    response.read()  # nothing more; it notices its end
        except (OSError, ValueError) as e:
            slow = pieces and time.monotonic() >= deadline
            late = "the server sends too slowly" if slow else "the server fell silent"
            cut = cut or (late if isinstance(e, TimeoutError) else "the connection broke")
        except Exception as e:  # http.client's own, such as a wrong length of a chunk
            cut = cut or f"the server broke off its answer ({type(e).__name__})"
        whole = response.isclosed() and not cut
        with self._lock:
            kept = whole and not response.will_close and not self.closed
            if kept:
                self._idle.setdefault(key, []).append(connection)
        if not kept:
            response.close()
            self._drop(connection)
        return Answer(head, b"".join(pieces), (), whole, cut)

    def _connection(self, key: tuple[str, str, int]) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self.closed:
                raise ClientError("was not read: the run is being stopped")
            idle = self._idle.get(key)
            connection = idle.pop() if idle else None
            if connection is not None:
                self._busy.add(connection)
                return connection, True
        made = self._new(*key)
        with self._lock:
            self._busy.add(made)
        return made, False

    def _new(self, scheme: str, host: str, port: int) -> http.client.HTTPConnection:
        import http.client

        proxy = proxy_for(scheme, host)
        there, at = (proxy.hostname or "", proxy.port or 80) if proxy else (host, port)
        made: http.client.HTTPConnection
        if scheme == "https":
            made = http.client.HTTPSConnection(there, at, timeout=CONNECT_SECONDS, context=self._context())
            if proxy:
                made.set_tunnel(host, port, login_of(proxy))
        else:
            made = http.client.HTTPConnection(there, at, timeout=CONNECT_SECONDS)
            made.compatkit_proxy = proxy  # type: ignore[attr-defined]
        return made

    def _context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                import ssl

                self._tls = ssl.create_default_context()
                if not self._tls.cert_store_stats()["x509_ca"] and not os.path.isdir(  # noqa: PTH112
                    ssl.get_default_verify_paths().capath or ""
                ):
                    try:
                        import certifi
                    except ImportError:
                        pass
                    else:
                        self._tls.load_verify_locations(certifi.where())
            return self._tls

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._busy.discard(connection)
        connection.close()

    @staticmethod
    def _headers(extra: Mapping[str, str], connection: http.client.HTTPConnection) -> dict[str, str]:
        proxy: SplitResult | None = getattr(connection, "compatkit_proxy", None)
        own = {"User-Agent": f"compatkit/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
        return {**own, **(login_of(proxy) if proxy else {}), **extra}

    @staticmethod
    def _explained(error: Exception, parts: SplitResult, deadline: float) -> Exception:
        import ssl

        host = parts.hostname or "the server"
        if isinstance(error, ssl.SSLCertVerificationError):
            why = error.verify_message or "it cannot be verified"
            return ClientError(f"could not be read: the certificate of {host} is not valid ({why})")
        if isinstance(error, socket.gaierror):
            return _Transient(f"could not be reached: there is no address for {host} (is this machine online?)")
        if isinstance(error, UnicodeError) or (isinstance(error, ValueError) and not isinstance(error, OSError)):
            return ClientError(f"could not be read: {host} is not a host's name, or the URL holds odd characters")
        if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
            return _Transient(f"could not be read: {host} did not answer in time")
        if isinstance(error, ConnectionRefusedError):
            return _Transient(f"could not be reached: {host} refuses connections on that port")
        if isinstance(error, OSError):
            return _Transient(f"could not be reached: the connection to {host} failed ({error.strerror or 'closed'})")
        return _Transient(f"could not be read: {host} does not speak HTTP properly ({type(error).__name__})")

    def close(self) -> None:
        """Closes every connection, also those in use: their readers then fail at once."""
        with self._lock:
            self.closed = True
            idle = [c for row in self._idle.values() for c in row]
            busy = list(self._busy)
            self._idle.clear()
        for connection in idle:
            connection.close()
        for connection in busy:
            shut(connection)


class _Transient(Exception):
    """A failure that may pass."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def _target(parts: SplitResult, connection: http.client.HTTPConnection) -> str:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if getattr(connection, "compatkit_proxy", None):
        return f"http://{parts.netloc}{path}"
    return path


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    if not text:
        return 0.0
    if (seconds := _number(text)) is not None:
        return seconds
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < 1e9 else None
