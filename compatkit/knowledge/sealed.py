"""Parts of compiled rules that are decoded only when they are asked for: of hundreds of entries a run reads a few."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from msgspec import Raw, Struct
from msgspec.json import decode


class _Index(Struct):
    families: dict[str, Any]
    grammars: list[Raw]
    names: dict[str, Any]
    heads: dict[str, Any]


class _Targets(Struct):
    families: list[str]
    modules: dict[str, Raw]


class SealedList(Sequence[Any]):
    """A list whose entries are decoded, each once, at the first look."""

    def __init__(self, raw: list[Raw]) -> None:
        self._raw = raw
        self._known: dict[int, Any] = {}

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> list[Any]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self._raw)))]
        known = self._known
        if at not in known:
            known[at] = decode(self._raw[at])
        return known[at]

    def __len__(self) -> int:
        return len(self._raw)


class SealedTable(Mapping[str, Any]):
    """A table whose entries are decoded, each once, at the first look."""

    def __init__(self, raw: Mapping[str, Raw]) -> None:
        self._raw = raw
        self._known: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        known = self._known
        if key not in known:
            known[key] = decode(self._raw[key])
        return known[key]

    def __contains__(self, key: object) -> bool:
        return key in self._raw

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


def open_index(content: bytes) -> dict[str, Any]:
    """`index.json`; its grammars stay sealed."""
    found = decode(content, type=_Index)
    return {
        "families": found.families,
        "grammars": SealedList(found.grammars),
        "names": found.names,
        "heads": found.heads,
    }


def open_targets(content: bytes) -> dict[str, Any]:
    """`targets.json`; its modules stay sealed."""
    found = decode(content, type=_Targets)
    return {"families": found.families, "modules": SealedTable(found.modules)}


def open_table(content: bytes) -> SealedTable:
    """A family, of which a title alone may be wanted, or `tables.json`."""
    return SealedTable(decode(content, type=dict[str, Raw]))


def opened(name: str, content: bytes) -> Any:
    """A compiled document, as far as is known to be wanted of it."""
    if name == "index.json":
        return open_index(content)
    if name == "targets.json":
        return open_targets(content)
    if name == "tables.json" or name.startswith("families/"):
        return open_table(content)
    return decode(content)
