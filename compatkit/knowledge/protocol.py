"""What the judging half asks of the rules. `store.Knowledge` answers it; tests answer it with a small fake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Rules(Protocol):
    """The compiled rules, as checks see them."""

    def family(self, family: str) -> Mapping[str, Any]:
        """The card of a family: everything its file says but the tensors."""

    def has_family(self, family: str) -> bool:
        """Whether there is a card of that name."""

    def checks(self) -> Sequence[Mapping[str, Any]]:
        """Every check entry, parsed, in order."""

    def runtime(self, name: str) -> Mapping[str, Any]:
        """The table of a runtime. Raises KeyError for a name nobody wrote down."""

    def packing(self, scheme: str) -> Mapping[str, Any]:
        """The entry of a quantisation scheme; empty for one nobody wrote down."""

    def fixed(self, family: str, fact: str) -> int | None:
        """The value a fact always has in a family, None if that cannot be told."""

    def table(self, name: str) -> Any:
        """One of the other tables ("pipelines"); an empty list for one that is not there."""

    def adapters(self, name: str) -> Mapping[str, Any]:
        """One file of `rules/adapters/`, by its id; empty for one that is not there."""

    def models(self, runtime: str) -> Mapping[str, Mapping[str, Any]]:
        """Family -> what a runtime makes of it, where its file says so; empty where it does not."""

    def nodes(self) -> Mapping[str, Any]:
        """What the nodes of a graph editor take, give, load and want."""

    def grammar(self, family: str) -> Mapping[str, Any]:
        """The compiled grammar of a family."""

    def owner(self, family: str) -> str:
        """The family in whose file this one stands: itself, or the one it is a sibling of."""
