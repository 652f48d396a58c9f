"""Writes a first `stack.toml` for files that were identified."""

from __future__ import annotations

import json
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


def text(sources: Sequence[tuple[str, str, Sequence[Component]]], titles: Mapping[str, str], folder: str) -> str:
    """A stack file. `sources` are (role, source, components); `folder` is where the stack file will lie."""
    groups: dict[str, list[str]] = {}
    notes: dict[str, list[str]] = {}
    for role, source, components in sources:
        groups.setdefault(role, []).append(written(source, folder))
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
        out += ["", "[[lora]]", f"source = {_quoted(source)}", "strength = 1.0"]
    return "\n".join(out) + "\n"


def _quoted(value: str) -> str:
    """A TOML basic string: JSON's escapes are a part of TOML's, but for the two bytes that JSON may leave bare."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _note(title: str) -> str:
    plain = "".join(c for c in title if c.isprintable())
    return f"  # {plain}" if plain else ""
