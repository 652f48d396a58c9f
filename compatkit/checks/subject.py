"""Subjects: what one rule is asked about, and the builder that collects them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from compatkit.checks.loaders import Loader
from compatkit.checks.parts import Part
from compatkit.knowledge import cel
from compatkit.knowledge.protocol import Rules
from compatkit.knowledge.subjects import blank
from compatkit.vocabulary import FileProblem, Policy, Wiring


class Subject(Struct):
    """One thing that rules of its kind look at. `values` need not name every field."""

    kind: str
    components: tuple[int, ...]
    values: Mapping[str, Mapping[str, Any]]
    loader: Loader | None = None
    problem: FileProblem | None = None
    _plain: cel.Facts | None = None

    def plain(self) -> cel.Facts:
        """Every field, as values CEL takes."""
        if self._plain is None:
            self._plain = cel.Facts(cel.plain(blank(self.kind, self.values)))
        return self._plain


class Builder(Struct):
    """Collects subjects, and the reasons why some checks have none.

    `seatings` (by diffusion model, who stands in which encoder slot) and `coverages` (base, LoRA, loader, what is
    loaded of it) are what the dry run needs of the way there. `replaced` are components in whose place a
    finding's fix puts another file.
    """

    parts: Sequence[Part]
    rules: Rules
    loaders: Sequence[Loader]
    settings: Mapping[str, str] = field(default_factory=dict)
    required: Sequence[str] = ()
    locked: bool = False
    policy: Policy | None = None
    licenses: Mapping[str, str] = field(default_factory=dict)
    wiring: Wiring | None = None
    subjects: dict[str, list[Subject]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    blocked: list[tuple[str, str, bool]] = field(default_factory=list)
    adapters: list[dict[str, Any]] = field(default_factory=list)
    coverages: list[Any] = field(default_factory=list)
    seatings: dict[int, Any] = field(default_factory=dict)
    replaced: set[int] = field(default_factory=set)

    def add(self, subject: Subject) -> None:
        """One more subject."""
        self.subjects.setdefault(subject.kind, []).append(subject)

    def absent(self, kinds: Iterable[str], why: str) -> None:
        """Why there are no subjects of these kinds: a side is not in the set."""
        for kind in kinds:
            self.reasons.setdefault(kind, why)

    def stuck(self, kind: str, why: str, *, blocks: bool) -> None:
        """A subject that could not be made although both sides are in the set."""
        if (kind, why, blocks) not in self.blocked:
            self.blocked.append((kind, why, blocks))
