"""A saved workflow as one flat graph: the editor's format (nodes and links, subgraphs, muted and bypassed nodes) and
the API's (one entry a node), as JSON or inside a PNG that was made with it.

Nothing of a workflow is executed. Every count is bounded: a file of 64 MB, 20,000 nodes after subgraphs are unfolded.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from compatkit.sources.naming import shown
from compatkit.stacks.kinds import PNG
from compatkit.stacks.workflow.editor import flatten
from compatkit.stacks.workflow.node import MAX_NODES, Node, Wire, described
from compatkit.vocabulary import SourceError

MAX_BYTES = 64 << 20
#: The keywords under which an editor stores its graphs in a picture, best first.
_KEYWORDS = (b"prompt", b"workflow")


class Graph(Struct):
    """Every node that runs, by number; `text` is the document, to find lines in."""

    nodes: dict[str, Node]
    path: str = ""
    text: str = ""

    def line(self, word: str) -> int:
        """The first line (from 1) that holds `word` as a JSON text; 1 where none does."""
        for quoted in (json.dumps(word), json.dumps(word, ensure_ascii=False)):
            at = self.text.find(quoted)
            if at >= 0:
                return self.text.count("\n", 0, at) + 1
        return 1


def load(path: str, rules: Mapping[str, Any]) -> Graph:
    """The graph of one file. `rules` is `Knowledge.nodes()`.

    Raises:
        SourceError: it cannot be read, or holds no workflow.
    """
    try:
        with open(path, "rb") as f:
            raw = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise SourceError(f"{shown(path)} cannot be read: {e.strerror or e}") from None
    if len(raw) > MAX_BYTES:
        raise SourceError(f"{shown(path)} is no workflow: it is longer than {MAX_BYTES >> 20} MB")
    if raw.startswith(PNG):
        raw = _from_png(raw, path)
    try:
        text = raw.decode("utf-8-sig")
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise SourceError(f"{shown(path)} cannot be read: it is not JSON") from None
    nodes = parse(data, rules, path)
    return Graph(nodes, path, text)


def parse(data: Any, rules: Mapping[str, Any], path: str = "workflow") -> dict[str, Node]:
    """The nodes of a parsed document, in either format.

    Raises:
        SourceError: it is neither.
    """
    if isinstance(data, Mapping) and isinstance(data.get("nodes"), list):
        return flatten(data, rules, path)
    if isinstance(data, Mapping) and isinstance(data.get("prompt"), Mapping):
        data = data["prompt"]
    if isinstance(data, Mapping) and any(isinstance(n, Mapping) and "class_type" in n for n in data.values()):
        return _api(data, rules, path)
    raise SourceError(
        f"{shown(path)} holds no workflow: neither the editor's format (nodes and links) nor the API's (class_type). "
        "Name the model files, or a *.safetensors.index.json"
    )


def _api(data: Mapping[str, Any], rules: Mapping[str, Any], path: str) -> dict[str, Node]:
    if len(data) > MAX_NODES:
        raise SourceError(f"{shown(path)}: {len(data):,} nodes; at most {MAX_NODES:,} are read")
    nodes: dict[str, Node] = {}
    for key, entry in data.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("class_type"), str):
            continue
        given = entry.get("inputs")
        meta = entry.get("_meta")
        title = meta.get("title") if isinstance(meta, Mapping) else ""
        node = Node(key, entry["class_type"], title=title if isinstance(title, str) else "")
        for name, value in given.items() if isinstance(given, Mapping) else ():
            wire = _wire(value, data)
            node.inputs[name] = wire or value
        described(node, rules)
        nodes[key] = node
    for node in nodes.values():
        for name, wire in list(node.wires()):
            node.inputs[name] = _through(wire, nodes, rules)
        dead = [name for name, wire in node.wires() if wire.node not in nodes]
        node.open_ = tuple(dead)
        for name in dead:
            del node.inputs[name]
    return nodes


def _through(wire: Wire, nodes: Mapping[str, Node], rules: Mapping[str, Any]) -> Any:
    """Where a wire comes from behind nodes that only hold a value, hand one wire on or choose between two."""
    seen: set[str] = set()
    while wire.node in nodes and wire.node not in seen:
        seen.add(wire.node)
        node = nodes[wire.node]
        rule: Mapping[str, Any] = rules["nodes"].get(node.cls) or {}
        if "value" in rule:
            return node.inputs.get(rule["value"])
        found: Any = next((value for _, value in node.wires()), None) if "passes" in rule else None
        if "switch" in rule:
            state = node.inputs.get(rule["switch"]["by"])
            state = _through(state, nodes, rules) if isinstance(state, Wire) and state.node not in seen else state
            found = node.inputs.get(rule["switch"]["true" if state else "false"]) if isinstance(state, bool) else None
        if not isinstance(found, Wire):
            return wire
        wire = found
    return wire


def _wire(value: Any, data: Mapping[str, Any]) -> Wire | None:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], int) or isinstance(value[1], bool):
        return None
    node = str(value[0])
    return (
        Wire(node, value[1])
        if isinstance(value[0], (str, int)) and (isinstance(value[0], str) or node in data)
        else None
    )


def _from_png(raw: bytes, path: str) -> bytes:
    """The graph that a picture carries in a text chunk."""
    found: dict[bytes, bytes] = {}
    at = len(PNG)
    while at + 12 <= len(raw):
        size, kind = struct.unpack(">I4s", raw[at : at + 8])
        if size > len(raw) - at - 12:
            break
        body = raw[at + 8 : at + 8 + size]
        at += size + 12
        if kind in (b"tEXt", b"iTXt", b"zTXt"):
            keyword, _, rest = body.partition(b"\0")
            if keyword in _KEYWORDS:
                found.setdefault(keyword, _chunk_text(kind, rest))
        elif kind == b"IEND":
            break
    for keyword in _KEYWORDS:
        if found.get(keyword):
            return found[keyword]
    raise SourceError(f"{shown(path)} carries no workflow: it was saved without one, or by another program")


def _chunk_text(kind: bytes, rest: bytes) -> bytes:
    if kind == b"tEXt":
        return rest.decode("latin-1").encode() if not _is_utf8(rest) else rest
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:]
        rest = rest.partition(b"\0")[2].partition(b"\0")[2]
    else:
        rest = rest[1:]
    if not packed:
        return rest
    try:
        return zlib.decompressobj().decompress(rest, MAX_BYTES)
    except zlib.error:
        return b""


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
