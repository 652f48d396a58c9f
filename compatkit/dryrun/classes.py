"""From data to a configuration: which library class a component is, and with what arguments its makers build it.

Nothing here loads torch or a library: `rules/classes/` says it all, and the solved symbols of the header fill it in.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct, field

from compatkit.knowledge.expr import evaluate
from compatkit.knowledge.store import Knowledge
from compatkit.vocabulary import Component

_CONDITIONS = {"==", "!=", "<", "<=", ">", ">=", "and", "or", "not"}
_SMALLEST = {"latent_side": 16, "prompt_tokens": 32, "latent_frames": 1}


class NoClass(Exception):
    """No class of a library is known for this component; the text says why, in one sentence."""


class Spec(Struct, frozen=True):
    """One class for one component: where it is imported from, its configuration, and how it is called.

    `symbols` are the family's solved symbols (of its example where the header does not tell), `env` adds facts and
    options: what expressions may name. `calls` maps a method's name to its inputs and output, usual one first. `setup`
    names methods that are called once it is built.
    """

    key: str
    name: str
    library: str
    module: str
    family: str
    layout: str
    config: Mapping[str, Any]
    symbols: Mapping[str, int]
    options: Mapping[str, Any]
    env: Mapping[str, Any]
    calls: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    shims: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()


def spec_of(component: Component, knowledge: Knowledge, *, depth: int | None = None, family: str | None = None) -> Spec:
    """The class of a component, configured for it.

    `depth` caps every run of blocks: a shallow model of the same widths. `family` picks one of header-identical ones.

    Raises:
        NoClass: its family is unknown, or no class is written down for it.
    """
    wanted = family or component.family
    if wanted is None:
        raise NoClass(f"the model is unknown: {component.reason or 'no family fits its tensors'}")
    document = knowledge.grammar(wanted)
    symbols, options = solved(component, document)
    return spec_for(wanted, symbols, options, component.facts, knowledge, depth=depth)


def solved(component: Component, document: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """A component's symbols and options, read back from its facts; what the header did not tell is the example's."""
    example = document.get("example") or {}
    symbols: dict[str, int] = dict(example.get("symbols") or {})
    for fact, value in component.facts.items():
        # a fact that the family computes may have the name of a symbol that it is not
        if isinstance(value, int) and not isinstance(value, bool) and document["facts"].get(fact, fact) == fact:
            symbols[fact] = value
    for fact, expression in document["facts"].items():
        value = component.facts.get(fact)
        if isinstance(expression, str) and isinstance(value, int):
            symbols[expression] = value
    return symbols, {k: v for k, v in component.facts.items() if isinstance(v, bool | str)}


def spec_for(
    family: str,
    symbols: Mapping[str, int],
    options: Mapping[str, Any],
    facts: Mapping[str, Any],
    knowledge: Knowledge,
    *,
    depth: int | None = None,
    layout: str | None = None,
) -> Spec:
    """The same, for a family with these symbols and options. `layout` keeps only the classes whose names it spells.

    Raises:
        NoClass: no class is written down for the family, or none for these options.
    """
    document = knowledge.grammar(family)
    if depth is not None:
        runs = run_lengths(document)
        symbols = {k: min(v, depth) if k in runs else v for k, v in symbols.items()}
    env = environment(document, symbols, options, facts)
    known = knowledge.classes()
    keys = known["families"].get(family) or known["families"].get(knowledge.owner(family)) or ()
    title = knowledge.family(family).get("title", family)
    for key in keys:
        entry = known["classes"][key]
        own = entry["families"].get(family) or entry["families"].get(knowledge.owner(family)) or {}
        spelled = own.get("layout", entry.get("layout")) or _usual_layout(document)
        if layout not in (None, spelled):
            continue
        when = own.get("when", entry.get("when", 1))
        if not _whether(when, env):
            continue
        return Spec(
            key=key,
            name=entry["class"],
            library=entry["library"],
            module=entry["module"],
            family=family,
            layout=spelled,
            config=_config(entry, own, env, title),
            symbols=dict(symbols),
            options=dict(options),
            env=env,
            calls=_calls(entry["calls"], own.get("calls", {})),
            sizes={**_SMALLEST, **entry["sizes"], **own.get("sizes", {})},
            shims=tuple(own.get("shims", entry.get("shims", ()))),
            setup=tuple(own.get("setup", entry.get("setup", ()))),
        )
    if keys:
        raise NoClass(f"no class of diffusers or transformers holds {title} as this file has it")
    raise NoClass(f"no class of diffusers or transformers is written down for {title}")


def run_lengths(document: Mapping[str, Any]) -> set[str]:
    """Symbols that only count blocks: they are the length of a run and no side of any shape."""
    lengths: set[str] = set()
    for layout in document["layouts"].values():
        lengths |= {stop for _, ranges, *_ in layout["lines"] for _, stop, _ in ranges if isinstance(stop, str)}
        lengths -= {
            side
            for _, _, shapes, *_ in layout["lines"]
            for shape in shapes or ()
            for side in shape
            if isinstance(side, str)
        }
    return lengths


def environment(
    document: Mapping[str, Any], symbols: Mapping[str, int], options: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What an expression may name: symbols, facts, and options (an absent one is false; of a choice, `fact_value`)."""
    env: dict[str, Any] = {}
    for fact, _, choice, value in document["groups"]:
        if choice:
            env[re.sub(r"\W", "_", f"{choice}_{value}")] = options.get(choice) == value
        elif fact:
            env[fact] = bool(options.get(fact, False))
    env.update({fact: bool(options.get(fact, False)) for fact in document["markers"]})
    env.update({k: v for k, v in facts.items() if isinstance(v, int)})
    env.update(symbols)
    for name, expression in document["facts"].items():
        try:
            env.setdefault(name, evaluate(expression, env))
        except KeyError:
            continue
    from compatkit.identify.component import latent_facts

    for name, value in latent_facts([document["card"]], env).items():
        if isinstance(value, int):
            env.setdefault(name, value)
    return env


def _usual_layout(document: Mapping[str, Any]) -> str:
    return "diffusers" if "diffusers" in document["layouts"] else str(next(iter(document["layouts"])))


def _config(entry: Mapping[str, Any], own: Mapping[str, Any], env: Mapping[str, Any], title: str) -> dict[str, Any]:
    computed = {**entry["config"], **own.get("config", {})}
    try:
        config = {k: value(v, env) for k, v in computed.items()}
    except KeyError as e:
        raise NoClass(f"the header does not tell {e.args[0]}, which {entry['class']} needs for {title}") from None
    for constants in (entry["constants"], own.get("constants", {})):
        _merge(config, copy.deepcopy(constants))
    return config


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, given in more.items():
        if isinstance(given, dict) and isinstance(into.get(key), dict):
            _merge(into[key], given)
        else:
            into[key] = given


def _calls(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """A family's calls over those of its class: inputs key by key, `null` takes one away."""
    out: dict[str, Mapping[str, Any]] = {}
    for name in dict.fromkeys([*shared, *own]):
        a, b = shared.get(name) or {}, own.get(name) or {}
        inputs = {**a.get("inputs", {}), **b.get("inputs", {})}
        kept = {k: v for k, v in inputs.items() if v is not None}
        out[name] = {"inputs": kept, "output": b.get("output", a.get("output", [0]))}
    return out


def _whether(expression: Any, env: Mapping[str, Any]) -> bool:
    try:
        return bool(evaluate(expression, env))
    except KeyError:
        return False


def value(compiled: Any, env: Mapping[str, Any]) -> Any:
    """A compiled value of `config` under `env`. Raises KeyError for a symbol that is not bound."""
    kind, argument = compiled
    if kind == "value":
        return argument
    if kind == "=":
        result = evaluate(argument, env)
        return bool(result) if isinstance(argument, list) and argument[0] in _CONDITIONS else result
    if kind == "list":
        return [value(v, env) for v in argument]
    if kind == "map":
        return {k: value(v, env) for k, v in argument.items()}
    if kind == "choose":  # lazily: what is not chosen may need symbols that are not there
        return value(argument[1] if value(argument[0], env) else argument[2], env)
    values = [value(v, env) for v in argument]
    if kind == "join":
        return [item for row in values for item in row]
    return list(range(*values)) if kind == "range" else [values[0]] * values[1]


def arguments(
    inputs: Mapping[str, Any], env: Mapping[str, Any]
) -> Iterator[tuple[tuple[str | int, ...], dict[str, Any]]]:
    """(path of keys and indexes, description) of every argument that is given under `env`, shapes evaluated.

    A description has `value`, or `shape` (a tuple), `dtype`, `fill`, `is`, `list` (how many lists it stands in),
    `times` (how often in the innermost), `grid` where positions are laid out, `after` where a mask begins.
    """
    for name, given in inputs.items():
        if given is None:
            continue
        if "nested" in given:
            yield from (((name, *path), found) for path, found in arguments(given["nested"], env))
            continue
        if "items" in given:
            listed: Any = dict(enumerate(given["items"]))
            yield from (((name, *path), found) for path, found in arguments(listed, env))
            continue
        if "when" in given and not _whether(given["when"], env):
            continue
        if "value" in given:
            yield (name,), {"value": value(given["value"], env), "is": given.get("is", "")}
            continue
        described = {"dtype": "compute", "fill": "normal", "list": 0, "is": "", **given}
        described["shape"] = tuple(evaluate(s, env) for s in given["shape"])
        described.update({k: evaluate(given[k], env) for k in ("times", "after") if k in given})
        if "grid" in given:
            described["grid"] = tuple(evaluate(s, env) for s in given["grid"])
        yield (name,), described
