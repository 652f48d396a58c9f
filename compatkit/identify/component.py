"""Turns a solved match into a `Component`: role, facts, quantisation, evidence, what each loader makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from compatkit.identify import metadata, stored
from compatkit.identify.packing import Unpacked
from compatkit.identify.schemes import Reader
from compatkit.identify.solve import Match
from compatkit.identify.values import decide
from compatkit.knowledge.expr import evaluate
from compatkit.knowledge.store import Knowledge
from compatkit.sources.naming import counted, shown
from compatkit.vocabulary import Candidate, Component, FileProblem, Header, ValueRead

_EVIDENCE = 6
_LISTED = 200
#: What is said of a file whose header is whole and lists nothing.
_NO_TENSORS = "the file holds no tensors"


def build(
    header: Header,
    unpacked: Unpacked,
    knowledge: Knowledge,
    equal: list[Match],
    runner_up: Match | None,
    read: Reader | None = None,
) -> Component:
    """The component that `equal` (one match, or several of header-identical families, oldest first) describes."""
    match = equal[0]
    families = _all_families(equal, knowledge)
    card = knowledge.family(families[0])
    own = match.matched.union(match.tolerated) if card.get("fallback") else match.matched
    names = {match.prefix + n for n in own} if match.prefix else own
    in_file = {unpacked.original.get(n, n) for n in names} if unpacked.original else names
    tensors = {n: t for n, t in header.tensors.items() if n in in_file}
    hidden = stored.hidden_elements(unpacked, names, match, knowledge)
    count = stored.parameters(unpacked, names, hidden, match.prefix)
    packed = stored.quantization(header, unpacked, tensors, count, hidden, match.prefix)
    facts = solved_facts(match, families, knowledge)
    if "architecture" in card:
        facts["architecture"] = str(header.metadata.get("general.architecture") or card["architecture"])
    decided: list[ValueRead] = []
    values = knowledge.grammar(match.family).get("values")
    if values and read is not None:
        more, decided = decide(values, match, unpacked, header, read)
        facts.update(more)
    return Component(
        source=header.source,
        format=header.format,
        size=header.size,
        header_bytes=header.header_bytes,
        role=card["role"],
        family=families[0],
        also=tuple(families[1:]),
        layout=_layout(header, match),
        prefix=match.prefix,
        quantization=packed,
        parameters=count,
        key_groups=key_groups(tensors, match.prefix),
        loads_as=stored.only_readable(loads_as(card, match, header), packed, unpacked),
        facts=facts,
        evidence=(*evidence(match, unpacked, knowledge), *(f"{r.tensor} {r.says}" for r in decided if r.says)),
        tensors=tensors,
        metadata=header.metadata,
        runner_up=_candidate(runner_up),
        missing=tuple(match.missing),
        foreign=tuple(match.foreign),
        mismatched=tuple(match.mismatched),
        problems=(*header.problems, *_cut_short(header, match, card, knowledge)),
        title=str(card.get("title", families[0])),
        values_read=(*_markers_read(unpacked, match.prefix), *decided),
    )


def _markers_read(unpacked: Unpacked, prefix: str) -> Iterable[ValueRead]:
    return (ValueRead(n, size, "names a format") for n, size in unpacked.reads.items() if n.startswith(prefix))


def _cut_short(header: Header, match: Match, card: Mapping[str, Any], knowledge: Knowledge) -> list[FileProblem]:
    """A diffusion model with fewer blocks of a kind than any release has: pruned on purpose, or cut off."""
    if card["role"] != "diffusion":
        return []
    out = []
    for symbol, least in knowledge.grammar(match.family).get("depths", {}).items():
        found = match.symbols.get(symbol, least)
        if 0 < found < least:
            out.append(
                FileProblem(
                    "file/fewer-blocks",
                    f"{shown(header.source)} has {found} {symbol.replace('_', ' ')} where {card.get('title')} "
                    f"has {least}",
                    "If it was not pruned on purpose, get the file again from its original release.",
                    {"symbol": symbol, "found": found, "released": least},
                    "info",
                )
            )
    return out


def _layout(header: Header, match: Match) -> str:
    """The layout of the names: `gguf` for a GGUF, unless it was made from diffusers' names, which no loader reads."""
    return "gguf" if header.format == "gguf" and not match.layout.startswith("diffusers") else match.layout


def unknown(
    header: Header,
    unpacked: Unpacked,
    knowledge: Knowledge,
    names: list[str],
    rejected: list[Match],
    role: str | None,
) -> Component:
    """A component for tensors no grammar explains, with the nearest reading and why it was not believed."""
    looked_alike = [m for m in rejected if m.matched or m.refused]
    nearest = min(looked_alike, key=lambda m: _strangeness(m, knowledge), default=None)
    inside = set(names)
    tensors = {n: t for n, t in header.tensors.items() if unpacked.logical(n) in inside}
    count = stored.unmatched_parameters(unpacked, names)
    return Component(
        source=header.source,
        format=header.format,
        size=header.size,
        header_bytes=header.header_bytes,
        role=role or "unknown",
        family=None,
        also=(),
        layout="unknown",
        prefix="",
        quantization=stored.quantization(header, unpacked, tensors, count, {}),
        parameters=count,
        key_groups=key_groups(names),
        loads_as={},
        facts={},
        evidence=tuple(f"{n} {list(unpacked.tensors[n].shape)}" for n in names[:_EVIDENCE] if n in unpacked.tensors),
        tensors=tensors,
        metadata=header.metadata,
        runner_up=_candidate(nearest),
        problems=header.problems,
        reason=_why_unknown(nearest) if names else _NO_TENSORS,
        values_read=tuple(_markers_read(unpacked, "")),
    )


def _strangeness(match: Match, knowledge: Knowledge) -> tuple[bool, bool, int]:
    """How far a rejected reading is: one refused at a glance is farthest, then one as a mere kind of model."""
    kind = bool(knowledge.members()[match.family].get("fallback"))
    return (bool(match.refused and not match.matched), kind, match.distance)


def _why_unknown(nearest: Match | None) -> str:
    if nearest is None:
        return "no known family shares its tensor names"
    if nearest.refused:
        return f"nearest is {nearest.family}, but {nearest.refused}"
    missing, mismatched, foreign = map(len, (nearest.missing, nearest.mismatched, nearest.foreign))
    return (
        f"nearest is {nearest.family}, but {counted(missing, 'tensor')} {_verb(missing, 'is', 'are')} missing, "
        f"{mismatched:,} {_verb(mismatched, 'has another shape', 'have other shapes')} and "
        f"{foreign:,} {_verb(foreign, 'does', 'do')} not belong to it"
    )


def _verb(number: int, one: str, several: str) -> str:
    return one if number == 1 else several


def _candidate(match: Match | None) -> Candidate | None:
    if match is None:
        return None
    return Candidate(
        match.family,
        match.layout,
        match.prefix,
        len(match.matched),
        tuple(match.missing[:_LISTED]),
        tuple(match.foreign[:_LISTED]),
        tuple(match.mismatched[:_LISTED]),
        match.refused,
    )


def _all_families(equal: list[Match], knowledge: Knowledge) -> list[str]:
    """Families of equal matches and their siblings, oldest first, each once."""
    ids: dict[str, str] = {}
    for match in equal:
        card = knowledge.family(match.family)
        ids.setdefault(match.family, str(card.get("released", "9999")))
        if card["id"] == match.family:
            for sibling, own in (card.get("siblings") or {}).items():
                released = own.get("released") if isinstance(own, dict) else None
                ids.setdefault(sibling, str(released or "9999"))
    first = equal[0].family
    return sorted(ids, key=lambda i: (ids[i], i != first, i))


def solved_facts(match: Match, families: list[str], knowledge: Knowledge) -> dict[str, Any]:
    """Symbols under their names, the family's computed facts, options, and the latent space."""
    document = knowledge.grammar(match.family)
    symbols = match.symbols
    facts: dict[str, Any] = {}
    renamed = {e for e in document["facts"].values() if isinstance(e, str)}
    facts.update({k: v for k, v in symbols.items() if k not in renamed})
    flags = {k: int(v) for k, v in match.options.items() if isinstance(v, bool)}
    for name, expression in document["facts"].items():
        try:
            facts[name] = evaluate(expression, {**flags, **symbols})
        except KeyError:
            continue
    facts.update(match.options)
    facts.update(latent_facts([knowledge.family(f) for f in families], {**flags, **symbols}))
    return facts


def latent_facts(cards: Iterable[Mapping[str, Any]], symbols: Mapping[str, int]) -> dict[str, Any]:
    """latent_space (every name the header allows), latent_channels and latent_ndim."""
    from compatkit.knowledge.expr import ExprError, parse

    out: dict[str, Any] = {}
    spaces: list[str] = []
    for card in cards:
        latent = card.get("latent") or {}
        for space in [latent.get("space"), *(latent.get("also") or [])]:
            if space and space not in spaces:
                spaces.append(space)
        for key, name in (("channels", "latent_channels"), ("ndim", "latent_ndim")):
            if name not in out and latent.get(key) is not None:
                try:
                    out[name] = evaluate(parse(latent[key]), symbols)
                except (KeyError, ExprError):
                    continue
    if spaces:
        out["latent_space"] = spaces
    return out


def key_groups(names: Iterable[str], prefix: str = "") -> dict[str, int]:
    """Tensors by first segment under the prefix: most first, whatever their order in the file."""
    n = len(prefix)
    counts = Counter([name[n:].partition(".")[0] for name in names])
    return dict(sorted(counts.items(), key=lambda row: (-row[1], row[0])))


def loads_as(card: Mapping[str, Any], match: Match, header: Header) -> dict[str, str | None]:
    """What each runtime makes of the file as it stands (`runtimes` of the card)."""
    out: dict[str, str | None] = {}
    own = match.layout == "native" or (header.format == "gguf" and match.layout != "gguf")
    clean = not match.missing and not match.mismatched
    runtimes = card.get("runtimes") or {}
    for runtime, entry in runtimes.items():
        if entry is None:
            continue
        helper = runtimes.get(f"{runtime}-gguf") if header.format == "gguf" else None
        entry = {
            **entry,
            **(helper or {}),
        }  # a helper that opens GGUF files for a runtime may make another class of them
        name = entry.get("class") or entry.get("te_model") or entry.get("vae_class")
        for condition, other in (entry.get("classes") or {}).items():
            name = other if _true(condition, match.symbols) else name
        if not name:
            continue
        layouts = entry.get("layouts") or (["native", "gguf"] if runtime != "diffusers" else ["diffusers", "hf"])
        reads = match.layout in layouts or (own and "native" in layouts)
        whole = all(match.options.get(fact) not in (None, False, "none") for fact in entry.get("needs") or ())
        placed = match.prefix in entry.get("prefixes", (match.prefix,)) or not _alone(match.prefix, header)
        told = all(metadata.value(header, key) is not None for key in entry.get("metadata") or ())
        opened = match.layout != "gguf" or header.metadata.get("general.architecture") in _listed(entry.get("arch"))
        out[runtime] = name if reads and clean and whole and placed and told and opened else None
    return out


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _alone(prefix: str, header: Header) -> bool:
    """Whether the file holds nothing but what stands under `prefix`."""
    return all(name.startswith(prefix) for name in header.tensors)


def _true(condition: str, symbols: Mapping[str, int]) -> bool:
    from compatkit.knowledge.expr import parse

    try:
        return bool(evaluate(parse(condition), symbols))
    except KeyError:
        return False


def evidence(match: Match, unpacked: Unpacked, knowledge: Knowledge) -> tuple[str, ...]:
    """The tensors that decided: where the family's fixed sizes and its inputs' widths were read, then telling names."""
    document = knowledge.grammar(match.family)
    bind = document["layouts"][match.layout]["bind"]
    inputs = [e["into"] for e in document["card"].get("text_encoders") or [] if "into" in e]
    names: list[str] = []
    for symbol in [*inputs, *document["where"]]:
        places = [p for p in bind.get(symbol, ()) if p[0] in match.matched]
        if places:
            names.append(max(places, key=lambda p: p[2])[0])
    if len(names) < _EVIDENCE:
        index = knowledge.index
        telling = index["names"]
        names += sorted(n for n in match.matched & telling.keys() if _names(index, telling[n], match))
    return tuple(f"{n} {list(_shape(unpacked, match.prefix + n))}" for n in list(dict.fromkeys(names))[:_EVIDENCE])


def _names(index: Mapping[str, Any], numbers: list[int], match: Match) -> bool:
    return any(index["grammars"][n][0] == match.family and index["grammars"][n][1] == match.layout for n in numbers)


def _shape(unpacked: Unpacked, name: str) -> tuple[int, ...]:
    tensor = unpacked.tensors.get(name)
    return tensor.shape if tensor else ()
