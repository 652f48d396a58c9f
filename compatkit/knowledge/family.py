"""One family file (`rules/families/**/ID.yaml`) -> its lines in every layout, and its card.

The *grammar* is what a header is matched against: lines, groups, conditions. The *card* is everything else the file
says: latent space, encoders, runtimes, siblings. `docs/grammar.md` describes the spelling.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from compatkit.knowledge import junctionfile, keymap
from compatkit.knowledge.expr import Expr, ExprError, parse, symbols
from compatkit.knowledge.lines import Expansion, Group, Line, Part, parse_parts
from compatkit.knowledge.values import parse_values
from compatkit.knowledge.yamlfile import RuleFile, nearest

#: Keys of a family file: the grammar's, and the card's.
GRAMMAR_KEYS = {
    "parts": dict,
    "tensors": (dict, str),
    "add": dict,
    "drop": list,
    "optional": dict,
    "one_of": dict,
    "where": dict,
    "require": list,
    "forbid": list,
    "tolerate": list,
    "markers": dict,
    "signature": list,
    "layouts": dict,
    "layout": str,
    "metadata": dict,
    "like": str,
    "examples": list,
}
CARD_KEYS = {
    "id": str,
    "title": str,
    "role": str,
    "released": (str, int),
    "abstract": bool,
    "fallback": bool,
    "architecture": str,
    "facts": dict,
    "latent": dict,
    "text_encoders": list,
    "vision": dict,
    "image_encoders": list,
    "audio_encoders": list,
    "output": dict,
    "junctions": dict,
    "siblings": dict,
    "dtypes": dict,
    "sampling": dict,
    "runtimes": dict,
    "misread": dict,
    "tokenizer": dict,
    "values": list,
    "targets": dict,
    "notes": (str, list),
    "sources": list,
    "spaces": list,
}
#: What the values inside some of them must be.
INNER: dict[str, tuple[type, ...]] = {
    "one_of": (dict, type(None)),
    "runtimes": (dict, type(None)),
    "siblings": (dict, str, type(None)),
    "markers": (str, list, type(None)),
    "text_encoders": (dict,),
    "examples": (dict,),
}
LATENT_KEYS = (
    "space",
    "vae",
    "channels",
    "ndim",
    "downscale",
    "unused",
    "temporal",
    "patch",
    "scale_factor",
    "shift_factor",
    "also",
    "more",
    "note",
)
ENCODER_KEYS = ("kind", "taps", "into", "join", "optional", "alternatives", "vocab", "note")
ROLES = (
    "diffusion", "text_encoder", "vae", "lora", "controlnet", "t2i_adapter", "ip_adapter", "style_model", "clip_vision",
    "mmproj", "upscaler", "embedding", "llm", "gligen", "motion_module", "model_patch", "latent_upscaler",
    "audio_encoder", "face_adapter", "hypernetwork", "detector", "other",
)  # fmt: skip
#: Not handed down through `like`.
_OWN = {
    "id", "title", "released", "siblings", "examples", "abstract", "fallback", "architecture", "add", "drop", "like",
    "notes", "signature", "values",
}  # fmt: skip
_MERGED = {
    "where",
    "optional",
    "one_of",
    "parts",
    "runtimes",
    "facts",
    "latent",
    "layouts",
    "junctions",
    "metadata",
    "markers",
}


class Layout(Struct):
    """A family's tensors as one layout spells them. `origins` is empty for the family's own layout."""

    name: str
    lines: list[Line]
    origins: list[keymap.Origin] = field(default_factory=list)


class Family(Struct):
    """A compiled family file."""

    id: str
    path: Path
    card: dict[str, Any]
    groups: list[Group]
    layouts: list[Layout]
    where: dict[str, list[int]]
    require: list[Expr]
    forbid: list[str]
    tolerate: list[str]
    signature: list[str]
    metadata: dict[str, Any]
    markers: dict[str, list[str]]
    facts: dict[str, Expr]
    examples: list[Any]
    values: list[dict[str, Any]] = field(default_factory=list)


def check_keys(file: RuleFile) -> None:
    """Refuse unknown top-level keys and wrong types, with the position."""
    known = GRAMMAR_KEYS | CARD_KEYS
    if not isinstance(file.data, dict):
        raise file.error((), "a family file is a mapping")
    for key, value in file.data.items():
        if key not in known:
            raise file.error((key,), f"unknown key {key!r}{nearest(str(key), known)}")
        if value is None and "like" in file.data:
            continue  # what the base says of it does not hold here
        if not isinstance(value, known[key]):  # type: ignore[arg-type]
            raise file.error((key,), f"{key} has the wrong type: {type(value).__name__}")
    for key, kind in INNER.items():
        values = file.data.get(key) or ()
        for at in values if isinstance(values, dict) else range(len(values)):
            if not isinstance(values[at], kind):
                said = at if isinstance(values, dict) else f"an entry of {key}"
                raise file.error((key, at), f"{said} has the wrong type: {type(values[at]).__name__}")
    for key in ("id", "role"):
        if key not in file.data and "like" not in file.data:
            raise file.error((), f"{key} is missing")
    if "id" not in file.data:
        raise file.error((), "id is missing")
    if file.data.get("role", "other") not in ROLES:
        role = file.data["role"]
        raise file.error(("role",), f"unknown role {role!r}{nearest(role, ROLES)}")
    for key, value in (file.data.get("latent") or {}).items():
        if key not in LATENT_KEYS:
            raise file.error(("latent", key), f"unknown key {key!r}{nearest(key, LATENT_KEYS)}")
        if key in ("channels", "ndim"):
            _expression(file, ("latent", key), value)
    junctionfile.check(file, ("junctions",), file.data.get("junctions") or {})
    for i, encoder in enumerate(file.data.get("text_encoders") or []):
        for key in encoder:
            if key not in ENCODER_KEYS:
                raise file.error(("text_encoders", i, key), f"unknown key {key!r}{nearest(key, ENCODER_KEYS)}")


def resolve_like(
    file: RuleFile, files: Mapping[str, RuleFile], trail: tuple[str, ...] = ()
) -> tuple[dict[str, Any], list[tuple[RuleFile, dict[str, Any]]]]:
    """The family's data with what `like` hands down, and the chain of (file, added tree) to expand, base first."""
    data = file.data
    parent_id = data.get("like")
    if not parent_id:
        return copy.deepcopy(data), [(file, data)]
    if parent_id in trail or parent_id == data["id"]:
        raise file.error(("like",), f"{parent_id!r} is like itself")
    if parent_id not in files:
        raise file.error(("like",), f"there is no family {parent_id!r}{nearest(parent_id, files)}")
    parent, chain = resolve_like(files[parent_id], files, (*trail, data["id"]))
    merged = {k: v for k, v in parent.items() if k not in _OWN}
    if "tensors" in data:
        chain = []
    for key, value in data.items():
        if key in _MERGED and isinstance(value, dict) and isinstance(merged.get(key), dict):
            # null removes what the base says, but for a runtime it says that this one has no such model
            merged[key] = {**merged[key], **copy.deepcopy(value)} if key == "runtimes" else _merge(merged[key], value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = copy.deepcopy(value)
    return merged, [*chain, (file, data)]


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = copy.deepcopy(value)
    return out


def compile_family(
    file: RuleFile, files: Mapping[str, RuleFile], shared_parts: Mapping[str, Part], keymaps: Mapping[str, RuleFile]
) -> Family:
    """Compile one family.

    Raises:
        RuleFileError: at the position of what is wrong.
    """
    data, chain = resolve_like(file, files)
    parts = {**shared_parts, **parse_parts(data.get("parts") or {}, file.error)}
    expansion = Expansion(parts, file.error)
    lines = _own_lines(chain, data, expansion, file)
    own = data.get("layout", "native")
    layouts = [Layout(own, lines)]
    for name, spec in (data.get("layouts") or {}).items():
        layouts.append(_layout(str(name), spec, lines, expansion, file, keymaps))
    require = [_expression(file, ("require", i), r) for i, r in enumerate(data.get("require") or [])]
    facts = {k: _expression(file, ("facts", k), v) for k, v in (data.get("facts") or {}).items()}
    where, conditions = _where(file, data)
    card = {k: v for k, v in data.items() if k in CARD_KEYS and k != "facts"}
    card["source_file"] = file.told
    return Family(
        id=data["id"],
        path=file.path,
        card=card,
        groups=expansion.groups,
        layouts=layouts,
        where=where,
        require=require + conditions,
        forbid=[str(f) for f in data.get("forbid") or []],
        tolerate=[str(f) for f in data.get("tolerate") or []],
        signature=[str(s) for s in data.get("signature") or []],
        metadata=data.get("metadata") or {},
        markers={str(k): [v] if isinstance(v, str) else list(v) for k, v in (data.get("markers") or {}).items()},
        facts=facts,
        examples=data.get("examples") or [],
        values=parse_values(file, data.get("values") or [], [(x.name, x.lines, x.origins) for x in layouts]),
    )


def _expression(file: RuleFile, where: tuple[Hashable, ...], text: Any) -> Expr:
    try:
        return parse(text)
    except ExprError as e:
        raise file.error(where, str(e)) from None


def _where(file: RuleFile, data: Mapping[str, Any]) -> tuple[dict[str, list[int]], list[Expr]]:
    """`where: {hidden: 3840, patch: [4, 16], layers: ">= 2"}` -> allowed values, and the conditions as expressions."""
    allowed: dict[str, list[int]] = {}
    conditions: list[Expr] = []
    for symbol, value in (data.get("where") or {}).items():
        if isinstance(value, str):
            conditions.append(_expression(file, ("where", symbol), f"{symbol} {value}"))
        elif isinstance(value, list) and all(isinstance(v, int) for v in value):
            allowed[symbol] = value
        elif isinstance(value, int):
            allowed[symbol] = [value]
        else:
            raise file.error(("where", symbol), "a value, a list of values, or a condition like '>= 2'")
    return allowed, conditions


def _own_lines(
    chain: list[tuple[RuleFile, dict[str, Any]]], data: dict[str, Any], expansion: Expansion, file: RuleFile
) -> list[Line]:
    for source, part in chain:
        expansion.complain = source.error
        if part.get("drop"):  # of what the base has: what this file adds may have the same names
            drop = [keymap.Matcher(str(d)) for d in part["drop"]]
            before = len(expansion.lines)
            expansion.lines = [x for x in expansion.lines if not any(d.match(x.pattern.format) for d in drop)]
            if len(expansion.lines) == before:
                raise source.error(("drop",), "drops nothing: no name of the base matches")
        for key in ("tensors", "add"):
            if key in part:
                expansion.tree(part[key], (key,))
    expansion.complain = file.error
    for fact, tree in (data.get("optional") or {}).items():
        expansion.tree(tree, ("optional", fact), group=expansion.group(fact=str(fact)))
    for fact, choices in (data.get("one_of") or {}).items():
        for value, tree in choices.items():
            number = expansion.group(fact=str(fact), choice=str(fact), value=str(value))
            expansion.tree(tree, ("one_of", fact, value), group=number)
    if not expansion.lines:
        raise file.error((), "no tensors")
    return expansion.lines


def _layout(
    name: str, spec: Any, lines: list[Line], expansion: Expansion, file: RuleFile, keymaps: Mapping[str, RuleFile]
) -> Layout:
    where: tuple[Hashable, ...] = ("layouts", name)
    operations, places = _used(spec if isinstance(spec, list) else [spec], file, where, keymaps)

    def complain(at: tuple[Hashable, ...], message: str) -> Exception:
        """An error in an operation stands in the file that the operation stands in."""
        if at[:2] == where and len(at) > 2 and isinstance(at[2], int):
            source, place = places[at[2]]
            return source.error((*place, *at[3:]), message)
        return file.error(at, message)

    def added(tree: Any, at: tuple[Hashable, ...]) -> list[Line]:
        start = len(expansion.lines)
        expansion.complain = complain
        expansion.tree(tree, at)
        expansion.complain = file.error
        new = expansion.lines[start:]
        del expansion.lines[start:]
        return new

    mapped = keymap.apply(operations, list(lines), complain, where, added)
    return Layout(name, [m.line for m in mapped], [m.origin for m in mapped])


Place = tuple[RuleFile, tuple[Hashable, ...]]


def _used(
    operations: list[Any], file: RuleFile, where: tuple[Hashable, ...], keymaps: Mapping[str, RuleFile], depth: int = 0
) -> tuple[list[Any], list[Place]]:
    """The operations with every `use` replaced by the shared map's own, and where each of them stands."""
    found: list[Any] = []
    places: list[Place] = []
    for i, operation in enumerate(operations):
        if not (isinstance(operation, Mapping) and set(operation) == {"use"}):
            found.append(operation)
            places.append((file, (*where, i)))
            continue
        name = str(operation["use"])
        shared = keymaps.get(name)
        if shared is None:
            raise file.error((*where, i), f"there is no key map {name!r}{nearest(name, keymaps)}")
        if depth > 8:
            raise file.error((*where, i), "key maps use each other without end")
        if not isinstance(shared.data, dict) or not isinstance(shared.data.get("operations"), list):
            raise shared.error((), "operations is missing")
        inner, at = _used(shared.data["operations"], shared, ("operations",), keymaps, depth + 1)
        found += inner
        places += at
    return found, places


def free_symbols(lines: list[Line]) -> set[str]:
    """Every symbol that occurs in the shapes, runs and conditions of these lines."""
    found: set[str] = set()
    for line in lines:
        for start, stop, _ in line.pattern.ranges:
            found |= symbols(start) | symbols(stop)
        for shape in line.shapes or ():
            for side in shape:
                if side is not None:
                    found |= symbols(side)
        found |= symbols(line.when)
    return found
