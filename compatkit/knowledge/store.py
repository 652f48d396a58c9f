"""Reads the compiled rules: the index at once, a family or a table only when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from msgspec import DecodeError
from msgspec.json import decode

from compatkit.knowledge.sealed import opened

_HERE = Path(__file__).resolve().parent.parent


def rules_root() -> Path:
    """The folder of rules: inside the installed package, or beside it in a checkout."""
    packaged = _HERE / "_data" / "rules"
    return packaged if packaged.is_dir() else _HERE.parent / "rules"


class Knowledge:
    """Everything `rules/` says. Documents are plain JSON values; see `docs/grammar.md` for what they hold."""

    def __init__(self, documents: Mapping[str, Any] | Path) -> None:
        self._from = documents
        self._families: dict[str, Mapping[str, Any]] = {}
        self._tables: Mapping[str, Any] | None = None
        self._apart: dict[str, Any] = {}
        self._targets: dict[str, Any] | None = None
        self._classes: dict[str, Any] | None = None
        self._nodes: dict[str, Any] | None = None
        self._errors: dict[str, Any] | None = None
        self.index: dict[str, Any] = self._read("index.json")

    def _read(self, name: str) -> Any:
        if isinstance(self._from, Path):
            return opened(name, (self._from / name).read_bytes())
        return self._from[name]

    def members(self) -> Mapping[str, Mapping[str, Any]]:
        """Every family id (siblings too) -> {role, abstract | sibling_of}."""
        members: Mapping[str, Mapping[str, Any]] = self.index["families"]
        return members

    def has_family(self, family: str) -> bool:
        """Whether `family` is an id that the rules know."""
        return family in self.index["families"]

    def owner(self, family: str) -> str:
        """The family in whose file this one stands: itself, or the one it is a sibling of."""
        return str(self.index["families"].get(family, {}).get("sibling_of", family))

    def grammar(self, family: str) -> Mapping[str, Any]:
        """The compiled file of a family (of the family it is a sibling of)."""
        owner = self.index["families"][family].get("sibling_of", family)
        document = self._families.get(owner)
        if document is None:
            document = self._families[owner] = self._read(f"families/{owner}.json")
        return document

    def family(self, family: str) -> Mapping[str, Any]:
        """The card of a family: all its file says but tensors. A sibling's overrides are applied.

        Raises:
            KeyError: no such family.
        """
        card: dict[str, Any] = self.grammar(family)["card"]
        if card["id"] == family:
            return card
        own = card["siblings"][family]
        own = own if isinstance(own, dict) else {"notes": own}
        return {**card, "siblings": {}, "title": family, **own, "id": family, "sibling_of": card["id"]}

    def fixed(self, family: str, fact: str) -> int | None:
        """The value a fact always has in this family (from `where`), or has in its example; None if neither tells."""
        if not self.has_family(family):
            return None
        document = self.grammar(family)
        symbol = document["facts"].get(fact, fact)
        if isinstance(symbol, int):
            return symbol
        if not isinstance(symbol, str):
            return None
        allowed = document["where"].get(symbol) or []
        value = allowed[0] if len(allowed) == 1 else (document["example"].get("symbols") or {}).get(symbol)
        return value if isinstance(value, int) else None

    def table(self, name: str) -> Any:
        """One of the other tables: "checks", "runtimes", "packings", … ; an empty list if there is none."""
        if name in ("errors", "known"):  # read to explain a message, never to check a set
            if self._errors is None:
                self._errors = self._read("errors.json")
            return self._errors.get(name, [])
        if self._tables is None:
            self._tables = self._read("tables.json")
        return self._tables.get(name, [])

    def adapters(self, name: str) -> Mapping[str, Any]:
        """One file of `rules/adapters/` by its id; empty if there is none."""
        return self._on_demand(f"adapters-{name}.json")

    def models(self, runtime: str) -> Mapping[str, Mapping[str, Any]]:
        """Family -> what a runtime makes of it (`models` of its file); empty where nobody wrote it down."""
        return self._on_demand(f"models-{runtime}.json")

    def _on_demand(self, name: str) -> Mapping[str, Any]:
        """A document that need not be there."""
        if name not in self._apart:
            try:
                self._apart[name] = self._read(name)
            except (KeyError, FileNotFoundError):
                self._apart[name] = {}
        table: Mapping[str, Any] = self._apart[name]
        return table

    def targets(self) -> Mapping[str, Any]:
        """Which families have a module of some name and size (`targetindex`)."""
        if self._targets is None:
            self._targets = self._read("targets.json")
        return self._targets

    def classes(self) -> Mapping[str, Any]:
        """Libraries' classes (`classfile`): `classes` by name, and `families`: family -> names of its classes."""
        if self._classes is None:
            self._classes = self._read("classes.json")
        return self._classes

    def nodes(self) -> Mapping[str, Any]:
        """What the nodes of a graph editor take, give, load and want (`nodefile`)."""
        if self._nodes is None:
            self._nodes = self._read("nodes.json")
        return self._nodes

    def checks(self) -> Sequence[Mapping[str, Any]]:
        """The parsed entries of `rules/checks/`."""
        checks: Sequence[Mapping[str, Any]] = self.table("checks")
        return checks

    def runtime(self, name: str) -> Mapping[str, Any]:
        """What is known of a runtime. Raises KeyError for one that is not."""
        runtimes: Mapping[str, Mapping[str, Any]] = self.table("runtimes")
        return runtimes[name]

    def packing(self, scheme: str) -> Mapping[str, Any]:
        """The entry of a packing in `rules/packings.yaml`; empty for a scheme without one."""
        entries: Sequence[Mapping[str, Any]] = self.table("packings")
        return next((e for e in entries if e["id"] == scheme), {})


@cache
def load(extra: tuple[Path, ...] = ()) -> Knowledge:
    """The rules of this installation, and of users' folders on top.

    In a checkout the compiled form is rebuilt when a rule file changed; an installed one is never checked (its files do
    not change), so the first run is as fast as the tenth and nothing is written. With `extra` what is compiled is
    kept in the user's cache, by the content of those folders (`kept`).

    Raises:
        RuleFileError: a rule file is refused (from PyYAML's side: only when something is compiled).
    """
    root = rules_root()
    if extra:
        from compatkit.knowledge.kept import compiled_with

        return Knowledge(compiled_with(root, extra))
    compiled = root / ".compiled"
    if root.parent.name == "_data" and (compiled / "manifest.json").is_file():
        return Knowledge(compiled)
    return Knowledge(_fresh(root, compiled))


def _fresh(root: Path, compiled: Path) -> Path | Mapping[str, Any]:
    """The compiled folder, made anew if it is stale; documents in memory where it cannot be written."""
    try:
        manifest = decode((compiled / "manifest.json").read_bytes())
    except (OSError, DecodeError):
        manifest = {}
    from compatkit.knowledge.stamp import FORMAT, stamp

    if manifest == {"format": FORMAT, "stamp": [stamp(root)]}:
        return compiled
    from compatkit.knowledge.compile import compile_documents, compile_tree

    try:
        compile_tree(root, compiled)
    except OSError:
        return compile_documents([root])
    return compiled
