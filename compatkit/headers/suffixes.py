"""Where a name does matter: loaders choose how to open a file by its suffix, whatever is inside."""

from __future__ import annotations

from compatkit.headers.problems import problem
from compatkit.sources.naming import base_name, shown
from compatkit.vocabulary import FileProblem

#: suffix -> the format by which loaders open a file of that name
OPENED_AS: dict[str, str] = {
    ".safetensors": "safetensors",
    ".sft": "safetensors",
    ".gguf": "gguf",
    ".ckpt": "pickle",
    ".pt": "pickle",
    ".pth": "pickle",
    ".bin": "pickle",
    ".pkl": "pickle",
}
_SAID = {"safetensors": "safetensors", "gguf": "GGUF", "pickle": "a torch checkpoint"}
_USUAL = {"safetensors": ".safetensors", "gguf": ".gguf", "pickle": ".pt"}


def suffix(name: str) -> str:
    """The lower-case suffix of a path or URL path, with its dot; empty if there is none."""
    base = base_name(name.replace("\\", "/")).lower()
    return base[base.rindex(".") :] if "." in base[1:] else ""


def wrong_suffix(name: str, content: str) -> FileProblem | None:
    """The problem of a file whose content is "safetensors", "gguf" or "pickle" and whose name says otherwise."""
    end = suffix(name)
    named = OPENED_AS.get(end)
    if named is None or named == content:
        return None
    return problem(
        "file/wrong-suffix",
        f"{shown(name)} is {_SAID[content]} inside, but its name makes loaders open it as {_SAID[named]}, which fails",
        f"Rename it so that it ends in {_USUAL[content]}.",
        suffix=end,
        content=content,
    )
