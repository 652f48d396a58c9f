"""A rule or a family in words, from what its file says."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compatkit.render.style import LEVEL_COLOUR, Paint, line, safe

if TYPE_CHECKING:
    from compatkit.checks.diagnosis import Cause

_WIDTH = 100
#: Causes shown; the JSON holds all.
_SHOWN = 3


def rule_text(rule: Mapping[str, Any], paint: Paint) -> str:
    """What a rule looks at, why, what it says, one failing and one passing example, and the fix."""
    out = [f"{paint(rule['id'], 'bold')}  {paint(rule['level'], LEVEL_COLOUR[rule['level']])}  {rule['title']}", ""]
    out += _paragraph(rule.get("why", ""))
    if rule.get("require") is not None:
        out += _code("Applies when", rule.get("when"))
        out += _code("Must hold", rule.get("require"))
    for heading, key in (("Says", "message"), ("Fix", "fix")):
        out += _texts(heading, rule.get(key))
    for runtime, text in (rule.get("predicts") or {}).items():
        out += _texts(f"Predicts ({runtime})", text)
    examples = rule.get("examples") or {}
    for kind, heading in (("fail", "Fails"), ("pass", "Passes")):
        rows = examples.get(kind) or []
        if rows:
            out += ["", paint(heading, "bold"), *_example(rows[0])]
    out += _references(rule.get("references") or rule.get("sources") or [])
    return "\n".join(out) + "\n"


def family_text(card: Mapping[str, Any], document: Mapping[str, Any], paint: Paint) -> str:
    """What a family is, what it goes with, where it loads, and the tensors that make it."""
    head = f"{paint(card['id'], 'bold')}  {card.get('title', '')}  ({card['role'].replace('_', ' ')})"
    out = [head]
    if card.get("released"):
        out.append(f"released {card['released']}")
    if card.get("sibling_of"):
        out.append(f"same header as {card['sibling_of']}: shapes cannot tell them apart")
    siblings = card.get("siblings") or {}
    for sibling, note in siblings.items():
        text = note.get("notes", note.get("title", "")) if isinstance(note, Mapping) else note
        out += _paragraph(f"same header as {sibling}: {text}")
    out += _paragraph(_notes(card.get("notes")))
    out += _table("Latent", card.get("latent"))
    out += _encoders(card.get("text_encoders") or [])
    out += _table("Sampling", card.get("sampling"))
    out += _table("Dtypes", card.get("dtypes"))
    for runtime, entry in (card.get("runtimes") or {}).items():
        out += _table(f"Runtime {runtime}", entry)
    out += _table("Told from others by", {k: " or ".join(map(str, v)) for k, v in document["where"].items()})
    layouts = document["layouts"]
    lines = next(iter(layouts.values()))["lines"]
    out += ["", f"Layouts: {', '.join(layouts)}. {len(lines)} lines of grammar; the file is {card['source_file']}."]
    out += _references(card.get("sources") or [])
    return "\n".join(out) + "\n"


def _notes(notes: Any) -> str:
    return " ".join(map(str, notes)) if isinstance(notes, list) else str(notes or "")


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(" ".join(str(text).split()), _WIDTH) if text else []


def _code(heading: str, expression: Any) -> list[str]:
    return [f"{heading}: {' '.join(str(expression).split())}"] if expression not in (None, "", True) else []


def _texts(heading: str, value: Any) -> Iterator[str]:
    if not value:
        return
    yield ""
    yield f"{heading}:"
    for case in value if isinstance(value, list) else [{"text": value}]:
        condition = f"(when {' '.join(str(case['when']).split())}) " if case.get("when") else ""
        yield from textwrap.wrap(
            condition + " ".join(str(case["text"]).split()), _WIDTH, initial_indent="  ", subsequent_indent="  "
        )


def _example(example: Mapping[str, Any]) -> Iterator[str]:
    for subject, fields in example.items():
        if isinstance(fields, Mapping):
            shown = ", ".join(f"{k} {v}" for k, v in fields.items())
            yield from textwrap.wrap(f"{subject}: {shown}", _WIDTH, initial_indent="  ", subsequent_indent="    ")
        else:
            yield f"  {subject}: {fields}"


def _encoders(encoders: list[Mapping[str, Any]]) -> Iterator[str]:
    for encoder in encoders:
        taps = encoder.get("taps", 1)
        text = f"Text encoder: {encoder['kind']}" + (f", {taps} layers joined" if taps != 1 else "")
        yield text + (" (optional)" if encoder.get("optional") else "")


def _table(heading: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        text = ", ".join(f"{k} {v}" for k, v in value.items())
        yield from textwrap.wrap(f"{heading}: {text}", _WIDTH, subsequent_indent="  ")


def _references(references: list[Mapping[str, Any]]) -> Iterator[str]:
    if references:
        yield ""
        yield "Sources:"
        for source in references:
            yield f"  {source.get('what', '')}: {source.get('ref', '')}"


def causes_text(
    causes: Sequence[Cause], paint: Paint, said: Mapping[str, str] | None = None, checked: bool = False
) -> str:
    """The likely causes of a message, best first, and what the log says of the run.

    With files at hand (`checked`), what a finding about them explains stands alone in front.
    """
    from compatkit.checks.diagnosis import telling

    out = []
    if said:
        run = "; ".join(f"{k} {v}" for k, v in said.items())
        out += [*textwrap.wrap(f"The run: {line(run, 600)}", _WIDTH, subsequent_indent="  "), ""]
    if not causes:
        out.append("No message that is known. Give more of the log, or check the set: `compatkit check`.")
        return "\n".join(out) + "\n"
    confirmed = [c for c in causes if c.confirmed]
    if checked:
        what = "Nothing found in these files explains it: they may not be the files of that run."
        if confirmed:
            what = f"{confirmed[0].rule} in your files explains it."
        out += [*textwrap.wrap(what, _WIDTH), ""]
    for number, cause in enumerate(telling(causes)[:_SHOWN], 1):
        sure = "your files confirm it" if cause.confirmed else _likely(cause.score)
        many = f", {cause.lines:,} lines" if cause.lines > 1 else ""
        out.append(f"{number}. {paint(cause.rule, 'bold')}  ({sure}{many})")
        said_line = f"{line(cause.matched, 300)}"
        out += textwrap.wrap(said_line, _WIDTH, initial_indent="   > ", subsequent_indent="   > ")
        text = cause.message if cause.confirmed else cause.message[:1].upper() + cause.message[1:]
        out += textwrap.wrap(safe(text), _WIDTH, initial_indent="   ", subsequent_indent="   ")
        if cause.fix:
            out += textwrap.wrap(f"Fix: {safe(cause.fix)}", _WIDTH, initial_indent="   ", subsequent_indent="       ")
    return "\n".join(out) + "\n"


def _likely(score: float) -> str:
    """A score in words: it ranks causes, and is no measured probability."""
    return "very likely" if score >= 0.85 else "likely" if score >= 0.6 else "possible"
