"""A scan of files through the whole session, with the worker's work done in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from compatkit import api
from compatkit.knowledge.store import load
from compatkit.smoke import session, supervise, worker
from compatkit.vocabulary import Report

Scan = Callable[..., Report]


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch) -> Scan:
    """`scan(path, …, only=[…])` -> the report of `smoke --scan`."""

    def run(job: Mapping[str, Any], on_event: Callable[[Any], None], **_: Any) -> supervise.Outcome:
        def emit(event: Mapping[str, Any]) -> None:
            on_event(json.loads(json.dumps(event)))  # as it would come through the pipe

        worker.work(json.loads(json.dumps(job)), emit)
        return supervise.Outcome("", 0.1, 0)

    monkeypatch.setattr(supervise, "run", run)

    def scanned(*paths: Path | str, only: Sequence[str] = ()) -> Report:
        sources = [str(p) for p in paths]
        report = session.weights_only(api.check(sources, full=True))
        done = session.scan(report, sources, load(), session.Limits(), only=only)
        assert not [n for n in done.not_checked if n.blocks], done.not_checked
        return done

    return scanned
