"""Connections that end at a deadline, whatever the server does."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import http.client


class Alarm:
    """Breaks a connection off at a deadline: a server may keep each wait short and still never come to an end."""

    def __init__(self, connection: http.client.HTTPConnection, seconds: float, silence: float) -> None:
        self.silence = silence
        self.rang = False
        self.timer = threading.Timer(max(0.1, seconds), self._ring)
        self.timer.daemon = True
        self.connection = connection

    def _ring(self) -> None:
        self.rang = True
        shut(self.connection)

    def __enter__(self) -> None:
        self.timer.start()
        try:
            if self.connection.sock is None:
                self.connection.connect()
            self.connection.sock.settimeout(self.silence)
        except BaseException:
            self.timer.cancel()
            raise

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        if self.rang:  # http.client takes a connection's end for the end of the headers
            raise TimeoutError


def shut(connection: http.client.HTTPConnection) -> None:
    """Ends a connection at once, also under a reader in another thread."""
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
