"""A header cache of one's own, and a server's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from compatkit.sources.network import Network


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache lies in the test's folder; no proxy of the machine is asked."""
    monkeypatch.setenv("COMPATKIT_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def network() -> Iterator[Network]:
    """A run's way to the network, impatient."""
    with Network(seconds=2.0) as made:
        yield made
