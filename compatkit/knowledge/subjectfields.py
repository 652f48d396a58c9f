"""Fields of subjects that several kinds share: what a rule sees of one model, and of the loader it is judged for."""

from __future__ import annotations

from typing import Any, NamedTuple


class Field(NamedTuple):
    """One field: the value it has where nothing is known, and what it says."""

    default: Any
    says: str


def fields(**named: tuple[Any, str]) -> dict[str, Field]:
    """Fields by name, each given as (default, what it says)."""
    return {name: Field(*pair) for name, pair in named.items()}


#: One model found in a source.
PART = fields(
    name=("", "file name, for messages; never evidence"),
    title=("", "what it is, in words: the family's title"),
    role=("", "diffusion, text_encoder, vae, llm, …, unknown"),
    family=(None, "family id, null if it could not be identified"),
    families=([], "every family the header allows, oldest first"),
    format=("", "safetensors, gguf, …"),
    layout=("", "native, diffusers, …"),
    prefix=("", "what stands before every tensor name"),
    scheme=("none", "quantisation scheme"),
    dtypes=({}, "tensors by dtype"),
    architecture=(None, "general.architecture of a GGUF"),
    size=("", "size on disk, in words"),
    parameters=(0, "number of parameters"),
    empty=(False, "whether its header lists no tensors at all"),
    facts=({}, "solved symbols and facts of the family"),
    missing=(0, "tensors the family has and the file has not"),
    first_missing=([], "the first of them"),
    foreign=(0, "tensors the family does not know"),
    first_foreign=([], "the first of them"),
    mismatched=(0, "tensors of another shape than the family's"),
    first_mismatched=([], "the first of them"),
    closest=(None, "the family that came closest, where none fits"),
    reason=("", "why it was not identified"),
    problems=([], "rule ids of what is wrong with its file"),
    readable=(True, "whether its header could be read"),
    assumed=(False, "whether the user said what it is"),
    bundled=(False, "whether it is one of several models in its file"),
    beside=([], "roles of the other models in its file"),
)

#: The loader a subject is judged for.
LOADER = fields(
    runtime=("", "name of the runtime"),
    label=("", "the runtime and its version as the user named it"),
    engine=("torch", "torch or ggml: whose error texts apply"),
    version=(None, "its version, null if unknown"),
)
