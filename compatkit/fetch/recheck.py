"""The headers that are on disk after a pull, against those that were locked."""

from __future__ import annotations

import os
from collections.abc import Sequence

from compatkit.fetch.places import Placed
from compatkit.headers import open_header
from compatkit.knowledge.store import load
from compatkit.sources.naming import shown
from compatkit.stacks.files import Request, opened
from compatkit.stacks.lockfile import Lock, header_digest
from compatkit.vocabulary import Component, HeaderError, SourceError

_MODELS = (".safetensors", ".sft", ".gguf")


def differing(lock: Lock, files: Sequence[Placed]) -> list[str]:
    """A sentence for each source that is not what was locked."""
    out = []
    knowledge = load()
    for source in lock.sources:
        mine = [p for p in files if p.source is source]
        if not mine or not source.header:
            continue
        components: list[Component] = []
        try:
            for path in _heads(mine):
                components += opened(Request(path, source.entry.role, source.entry.assume), knowledge)
        except SourceError as e:
            out.append(str(e))
            continue
        if header_digest(components) != source.header:
            out.append(f"{shown(mine[0].path)} does not have the tensors that were locked")
    return out


def _heads(files: Sequence[Placed]) -> list[str]:
    """The files to open: an index for its shards, a folder for a pipeline, else each file that is a model."""
    models = [p for p in files if p.file.name.lower().endswith(_MODELS)]
    for p in files:
        if p.file.name == "model_index.json":
            return [os.path.dirname(p.path)]
    index = [p.path for p in files if p.file.name.endswith(".index.json")]
    if index or len(models) < 2:
        return index or [p.path for p in models]
    try:
        split = len(open_header(models[0].path).shards) > 1
    except HeaderError:
        split = False
    return [models[0].path] if split else [p.path for p in models]
