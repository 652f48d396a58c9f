"""A header -> the adapter it is: convention, algorithms, ranks, what it trains, and for which base."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from compatkit.adapters.alphas import Scalar, alpha_facts
from compatkit.adapters.fit import Shape, matrix, unsound
from compatkit.adapters.keys import Key, Spellings, spellings
from compatkit.adapters.targets import Made, Size, made_for
from compatkit.identify.metadata import value as metadata_value
from compatkit.knowledge.store import Knowledge
from compatkit.sources.naming import base_name
from compatkit.vocabulary import Component, Header, NotChecked, Quantization, Tensor

ROLE = "lora"
#: From this share of telling names on a file is an adapter and nothing else; from the lower one on it may be one if no
#: family explains it.
SURE, MAYBE = 0.9, 0.2
_EVIDENCE = 6
#: Where a joined name goes from the run to the number of a block.
_NUMBER = re.compile(r"_\d")
_TITLED = 2


def share(header: Header, knowledge: Knowledge) -> float:
    """The share of a file's names that only an adapter has: cheap, nothing is looked at closely."""
    table = knowledge.adapters("spellings")
    if not table or header.format != "safetensors":
        return 0.0
    return spellings(table).glance(header.tensors)


def recognise(header: Header, knowledge: Knowledge, read: Scalar | None = None) -> Component | None:
    """The adapter a header describes; None if it has no tensor of one. With `read` its alphas are looked at."""
    spelled = spellings(knowledge.adapters("spellings"))
    keys, junk = spelled.keys(header.tensors)
    if not any(k.sense.algorithm for k in keys):
        return None
    modules = by_module(keys)
    conventions = {m: spelled.convention(m) for m in modules}
    looks = _looks(modules, spelled, header.tensors)
    made = _made(looks, conventions, spelled, header, knowledge)
    facts = _facts(looks, conventions, junk)
    facts.update(_base_facts(made, header))
    unread: tuple[NotChecked, ...] = ()
    if facts["alpha"] != "none":
        known = alpha_facts(modules, header.tensors, spelled, read) if read is not None else {}
        facts.update(known)
        if not known:
            unread = (NotChecked("lora/alpha", f"{base_name(header.source)}: its alphas were not read, or all are 0"),)
    layout = spelled.whole(header.tensors) or _layout(conventions)
    prefixes = {c.prefix for c in conventions.values()}
    dtypes = Counter(t.dtype for t in header.tensors.values())
    return Component(
        source=header.source,
        format=header.format,
        size=header.size,
        header_bytes=header.header_bytes,
        role=ROLE,
        family=None,
        also=(),
        layout=layout,
        prefix=next(iter(prefixes)) if len(prefixes) == 1 else "",
        quantization=Quantization("none", dict(dtypes.most_common())),
        parameters=sum(t.elements for t in header.tensors.values()),
        key_groups=_groups(modules, conventions),
        loads_as={},
        facts=facts,
        evidence=tuple(f"{k.name} {list(header.tensors[k.name].shape)}" for k in keys[:_EVIDENCE]),
        tensors=header.tensors,
        metadata=header.metadata,
        foreign=tuple(junk),
        problems=header.problems,
        not_checked=unread,
        title=_title(facts, spelled, knowledge),
    )


def by_module(keys: Sequence[Key]) -> dict[str, list[Key]]:
    """Keys by module, in the order of the file."""
    out: dict[str, list[Key]] = {}
    for key in keys:
        out.setdefault(key.module, []).append(key)
    return out


def parts_of(keys: Sequence[Key], algorithm: str, tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The shapes of one algorithm's tensors of a module, by part."""
    return {k.sense.part: tensors[k.name].shape for k in keys if k.sense.algorithm == algorithm}


class _Look(NamedTuple):
    """What the tensors of one module say: by algorithm its rank and the size of the weight it is for; halves of a
    product, the ending that the first lacks, and tensors without elements; the companions beside; what does not go
    together among them."""

    algorithms: tuple[tuple[str, int | None, Size], ...]
    halves: int
    lacks: str
    empty: int
    companions: frozenset[str]
    problem: str


def _looks(modules: Mapping[str, Sequence[Key]], spelled: Spellings, tensors: Mapping[str, Tensor]) -> dict[str, _Look]:
    """A look at every module; of those whose tensors have equal endings and shapes at one."""
    seen: dict[tuple[tuple[str, Shape], ...], _Look] = {}
    out: dict[str, _Look] = {}
    for module, keys in modules.items():
        alike = tuple([(k.ending, tensors[k.name].shape) for k in keys])
        look = seen.get(alike)
        if look is None:
            look = seen[alike] = _look(keys, spelled, tensors)
        out[module] = look
    return out


def _look(keys: Sequence[Key], spelled: Spellings, tensors: Mapping[str, Tensor]) -> _Look:
    algorithms: list[tuple[str, int | None, Size]] = []
    halves = empty = 0
    lacks = problem = ""
    for algorithm in dict.fromkeys(k.sense.algorithm for k in keys if k.sense.algorithm):
        entry = spelled.algorithms[algorithm]
        shapes = parts_of(keys, algorithm, tensors)
        algorithms.append((algorithm, _rank(entry, shapes), matrix(entry["math"], shapes)))
        if entry["math"] == "product" and len({"up", "down"} & shapes.keys()) == 1:
            halves += 1
            lacks = lacks or _lacks(keys, algorithm, entry)
        empty += any(0 in s for s in shapes.values())
        problem = problem or unsound(entry["math"], shapes)
    alpha = next((tensors[k.name].elements for k in keys if k.sense.part == "alpha"), 1)
    if alpha > 1:
        problem = problem or f"its alpha holds {alpha:,} numbers instead of one"
    beside = frozenset(k.sense.part for k in keys if not k.sense.algorithm)
    return _Look(tuple(algorithms), halves, lacks, empty, beside, problem)


def _lacks(keys: Sequence[Key], algorithm: str, entry: Mapping[str, Any]) -> str:
    """The ending of the other half of a pair of which a module has one, where the file's spelling is a known one."""
    half = next(k.sense for k in keys if k.sense.algorithm == algorithm and k.sense.part in ("up", "down"))
    spelling: Mapping[str, str] = entry["spellings"][half.spelling] if half.spelling >= 0 else {}
    return spelling.get("down" if half.part == "up" else "up", "")


def _facts(looks: Mapping[str, _Look], conventions: Mapping[str, Any], junk: Sequence[str]) -> dict[str, Any]:
    algorithms: Counter[str] = Counter()
    ranks: Counter[int] = Counter()
    parts: Counter[str] = Counter()
    companions: Counter[str] = Counter()
    changed = alphas = halves = empty = 0
    half, torn = "", list[str]()
    for module, look in looks.items():
        companions.update(look.companions)
        if not look.algorithms:
            continue
        changed += 1
        parts[conventions[module].part] += 1
        scaled = False
        for algorithm, rank, _ in look.algorithms:
            algorithms[algorithm] += 1
            if rank is not None:
                ranks[rank] += 1
                scaled = True
        halves += look.halves
        half = half or (f"{module}{look.lacks}" if look.halves else "")
        empty += look.empty
        if look.problem:
            torn.append(f"{module}: {look.problem}")
        alphas += scaled and "alpha" in look.companions
    scaled_modules = sum(ranks.values())
    first = algorithms.most_common(1)[0][0] if algorithms else ""
    return {
        "algorithm": first,
        "algorithms": dict(algorithms.most_common()),
        "ranks": sorted(ranks),
        "alpha": "all" if alphas and alphas >= scaled_modules else "some" if alphas else "none",
        "dora": companions["dora"] > 0,
        "dora_peft": companions["dora_peft"],
        "modules": changed,
        "trains": dict(parts.most_common()),
        "conventions": dict(Counter(c.layout for c in conventions.values()).most_common()),
        "halves": halves,
        **({"first_half": half} if halves else {}),
        **({"torn": len(torn), "first_torn": torn[0]} if torn else {}),
        "empty": empty,
        "unknown_keys": len(junk),
    }


def _rank(algorithm: Mapping[str, Any], shapes: Mapping[str, Shape]) -> int | None:
    if not algorithm.get("rank"):
        return None
    part, axis = algorithm["rank"]
    for name in (part, part.replace("2", "1")):
        shape = shapes.get(name)
        if shape is not None and len(shape) > axis:
            return int(shape[axis])
    return None


def _made(
    looks: Mapping[str, _Look],
    conventions: Mapping[str, Any],
    spelled: Spellings,
    header: Header,
    knowledge: Knowledge,
) -> Made:
    aliases = spelled.table.get("aliases") or ()
    rows: list[tuple[str, Size]] = []
    for module, look in looks.items():
        convention = conventions[module]
        if convention.part != "model" or not look.algorithms:
            continue
        size = look.algorithms[0][2]
        path = module[len(convention.prefix) :]
        for old, new in () if convention.joined else aliases:
            path = path.replace(old, new)
        rows.append((path, size))
    fields = knowledge.adapters("spellings").get("metadata") or ()
    return made_for(rows, knowledge.targets(), header.metadata, fields)


def _base_facts(made: Made, header: Header) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "targets": list(made.families),
        "targets_sure": made.sure,
        "targets_possible": list(made.possible),
        "targets_share": round(made.share, 3),
    }
    if made.claims:
        facts["claims"] = dict(made.claims)
    if made.contradicts:
        facts["claim_refuted"] = made.contradicts
    for key in ("ss_sd_model_name", "ss_output_name"):
        value = metadata_value(header, key)
        if isinstance(value, str) and value:
            facts[key] = value[:200]
    return facts


def _layout(conventions: Mapping[str, Any]) -> str:
    """The convention of the modules that belong to the model; those of encoders follow it."""
    model = {c.layout for c in conventions.values() if c.part == "model"}
    told = model or {c.layout for c in conventions.values()}
    return next(iter(told)) if len(told) == 1 else "mixed"


def _groups(modules: Mapping[str, Sequence[Key]], conventions: Mapping[str, Any]) -> dict[str, int]:
    """Tensors by what they train: the first part of the module's path, or the text encoder."""
    counted: Counter[str] = Counter()
    for module, keys in modules.items():
        convention = conventions[module]
        path = module[len(convention.prefix) :]
        if convention.part != "model":
            group = "text_encoder" + convention.part[2:]
        elif convention.joined:
            number = _NUMBER.search(path)
            group = path[: number.start()] if number else path
        else:
            group = path.partition(".")[0]
        counted[group] += len(keys)
    return dict(sorted(counted.items(), key=lambda row: (-row[1], row[0])))


def _title(facts: Mapping[str, Any], spelled: Spellings, knowledge: Knowledge) -> str:
    title = spelled.title(str(facts["algorithm"]))
    ranks = facts["ranks"]
    if ranks:
        title += f" of rank {ranks[0]}" if len(ranks) == 1 else f" of ranks {ranks[0]} to {ranks[-1]}"
    named = [str(knowledge.family(f).get("title") or f) for f in facts["targets"] if knowledge.has_family(f)]
    if named:
        title += f" for {' or '.join(named[:_TITLED])}" + (" or another" if len(named) > _TITLED else "")
    return title
