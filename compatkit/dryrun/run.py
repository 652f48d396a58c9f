"""The process with torch, as its caller sees it: started once, asked line by line, never waited for without end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any

#: Seconds for the first answer (importing torch on a cold disk), and for any other.
START = 180.0
REQUEST = 300.0
_ERRORS = 20


class WorkerError(Exception):
    """The process with torch cannot be used, or gave no answer. The text says why."""


class Worker:
    """One process with torch. A context manager; leaving it ends the process.

    Args:
        command: what to start, for tests; this Python's worker if not given.
        timeout: seconds for one answer.
    """

    def __init__(self, command: Sequence[str] = (), timeout: float = REQUEST) -> None:
        # -P: the folder the user is in holds downloads, and nothing in it may stand in for a library.
        self._command = list(command) or [sys.executable, "-P", "-m", "compatkit.dryrun.worker"]
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None
        self._lines: Queue[str | None] = Queue()
        self._errors: list[str] = []
        self.environment: Mapping[str, Any] = {}

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            WorkerError: torch is not there or broken, the process ended, or gave no answer in time.
        """
        if self._process is None:
            self._start()
        return self._asked(request, self._timeout)

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        # The models' files are large, the tensors here are not: no accelerator is asked for, no thread pool is needed.
        hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                encoding="utf-8", errors="replace", env={**os.environ, **hidden, "PYTHONPATH": path},
            )  # fmt: skip
        except OSError as e:
            raise WorkerError(f"{self._command[0]} cannot be started: {e.strerror or e}") from None
        for target in (self._read, self._read_errors):
            threading.Thread(target=target, daemon=True).start()
        self.environment = self._asked({"do": "environment"}, START)

    def _asked(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = self._lines.get(timeout=timeout)
        except Empty:
            self.close()
            raise WorkerError(f"no answer within {timeout:.0f} seconds") from None
        except (BrokenPipeError, OSError, ValueError):
            line = None
        if line is None:
            raise WorkerError(self._end())
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise WorkerError(f"an answer that is none: {line[:200]}") from None
        if "failed" in answer:
            raise WorkerError(f"{answer['failed']}: {answer.get('message', '')}".rstrip(": "))
        return answer

    def _end(self) -> str:
        process = self._process
        code: int | None = None
        if process is not None:
            try:
                code = process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                code = None
        said = next((line for line in reversed(self._errors) if line.strip()), "")
        self.close()
        return f"the process ended (exit status {code}){': ' + said.strip()[:300] if said else ''}"

    def _read(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        process = self._process
        assert process is not None
        assert process.stderr is not None
        for line in process.stderr:
            self._errors.append(line)
            del self._errors[:-_ERRORS]

    def close(self) -> None:
        """End the process, if one was started."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                try:
                    stream.close()
                except OSError:  # what it still wanted to be told is of no use any more
                    continue
