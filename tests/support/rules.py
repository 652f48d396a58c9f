"""Small rule folders for tests: family files written as text, compiled in memory, and headers to try on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

from compatkit.identify.identify import identify
from compatkit.identify.packing import Packings
from compatkit.identify.selftest import header_of
from compatkit.identify.shapes import expected_shapes
from compatkit.identify.solve import Match, Solver
from compatkit.knowledge import yamlfile
from compatkit.knowledge.compile import compile_documents
from compatkit.knowledge.store import Knowledge, load, rules_root
from compatkit.vocabulary import Component, Header, Tensor

Shapes = dict[str, tuple[int, ...]]

PARTS = """\
"lin(o, i)": {weight: [o, i], bias: [o]}
"linw(o, i)": {weight: [o, i]}
"norm(c)": {weight: [c], bias: [c]}
"scale(c)": {weight: [c]}
"conv(o, i, k)": {weight: [o, i, k, k], bias: [o]}
"""
#: A family that most tests need no more of than that it is one.
PLAIN = """\
id: plain
role: diffusion
tensors:
  img_in: lin(hidden, patch)
  "blocks.{layers}": {attn.qkv: "lin(3*hidden, hidden)", "norm{1,2}": norm(hidden), mlp: "linw(ffn, hidden)"}
  final: lin(patch, hidden)
"""


def write_rules(folder: Path, files: Mapping[str, str]) -> Path:
    """A rules folder: `{"families/diffusion/x.yaml": text}`, and the parts every family may use."""
    for name, text in {"parts.yaml": PARTS, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
    return folder


def families(folder: Path, *texts: str, **others: str) -> Knowledge:
    """The knowledge of these family files. `others` are further files: `keymaps="…"` is `keymaps/shared.yaml`."""
    files = {f"families/diffusion/f{i}.yaml": text for i, text in enumerate(texts)}
    named = {"keymaps": "keymaps/shared.yaml", "packings": "packings.yaml", "parts": "parts.yaml"}
    return Knowledge(compile_documents([write_rules(folder, files | {named[k]: v for k, v in others.items()})]))


def header(
    shapes: Mapping[str, Sequence[int]],
    dtype: str = "BF16",
    *,
    format_: str = "safetensors",
    metadata: Mapping[str, Any] | None = None,
    dtypes: Mapping[str, str] | None = None,
) -> Header:
    """A header with these tensors. `dtypes` names those that are not `dtype`."""
    own = dtypes or {}
    tensors = {n: Tensor(own.get(n, dtype), tuple(s), 2 * prod(s)) for n, s in shapes.items()}
    return Header("model", format_, sum(t.nbytes for t in tensors.values()), 0, tensors, metadata or {})


def plain(
    hidden: int = 64, layers: int = 3, patch: int = 16, ffn: int = 160, prefix: str = ""
) -> dict[str, tuple[int, ...]]:
    """The tensors of `PLAIN` at one size."""
    out: Shapes = {"img_in.weight": (hidden, patch), "img_in.bias": (hidden,)}
    for i in range(layers):
        block = f"blocks.{i}"
        out |= {f"{block}.attn.qkv.weight": (3 * hidden, hidden), f"{block}.attn.qkv.bias": (3 * hidden,)}
        out |= {f"{block}.norm{n}.{leaf}": (hidden,) for n in (1, 2) for leaf in ("weight", "bias")}
        out[f"{block}.mlp.weight"] = (ffn, hidden)
    out |= {"final.weight": (patch, hidden), "final.bias": (patch,)}
    return {prefix + name: shape for name, shape in out.items()}


def solve(knowledge: Knowledge, head: Header, family: str = "plain", layout: str = "native", prefix: str = "") -> Match:
    """How one layout of one family reads a header, whatever other families would say."""
    unpacked = Packings(knowledge.table("packings")).unpack(head)
    return Solver(knowledge.grammar(family), layout, unpacked.view(prefix, head.format == "gguf")).solve()


class Example(NamedTuple):
    """One example of one family of the project's own rules."""

    family: str
    number: int
    symbols: Mapping[str, int]
    options: Mapping[str, Any]
    metadata: Mapping[str, Any]
    layouts: tuple[str, ...]
    also: frozenset[str]

    def header(self, layout: str) -> Header:
        """The header of this example as one layout spells it, in bf16."""
        shapes = expected_shapes(load().grammar(self.family), layout, self.symbols, self.options)
        return header_of(shapes, metadata=self.metadata)


@cache
def examples() -> list[Example]:
    """Every example of every family in `rules/`."""
    out = []
    for path in sorted((rules_root() / "families").rglob("*.yaml")):
        data = yamlfile.load(path).data
        if data.get("abstract"):
            continue
        layouts = load().grammar(data["id"])["layouts"]
        for number, row in enumerate(data.get("examples") or []):
            names = tuple(row.get("layouts") or layouts)
            also = frozenset(row.get("also") or ())
            facts = row.get("symbols") or {}, row.get("options") or {}, row.get("metadata") or {}
            out.append(Example(data["id"], number, *facts, names, also))
    return out


def only(knowledge: Knowledge, head: Header) -> Component:
    """The one component of a header that holds one."""
    [component] = identify(head, knowledge)
    return component
