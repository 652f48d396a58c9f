"""What every planner of probes has: the models' weights, what the runtime does not open, what was not probed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from compatkit.checks.loaders import Loader
from compatkit.checks.parts import Part
from compatkit.checks.subject import Builder, Subject
from compatkit.dryrun import junctions
from compatkit.dryrun.junctions import Model
from compatkit.dryrun.probe import Gap, Probe


class Plan(Struct):
    """Probes in the order a run would meet them, and what could not be probed."""

    probes: list[Probe] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)


class Planner:
    """Collects the probes of one set. Its own are none: `features` and `meetings` add them."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.parts = builder.parts
        self.plan = Plan()
        self._models: dict[int, Model] = {}
        self._refused: dict[tuple[int, str], str] = {}

    def model(self, part: Part) -> Model:
        if part.index not in self._models:
            self._models[part.index] = Model(part, self.builder.rules)
        return self._models[part.index]

    def not_torch(self, loader: Loader) -> None:
        """A runtime that computes otherwise has other operations and other texts: none of its probes is run."""
        if loader.table.get("engine", "torch") == "torch":
            return
        dropped = {p.about for p in self.plan.probes if p.loader is loader}
        self.plan.probes = [p for p in self.plan.probes if p.loader is not loader]
        for about in sorted(dropped):
            self.gap(about, f"{loader.label} does not compute with torch: what torch says is not what it would say")

    def refused(self, subject: Subject) -> None:
        """A file that the runtime does not open reaches no operation."""
        opens, loader = subject.values["opens"], subject.loader
        assert loader is not None
        why = [k for k in ("supported", "format", "layout", "prefix", "architecture", "family") if opens.get(k) == "no"]
        if opens.get("misread"):
            why.append("misread")
        if opens.get("tokenizer") == "no":
            why.append("no tokenizer in it")
        if why:
            self._refused[subject.components[0], loader.name] = why[0]

    def add(self, probe: Probe) -> None:
        probe.components = tuple(dict.fromkeys((probe.taker.index, probe.giver.index)))
        self.plan.probes.append(probe)

    def gap(self, about: str, why: str, blocks: bool = True) -> None:
        gap = Gap(about, why, blocks)
        if gap not in self.plan.gaps:
            self.plan.gaps.append(gap)

    def stopped(self, about: str, loader: Loader, *parts: Part) -> bool:
        """Whether one of them is not opened by the runtime; that is said."""
        for part in parts:
            why = self._refused.get((part.index, loader.name))
            if why:
                self.gap(about, f"{loader.label} does not load {part.fields['name']} ({why}): there is nothing to run")
                return True
        return False

    def steps(
        self, about: str, junction: Mapping[str, Any], taker: Part, loader: Loader
    ) -> list[dict[str, Any]] | None:
        try:
            return junctions.steps(junction, self.model(taker), loader)
        except LookupError as e:
            self.gap(about, str(e.args[0]))
            return None
