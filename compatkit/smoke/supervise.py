"""Runs the worker process: its events as they come, an end to it after too long or with too much memory.

Whatever ends a run, an error or Ctrl-C included, ends the worker too.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

Event = Mapping[str, Any]

_LOOK = 0.1  # seconds between two looks at the clock and the memory
_LAST_WORDS = 4000
#: What an interpreter with numpy takes beside what its work takes.
_ROOM = 512 << 20


class Outcome(Struct, frozen=True):
    """How a run ended: `why` is empty if it did all of its work, else a part of a sentence ("it took longer than …").

    `seconds` of wall time, `peak` bytes of own memory that were seen (0 where that cannot be seen).
    """

    why: str
    seconds: float
    peak: int


def run(
    job: Mapping[str, Any],
    on_event: Callable[[Event], None],
    *,
    timeout: float | None = None,
    memory: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Outcome:
    """Have a worker do `job` and hand each of its events to `on_event`, in this thread.

    Args:
        timeout: seconds after which it is ended.
        memory: bytes of its own (maps of model files are not counted) beyond which it is ended.
        environment: variables to set for it, such as the number of threads.
    """
    start = time.monotonic()
    process = _start(environment or {})
    said: list[bytes] = []
    events: queue.Queue[Event | None] = queue.Queue()
    threads = [
        threading.Thread(target=_read, args=(process.stdout, events), daemon=True),
        threading.Thread(target=_keep, args=(process.stderr, said), daemon=True),
    ]
    why, peak, done, look = "", 0, False, 0.0
    try:
        for thread in threads:
            thread.start()
        assert process.stdin is not None
        line = json.dumps({**job, "memory": memory + _ROOM if memory else None}) + "\n"
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line.encode())
            process.stdin.flush()
        while True:
            try:
                event = events.get(timeout=_LOOK)
                if event is None:
                    break
                done = done or event.get("event") == "done"
                on_event(event)
            except queue.Empty:
                pass
            if timeout and time.monotonic() - start > timeout:
                why = f"it took longer than the {timeout:g} seconds it had"
                break
            if time.monotonic() < look:
                continue
            look = time.monotonic() + _LOOK
            own = _own_memory(process.pid)
            peak = max(peak, own)
            if memory and own > memory:
                why = f"it took more than the {memory / 1e9:.3g} GB of memory it had"
                break
    finally:
        _end(process)
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
    if not why and not done:
        why = _died(process.returncode, b"".join(said))
    return Outcome(why, time.monotonic() - start, peak)


def _start(environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "compatkit.smoke.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, **environment},
        start_new_session=True,  # Ctrl-C reaches us alone; we end it
    )


def _read(stream: IO[bytes] | None, events: queue.Queue[Event | None]) -> None:
    with contextlib.suppress(ValueError, OSError):  # closed under our feet
        for line in stream or ():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                events.put(event)
    events.put(None)


def _keep(stream: IO[bytes] | None, said: list[bytes]) -> None:
    """The last of what it says to its standard error."""
    with contextlib.suppress(ValueError, OSError):
        for line in stream or ():
            said.append(line[-_LAST_WORDS:])
            del said[:-8]


def _own_memory(pid: int) -> int:
    """Resident bytes that are the process's own; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """See to it that the worker and all it started are gone."""
    if process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    if process.poll() is None:
        _kill(process)
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):
        process.kill()


def _died(code: int | None, said: bytes) -> str:
    """Why a worker ended that did not come to its end."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else str(-code)
        if name == "SIGBUS":
            return "a file became shorter while it was read (SIGBUS)"
        if name == "SIGKILL":
            return "the system ended it (SIGKILL), for want of memory most likely"
        return f"its process died ({name})"
    last = said.decode("utf-8", "replace").strip().splitlines()
    return f"its process ended early{f': {last[-1][:300]}' if last else ''}"
