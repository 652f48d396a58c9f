"""The schema of `rules/nodes/*.yaml`: what the nodes of a graph editor take, give, load and want.

    signatures:
      KSampler: "model:MODEL seed+ steps … -> LATENT"    # wires name:TYPE (? may stay open), plain words are values
    nodes:
      UNETLoader: {loads: {unet_name: diffusion}, formats: [safetensors]}
    guesses: {clip: CLIP}                                # input names of nodes without a signature
    folders: {vae: [vae, vae_approx]}                    # where files of a use lie below the models folder
    carries: {CLIP: text_encoder}                        # what a wire of this type brings out of a file
    serves: {text_encoder: [llm]}                        # roles that may stand in a use of another name

`docs/workflows.md` says what each key of a node means.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from compatkit.knowledge.yamlfile import RuleFile, nearest
from compatkit.vocabulary import LEVELS

_TABLES = ("signatures", "nodes", "guesses", "folders", "carries", "serves")
_NODE = (
    "loads", "loads_each", "formats", "packings", "built_in", "clip_type", "strength", "strength_clip", "samples",
    "leftover", "sets", "latent", "decodes", "switch", "wants", "sees", "passes", "value", "names", "named", "comment",
    "own",
)  # fmt: skip
_WANT = ("families", "not_families", "sampling", "with", "level", "what", "effect", "instead")
_WORD = re.compile(r"[^\s:]+(?::[A-Z0-9_*]+\??)?\+?\Z")


def parse(files: Iterable[RuleFile]) -> dict[str, Any]:
    """All node files as one document.

    Raises:
        RuleFileError: at the position of what is wrong.
    """
    out: dict[str, Any] = {name: {} for name in _TABLES}
    for file in files:
        if not isinstance(file.data, Mapping):
            raise file.error((), f"a file of nodes is a mapping with the keys {', '.join(_TABLES)}")
        for key, table in file.data.items():
            if key not in _TABLES:
                raise file.error((key,), f"unknown key {key!r}{nearest(str(key), _TABLES)}")
            if not isinstance(table, Mapping):
                raise file.error((key,), f"{key!r} is a mapping")
        for name, text in (file.data.get("signatures") or {}).items():
            out["signatures"][str(name)] = signature(file, ("signatures", name), text)
        for name, node in (file.data.get("nodes") or {}).items():
            _node(file, ("nodes", name), node)
            out["nodes"][str(name)] = {str(k): v for k, v in node.items()}
        for table in _TABLES[2:]:
            out[table].update(file.data.get(table) or {})
    return out


def signature(file: RuleFile, where: tuple[Hashable, ...], text: Any) -> list[Any]:
    """`"a:MODEL b+ -> MODEL"` as [[[name, type or "", optional, followed by a second value], …], [type, …]]."""
    head, arrow, tail = str(text).partition("->")
    if not arrow:
        raise file.error(where, "a signature is written 'inputs -> outputs'")
    inputs = []
    for word in head.split():
        if not _WORD.match(word):
            raise file.error(where, f"{word!r} is neither a value, nor name:TYPE")
        name, _, kind = word.rstrip("+").partition(":")
        inputs.append([name, kind.rstrip("?"), kind.endswith("?"), word.endswith("+")])
    return [inputs, tail.split()]


def _node(file: RuleFile, where: tuple[Hashable, ...], node: Any) -> None:
    if not isinstance(node, Mapping):
        raise file.error(where, f"a mapping with some of the keys {', '.join(_NODE)}")
    for key in node:
        if key not in _NODE:
            raise file.error((*where, key), f"unknown key {key!r}{nearest(str(key), _NODE)}")
    for i, want in enumerate(node.get("wants") or ()):
        for key in want:
            if key not in _WANT:
                raise file.error((*where, "wants", i, key), f"unknown key {key!r}{nearest(str(key), _WANT)}")
        if want.get("level") not in LEVELS or not want.get("what"):
            raise file.error((*where, "wants", i), f"it needs 'what', and a 'level' of {', '.join(LEVELS)}")
