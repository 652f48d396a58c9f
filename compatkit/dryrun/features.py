"""What the text encoders of a set give, into the inputs of the model, in the order of its forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compatkit.checks.loaders import Loader
from compatkit.checks.parts import Part
from compatkit.checks.slots import Seating
from compatkit.checks.subject import Subject
from compatkit.dryrun import junctions
from compatkit.dryrun.junctions import TOKENS
from compatkit.dryrun.planner import Planner
from compatkit.dryrun.probe import FORWARD, LOADING, Probe


class Features(Planner):
    """Loads encoders and gives their output to the model."""

    def encoders(self) -> None:
        for subject in self.builder.subjects.get("encoder", ()):
            self._load(subject)
        for index, seating in self.builder.seatings.items():
            for loader in self.builder.loaders:
                self._features(self.parts[index], seating, loader)

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

    def _features(self, diffusion: Part, seating: Seating, loader: Loader) -> None:
        """What the encoders give, into each input of the model, in the order of its forward pass."""
        by_slot = self._outputs(diffusion, seating, loader)
        if not by_slot and not seating.missing:
            return
        names = list(seating.card.get("junctions") or {})
        wanted = [*names, *(s.into for s in seating.slots if s.into and s.into not in names)]
        for order, name in enumerate(dict.fromkeys(wanted)):
            junction = junctions.entry(seating.card, name, loader.name)
            order = int((junction or {}).get("at", order + 1))
            slots = [i for i, s in enumerate(seating.slots) if s.into == name]
            if slots:
                self._text(diffusion, seating, loader, name, junction, slots, by_slot, order)
            elif junction and junction.get("pooled"):
                self._pooled(diffusion, seating, loader, name, junction, by_slot, order)

    def _outputs(self, diffusion: Part, seating: Seating, loader: Loader) -> dict[int, tuple[Part, dict[str, Any]]]:
        """Slot -> (encoder, its fields as rules see them, with the route)."""
        seated = {p.index: i for i, p in (*seating.filled.items(), *seating.stand_ins.items())}
        out = {}
        for subject in self.builder.subjects.get("encoder", ()):
            if subject.loader is not loader or subject.components[0] != diffusion.index:
                continue
            index = seated.get(subject.components[1])
            if index is not None:
                values = subject.values
                out[index] = (
                    self.parts[subject.components[1]],
                    {**values["encoder"], "route": values.get("route") or {}},
                )
        return out

    def _text(
        self,
        diffusion: Part,
        seating: Seating,
        loader: Loader,
        name: str | None,
        junction: Mapping[str, Any] | None,
        slots: Sequence[int],
        by_slot: Mapping[int, tuple[Part, dict[str, Any]]],
        order: int,
    ) -> None:
        about = junctions.about(junction, "context") if junction else "context"
        given = [by_slot[i] for i in slots if i in by_slot]
        missing = [i for i in slots if i in seating.missing]
        if not given and not missing:
            return
        if self.stopped(about, loader, diffusion, *(p for p, _ in given)):
            return
        if junction is None and loader.name in ((seating.card.get("junctions") or {}).get(name) or {}).get(
            "runtimes", {}
        ):
            self.gap(about, f"in {loader.label} a component of its own takes {name}", blocks=False)
            return
        if junction is None:
            part = (given or list(by_slot.values()))[0][0]
            self.gap(about, f"no operation is written down for {name} of {diffusion.fields['title']} ({part.role})")
            return
        steps = self.steps(about, junction, diffusion, loader)
        if steps is None:
            return
        # Encoders that are joined run as one tensor; others that go into the same input come one by one.
        joined = [i for i in slots if seating.slots[i].join == "concat"]
        for group in [joined] if joined else [[i] for i in slots]:
            self._one_input(diffusion, seating, loader, about, junction, steps, group, by_slot, order, name)

    def _one_input(
        self,
        diffusion: Part,
        seating: Seating,
        loader: Loader,
        about: str,
        junction: Mapping[str, Any],
        steps: list[dict[str, Any]],
        group: Sequence[int],
        by_slot: Mapping[int, tuple[Part, dict[str, Any]]],
        order: int,
        name: str | None,
    ) -> None:
        here = [by_slot[i] for i in group if i in by_slot]
        # An encoder of the right kind that the tables have no name for is found by the class itself.
        lost = [
            p
            for p, f in here
            if f["route"].get("together")
            and f.get("loaded_as") not in f["route"]["parts"]
            and (f.get("loaded_as") or f.get("stands") != "fills")
        ]
        unfed = [i for i in group if i in seating.missing]
        alone = self._alone(by_slot, loader) if unfed and not here else None
        if alone:
            here, by_slot = [alone], {**by_slot, unfed[0]: alone}
        if lost or (unfed and not here):
            giver = lost[0] if lost else next(iter(by_slot.values()), (diffusion, {}))[0]
            step = {**next(s for s in steps if "weight" in s), "op": "none"}
            self.add(
                Probe("unfed", giver, diffusion, loader, None, [step], str(name), FORWARD, order, junction=str(name))
            )
            return
        if not here:
            return
        width, notes = 0, []
        whole: int | None = None
        for i in group:
            slot = seating.slots[i]
            if i in by_slot:
                part, fields = by_slot[i]
                output = fields.get("output_width")
                if output is None:
                    self.gap(about, f"the width of {part.fields['name']} is not known")
                    return
                width += output
            elif slot.optional and slot.join == "concat":
                absent = self.builder.rules.fixed(slot.kinds[0], "width")
                width += absent or 0
                notes.append(f"{slot.kinds[0]} is not there: zeros stand for it")
            if slot.join == "pad":
                whole = diffusion.number(slot.into) if slot.into else None
        tokens = junction.get("tokens") or (TOKENS if about == "context" else None)
        shape = (1, tokens, width) if tokens else (1, width)
        if whole and width < whole:
            steps = [{"op": "widen", "size": whole}, *steps]
        parts = [p for p, _ in here]
        what = f"{'pooled vector' if about == 'pooled' else 'text features'} of {_names(parts)}"
        probe = Probe(about, parts[0], diffusion, loader, shape, list(steps), what, FORWARD, order, notes=tuple(notes))
        probe.junction = str(name)
        probe.dtype = self.model(diffusion).dtype(next((s["own"] for s in steps if "own" in s), ""))
        self.add(probe)
        probe.components = tuple(dict.fromkeys((diffusion.index, *(p.index for p in parts))))

    @staticmethod
    def _alone(
        by_slot: Mapping[int, tuple[Part, dict[str, Any]]], loader: Loader
    ) -> tuple[Part, dict[str, Any]] | None:
        """The only encoder of a set, where the runtime builds a class for one file: it feeds every input."""
        if len(by_slot) != 1 or not loader.table.get("clip_types"):
            return None
        return next(iter(by_slot.values()))

    def _pooled(
        self,
        diffusion: Part,
        seating: Seating,
        loader: Loader,
        name: str,
        junction: Mapping[str, Any],
        by_slot: Mapping[int, tuple[Part, dict[str, Any]]],
        order: int,
    ) -> None:
        """A vector that one of the encoders gives beside its features; that of another where it is not there."""
        kinds = {str(k) for k in junction["pooled"]}
        givers = [p for p, _ in by_slot.values() if kinds & set(p.component.families)]
        part = next(iter(givers), None) or next((p for p, _ in by_slot.values()), None)
        if part is None or self.stopped("pooled", loader, diffusion, part):
            return
        width = part.number("projection_dim") or (part.number("width") if not givers else None) or part.number("width")
        steps = self.steps("pooled", junction, diffusion, loader)
        if steps is None or width is None:
            return
        what = f"pooled vector of {part.fields['name']}"
        probe = Probe("pooled", part, diffusion, loader, (1, width), steps, what, FORWARD, order, junction=name)
        probe.dtype = self.model(diffusion).dtype(junction["module"])
        self.add(probe)


def _names(parts: Sequence[Part]) -> str:
    return " and ".join(str(p.fields["name"]) for p in parts)
