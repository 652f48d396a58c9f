"""The runtimes a set is judged for: which tables they read, in which version."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from compatkit.knowledge.protocol import Rules
from compatkit.vocabulary import Runtime

_NUMBERS = re.compile(r"v?(\d+(?:\.\d+)*)")
_COMMIT = re.compile(r"[0-9a-f]{6,40}\Z")
#: A release that is named by its number and commit.
_BUILD = re.compile(r"master-(\d+)(?:-[0-9a-f]+)?\Z")
#: The runtime of a set whose families name none.
DEFAULT = "comfyui"
#: Names that mean "the newest version there is".
NEWEST = frozenset({"latest", "main", "master", "head", "nightly"})


class Loader(Struct, frozen=True):
    """One runtime: its table, the tables of loaders that open some formats for it, and the versions the user named.

    `named` are the runtimes and helpers that the user named.
    """

    name: str
    table: Mapping[str, Any]
    version: str | None = None
    helpers: tuple[tuple[Mapping[str, Any], str | None], ...] = ()
    named: frozenset[str] = frozenset()

    def for_format(self, file_format: str) -> tuple[Mapping[str, Any], str | None]:
        """The table and version that open files of this format."""
        for table, version in self.helpers:
            if any(file_format in formats for formats in (table.get("formats") or {}).values()):
                return table, version
        return self.table, self.version

    @property
    def label(self) -> str:
        """The runtime and the versions the user named."""
        named = [f"{self.name}@{self.version}" if self.version else ""]
        named += [f"{t['id']}@{v}" for t, v in self.helpers if v]
        return ", ".join(n for n in named if n) or str(self.table.get("title") or self.name)

    def fields(self) -> dict[str, Any]:
        """What rules see of it."""
        return {
            "runtime": self.name,
            "label": self.label,
            "engine": self.table.get("engine", "torch"),
            "version": self.version,
        }


def loaders(wanted: Sequence[Runtime], rules: Rules, usual: Sequence[str] = ()) -> list[Loader]:
    """The runtimes to judge for. A helper (`part_of`) that the user names only fixes its version.

    Without any, the first runtime of `usual` that the rules know, else the default one; if the rules know no runtime at
    all, one about which nothing is known.

    Raises:
        KeyError: a runtime the rules do not know.
    """
    versions: dict[str, str | None] = {}
    names: list[str] = []
    for runtime in wanted:
        table = rules.runtime(runtime.name)
        versions[runtime.name] = runtime.version
        name = str(table.get("part_of") or runtime.name)
        if name not in names:
            names.append(name)
    if not names:
        usual_one = _default(rules, usual)
        if not usual_one:
            return [Loader("any", {})]
        names = [usual_one]
    return [_loader(name, rules, versions) for name in names]


def _default(rules: Rules, usual: Sequence[str]) -> str:
    for name in (*usual, DEFAULT):
        try:
            table = rules.runtime(name)
        except KeyError:
            continue
        return str(table.get("part_of") or name)
    return ""


def _loader(name: str, rules: Rules, versions: Mapping[str, str | None]) -> Loader:
    table = rules.runtime(name)
    helpers = []
    for helper in table.get("helpers") or ():
        try:
            helpers.append((rules.runtime(helper), versions.get(helper)))
        except KeyError:
            continue
    return Loader(name, table, versions.get(name), tuple(helpers), frozenset(versions))


def numbers(version: str) -> tuple[int, ...] | None:
    """`v0.3.75` -> (0, 3, 75); None for a commit or a name."""
    match = _NUMBERS.match(version)
    if not match or _COMMIT.match(version):
        return None
    return tuple(int(n) for n in match[1].split("."))


def at_least(version: str | None, since: str | None, table: Mapping[str, Any]) -> str:
    """Whether `version` is `since` or later: yes, no, unknown (they cannot be put in order). No version given: yes."""
    if not since or version is None or version.lower() in NEWEST:
        return "yes"
    reference = table.get("reference") or {}
    commit = str(reference.get("commit") or "")
    if commit and _COMMIT.match(version) and (commit.startswith(version) or version.startswith(commit)):
        version = str(reference.get("version") or version)
    place = _place(version, table), _place(since, table)
    if place[0] is not None and place[1] is not None:
        return "yes" if place[0] >= place[1] else "no"
    have, need = numbers(version), numbers(since)
    if have is None or need is None:
        return "unknown"
    return "yes" if have >= need else "no"


def known_to(card: Mapping[str, Any], family: str, loader: Loader, rules: Rules) -> Mapping[str, Any]:
    """A diffusion family's card, with what the runtime's own table says of it where the card says nothing.

    A refusal is known of the reference version and of older ones; a later one may have taken the family up.
    """
    runtimes = card.get("runtimes") or {}
    if not loader.table.get("models") or loader.name in runtimes or not card:
        return card
    known = rules.models(loader.name)
    owner = str(card.get("sibling_of"))
    entry = known.get(family) or known.get(owner)
    if not entry and known:
        others = loader.table.get("unlisted") or {}
        entry = {} if {family, owner} & set(others.get("but") or ()) else others
    if not entry or (entry.get("refused") and _newer(loader)):
        return card
    return {**card, "runtimes": {**runtimes, loader.name: entry}}


def _newer(loader: Loader) -> bool:
    """Whether the version asked for is later than the one that the table was made of, or cannot be put in order."""
    reference = str((loader.table.get("reference") or {}).get("version") or "")
    if loader.version is None or not reference:
        return False
    if at_least(loader.version, reference, loader.table) == "no":
        return False
    return not (loader.version.startswith(reference) or reference.startswith(loader.version))


def history(table: Mapping[str, Any], key: str) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Every version the rules know, oldest first, with the list `key` as it stood then."""
    out: list[tuple[Mapping[str, Any], list[str]]] = []
    current: list[str] = []
    for entry in table.get("history") or ():
        current = entry.get(key, current)
        out.append((entry, list(current)))
    return out


def _place(version: str, table: Mapping[str, Any]) -> int | None:
    """Where a version stands in the history: a commit, a date, or the newest."""
    entries = table.get("history") or ()
    if not entries:
        return None
    if version.lower() in NEWEST:
        return len(entries) - 1
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", version):
        before = [i for i, e in enumerate(entries) if str(e.get("date") or "9") <= version]
        return before[-1] if before else None
    build = _BUILD.match(version)
    if build and all("build" in e for e in entries):
        if int(build[1]) > entries[-1]["build"]:
            return len(entries)
        before = [i for i, e in enumerate(entries) if e["build"] <= int(build[1])]
        return before[-1] if before else -1
    for i, entry in enumerate(entries):
        known = str(entry["version"])
        if len(version) >= 6 and (known.startswith(version) or version.startswith(known)):
            return i
    return None


def accepts(table: Mapping[str, Any], version: str | None, key: str, name: str) -> tuple[str, str | None]:
    """Whether a loader accepts an architecture: (yes, no, later or unknown; the version that accepts it first).

    Without a version the reference one counts: `later` is accepted by a later one only.
    """
    versions = history(table, key)
    if not versions:
        return "unknown", None
    since = next((str(e["version"]) for e, names in versions if name in names), None)
    if since is None:
        return "no", None
    asked = version or str((table.get("reference") or {}).get("version") or "latest")
    place = _place(asked, table)
    if place is None:
        return ("yes" if all(name in names for _, names in versions) else "unknown"), since
    if name in versions[place][1]:
        return "yes", since
    return ("no" if version else "later"), since


def accepted(table: Mapping[str, Any], version: str | None, key: str) -> list[str]:
    """The architectures a version accepts."""
    versions = history(table, key)
    if not versions:
        return []
    place = _place(version or str((table.get("reference") or {}).get("version") or "latest"), table)
    return sorted(versions[place if place is not None else -1][1])
