"""The process with torch: what it cannot do is a sentence, never a hang or a traceback."""

from __future__ import annotations

import sys
import time

import pytest

from compatkit.dryrun.run import Worker, WorkerError

ECHO = "import sys, json\nfor line in sys.stdin:\n    r = json.loads(line)\n    "


def worker(body: str, timeout: float = 20) -> Worker:
    return Worker([sys.executable, "-u", "-c", ECHO + body], timeout)


def test_answers_come_back_in_order() -> None:
    with worker("print(json.dumps({'did': r['do'], 'torch': '1'}), flush=True)") as w:
        assert w.ask({"do": "a"}) == {"did": "a", "torch": "1"}
        assert w.ask({"do": "b"})["did"] == "b"
        assert w.environment["torch"] == "1"


def test_nothing_is_started_before_something_is_asked() -> None:
    with Worker(["/nowhere/python"]) as w:
        assert not w.environment


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("print(json.dumps({'failed': 'ModuleNotFoundError', 'message': \"No module named 'torch'\"}), flush=True)",
         "ModuleNotFoundError: No module named 'torch'"),
        ("sys.stderr.write('Illegal instruction\\n'); sys.exit(3)", "exit status 3"),
        ("print('torch says hello', flush=True)", "torch says hello"),
    ],
)  # fmt: skip
def test_what_went_wrong_is_said(body: str, said: str) -> None:
    with worker(body) as w, pytest.raises(WorkerError, match=said):
        w.ask({"do": "chains"})


def test_an_answer_that_never_comes_is_not_waited_for() -> None:
    start = time.monotonic()
    slow = "time = __import__('time')\n    time.sleep(0 if r['do'] == 'environment' else 60); print('{}', flush=True)"
    with worker(slow, timeout=1) as w, pytest.raises(WorkerError, match="within 1 seconds"):
        w.ask({"do": "chains"})
    assert time.monotonic() - start < 40


def test_a_python_that_is_not_there() -> None:
    with Worker(["/nowhere/python"]) as w, pytest.raises(WorkerError, match="cannot be started"):
        w.ask({"do": "chains"})


def test_the_process_is_gone_afterwards() -> None:
    with worker("print('{}', flush=True)") as w:
        w.ask({"do": "a"})
        process = w._process
    assert process is not None
    assert process.poll() is not None
