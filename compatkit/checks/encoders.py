"""Subjects of the encoder checks: every encoder against every diffusion model, in every runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compatkit.checks import routing
from compatkit.checks.junctions import junction_fields
from compatkit.checks.loaders import Loader
from compatkit.checks.parts import Part, known_families, of_role, title_of, to_get
from compatkit.checks.slots import Seating, candidates, seat, slot_fields, slots_of, total
from compatkit.checks.subject import Builder, Subject
from compatkit.knowledge.protocol import Rules


def build(builder: Builder) -> None:
    """Add the subjects of kind `encoder` and `set`, and say which checks could not run."""
    diffusions = list(of_role(builder.parts, "diffusion"))
    encoders = list(of_role(builder.parts, "text_encoder"))
    if not diffusions:
        why = "no diffusion model given" if encoders else "no diffusion model and no text encoder given"
        builder.absent(("encoder", "set"), why)
        return
    for diffusion in diffusions:
        _one(builder, diffusion, diffusions)


def _one(builder: Builder, diffusion: Part, diffusions: Sequence[Part]) -> None:
    rules = builder.rules
    near = candidates(diffusion, builder.parts, builder.wiring is not None)
    text = [p for p in near if p.role == "text_encoder"]
    readings = known_families(diffusion.component, rules)
    declared = [f for f in readings if slots_of(rules.family(f)) is not None]
    required = "text_encoder" in builder.required
    if not declared:
        if text:
            why = f"which text encoders {diffusion.fields['name']} takes is not known"
            builder.stuck("encoder", why, blocks=True)
        else:
            builder.absent(("encoder", "set"), "no text encoder given")
        return
    elsewhere = _taken(builder, diffusion, diffusions)
    seatings = [s for f in declared if (s := seat(diffusion, f, near, rules, elsewhere, required))]
    best = builder.seatings[diffusion.index] = min(seatings, key=lambda s: s.faults)
    fields = _diffusion_fields(diffusion, best, seatings, rules)
    for loader in builder.loaders:
        _subjects(builder, diffusion, best, fields, loader)
    _set(builder, diffusion, best, fields, required)


def _taken(builder: Builder, diffusion: Part, diffusions: Sequence[Part]) -> set[int]:
    """Encoders that are the right ones of another diffusion model in the set."""
    taken: set[int] = set()
    for other in diffusions:
        if other is diffusion:
            continue
        for family in known_families(other.component, builder.rules):
            for slot in slots_of(builder.rules.family(family)) or ():
                taken.update(
                    p.index for p in candidates(other, builder.parts, builder.wiring is not None) if slot.takes(p)
                )
    return taken


def _diffusion_fields(diffusion: Part, best: Seating, seatings: Sequence[Seating], rules: Rules) -> dict[str, Any]:
    holds = [s.family for s in seatings if s.faults == best.faults]
    return {
        **diffusion.fields,
        "title": title_of(rules, best.family),
        "reading": best.family,
        "holds_for": holds,
        "other_readings": [s.family for s in seatings if s.family not in holds],
        "needed": [title_of(rules, s.kinds[0]) for s in best.slots if not s.optional],
        "reads": [title_of(rules, s.kinds[0]) for s in best.slots],
    }


def _subjects(builder: Builder, diffusion: Part, seating: Seating, fields: dict[str, Any], loader: Loader) -> None:
    usual = routing.usual_type(seating.card, loader.name)
    fields = {**fields, "clip_type": usual}
    for part in seating.unidentified:
        if part.role == "text_encoder":
            builder.stuck("encoder", f"{part.fields['name']} could not be identified", blocks=True)
    seats = [(i, p, "fills") for i, p in seating.filled.items()] + [
        (i, p, "stands_in") for i, p in seating.stand_ins.items()
    ]
    told: list[dict[str, Any]] = []
    for index, part, stands in seats:
        slot = slot_fields(diffusion, seating, index, builder.rules)
        if part.number("width") is None:
            builder.stuck("encoder", f"the width of {part.fields['name']} is not known", blocks=True)
        elif slot["into"] and slot["total"] is None:
            builder.stuck("encoder", f"{slot['into']} of {diffusion.fields['name']} is not known", blocks=True)
        route, encoder = _routed(builder, seating, index, part, stands, loader, usual)
        values = {
            "encoder": encoder,
            "diffusion": fields,
            "slot": slot,
            "route": route,
            "junction": junction_fields(seating.card, slot["into"], diffusion, slot["total"]),
            "loader": loader.fields(),
        }
        told.append(values)
        builder.add(Subject("encoder", (diffusion.index, part.index), values, loader))
    _led(told)
    for part in seating.surplus:
        values = {
            "encoder": _encoder_fields(part, "surplus", None, loader),
            "diffusion": fields,
            "loader": loader.fields(),
        }
        builder.add(Subject("encoder", (diffusion.index, part.index), values, loader))
    if not seating.given:
        builder.absent(("encoder",), "no text encoder given")


def _led(told: Sequence[dict[str, Any]]) -> None:
    """Encoders of one class have one cause: it is said of the input whose width disagrees, the text's first."""
    together = [v for v in told if v["route"].get("together")]
    for values in together:
        values["route"]["leads"] = False
        values["route"]["beside"] = [v["encoder"]["name"] for v in together if v is not values]
    for values in sorted(together, key=_weight, reverse=True)[:1]:
        values["route"]["leads"] = True


def _weight(values: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    route, slot = values["route"], values["slot"]
    wrong = route["gives"] is not None and slot["total"] is not None and route["gives"] != slot["total"]
    return (values["encoder"]["stands"] == "fills", wrong, slot["into"] != "pooled_dim")


def _encoder_fields(part: Part, stands: str, te_model: str | None, loader: Loader) -> dict[str, Any]:
    return {
        **part.fields,
        "width": part.number("width"),
        "vocab": part.number("vocab"),
        "loaded_as": te_model,
        "stands": stands,
        "embedding": routing.embedding(loader.table, te_model),
        "output_width": part.number("width"),
    }


def _routed(
    builder: Builder, seating: Seating, index: int, part: Part, stands: str, loader: Loader, usual: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the runtime's CLIP type makes of an encoder: the route, and the encoder with its taps."""
    table, slot = loader.table, seating.slots[index]
    helper = loader.for_format(part.component.format)[0].get("id")
    te_model = routing.taken_for(part, loader.name, str(helper) if helper else None)
    encoder = _encoder_fields(part, stands, te_model, loader)
    given = builder.settings.get("clip_type")
    one, several, fallback = routing.types(table)
    # An all-in-one checkpoint is wired by its own model; a runtime without CLIP types by its pipeline.
    if part.bundled or not (one or several):
        encoder["taps"] = slot.taps
        encoder["output_width"] = _times(encoder["width"], slot.taps)
        return {}, encoder
    recognised = given is None or given in one or given in several
    in_force = (given if recognised else fallback) or usual
    loose = [p for p in (*seating.filled.values(), *seating.stand_ins.values()) if not p.bundled]
    # Encoders that are not there, or not recognised, are loaded together with the others all the same.
    count = len(loose) + (0 if builder.wiring else len(seating.missing) + len(seating.open))
    usual_route = _choose(table, te_model, usual, count, usual in several - one)
    files = [p for p in seating.given if not p.bundled] if in_force in several - one else loose
    in_force_route = usual_route
    if given is not None:
        # One file under a type that only the loader of one file has: what is missing is not loaded beside it.
        number = 1 if len(loose) == 1 and in_force in one - several else max(count, len(files))
        in_force_route = _choose(table, te_model, in_force, number, in_force in several - one)
    right = stands == "fills"
    taps = (
        slot.taps
        if right and (given is None or not in_force_route)
        else _taps(in_force_route, slot.taps if right else 1)
    )
    usual_taps = slot.taps if right else _taps(usual_route, 1)
    encoder["taps"] = taps
    encoder["output_width"] = _output(encoder["width"], taps, in_force_route, files, slot.join == "concat")
    route = {
        "known": in_force_route is not None,
        "given": given,
        "usual": usual,
        "recognised": recognised,
        "fallback": fallback,
        "cls": in_force_route.cls if in_force_route else None,
        "usual_class": usual_route.cls if usual_route else None,
        "usual_width": _times(encoder["width"], usual_taps),
        "vocab": _vocab(table, in_force_route, te_model),
        "usual_vocab": _vocab(table, usual_route, te_model),
        "parts": list(in_force_route.parts) if in_force_route else [],
        "together": bool(in_force_route and in_force_route.together),
        "gives": dict(in_force_route.gives).get(str(slot.into)) if in_force_route else None,
        "checked": part.component.format != "gguf",
    }
    return route, encoder


def _choose(
    table: Mapping[str, Any], te_model: str | None, clip_type: str | None, count: int, several_only: bool
) -> routing.Route | None:
    if count > 1 or several_only:
        return routing.together(table, clip_type, count)
    return routing.single(table, te_model, clip_type)


def _taps(route: routing.Route | None, otherwise: int) -> int:
    return route.taps if route and route.taps else otherwise


def _times(width: int | None, taps: int) -> int | None:
    return width * taps if width is not None else None


def _output(
    width: int | None, taps: int, route: routing.Route | None, files: Sequence[Part], share: bool
) -> int | None:
    """Hidden size x taps. A class that joins files along the features gives their sum, unless a share is asked."""
    if route and route.concat and not share and len(files) > 1:
        widths = [p.number("width") for p in files]
        return sum(w for w in widths if w is not None) if all(w is not None for w in widths) else None
    return _times(width, taps)


def _vocab(table: Mapping[str, Any], route: routing.Route | None, te_model: str | None) -> int | None:
    if route is None:
        return None
    return routing.vocab_in(table, route.cls, te_model) if route.together else route.vocab


def _set(builder: Builder, diffusion: Part, seating: Seating, fields: dict[str, Any], required: bool) -> None:
    if seating.open:
        names = ", ".join(p.fields["name"] for p in seating.unidentified)
        titles = ", ".join(title_of(builder.rules, seating.slots[i].kinds[0]) for i in seating.open)
        builder.stuck("set", f"{titles}: {names} may hold it, but was not identified", blocks=True)
    if not seating.given and not required:
        builder.absent(("set",), "no text encoder given")
        return
    missing = [seating.slots[i] for i in seating.missing]
    # A model may run with any of its encoders, but not with none.
    any_of = required and not seating.given and bool(seating.slots) and all(s.optional for s in seating.slots)
    missing = seating.slots if any_of else missing
    usual = routing.usual_type(seating.card, builder.loaders[0].name) if builder.loaders else None
    alone, takes = _alone(diffusion, seating)
    values = {
        "diffusion": {**fields, "clip_type": usual},
        "junction": junction_fields(seating.card, "context_dim", diffusion, takes) if takes else {},
        "set": {
            "alone": alone,
            "takes": takes,
            "encoders": len(seating.given),
            "missing": [title_of(builder.rules, s.kinds[0]) for s in missing],
            "missing_kinds": [s.kinds[0] for s in missing],
            "to_get": [to_get(builder.rules, s.kinds[0]) for s in missing],
            "given": [p.fields["name"] for p in seating.given],
            "required": required,
            "any_of": any_of,
        },
    }
    indexes = (diffusion.index, *(p.index for p in seating.given))
    builder.add(Subject("set", indexes, values))


def _alone(diffusion: Part, seating: Seating) -> tuple[int | None, int | None]:
    """Width of the one encoder given, and what the model's text input takes, where that is not joined."""
    given = [i for i, p in seating.filled.items() if not p.bundled]
    inputs = [i for i, slot in enumerate(seating.slots) if slot.into == "context_dim"]
    if len(given) != 1 or len(seating.given) != 1 or len(inputs) != 1 or given[0] in inputs:
        return None, None
    return seating.filled[given[0]].number("width"), total(diffusion, seating, inputs[0])
