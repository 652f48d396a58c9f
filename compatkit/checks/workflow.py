"""Subjects of the workflow checks: how a set is sampled, what its nodes load and want, and whose prompt reaches whom.

Settings that a user gives without a workflow are judged in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compatkit.checks.loaders import accepts
from compatkit.checks.parts import Part, known_families, label, of_role, title_of
from compatkit.checks.subject import Builder, Subject
from compatkit.vocabulary import LoadUse, NodeUse

#: What the wires of a checkpoint loader are called by those who use it.
_WIRES = {"MODEL": "model", "CLIP": "CLIP (text encoder)", "VAE": "VAE", "CLIP_VISION": "CLIP vision"}
_SAMPLING = ("steps", "cfg", "sampler", "scheduler", "shift", "dtype", "latent_node")


def build(builder: Builder) -> None:
    """Add the subjects of kind `run`, `load`, `node` and `prompt`."""
    diffusions = list(of_role(builder.parts, "diffusion"))
    known = [d for d in diffusions if d.component.family]
    given = [k for k in _SAMPLING if k in builder.settings]
    if not known:
        builder.absent(
            ("run", "node"), "no diffusion model was identified" if diffusions else "no diffusion model given"
        )
    elif not given and builder.wiring is None:
        builder.absent(("run",), "no sampler settings given (--set, or a workflow)")
    else:
        for diffusion in known:
            facts = _run(builder, diffusion)
            _unread(builder, facts["diffusion"])
            for loader in builder.loaders:
                values = {**facts, "loader": loader.fields()}
                builder.add(Subject("run", (diffusion.index,), values, loader))
    shows = [n for n in (builder.wiring.nodes if builder.wiring else ()) if n.inputs & set(n.rule.get("sees") or ())]
    _vision(builder, shows[0].label if shows else "")
    if builder.wiring is None:
        builder.absent(("load", "node", "prompt"), "no workflow given")
        return
    _loads(builder)
    for diffusion in known:
        _nodes(builder, diffusion)
        _prompts(builder, diffusion)
    for node in builder.wiring.unclear:
        builder.stuck("load", f"where the model of {node} comes from is not known", blocks=True)


def _run(builder: Builder, diffusion: Part) -> dict[str, Any]:
    wiring, settings = builder.wiring, builder.settings
    cards = [builder.rules.family(f) for f in known_families(diffusion.component, builder.rules)]
    samplings = [c.get("sampling") or {} for c in cards]
    tops = [float(s["cfg"][1]) for s in samplings if isinstance(s.get("cfg"), list)]
    steps = [float(s["steps"][0]) for s in samplings if isinstance(s.get("steps"), list)]
    loras = any(p.role == "lora" for p in builder.parts)
    safe = [d for c in cards for d in (c.get("dtypes") or {}).get("safe") or ()]
    return {
        "run": {
            "node": wiring.sampler.label if wiring else "",
            "steps": _number(settings.get("steps")),
            "cfg": _number(settings.get("cfg")),
            "shift": _number(settings.get("shift")),
            "dtype": str(settings["dtype"]).lower() if "dtype" in settings else None,
            "lora": loras,
            "leftover": bool(wiring and wiring.leftover),
            "decoded": bool(wiring and wiring.decoded),
        },
        "diffusion": {
            **diffusion.fields,
            "cfg_top": max(tops) if tops and len(tops) == len(cards) else None,
            "guidance": next((s["guidance"] for s in samplings if s.get("guidance") is not None), None),
            "fewest_steps": min(steps) if steps and len(steps) == len(cards) else None,
            "safe_dtypes": list(dict.fromkeys(str(d).lower() for d in safe)),
            "dtype_note": next((str(c["dtypes"]["fp16"]) for c in cards if (c.get("dtypes") or {}).get("fp16")), ""),
            "usual_dtype": str(safe[0]).lower() if safe else "",
        },
        "latent": _latent(builder, diffusion),
    }


def _unread(builder: Builder, diffusion: Mapping[str, Any]) -> None:
    """Say which settings are compared with nothing, because what the model wants of them is not known."""
    for setting, known in (("steps", "fewest_steps"), ("cfg", "cfg_top"), ("dtype", "usual_dtype")):
        if setting in builder.settings and diffusion[known] in (None, ""):
            given = f"{setting}={builder.settings[setting]} not read"
            builder.stuck("run", f"which {setting} {diffusion['title']} wants is not known ({given})", blocks=False)


def _latent(builder: Builder, diffusion: Part) -> dict[str, Any]:
    """The empty latent a sampler is given, against what the model works on."""
    wiring = builder.wiring
    own: Mapping[str, Any] = diffusion.card.get("latent") or {}
    node = next((n for n in (wiring.latents if wiring else ()) if n.rule.get("latent")), None)
    named = "" if wiring else str(builder.settings.get("latent_node") or "")
    given: Mapping[str, Any] = node.rule["latent"] if node else _made_by(named, builder) if named else {}
    also = [own, *(own.get("more") or ())]
    return {
        "node": node.cls if node else named,
        "label": node.label if node else named,
        "channels": given.get("channels"),
        "ndim": given.get("ndim"),
        "downscale": given.get("downscale"),
        "wants_channels": own.get("channels") if own.get("space") != "pixel" else None,
        "wants_ndim": own.get("ndim"),
        "wants_downscale": own.get("downscale"),
        "fits": any(given.get("channels") == x.get("channels") and given.get("ndim") == x.get("ndim") for x in also),
    }


def _made_by(node: str, builder: Builder) -> Mapping[str, Any]:
    """The latent that a node of that class makes; empty for one nobody described."""
    made: Mapping[str, Any] = (builder.rules.nodes()["nodes"].get(node) or {}).get("latent") or {}
    if not made:
        builder.stuck("run", f"which latents {node} makes is not known (latent_node={node} not read)", blocks=False)
    return made


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _loads(builder: Builder) -> None:
    wiring = builder.wiring
    assert wiring is not None
    for use in wiring.loads:
        if not use.components:
            continue
        held = [builder.parts[i] for i in use.components]
        if all(p.component.format == "unreadable" for p in held):
            continue
        for loader in builder.loaders:
            values = {"component": held[0].fields, "load": _load(use, held), "loader": loader.fields()}
            builder.add(Subject("load", use.components, values, loader))


def _load(use: LoadUse, held: list[Part]) -> dict[str, Any]:
    formats = use.node.rule.get("formats") or []
    file_format = held[0].fields["format"]
    whole = use.use in ("checkpoint", "pipeline")
    known = all(p.component.family or p.role != "unknown" for p in held)
    return {
        "node": use.node.label,
        "use": use.use,
        "use_label": "whole checkpoint" if whole else label(use.use),
        "holds": [label(p.role) for p in held],
        "titles": list(dict.fromkeys(p.fields["title"] for p in held)),
        "whole": whole,
        "known": known,
        "lacks": [_WIRES.get(k, k) for k in use.lacks],
        "opens": not formats or file_format in formats or file_format == "unreadable",
        "formats": list(formats),
        "text": "CLIP" in use.lacks,
    }


def _nodes(builder: Builder, diffusion: Part) -> None:
    wiring = builder.wiring
    assert wiring is not None
    for node in wiring.nodes:
        for want in node.rule.get("wants") or ():
            needed = want.get("with")
            if needed and not node.inputs & set(needed):
                continue
            values = {"node": _want(node, want, diffusion, builder), "diffusion": diffusion.fields}
            builder.add(Subject("node", (diffusion.index,), values))
            if not values["node"]["fits"]:
                break


def _want(node: NodeUse, want: Mapping[str, Any], diffusion: Part, builder: Builder) -> dict[str, Any]:
    families = known_families(diffusion.component, builder.rules)
    fits = True
    if "families" in want:
        fits = bool(set(families) & set(want["families"]))
    if "not_families" in want:
        fits = fits and not set(families) <= set(want["not_families"])
    if "sampling" in want:
        cards = [builder.rules.family(f) for f in families]
        fits = fits and any((c.get("sampling") or {}).get(want["sampling"]) is not None for c in cards)
    return {
        "label": node.label,
        "fits": fits,
        "level": want["level"],
        "what": want["what"],
        "effect": want.get("effect") or "",
        "instead": want.get("instead") or "",
        "families": [title_of(builder.rules, f) for f in want.get("families") or ()],
    }


def _vision(builder: Builder, node: str) -> None:
    """An encoder that sees: of a GGUF only with a second file beside it, which its loader must accept.

    `node` is the node that shows it a picture, "" where none is known to.
    """
    there = [p for p in builder.parts if p.role == "mmproj"]
    takers = [p for p in of_role(builder.parts, "text_encoder") if (p.card.get("vision") or {}).get("mmproj")]
    if there and not takers:
        why = f"{there[0].fields['name']}: no encoder of the set is known to see through it"
        builder.stuck("vision", why, blocks=any(of_role(builder.parts, "diffusion")))
    if not there and not node:
        builder.absent(("vision",), "no encoder is shown a picture")
    for part in takers:
        wanted = [str(f) for f in part.card["vision"]["mmproj"]]
        if part.component.format != "gguf" or not (node or there):
            continue
        eye = next((p for p in there if set(p.component.families) & set(wanted)), there[0] if there else None)
        for loader in builder.loaders:
            table, version = loader.for_format("gguf")
            kind = str(eye.component.metadata.get("general.type") or "") if eye else ""
            state, since = accepts(table, version, "mmproj", kind) if eye else ("yes", None)
            values = {
                "encoder": part.fields,
                "node": {"label": node},
                "eye": {
                    "there": eye is not None,
                    "name": eye.fields["name"] if eye else "",
                    "title": eye.fields["title"] if eye else "",
                    "fits": eye is not None and bool(set(eye.component.families) & set(wanted)),
                    "kind": kind,
                    "accepted": state,
                    "since": since,
                },
                "loader": loader.fields(),
            }
            indexes = (part.index, eye.index) if eye else (part.index,)
            builder.add(Subject("vision", indexes, values, loader))


def _prompts(builder: Builder, diffusion: Part) -> None:
    """Encoders out of another model's checkpoint: they give what that model takes."""
    wiring = builder.wiring
    assert wiring is not None
    by_source: dict[str, list[int]] = {}
    for i in wiring.own:
        by_source.setdefault(builder.parts[i].component.source, []).append(i)
    for indexes in by_source.values():
        own = wiring.own[indexes[0]]
        takes, gives = diffusion.number("context_dim"), own.facts.get("context_dim")
        kinds = {f for i in indexes for f in builder.parts[i].component.families}
        values = {
            "encoder": builder.parts[indexes[0]].fields,
            "diffusion": diffusion.fields,
            "prompt": {
                "gives": gives if isinstance(gives, int) else None,
                "takes": takes,
                "of": own.title or title_of(builder.rules, own.family),
                "kinds": sorted(kinds),
            },
        }
        builder.add(Subject("prompt", (diffusion.index, *indexes), values))
