"""Values in a header's metadata, also those inside a JSON text."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from compatkit.vocabulary import Component, Header


def value(header: Header | Component, key: str) -> Any:
    """The value of a metadata key; `key:a.b` reads `b` in `a` of the JSON text under `key`. None: not there."""
    name, _, path = key.partition(":")
    found: Any = header.metadata.get(name)
    if not path or found is None:
        return found
    found = _json(found) if isinstance(found, str) else None
    for step in path.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return found


@lru_cache(maxsize=4)
def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
