"""Subjects of the VAE checks: every VAE against every diffusion model, in every runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compatkit.checks.junctions import junction_fields
from compatkit.checks.parts import Part, known_families, of_role, title_of, to_get, vae_of
from compatkit.checks.subject import Builder, Subject
from compatkit.knowledge.protocol import Rules

_PICTURE = 1024
_NAMED = 3


def build(builder: Builder) -> None:
    """Add the subjects of kind `vae`."""
    given = list(of_role(builder.parts, "diffusion"))
    diffusions = [d for d in given if not (d.card.get("latent") or {}).get("unused")]
    vaes = list(of_role(builder.parts, "vae"))
    if not diffusions:
        missing = "no diffusion model that makes latents" if given else "no diffusion model"
        builder.absent(("vae",), f"{missing} given" if vaes else f"{missing} and no VAE given")
        return
    if not vaes:
        builder.absent(("vae",), "no VAE given")
        return
    sides = {p.index: _side(p, builder.rules) for p in (*diffusions, *vaes)}
    pairs = [
        (d, v)
        for d in diffusions
        for v in vaes
        # The VAE inside one checkpoint is not meant for the model of another, unless a workflow wires it so.
        if builder.wiring or not (v.bundled and len(diffusions) > 1 and v.component.source != d.component.source)
    ]
    served = {
        i
        for d, v in pairs
        if set(_meant_for(sides[v.index], sides[d.index], d)["spaces"]) & set(sides[v.index]["spaces"])
        for i in (d.index, v.index)
    }
    for diffusion, vae in pairs:
        ours, theirs = sides[diffusion.index], sides[vae.index]
        # Several sets at once: a model and a VAE that each have their own counterpart are not meant for each other.
        apart = not set(_meant_for(theirs, ours, diffusion)["spaces"]) & set(theirs["spaces"])
        if builder.wiring or not (apart and {diffusion.index, vae.index} <= served):
            _pair(builder, diffusion, vae, ours, theirs)


def _pair(builder: Builder, diffusion: Part, vae: Part, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    if not ours["spaces"] or ours["channels"] is None or ours["ndim"] is None:
        builder.stuck("vae", f"the latent space of {diffusion.fields['name']} is not known", blocks=True)
        return
    if not theirs["spaces"] or theirs["channels"] is None or theirs["ndim"] is None:
        builder.stuck("vae", f"the latent space of {vae.fields['name']} is not known", blocks=True)
        return
    ours = dict(_meant_for(theirs, ours, diffusion))
    common = [s for s in ours["spaces"] if s in theirs["spaces"]]
    _sizes(ours, diffusion)
    right = [vae_of(diffusion.card, s, builder.rules) for s in ours["spaces"]]
    for loader in builder.loaders:
        values = {
            "vae": theirs,
            "diffusion": ours,
            "pair": {
                "common": common,
                "readings": list(dict.fromkeys([*ours["spaces"], *theirs["spaces"]])),
                "right": [title_of(builder.rules, v) for v in right],
                "to_get": [to_get(builder.rules, v) for v in right],
            },
            "junction": junction_fields(vae.card, "latent_in", vae, theirs["channels"]),
            "loader": loader.fields(),
        }
        builder.add(Subject("vae", (diffusion.index, vae.index), values, loader))


def to_complete(builder: Builder) -> list[str]:
    """The VAEs that the diffusion models of a set without one want, with the places where they are published."""
    out = []
    for diffusion in of_role(builder.parts, "diffusion"):
        if not (diffusion.card.get("latent") or {}).get("unused"):
            out += [vae_of(diffusion.card, s, builder.rules) for s in _side(diffusion, builder.rules)["spaces"]]
    return [to_get(builder.rules, v) for v in dict.fromkeys(out) if builder.rules.has_family(v)]


def _side(part: Part, rules: Rules) -> dict[str, Any]:
    """A component's latent: what its header says, else what its family's card says."""
    latent = part.card.get("latent") or {}
    spaces = part.names("latent_space") or _spaces(part, rules)
    titles = [title_of(rules, f) for f in known_families(part.component, rules)[:_NAMED]]
    return {
        **part.fields,
        "title": " or ".join(dict.fromkeys(titles)) or part.fields["title"],
        "spaces": spaces,
        "channels": _first(part.number("latent_channels"), latent.get("channels")),
        "ndim": _first(part.number("latent_ndim"), latent.get("ndim")),
    }


def _meant_for(vae: Mapping[str, Any], ours: dict[str, Any], diffusion: Part) -> dict[str, Any]:
    """The latent of a model that makes several (a film and its sound) which this VAE decodes."""
    for other in (diffusion.card.get("latent") or {}).get("more") or ():
        if other["space"] in vae["spaces"]:
            return {**ours, "spaces": [other["space"]], "channels": other["channels"], "ndim": other["ndim"]}
    return ours


def _spaces(part: Part, rules: Rules) -> list[str]:
    names: list[str] = []
    for family in known_families(part.component, rules):
        latent: Mapping[str, Any] = rules.family(family).get("latent") or {}
        also = latent.get("also") or ()
        also = [also] if isinstance(also, str) else also
        names += [str(s) for s in (latent.get("space"), *also) if s]
    return list(dict.fromkeys(names))


def _first(*values: Any) -> int | None:
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)


def _sizes(side: dict[str, Any], part: Part) -> None:
    """The latent of a 1024 x 1024 picture, as torch prints a size."""
    latent: Mapping[str, Any] = part.card.get("latent") or {}
    downscale = latent.get("downscale")
    n = _PICTURE // downscale if isinstance(downscale, int) and downscale > 0 else _PICTURE // 8
    channels, ndim = side["channels"], side["ndim"]
    flat: Sequence[int] = (1, channels, n, n)
    deep: Sequence[int] = (1, channels, 1, n, n)
    side["latent"] = _size(deep if ndim == 5 else flat)
    side["frame"] = _size(flat)
    side["stretched"] = _size(deep)


def _size(sides: Sequence[int]) -> str:
    return ", ".join(str(s) for s in sides)
