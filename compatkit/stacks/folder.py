"""A diffusers (or transformers) folder as one source: its parts that hold weights, and what their configs say they are.

Only files the folder itself names are opened: `model_index.json`, each part's `config.json`, and its weights or index.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compatkit.sources.naming import shown
from compatkit.vocabulary import FileProblem, SourceError

#: No config is longer; a longer file is something else.
MAX_CONFIG = 4 << 20
#: Weights of a part, best first. A variant ("fp16") stands before the suffix.
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_SUFFIXES = (".safetensors.index.json", ".safetensors", ".gguf", ".bin.index.json", ".bin", ".pt")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a folder: its weights (None: there are none), what is declared of it, what is wrong."""

    name: str
    weights: str | None
    declared: Mapping[str, str]
    problems: tuple[FileProblem, ...] = ()


def is_folder(source: str) -> bool:
    """Whether a source is a folder that describes itself."""
    return os.path.isdir(source) and any(
        os.path.isfile(os.path.join(source, n)) for n in ("model_index.json", "config.json")
    )


def parts(folder: str) -> list[Part]:
    """What the folder holds, in the order its index names it.

    Raises:
        SourceError: it has neither a `model_index.json` nor a `config.json`, or its index is no JSON object.
    """
    if os.path.isfile(os.path.join(folder, "model_index.json")):
        return list(_pipeline(folder))
    if os.path.isfile(os.path.join(folder, "config.json")):
        return [_part(folder, "", {})]
    raise SourceError(
        f"{shown(folder)} is a folder without model_index.json or config.json; name the model files in it"
    )


def _pipeline(folder: str) -> Iterator[Part]:
    index = _json(os.path.join(folder, "model_index.json"))
    pipeline = str(index.get("_class_name", ""))
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
            continue
        if not _plain(name):
            raise SourceError(f"{shown(folder)}: model_index.json names a part {shown(name)} outside the folder")
        inside = os.path.join(folder, name)
        declared = {"pipeline": pipeline, "part": name, "class": str(entry[1])}
        if os.path.isdir(inside) and (weights_of(inside) or os.path.isfile(os.path.join(inside, "config.json"))):
            yield _part(inside, name, declared)


def _plain(name: str) -> bool:
    return name not in {"", ".", ".."} and not set(name) & set("/\\\0")


def _part(folder: str, name: str, declared: dict[str, str]) -> Part:
    problems: list[FileProblem] = []
    config = os.path.join(folder, "config.json")
    if os.path.isfile(config):
        try:
            data = _json(config)
        except SourceError as e:
            problems.append(FileProblem("file/corrupt", str(e), "Get the folder's config.json again."))
        else:
            own = data.get("_class_name") or next(iter(data.get("architectures") or []), None)
            if own and declared.get("class") not in {None, own}:
                declared["config_class"] = str(own)
            elif own:
                declared["class"] = str(own)
    weights = weights_of(folder)
    if weights is None:
        problems.append(
            FileProblem(
                "file/missing-shard",
                f"{shown(folder)} has a config.json but no weights beside it",
                "Download the part's weights too.",
            )
        )
    return Part(name, weights, declared, tuple(problems))


def weights_of(folder: str) -> str | None:
    """The weights of one part: the plain file before a variant (fp16), safetensors before pickles."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as e:
        raise SourceError(f"{shown(folder)} cannot be listed: {e.strerror}") from None
    ranked = [(rank, n) for n in names if (rank := _rank(n)) is not None]
    return os.path.join(folder, min(ranked)[1]) if ranked else None


def _rank(name: str) -> tuple[int, int, int] | None:
    """Order of preference of a file name: suffix, stem, plain before variant. None for files that are no weights."""
    for s, suffix in enumerate(_SUFFIXES):
        if name.endswith(suffix):
            stem = name[: -len(suffix)]
            for t, known in enumerate(_STEMS):
                if stem == known:
                    return s, t, 0
                if stem.startswith(f"{known}.") and "-of-" not in stem:
                    return s, t, 1
            return None
    return None


def _json(path: str) -> dict[str, Any]:
    """A small JSON object. Raises SourceError with a sentence for anything else."""
    try:
        with open(path, "rb") as f:
            raw = f.read(MAX_CONFIG + 1)
        data = json.loads(raw) if len(raw) <= MAX_CONFIG else None
    except (OSError, ValueError, RecursionError) as e:
        reason = e.strerror if isinstance(e, OSError) else "it is not JSON"
        raise SourceError(f"{shown(path)} cannot be read: {reason}") from None
    if not isinstance(data, dict):
        raise SourceError(f"{shown(path)} is not a JSON object of at most {MAX_CONFIG >> 20} MB")
    return data
