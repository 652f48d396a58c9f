"""Brings the catalogues up to date: `python -m reports.locale.update` (needs Babel).

Messages come from the templates of reports, from Python's labels, and from what the core rules say (`{1}`, `{2}` are
the places of a rule's text in its order). What is new is added without a translation and printed; what is gone is kept
as obsolete at the end, as gettext does.
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

from compatkit.knowledge.store import load
from compatkit.render.catalogue import folder
from compatkit.render.incident import labels
from compatkit.render.templating import environment
from compatkit.render.translate import CORE, texts

#: No dates and no names: a catalogue changes when a message does.
HEAD = """\
# What reports and the core rules say. {{1}}, {{2}} are the places of a rule's text, in its order.
# `python -m reports.locale.update` adds what is new.
msgid ""
msgstr "Language: {language}\\nContent-Type: text/plain; charset=UTF-8\\n"

"""
TEMPLATES = ("report.md.j2", "report.html.j2", "diff.md.j2")


def frame() -> dict[str, str]:
    """Message -> where it stands, of the frame of reports."""
    out = dict.fromkeys(labels(), "compatkit/render/incident.py")
    for name in TEMPLATES:
        text = (folder("templates") / name).read_text(encoding="utf-8")
        for _, _, message in environment(False).extract_translations(text):  # type: ignore[attr-defined]
            if message:
                out.setdefault(str(message), name)
    return out


def core() -> dict[str, str]:
    """Message -> the rule that says it, of the core rules."""
    out: dict[str, str] = {}
    for rule in load().checks():
        if str(rule["id"]).partition("/")[0] in CORE:
            for text in texts(rule):
                out.setdefault(text, str(rule["id"]))
    return out


def main() -> int:
    """Update every catalogue; exit 1 if one lacks a translation."""
    from babel.messages.catalog import Catalog
    from babel.messages.pofile import read_po, write_po

    template = Catalog(project="compatkit", fuzzy=False)
    for message, where in (frame() | core()).items():
        template.add(message, auto_comments=[where])
    lacking = 0
    for path in sorted(Path(__file__).parent.glob("*/LC_MESSAGES/compatkit.po")):
        with path.open("rb") as f:
            catalogue = read_po(f, locale=path.parent.parent.name)
        for message in catalogue:  # words that stand in the places of sentences come from no template
            if message.id and message.string and template.get(message.id) is None:
                template.add(message.id, auto_comments=["a word or sentence made in Python"])
        catalogue.update(template, no_fuzzy_matching=True)
        written = BytesIO()
        write_po(written, catalogue, width=120, omit_header=True, include_previous=False)
        head = HEAD.format(language=path.parent.parent.name)
        path.write_text(head + written.getvalue().decode("utf-8").strip("\n") + "\n", encoding="utf-8")
        missing = [m.id for m in catalogue if m.id and not m.string]
        lacking += len(missing)
        for text in missing:
            sys.stdout.write(f"{path.parent.parent.name}: {text}\n")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
