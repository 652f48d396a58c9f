"""The process that runs a user's ComfyUI, as its caller sees it: one for many sets, bounded in time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any

from compatkit.hosts.comfyui import Install, read_install
from compatkit.vocabulary import SourceError

#: Seconds for ComfyUI's imports on a cold disk, and for one set; bytes the process may hold.
START = 240.0
REQUEST = 300.0
MEMORY = 6 << 30
_OVER_MEMORY = 99
_FOLDER = Path(__file__).with_name("comfyui_worker")


@contextlib.contextmanager
def checkout(directory: str | None) -> Iterator[Checkout | None]:
    """A process over a ComfyUI folder, started when it is first used; None without a folder, or with none in it."""
    try:
        install = read_install(directory) if directory else None
    except SourceError:  # said by whoever runs a set
        install = None
    if install is None:
        yield None
        return
    with Checkout(install) as process:
        yield process


class CheckoutError(Exception):
    """The checkout cannot be run, or did not answer. The text is one sentence without its end."""


class Checkout:
    """A ComfyUI checkout that runs sets. A context manager; leaving it ends the process. Nothing is written to it.

    Args:
        install: the checkout.
        python: the interpreter; the install's own if it has one that starts, else this one.
        timeout: seconds for one set.
        memory: bytes that the process may hold.
    """

    def __init__(
        self, install: Install, python: str | None = None, timeout: float = REQUEST, memory: int = MEMORY
    ) -> None:
        self.install = install
        self.environment: Mapping[str, Any] = {}
        self._pythons = [python] if python else [str(p) for p in (install.python, sys.executable) if p]
        self._timeout, self._memory = timeout, memory
        self._process: subprocess.Popen[str] | None = None
        self._lines: Queue[str | None] = Queue()
        self._told: set[str] = set()
        self._parts: dict[str, Mapping[str, Any]] = {}
        self._somewhere: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Checkout:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def part(self, name: str, message: Mapping[str, Any]) -> None:
        """Tell of a model file by the name that sets call it; told once, whatever happens to the process."""
        self._parts.setdefault(name, message)

    def knows(self, name: str) -> bool:
        """Whether a file of that name was told of."""
        return name in self._parts

    def run(self, request: Mapping[str, Any], names: Sequence[str]) -> list[Mapping[str, Any]]:
        """The stages of one set (`comfyui_worker.runner`); `names` are the parts it uses.

        Raises:
            CheckoutError: it cannot be run, took too long or too much memory, or ended.
        """
        if self._process is None:
            self._start()
        for name in names:
            if name not in self._told:
                self._send({"do": "part", "id": name, **self._parts[name]})
                self._told.add(name)
        self._send({"do": "set", **request})
        answer = self._answer(self._timeout)
        if "broken" in answer:
            raise CheckoutError(f"compatkit's own program in it failed: {answer['broken']}")
        stages: list[Mapping[str, Any]] = answer["stages"]
        return stages

    def _start(self) -> None:
        problems = []
        for python in self._pythons:
            try:
                self._started(python)
                return
            except CheckoutError as e:
                self.close()
                if str(e) not in problems:
                    problems.append(str(e))
        raise CheckoutError(problems[0] if problems else "there is no Python to run it with")

    def _started(self, python: str) -> None:
        self._somewhere = self._somewhere or tempfile.TemporaryDirectory(prefix="compatkit-")
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")}
        limits = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        quiet = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore", "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}
        command = [python, "-B", str(_FOLDER), str(self.install.path), str(self._memory)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                encoding="utf-8", errors="replace", env={**kept, **limits, **quiet}, cwd=self._somewhere.name,
            )  # fmt: skip
        except OSError as e:
            raise CheckoutError(f"{python} cannot be started: {e.strerror or e}") from None
        self._lines, self._told = Queue(), set()
        threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()
        ready = self._answer(START)
        if not ready.get("ready"):
            raise CheckoutError(str(ready.get("why") or "it does not start"))
        self.environment = ready

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: Queue[str | None]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in process.stdout or ():
                lines.put(line)
        lines.put(None)

    def _send(self, message: Mapping[str, Any]) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
        except (OSError, ValueError):
            raise CheckoutError(self._end()) from None

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except Empty:
            self.close()
            raise CheckoutError(f"its code gave no answer within {seconds:.0f} seconds") from None
        if line is None:
            raise CheckoutError(self._end())
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.close()
            raise CheckoutError("its code wrote over the channel of answers")
        return answer

    def _end(self) -> str:
        process = self._process
        code: int | None = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=5)
        self.close()
        if code == _OVER_MEMORY:
            return f"its code took more than {self._memory / 1e9:.1f} GB of memory"
        return f"its process ended (exit status {code})"

    def close(self) -> None:
        """End the process, if there is one; the next set starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream:
                        stream.close()
        if self._somewhere is not None:
            self._somewhere.cleanup()
            self._somewhere = None
