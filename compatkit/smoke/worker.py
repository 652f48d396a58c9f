"""The process that touches weights: `python -m compatkit.smoke.worker`, with a job as one line of JSON on its stdin.

What it finds goes to its standard output, one JSON object a line. It ends when its standard input is closed, so that
nothing is left behind when whoever started it is gone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from compatkit.vocabulary import HeaderError, RulesError, SourceError

#: What a job may be -> module and function `(job, emit)` that does it. Modules are imported when their job comes.
JOBS: dict[str, tuple[str, str]] = {
    "scan": ("compatkit.smoke.jobs", "scan"),
    "forward": ("compatkit.smoke.forwardjob", "forward"),
}

_EVERY = 0.1  # seconds between two reports of bytes


class Events:
    """Writes events; counts of bytes are gathered, so that a fast scan does not spend its time on reports."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._bytes = 0
        self._last = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event.get("event") == "bytes":
            self._bytes += int(event["n"])
            if time.monotonic() - self._last < _EVERY:
                return
        self.flush()
        if event.get("event") != "bytes":
            self._write(event)

    def flush(self) -> None:
        """Report what was gathered."""
        if self._bytes:
            self._write({"event": "bytes", "n": self._bytes})
        self._bytes, self._last = 0, time.monotonic()

    def _write(self, event: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(event, allow_nan=True) + "\n")
        self._out.flush()


def limit_memory(most: int) -> None:
    """Let no allocation of this process go beyond `most` bytes of its own data (maps of files are not counted)."""
    try:
        import resource
    except ImportError:  # Windows: the process that watches ends this one
        return
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    except (OSError, ValueError):
        return


def work(job: Mapping[str, Any], emit: Callable[[Mapping[str, Any]], None]) -> None:
    """Do one job; whatever goes wrong becomes an event `failed`."""
    module, function = JOBS[str(job["do"])]
    run: Callable[[Mapping[str, Any], Any], None] = getattr(importlib.import_module(module), function)
    try:
        run(job, emit)
    except (SourceError, HeaderError, RulesError) as e:
        emit({"event": "failed", "why": str(e)})
    except MemoryError:
        emit({"event": "failed", "why": "it needs more memory than it may have", "memory": True})
    except Exception as e:
        if os.environ.get("COMPATKIT_DEBUG"):
            raise
        emit({"event": "failed", "why": f"{type(e).__name__}: {e}"[:500]})
    emit({"event": "done"})


def main() -> None:
    """Entry point."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not stand among the events
    job = json.loads(sys.stdin.readline())
    if job.get("memory"):
        limit_memory(int(job["memory"]))

    def watch() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    work(job, Events(out))
    out.flush()
    os._exit(0)  # the thread that watches still waits for standard input


def rules_of(job: Mapping[str, Any]) -> tuple[Path, ...]:
    """The user's folders of rules, as the job names them."""
    return tuple(Path(p) for p in job.get("rules") or ())


if __name__ == "__main__":
    main()
