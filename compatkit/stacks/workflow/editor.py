"""The editor's format unfolded: subgraphs into their nodes, muted and bypassed nodes out, reroutes and values through.

nodes: [{id, type, mode, inputs: [{name, type, link, widget}], outputs: [{type, links}], widgets_values}]
links: [[id, from node, from slot, to node, to slot, type]]     (of a subgraph: objects)
definitions.subgraphs: [{id, nodes, links, inputs, outputs}]    (a node whose type is that id stands for one)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from compatkit.sources.naming import shown
from compatkit.stacks.workflow.node import MAX_NODES, Node, Wire, described
from compatkit.vocabulary import SourceError

_NEVER, _BYPASS = 2, 4
#: The numbers that a subgraph's own inputs and outputs have among its nodes.
_INPUTS, _OUTPUTS = -10, -20
#: How many subgraphs may lie in one another, and how many steps a wire may be followed.
_DEEPEST, _LONGEST = 32, 150
_SEEDS = ("seed", "noise_seed")


class _Raw(Struct):
    """One node as the file has it, in its scope."""

    entry: Mapping[str, Any]
    scope: _Scope
    inside: _Scope | None = None

    @property
    def cls(self) -> str:
        return str(self.entry.get("type") or "")

    @property
    def mode(self) -> int:
        mode = self.entry.get("mode")
        return mode if isinstance(mode, int) else 0

    def slots(self, side: str) -> list[Mapping[str, Any]]:
        found = self.entry.get(side)
        return [s for s in found if isinstance(s, Mapping)] if isinstance(found, list) else []


class _Scope(Struct):
    """One graph: the workflow itself, or one use of a subgraph."""

    prefix: str
    definition: Mapping[str, Any]
    owner: _Raw | None = None
    nodes: dict[Any, _Raw] = field(default_factory=dict)
    links: dict[Any, tuple[Any, int, str]] = field(default_factory=dict)


def flatten(data: Mapping[str, Any], rules: Mapping[str, Any], path: str) -> dict[str, Node]:
    """Every node that runs, with its wires followed to the nodes they really come from.

    Raises:
        SourceError: there are too many nodes, or subgraphs that hold themselves.
    """
    return _Editor(data, rules, path).run()


class _Editor:
    def __init__(self, data: Mapping[str, Any], rules: Mapping[str, Any], path: str) -> None:
        self.rules, self.path = rules, path
        definitions = data.get("definitions")
        subgraphs = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
        self.subgraphs = {
            str(s.get("id")): s for s in (subgraphs if isinstance(subgraphs, list) else []) if isinstance(s, Mapping)
        }
        self.count = 0
        self.root = self._scope("", data, None, 0)

    def run(self) -> dict[str, Node]:
        raws = list(self._raws(self.root, active=True))
        self.names = {self._name(r): r for r in raws if "names" in self._rule(r)}
        out: dict[str, Node] = {}
        for raw in raws:
            if raw.inside is not None or raw.mode in (_NEVER, _BYPASS) or self._is_glue(raw):
                continue
            node = self._node(raw)
            out[node.id] = node
        for node in out.values():
            dead = [name for name, wire in node.wires() if wire.node not in out]
            for name in dead:
                del node.inputs[name]
            node.open_ = (*node.open_, *dead)
        return out

    # -- scopes

    def _scope(self, prefix: str, definition: Mapping[str, Any], owner: _Raw | None, depth: int) -> _Scope:
        if depth > _DEEPEST:
            raise SourceError(f"{shown(self.path)}: subgraphs lie more than {_DEEPEST} deep in one another")
        scope = _Scope(prefix, definition, owner)
        for link in _list(definition.get("links")):
            if isinstance(link, Mapping):
                link = [link.get(k) for k in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")]
            if isinstance(link, Sequence) and not isinstance(link, str) and len(link) >= 5 and isinstance(link[2], int):
                kind = link[5] if len(link) > 5 and isinstance(link[5], str) else ""
                scope.links[_key(link[0])] = (_key(link[1]), link[2], kind)
        for entry in _list(definition.get("nodes")):
            if not isinstance(entry, Mapping) or "id" not in entry:
                continue
            self.count += 1
            if self.count > MAX_NODES:
                raise SourceError(f"{shown(self.path)}: more than {MAX_NODES:,} nodes, subgraphs unfolded")
            raw = _Raw(entry, scope)
            scope.nodes[_key(entry["id"])] = raw
            inner = self.subgraphs.get(raw.cls)
            if inner is not None:
                raw.inside = self._scope(f"{prefix}{entry['id']}:", inner, raw, depth + 1)
        return scope

    def _raws(self, scope: _Scope, *, active: bool) -> Iterator[_Raw]:
        for raw in scope.nodes.values():
            runs = active and raw.mode not in (_NEVER, _BYPASS)
            if active:
                yield raw
            if raw.inside is not None and runs:
                yield from self._raws(raw.inside, active=True)

    def _rule(self, raw: _Raw) -> Mapping[str, Any]:
        rule: Mapping[str, Any] = self.rules["nodes"].get(raw.cls) or {}
        return rule

    def _is_glue(self, raw: _Raw) -> bool:
        return any(k in self._rule(raw) for k in ("passes", "value", "names", "named", "comment", "switch"))

    def _name(self, raw: _Raw) -> str:
        rule = self._rule(raw)
        at = rule.get("names", rule.get("named"))
        values = raw.entry.get("widgets_values")
        return str(values[at]) if isinstance(values, list) and isinstance(at, int) and at < len(values) else ""

    # -- nodes

    def _node(self, raw: _Raw) -> Node:
        entry = raw.entry
        title = entry.get("title")
        node = Node(f"{raw.scope.prefix}{entry['id']}", raw.cls, title=title if isinstance(title, str) else "")
        node.outputs = tuple(str(o.get("type") or "") for o in raw.slots("outputs"))
        node.links = _model_links(entry)
        node.inputs.update(self._widgets(raw))
        open_ = []
        for slot in raw.slots("inputs"):
            name = str(slot.get("name") or "")
            if not slot.get("widget"):
                node.kinds[name] = str(slot.get("type") or "")
            if slot.get("link") is None:
                continue
            found = self._follow(raw.scope, slot["link"])
            if found is None and not slot.get("widget"):
                open_.append(name)
            elif found is not None:  # a value that is not wired after all stays as it is typed in
                node.inputs[name] = found
        node.open_ = tuple(open_)
        described(node, self.rules)
        return node

    def _widgets(self, raw: _Raw) -> dict[str, Any]:
        """The values typed into a node, by name."""
        values = raw.entry.get("widgets_values")
        if isinstance(values, Mapping):
            return {str(k): v for k, v in values.items()}
        if not isinstance(values, list):
            return {}
        if "loads_each" in self._rule(raw):
            return {f"row{i}": v for i, v in enumerate(values)}
        signature = self.rules["signatures"].get(raw.cls)
        if signature is not None:
            names = [(n, extra) for n, kind, _, extra in signature[0] if not kind]
        else:
            own = [str(s.get("name")) for s in raw.slots("inputs") if s.get("widget")]
            control = len(values) > len(own)
            names = [(n, control and n in _SEEDS) for n in own]
            if not own:  # saved before values were inputs: nobody knows their names
                names = [(f"value {i}", False) for i, _ in enumerate(values, 1)]
        return dict(_paired(names, values))

    # -- wires

    def _follow(self, scope: _Scope, link: Any, steps: int = 0) -> Any:
        """Where a link comes from: a `Wire`, a plain value, or None where it ends nowhere (a muted node, say)."""
        if steps > _LONGEST:
            raise SourceError(f"{shown(self.path)}: a wire goes in a circle")
        found = scope.links.get(_key(link))
        if found is None:
            return None
        node, slot, _ = found
        if node == _INPUTS:
            return self._from_outside(scope, slot, steps)
        raw = scope.nodes.get(node)
        return None if raw is None else self._output(raw, slot, steps)

    def _from_outside(self, scope: _Scope, slot: int, steps: int) -> Any:
        owner = scope.owner
        names = _list(scope.definition.get("inputs"))
        if owner is None or not 0 <= slot < len(names) or not isinstance(names[slot], Mapping):
            return None
        name = names[slot].get("name")
        for given in owner.slots("inputs"):
            if given.get("name") == name and given.get("link") is not None:
                return self._follow(owner.scope, given["link"], steps + 1)
        return self._promoted(owner, str(name))

    def _promoted(self, owner: _Raw, name: str) -> Any:
        """The value of a subgraph's input that is typed into the node that stands for it."""
        values = owner.entry.get("widgets_values")
        if not isinstance(values, list):
            return None
        properties = owner.entry.get("properties")
        proxies = _list(properties.get("proxyWidgets")) if isinstance(properties, Mapping) else []
        for i, pair in enumerate(proxies):
            if (
                isinstance(pair, list)
                and len(pair) == 2
                and str(pair[0]) == "-1"
                and pair[1] == name
                and i < len(values)
            ):
                return values[i]
        if proxies:
            own: list[Any] = [s.get("name") for s in owner.slots("inputs") if s.get("widget")]
        else:  # one value for each input of the definition that is typed in; the node itself may list fewer of them
            own = _typed(owner.inside.definition) if owner.inside is not None else []
        return values[own.index(name)] if name in own and own.index(name) < len(values) else None

    def _output(self, raw: _Raw, slot: int, steps: int) -> Any:
        steps += 1
        if steps > _LONGEST:
            raise SourceError(f"{shown(self.path)}: a wire goes in a circle")
        if raw.mode == _NEVER:
            return None
        if raw.mode == _BYPASS:
            return self._bypassed(raw, slot, steps)
        if raw.inside is not None:
            return self._from_inside(raw.inside, slot, steps)
        rule = self._rule(raw)
        if "value" in rule:
            values = raw.entry.get("widgets_values")
            return self._widgets(raw).get(rule["value"], values[0] if isinstance(values, list) and values else None)
        if "passes" in rule or "names" in rule:
            return self._first(raw, steps)
        if "named" in rule:
            source = self.names.get(self._name(raw))
            return self._first(source, steps) if source is not None else None
        if "switch" in rule:
            return self._switched(raw, rule["switch"], steps)
        return Wire(f"{raw.scope.prefix}{raw.entry['id']}", slot)

    def _first(self, raw: _Raw, steps: int) -> Any:
        link = next((s["link"] for s in raw.slots("inputs") if s.get("link") is not None), None)
        return self._follow(raw.scope, link, steps) if link is not None else None

    def _switched(self, raw: _Raw, rule: Mapping[str, str], steps: int) -> Any:
        links = {str(s.get("name")): s["link"] for s in raw.slots("inputs") if s.get("link") is not None}
        state = self._widgets(raw).get(rule["by"])
        if rule["by"] in links:
            state = self._follow(raw.scope, links[rule["by"]], steps)
        if not isinstance(state, bool):
            return None
        link = links.get(rule["true" if state else "false"])
        return self._follow(raw.scope, link, steps) if link is not None else None

    def _bypassed(self, raw: _Raw, slot: int, steps: int) -> Any:
        """A bypassed node hands on the input of the same type: the one in the same place first."""
        outputs, inputs = raw.slots("outputs"), [s for s in raw.slots("inputs") if not s.get("widget")]
        kind = outputs[slot].get("type") if 0 <= slot < len(outputs) else None
        order = inputs[slot : slot + 1] + inputs if slot < len(inputs) else inputs
        for given in order:
            if given.get("type") == kind and given.get("link") is not None:
                return self._follow(raw.scope, given["link"], steps)
        return None

    def _from_inside(self, scope: _Scope, slot: int, steps: int) -> Any:
        outputs = _list(scope.definition.get("outputs"))
        if not 0 <= slot < len(outputs) or not isinstance(outputs[slot], Mapping):
            return None
        for link in _list(outputs[slot].get("linkIds")):
            if _key(link) in scope.links:
                return self._follow(scope, link, steps)
        return None


def _typed(definition: Mapping[str, Any]) -> list[Any]:
    """The names of a subgraph's inputs that stand for a value of a node in it, in the order of their values."""
    slots = {
        _key(n.get("id")): _list(n.get("inputs")) for n in _list(definition.get("nodes")) if isinstance(n, Mapping)
    }
    typed = set()
    for link in _list(definition.get("links")):
        if not isinstance(link, Mapping) or _key(link.get("origin_id")) != _INPUTS:
            continue
        inner, at = slots.get(_key(link.get("target_id")), []), link.get("target_slot")
        slot = inner[at] if isinstance(at, int) and 0 <= at < len(inner) else None
        if isinstance(slot, Mapping) and slot.get("widget"):
            typed.add(link.get("origin_slot"))
    inputs = _list(definition.get("inputs"))
    return [s.get("name") for i, s in enumerate(inputs) if i in typed and isinstance(s, Mapping)]


def _paired(names: Sequence[tuple[str, bool]], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    at = 0
    for name, followed in names:
        if at >= len(values):
            return
        yield name, values[at]
        at += 1
        if followed and at < len(values) and isinstance(values[at], str):
            at += 1


def _model_links(entry: Mapping[str, Any]) -> dict[str, str]:
    """File name -> where the workflow's author says it can be had."""
    properties = entry.get("properties")
    out = {}
    for model in _list(properties.get("models")) if isinstance(properties, Mapping) else []:
        if isinstance(model, Mapping) and isinstance(model.get("name"), str) and isinstance(model.get("url"), str):
            out[model["name"]] = model["url"]
    return out


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _key(value: Any) -> Any:
    """A node's or link's number: 5 and "5" are the same."""
    text = str(value)
    return int(text) if text.lstrip("-").isdigit() and len(text) < 20 else text
