"""Components as rules see them: plain dicts, with the names a user reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from compatkit.knowledge.protocol import Rules
from compatkit.sources.naming import base_name
from compatkit.vocabulary import Component, Stack

_FIRST = 3
ROLE_LABELS = {
    "diffusion": "diffusion model",
    "text_encoder": "text encoder",
    "vae": "VAE",
    "lora": "LoRA",
    "controlnet": "ControlNet",
    "llm": "language model",
    "unknown": "unidentified file",
}


def label(role: str) -> str:
    """A role in words."""
    return ROLE_LABELS.get(role, role.replace("_", " "))


def file_name(source: str) -> str:
    """The last part of a source, for messages."""
    return base_name(source.rstrip("/\\").replace("\\", "/")) or source


def human(size: float) -> str:
    """A byte count in words: 12.3 GB."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def title_of(rules: Rules, family: str | None) -> str:
    """A family's name in words; its id where the rules have no card."""
    if not family:
        return "unidentified"
    if not rules.has_family(family):
        return family
    return str(rules.family(family).get("title") or family)


def to_get(rules: Rules, family: str) -> str:
    """A family's name in words, and where a file of it is published, if the rules say."""
    published = rules.table("published") or {}
    title = title_of(rules, family)
    if family not in published:
        return title
    file, repository = published[family]
    return f"{title}: {file} of huggingface.co/{repository}"


def vae_of(card: Mapping[str, Any], space: str, rules: Rules) -> str:
    """The VAE to get for a model's latents of this space: the one published for that model, else the space's own."""
    named = (card.get("latent") or {}).get("vae")
    if named and rules.has_family(named) and (rules.family(named).get("latent") or {}).get("space") == space:
        return str(named)
    return f"{space}_vae"


def known_families(component: Component, rules: Rules) -> list[str]:
    """The families of a component that the rules have a card for."""
    return [f for f in component.families if rules.has_family(f)]


class Part(Struct, frozen=True):
    """A component, its place in the report, and what rules see of it."""

    index: int
    component: Component
    fields: dict[str, Any]
    card: Mapping[str, Any]

    @property
    def role(self) -> str:
        """The component's role."""
        return self.component.role

    @property
    def bundled(self) -> bool:
        """Whether it is part of an all-in-one checkpoint."""
        return bool(self.fields["bundled"])

    def fact(self, name: str) -> Any:
        """One of its facts, None if it is not known."""
        return self.component.facts.get(name)

    def number(self, name: str) -> int | None:
        """A fact that is a whole number, else None."""
        value = self.component.facts.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def names(self, name: str) -> list[str]:
        """A fact that is a name or a list of names, as a list."""
        value = self.component.facts.get(name)
        if isinstance(value, str):
            return [value]
        return [str(v) for v in value] if isinstance(value, Sequence) else []


def parts(stack: Stack, rules: Rules) -> list[Part]:
    """Every component of a stack, described."""
    bundled = _bundles(stack)
    roles: dict[str, list[tuple[int, str]]] = {}
    for i, c in enumerate(stack.components):
        roles.setdefault(c.source, []).append((i, c.role))
    return [
        _part(i, c, rules, c.source in bundled, [r for j, r in roles[c.source] if j != i])
        for i, c in enumerate(stack.components)
    ]


def _bundles(stack: Stack) -> set[str]:
    """Sources that are one file with several models, or that a workflow opens as such and takes a part of."""
    count = Counter(c.source for c in stack.components)
    loads = stack.wiring.loads if stack.wiring else ()
    opened = {stack.components[i].source for use in loads if use.use == "checkpoint" for i in use.components}
    return {c.source for c in stack.components if c.prefix and (count[c.source] > 1 or c.source in opened)}


def _part(index: int, c: Component, rules: Rules, bundled: bool, beside: Sequence[str] = ()) -> Part:
    known = known_families(c, rules)
    card: Mapping[str, Any] = rules.family(known[0]) if known else {}
    readable = bool(c.family) or not (c.format == "unreadable" or any(p.level == "error" for p in c.problems))
    fields = {
        "name": file_name(c.source),
        "title": c.title or (str(card.get("title") or c.family) if c.family else label(c.role)),
        "role": c.role,
        "family": c.family,
        "families": list(c.families),
        "format": c.format,
        "layout": c.layout,
        "prefix": c.prefix,
        "scheme": c.quantization.scheme,
        "dtypes": dict(c.quantization.dtypes),
        "architecture": architecture(c),
        "size": human(c.size),
        "parameters": c.parameters,
        "empty": not c.tensors,
        "facts": dict(c.facts),
        "missing": len(c.missing),
        "first_missing": list(c.missing[:_FIRST]),
        "foreign": len(c.foreign),
        "first_foreign": list(c.foreign[:_FIRST]),
        "mismatched": len(c.mismatched),
        "first_mismatched": list(c.mismatched[:_FIRST]),
        "closest": c.runner_up.family if c.runner_up else None,
        "reason": c.reason,
        "problems": [p.rule for p in c.problems],
        "readable": readable,
        "assumed": c.assumed,
        "bundled": bundled,
        "beside": list(beside),
    }
    return Part(index, c, fields, card)


def architecture(component: Component) -> str | None:
    """The architecture string of a GGUF; None for other formats and where it is missing."""
    if component.format != "gguf":
        return None
    value = component.metadata.get("general.architecture")
    return value if isinstance(value, str) else None


def of_role(every: Sequence[Part], *roles: str) -> Iterator[Part]:
    """The parts that play one of these roles."""
    return (p for p in every if p.role in roles)
