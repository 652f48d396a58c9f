"""What rules say, in another language.

A finding comes as a finished English sentence. The catalogue holds the template it was made from, its places numbered:
`{1} takes {2}`; a sentence that fits a template is said anew with what stood in the places. A sentence that fits none
stays English: nothing is lost, and no translation can change what was found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from msgspec.structs import replace

from compatkit.render.catalogue import Catalogue, catalogue
from compatkit.vocabulary import Finding, Report

_PLACE = re.compile(r"\{\{(.*?)\}\}", re.S)
_NUMBERED = re.compile(r"\{(\d+)\}")
#: Groups of rules whose texts are translated.
CORE = ("encoder", "vae", "lora", "file", "loader", "component", "quant", "adapter")
#: A sentence longer than this is not looked at: what a place may hold is anybody's.
_LONGEST = 4_000
#: Said after the sentence of a rule where a family rests on the user's word.
_AFTER = re.compile(r"^(.*?)((?: \(This rests on your word that .*? is .*?\.\))*)$", re.S)


def numbered(template: str) -> str:
    """A template as the catalogue has it: `{{ a }} takes {{ b }}` -> `{1} takes {2}`; a place again has its number."""
    seen: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"{{{seen.setdefault(' '.join(match[1].split()), len(seen) + 1)}}}"

    return " ".join(_PLACE.sub(number, template).split())


def texts(rule: Mapping[str, Any]) -> list[str]:
    """All that a rule may say to a user, as templates: message and fix in each of their cases."""
    out: list[str] = []
    for key in ("message", "fix"):
        value = rule.get(key) or []
        out += [value] if isinstance(value, str) else [str(case["text"]) for case in value]
    return [t for t in map(numbered, out) if _NUMBERED.sub("", t).strip(" .")]


def translated(report: Report, language: str) -> Report:
    """The same report with what its findings say, and why checks did not run, in a language."""
    if language == "en":
        return report
    say = Sayer(language)
    judged = ", ".join(say.words(r.replace("_", " ")) for r in report.judged)
    headline = report.headline
    if judged and f"({', '.join(r.replace('_', ' ') for r in report.judged)}" in headline:
        headline = headline.replace(", ".join(r.replace("_", " ") for r in report.judged), judged, 1)
    return replace(
        report,
        findings=tuple(say.finding(f) for f in report.findings),
        not_checked=tuple(n._replace(why=say.sentence(n.why)) for n in report.not_checked),
        headline=say.ending(headline),
    )


class Sayer:
    """Says sentences in one language."""

    def __init__(self, language: str) -> None:
        self.catalogue: Catalogue = catalogue(language)
        self.templates = _templates(language)

    def finding(self, finding: Finding) -> Finding:
        """A finding with its message and fix; of rules that are not of the core only sentences known whole."""
        say = self.sentence if finding.rule.partition("/")[0] in CORE else self.whole
        return replace(finding, message=say(finding.message), fix=say(finding.fix))

    def whole(self, text: str) -> str:
        """A sentence without places."""
        return self.catalogue.messages.get(text) or text

    def sentence(self, text: str) -> str:
        """A sentence of a rule; as it is where no template fits."""
        if not text or len(text) > _LONGEST:
            return text
        if text in self.catalogue.messages:
            return self.whole(text)
        match = _AFTER.match(text)
        body, after = (match[1], match[2]) if match else (text, "")
        if after:
            before = self.sentence(body)
            return before + after if before != body else text
        for start, pattern, target in self.templates:
            if body.startswith(start) and (found := pattern.fullmatch(body)):
                values = found.groups()
                told = [self.words(v or "") for v in values]
                return " ".join(_NUMBERED.sub(lambda m, v=told: v[int(m[1]) - 1], target).split())  # type: ignore[misc]
        return text

    def words(self, text: str) -> str:
        """A word that stood in a place, such as the name of a role, or the words before a list."""
        head, dash, rest = text.partition(" - ")
        if dash and (before := self.catalogue.messages.get(f"{head} -")):
            return f"{before} {rest}"
        return self.catalogue.gettext(text) if text else text

    def ending(self, headline: str) -> str:
        """`…; no text encoder given)`."""
        head, mark, rest = headline.partition("; ")
        if not mark:
            return headline
        inner, close, _ = rest.rpartition(")")
        return f"{head}; {self.words(inner)}{close}" if close else headline


def _pattern(source: str) -> str:
    """A pattern for what a template gives. A place between two spaces may be empty: then one space is left."""
    parts = _NUMBERED.split(source)
    pattern, seen = "", set[str]()
    for i, part in enumerate(parts):
        if i % 2 == 0:
            pattern += re.escape(part)
        elif part in seen:
            pattern += f"(?P=p{part})"
        else:
            seen.add(part)
            pattern += f"(?P<p{part}>.*?)"
            if parts[i - 1].endswith(" ") and parts[i + 1].startswith(" "):
                pattern = pattern.removesuffix(f"(?P<p{part}>.*?)") + f"(?:(?P<p{part}>.+?) )??"
                parts[i + 1] = parts[i + 1][1:]
    return pattern


@cache
def _templates(language: str) -> Sequence[tuple[str, re.Pattern[str], str]]:
    """(text before the first place, pattern of the whole, the sentence in the language), the most telling first."""
    out = []
    for source, target in catalogue(language).messages.items():
        if not _NUMBERED.search(source) or not target:
            continue
        literal = len(_NUMBERED.sub("", source))
        start = source.partition("{")[0]
        out.append((literal, start, re.compile(_pattern(source), re.S), target))
    out.sort(key=lambda row: -row[0])
    return [(start, pattern, target) for _, start, pattern, target in out]
