"""The schema of `rules/classes/*.yaml`: a library's class, its configuration from what a header tells, its inputs.

    class: ClassName
    library: diffusers              # `module:` where it is not exported at the top
    layout: diffusers               # the layout of the families below whose names are the class's own
    config: {dim: hidden, heads: hidden // head_dim}     # expressions over solved symbols, facts and options
    constants: {rope_theta: 256.0}  # what no shape shows
    families: {some_family: {config: …, constants: …, when: …, layout: …, inputs: …}}
    inputs: {hidden_states: [1, latent_channels, latent_side, latent_side]}
    output: [0]                     # attributes and indexes that lead from what the call returns to the tensor
    sizes: {latent_side: 16, prompt_tokens: 32, latent_frames: 1}
    shims: [some_shim]
    sources: [{what: …, ref: …}]

A class with several methods worth calling (a VAE) has `calls: {decode: {inputs: …, output: …}, encode: …}` instead; the
first is the usual one. `docs/classes.md` describes it all.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from compatkit.knowledge.expr import ExprError, parse
from compatkit.knowledge.yamlfile import RuleFile, nearest

#: Libraries whose classes are named; `compatkit` has one where none of them does.
LIBRARIES = ("diffusers", "transformers", "compatkit")
#: What an input's sizes may name beside symbols and facts; `sizes` gives the smallest that are valid.
SIZES = ("latent_side", "prompt_tokens", "latent_frames")
DTYPES = ("compute", "float32", "float64", "int64", "bool")
FILLS = ("normal", "zeros", "ones", "grid", "index", "after")
#: Mappings in `config` that are not nested configurations: one key of these.
OPERATORS = {"range": (1, 3), "repeat": (2, 2), "choose": (3, 3), "join": (1, 9), "text": (1, 1)}

_FAMILY_KEYS = {"config", "constants", "layout", "when", "inputs", "calls", "sizes", "shims", "setup"}
_KEYS = {*_FAMILY_KEYS, "class", "library", "module", "families", "output", "sources", "notes"}
_CALL_KEYS = {"inputs", "output"}
_INPUT_KEYS = {"shape", "dtype", "fill", "list", "times", "when", "is", "value", "grid", "after"}


def parse_classes(files: list[RuleFile], families: Mapping[str, Any]) -> dict[str, Any]:
    """All class files as one document: `classes` by name, and `families`: family -> names of its classes.

    Raises:
        RuleFileError: an unknown key or family, or an expression that is none.
    """
    classes: dict[str, Any] = {}
    owners: dict[str, list[str]] = {}
    for file in files:
        entry = _parse(file, families)
        name = file.path.stem
        classes[name] = entry
        for family in entry["families"]:
            owners.setdefault(family, []).append(name)
    return {"classes": classes, "families": owners}


def _parse(file: RuleFile, families: Mapping[str, Any]) -> dict[str, Any]:
    data = file.data
    _keys(file, data, _KEYS, ())
    for key in ("class", "library", "families"):
        if key not in data:
            raise file.error((), f"{key} is missing")
    if data["library"] not in LIBRARIES:
        raise file.error(("library",), f"a library is one of {', '.join(LIBRARIES)}")
    entry: dict[str, Any] = {
        "class": data["class"],
        "library": data["library"],
        "module": data.get("module", data["library"]),
        **_parameters(file, data, ()),
    }
    entry["calls"] = _calls(file, data, ())
    entry["families"] = {}
    for family, own in (data["families"] or {}).items():
        if family not in families:
            raise file.error(("families", family), f"there is no family {family!r}{nearest(str(family), families)}")
        own = own or {}
        at = ("families", family)
        _keys(file, own, _FAMILY_KEYS, at)
        entry["families"][family] = {**_parameters(file, own, at), "calls": _calls(file, own, at)}
    return entry


def _keys(file: RuleFile, data: Any, known: set[str], at: tuple[Hashable, ...]) -> None:
    if not isinstance(data, dict):
        raise file.error(at, "a mapping is wanted here")
    for key in data:
        if key not in known:
            raise file.error((*at, key), f"unknown key {key!r}{nearest(str(key), known)}")


def _parameters(file: RuleFile, data: Mapping[str, Any], at: tuple[Hashable, ...]) -> dict[str, Any]:
    """What a class and a family's part of it may both say."""
    out: dict[str, Any] = {
        "config": {k: _value(file, v, (*at, "config", k)) for k, v in (data.get("config") or {}).items()},
        "constants": data.get("constants") or {},
    }
    sizes = data.get("sizes") or {}
    _keys(file, sizes, set(SIZES), (*at, "sizes"))
    out["sizes"] = sizes
    if "when" in data:
        out["when"] = _expression(file, data["when"], (*at, "when"))
    for key in ("layout", "shims", "setup"):
        if key in data:
            out[key] = data[key]
    return out


def _expression(file: RuleFile, text: Any, at: tuple[Hashable, ...]) -> Any:
    try:
        return parse(text)
    except ExprError as e:
        raise file.error(at, str(e)) from None


def _value(file: RuleFile, value: Any, at: tuple[Hashable, ...]) -> Any:
    """A value of `config` compiled: `["=", expression]`, `["list", …]`, `["map", …]`, an operator, or a literal."""
    if isinstance(value, str):
        return ["=", _expression(file, value, at)]
    if isinstance(value, list):
        return ["list", [_value(file, v, (*at, i)) for i, v in enumerate(value)]]
    if isinstance(value, dict):
        if len(value) == 1 and (operator := next(iter(value))) in OPERATORS:
            arguments = value[operator] if isinstance(value[operator], list) else [value[operator]]
            least, most = OPERATORS[operator]
            if not least <= len(arguments) <= most:
                raise file.error(at, f"{operator} takes {least if least == most else f'{least} or {most}'} values")
            if operator == "text":
                return ["value", arguments[0]]
            return [operator, [_value(file, v, (*at, operator, i)) for i, v in enumerate(arguments)]]
        return ["map", {k: _value(file, v, (*at, k)) for k, v in value.items()}]
    return ["value", value]


def _calls(file: RuleFile, data: Mapping[str, Any], at: tuple[Hashable, ...]) -> dict[str, Any]:
    given = data.get("calls")
    if given is None:
        if "inputs" not in data and "output" not in data:
            return {}
        given = {"forward": {k: data[k] for k in _CALL_KEYS if k in data}}
        inner: tuple[Hashable, ...] = at
    else:
        inner = (*at, "calls")
    out = {}
    for name, call in given.items():
        place = inner if data.get("calls") is None else (*inner, name)
        _keys(file, call, _CALL_KEYS, place)
        entry: dict[str, Any] = {
            "inputs": {k: _input(file, v, (*place, "inputs", k)) for k, v in (call.get("inputs") or {}).items()}
        }
        if "output" in call:
            entry["output"] = call["output"] if isinstance(call["output"], list) else [call["output"]]
        out[name] = entry
    return out


def _input(file: RuleFile, given: Any, at: tuple[Hashable, ...]) -> Any:
    """One argument: a shape, a mapping that describes a tensor or a plain value, or a mapping of further arguments."""
    if given is None:
        return None
    if isinstance(given, list):
        given = {"shape": given}
    if isinstance(given, dict) and given.keys() == {"items"}:
        return {"items": [_input(file, v, (*at, "items", i)) for i, v in enumerate(given["items"])]}
    if not isinstance(given, dict):
        return {"value": _value(file, given, at)}
    if not (_INPUT_KEYS - {"list", "is", "when", "times"}) & given.keys():
        return {"nested": {k: _input(file, v, (*at, k)) for k, v in given.items()}}
    _keys(file, given, _INPUT_KEYS, at)
    out: dict[str, Any] = {}
    if given.get("dtype", "compute") not in DTYPES:
        raise file.error((*at, "dtype"), f"a dtype is one of {', '.join(DTYPES)}")
    fill = given.get("fill", "normal")
    if not (fill in FILLS or isinstance(fill, (int, float))):
        raise file.error((*at, "fill"), f"fill is a number or one of {', '.join(FILLS)}")
    for key in ("shape", "grid"):
        if key in given:
            out[key] = [_expression(file, s, (*at, key, i)) for i, s in enumerate(given[key])]
    if "value" in given:
        out["value"] = _value(file, given["value"], (*at, "value"))
    for key in ("times", "after", "when"):
        if key in given:
            out[key] = _expression(file, given[key], (*at, key))
    out.update({k: given[k] for k in ("dtype", "fill", "list", "is") if k in given})
    return out
