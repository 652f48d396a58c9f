"""A node of a graph that runs, and the wires between nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from msgspec import Struct, field

#: So many nodes are read, subgraphs unfolded.
MAX_NODES = 20_000


class Wire(NamedTuple):
    """Where an input comes from: a node and the number of its output."""

    node: str
    slot: int


class Node(Struct):
    """One node that runs. `inputs` maps names to a `Wire` or a plain value; `kinds` to a wire's type, "" if unknown.

    `outputs` are the types it gives, as far as they are known. `open_` are inputs whose wire ends nowhere.
    """

    id: str
    cls: str
    inputs: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    title: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    open_: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The node in words: its class and number."""
        plain = "".join(c for c in self.cls if c.isprintable())[:80]
        return f"{plain} (node {self.id[:40]})"

    def wires(self) -> Iterator[tuple[str, Wire]]:
        """(input, where it comes from) of every wired input."""
        return ((name, value) for name, value in self.inputs.items() if isinstance(value, Wire))


def described(node: Node, rules: Mapping[str, Any]) -> None:
    """Fill in what the rules know of a node's wires: their types, what it gives, and which it lacks."""
    signature = rules["signatures"].get(node.cls)
    guesses = rules["guesses"]
    if signature is None:
        for name, _ in node.wires():
            if not node.kinds.get(name) or node.kinds[name] == "*":
                node.kinds[name] = guesses.get(name.lower(), "")
        return
    inputs, outputs = signature
    for name, kind, _, _ in inputs:
        if kind and kind != "*":
            node.kinds[name] = kind
    node.outputs = node.outputs or tuple(outputs)
