"""The command that would write a LoRA as a runtime reads it, where one would."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from typing import Any

from compatkit.adapters.base import Base
from compatkit.adapters.coverage import Coverage
from compatkit.adapters.keys import Spellings
from compatkit.adapters.speller import Speller
from compatkit.checks.parts import Part
from compatkit.knowledge.protocol import Rules

#: Two ways to write the magnitudes of a DoRA.
_MAGNITUDES = {"dora", "dora_peft"}
#: Changes that stay of their kind when rows are cut or joined.
_CUT = ("product", "hadamard", "full")


def command(
    rules: Rules,
    lora: Part,
    part: Part,
    base: Base,
    found: Coverage,
    spelled: Spellings,
    table: Mapping[str, Any],
    apart: bool,
) -> str:
    """The `compatkit convert` that writes it as this runtime reads it; "" where nothing is lost by its names, or they
    are those of another model, or it would be refused or not be read either. `apart`: its alpha stands in metadata."""
    to = str(table.get("writes") or "")
    curable = (_MAGNITUDES - found.ignored.keys()).intersection(table.get("companions") or ()) and found.ignored
    if not to or not (found.reasons["module"] or curable or found.refused or apart):
        return ""
    style = next(w for w in spelled.table["writes"] if w["id"] == to)
    used = lora.component.facts.get("algorithms") or ()
    whole = all(spelled.algorithms[a]["math"] in _CUT for a in used)  # others are no longer of their kind, once cut
    if not whole or not set(used) <= set(style.get("reads") or used) or found.mismatches or found.twice:
        return ""
    speller = Speller(base, rules, spelled)
    modules = {k.module for k in spelled.keys(lora.component.tensors)[0] if k.sense.algorithm}
    places = [place[0].weight for m in modules if (place := speller.find(m))]
    if len(places) < len(modules) or len(set(places)) < len(places):  # not the base's, or one weight in two spellings
        return ""
    source = lora.component.source
    stem = source.replace("\\", "/").rpartition("/")[2].rpartition(".")[0] or "lora"
    words = ("compatkit", "convert", source, "--to", to, "--base", part.component.source, "-o")
    return " ".join(quote(w) for w in (*words, f"{stem}-{to}.safetensors"))
