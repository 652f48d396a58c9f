"""The jobs of the worker that need nothing but numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compatkit.knowledge.store import load
from compatkit.smoke import scan as scanner
from compatkit.smoke.worker import rules_of
from compatkit.sources.network import Network
from compatkit.vocabulary import HeaderError, SourceError


def scan(job: Mapping[str, Any], emit: Callable[[Mapping[str, Any]], None]) -> None:
    """Scan every source of the job; one that cannot be read is reported and the next one is taken."""
    knowledge = load(rules_of(job))
    with Network(offline=bool(job.get("offline"))) as network:
        for number, source in enumerate(job["sources"]):
            emit({"event": "source", "number": number})
            try:
                scanner.scan(source, emit, knowledge, only=job.get("only") or (), network=network)
            except (SourceError, HeaderError) as e:
                emit({"event": "failed", "why": str(e)})
        emit({"event": "cost", "requests": network.requests, "bytes": network.bytes})
