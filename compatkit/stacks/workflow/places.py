"""Where the files that a workflow names are: given on the command line, in a models folder, beside the workflow.

A name comes from the workflow's author and is a relative path; one that leads out of the folder is not followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compatkit.sources.naming import base_name, shown
from compatkit.vocabulary import SourceError

#: How many entries of a folder are looked at for a file that is not where its use says.
_MOST = 50_000


class Finder:
    """Looks names up. `given` are sources of the command line, `models` folders laid out as ComfyUI's models folder.

    `beside` is the workflow's own folder, `extra` maps folder names to further folders (`extra_model_paths.yaml`).
    """

    def __init__(
        self,
        given: Sequence[str],
        models: Sequence[str],
        beside: str,
        folders: Mapping[str, Any],
        extra: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.given, self.models, self.folders = given, tuple(models), folders
        self.beside = beside
        self.extra = extra or {}
        self._walked: dict[str, dict[str, str]] = {}

    @property
    def searched(self) -> bool:
        """Whether there is a models folder: then a file that is not found is not there."""
        return bool(self.models or self.extra)

    def find(self, name: str, use: str) -> str | None:
        """The source of one file; None if it is nowhere."""
        clean = name.replace("\\", "/")
        last = base_name(clean)
        for source in self.given:
            if source == name or base_name(source.replace("\\", "/")) == last:
                return source
        parts = [p for p in clean.split("/") if p not in ("", ".")]
        if not parts or ".." in parts or clean.startswith("/") or ":" in parts[0] or "\0" in clean:
            return None
        inside = os.path.join(*parts)
        for place in self._places(use):
            path = os.path.join(place, inside)
            if os.path.exists(path):
                return path
        for folder in (*self.models, self.beside):
            found = os.path.join(folder, last)
            if os.path.isfile(found):
                return found
        for folder in self.models:
            if last in (walked := self._all(folder)):
                return walked[last]
        return None

    def _places(self, use: str) -> Iterator[str]:
        names = [str(n) for n in self.folders.get(use) or ()]
        for name in names:
            yield from self.extra.get(name, ())
        for root in self.models:
            yield from (os.path.join(root, name) for name in names)
            yield root
        yield self.beside

    def _all(self, folder: str) -> dict[str, str]:
        """Base name -> path of the files below a folder."""
        if folder not in self._walked:
            found: dict[str, str] = {}
            seen = 0
            for here, _, files in os.walk(folder):
                seen += len(files) + 1
                for file in files:
                    found.setdefault(file, os.path.join(here, file))
                if seen > _MOST:
                    break
            self._walked[folder] = found
        return self._walked[folder]


def models_folder(folder: str) -> str:
    """The models folder of an install, or the folder itself where it is one.

    Raises:
        SourceError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise SourceError(f"{shown(folder)}: there is no such folder")
    inside = os.path.join(folder, "models")
    return inside if os.path.isdir(inside) else folder


def extra_paths(install: str) -> dict[str, list[str]]:
    """What an install's `extra_model_paths.yaml` adds: folder name -> folders. Empty if there is none.

    Raises:
        SourceError: it is there and is not YAML of that form.
    """
    path = os.path.join(install, "extra_model_paths.yaml")
    if not os.path.isfile(path):
        return {}
    import yaml

    try:
        with open(path, encoding="utf-8") as f:
            data = yaml.safe_load(f.read(1 << 20))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise SourceError(f"{shown(path)} cannot be read: {str(e).splitlines()[0]}") from None
    out: dict[str, list[str]] = {}
    for section in data.values() if isinstance(data, Mapping) else ():
        if not isinstance(section, Mapping):
            continue
        base = os.path.join(install, os.path.expanduser(str(section.get("base_path") or "")))
        for name, lines in section.items():
            if name in ("base_path", "is_default") or not isinstance(lines, str):
                continue
            out.setdefault(str(name), []).extend(
                os.path.join(base, line.strip()) for line in lines.splitlines() if line.strip()
            )
    return out
