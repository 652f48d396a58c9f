"""Drafts a family file from headers, so that naming a new model takes minutes.

Two sizes of a family draft far better than one: an equation that holds in both is rarely a coincidence.

The draft is solved by the same engine as any other file; a person then names symbols and parts and fills in the card.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from compatkit.vocabulary import Header

#: One side of a tensor over all given headers.
Vector = tuple[int, ...]

_DIGITS = re.compile(r"\d+")
#: Sides up to this stay literal: kernels, patch sizes, RGB.
_LITERAL = 9
_FACTORS = (2, 3, 4, 5, 6, 8, 9, 12, 16)
_NUMBERED_MIN = 2


class Node(dict[str, Any]):
    """A subtree of names; a leaf is a tuple of vectors (the shape)."""


def draft(headers: Sequence[Header], family: str = "my_family", prefix: str | None = None) -> str:
    """YAML text of a first grammar that solves all given headers (several: sizes of one family, same layout).

    Raises:
        ValueError: the headers do not share their names, so that they cannot be one family.
    """
    tables = [_table(h, common_prefix(h) if prefix is None else prefix) for h in headers]
    runs: dict[str, Vector] = {}
    tree = _merge([_runs(_tree(t), (), {}) for t in tables], tables, runs)
    symbols = _Symbols(len(headers), runs)
    symbols.name_all(tree)
    parts: dict[str, Any] = {}
    body = _flat(_share(_spell(tree, symbols), parts))
    return _yaml(family, parts, body, symbols, tables)


def _table(header: Header, prefix: str) -> dict[str, tuple[int, ...]]:
    table = {n.removeprefix(prefix): t.shape for n, t in header.tensors.items() if n.startswith(prefix)}
    if not table:
        raise ValueError(f"no tensor starts with {prefix!r}" if prefix else "there are no tensors")
    return table


def common_prefix(header: Header) -> str:
    """The segments that all names share at their start; a marker of a value or two may stand outside."""
    names = [n for n, t in header.tensors.items() if t.elements > 2] or list(header.tensors)
    prefix = ""
    while True:
        heads = {n[len(prefix) :].partition(".")[::2] for n in names}
        first = {head for head, _ in heads}
        if len(first) != 1 or not all(rest for _, rest in heads):
            return prefix
        if all(rest.partition(".")[0].isdigit() for _, rest in heads):  # `blocks.0`, `blocks.1`: a run has its name
            return prefix
        head = first.pop()
        if head.isdigit():
            return prefix
        prefix += f"{head}."


def _tree(table: Mapping[str, tuple[int, ...]]) -> Node:
    root = Node()
    for name, shape in table.items():
        node = root
        *path, leaf = name.split(".")
        for segment in path:
            child = node.setdefault(segment, Node())
            if not isinstance(child, Node):
                child = node[segment] = Node({"": child})
            node = child
        if isinstance(node.get(leaf), Node):
            node[leaf][""] = shape
        else:
            node[leaf] = shape
    return root


def _runs(node: Node, path: tuple[str, ...], lengths: dict[tuple[str, ...], int]) -> Node:
    """Fold equal numbered children: `0`, `1`, `2` -> `{#}`; `norm1`, `norm2` -> `norm{1,2}`."""
    out = Node()
    numbered: dict[str, list[tuple[int, str]]] = {}
    for key in node:
        if len(_DIGITS.findall(key)) == 1:
            numbered.setdefault(_DIGITS.sub("#", key), []).append((int(_DIGITS.findall(key)[0]), key))
    done: set[str] = set()
    for key, child in node.items():
        if key in done:
            continue
        stem = _DIGITS.sub("#", key)
        group = sorted(numbered.get(stem, [])) if len(_DIGITS.findall(key)) == 1 else []
        equal = [(i, k) for i, k in group if node[k] == child and k not in done]
        if len(equal) >= _NUMBERED_MIN:
            indexes = [i for i, _ in equal]
            done.update(k for _, k in equal)
            start, stop = indexes[0], indexes[-1] + 1
            if indexes != list(range(start, stop)) or (stem != "#" and stop - start < 5):
                out[stem.replace("#", "{" + ",".join(map(str, indexes)) + "}")] = _descend(
                    child, (*path, stem), lengths
                )
                continue
            where = (*path, stem)
            spelled = stem.replace("#", "{#}")
            if start == 0 and len(equal) == len(group):
                lengths[where] = stop
            elif start == 0:
                spelled = stem.replace("#", "{.." + str(stop) + "}")
            else:
                spelled = stem.replace("#", "{" + f"{start}..{stop}" + "}")
            out[spelled] = _descend(child, where, lengths)
        else:
            done.add(key)
            out[key] = _descend(child, (*path, key), lengths)
    return out


def _descend(child: Any, path: tuple[str, ...], lengths: dict[tuple[str, ...], int]) -> Any:
    return _runs(child, path, lengths) if isinstance(child, Node) else child


def _merge(trees: list[Node], tables: list[dict[str, tuple[int, ...]]], runs: dict[str, Vector]) -> Node:
    """One tree whose leaves are vectors of sides over all headers, and run lengths as named vectors."""
    names: dict[tuple[str, ...], str] = {}

    def walk(nodes: list[Any], lengths: list[list[int]], path: tuple[str, ...]) -> Any:
        if not all(isinstance(n, Node) for n in nodes):
            ranks = {len(n) for n in nodes if not isinstance(n, Node)}
            if any(isinstance(n, Node) for n in nodes) or len(ranks) != 1:
                raise ValueError(
                    f"{'.'.join(path)} differs in kind between the headers: they are not sizes of one family"
                )
            return tuple(zip(*nodes, strict=True)) if nodes[0] else ()
        keys = list(nodes[0])
        for other in nodes[1:]:
            if list(other) != keys and set(other) != set(keys):
                odd = sorted(set(other) ^ set(keys))[0]
                raise ValueError(
                    f"{'.'.join((*path, odd))} is not in every header: draft from sizes of one family and layout"
                )
        out = Node()
        for key in keys:
            spelled = key
            if "{#}" in key:
                vector = tuple(_length(t, (*path, key)) for t in tables)
                label = _run_name((*path, key), runs, names, vector)
                spelled = key.replace("{#}", "{" + label + "}")
            out[spelled] = walk([n[key] for n in nodes], lengths, (*path, key))
        return out

    merged: Node = walk(trees, [], ())
    return merged


def _length(table: Mapping[str, Any], path: tuple[str, ...]) -> int:
    """How long the run at `path` is in this header."""
    pattern = r"\.".join(_BRACES.sub(_as_regex, re.sub(r"[.+*?()|^$\[\]]", r"\\\g<0>", p)) for p in path)
    found = [int(m[m.lastindex or 0]) for n in table if (m := re.match(pattern + r"(?:\.|$)", n))]
    return max(found) + 1 if found else 0


_BRACES = re.compile(r"\{([^{}]*)\}")


def _as_regex(braces: re.Match[str]) -> str:
    if braces[1] == "#":
        return r"(\d+)"
    if ".." in braces[1].replace("\\", ""):
        first, last = (int(x or 0) for x in braces[1].replace("\\", "").split(".."))
        return "(?:" + "|".join(map(str, range(first, last))) + ")"
    return "(?:" + "|".join(braces[1].split(",")) + ")"


def _run_name(path: tuple[str, ...], runs: dict[str, Vector], names: dict[Any, str], vector: Vector) -> str:
    stem = next((p for p in reversed(path[:-1]) if p[0].isalpha()), "n")
    own = _DIGITS.sub("", path[-1].replace("{#}", "")).strip("_")
    base = re.sub(r"\W", "", re.sub(r"\{.*?\}", "", own or stem)) or "n"
    name = base
    number = 2
    while name in runs and runs[name] != vector:
        name, number = f"{base}{number}", number + 1
    runs[name] = vector
    return name


class _Symbols:
    """Names for sides: frequent vectors become symbols, others multiples of them."""

    def __init__(self, headers: int, runs: dict[str, Vector]) -> None:
        self.headers = headers
        self.runs = runs
        self.values: dict[str, Vector] = {}
        self.spelled: dict[Vector, str | int] = {}

    def name_all(self, tree: Node) -> None:
        """Choose a spelling for every vector in the tree, widest use first."""
        counts: Counter[Vector] = Counter()
        first_use: dict[Vector, str] = {}
        self._count(tree, "", counts, first_use)
        for vector, _ in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])):
            if max(vector) <= _LITERAL and len(set(vector)) == 1:
                self.spelled[vector] = vector[0]
            else:
                self.spelled[vector] = self._multiple(vector) or self._new(vector, first_use[vector])

    def _count(self, node: Any, name: str, counts: Counter[Vector], first_use: dict[Vector, str]) -> None:
        if isinstance(node, Node):
            for key, child in node.items():
                self._count(child, f"{name}.{key}", counts, first_use)
            return
        for axis, vector in enumerate(node):
            counts[vector] += 3 if len(node) == 1 else 1
            first_use.setdefault(vector, f"{name}|{axis}")

    def _multiple(self, vector: Vector) -> str | None:
        for name, known in self.values.items():
            for factor in _FACTORS:
                if all(v == factor * k for v, k in zip(vector, known, strict=True)):
                    return f"{factor}*{name}"
        return None

    def _new(self, vector: Vector, use: str) -> str:
        path, _, axis = use.rpartition("|")
        words = [w for w in re.split(r"[.\W\d]+", path) if w and w not in {"weight", "bias"}]
        base = "hidden" if not self.values else f"{'_'.join(words[-2:]) or 'side'}{'_in' if axis == '1' else ''}"
        name, number = base, 2
        while name in self.values or name in self.runs:
            name, number = f"{base}{number}", number + 1
        self.values[name] = vector
        return name


def _spell(node: Any, symbols: _Symbols) -> Any:
    """Vectors -> expressions; `weight`/`bias` pairs -> the shared parts."""
    if not isinstance(node, Node):
        return [symbols.spelled[v] for v in node]
    out = {k: _spell(v, symbols) for k, v in node.items()}
    if set(out) == {"weight", "bias"} and isinstance(out["weight"], list) and out["weight"][:1] == out["bias"]:
        return _call({1: "norm", 2: "lin"}.get(len(out["weight"])), out["weight"]) or out
    if set(out) == {"weight"} and isinstance(out["weight"], list):
        return _call({1: "scale", 2: "linw"}.get(len(out["weight"])), out["weight"]) or out
    return _alike(out)


def _call(part: str | None, arguments: list[Any]) -> str | None:
    return f"{part}({', '.join(map(str, arguments))})" if part else None


def _alike(tree: dict[str, Any]) -> dict[str, Any]:
    """`q_proj: X, k_proj: X` -> `{q,k}_proj: X` where the names differ in one word only."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for key, value in tree.items():
        if "{" in key or key == "":
            continue
        for match in re.finditer(r"[A-Za-z]+|\d+", key):
            groups.setdefault((key[: match.start()], key[match.end() :], repr(value)), []).append(match[0])
    best = max(groups.items(), key=lambda kv: len(kv[1]), default=None)
    if best is None or len(best[1]) < 2:
        return tree
    (lead, trail, _), words = best
    joined = lead + "{" + ",".join(words) + "}" + trail
    out: dict[str, Any] = {}
    members = {lead + w + trail for w in words}
    for key, value in tree.items():
        if key in members:
            out.setdefault(joined, value)
        else:
            out[key] = value
    return _alike(out)


def _share(tree: Any, parts: dict[str, Any]) -> Any:
    """Subtrees of several lines that stand more than once become parts."""
    counts: Counter[str] = Counter()

    def count(node: Any) -> None:
        if isinstance(node, dict):
            if len(node) > 1:
                counts[repr(node)] += 1
            for child in node.values():
                count(child)

    def replace(node: Any, name: str) -> Any:
        if not isinstance(node, dict):
            return node
        if len(node) > 1 and counts[repr(node)] > 1:
            for head, body in parts.items():
                if body[0] == repr(node):
                    return head
            head = f"part_{re.sub(r'[^A-Za-z]+', '_', name).strip('_') or 'a'}"
            while f"{head}()" in parts:
                head += "x"
            parts[f"{head}()"] = (repr(node), None)
            parts[f"{head}()"] = (repr(node), {k: replace(v, k) for k, v in node.items()})
            return f"{head}()"
        return {k: replace(v, k) for k, v in node.items()}

    count(tree)
    return replace(tree, "")


def _flat(tree: Any) -> Any:
    """`layers: {"{n}": X}` -> `layers.{n}: X`."""
    if not isinstance(tree, dict):
        return tree
    out: dict[str, Any] = {}
    for key, value in tree.items():
        value = _flat(value)
        while isinstance(value, dict) and len(value) == 1:
            (inner, value) = next(iter(value.items()))
            key = f"{key}.{inner}"
        out[key] = value
    return out


def _yaml(family: str, parts: dict[str, Any], body: Any, symbols: _Symbols, tables: list[Any]) -> str:
    import yaml

    def block(value: Any) -> str:
        text: str = yaml.safe_dump(value, sort_keys=False, width=140, default_flow_style=None)
        return text

    data: dict[str, Any] = {
        "id": family,
        "title": "TODO: as its makers call it",
        "role": "diffusion",
        "released": "TODO",
    }
    if parts:
        data["parts"] = {head: _flat(part) for head, (_, part) in parts.items()}
    data["tensors"] = body
    fixed = {n: v[0] for n, v in symbols.values.items() if len(set(v)) == 1 and v[0] > _LITERAL}
    data["where"] = fixed if symbols.headers > 1 else dict(list(fixed.items())[:3])
    data["facts"] = {"hidden_size": "hidden"}
    values = {**symbols.runs, **symbols.values}
    data["examples"] = [
        {
            "name": f"header {i + 1}",
            "symbols": {n: v[i] for n, v in values.items()},
            "tensors": len(table),
            "parameters": sum(_elements(s) for s in table.values()),
        }
        for i, table in enumerate(tables)
    ]
    note = (
        "# A draft: name symbols and parts, decide what `where` must fix, fill in the card (docs/adding-a-model.md).\n"
    )
    if symbols.headers == 1:
        note += (
            "# Drafted from one header: equations such as 4*hidden may be coincidences; give two sizes to be sure.\n"
        )
    return note + block(data)


def _elements(shape: Sequence[int]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n
