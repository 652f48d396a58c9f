"""Subjects of the policy checks: what the owner of a stack allows, against what its files are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from compatkit.checks.parts import Part, human
from compatkit.checks.slots import slots_of
from compatkit.checks.subject import Builder, Subject
from compatkit.checks.verdict import has_latent, identified
from compatkit.vocabulary import Component, Policy

_PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
#: llama.cpp's names of mixes (Q5_K_M) for what its tensors are (Q5_K).
_MIX = re.compile(r"(.*q\d_k)_(?:xs|s|m|l|xl)\Z")
_FILE_TYPE = "file type "


def needed_roles(every: Sequence[Part]) -> list[str]:
    """Roles that a set which is meant to be complete must have, by what the diffusion models in it say they need."""
    diffusions = [p for p in every if p.role == "diffusion"]
    out = [] if diffusions or not any(identified(p) for p in every) else ["diffusion"]
    for part in diffusions:
        if slots_of(part.card):  # also where each is optional: with none of them nothing follows the prompt
            out.append("text_encoder")
        if has_latent(part):
            out.append("vae")
    return list(dict.fromkeys(out))


def build(builder: Builder) -> None:
    """Add the subjects of the kinds `storage` and `license` (once for each component) and `budget` (once)."""
    if builder.policy is None:
        return
    for part in builder.parts:
        _storage(builder, builder.policy, part)
        _license(builder, builder.policy, part)
    if builder.policy.size is not None:
        _budget(builder, builder.policy.size)


def _storage(builder: Builder, policy: Policy, part: Part) -> None:
    allowed = policy.quantization.get(part.role, policy.quantization.get("", ()))
    if not allowed:
        return
    if not part.fields["readable"]:
        builder.stuck("storage", f"{part.fields['name']} could not be read", blocks=False)
        return
    names = stored_as(part.component)
    matches = any(_matches(n, a) for n in names for a in allowed)
    values = {"name": names[0], "allowed": list(allowed), "matches": matches}
    builder.add(Subject("storage", (part.index,), {"component": part.fields, "storage": values}))


def _license(builder: Builder, policy: Policy, part: Part) -> None:
    if not policy.licenses:
        return
    name = builder.licenses.get(part.component.source)
    if name is None:
        builder.stuck("license", f"the stack file does not name the licence of {part.fields['name']}", blocks=False)
        return
    matches = any(fnmatchcase(name.casefold(), a.casefold()) for a in policy.licenses)
    values = {"name": name, "allowed": list(policy.licenses), "matches": matches}
    builder.add(Subject("license", (part.index,), {"component": part.fields, "license": values}))


def _budget(builder: Builder, allowed: int) -> None:
    total = sum({p.component.source: p.component.size for p in builder.parts}.values())
    largest = max(builder.parts, key=lambda p: p.component.size)
    values = {
        "total": total,
        "allowed": allowed,
        "total_words": human(total),
        "allowed_words": human(allowed),
        "largest": largest.fields["name"],
        "largest_words": largest.fields["size"],
    }
    builder.add(Subject("budget", (largest.index,), {"budget": values}))


def stored_as(component: Component) -> list[str]:
    """Every name that how a component is stored goes by, the plainest first."""
    q = component.quantization
    main = max(q.dtypes, key=lambda d: q.dtypes[d], default="none")
    if q.scheme == "none" or q.scheme.upper() in _PLAIN:
        return [main if q.scheme == "none" else q.scheme, "none"]
    types = [n.removeprefix(_FILE_TYPE) for n in q.notes if n.startswith(_FILE_TYPE)]
    return [q.scheme, *types]


def _matches(name: str, allowed: str) -> bool:
    name, allowed = name.casefold(), allowed.casefold()
    mix = _MIX.match(allowed)
    return fnmatchcase(name, allowed) or (mix is not None and name == mix[1])
