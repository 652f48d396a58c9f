"""Where each file of a lock goes below the folder the user names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from msgspec import Struct

from compatkit.sources.naming import shown
from compatkit.stacks.lockfile import Lock, LockedFile, LockedSource, is_inside
from compatkit.vocabulary import SourceError

LAYOUTS = ("comfyui", "flat", "diffusers")


class Placed(Struct, frozen=True):
    """One file and the path it goes to."""

    file: LockedFile
    path: str
    source: LockedSource


def placed(lock: Lock, root: str, layout: str, folders: Mapping[str, str]) -> list[Placed]:
    """Every file of a lock with its path.

    `folders` says where the runtime looks for each role ("root": the folder above them all).

    Raises:
        SourceError: two files would get the same path, or the layout has no place for one.
    """
    out: list[Placed] = []
    taken: dict[str, LockedFile] = {}
    if layout == "diffusers" and not any(_role(s) == "pipeline" for s in lock.sources):
        raise SourceError("--layout diffusers needs a source that is a diffusers folder; this lock names none")
    for source in lock.sources:
        for file, below in _below(source, layout, folders):
            if not is_inside(below):
                raise SourceError(f"{shown(below)} leads out of the folder; nothing is put there")
            path = os.path.join(_base(root, layout, folders), *below.split("/"))
            other = taken.setdefault(os.path.normcase(path), file)
            if other is file:
                out.append(Placed(file, path, source))
            elif (other.source, other.sha256) != (file.source, file.sha256):
                raise SourceError(
                    f"{shown(other.source)} and {shown(file.source)} would both become {shown(path)}; give one of them "
                    'another name with `to = "…"` in the stack file'
                )
    return out


def _base(root: str, layout: str, folders: Mapping[str, str]) -> str:
    above = folders.get("root", "") if layout == "comfyui" else ""
    return root if not above or os.path.basename(os.path.normpath(root)) == above else os.path.join(root, above)


def _role(source: LockedSource) -> str:
    if source.entry.role:
        return source.entry.role
    return "pipeline" if any("/" in f.name for f in source.files) or len(source.components) == 0 else "checkpoint"


def _below(source: LockedSource, layout: str, folders: Mapping[str, str]) -> Iterator[tuple[LockedFile, str]]:
    role = _role(source)
    own = os.path.basename(source.asked.rstrip("/\\").replace("\\", "/")) or "pipeline"
    for file in source.files:
        name = source.entry.to if source.entry.to and len(source.files) == 1 else file.name
        if layout == "comfyui":
            folder = folders.get(role)
            if folder is None:
                raise SourceError(f"{shown(source.asked)}: no folder is known for a {role.replace('_', ' ')}")
            yield file, f"{folder}/{own}/{name}" if role == "pipeline" else f"{folder}/{name}"
        elif layout == "diffusers":
            yield file, name if role == "pipeline" else f"{role}/{name}"
        else:
            yield file, f"{own}/{name}" if role == "pipeline" else name
