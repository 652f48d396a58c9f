"""Writes a first `stack.toml` for files that were identified."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from compatkit.stacks.lockfile import written
from compatkit.stacks.stackfile import FILE_ROLES
from compatkit.vocabulary import Component


def entry_role(components: Sequence[Component], folder: bool) -> str | None:
    """The key of [files] that one source belongs under; None if it is not known what it is."""
    known = [c for c in components if c.role != "unknown"]
    if not known:
        return None
    if folder and len(components) > 1:
        return "pipeline"
    return "checkpoint" if len(known) > 1 else known[0].role


def text(
    sources: Sequence[tuple[str, str, Sequence[Component]]],
    titles: Mapping[str, str],
    folder: str,
    strengths: Mapping[str, tuple[float | None, float | None]] | None = None,
    settings: Mapping[str, str] | None = None,
) -> str:
    """A stack file. `sources` are (role, source, components); `folder` is where the stack file will lie.

    `strengths` are those of LoRAs on model and text encoder, by source; `settings` become its table of that name.
    """
    groups: dict[str, list[str]] = {}
    notes: dict[str, list[str]] = {}
    for role, source, components in sources:
        groups.setdefault(role, []).append(source if role == "lora" else written(source, folder))
        named = [" or ".join(titles.get(f, f) for f in c.families) for c in components if c.family]
        notes.setdefault(role, []).append(_note(", ".join(dict.fromkeys(named))))
    out = ["[files]"]
    for role in sorted((r for r in groups if r != "lora"), key=FILE_ROLES.index):
        if len(groups[role]) == 1:
            out.append(f"{role} = {_quoted(groups[role][0])}{notes[role][0]}")
        else:
            out.append(f"{role} = [")
            out += [f"  {_quoted(s)},{n}" for s, n in zip(groups[role], notes[role], strict=True)]
            out.append("]")
    for source in groups.get("lora", ()):
        out += ["", "[[lora]]", f"source = {_quoted(written(source, folder))}"]
        model, clip = (strengths or {}).get(source, (1.0, None))
        out.append(f"strength = {model if model is not None else 1.0}")
        out += [f"strength_clip = {clip}"] if clip is not None and clip != model else []
    if settings:
        out += ["", "[settings]", *(f"{key} = {_value(value)}" for key, value in settings.items())]
    return "\n".join(out) + "\n"


def _quoted(value: str) -> str:
    """A TOML basic string: JSON's escapes are a part of TOML's, but for the two bytes that JSON may leave bare."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: str) -> str:
    """A setting as TOML: a number stays one."""
    return value if re.fullmatch(r"\d+(?:\.\d+)?", value) else _quoted(value)


def _note(title: str) -> str:
    plain = "".join(c for c in title if c.isprintable())
    return f"  # {plain}" if plain else ""
