"""A runtime's key map: every module name it takes from an adapter, and the weight that it stands for.

The forms of names are data (`rules/adapters/<runtime>.yaml`); the key maps of the families say which rows of a fused
weight a split name means.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from compatkit.adapters.base import Base, Rows, own_layout, renamed
from compatkit.adapters.versions import kept
from compatkit.knowledge.expr import evaluate, parse
from compatkit.knowledge.patterns import Pattern, expand_alternatives, names, parse_pattern
from compatkit.knowledge.protocol import Rules

_WEIGHT = ".weight"


class Target(NamedTuple):
    """A weight of the base, as the runtime names it, and the rows that a module of the adapter changes."""

    weight: str
    rows: Rows = None


def key_map(
    base: Base,
    table: Mapping[str, Any],
    knowledge: Rules,
    has: Callable[[str], bool],
    held: Mapping[str, str],
    modules: Iterable[str] | None = None,
    weights: Iterable[str] | None = None,
) -> dict[str, Target]:
    """Module name -> target, for everything the runtime maps for this base.

    `has(version)` says whether the runtime is that version or later; `held` maps the base's own names to those the
    runtime's module tree has, `weights` are all of that tree where it is not one to one. A target that the base does
    not have may be among them: the runtime maps it all the same. With `modules`, those of them that it maps.
    """
    wanted = None if modules is None else frozenset(modules)
    out: dict[str, Target] = {}
    every = kept(forms(base, table), has)
    joined = tuple(p for f in every if f.get("joined") for p in f["prefixes"] if p)
    # a name that is joined with underscores is no name with dots, whatever its prefix
    dotted = [m for m in wanted or () if "." in m or not m.startswith(joined)]
    for form in every:
        prefixes = form["prefixes"]
        if wanted is not None:
            likely = wanted if form.get("joined") else dotted
            prefixes = [p for p in prefixes if any(m.startswith(p) for m in likely)]
        if not prefixes:
            continue
        words = table.get("words") if form.get("parted") else None
        shown = form if words is None else {**form, "joined": False}
        for module, weight, rows in _form(shown, base, knowledge, held, weights or held.values()):
            if words is not None:
                own, module = module, module.replace(".", "_") if form.get("joined") else module
                if parted(module, words) != own:
                    continue  # the loader finds another name in it
            for prefix in prefixes:
                name = prefix + module
                if wanted is None or name in wanted:
                    out[name] = Target(weight, rows)
    return out


def parted(name: str, words: Sequence[str]) -> str:
    """A name with its underscores made dots again, but for those inside of `words`."""
    kept = set[int]()
    for word in words:
        start = name.find(word)
        while start >= 0:
            kept.update(start + i for i, c in enumerate(word) if c == "_")
            start = name.find(word, start + len(word))
    return "".join("." if c == "_" and i not in kept else c for i, c in enumerate(name))


def forms(base: Base, table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The forms of names that hold for a base: those for all, then those for its class."""
    cls = base.runtime_class(str(table["runtime"]))
    out = list(table.get("forms") or ())
    for entry in table.get("classes") or ():
        if cls in entry.get("classes", ()) or base.family in entry.get("families", ()):
            out += entry.get("forms") or ()
    return out


def held_names(base: Base, table: Mapping[str, Any]) -> dict[str, str]:
    """The base's own names -> what the runtime's module tree calls the same tensors."""
    cls, role = base.runtime_class(str(table["runtime"])), base.card.get("role")
    begins: list[tuple[str, str]] = []
    ends: list[tuple[str, str]] = []
    for entry in table.get("holds") or ():
        if role == entry.get("role", "diffusion") and ("classes" not in entry or cls in entry["classes"]):
            begins += [(str(a), str(b)) for a, b in entry.get("begins") or ()]
            ends += [(str(a), str(b)) for a, b in entry.get("ends") or ()]
    return {name: _held(name, begins, ends) for name in base.shapes}


def _held(name: str, begins: Iterable[tuple[str, str]], ends: Iterable[tuple[str, str]]) -> str:
    for old, new in begins:
        if name.startswith(old):
            name = new + name[len(old) :]
            break
    for old, new in ends:
        if name.endswith(old):
            name = name[: -len(old)] + new
    return name


def held_weights(
    base: Base, table: Mapping[str, Any], knowledge: Rules, held: Mapping[str, str]
) -> dict[str, tuple[int | None, ...]]:
    """Every weight of the runtime's module tree with its shape: the base's own, or as a layout of its file has them."""
    cls = base.runtime_class(str(table["runtime"]))
    out = {held[own]: shape for own, shape in base.shapes.items()}
    for entry in table.get("holds") or ():
        if "layout" not in entry or cls not in entry["classes"]:
            continue
        for name, own, rows in renamed(knowledge.grammar(base.family), entry["layout"], base.symbols):
            shape = base.shapes.get(own)
            if shape is None or name == own:
                continue
            out.pop(held[own], None)
            out[name] = (rows[1], *shape[1:]) if rows else shape
    return out


def _form(
    form: Mapping[str, Any], base: Base, knowledge: Rules, held: Mapping[str, str], weights: Iterable[str]
) -> Iterator[tuple[str, str, Rows]]:
    """(module name without prefix, weight, rows) of one form."""
    joined, whole = bool(form.get("joined")), bool(form.get("whole"))
    replace, cut = form.get("replace") or (), form.get("cut") or {}
    also = form.get("also") or ()
    skip = re.compile("|".join(map(fnmatch.translate, form["skip"]))) if form.get("skip") else None
    if not (replace or cut or also or whole or form.get("below") or form.get("skip")):
        size = len(_WEIGHT)
        for name, weight, rows in _pairs(form, base, knowledge, held, weights):
            if name.endswith(_WEIGHT):
                yield (name[:-size].replace(".", "_") if joined else name[:-size]), weight, rows
        return
    for name, weight, rows in _pairs(form, base, knowledge, held, weights):
        if not name.endswith(_WEIGHT):
            if whole:
                yield name, weight, rows
            continue
        if form.get("below"):
            if not name.startswith(form["below"]):
                continue
            name = name[len(form["below"]) :]
        for old, new in replace:
            name = name.replace(old, new)
        module = name[: -len(_WEIGHT)]
        if skip and skip.match(module):
            continue
        for end, new in cut.items():
            if module.endswith(end):
                module = module[: -len(end)] + new
        for spelling in (module, *_also(module, also)):
            yield spelling.replace(".", "_") if joined else spelling, weight, rows


def _pairs(
    form: Mapping[str, Any], base: Base, knowledge: Rules, held: Mapping[str, str], weights: Iterable[str]
) -> Iterator[tuple[str, str, Rows]]:
    """(tensor name as the form spells it, weight, rows), before prefixes and replacements."""
    rows: Rows = (0, evaluate(parse(form["rows"]), base.symbols)) if form.get("rows") else None
    if form["names"] == "native":
        renames, only = form.get("rename") or {}, form.get("only")
        for held_name in weights:
            if only and not _is(held_name, only):
                continue
            spelled = held_name
            for old, new in renames.items():
                spelled = spelled.replace(old, new)
            yield spelled, held_name, rows
        return
    document = knowledge.grammar(form.get("of") or base.family)
    layout = str(form["names"])
    symbols = dict(base.symbols)
    for symbol, expression in (form.get("with") or {}).items():
        symbols[symbol] = evaluate(parse(expression), base.symbols)
    if layout not in document["layouts"]:
        if form.get("or") != "native":
            return
        layout = own_layout(document)  # the program has the model's own names
    for pattern, target in (form.get("more") or {}).items():  # what the layout has too counts as the layout has it
        for name, own in _runs(pattern, target, symbols):
            yield f"{name}{_WEIGHT}", f"{own}{_WEIGHT}", None
    ending = "" if form.get("whole") else _WEIGHT
    for name, own, cut in renamed(document, layout, symbols, tuple(form.get("without") or ()), ending):
        yield name, held.get(own, own), cut


def _is(name: str, only: str) -> bool:
    return name.endswith(_WEIGHT) and fnmatch.fnmatchcase(name[: -len(_WEIGHT)], only)


def _also(module: str, also: Iterable[Any]) -> Iterator[str]:
    """Further spellings: `[pattern, pattern]`, where the `*` of the first stands for the same text in the second."""
    for old, new in also:
        head, _, tail = str(old).partition("*")
        if module.startswith(head) and module.endswith(tail):
            inside = module[len(head) : len(module) - len(tail)]
            if "*" in tail or not tail:
                continue
            yield str(new).replace("*", inside, 1)


def _runs(pattern: str, target: str, symbols: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for one, other in zip(expand_alternatives(pattern), expand_alternatives(target), strict=True):
        here, there = parse_pattern(one), parse_pattern(other)
        try:
            yield from zip(names(Pattern(*here), symbols), names(Pattern(*there), symbols), strict=True)
        except KeyError:
            continue
