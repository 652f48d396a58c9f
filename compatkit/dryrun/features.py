"""What the text encoders of a set give, into the inputs of the model, in the order of its forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from compatkit.checks.loaders import Loader
from compatkit.checks.parts import Part
from compatkit.checks.slots import Seating
from compatkit.checks.subject import Subject
from compatkit.dryrun import junctions
from compatkit.dryrun.junctions import TOKENS
from compatkit.dryrun.planner import Planner
from compatkit.dryrun.probe import FORWARD, LOADING, Probe


class Given(NamedTuple):
    """An encoder in its slot: the component, what rules see of it, and what the runtime's CLIP type makes of it."""

    part: Part
    fields: Mapping[str, Any]
    route: Mapping[str, Any]

    @property
    def lost(self) -> bool:
        """Whether the class that the runtime builds has no place for it: its slot is filled with random weights.

        An encoder of the right kind that the runtime's tables have no name for is found by the class itself.
        """
        name = self.fields.get("loaded_as")
        if not self.route.get("together") or name in self.route["parts"]:
            return False
        return bool(name) or self.fields.get("stands") != "fills"


class _Run(Struct):
    """One diffusion model in one runtime, and the encoder in each of its slots."""

    diffusion: Part
    seating: Seating
    loader: Loader
    given: dict[int, Given]

    def alone(self) -> Given | None:
        """The only encoder, where the runtime builds a class for one file: it feeds every input."""
        single = len(self.given) == 1 and self.loader.table.get("clip_types")
        return next(iter(self.given.values())) if single else None


class _Input(Struct):
    """One input of the model: its name, its junction, its place in the forward pass, and the slots that go into it."""

    name: str
    junction: Mapping[str, Any] | None
    order: int
    slots: list[int]

    @property
    def about(self) -> str:
        """What it is about: context, pooled, …"""
        return junctions.about(self.junction, "context") if self.junction else "context"


class Features(Planner):
    """Loads encoders and gives their output to the model."""

    def encoders(self) -> None:
        """The probes of every encoder in every runtime."""
        for subject in self.builder.subjects.get("encoder", ()):
            self._load(subject)
        for index, seating in self.builder.seatings.items():
            for loader in self.builder.loaders:
                run = _Run(self.parts[index], seating, loader, {})
                run.given = self._given(run)
                if run.given or seating.missing:
                    self._inputs(run)

    def _load(self, subject: Subject) -> None:
        """The token embedding into the class that the runtime builds: its rows are compared while loading."""
        encoder, route, slot = (subject.values.get(k) or {} for k in ("encoder", "route", "slot"))
        part, loader = self.parts[subject.components[1]], subject.loader
        assert loader is not None
        if encoder.get("stands") == "surplus" or not route.get("checked") or not encoder.get("embedding"):
            return
        wanted = route.get("vocab") or slot.get("vocab")
        if route.get("together") and encoder.get("loaded_as") not in route["parts"]:
            return
        if not wanted or encoder.get("vocab") is None or encoder.get("width") is None:
            return
        model = (loader.table.get("te_models") or {}).get(encoder.get("loaded_as") or "") or {}
        step = {
            "op": "load",
            "class": model.get("module") or route.get("cls") or "Module",
            "module": encoder["embedding"],
            "weight": [wanted, encoder["width"]],
            "given": [encoder["vocab"], encoder["width"]],
        }
        what = f"token embedding of {part.fields['name']}"
        probe = Probe("load", part, part, loader, None, [step], what, LOADING)
        self.add(probe)
        probe.components = subject.components

    def _given(self, run: _Run) -> dict[int, Given]:
        """Slot -> the encoder in it."""
        seated = {p.index: i for i, p in (*run.seating.filled.items(), *run.seating.stand_ins.items())}
        out = {}
        for subject in self.builder.subjects.get("encoder", ()):
            if subject.loader is not run.loader or subject.components[0] != run.diffusion.index:
                continue
            index = seated.get(subject.components[1])
            if index is not None:
                part, values = self.parts[subject.components[1]], subject.values
                out[index] = Given(part, values["encoder"], values.get("route") or {})
        return out

    def _inputs(self, run: _Run) -> None:
        """What the encoders give, into each input of the model, in the order of its forward pass."""
        names = list(run.seating.card.get("junctions") or {})
        names += [s.into for s in run.seating.slots if s.into]
        for order, name in enumerate(dict.fromkeys(names)):
            junction = junctions.entry(run.seating.card, name, run.loader.name)
            place = int((junction or {}).get("at", order + 1))
            here = _Input(name, junction, place, [i for i, s in enumerate(run.seating.slots) if s.into == name])
            if here.slots:
                self._text(run, here)
            elif junction and junction.get("pooled"):
                self._pooled(run, here, junction)

    def _text(self, run: _Run, here: _Input) -> None:
        given = [run.given[i] for i in here.slots if i in run.given]
        if not given and not any(i in run.seating.missing for i in here.slots):
            return
        if self.stopped(here.about, run.loader, run.diffusion, *(g.part for g in given)):
            return
        if here.junction is None:
            self._unwritten(run, here)
            return
        steps = self.steps(here.about, here.junction, run.diffusion, run.loader)
        if steps is None:
            return
        # Encoders that are joined run as one tensor; others that go into the same input come one by one.
        joined = [i for i in here.slots if run.seating.slots[i].join == "concat"]
        for group in [joined] if joined else [[i] for i in here.slots]:
            self._group(run, here, here.junction, steps, group)

    def _unwritten(self, run: _Run, here: _Input) -> None:
        entry = (run.seating.card.get("junctions") or {}).get(here.name) or {}
        if run.loader.name in (entry.get("runtimes") or {}):
            self.gap(here.about, f"in {run.loader.label} a component of its own takes {here.name}", blocks=False)
            return
        title = run.diffusion.fields["title"]
        self.gap(here.about, f"no operation is written down for {here.name} of {title}")

    def _group(
        self,
        run: _Run,
        here: _Input,
        junction: Mapping[str, Any],
        steps: list[dict[str, Any]],
        group: Sequence[int],
    ) -> None:
        """One tensor that goes into an input: what the encoders of these slots give, side by side."""
        by_slot = {i: run.given[i] for i in group if i in run.given}
        missing = [i for i in group if i in run.seating.missing]
        alone = run.alone() if missing and not by_slot else None
        if alone:
            by_slot[missing[0]] = alone
        lost = next((g for g in by_slot.values() if g.lost), None)
        if lost or (missing and not by_slot):
            self._unfed(run, here, steps, lost)
            return
        if not by_slot:
            return
        width, whole, notes = 0, None, list[str]()
        for i in group:
            slot = run.seating.slots[i]
            if i in by_slot:
                output = by_slot[i].fields.get("output_width")
                if output is None:
                    self.gap(here.about, f"the width of {by_slot[i].part.fields['name']} is not known")
                    return
                width += output
            elif slot.optional and slot.join == "concat":
                width += self.builder.rules.fixed(slot.kinds[0], "width") or 0
                notes.append(f"{slot.kinds[0]} is not there: zeros stand for it")
            if slot.join == "pad":
                whole = run.diffusion.number(here.name)
        if whole and width < whole:
            steps = [{"op": "widen", "size": whole}, *steps]
        tokens = junction.get("tokens") or (TOKENS if here.about == "context" else None)
        shape = (1, tokens, width) if tokens else (1, width)
        parts = [g.part for g in by_slot.values()]
        names = " and ".join(str(p.fields["name"]) for p in parts)
        what = f"{'pooled vector' if here.about == 'pooled' else 'text features'} of {names}"
        self._into(run, here, Probe(here.about, parts[0], run.diffusion, run.loader, shape, list(steps), what), notes)
        self.plan.probes[-1].components = tuple(dict.fromkeys((run.diffusion.index, *(p.index for p in parts))))

    def _unfed(self, run: _Run, here: _Input, steps: Sequence[dict[str, Any]], lost: Given | None) -> None:
        """An input that gets nothing."""
        someone = lost or next(iter(run.given.values()), None)
        giver = someone.part if someone else run.diffusion
        step = {**next(s for s in steps if "weight" in s), "op": "none"}
        self._into(run, here, Probe("unfed", giver, run.diffusion, run.loader, None, [step], here.name))

    def _pooled(self, run: _Run, here: _Input, junction: Mapping[str, Any]) -> None:
        """A vector that one of the encoders gives beside its features; that of another where it is not there."""
        kinds = {str(k) for k in junction["pooled"]}
        parts = [g.part for g in run.given.values()]
        part = next((p for p in parts if kinds & set(p.component.families)), None) or next(iter(parts), None)
        if part is None or self.stopped("pooled", run.loader, run.diffusion, part):
            return
        width = part.number("projection_dim") or part.number("width")
        steps = self.steps("pooled", junction, run.diffusion, run.loader)
        if steps is not None and width is not None:
            what = f"pooled vector of {part.fields['name']}"
            self._into(run, here, Probe("pooled", part, run.diffusion, run.loader, (1, width), steps, what))

    def _into(self, run: _Run, here: _Input, probe: Probe, notes: Sequence[str] = ()) -> None:
        """Add a probe of an input."""
        probe.stage, probe.order, probe.junction, probe.notes = FORWARD, here.order, here.name, tuple(notes)
        probe.dtype = self.model(run.diffusion).dtype(next((s["own"] for s in probe.steps if "own" in s), ""))
        self.add(probe)
