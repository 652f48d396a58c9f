"""Which sources stand for a whole set, told without reading them: nothing else is paid for where there is none."""

from __future__ import annotations

PNG = b"\x89PNG\r\n\x1a\n"


def is_stackfile(source: str) -> bool:
    """Whether a source is a stack file, by its suffix."""
    return source.lower().endswith(".toml") and "://" not in source


def is_lockfile(source: str) -> bool:
    """Whether a source is a lock, by its suffix."""
    return source.lower().endswith(".lock") and "://" not in source


def is_workflow(path: str) -> bool:
    """Whether a local source could hold a workflow, by its suffix and its first bytes."""
    lower = path.lower()
    if "://" in path or lower.endswith(".index.json") or not lower.endswith((".json", ".png")):
        return False
    try:
        with open(path, "rb") as f:
            head = f.read(64)
    except OSError:
        return False
    return head.startswith(PNG) if lower.endswith(".png") else head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
