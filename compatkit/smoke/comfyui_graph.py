"""The smallest graph that makes a picture with a set: loaders by what `rules/nodes` says of them, two steps, decode.

What a node's other inputs are is taken from the server itself, which lists every node with its inputs and their
defaults: a graph made so fits the version that runs there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from compatkit.checks.routing import usual_type
from compatkit.knowledge.store import Knowledge
from compatkit.sources.naming import base_name
from compatkit.vocabulary import Component, Stack

PROMPT = "a photograph of a cat on a wooden table, daylight"
STEPS = 2
#: Of the latent, where neither the user nor the server asks for more: small, and large enough to be judged by its look.
SIDE = 32
_RUNTIME = "comfyui"
_TEXT = ("text_encoder", "llm")
Wire = list[Any]


class NoGraph(Exception):
    """No graph can be made. `state` is "missing" (the server lacks a file or a node) or "incomplete" (the set does)."""

    def __init__(self, state: str, message: str, components: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.state, self.components = state, components


class Graph(Struct):
    """A graph as the server takes it. `made_for` tells the components each node loads, by node id."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    made_for: dict[str, tuple[int, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, node: str, inputs: Mapping[str, Any], components: tuple[int, ...] = ()) -> str:
        """One more node; its id."""
        name = str(len(self.nodes) + 1)
        self.nodes[name] = {"class_type": node, "inputs": dict(inputs)}
        if components:
            self.made_for[name] = components
        return name


class _File(Struct, frozen=True):
    name: str
    format: str
    components: tuple[int, ...]


class Builder:
    """Makes the graph of one set for one server."""

    def __init__(self, stack: Stack, knowledge: Knowledge, info: Mapping[str, Any]) -> None:
        self.stack, self.knowledge, self.info = stack, knowledge, info
        table = knowledge.nodes()
        self.kinds: Mapping[str, Mapping[str, Any]] = table.get("nodes") or {}
        self.folders: Mapping[str, Any] = table.get("folders") or {}
        self.graph = Graph()

    def build(self) -> Graph:
        """The graph.

        Raises:
            NoGraph: something is missing for it, on the server or in the set.
        """
        model, clip, vae = self._parts()
        for lora in self._files(("lora",)):
            model, clip = self._lora(lora, model, clip)
        card, component = self._card()
        text = [self._node("CLIPTextEncode", {"clip": clip, "text": t}) for t in (PROMPT, "")]
        latent = self._latent(card, component)
        sampled = self._node("KSampler", {
            "model": model, "positive": [text[0], 0], "negative": [text[1], 0], "latent_image": [latent, 0],
            "seed": 1, "denoise": 1.0, **self._sampling(card),
        })  # fmt: skip
        image = self._node("VAEDecode", {"samples": [sampled, 0], "vae": vae})
        self._node("PreviewImage" if "PreviewImage" in self.info else "SaveImage", {"images": [image, 0]})
        return self.graph

    # -- the set's files

    def _files(self, roles: Sequence[str]) -> list[_File]:
        """The sources that hold one of these roles, each once."""
        out: dict[str, list[int]] = {}
        for i, c in enumerate(self.stack.components):
            if c.role in roles:
                out.setdefault(c.source, []).append(i)
        return [
            _File(base_name(s.replace("\\", "/")), self.stack.components[ids[0]].format, tuple(ids))
            for s, ids in out.items()
        ]

    def _parts(self) -> tuple[Wire, Wire, Wire]:
        """The wires of model, text encoder and VAE."""
        whole = self._whole()
        model = clip = vae = None
        if whole:
            node = self._loader("checkpoint", [whole])
            model, clip, vae = [node, 0], [node, 1], [node, 2]
        else:
            found = self._files(("diffusion",))
            if not found:
                raise NoGraph("incomplete", "the set has no diffusion model, so there is nothing to run")
            model = [self._loader("diffusion", found[:1]), 0]
        encoders = [f for f in self._files(_TEXT) if whole is None or f.name != whole.name]
        if encoders:
            clip = [self._loader("text_encoder", encoders), 0]
        decoders = [f for f in self._files(("vae",)) if whole is None or f.name != whole.name]
        if decoders:
            vae = [self._loader("vae", decoders[:1]), 0]
        for wire, what in ((clip, "text encoder"), (vae, "VAE")):
            if wire is None:
                raise NoGraph("incomplete", f"the set has no {what}; give one, so that a picture can be made")
        assert clip is not None
        assert vae is not None
        return model, clip, vae

    def _whole(self) -> _File | None:
        """The all-in-one checkpoint among the sources."""
        roles: dict[str, set[str]] = {}
        for c in self.stack.components:
            roles.setdefault(c.source, set()).add(c.role)
        whole = {s for s, r in roles.items() if "diffusion" in r and r & {*_TEXT, "vae"}}
        files = [f for f in self._files(("diffusion",)) if self.stack.components[f.components[0]].source in whole]
        return files[0] if files else None

    def _card(self) -> tuple[Mapping[str, Any], Component]:
        component = next(c for c in self.stack.components if c.role == "diffusion")
        known = [f for f in component.families if self.knowledge.has_family(f)]
        return (self.knowledge.family(known[0]) if known else {}), component

    # -- loaders

    def _loader(self, use: str, files: Sequence[_File]) -> str:
        """The node that loads these files together, and has them in its list."""
        formats = {f.format for f in files}
        fitting = [
            (name, kind) for name, kind in self.kinds.items()
            if [str(v) for v in (kind.get("loads") or {}).values()] == [use] * len(files)
            and formats <= set(kind.get("formats") or ()) and not kind.get("packings")
        ]  # fmt: skip
        there = [(n, k) for n, k in fitting if n in self.info]
        components = tuple(i for f in files for i in f.components)
        names = ", ".join(f.name for f in files)
        if not there:
            wanted = fitting[0][0] if fitting else ""
            why = f"it has no node {wanted}" if wanted else "no node is known that would"
            raise NoGraph("missing", f"the server cannot load {names}: {why}", components)
        node, kind = next(((n, k) for n, k in there if self._listed(n, k, files)), there[0])
        inputs: dict[str, Any] = {}
        for slot, file in zip(kind["loads"], files, strict=True):
            inputs[slot] = self._listed_as(node, slot, file)
        if kind.get("clip_type"):
            inputs[str(kind["clip_type"])] = self._clip_type(node, str(kind["clip_type"]))
        return self._node(node, inputs, components)

    def _listed(self, node: str, kind: Mapping[str, Any], files: Iterable[_File]) -> bool:
        return all(self._choice(node, s, f.name) for s, f in zip(kind["loads"], files, strict=True))

    def _listed_as(self, node: str, slot: str, file: _File) -> str:
        found = self._choice(node, slot, file.name)
        if found:
            return found
        listed = len(options(self.info, node, slot) or ())
        folders = self.folders.get(str(self.kinds[node]["loads"][slot])) or ()
        into = f" (models/{folders[0]})" if folders else ""
        raise NoGraph(
            "missing",
            f"the server does not have {file.name}: {node} lists {listed} files, not this one; put it into the folder"
            f" that node reads{into} and let the server read the folders again",
            file.components,
        )

    def _choice(self, node: str, slot: str, name: str) -> str | None:
        """The server's own spelling of a file: it may lie in a folder of its list."""
        listed = [o for o in options(self.info, node, slot) or () if isinstance(o, str)]
        same = [o for o in listed if o.replace("\\", "/").rpartition("/")[2] == name]
        return min(same, key=len) if same else None

    def _clip_type(self, node: str, slot: str) -> str:
        card, _ = self._card()
        wanted = self.stack.settings.get("clip_type") or usual_type(card, _RUNTIME)
        listed = [o for o in options(self.info, node, slot) or () if isinstance(o, str)]
        if wanted is None:
            return listed[0] if listed else ""
        if listed and wanted not in listed:
            raise NoGraph("missing", f"the server's {node} does not know the type {wanted}: update its ComfyUI")
        return wanted

    def _lora(self, lora: _File, model: Wire, clip: Wire) -> tuple[Wire, Wire]:
        node = next(
            (n for n, k in self.kinds.items() if n in self.info and list((k.get("loads") or {}).values()) == ["lora"]
             and k.get("strength_clip")), None,
        )  # fmt: skip
        if node is None:
            raise NoGraph("missing", f"the server has no node that loads {lora.name}", lora.components)
        slot = next(iter(self.kinds[node]["loads"]))
        name = self._listed_as(node, slot, lora)
        made = self._node(node, {"model": model, "clip": clip, slot: name}, lora.components)
        return [made, 0], [made, 1]

    # -- latent and sampler

    def _latent(self, card: Mapping[str, Any], component: Component) -> str:
        latent = {**(card.get("latent") or {}), **_latent_facts(component)}
        wanted = self.stack.settings.get("latent_node")
        node = wanted if wanted in self.info else self._latent_node(latent)
        if node is None:
            raise NoGraph("missing", "the server has no node that makes an empty latent for this model")
        down = int(latent.get("downscale") or (self.kinds.get(node, {}).get("latent") or {}).get("downscale") or 8)
        side = SIDE * down
        size = {k: int(float(self.stack.settings.get(k) or side)) for k in ("width", "height")}
        known = {**size, "length": 1, "batch_size": 1}
        inputs = self._inputs_of(node)
        return self._node(node, {k: _within(v, inputs[k]) for k, v in known.items() if k in inputs})

    def _latent_node(self, latent: Mapping[str, Any]) -> str | None:
        """The node whose empty latent is the model's; else one of the same rank: its zeros are widened by ComfyUI."""
        ranked: list[tuple[bool, int, int, int, str]] = []
        for name, kind in self.kinds.items():
            made = kind.get("latent")
            if not made or name not in self.info or made.get("downscale") is None:
                continue
            misses = sum(made.get(k) != latent.get(k) for k in ("channels", "downscale"))
            more = len(set(self._inputs_of(name)) - {"width", "height", "length", "batch_size"})
            ranked.append((made.get("ndim") != latent.get("ndim"), misses, more, len(ranked), name))
        return min(ranked)[-1] if ranked else None

    def _sampling(self, card: Mapping[str, Any]) -> dict[str, Any]:
        settings, usual = self.stack.settings, card.get("sampling") or {}
        cfg = usual.get("cfg")
        cfg = cfg[0] if isinstance(cfg, (list, tuple)) and cfg else cfg
        return {
            "steps": int(float(settings.get("steps") or STEPS)),
            "cfg": float(settings.get("cfg") or (cfg if isinstance(cfg, (int, float)) else 1.0)),
            "sampler_name": settings.get("sampler") or "euler",
            "scheduler": settings.get("scheduler") or ("simple" if usual.get("prediction") == "flow" else "normal"),
        }

    # -- nodes

    def _inputs_of(self, node: str) -> Mapping[str, Any]:
        inputs = (self.info.get(node) or {}).get("input") or {}
        required = inputs.get("required") if isinstance(inputs, Mapping) else None
        return required if isinstance(required, Mapping) else {}

    def _node(self, node: str, inputs: Mapping[str, Any], components: tuple[int, ...] = ()) -> str:
        """A node with these inputs; what else the server requires of it has the server's default."""
        if node not in self.info:
            raise NoGraph("missing", f"the server has no node {node}", components)
        filled = dict(inputs)
        for name, spec in self._inputs_of(node).items():
            if name not in filled and (default := _default(spec)) is not None:
                filled[name] = default
        return self.graph.add(node, filled, components)


def options(info: Mapping[str, Any], node: str, slot: str) -> list[Any] | None:
    """What a node's input may be chosen from, in either spelling the server has; None if it is no choice."""
    inputs = (info.get(node) or {}).get("input") or {}
    for group in ("required", "optional"):
        spec = (inputs.get(group) or {}).get(slot)
        if isinstance(spec, list) and spec:
            if isinstance(spec[0], list):
                return list(spec[0])
            more = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
            if spec[0] == "COMBO" and isinstance(more.get("options"), list):
                return list(more["options"])
    return None


def _default(spec: Any) -> Any:
    if not isinstance(spec, list) or not spec:
        return None
    more = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    if "default" in more:
        return more["default"]
    choices = spec[0] if isinstance(spec[0], list) else more.get("options")
    return choices[0] if isinstance(choices, list) and choices else None


def _within(value: int, spec: Any) -> int:
    """The nearest size that the node takes."""
    more = spec[1] if isinstance(spec, list) and len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    low, step = more.get("min"), more.get("step")
    low = low if isinstance(low, int) else 0
    value = max(value, low)
    return low + -(-(value - low) // step) * step if isinstance(step, int) and step > 1 else value


def _latent_facts(component: Component) -> dict[str, int]:
    facts = {"channels": component.facts.get("latent_channels"), "ndim": component.facts.get("latent_ndim")}
    return {k: v for k, v in facts.items() if isinstance(v, int)}
