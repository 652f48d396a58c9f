"""The schema of `rules/adapters/*.yaml`: how adapters are spelled, and which spellings a runtime reads.

`spellings.yaml` holds algorithms, companions and prefixes; any other file is one runtime's: the names it takes for a
base (`forms` for all, `classes` for some), the endings it reads, the files it rewrites first. `docs/adapters.md`
describes the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compatkit.knowledge.expr import ExprError
from compatkit.knowledge.expr import parse as parse_expression
from compatkit.knowledge.yamlfile import RuleFile, nearest

_SPELLINGS: dict[str, type] = {
    "id": str,
    "algorithms": list,
    "companions": dict,
    "plain": list,
    "prefixes": list,
    "bare": list,
    "marks": list,
    "aliases": list,
    "titles": dict,
    "metadata": list,
    "kin": list,
    "writes": list,
    "sources": list,
}
_RUNTIME: dict[str, type] = {
    "id": str,
    "runtime": str,
    "holds": list,
    "conversions": list,
    "reads": dict,
    "reads_since": dict,
    "fails": list,
    "beside": list,
    "companions": list,
    "ignored": dict,
    "forms": list,
    "classes": list,
    "encoders": list,
    "errors": dict,
    "refuses": list,
    "words": list,
    "walks": bool,
    "pads": bool,
    "writes": str,
    "applies": str,
    "biases": str,
    "routed": list,
    "routes": list,
    "stops": list,
    "drops": list,
    "needs": list,
    "notes": list,
    "sources": list,
}
MATHS = ("product", "hadamard", "kronecker", "glora", "blocks", "full", "set", "other")
_FORM = (
    "prefixes", "names", "joined", "whole", "replace", "cut", "also", "more", "of", "with", "without", "only", "rename",
    "rows", "below", "skip", "since", "note", "or", "parted",
)  # fmt: skip
_ROUTE = ("when", "families", "forms", "reads", "beside", "companions", "ignored", "stops", "drops", "needs", "note")
_HOLDS = {"role", "classes", "begins", "ends", "layout"}
_WHEN = ("any", "starts", "begin", "none", "either")
_STOPS = ("modules", "endings", "any", "without", "nowhere", "names")


def parse(file: RuleFile) -> dict[str, Any]:
    """`{id: table}` of one file.

    Raises:
        RuleFileError: at the position of what is wrong.
    """
    data = file.data
    if not isinstance(data, Mapping):
        raise file.error((), "an adapters file is a mapping")
    known = _RUNTIME if "runtime" in data else _SPELLINGS
    for key, value in data.items():
        if key not in known:
            raise file.error((key,), f"unknown key {key!r}{nearest(str(key), known)}")
        if not isinstance(value, known[key]):
            raise file.error((key,), f"{key!r} has the wrong type: {type(value).__name__}")
    if "id" not in data:
        raise file.error((), "'id' is missing")
    for i, algorithm in enumerate(data.get("algorithms") or ()):
        for key in ("id", "math", "spellings"):
            if key not in algorithm:
                raise file.error(("algorithms", i), f"{key!r} is missing")
        if algorithm["math"] not in MATHS:
            raise file.error(("algorithms", i, "math"), f"one of {', '.join(MATHS)}")
    for i, entry in enumerate(data.get("holds") or ()):
        if (
            not isinstance(entry, Mapping)
            or not entry
            or set(entry) - _HOLDS
            or ("layout" in entry) > ("classes" in entry)
        ):
            raise file.error(("holds", i), f"a mapping of {', '.join(sorted(_HOLDS))}; a layout needs classes")
    for i, form in enumerate(data.get("forms") or ()):
        _form(file, ("forms", i), form)
    for i, entry in enumerate(data.get("classes") or ()):
        if not isinstance(entry, Mapping) or not (entry.get("classes") or entry.get("families")):
            raise file.error(("classes", i), "an entry names the classes (or families) of bases that it holds for")
        for j, form in enumerate(entry.get("forms") or ()):
            _form(file, ("classes", i, "forms", j), form)
        for j, route in enumerate(entry.get("routes") or ()):
            _route(file, ("classes", i, "routes", j), route)
    return {str(data["id"]): dict(data)}


def _route(file: RuleFile, where: tuple[Any, ...], route: Any) -> None:
    if not isinstance(route, Mapping):
        raise file.error(where, f"a mapping with the keys {', '.join(_ROUTE)}")
    for key in route:
        if key not in _ROUTE:
            raise file.error((*where, key), f"unknown key {key!r}{nearest(str(key), _ROUTE)}")
    for key in route.get("when") or ():
        if key not in _WHEN:
            raise file.error((*where, "when", key), f"unknown condition {key!r}{nearest(str(key), _WHEN)}")
    for i, entry in enumerate(route.get("stops") or ()):
        if entry.get("at") not in _STOPS or "error" not in entry:
            raise file.error((*where, "stops", i), f"at: one of {', '.join(_STOPS)}; and the error")
    for i, form in enumerate(route.get("forms") or ()):
        _form(file, (*where, "forms", i), form)


def _form(file: RuleFile, where: tuple[Any, ...], form: Any) -> None:
    if not isinstance(form, Mapping):
        raise file.error(where, f"a mapping with the keys {', '.join(_FORM)}")
    for key in form:
        if key not in _FORM:
            raise file.error((*where, key), f"unknown key {key!r}{nearest(str(key), _FORM)}")
    for key in ("prefixes", "names"):
        if key not in form:
            raise file.error(where, f"{key!r} is missing")
    for key, text in [("rows", form.get("rows")), *[(("with"), v) for v in (form.get("with") or {}).values()]]:
        if text is not None:
            try:
                parse_expression(text)
            except ExprError as e:
                raise file.error((*where, key), str(e)) from None
