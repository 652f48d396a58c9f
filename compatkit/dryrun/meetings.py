"""From a set to its probes: who meets whom, with which tensor, on which operations.

Who stands where, which class a runtime builds and how wide its output is was worked out for the header checks; here
it is turned into tensors. Nothing is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compatkit.adapters.coverage import Coverage, Mismatch
from compatkit.checks.attachments import gives, read_output
from compatkit.checks.junctions import junction_fields
from compatkit.checks.loaders import Loader, at_least
from compatkit.checks.parts import Part, label, of_role
from compatkit.checks.subject import Builder, Subject
from compatkit.dryrun import junctions, lora
from compatkit.dryrun.features import Features
from compatkit.dryrun.junctions import TOKENS
from compatkit.dryrun.planner import Plan
from compatkit.dryrun.probe import DECODING, FORWARD, PATCHING, Gap, Probe

_PICTURE = 1024
_FRAMES = 1


#: What a kind of subject is about, for checks that could not even collect.
_OF_KIND = {"encoder": "context", "set": "context", "vae": "vae", "adapter": "lora", "attachment": "adapter"}


def plan(builder: Builder) -> Plan:
    """Every probe of a set whose subjects were collected."""
    planner = _Meetings(builder)
    for subject in builder.subjects.get("loading", ()):
        planner.refused(subject)
    planner.encoders()
    for subject in builder.subjects.get("vae", ()):
        planner.vae(subject)
    planner.latents()
    planner.eyes()
    for base, adapter, loader, found in builder.coverages:
        planner.adapter(base, adapter, loader, found)
    for subject in builder.subjects.get("attachment", ()):
        planner.attachment(subject)
    for kind, why, blocks in builder.blocked:
        if kind in _OF_KIND:  # whether a runtime opens a file is the header checks' matter
            planner.plan.gaps.append(Gap(_OF_KIND[kind], why, blocks))
    for loader in builder.loaders:
        planner.not_torch(loader)
    return planner.plan


class _Meetings(Features):
    """Latents, pictures and adapters."""

    def vae(self, subject: Subject) -> None:
        diffusion, part = (self.parts[i] for i in subject.components)
        loader = subject.loader
        assert loader is not None
        if self.stopped("vae", loader, diffusion, part):
            return
        junction = junctions.entry(part.card, "latent_in", loader.name)
        if junction is None:
            pixels = (part.card.get("latent") or {}).get("space") == "pixel"  # no layer: there is nothing to meet
            self.gap("vae", f"no operation is written down for the latents of {part.fields['title']}", not pixels)
            return
        ours, theirs = subject.values["diffusion"], subject.values["vae"]
        steps = self.steps("vae", junction, part, loader)
        if steps is None:
            return
        out = junctions.entry(diffusion.card, "latent_out", loader.name)
        if out and ours["channels"] != theirs["channels"]:
            steps = [*(self.steps("vae", out, diffusion, loader) or ()), *steps]
        ndim = int(junction.get("ndim") or theirs["ndim"])
        for step in steps:
            if step["op"] == "stats":
                step["weight"] = junctions.stretched(step["weight"], ndim)
        shape = self._latent(diffusion, ours["channels"], ours["ndim"])
        what = f"latent of {diffusion.fields['name']}"
        for before, when in self._ranks(loader, part, ours["ndim"], theirs["ndim"]):
            probe = Probe("vae", diffusion, part, loader, shape, [*before, *steps], what, DECODING, when=when)
            probe.dtype = self.model(part).dtype(steps[-1].get("own", ""))
            probe.junction = "latent_in"
            self.add(probe)

    @staticmethod
    def _ranks(loader: Loader, vae: Part, given: int, taken: int) -> Iterator[tuple[list[dict[str, Any]], str]]:
        """What the runtime does to a latent of another rank: the operations, and where that is so."""
        for change in loader.table.get("latents") or ():
            if (change["from"], change["to"]) != (given, taken) or vae.component.family in change.get("except", ()):
                continue
            if at_least(loader.version, str(change.get("since", "0")), loader.table) == "no":
                break
            yield [{k: v for k, v in change.items() if k in ("op", "axis")}], ""
            if change.get("otherwise"):
                yield [], str(change["otherwise"])
            return
        yield [], ""

    @staticmethod
    def _latent(diffusion: Part, channels: int, ndim: int) -> tuple[int, ...]:
        downscale = (diffusion.card.get("latent") or {}).get("downscale")
        n = _PICTURE // downscale if isinstance(downscale, int) and 0 < downscale <= _PICTURE else _PICTURE // 8
        if ndim == 3:
            return (1, channels, n)
        return (1, channels, *[_FRAMES] * (ndim - 4), n, n)

    def latents(self) -> None:
        """A model's own latent into its own first layer: the knowledge of both sides against each other."""
        for part in of_role(self.parts, "diffusion"):
            channels, ndim = part.number("latent_channels"), part.number("latent_ndim")
            for loader in self.builder.loaders:
                junction = junctions.entry(part.card, "latent_in", loader.name)
                if junction is None or not channels or not ndim:
                    continue
                if (part.index, loader.name) not in self._refused:
                    self._own_latent(part, loader, junction, channels, ndim)

    def _own_latent(self, part: Part, loader: Loader, junction: Mapping[str, Any], channels: int, ndim: int) -> None:
        model = self.model(part)
        module = junctions.chosen(junction["module"], model)
        weight = model.weight(module, junction.get("weight") or ())
        if weight is None:
            return
        channels = int(junction.get("channels") or channels)
        ndim = int(junction.get("ndim") or ndim)
        junction = self._patched(junction, weight, channels, ndim)
        try:
            steps = junctions.steps(junction, model, loader)
        except LookupError:
            return
        notes: tuple[str, ...] = ()
        extra = junctions.taken(junction, weight) - channels
        if extra > 0:
            steps = [{"op": "beside", "size": extra, "dim": 1}, *steps]
            notes = (f"{extra} further channels come from elsewhere: a mask, a picture",)
        shape = self._latent(part, channels, ndim)
        probe = Probe("latent", part, part, loader, shape, steps, "its own latent", FORWARD, -1, notes=notes)
        probe.dtype, probe.junction = model.dtype(module), "latent_in"
        self.add(probe)

    @staticmethod
    def _patched(junction: Mapping[str, Any], weight: tuple[int, ...], channels: int, ndim: int) -> Mapping[str, Any]:
        """A linear layer takes patches of the latent: those it is as wide as, where the card does not say."""
        if junction["op"] != "linear" or junction.get("patch") or junction.get("via"):
            return junction
        patch = junctions.patch_of(weight[-1], channels, ndim)
        return {**junction, "patch": patch} if patch else {**junction, "via": ["tokens"]}

    def eyes(self) -> None:
        """Features of an image encoder into what takes them; one that fits is enough."""
        seen = list(of_role(self.parts, "clip_vision"))
        for taker in self.parts:
            for entry in taker.card.get("image_encoders") or ():
                into = str(entry.get("into") or "")
                wanted = taker.number(into)
                if not seen or wanted is None:
                    continue
                read = read_output(entry, junction_fields(taker.card, into, taker, wanted))
                widths = [(eye, *gives(eye, entry, wanted, self.builder.rules, read)) for eye in seen]
                fit = next((w for w in widths if w[1]), None)
                for eye, fits, width, _ in [fit] if fit else widths:
                    self._eye(taker, into, eye, wanted if fits else width)

    def _eye(self, taker: Part, into: str, eye: Part, width: int | None) -> None:
        for loader in self.builder.loaders:
            junction = junctions.entry(taker.card, into, loader.name)
            if junction is None or width is None:
                self.gap("image", f"no operation is written down for {into} of {taker.fields['title']}", width is None)
                continue
            if self.stopped("image", loader, taker, eye):
                continue
            steps = self.steps("image", junction, taker, loader)
            if steps:
                tokens = junction.get("tokens")
                shape = (1, tokens, width) if tokens else (1, width)
                what = f"image features of {eye.fields['name']}"
                self.add(Probe("image", eye, taker, loader, shape, steps, what, FORWARD, junction=into))

    def adapter(self, base: Part, part: Part, loader: Loader, found: Coverage) -> None:
        """The change that a LoRA makes, onto the weight: the first that does not go, else the first of all."""
        one: Mismatch | None = found.mismatches[0] if found.mismatches else found.fitting
        if one is None or self.stopped("lora", loader, base, part):
            return
        chain = lora.chain(one, self.model(base), loader, self.builder.rules)
        if chain is None:
            why = f"{part.fields['name']}: how {loader.label} puts a {one.algorithm} on a weight is not written down"
            self.gap("lora", why, blocks=False)
            return
        shape, steps = chain
        what = f"the change that {part.fields['name']} makes"
        self.add(Probe("lora", part, base, loader, shape, steps, what, PATCHING, junction=one.module))

    def attachment(self, subject: Subject) -> None:
        """A ControlNet, an IP-Adapter, … : what the base gives it, and what it gives the base."""
        base, part = (self.parts[i] for i in subject.components)
        loader = subject.loader
        assert loader is not None
        entries = part.card.get("junctions") or {}
        if not entries:
            why = f"no operation is written down for a {label(part.role)} ({part.fields['title']})"
            self.gap("adapter", why, blocks=False)
        for order, name in enumerate(entries):
            junction = junctions.entry(part.card, name, loader.name)
            if junction is not None and junction.get("carries") != "image":
                self._attached(base, part, loader, name, junction, order)

    def _attached(
        self, base: Part, part: Part, loader: Loader, name: str, junction: Mapping[str, Any], order: int
    ) -> None:
        if self.stopped("adapter", loader, base, part):
            return
        weight = self.model(part).weight(junctions.chosen(junction["module"], self.model(part)))
        channels, ndim = base.number("latent_channels"), base.number("latent_ndim")
        if name == "latent_in" and weight and channels and ndim:
            junction = self._patched(junction, weight, channels, ndim)
        steps = self.steps("adapter", junction, part, loader)
        if not steps:
            return
        shape, what = self._from_base(base, name, junction)
        onto, tokens = junction.get("onto"), junction.get("tokens")
        if onto:
            places = [str(o) for o in ([onto] if isinstance(onto, str) else onto)]
            rows = next((r for place in places if (r := self._rows(base, place))), None)
            if rows is None:
                self.gap("adapter", f"{base.fields['name']} has no {places[0]} for {part.fields['name']}", blocks=False)
                return
            own = steps[-1]["weight"][0]
            flat = bool(tokens) or junction["op"] == "attention"
            shape = (1, tokens or 4, own) if flat else (1, own, 32, 32)
            steps[-1]["weight"] = [1, tokens or 64, rows] if flat else [1, rows, 32, 32]
            what = f"what {part.fields['name']} adds"
        if shape is None:
            return
        giver, taker = (part, base) if onto else (base, part)
        self.add(Probe("adapter", giver, taker, loader, shape, steps, what, FORWARD, order, junction=name))

    def _rows(self, base: Part, name: str) -> int | None:
        """Rows of a module of the base, or one of its facts."""
        weight = self.model(base).weight(name)
        return weight[0] if weight else base.number(name)

    def _from_base(self, base: Part, name: str, junction: Mapping[str, Any]) -> tuple[tuple[int, ...] | None, str]:
        if name == "latent_in":
            channels, ndim = base.number("latent_channels"), base.number("latent_ndim")
            shape = self._latent(base, channels, ndim) if channels and ndim else None
            return shape, f"latent of {base.fields['name']}"
        tokens = junction.get("tokens") or TOKENS
        if junction.get("of"):
            rows = self._rows(base, str(junction["of"]))
            return ((1, tokens, rows) if rows else None), f"hidden states of {base.fields['name']}"
        width = base.number(name)
        return ((1, tokens, width) if width else None), f"text features that {base.fields['name']} takes"
