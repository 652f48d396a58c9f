"""compatkit: will this set of diffusion model files run, which error would it meet, and what to change.

    import compatkit

    compatkit.inspect("model.safetensors")                   # what it is
    compatkit.check(["model.gguf", "encoder.safetensors"])   # whether the set runs

Importing this package costs nothing: the machinery is loaded by the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from compatkit.vocabulary import Component, Report

__version__ = "0.1.0"

__all__ = ["__version__", "check", "inspect"]


def inspect(source: str | os.PathLike[str], **settings: Any) -> list[Component]:
    """Name every model found in one source, from its header alone.

    Args:
        source: a path, `https://…`, `hf://org/repo/path` or any fsspec URL.
        settings: as `compatkit.api.inspect` takes them.
    """
    from compatkit import api

    return api.inspect(source, **settings)


def check(sources: Iterable[str | os.PathLike[str]], **settings: Any) -> Report:
    """Judge a set of sources together.

    Args:
        sources: what `inspect` takes, each optionally as `ROLE=SOURCE`; also a ComfyUI workflow or a `stack.toml`.
        settings: as `compatkit.api.check` takes them.
    """
    from compatkit import api

    return api.check(sources, **settings)
