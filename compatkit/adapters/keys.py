"""How adapters spell their tensors: a key is a convention's prefix, a module, and an ending that says what it is to it.

The spellings stand in `rules/adapters/spellings.yaml`; nothing here knows a convention or an algorithm by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

#: PEFT puts the adapter's name, whatever it is, between the letter and `weight`.
_NAMED = re.compile(r"\.(lora_[AB])\.([^.]+)\.weight\Z")
_SEGMENTS = 4
#: Endings are shorter.
_SHORT = 40
_WEAK = frozenset({".weight"})


class Sense(NamedTuple):
    """What an ending says: the algorithm ("" for a companion of any), its part, and which spelling of the algorithm.

    `keep` is what of the ending belongs to the module's name all the same.
    """

    algorithm: str
    part: str
    spelling: int
    decisive: bool
    keep: str = ""


class Key(NamedTuple):
    """One tensor of an adapter: the module as the file spells it, and what the tensor is to it."""

    name: str
    module: str
    ending: str
    sense: Sense


class Prefix(NamedTuple):
    """A convention's beginning of names."""

    prefix: str
    layout: str
    joined: bool
    part: str


class Spellings:
    """The table of `rules/adapters/spellings.yaml`, ready to split names."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.table = table
        self.algorithms: dict[str, Mapping[str, Any]] = {a["id"]: a for a in table.get("algorithms") or ()}
        self.endings: dict[str, Sense] = {}
        #: Endings that any tensor may have: they count beside the ending named here.
        self.weak: dict[str, tuple[str, Sense]] = {}
        for algorithm in self.algorithms.values():
            decisive = bool(algorithm.get("decisive"))
            for number, spelling in enumerate(algorithm["spellings"]):
                keep = str(spelling.get("keep") or "")
                for part, ending in spelling.items():
                    if part == "keep":
                        continue
                    sense = Sense(algorithm["id"], part, number, decisive, keep)
                    if ending in _WEAK:
                        mark = next(e for e in spelling.values() if e != ending)
                        self.weak[ending] = mark, sense
                    else:
                        self.endings.setdefault(ending, sense)
            for part, ending in (algorithm.get("beside") or {}).items():
                self.endings.setdefault(ending, Sense(algorithm["id"], part, -1, False))
        for part, companion in (table.get("companions") or {}).items():
            for ending in companion["endings"]:
                self.endings.setdefault(ending, Sense("", part, -1, False))
        for plain in table.get("plain") or ():
            self.endings.setdefault(plain["ending"], Sense("", "plain", -1, False))
        self.odd = tuple(sorted((e for e in self.endings if not e.startswith(".")), key=len, reverse=True))
        #: What decides a glance: names that end so belong to an adapter and to nothing else.
        self.telling = tuple(e for e, s in self.endings.items() if s.decisive)
        self.beside = tuple(e for e, s in self.endings.items() if not s.decisive)
        self.prefixes = [
            Prefix(p["prefix"], p["layout"], bool(p.get("joined")), str(p.get("part") or "model"))
            for p in table.get("prefixes") or ()
        ]
        self.heads = tuple(p.prefix for p in self.prefixes)
        self._tails: dict[str, tuple[str, Sense]] = {}
        self._last: tuple[Any, tuple[list[Key], list[str]]] | None = None

    def sense(self, name: str) -> tuple[str, Sense] | None:
        """(ending, what it says) of a name; the longest ending counts. None for a tensor of no adapter."""
        tail = name[name.find(".") :]  # of joined names the ending itself: thousands have the same few
        known = self._tails.get(tail)
        if known is not None and not name.endswith(self.odd):
            return known
        found = self._sense(name)
        if found is not None and len(tail) < _SHORT and not name.endswith(self.odd):
            self._tails[tail] = found
        return found

    def _sense(self, name: str) -> tuple[str, Sense] | None:
        end, found = len(name), None
        for _ in range(_SEGMENTS):
            end = name.rfind(".", 0, end)
            if end < 0:
                break
            sense = self.endings.get(name[end:])
            if sense is not None:
                found = name[end:], sense
        vague = found is None or found[1].algorithm == "" or found[1].part in ("bias", "weight")
        if vague and name.endswith(self.odd):
            for ending in self.odd:
                if name.endswith(ending) and (found is None or len(ending) > len(found[0])):
                    return ending, self.endings[ending]
        if found is None and (match := _NAMED.search(name)):
            part = "down" if match[1].endswith("A") else "up"
            return match[0], self.endings[f".{match[1]}.weight"]._replace(part=part, spelling=-2)
        return found

    def keys(self, names: Iterable[str]) -> tuple[list[Key], list[str]]:
        """Every tensor that belongs to an adapter, and the names that say nothing; of one header found once."""
        if self._last is not None and self._last[0] is names:
            return self._last[1]
        found = self._keys(names)
        self._last = names, found
        return found

    def _keys(self, names: Iterable[str]) -> tuple[list[Key], list[str]]:
        keys: list[Key] = []
        junk: list[str] = []
        every = names if isinstance(names, Mapping) else dict.fromkeys(names)
        for name in every:
            found = self.sense(name) or self._weak(name, every)
            if found is None:
                junk.append(name)
            else:
                keys.append(Key(name, name[: -len(found[0])] + found[1].keep, *found))
        return keys, junk

    def _weak(self, name: str, every: Mapping[str, Any]) -> tuple[str, Sense] | None:
        for ending, (mark, sense) in self.weak.items():
            if name.endswith(ending) and name[: -len(ending)] + mark in every:
                return ending, sense
        return None

    def glance(self, names: Collection[str]) -> float:
        """The share of names that an adapter has, found without looking closely; 0 if none is an adapter's alone."""
        hits = sum([name.endswith(self.telling) for name in names])
        if not hits:
            return 0.0
        return (hits + sum([name.endswith(self.beside) for name in names])) / len(names)

    def convention(self, module: str) -> Prefix:
        """The convention of a module's name; one of the bare ones where no known prefix stands before it."""
        if module.startswith(self.heads):
            for prefix in self.prefixes:
                if module.startswith(prefix.prefix):
                    return prefix
        for entry in self.table.get("bare") or ():
            if entry["holds"] in module:
                return Prefix("", entry["layout"], False, "model")
        return Prefix("", "bare", False, "model")

    def whole(self, names: Iterable[str]) -> str:
        """The layout that one of the names shows for the whole file, or ""."""
        marks = [(str(e["ends"]), str(e["layout"])) for e in self.table.get("marks") or ()]
        return next((layout for name in names for end, layout in marks if name.endswith(end)), "")

    def title(self, algorithm: str) -> str:
        """An algorithm's name in words."""
        return str(self.algorithms.get(algorithm, {}).get("title") or algorithm)


_cache: dict[int, Spellings] = {}


def spellings(table: Mapping[str, Any]) -> Spellings:
    """The spellings of a compiled table, made once."""
    found = _cache.get(id(table))
    if found is None or found.table is not table:
        found = _cache[id(table)] = Spellings(table)
    return found
