"""Subjects of the LoRA checks: every LoRA against every base, in every runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from compatkit.adapters.base import Base, of_component, of_family
from compatkit.adapters.coverage import Coverage, Mismatch, coverage
from compatkit.adapters.encoders import encoder_names
from compatkit.adapters.keys import Spellings, spellings
from compatkit.adapters.routes import knows
from compatkit.adapters.versions import as_of, versions
from compatkit.checks.loaders import Loader, at_least, numbers
from compatkit.checks.parts import Part, of_role, title_of
from compatkit.checks.subject import Builder, Subject
from compatkit.knowledge.protocol import Rules

_SHOWN = 3
_SURE_SHARE = 0.9


def build(builder: Builder) -> None:
    """Add the subjects of kind `adapter`, and the coverage entries of the report."""
    loras = list(of_role(builder.parts, "lora"))
    bases = list(of_role(builder.parts, "diffusion"))
    for lora in loras:
        fields = _adapter_fields(lora, builder)
        for loader in builder.loaders or (None,):
            values = {"adapter": fields, **({"loader": loader.fields()} if loader else {})}
            builder.add(Subject("lora", (lora.index,), values, loader))
    if not loras:
        builder.absent(("lora",), "no LoRA given")
    if not loras or not bases:
        why = "no LoRA given" if not loras else "no diffusion model given"
        builder.absent(("adapter",), why)
        return
    held: dict[int, Base | None] = {}
    for loader in builder.loaders:
        table = builder.rules.adapters(loader.name)
        if table and not held:
            for part in bases:
                base = of_component(part.component, builder.rules)
                held[part.index] = base.known_by(part.card) if base else None
        if not table:
            names = ", ".join(lora.fields["name"] for lora in loras)
            builder.stuck("adapter", f"{names}: which LoRA names {loader.label} reads is not known", blocks=True)
            continue
        for lora in loras:
            _lora(builder, lora, bases, held, loader, table)


def _lora(
    builder: Builder,
    lora: Part,
    bases: Sequence[Part],
    held: Mapping[int, Base | None],
    loader: Loader,
    table: Mapping[str, Any],
) -> None:
    results: list[tuple[Part, Coverage]] = []
    spelled = spellings(builder.rules.adapters("spellings"))
    for part in bases:
        base = held[part.index]
        if base is None:
            builder.stuck("adapter", f"{part.fields['name']} could not be identified", blocks=True)
            continue
        if base.runtime_class(loader.name) is None:
            name, title = lora.fields["name"], part.fields["title"]
            why = f"{loader.label} has no {title}: what it would load of {name} is not known"
            builder.stuck("adapter", why, blocks=True)
            continue
        if not knows(table, base):
            why = f"which names of LoRAs for {part.fields['title']} {loader.label} reads is not known"
            builder.stuck("adapter", why, blocks=True)
            continue
        found = _covered(builder, lora, base, spelled, loader, table)
        results.append((part, found))
        builder.adapters.append(entry(lora, part, loader, found))
    best = max((_rank(c) for _, c in results), default=None)
    for part, found in results:
        if _rank(found) != best and len(results) > 1:
            continue  # it is meant for another base of the set
        base = held[part.index]
        assert base is not None
        shared = _shared(builder, part, loader, found) if len(bases) == 1 else {}
        builder.coverages.append((part, lora, loader, found))
        values = {
            "adapter": _adapter_fields(lora, builder),
            "base": _base_fields(lora, part, builder),
            "fit": {**_fit_fields(builder, lora, part, base, found, spelled, loader, table), **shared},
            "loader": loader.fields(),
        }
        builder.add(Subject("adapter", (part.index, lora.index), values, loader))


def _shared(builder: Builder, part: Part, loader: Loader, found: Coverage) -> dict[str, Any]:
    """Which LoRA before this one changes the most of the same weights, and how many; {} if none does."""
    counts = [
        (len(found.touched & other.touched), lora.fields["name"])
        for base, lora, where, other in builder.coverages
        if base.index == part.index and where is loader
    ]
    most, name = max(counts, default=(0, ""))
    return {"shared": most, "shared_with": name, "touched": len(found.touched)} if most else {}


def _covered(
    builder: Builder,
    lora: Part,
    base: Base,
    spelled: Spellings,
    loader: Loader,
    table: Mapping[str, Any],
    until: str = "",
) -> Coverage:
    """What the loader reads of it, or would as of the version `until`."""
    rules = builder.rules
    table = as_of(table, partial(_since, loader, until))
    encoders: list[Base] = []
    for part in of_role(builder.parts, "text_encoder") if not _model_only(builder, lora) else ():
        family = part.component.family
        if family and (encoder := of_component(part.component, rules) or of_family(family, rules)):
            encoders.append(encoder)
    names, shapes = encoder_names(encoders, table)
    return coverage(lora.component.tensors, spelled, base, table, rules, encoders=names, encoder_shapes=shapes)


def _model_only(builder: Builder, lora: Part) -> bool:
    """Whether a workflow applies a LoRA to the model and to no text encoder."""
    return builder.wiring is not None and lora.index in builder.wiring.model_only


def _since(loader: Loader, until: str, version: str) -> bool:
    own = at_least(loader.version, version, loader.table) != "no"
    return own or (bool(until) and at_least(until, version, loader.table) == "yes")


def _rank(found: Coverage) -> tuple[int, int]:
    return (found.applied - 2 * len(found.mismatches), found.matched)


def entry(lora: Part, base: Part, loader: Loader, found: Coverage) -> dict[str, Any]:
    """One entry of the report's `adapters`."""
    facts = lora.component.facts
    return {
        "component": lora.index,
        "base": base.index,
        "runtime": loader.name,
        "algorithm": facts.get("algorithm"),
        "ranks": list(facts.get("ranks") or ()),
        "keys": found.keys,
        "keys_matched": found.matched,
        "modules": found.modules,
        "modules_matched": found.modules_matched,
        "modules_shape_mismatch": len(found.mismatches),
        "verdict": found.verdict,
        "blocks": found.blocks,
    }


def _adapter_fields(lora: Part, builder: Builder) -> dict[str, Any]:
    facts = lora.component.facts
    claim = facts.get("claim_refuted")
    factor = _lost_alpha(lora)
    odd = next((f"alpha_{k}_first" for k in ("broken", "zero", "far") if f"alpha_{k}" in facts), "")
    return {
        **lora.fields,
        "targets": [title_of(builder.rules, f) for f in facts.get("targets") or ()][:_SHOWN],
        "sure": facts.get("targets_sure", "nothing"),
        "claim": claim,
        "alpha_factor": factor,
        "modules": facts.get("modules", 0),
        "halves": facts.get("halves", 0),
        "first_half": facts.get("first_half", ""),
        "torn": facts.get("torn", 0),
        "first_torn": facts.get("first_torn", ""),
        "empty": facts.get("empty", 0),
        "trained_on": facts.get("ss_sd_model_name", ""),
        "convention": _convention(lora, builder),
        "conventions": [_titles(builder).get(c, c) for c in facts.get("conventions") or ()],
        "rank_claim": _rank_claim(lora),
        "ranks": list(facts.get("ranks") or ()),
        "alpha_broken": facts.get("alpha_broken", 0),
        "alpha_zero": facts.get("alpha_zero", 0),
        "alpha_far": facts.get("alpha_far", 0),
        "first_alpha": facts.get(odd, ""),
        "scales": list(facts.get("alpha_over_rank") or ()),
    }


def _convention(lora: Part, builder: Builder) -> str:
    return str(_titles(builder).get(lora.component.layout, lora.component.layout))


def _titles(builder: Builder) -> Mapping[str, str]:
    return builder.rules.adapters("spellings").get("titles") or {}


def _alpha_apart(lora: Part) -> bool:
    """Whether PEFT's metadata hold an alpha that no tensor has: a conversion makes tensors of it."""
    return "lora_adapter_metadata" in lora.component.metadata and _lost_alpha(lora) is not None


def _rank_claim(lora: Part) -> str | None:
    """The rank that sd-scripts' metadata says where no module has it and it is not said to differ by module."""
    facts, claim = lora.component.facts, lora.component.metadata.get("ss_network_dim")
    ranks = facts.get("ranks") or ()
    if not isinstance(claim, str) or not ranks or facts.get("algorithm") not in ("lora", "loha"):
        return None
    number = _number(claim)
    if claim.strip().lower() in ("dynamic", "none", "") or number in ranks:
        return None
    return claim[:40]


def _lost_alpha(lora: Part) -> float | None:
    """What the training scaled the change by, where no alpha in the tensors says so: alpha / rank by the metadata."""
    facts, metadata = lora.component.facts, lora.component.metadata
    if facts.get("alpha") != "none" or not facts.get("ranks"):
        return None
    alpha = rank = None
    text = metadata.get("lora_adapter_metadata")
    if isinstance(text, str):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            alpha = next((v for k, v in found.items() if k.endswith("lora_alpha")), None)
            rank = next((v for k, v in found.items() if k == "r" or k.endswith(".r")), None)
    if alpha is None or rank is None:
        alpha, rank = metadata.get("ss_network_alpha"), metadata.get("ss_network_dim")
    one, other = _number(alpha), _number(rank)
    if one is None or not other or one == other:
        return None
    return round(one / other, 4)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 < number < 1e6 else None


def _base_fields(lora: Part, base: Part, builder: Builder) -> dict[str, Any]:
    return {**base.fields, "fits": _made_for(lora, base, builder), "siblings": _siblings(base, builder)}


def _siblings(base: Part, builder: Builder) -> list[str]:
    return [title_of(builder.rules, f) for f in base.component.families]


def _made_for(lora: Part, base: Part, builder: Builder) -> str:
    """Whether the adapter was made for this base: yes, kin, possible (it has all the modules), no, unknown."""
    facts = lora.component.facts
    targets = list(facts.get("targets") or ())
    if not targets:
        return "unknown"
    near = kinship(base, targets, builder.rules)
    if near != "no":
        return near
    owners = {builder.rules.owner(f) for f in base.component.families}
    if owners & set(facts.get("targets_possible") or ()):
        return "possible"
    sure = str(facts.get("targets_sure"))
    if sure.startswith("structure") and float(facts.get("targets_share") or 0) >= _SURE_SHARE:
        return "no"
    return "unknown"


def kinship(base: Part, targets: Sequence[str], rules: Rules) -> str:
    """Whether a base is one of these families (yes), of the same kind (kin), or neither (no)."""
    owners = {rules.owner(f) for f in base.component.families}
    wanted = {rules.owner(f) for f in targets}
    if owners & wanted:
        return "yes"
    kin = [set(group) for group in rules.adapters("spellings").get("kin") or ()]
    return "kin" if any(owners & group and wanted & group for group in kin) else "no"


def _fit_fields(
    builder: Builder,
    lora: Part,
    part: Part,
    base: Base,
    found: Coverage,
    spelled: Spellings,
    loader: Loader,
    table: Mapping[str, Any],
) -> dict[str, Any]:
    later = None
    if found.verdict != "full" and loader.version:
        later = _first_since(builder, lora, base, found, spelled, loader, table)
    worst = _telling(found.mismatches)
    encoder_keys = found.reasons["encoder"]
    lost = found.modules - found.modules_matched - _encoder_modules(found, spelled, lora)
    return {
        "verdict": found.verdict,
        "keys": found.keys,
        "matched": found.matched,
        "unmatched": found.keys - found.matched,
        "modules": found.modules,
        "modules_matched": found.modules_matched,
        "modules_lost": max(0, lost),
        "mismatches": len(found.mismatches),
        "problem": worst.problem if worst else "",
        "weight": worst.weight if worst else "",
        "module": worst.module if worst else "",
        "expected": list(worst.expected) if worst else [],
        "made": list(worst.made) if worst and worst.made else [],
        "algorithm": worst.algorithm if worst else "",
        "absent": len(found.absent),
        "first_absent": found.absent[:_SHOWN],
        "names_lost": found.reasons["module"],
        "first_lost": found.examples.get("module", [])[:_SHOWN],
        "endings_lost": found.reasons["ending"],
        "first_ending": found.examples.get("ending", [])[:_SHOWN],
        "junk": found.reasons["junk"],
        "first_junk": found.examples.get("junk", [])[:_SHOWN],
        "encoder_keys": encoder_keys,
        "encoders": any(True for _ in of_role(builder.parts, "text_encoder")),
        "model_only": _model_only(builder, lora),
        "magnitudes": found.ignored["dora_peft"] + found.ignored["dora"],
        "twice": len(found.twice),
        "later": later,
        "refused": found.refused,
        "loads_as": base.runtime_class(loader.name) or "",
        "convert": _conversion(builder, lora, part, base, found, spelled, table),
        "conversion": found.conversion,
    }


def _conversion(
    builder: Builder, lora: Part, part: Part, base: Base, found: Coverage, spelled: Spellings, table: Mapping[str, Any]
) -> str:
    """The `compatkit convert` that helps; "" where nothing is lost by the LoRA's names, or none does."""
    if not (found.reasons["module"] or found.ignored or found.refused or _alpha_apart(lora)):
        return ""
    from compatkit.checks.conversion import command  # the names of every layout: for LoRAs that lose something

    return command(builder.rules, lora, part, base, found, spelled, table, _alpha_apart(lora))


def _encoder_modules(found: Coverage, spelled: Spellings, lora: Part) -> int:
    """Modules of text encoders that no encoder of the set takes."""
    if not found.reasons["encoder"]:
        return 0
    trains = lora.component.facts.get("trains") or {}
    return sum(n for part, n in trains.items() if str(part).startswith("te"))


def _first_since(
    builder: Builder,
    lora: Part,
    base: Base,
    found: Coverage,
    spelled: Spellings,
    loader: Loader,
    table: Mapping[str, Any],
) -> str | None:
    """The first later version that reads more of it."""
    later = [v for v in versions(table) if at_least(loader.version, v, loader.table) == "no"]
    for version in sorted(later, key=lambda v: numbers(v) or ()):
        if _covered(builder, lora, base, spelled, loader, table, version).matched > found.matched:
            return version
    return None


def _telling(mismatches: Sequence[Mismatch]) -> Mismatch | None:
    """The mismatch that says most: one side right and the other wrong, the widest first."""

    def weight(m: Mismatch) -> tuple[bool, int]:
        if not m.made or len(m.expected) < 2 or m.expected[0] is None:
            return (False, 0)
        columns = 1
        for side in m.expected[1:]:
            columns *= side or 1
        return ((m.made[0] == m.expected[0]) != (m.made[1] == columns), m.made[1])

    return max(mismatches, key=weight, default=None)
