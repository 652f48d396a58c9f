"""Where each value of a TOML document stands, which `tomllib` does not say.

The document is parsed by `tomllib`; this walks a text that is known to be valid and only keeps count of lines.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any

#: Keys and list indexes that lead to a value.
Where = tuple[str | int, ...]

_SPACE = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BLANK = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_STRING = re.compile(
    r'"{3}(?:[^\\]|\\.)*?"{3,5}(?!")' + r"|'{3}.*?'{3,5}(?!')" + r'|"(?:[^"\\\n]|\\.)*"' + r"|'[^'\n]*'", re.DOTALL
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


def lines(text: str) -> dict[Where, int]:
    """Line (from 1) of every table, key and list entry of a valid document."""
    return _Walk(text).run()


class _Walk:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[Where, int] = {}
        self.counts: dict[Where, int] = {}
        self._line, self._counted = 1, 0

    def run(self) -> dict[Where, int]:
        table: Where = ()
        while self._skip() < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
        return self.found

    def _note(self, where: Where) -> None:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        self.found.setdefault(where, self._line)

    def _skip(self, pattern: re.Pattern[str] = _SPACE) -> int:
        match = pattern.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        return self.at

    def _keys(self) -> tuple[str, ...]:
        out = []
        while match := _KEY.match(self.text, self._skip(_BLANK)):
            self.at = match.end()
            out.append(_bare(match[0]))
            if self._skip(_BLANK) >= len(self.text) or self.text[self.at] != ".":
                break
            self.at += 1
        return tuple(out)

    def _header(self) -> Where:
        start = self.at
        several = self.text.startswith("[[", start)
        self.at += 2 if several else 1
        keys = self._keys()
        end = self.at + (2 if several else 1)
        where = self._resolved(keys[:-1]) + keys[-1:]
        if several:
            number = self.counts.get(where, 0)
            self.counts[where] = number + 1
            where = (*where, number)
        else:
            where = self._resolved(keys)
        self.at = start
        self._note(where)
        self.at = end
        return where

    def _resolved(self, keys: tuple[str, ...]) -> Where:
        """A dotted name with the number of the latest entry put in wherever it leads through a list of tables."""
        where: Where = ()
        for key in keys:
            where = (*where, key)
            if where in self.counts:
                where = (*where, self.counts[where] - 1)
        return where

    def _pair(self, table: Where) -> None:
        start = self.at
        where = table + self._keys()
        if self.at == start:  # not valid TOML after all: never stand still
            self.at += 1
            return
        after, self.at = self.at + 1, start
        self._note(where)
        self.at = after
        self._skip(_BLANK)
        self._value(where)

    def _value(self, where: Where) -> None:
        opening = self.text[self.at : self.at + 1]
        if opening == "[":
            self._list(where)
        elif opening == "{":
            self.at += 1
            while self._skip() < len(self.text) and self.text[self.at] != "}":
                if self.text[self.at] == ",":
                    self.at += 1
                    continue
                self._pair(where)
            self.at += 1
        else:
            match = _STRING.match(self.text, self.at) or _SCALAR.match(self.text, self.at)
            self.at = match.end() if match else self.at + 1

    def _list(self, where: Where) -> None:
        self.at += 1
        number = 0
        while self._skip() < len(self.text) and self.text[self.at] != "]":
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self._note((*where, number))
            self._value((*where, number))
            number += 1
        self.at += 1


def _bare(key: str) -> str:
    if key[0] not in "\"'":
        return key
    parsed: Mapping[str, Any] = tomllib.loads(f"k={key}")
    return str(parsed["k"])
