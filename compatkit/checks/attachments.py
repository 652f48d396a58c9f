"""Subjects of the checks on other adapters: ControlNet, IP-Adapter and their like, against base and image encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compatkit.checks.adapters import kinship
from compatkit.checks.junctions import junction_fields
from compatkit.checks.parts import Part, label, of_role, title_of, to_get
from compatkit.checks.subject import Builder, Subject
from compatkit.knowledge.protocol import Rules

#: Roles that are made for some families of bases and say which (`targets` of their card).
ROLES = (
    "controlnet", "t2i_adapter", "ip_adapter", "style_model", "face_adapter", "motion_module", "gligen", "model_patch",
    "hypernetwork", "embedding", "latent_upscaler",
)  # fmt: skip
#: Among them those that change no weight of the base: not knowing them leaves nothing open.
_LOOSE = frozenset({"embedding"})
#: Kind of subject, role of what gives features, key of the card of what takes them.
SENSES = (("eye", "clip_vision", "image_encoders"), ("ear", "audio_encoder", "audio_encoders"))
#: Widths that both sides know under the same name: the text features, the model's own.
SHARED = ("context_dim", "hidden_size", "model_channels")


def build(builder: Builder) -> None:
    """Add the subjects of kind `attachment` (adapter, base), `eye` and `ear` (what takes image or audio features, what
    gives them)."""
    _bases(builder)
    for kind, role, key in SENSES:
        _senses(builder, kind, role, key)


def _bases(builder: Builder) -> None:
    attached = list(of_role(builder.parts, *ROLES))
    bases = list(of_role(builder.parts, "diffusion"))
    if not attached or not bases:
        builder.absent(("attachment",), "no diffusion model given" if attached else "no such adapter given")
        return
    for part in attached:
        targets = [str(f) for f in (part.card.get("targets") or {}).get("families") or ()]
        if not targets:
            why = f"{part.fields['name']}: which bases a {label(part.role)} of this kind fits is not known"
            builder.stuck("attachment", why, blocks=part.role not in _LOOSE)
            continue
        known = [b for b in bases if b.component.family]
        fits = {b.index: kinship(b, targets, builder.rules) for b in known}
        if not known:
            builder.stuck("attachment", f"{bases[0].fields['name']} could not be identified", blocks=True)
        for base in known:
            if fits[base.index] == "no" and set(fits.values()) != {"no"}:
                continue  # it is meant for another base of the set
            _pair(builder, part, base, fits[base.index], targets)


def _pair(builder: Builder, part: Part, base: Part, fits: str, targets: list[str]) -> None:
    name, ours, theirs = _differing(part, base)
    adapter = {**part.fields, "kind": label(part.role), "targets": [title_of(builder.rules, f) for f in targets][:4]}
    pair = {"fits": fits, "shared": name, "adapter_width": ours, "base_width": theirs}
    for loader in builder.loaders:
        values = {"adapter": adapter, "base": base.fields, "pair": pair, "loader": loader.fields()}
        builder.add(Subject("attachment", (base.index, part.index), values, loader))


def _differing(part: Part, base: Part) -> tuple[str, int | None, int | None]:
    """The first width both know that differs; nothing where all they share agree.

    A model that projects what its encoder gives says `inner_…` for the width that its own layers, and adapters, have.
    """
    for name in SHARED:
        ours, theirs = part.number(name), base.number(f"inner_{name}") or base.number(name)
        if ours is not None and theirs is not None and ours != theirs:
            return name, ours, theirs
    return "", None, None


def _senses(builder: Builder, sense: str, role: str, key: str) -> None:
    """What takes image (audio) features against every image (audio) encoder of the set; one that fits is enough."""
    eyes = list(of_role(builder.parts, role))
    takers = [(p, e) for p in builder.parts for e in p.card.get(key) or () if e.get("into")]
    if not eyes or not takers:
        what = "image" if sense == "eye" else "audio"
        builder.absent((sense,), f"no {what} encoder given" if takers else f"nothing in the set takes {what} features")
        return
    for part, entry in takers:
        wanted = part.number(str(entry["into"]))
        if wanted is None:
            continue
        if strange := [e.fields["name"] for e in eyes if e.component.family is None]:
            builder.stuck(sense, f"{strange[0]} could not be identified", blocks=True)
        junction = junction_fields(part.card, str(entry["into"]), part, wanted)
        read = read_output(entry, junction)
        found = [(eye, gives(eye, entry, wanted, builder.rules, read)) for eye in eyes if eye.component.family]
        # One that fits is enough, and what the check then looked at.
        fitting = [(eye, (fits, wanted, kind)) for eye, (fits, _, kind) in found if fits]
        for eye, (_, width, kind) in fitting or found:
            tokens = _fact(eye, "positions", builder.rules) if kind == "hidden" else 1
            taker = {
                **part.fields,
                "width": wanted,
                "kind": to_get(builder.rules, made_with(entry, wanted, builder.rules, read)),
                "adapts": str(junction.get("module")).partition(".")[2] if part.role == "ip_adapter" else "",
            }
            values = {
                "taker": taker,
                sense: {**eye.fields, "width": width, "output": kind, "tokens": tokens},
                "junction": junction,
            }
            for loader in builder.loaders:
                builder.add(Subject(sense, (part.index, eye.index), {**values, "loader": loader.fields()}, loader))


def read_output(entry: Mapping[str, Any], junction: Mapping[str, Any]) -> str | None:
    """The output of an image encoder that the module of a junction reads, where it is known: hidden or width."""
    return (entry.get("reads") or {}).get(junction.get("module"))


def gives(
    eye: Part, entry: Mapping[str, Any], wanted: int, rules: Rules, read: str | None = None
) -> tuple[bool, int | None, str]:
    """(whether it gives the wanted width, the width it gives, which output); `read` is the output if it is known."""
    kinds = {str(entry["kind"]), *(str(k) for k in entry.get("alternatives") or ())}
    outputs: Mapping[str, str] = eye.card.get("output") or {}
    widths = {name: _fact(eye, symbol, rules) for name, symbol in outputs.items()}
    if read:
        return widths.get(read) == wanted, widths.get(read), read
    if kinds & set(eye.component.families):
        return wanted in widths.values(), widths.get("hidden"), "hidden"
    usual = (rules.family(str(entry["kind"])).get("output") or {}) if rules.has_family(str(entry["kind"])) else {}
    names = sorted(usual, key=lambda name: name != "hidden")  # where both are as wide, the hidden states are read
    read = next((n for n in names if rules.fixed(str(entry["kind"]), str(usual[n])) == wanted), "hidden")
    return widths.get(read) == wanted, widths.get(read), read


def made_with(entry: Mapping[str, Any], wanted: int, rules: Rules, read: str | None) -> str:
    """Of the encoders of an entry the one whose output, if it is known which is read, has the wanted width."""
    kinds = [str(entry["kind"]), *(str(k) for k in entry.get("alternatives") or ())]
    for kind in kinds if read else ():
        symbol = (rules.family(kind).get("output") or {}).get(read) if rules.has_family(kind) else None
        if symbol and _usual(kind, str(symbol), rules) == wanted:
            return kind
    return kinds[0]


def _usual(kind: str, symbol: str, rules: Rules) -> int | None:
    """A symbol's value in a family: the one its header must have, else that of its first example."""
    fixed = rules.fixed(kind, symbol)
    value = fixed if fixed is not None else (rules.grammar(kind).get("example") or {}).get("symbols", {}).get(symbol)
    return value if isinstance(value, int) else None


def _fact(part: Part, symbol: str, rules: Rules) -> int | None:
    """The value of one symbol of a component's grammar, whatever the fact it stands in is called."""
    value = part.number(symbol)
    family = part.component.family
    if value is not None or family is None or not rules.has_family(family):
        return value
    named = rules.grammar(family).get("facts") or {}
    found = (part.number(fact) for fact, meant in named.items() if meant == symbol)
    return next((v for v in found if v is not None), None)
