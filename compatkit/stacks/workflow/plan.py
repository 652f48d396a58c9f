"""A workflow as sets to judge: which files to open, and what each sampler is given of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from compatkit.knowledge.store import Knowledge
from compatkit.sources.naming import shown
from compatkit.sources.open import shown_name
from compatkit.stacks.files import ROLES, Request, parse_request, unreadable
from compatkit.stacks.workflow import graph as graphs
from compatkit.stacks.workflow.places import Finder
from compatkit.stacks.workflow.wiring import MAX_RUNS, Brought, Load, Run, loads, runs
from compatkit.vocabulary import (
    Component,
    FileProblem,
    LoadUse,
    NodeUse,
    NotChecked,
    Place,
    SourceError,
    Stack,
    Wiring,
)

#: Uses of a file that are roles of a component; the others are known by their tensors alone.
_WHOLE = ("checkpoint", "pipeline", "other", "")
#: Types of wires that lead to a sampler.
_OF_SAMPLERS = ("LATENT", "CONDITIONING", "GUIDER")


class Plan(Struct):
    """The files of one workflow and how its samplers use them.

    `requests` are the files that were found (and those given that the workflow does not name), `missing` those that
    were not.
    """

    graph: graphs.Graph
    rules: Mapping[str, Any]
    runs: list[Run]
    requests: list[Request]
    found: dict[Load, str]
    missing: list[Load]
    searched: bool
    links: Mapping[str, str]
    notes: list[NotChecked] = field(default_factory=list)

    def strengths(self) -> dict[str, tuple[float | None, float | None]]:
        """Source of every LoRA -> its strength on the model and on the text encoder."""
        loras = [load for load in self.found if load.use == "lora"]
        return {self.found[x]: (x.strength, x.strength_clip) for x in loras}

    def strange(self, components: Sequence[Component]) -> set[int]:
        """The components (by index) that only nodes load which nobody described."""
        known = {self._source(load) for load in self.found if load.known}
        sources = {self._source(load) for load in self.found if not load.known} - known
        return {i for i, component in enumerate(components) if component.source in sources}

    def settings(self) -> dict[str, str]:
        """How the last sampler is set, and what its encoders are loaded as."""
        if not self.runs:
            return {}
        run = next((r for r in reversed(self.runs) if r.decoded), self.runs[-1])
        types = list(run.clip_types.values())
        return {**({"clip_type": types[0]} if types else {}), **run.settings}

    def places(self) -> dict[str, Place]:
        """Source, as reports name it -> where the workflow names it; "" is the workflow itself."""
        out = {"": Place(self.graph.path, 1)}
        for load, source in [*self.found.items(), *((m, m.name) for m in self.missing)]:
            out.setdefault(shown_name(source), Place(self.graph.path, self.graph.line(load.name)))
        return out

    def absent(self) -> list[Component]:
        """Stand-ins for the files that were not found, with the finding that says so."""
        out = []
        for load in self.missing:
            node = self.graph.nodes[load.node].label
            link = self.links.get(load.name)
            where = "is not in the models folder" if self.searched else "was not found"
            message = f"{shown(load.name)}, which {node} loads, {where}"
            folder = (self.rules["folders"].get(load.use) or [""])[0]
            there = f"the folder models/{folder}" if folder else "the folder that this node reads"
            fix = f"Download {link} into {there}." if link else f"Put it into {there}."
            if not self.searched:
                fix = "Name the folder it lies in (--models DIR, --comfyui DIR), or the file itself." + (
                    f" The workflow says it can be had from {link}." if link else ""
                )
            problem = FileProblem(
                "workflow/file-missing", message, fix, {"node": load.node, "link": link},
                "error" if self.searched else "warning",
            )  # fmt: skip
            role = load.use if load.use in ROLES else None
            out.append(unreadable(Request(load.name, role), problem))
        return out

    def stacks(self, components: Sequence[Component], base: Stack) -> Iterator[Stack]:
        """One set for every sampler and every encoder group that reaches it.

        `components` are all of the report, in order; `base` holds the runtimes and settings of the command.
        """
        by_source: dict[str, list[int]] = {}
        for i, component in enumerate(components):
            by_source.setdefault(component.source, []).append(i)
        for run in self.runs[:MAX_RUNS]:
            groups: list[str | None] = [*run.encoders] or [None]
            for group in groups:
                yield self._stack(run, group, components, by_source, base)

    def _stack(
        self,
        run: Run,
        group: str | None,
        components: Sequence[Component],
        by_source: Mapping[str, list[int]],
        base: Stack,
    ) -> Stack:
        uses: list[tuple[Brought, list[int], list[int]]] = []
        encoders = run.encoders.get(group, []) if group else []
        for brought in [*run.model, *run.loras, *encoders, *run.vaes, *run.others]:
            every = by_source.get(self._source(brought.load), [])
            uses.append((brought, every, self._used(brought, [(i, components[i]) for i in every])))
        index = list(dict.fromkeys(i for _, _, used in uses for i in used))
        index += [i for i in self._beside(components, by_source) if i not in index]
        nodes = tuple(self._node(n) for n in run.nodes)
        through = {b.load for b in run.loras if b.kind == "CLIP"}
        lacking = self._lacks(uses)
        shown_ = list(
            dict.fromkeys([*index, *(i for brought, every, _ in uses for i in every if brought.load in lacking)])
        )
        wiring = Wiring(
            sampler=self._node(run.sampler),
            index=tuple(shown_),
            nodes=nodes,
            latents=tuple(self._node(n) for n in run.latents),
            loads=tuple(
                LoadUse(
                    self._node(b.load.node),
                    tuple(shown_.index(i) for i in every if i in shown_),
                    b.load.use,
                    lacking.get(b.load, ()),
                )
                for b, every, _ in _once(uses)
            ),
            own=self._own(uses, components, index, by_source),
            leftover=run.leftover,
            decoded=run.decoded,
            model_only=frozenset(
                index.index(i) for b, _, used in uses if b.load.use == "lora" and b.load not in through for i in used
            ),
            unclear=tuple(self.graph.nodes[n].label for n in run.unclear),
        )
        settings = {**run.settings}
        if group and group in run.clip_types:
            settings["clip_type"] = run.clip_types[group]
        if run.latents:
            settings["latent_node"] = self.graph.nodes[run.latents[0]].cls
        return replace(
            base,
            components=tuple(components[i] for i in shown_),
            settings={**settings, **base.settings},
            required_roles=tuple(dict.fromkeys([*base.required_roles, *(["text_encoder"] if encoders else [])])),
            wiring=wiring,
        )

    def _source(self, load: Load) -> str:
        return shown_name(self.found.get(load, load.name))

    def _node(self, number: str) -> NodeUse:
        node = self.graph.nodes[number]
        rule = self.rules["nodes"].get(node.cls) or {}
        wired = frozenset([name for name, _ in node.wires()])
        return NodeUse(node.label, node.cls, rule, wired)

    def _used(self, brought: Brought, every: Sequence[tuple[int, Component]]) -> list[int]:
        """What of a file goes along a wire: the component of its role, or the whole file where it is not recognised."""
        role = self.rules["carries"].get(brought.kind) if brought.load.use in _WHOLE else brought.load.use
        if brought.load.use == "lora" or role is None:
            return [i for i, _ in every]
        roles = {role, *(self.rules["serves"].get(role) or ())}
        fitting = [i for i, c in every if c.role in roles]
        return fitting or [i for i, c in every if c.role == "unknown" or c.format == "unreadable"]

    def _lacks(self, uses: Sequence[tuple[Brought, list[int], list[int]]]) -> dict[Load, tuple[str, ...]]:
        """The wires of each load that its file has nothing for, unless another file of the same node has."""
        given = {(b.load.node, b.kind) for b, _, used in uses if used}
        out: dict[Load, list[str]] = {}
        for brought, every, used in uses:
            several = brought.load.use in _WHOLE and (brought.load.node, brought.kind) in given
            if every and not used and not several and brought.kind not in out.setdefault(brought.load, []):
                out[brought.load].append(brought.kind)
        return {load: tuple(kinds) for load, kinds in out.items() if kinds}

    def _own(
        self,
        uses: Sequence[tuple[Brought, list[int], list[int]]],
        components: Sequence[Component],
        index: Sequence[int],
        by_source: Mapping[str, list[int]],
    ) -> dict[int, Component]:
        """Encoders that come out of the checkpoint of another model than the one sampled with."""
        models = {
            components[i].source for b, _, used in uses if b.kind == "MODEL" and b.load.use != "lora" for i in used
        }
        out = {}
        for brought, every, used in uses:
            if brought.kind != "CLIP" or brought.load.use not in _WHOLE:
                continue
            own = next((components[i] for i in every if components[i].role == "diffusion"), None)
            if own is not None and own.source not in models:
                out.update({index.index(i): own for i in used})
        return out

    def _beside(self, components: Sequence[Component], by_source: Mapping[str, list[int]]) -> list[int]:
        """Files that loaders pick up by themselves from beside another one."""
        named = {self._source(load) for load in self.found}
        return [i for i, c in enumerate(components) if c.role == "mmproj" and c.source not in named]


def _once(uses: Sequence[tuple[Brought, list[int], list[int]]]) -> Iterator[tuple[Brought, list[int], list[int]]]:
    seen = set()
    for use in uses:
        if use[0].load not in seen:
            seen.add(use[0].load)
            yield use


def plan(
    path: str,
    given: Sequence[str | Request],
    knowledge: Knowledge,
    *,
    models: Sequence[str] = (),
    extra: Mapping[str, Sequence[str]] | None = None,
    links: bool = False,
) -> Plan:
    """Read a workflow and find its files. With `links` a file that is not found is read from where the workflow says.

    Raises:
        SourceError: it holds no workflow, or one without any model file, or none of its files is to be found.
    """
    rules = knowledge.nodes()
    graph = graphs.load(path, rules)
    every = loads(graph, rules)
    if not every:
        raise SourceError(f"{shown(path)} is a workflow in which no node that runs loads a model file")
    requests = [g if isinstance(g, Request) else parse_request(g) for g in given]
    finder = Finder([r.source for r in requests], models, os.path.dirname(path), rules["folders"], extra)
    where = {name: url for node in graph.nodes.values() for name, url in node.links.items()}
    by_source = {r.source: r for r in requests}
    found: dict[Load, str] = {}
    missing: list[Load] = []
    for load in every:
        source = finder.find(load.name, load.use)
        if source is None and links and where.get(load.name, "").startswith("https://"):
            source = where[load.name]
        if source is None:
            if not any(m.name == load.name for m in missing):
                missing.append(load)
            continue
        found[load] = source
        by_source.setdefault(source, Request(source))
    if not by_source and not finder.searched:
        names = ", ".join(shown(m.name) for m in missing[:4]) + (", …" if len(missing) > 4 else "")
        more = " (--links reads their headers from where the workflow says they can be had)" if where else ""
        raise SourceError(
            f"{shown(path)}: none of its files is here ({names}). Name the folder they lie in (--models DIR, "
            f"--comfyui DIR), or the files themselves{more}"
        )
    order = [by_source[s] for s in dict.fromkeys([*(found[x] for x in found), *by_source])]
    out = Plan(graph, rules, runs(graph, rules), order, found, missing, finder.searched, where)
    out.notes = _notes(out)
    return out


def _notes(plan: Plan) -> list[NotChecked]:
    """What of a workflow is not judged, and why."""
    used = {b.load for run in plan.runs for b in run.brought()}
    notes = []
    for load in plan.found:
        node = plan.graph.nodes[load.node]
        if not load.known:
            why = f"{node.label} is of a class that is not known: what it does with {shown(load.name)} is not judged"
            notes.append(NotChecked("workflow/loader", why))
        elif load not in used:
            why = f"{shown(load.name)} ({node.label}) reaches no sampler that is known, so nothing is compared with it"
            notes.append(NotChecked("workflow/loader", why))
    if not plan.runs:
        strange = _may_sample(plan)
        why = "no node that runs is a sampler that is known, so how the files are wired is not judged"
        notes.append(NotChecked("workflow/wiring", why if strange else "no node of it samples", blocks=strange))
    if len(plan.runs) > MAX_RUNS:
        notes.append(
            NotChecked("workflow/wiring", f"only the first {MAX_RUNS} of {len(plan.runs)} samplers are judged", True)
        )
    return notes


def _may_sample(plan: Plan) -> bool:
    """Whether a node that nobody described is given a model, or what only samplers take."""
    known = plan.rules["signatures"].keys() | plan.rules["nodes"].keys()
    telling = {*plan.rules["carries"], *_OF_SAMPLERS}
    if any(not load.known for load in (*plan.found, *plan.missing)):
        return True
    strangers = (n for n in plan.graph.nodes.values() if n.cls not in known)
    return any(node.kinds.get(name) in telling for node in strangers for name, _ in node.wires())
