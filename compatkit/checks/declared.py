"""Subjects of the folder checks: what a diffusers folder's configs say of a part against what its tensors are."""

from __future__ import annotations

from typing import Any

from compatkit.checks.parts import Part
from compatkit.checks.subject import Builder, Subject

#: Encoders are left out: transformers loads one set of tensors into several classes.
_JUDGED = ("diffusion", "vae", "controlnet", "unknown")


def build(builder: Builder) -> None:
    """Add the subjects of kind `declared`."""
    pipelines = builder.rules.table("pipelines") or {}
    for part in builder.parts:
        declared = part.component.declared
        if not declared or part.role not in _JUDGED:
            continue
        takes = (pipelines.get(declared.get("pipeline", "")) or {}).get(declared.get("part", ""), [])
        values = {
            "component": part.fields,
            "declared": {
                "part": declared.get("part", ""),
                "pipeline": declared.get("pipeline", ""),
                "cls": declared.get("class", ""),
                "config": declared.get("config_class", ""),
                "takes": takes if isinstance(takes, list) else [takes],
                "tensors": _class_of(part),
            },
        }
        builder.add(Subject("declared", (part.index,), values))


def _class_of(part: Part) -> Any:
    """The class diffusers has for these tensors; None where the card names none."""
    entry = (part.card.get("runtimes") or {}).get("diffusers") or {}
    return entry.get("class")
