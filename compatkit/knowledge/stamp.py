"""Tells whether a rules folder changed since it was compiled, without reading any YAML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

#: Raised when the compiled form changes, so that an old one is rebuilt.
FORMAT = 43


def stamp(root: Path) -> list[list[Any]]:
    """Path, size and modification time of every rule file: equal stamps mean an unchanged folder."""
    out: list[list[Any]] = []
    stack = [str(root)]
    head = len(str(root)) + 1
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    stack.append(entry.path)
                elif entry.name.endswith(".yaml"):
                    info = entry.stat()
                    out.append([entry.path[head:], info.st_size, info.st_mtime_ns])
    return sorted(out)
