"""Small bases and adapters of every algorithm for them, made at random from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from compatkit.adapters.base import Base, of_symbols
from compatkit.adapters.keys import spellings
from compatkit.adapters.places import Module, total
from compatkit.adapters.speller import Speller
from compatkit.knowledge.store import Knowledge

Arrays = dict[str, np.ndarray]
#: A width is divided by this; a count of layers is at most the other.
_SHRINK, _LAYERS, _WIDE = 32, 2, 64


def small_base(knowledge: Knowledge, family: str, shrink: int = _SHRINK) -> Base:
    """A base with the structure of a family and none of its weight."""
    example = knowledge.grammar(family)["example"]
    symbols = {
        name: max(1, value // shrink) if value >= _WIDE else min(value, _LAYERS) if value > _LAYERS else value
        for name, value in example["symbols"].items()
    }
    found = of_symbols(family, knowledge, symbols, example.get("options") or {})
    assert found is not None
    return found


def speller(base: Base, knowledge: Knowledge) -> Speller:
    return Speller(base, knowledge, spellings(knowledge.adapters("spellings")))


def modules(base: Base, knowledge: Knowledge, style: str) -> dict[str, tuple[Module, tuple[int, ...]]]:
    """Name -> (module, shape of its weight) of every module that a style writes and an adapter may train."""
    own = speller(base, knowledge)
    out = {}
    for module in own.written(own.style(style)):
        if module.weight is None or module.weight[0].tensor.startswith("te"):
            continue
        shape = base.shapes[module.weight[0].tensor]
        if len(shape) in (2, 4) and None not in shape:
            out[module.name] = module, (total(module.weight), *(s or 1 for s in shape[1:]))
    return out


def lora(rng: np.random.Generator, shape: tuple[int, ...], pair: tuple[str, str], rank: int) -> Arrays:
    up, down = pair
    tail = shape[2:]
    return {
        up: rng.standard_normal((shape[0], rank, *[1] * len(tail))),
        down: rng.standard_normal((rank, shape[1], *tail)),
    }


def loha(rng: np.random.Generator, shape: tuple[int, ...], pair: tuple[str, str], rank: int) -> Arrays:
    columns = int(np.prod(shape[1:]))
    out: Arrays = {}
    for n in "12":
        out[f".hada_w{n}_a"] = rng.standard_normal((shape[0], rank))
        out[f".hada_w{n}_b"] = rng.standard_normal((rank, columns))
    return out


def lokr(rng: np.random.Generator, shape: tuple[int, ...], pair: tuple[str, str], rank: int) -> Arrays:
    rows = next((n for n in (4, 3, 2) if shape[0] % n == 0), 1)
    columns = 2 if shape[1] % 2 == 0 else 1
    tail = shape[2:]
    out = {".lokr_w1": rng.standard_normal((rows, columns))}
    if tail or rank % 2:
        out[".lokr_w2"] = rng.standard_normal((shape[0] // rows, shape[1] // columns, *tail))
    else:
        out[".lokr_w2_a"] = rng.standard_normal((shape[0] // rows, rank))
        out[".lokr_w2_b"] = rng.standard_normal((rank, shape[1] // columns))
    return out


def glora(rng: np.random.Generator, shape: tuple[int, ...], pair: tuple[str, str], rank: int) -> Arrays:
    rows, columns = shape[:2]
    return {
        ".a1.weight": rng.standard_normal((columns, rank)),
        ".a2.weight": rng.standard_normal((rank, columns)),
        ".b1.weight": rng.standard_normal((rows, rank)),
        ".b2.weight": rng.standard_normal((rank, columns)),
    }


def dora(rng: np.random.Generator, shape: tuple[int, ...], pair: tuple[str, str], rank: int) -> Arrays:
    peft = pair[0].startswith(".lora_B")
    one, tail = (shape[0],), [1] * (len(shape) - 1)
    size = (one if len(shape) == 2 else (1, shape[0], *tail[1:])) if peft else (*one, *tail)
    ending = ".lora_magnitude_vector" if peft else ".dora_scale"
    return {**lora(rng, shape, pair, rank), ending: np.abs(rng.standard_normal(size)) + 0.1}


def full(rng: np.random.Generator, shape: tuple[int, ...], pair: tuple[str, str], rank: int) -> Arrays:
    return {".diff": rng.standard_normal(shape)}


def replaced(rng: np.random.Generator, shape: tuple[int, ...], pair: tuple[str, str], rank: int) -> Arrays:
    return {".set_weight": rng.standard_normal(shape)}


def oft(rng: np.random.Generator, shape: tuple[int, ...], pair: tuple[str, str], rank: int) -> Arrays:
    return {".oft_blocks": rng.standard_normal((shape[0] // 2, 2, 2))}


Maker = Callable[[np.random.Generator, tuple[int, ...], tuple[str, str], int], Arrays]
MAKERS: Mapping[str, Maker] = {
    "lora": lora,
    "loha": loha,
    "lokr": lokr,
    "glora": glora,
    "dora": dora,
    "diff": full,
    "set": replaced,
    "oft": oft,
}
PAIRS = {
    "native": (".lora_up.weight", ".lora_down.weight"),
    "diffusers": (".lora_B.weight", ".lora_A.weight"),
    "kohya": (".lora_up.weight", ".lora_down.weight"),
}


def adapter(
    base: Base,
    knowledge: Knowledge,
    style: str,
    algorithm: str,
    seed: int,
    dtype: Any = np.float16,
    share: float = 0.4,
    alphas: bool = True,
) -> Arrays:
    """A file in a style: some of its modules, of random ranks and alphas."""
    rng = np.random.default_rng(seed)
    out: Arrays = {}
    every = modules(base, knowledge, style)
    for name, (_, shape) in every.items():
        if rng.random() > share or (algorithm in ("oft", "glora") and (shape[0] % 2 or len(shape) > 2)):
            continue
        rank = int(rng.integers(1, 5))
        made = MAKERS[algorithm](rng, shape, PAIRS[style], rank)
        out.update({name + ending: array.astype(dtype) for ending, array in made.items()})
        if alphas and style != "diffusers" and algorithm in ("lora", "loha", "lokr", "dora"):
            out[f"{name}.alpha"] = np.array(rng.choice([1.0, 4.0, 8.0, 0.5, 16.0]), dtype=dtype)
    return out


def save(path: Path, arrays: Arrays, metadata: Mapping[str, str] | None = None) -> Path:
    save_file({n: np.ascontiguousarray(a).reshape(a.shape) for n, a in arrays.items()}, path, dict(metadata or {}))
    return path
