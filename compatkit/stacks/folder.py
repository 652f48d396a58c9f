"""A diffusers (or transformers) folder as one source: every part of it that holds weights, and what its configs say
it is.

The folder may be on this machine, a repository of the Hub or a part of one, or whatever else can be listed. Only
files that the folder itself names are opened: `model_index.json`, each part's `config.json`, and its weights or index.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from compatkit.sources.folders import Folder, LocalFolder
from compatkit.sources.naming import counted, shown
from compatkit.sources.network import mapped
from compatkit.vocabulary import FileProblem, HeaderError, NotChecked, SourceError

#: No config is longer; a longer file is something else.
MAX_CONFIG = 4 << 20
#: A far folder whose files need more requests than this is read without the configs of its parts.
MAX_REQUESTS = 64
#: Weights of a part, best first. A variant ("fp16") stands before the suffix.
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_SUFFIXES = (".safetensors.index.json", ".safetensors", ".gguf", ".bin.index.json", ".bin", ".pt")
_INDEX = ".index.json"
_MODELS = (".safetensors", ".gguf", ".sft")
_LISTED = 5


class Part(Struct, frozen=True):
    """One part of a folder: the path of its weights in it (None: there are none), what is declared of it, what is
    wrong."""

    name: str
    weights: str | None
    declared: Mapping[str, str]
    problems: tuple[FileProblem, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()


def is_folder(source: str) -> bool:
    """Whether a source is a folder on this machine that describes itself."""
    return os.path.isdir(source) and any(
        os.path.isfile(os.path.join(source, n)) for n in ("model_index.json", "config.json")
    )


def parts(folder: Folder, *, full: bool = False) -> list[Part]:
    """What the folder holds, in the order its index names it. `full` reads every config, whatever it costs.

    Raises:
        SourceError: it has neither a `model_index.json` nor a `config.json` nor one model file alone, or its index
        is no
            JSON object.
    """
    if folder.has("model_index.json"):
        return _pipeline(folder, full)
    if folder.has("config.json"):
        return [_part(folder, "", {})]
    here = folder.names()
    models = [n for n in here if n.lower().endswith(_MODELS)]
    if len(models) == 1:
        return [Part("", models[0], {})]
    if not models and _is_far(folder):
        models = sorted(p for n in here for p in _below(folder, n))
    what = "is a folder without model_index.json or config.json"
    if not models:
        raise SourceError(f"{shown(folder.name)} {what}; name the model files in it")
    named = ", ".join(folder.where(m) for m in models[:_LISTED]) + (", …" if len(models) > _LISTED else "")
    raise SourceError(f"{shown(folder.name)} {what}; name the model files in it: {named}")


def _is_far(folder: Folder) -> bool:
    return not isinstance(folder, LocalFolder)


def _below(folder: Folder, name: str, depth: int = 2) -> list[str]:
    """Model files in a folder inside."""
    if name.lower().endswith(_MODELS):
        return [name]
    inside = folder.names(name) if depth and "." not in name else []
    return [p for n in inside for p in _below(folder, f"{name}/{n}", depth - 1)]


def _pipeline(folder: Folder, full: bool) -> list[Part]:
    index = _json(folder, "model_index.json")
    pipeline = str(index.get("_class_name", ""))
    named: list[tuple[str, dict[str, str]]] = []
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
            continue
        if not _plain(name):
            raise SourceError(f"{shown(folder.name)}: model_index.json names a part {shown(name)} outside the folder")
        if weights_of(folder, name) or folder.has(f"{name}/config.json"):
            named.append((name, {"pipeline": pipeline, "part": name, "class": str(entry[1])}))
    configs = full or not _is_far(folder) or _requests(folder, [n for n, _ in named]) <= MAX_REQUESTS
    return mapped(lambda row: _part(folder, row[0], row[1], configs), named, folder.workers)


def _plain(name: str) -> bool:
    return name not in {"", ".", ".."} and not set(name) & set("/\\\0")


def _requests(folder: Folder, names: list[str]) -> int:
    """How many files there are to read in these parts, and the two that list them."""
    count = 2
    for name in names:
        weights = weights_of(folder, name) or ""
        shards = sum("-of-" in n and n.endswith(".safetensors") for n in folder.names(name)) if _INDEX in weights else 0
        count += 1 + shards + folder.has(f"{name}/config.json")
    return count


def _part(folder: Folder, name: str, declared: dict[str, str], configs: bool = True) -> Part:
    problems: list[FileProblem] = []
    not_checked: tuple[NotChecked, ...] = ()
    lead = f"{name}/" if name else ""
    here = folder.where(name) if name else folder.name
    if folder.has(f"{lead}config.json"):
        if configs:
            _read_config(folder, f"{lead}config.json", declared, problems)
        else:
            why = f"{name}: its config.json was not read, to stay under {MAX_REQUESTS} requests (--full reads it)"
            not_checked = (NotChecked("loader/pipeline-class", why),)
    weights = weights_of(folder, name)
    if weights is None:
        problems.append(
            FileProblem(
                "file/missing-shard",
                f"{shown(here)} has a config.json but no weights beside it",
                "Download the part's weights too.",
            )
        )
    elif others := variants(folder, name, weights):
        problems.append(
            FileProblem(
                "file/variants",
                f"{shown(here)} holds {counted(len(others) + 1, 'variant')} of its weights; "
                f"{shown(weights[len(lead) :])} was read",
                "Name the file itself to have another variant judged.",
                {"read": weights[len(lead) :], "others": others},
                "info",
            )
        )
    return Part(name, weights, declared, tuple(problems), not_checked)


def _read_config(folder: Folder, path: str, declared: dict[str, str], problems: list[FileProblem]) -> None:
    try:
        data = _json(folder, path)
    except SourceError as e:
        problems.append(e.problem or FileProblem("file/corrupt", str(e), "Get the folder's config.json again."))
        return
    own = data.get("_class_name") or next(iter(data.get("architectures") or []), None)
    if own and declared.get("class") not in {None, own}:
        declared["config_class"] = str(own)
    elif own:
        declared["class"] = str(own)


def weights_of(folder: Folder | str, inside: str = "") -> str | None:
    """The path of the weights of one part: the plain file before a variant (fp16), safetensors before pickles."""
    folder = LocalFolder(folder) if isinstance(folder, str) else folder
    ranked = [(rank, n) for n in folder.names(inside) if (rank := _rank(n)) is not None]
    if not ranked:
        return None
    best = min(ranked)[1]
    return f"{inside}/{best}" if inside else best


def variants(folder: Folder, inside: str, weights: str) -> list[str]:
    """Other variants (fp16, …) that lie beside the weights of a part, in the same format."""
    own = weights.rpartition("/")[2]
    ranked = {n: rank for n in folder.names(inside) if (rank := _rank(n)) is not None}
    if own not in ranked:
        return []
    suffix = _SUFFIXES[ranked[own][0]].removesuffix(_INDEX)
    return [
        n
        for n, (s, stem, variant) in ranked.items()
        if n != own and variant and stem == ranked[own][1] and _SUFFIXES[s].removesuffix(_INDEX) == suffix
    ]


def _rank(name: str) -> tuple[int, int, int] | None:
    """Order of preference of a file name: suffix, stem, plain before variant. None for files that are no weights."""
    if name.endswith(".json") and ".index." in name and not name.endswith(_INDEX):
        front, _, variant = name.removesuffix(".json").rpartition(".index.")  # model.safetensors.index.fp16.json
        for t, known in enumerate(_STEMS):
            for s, suffix in enumerate(_SUFFIXES):
                if suffix.endswith(_INDEX) and variant and front == known + suffix.removesuffix(_INDEX):
                    return s, t, 1
        return None
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


def _json(folder: Folder, path: str) -> dict[str, Any]:
    """A small JSON object. Raises SourceError with a sentence for anything else."""
    where = folder.where(path)
    try:
        with folder.open(path) as source:
            raw = source.read(0, source.size) if source.size <= MAX_CONFIG else b""
        data = json.loads(raw) if raw else None
    except HeaderError as e:
        raise SourceError(str(e)) from None
    except (ValueError, RecursionError):
        raise SourceError(f"{shown(where)} cannot be read: it is not JSON") from None
    if not isinstance(data, dict):
        raise SourceError(f"{shown(where)} is not a JSON object of at most {MAX_CONFIG >> 20} MB")
    return data
