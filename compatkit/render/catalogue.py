"""Message catalogues: English stands in the templates, other languages in `reports/locale/LANG/LC_MESSAGES/*.po`.

The `.po` files are read as they are: a report takes a hundred messages, and nothing has to be compiled or kept in step.
"""

from __future__ import annotations

import ast
import gettext
from functools import cache
from pathlib import Path

from compatkit.vocabulary import SourceError

_PACKAGE = Path(__file__).resolve().parent.parent


def folder(name: str) -> Path:
    """A folder of `reports/`: in the installed package, or in the checkout."""
    packaged = _PACKAGE / "_data" / "reports" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / "reports" / name


def languages() -> list[str]:
    """What `--lang` takes."""
    found = folder("locale").glob("*/LC_MESSAGES/compatkit.po")
    return ["en", *sorted(p.parent.parent.name for p in found)]


class Catalogue(gettext.NullTranslations):
    """One language. A message that it lacks stays English."""

    def __init__(self, messages: dict[str, str]) -> None:
        super().__init__()
        self.messages = messages

    def gettext(self, message: str) -> str:
        """The message in this language."""
        return self.messages.get(message) or message

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        """Singular and plural are messages of their own."""
        return self.gettext(msgid1 if n == 1 else msgid2)


@cache
def catalogue(language: str) -> Catalogue:
    """The catalogue of a language; empty for English. Raises SourceError for one that does not exist."""
    if language == "en":
        return Catalogue({})
    if language not in languages():
        raise SourceError(f"there is no catalogue for the language {language!r} (there are {', '.join(languages())})")
    path = folder("locale") / language / "LC_MESSAGES" / "compatkit.po"
    return Catalogue(parse(path.read_text(encoding="utf-8")))


def parse(text: str) -> dict[str, str]:
    """msgid -> msgstr of a `.po` text: plain entries, strings over several lines, comments."""
    out: dict[str, str] = {}
    entry = {"msgid": "", "msgstr": ""}
    key = ""
    for line in [*text.splitlines(), 'msgid ""']:
        line = line.strip()
        word, _, rest = line.partition(" ")
        if word in entry:
            if word == "msgid":
                if entry["msgid"]:
                    out[entry["msgid"]] = entry["msgstr"]
                entry = {"msgid": "", "msgstr": ""}
            key, line = word, rest
        if line.startswith('"') and key:
            entry[key] += str(ast.literal_eval(line))
    return out
