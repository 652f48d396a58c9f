"""The schema of `junctions` in a family's card: which operations meet what another model of the set gives.

    junctions:
      pooled_dim: {op: linear, module: vector_in.in_layer, carries: pooled, cut: true}
      context_dim:
        op: rms_norm
        module: cap_embedder.0
        then: [{op: linear, module: cap_embedder.1}]
        runtimes: {diffusers: {op: mul, module: cap_embedder.0}}
      latent_in: {op: linear, module: x_embedder, patch: [2, 2]}

They stand in the order of the model's own forward pass. A junction has the name of the fact that says how wide it is,
or is `latent_in`. `docs/grammar.md` says what the keys mean.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from compatkit.knowledge.yamlfile import RuleFile, nearest

#: Operations that a junction may name; `dryrun/ops.py` runs them.
OPS = (
    "linear", "rms_norm", "layer_norm", "group_norm", "mul", "stats", "add", "conv1d", "conv2d", "conv3d", "matmul",
    "attention", "reshape", "cat", "folded",
)  # fmt: skip
#: Those that only rearrange what comes in, before the first operation.
ARRANGING = ("frames", "tokens", "mean", "flat", "halves")
#: Keys of one operation, and of a junction, which is its first operation and more.
STEP = ("op", "module", "weight", "shape", "groups", "heads")
JUNCTION = (
    *STEP, "then", "via", "patch", "tokens", "cut", "beside", "carries", "pooled", "onto", "of", "ndim", "channels",
    "at", "runtimes", "note",
)  # fmt: skip


def check(file: RuleFile, where: tuple[Hashable, ...], junctions: Mapping[str, Any]) -> None:
    """Refuse what no junction has.

    Raises:
        RuleFileError: at the position of what is wrong.
    """
    for name, entry in junctions.items():
        if entry is not None:
            _junction(file, (*where, name), entry)


def _junction(file: RuleFile, where: tuple[Hashable, ...], entry: Any, inner: bool = False) -> None:
    _step(file, where, entry, JUNCTION)
    for i, step in enumerate(entry.get("then") or ()):
        _step(file, (*where, "then", i), step, STEP)
    for i, op in enumerate(entry.get("via") or ()):
        if op not in ARRANGING:
            raise file.error((*where, "via", i), f"{op!r} is not one of {', '.join(ARRANGING)}")
    for key in ("cut", "then", "via", "runtimes", "tokens"):
        kind = {"cut": bool, "tokens": int, "runtimes": dict}.get(key, list)
        if key in entry and not isinstance(entry[key], kind):
            raise file.error((*where, key), f"{key} has the wrong type: {type(entry[key]).__name__}")
    if inner and "runtimes" in entry:
        raise file.error((*where, "runtimes"), "runtimes stand in the junction itself")
    for name, other in (entry.get("runtimes") or {}).items():
        if other is not None:
            _junction(file, (*where, "runtimes", name), other, inner=True)


def _step(file: RuleFile, where: tuple[Hashable, ...], entry: Any, known: tuple[str, ...]) -> None:
    if not isinstance(entry, Mapping):
        raise file.error(where, "a junction is a mapping with the keys op, module, …")
    for key in entry:
        if key not in known:
            raise file.error((*where, key), f"unknown key {key!r}{nearest(str(key), known)}")
    for key in ("op", "module"):
        if key not in entry:
            raise file.error(where, f"{key} is missing")
    if entry["op"] not in OPS:
        raise file.error((*where, "op"), f"{entry['op']!r} is no operation{nearest(str(entry['op']), OPS)}")
