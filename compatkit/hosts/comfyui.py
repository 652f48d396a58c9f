"""What a ComfyUI folder is: its version, its commit, its Python, the GGUF loader in it. Read, never imported."""

from __future__ import annotations

import os
import re
from pathlib import Path

from msgspec import Struct

from compatkit.vocabulary import SourceError

_VERSION = re.compile(r"""^\s*(?:__version__|version)\s*=\s*["'](\d[\w.+-]*)["']""", re.M)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MOST = 1 << 20
#: Where a version stands, by when ComfyUI began to write it there.
_VERSION_FILES = ("comfyui_version.py", "pyproject.toml")
_GGUF = ("ComfyUI-GGUF", "comfyui-gguf", "ComfyUI-GGUF-main")


class Install(Struct, frozen=True):
    """A ComfyUI folder. `version` and `commit` are None where nothing tells them; `python` is its own interpreter.

    `gguf` is the folder of ComfyUI-GGUF in it, None if there is none; `gguf_version` its commit or version.
    """

    path: Path
    version: str | None = None
    commit: str | None = None
    python: Path | None = None
    gguf: Path | None = None
    gguf_version: str | None = None

    @property
    def title(self) -> str:
        """As a user would call it: ComfyUI 0.33.0 (783545f)."""
        known = [self.version] if self.version else []
        known += [f"({self.commit[:7]})"] if self.commit else []
        return " ".join(["ComfyUI", *known]) if known else "ComfyUI of unknown version"


def read_install(directory: str | os.PathLike[str]) -> Install:
    """What stands in a ComfyUI folder, or in the folder of a portable package that holds one.

    Raises:
        SourceError: there is no such folder, or no ComfyUI in it.
    """
    given = Path(directory)
    try:
        there = given.is_dir()
    except (OSError, ValueError):
        there = False
    if not there:
        what = "is a file" if given.is_file() else "does not exist"
        raise SourceError(f"--comfyui {directory}: the folder {what}; give the folder that holds ComfyUI's main.py")
    root = next((d for d in (given, given / "ComfyUI") if (d / "comfy" / "sd.py").is_file()), None)
    if root is None:
        raise SourceError(
            f"--comfyui {directory}: there is no ComfyUI in it (no comfy/sd.py); give the folder that holds its main.py"
        )
    root = root.resolve()
    gguf = next((d for n in _GGUF if (d := root / "custom_nodes" / n).is_dir()), None)
    return Install(
        root,
        _version(root),
        _commit(root),
        _python(root),
        gguf,
        (_commit(gguf) or _version(gguf)) if gguf else None,
    )


def _version(root: Path) -> str | None:
    for name in _VERSION_FILES:
        found = _VERSION.search(_text(root / name))
        if found:
            return found[1]
    return None


def _commit(root: Path) -> str | None:
    """The commit a checkout stands at, from its .git folder."""
    git = root / ".git"
    if git.is_file():  # a worktree or a submodule: the file names the folder
        git = root / _text(git).partition("gitdir:")[2].strip()
    head = _text(git / "HEAD").strip()
    if not head.startswith("ref:"):
        return head if _COMMIT.fullmatch(head) else None
    name = head.partition(":")[2].strip()
    if ".." in name or not name.startswith("refs/"):
        return None
    loose = _text(git / name).strip()
    if _COMMIT.fullmatch(loose):
        return loose
    for line in _text(git / "packed-refs").splitlines():
        commit, _, ref = line.partition(" ")
        if ref.strip() == name and _COMMIT.fullmatch(commit):
            return commit
    return None


def _python(root: Path) -> Path | None:
    """The interpreter that has this install's packages: a virtual environment in it, or a portable package's own."""
    places = [base / name / tail for base in (root, root.parent) for name in ("venv", ".venv")
              for tail in ("bin/python", "Scripts/python.exe")]  # fmt: skip
    places.append(root.parent / "python_embeded" / "python.exe")
    return next((p for p in places if p.is_file()), None)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as f:
            return f.read(_MOST).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
