"""A rule or a family in words, from what its file says."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compatkit.render.style import LEVEL_COLOUR, Paint, line, safe, text_width

if TYPE_CHECKING:
    from compatkit.checks.diagnosis import Cause
    from compatkit.vocabulary import Finding

#: Causes shown; the JSON holds all.
_SHOWN = 3


def rule_text(rule: Mapping[str, Any], paint: Paint) -> str:
    """What a rule looks at and why, what it says of a set that fails, of what it says nothing, and its condition."""
    out = [f"{paint(rule['id'], 'bold')}  {paint(rule['level'], LEVEL_COLOUR[rule['level']])}  {rule['title']}", ""]
    out += _paragraph(rule.get("why", ""))
    examples = rule.get("examples") or {}
    out += _said(rule, paint)
    for row in (examples.get("pass") or [])[:1]:
        out += ["", paint("It says nothing of", "bold"), *_facts(rule, row)]
    if rule.get("require") is not None:
        out += ["", paint("How it decides", "bold")]
        out += _code("applies when", rule.get("when"))
        out += _code("must hold", rule.get("require"))
        written = str(rule.get("source_file") or "a rule file")
        out.append(f"  written in {written}")
    out += _references(rule.get("references") or rule.get("sources") or [])
    return "\n".join(out) + "\n"


def as_said(rule: Mapping[str, Any]) -> Finding | None:
    """The finding that a rule makes of the first of its examples that fail; `file` rules have no texts of their own."""
    from compatkit.checks.evaluate import finding
    from compatkit.checks.subject import Subject
    from compatkit.knowledge.subjects import SUBJECTS

    examples = (rule.get("examples") or {}).get("fail")
    if not examples or "message" not in rule:
        return None
    kind = str(rule["binds"])
    given = {k: v for k, v in examples[0].items() if k != "mention"}
    values = {**given, **{k: _named(k, given.get(k, {}), kind) for k in (*SUBJECTS.get(kind, {}), *given)}}
    return finding(rule, Subject(kind, (0,), values))


def _said(rule: Mapping[str, Any], paint: Paint) -> Iterator[str]:
    """The finding that a rule makes of one of its own examples, as a report shows it."""
    found = as_said(rule)
    if found is None:
        return
    yield ""
    yield f"{paint('Of a set that fails it says', 'bold')} ({found.level})"
    yield from _indented(found.message)
    for runtime, text in found.predicts.items():
        yield from _indented(f"You would see{'' if runtime == 'any' else f' ({runtime})'}: {text}")
    if found.fix:
        yield from _indented(f"Fix: {found.fix}")


def _named(subject: str, given: Any, kind: str) -> Any:
    """An example's model with a name and a title to read, where it has none of its own."""
    from compatkit.knowledge.subjects import SUBJECTS

    if not isinstance(given, Mapping) or not {"name", "title"} <= set(SUBJECTS.get(kind, {}).get(subject, {})):
        return given
    return {"name": f"{subject}.safetensors", "title": f"this {subject.replace('_', ' ')}", **given}


def _indented(text: str) -> list[str]:
    return textwrap.wrap(line(text, 2000), text_width(), initial_indent="  ", subsequent_indent="    ")


def _facts(rule: Mapping[str, Any], example: Mapping[str, Any]) -> Iterator[str]:
    """An example in words: each fact under what its field means."""
    from compatkit.knowledge.subjects import SUBJECTS

    fields = SUBJECTS.get(str(rule["binds"]), {})
    given = [(subject, k, v) for subject, row in example.items() if isinstance(row, Mapping) for k, v in row.items()]
    for subject, name, value in given:
        says = fields[subject][name].says if name in fields.get(subject, {}) else name
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        shown = {"True": "yes", "False": "no", "None": "not known"}.get(shown, shown)
        yield from _indented(f"{subject.replace('_', ' ')} - {says.split(':')[0]}: {shown}")
    if not given:
        yield "  an ordinary set"


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
    return textwrap.wrap(" ".join(str(text).split()), text_width()) if text else []


def _code(heading: str, expression: Any) -> list[str]:
    return _indented(f"{heading}: {' '.join(str(expression).split())}") if expression not in (None, "", True) else []


def _encoders(encoders: list[Mapping[str, Any]]) -> Iterator[str]:
    for encoder in encoders:
        taps = encoder.get("taps", 1)
        text = f"Text encoder: {encoder['kind']}" + (f", {taps} layers joined" if taps != 1 else "")
        yield text + (" (optional)" if encoder.get("optional") else "")


def _table(heading: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        text = ", ".join(f"{k} {v}" for k, v in value.items())
        yield from textwrap.wrap(f"{heading}: {text}", text_width(), subsequent_indent="  ")


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
        out += [*textwrap.wrap(f"The run: {line(run, 600)}", text_width(), subsequent_indent="  "), ""]
    if not causes:
        out.append("No message that is known. Give more of the log, or check the set: `compatkit check`.")
        return "\n".join(out) + "\n"
    confirmed = [c for c in causes if c.confirmed]
    if checked:
        what = "Nothing found in these files explains it: they may not be the files of that run."
        if confirmed:
            what = f"{confirmed[0].rule} in your files explains it."
        out += [*textwrap.wrap(what, text_width()), ""]
    for number, cause in enumerate(telling(causes)[:_SHOWN], 1):
        sure = "your files confirm it" if cause.confirmed else _likely(cause.score)
        many = f", {cause.lines:,} lines" if cause.lines > 1 else ""
        out.append(f"{number}. {paint(cause.rule, 'bold')}  ({sure}{many})")
        said_line = f"{line(cause.matched, 300)}"
        out += textwrap.wrap(said_line, text_width(), initial_indent="   > ", subsequent_indent="   > ")
        text = cause.message if cause.confirmed else cause.message[:1].upper() + cause.message[1:]
        out += textwrap.wrap(safe(text), text_width(), initial_indent="   ", subsequent_indent="   ")
        if cause.fix:
            out += textwrap.wrap(
                f"Fix: {safe(cause.fix)}", text_width(), initial_indent="   ", subsequent_indent="       "
            )
    return "\n".join(out) + "\n"


def _likely(score: float) -> str:
    """A score in words: it ranks causes, and is no measured probability."""
    return "very likely" if score >= 0.85 else "likely" if score >= 0.6 else "possible"
