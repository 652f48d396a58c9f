"""The schema of `rules/packings.yaml`: how quantised and packed files spell their tensors."""

from __future__ import annotations

from typing import Any

from compatkit.knowledge.yamlfile import RuleFile

_KEYS = {
    "id", "title", "has", "companions", "weight", "covers", "dtypes", "top_level", "bits", "pack", "loaders", "effect", "predicts",
    "fix", "note", "sources",
}  # fmt: skip


def parse_packings(file: RuleFile) -> list[dict[str, Any]]:
    """The entries in order. Raises RuleFileError at what is wrong."""
    from compatkit.knowledge.family import nearest

    if not isinstance(file.data, list):
        raise file.error((), "a list of packings")
    for i, entry in enumerate(file.data):
        for key in entry:
            if key not in _KEYS:
                raise file.error((i, key), f"unknown key {key!r}{nearest(key, _KEYS)}")
        if "id" not in entry:
            raise file.error((i,), "id is missing")
    return list(file.data)
