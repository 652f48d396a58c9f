"""Which files meet in which sampler: every sampler of a workflow with what its wires bring there.

A wire is followed upwards by what it carries (MODEL, CLIP, CONDITIONING, LATENT, …), also through nodes that nobody
described, and never through pictures, masks or numbers: those carry no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from msgspec import Struct, field

from compatkit.stacks.workflow.graph import Graph
from compatkit.stacks.workflow.node import Node, Wire

#: What wires carry that no model comes along with.
_PLAIN = frozenset(
    {
        "IMAGE",
        "MASK",
        "AUDIO",
        "VIDEO",
        "INT",
        "FLOAT",
        "STRING",
        "BOOLEAN",
        "NUMBER",
        "COMBO",
        "NOISE",
        "VOXEL",
        "MESH",
    }
)
_SUFFIXES = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin")
#: More samplers than this are not a workflow that somebody made by hand.
MAX_RUNS = 64


class Load(NamedTuple):
    """One file that a node loads: its name as the workflow has it, what for, through which input of which node.

    `known` is whether the node's class is described in the rules.
    """

    node: str
    input: str
    name: str
    use: str
    strength: float | None = None
    strength_clip: float | None = None
    known: bool = True


class Brought(NamedTuple):
    """A load, and the type of the wire that its node's output goes into: what of the file is used."""

    load: Load
    kind: str


class Run(Struct):
    """One sampler with what reaches it. `encoders` are the files loaded as one encoder, by the node that does."""

    sampler: str
    model: list[Brought] = field(default_factory=list)
    loras: list[Brought] = field(default_factory=list)
    encoders: dict[str, list[Brought]] = field(default_factory=dict)
    vaes: list[Brought] = field(default_factory=list)
    others: list[Brought] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    latents: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    clip_types: dict[str, str] = field(default_factory=dict)
    unclear: list[str] = field(default_factory=list)
    leftover: bool = False
    decoded: bool = False
    follows: bool = False

    def brought(self) -> Iterator[Brought]:
        """Everything that reaches it."""
        yield from self.model
        yield from self.loras
        for group in self.encoders.values():
            yield from group
        yield from self.vaes
        yield from self.others


def loads(graph: Graph, rules: Mapping[str, Any]) -> list[Load]:
    """Every file that a node of the graph names, in the order of the nodes."""
    return [load for node in graph.nodes.values() for load in loads_of(node, rules)]


def loads_of(node: Node, rules: Mapping[str, Any]) -> list[Load]:
    """The files one node loads. One that nobody described loads what its values name with a model file's suffix."""
    rule = rules["nodes"].get(node.cls)
    if rule is None and node.cls not in rules["signatures"]:
        named = [(k, v) for k, v in node.inputs.items() if isinstance(v, str) and v.lower().endswith(_SUFFIXES)]
        return [Load(node.id, k, v, "", known=False) for k, v in named]
    rule = rule or {}
    out = []
    for name, use in (rule.get("loads") or {}).items():
        value = node.inputs.get(name)
        if not isinstance(value, str) or not value or value in (rule.get("built_in") or ()) or value == "None":
            continue
        strengths = [_number(node.inputs.get(str(rule.get(k)))) for k in ("strength", "strength_clip")]
        out.append(Load(node.id, name, value, str(use), strengths[0], strengths[1]))
    each = rule.get("loads_each") or {}
    for name, row in node.inputs.items() if each else ():
        if isinstance(row, Mapping) and isinstance(row.get(each["name"]), str) and row.get(each["on"], True):
            both = [_number(row.get(each[k])) for k in ("strength", "strength_clip")]
            out.append(Load(node.id, name, row[each["name"]], str(each["role"]), both[0], both[1] or both[0]))
    return [load for load in out if load.name != "None"]


def runs(graph: Graph, rules: Mapping[str, Any]) -> list[Run]:
    """Every sampler with what reaches it, in the order of the nodes."""
    return _Tracer(graph, rules).runs()


class _Tracer:
    def __init__(self, graph: Graph, rules: Mapping[str, Any]) -> None:
        self.graph, self.rules = graph, rules

    def rule(self, node: Node) -> Mapping[str, Any]:
        rule: Mapping[str, Any] = self.rules["nodes"].get(node.cls) or {}
        return rule

    def runs(self) -> list[Run]:
        out = {n.id: self._run(n) for n in self.graph.nodes.values() if "samples" in self.rule(n)}
        for node in self.graph.nodes.values():
            taken = self.rule(node).get("decodes")
            wire = node.inputs.get(taken) if taken else None
            if not isinstance(wire, Wire):
                continue
            for sampler in self._samplers(wire):
                run = out[sampler]
                run.decoded = True
                run.vaes += [b for b in self._vaes(node) if b not in run.vaes]
        for run in out.values():
            run.follows = any(run.sampler in self._from(other) for other in out.values() if other is not run)
        return list(out.values())

    def _from(self, run: Run) -> set[str]:
        """The samplers whose latent a run goes on with."""
        node = self.graph.nodes[run.sampler]
        found: set[str] = set()
        for name, wire in node.wires():
            if self._kind(node, name) == "LATENT":
                found.update(self._samplers(wire))
        return found

    def _run(self, sampler: Node) -> Run:
        run = Run(sampler.id)
        self._set(run, sampler, self.rule(sampler).get("samples"))
        left = self.rule(sampler).get("leftover")
        if left and sampler.inputs.get(left["input"]) == left["value"]:
            last, steps = _number(sampler.inputs.get(left["last"])), _number(sampler.inputs.get("steps"))
            run.leftover = last is None or steps is None or last < steps
        seen: set[tuple[str, str]] = set()
        queue = [(wire, self._kind(sampler, name)) for name, wire in sampler.wires()]
        chain: list[Brought] = []
        while queue:
            wire, kind = queue.pop(0)
            if kind in _PLAIN or (wire.node, kind) in seen:
                continue
            seen.add((wire.node, kind))
            node = self.graph.nodes[wire.node]
            rule = self.rule(node)
            if "samples" in rule:
                continue  # what reached that one is its own affair
            if node.id not in run.nodes:
                run.nodes.append(node.id)
            self._set(run, node, rule.get("sets"))
            if "latent" in rule and kind == "LATENT":
                run.latents.append(node.id)
            chain += self._bring(run, node, kind)
            passing = self._passing(node, kind)
            if not passing and kind in ("MODEL", "CLIP") and not loads_of(node, self.rules):
                run.unclear.append(node.id)
            queue += passing
        run.loras = [b for b in reversed(chain) if b.load.use == "lora"]
        return run

    def _bring(self, run: Run, node: Node, kind: str) -> list[Brought]:
        """Put what a node loads where it belongs; LoRAs are handed back, for their order."""
        loras = []
        for load in loads_of(node, self.rules):
            brought = Brought(load, kind)
            if load.use == "lora":
                loras.append(brought)
            elif kind == "MODEL":
                run.model.append(brought)
            elif kind == "CLIP":
                run.encoders.setdefault(node.id, []).append(brought)
                kind_input = self.rule(node).get("clip_type")
                value = node.inputs.get(kind_input) if kind_input else None
                if isinstance(value, str):
                    run.clip_types[node.id] = value
            elif kind == "VAE":
                run.vaes.append(brought)
            elif not any(b.load == load for b in run.others):
                run.others.append(brought)
        return loras

    def _passing(self, node: Node, kind: str) -> list[tuple[Wire, str]]:
        """The wires of a node that bring what its output of this kind is made of.

        A MODEL is made of models (and of the patches put on it), a CLIP of CLIPs; all else of all that comes in.
        """
        out = []
        for name, wire in node.wires():
            own = self._kind(node, name)
            if kind in ("MODEL", "CLIP") and own in ("MODEL", "CLIP", "LATENT", "CONDITIONING") and own != kind:
                continue
            if kind == "VAE" and own != "VAE":
                continue
            if kind != "LATENT" and own == "LATENT" and kind in ("SIGMAS", "SAMPLER"):
                continue
            if kind in ("SIGMAS", "SAMPLER") and own == "MODEL":
                continue
            out.append((wire, own))
        return out

    def _kind(self, node: Node, name: str) -> str:
        """What a wire carries: what the input says, else what the output it comes from gives."""
        kind = node.kinds.get(name, "")
        if kind and kind != "*":
            return kind
        wire = node.inputs[name]
        source = self.graph.nodes.get(wire.node)
        if source is None or wire.slot >= len(source.outputs):
            return ""
        given = source.outputs[wire.slot]
        return "" if given == "*" else given

    def _samplers(self, wire: Wire) -> list[str]:
        """The samplers that a latent comes from, through whatever is done to it on the way."""
        found: list[str] = []
        seen: set[str] = set()
        queue = [wire]
        while queue:
            node = self.graph.nodes[queue.pop().node]
            if node.id in seen:
                continue
            seen.add(node.id)
            if "samples" in self.rule(node):
                found.append(node.id)
                continue
            queue += [w for name, w in node.wires() if self._kind(node, name) in ("LATENT", "")]
        return found

    def _vaes(self, node: Node) -> list[Brought]:
        out: list[Brought] = []
        seen: set[str] = set()
        queue = [wire for name, wire in node.wires() if self._kind(node, name) == "VAE"]
        while queue:
            source = self.graph.nodes[queue.pop().node]
            if source.id in seen:
                continue
            seen.add(source.id)
            out += [Brought(load, "VAE") for load in loads_of(source, self.rules)]
            queue += [w for name, w in source.wires() if self._kind(source, name) == "VAE"]
        return out

    def _set(self, run: Run, node: Node, names: Mapping[str, str] | None) -> None:
        for setting, name in (names or {}).items():
            value = node.inputs.get(name)
            if setting not in run.settings and isinstance(value, (str, int, float)) and not isinstance(value, bool):
                run.settings[setting] = f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
