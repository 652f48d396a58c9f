"""The compiled form of the rules with users' folders on top, kept in the user's cache by what the folders hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compatkit.knowledge.stamp import FORMAT, stamp
from compatkit.sources.cache import location

#: So many compiled forms are kept; the longest unused go.
_KEPT = 8
#: A folder with more or larger rule files is compiled anew each time.
_MOST_BYTES = 64 << 20


def compiled_with(root: Path, extra: Sequence[Path]) -> Path | Mapping[str, Any]:
    """The compiled folder for these folders of rules; documents in memory where nothing can be kept.

    Raises:
        RuleFileError: a rule file is refused.
    """
    from compatkit.knowledge.compile import compile_documents, compile_tree

    cache = location()
    key = _key(root, extra) if cache else None
    if cache is None or key is None:
        return compile_documents([root, *extra])
    shelf = Path(cache) / "rules"
    place = shelf / key
    if _whole(place):
        _touch(place)
        return place
    half = shelf / f".{key}.{os.getpid()}"
    try:
        half.mkdir(parents=True, exist_ok=True)
        compile_tree(root, half, extra)
        _replace(half, place)
        _tidy(shelf)
    except OSError:
        shutil.rmtree(half, ignore_errors=True)
        return place if _whole(place) else compile_documents([root, *extra])
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise
    return place


def _key(root: Path, extra: Sequence[Path]) -> str | None:
    """What the compiled form depends on: our own rules' stamp, and path and content of every file of the users'."""
    from compatkit.knowledge.compile import rule_files

    digest = hashlib.sha256(json.dumps([FORMAT, str(root.resolve()), stamp(root)]).encode())
    total = 0
    for folder in extra:
        for path in rule_files(folder):
            total += path.stat().st_size
            if total > _MOST_BYTES:
                return None
            content = path.read_bytes()
            digest.update(f"{path.resolve()}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
            digest.update(content)
    return digest.hexdigest()[:32]


def _whole(place: Path) -> bool:
    """Whether a compiled form is there and complete: its manifest is the last thing written."""
    try:
        return bool(json.loads((place / "manifest.json").read_bytes())["format"] == FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _replace(half: Path, place: Path) -> None:
    """Put a finished folder in place; where another process was faster its folder stays."""
    try:
        half.rename(place)
    except OSError:
        if not _whole(place):  # what is there was cut off half way
            shutil.rmtree(place, ignore_errors=True)
            half.rename(place)
        else:
            shutil.rmtree(half, ignore_errors=True)


def _touch(place: Path) -> None:
    try:
        os.utime(place)
    except OSError:
        return  # a cache that cannot be written is as good to read


def _tidy(shelf: Path) -> None:
    kept = sorted((p for p in shelf.iterdir() if not p.name.startswith(".")), key=lambda p: -p.stat().st_mtime)
    for old in kept[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
