"""One set run for real: encoder, a few steps of the model, decoder; what each gave, and where it first went wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from compatkit.convert.cut import Refused
from compatkit.dryrun.build import EnvironmentProblem
from compatkit.dryrun.classes import NoClass
from compatkit.knowledge.store import Knowledge
from compatkit.smoke.coding import Undecodable
from compatkit.smoke.decoder import decode, round_trip
from compatkit.smoke.fetch import Patch
from compatkit.smoke.member import Emit, Gave, Member, Options, at, put
from compatkit.smoke.model import Model, Unrunnable, open_model
from compatkit.smoke.patches import patches
from compatkit.smoke.record import FP16_MAX, FP16_NEAR, RUNAWAY, Record
from compatkit.smoke.sampler import euler, schedule
from compatkit.smoke.weights import Unplaced, Weights
from compatkit.sources.naming import base_name, shown
from compatkit.vocabulary import HeaderError, SourceError

if TYPE_CHECKING:
    import torch

#: Why a component is not run; anything else that torch raises stopped a run that had begun.
_SKIPS = (NoClass, EnvironmentProblem, Unrunnable, Undecodable, Unplaced, Refused, SourceError, HeaderError)
_LISTED = 6


class Stopped(Exception):
    """A run that ended with an error of torch; `module` and `op` are where."""

    def __init__(self, message: str, module: str) -> None:
        super().__init__(message)
        self.module = module


class Trial:
    """Runs the members of one set; what happens is told to `emit`."""

    def __init__(self, members: Sequence[Member], knowledge: Knowledge, options: Options, emit: Emit) -> None:
        self.members, self.knowledge, self.options, self.emit = members, knowledge, options, emit

    def run(self) -> Gave:
        """All stages, as far as the set has parts for them."""
        gave = Gave()
        context = self._encode(gave)
        model = self._one("diffusion")
        if model is not None:
            self._sample(model, context, gave)
        vae = self._one("vae")
        if vae is not None:
            self._decode(vae, gave)
        return gave

    def _one(self, role: str) -> Member | None:
        return next((m for m in self.members if m.component.role == role), None)

    def _encode(self, gave: Gave) -> dict[int, torch.Tensor]:
        """Width -> hidden states of the encoders of the set, by a prompt of made-up tokens."""
        import torch

        out: dict[int, Any] = {}
        if "encoder" in self.options.swap:
            return out
        for member in self.members:
            if member.component.role not in ("text_encoder", "llm"):
                continue
            with self._opened(member) as model:
                if model is None:
                    continue
                inputs = model.inputs()
                path = model.built.places().get("tokens")
                if path:
                    tokens = at(inputs, path)
                    most = int(member.component.facts.get("vocab") or 1000)
                    numbers = torch.arange(tokens.numel()) * 7919 % max(2, min(most, 30000))
                    put(inputs, path, numbers.reshape(tokens.shape).to(tokens))
                result = self.ran(member, model, inputs, gave, "made-up tokens")
                if result is not None and result.dim() == 3:
                    out[int(result.shape[-1])] = result.detach()
        return out

    def _sample(self, member: Member, context: Mapping[int, torch.Tensor], gave: Gave) -> None:
        import torch

        with self._opened(member, loras=True) as model:
            if model is None:
                return
            built = model.built
            inputs = model.inputs(latent_side=self.options.latent_side)
            places = built.places()
            given = "synthetic embeddings"
            if "context" in places:
                wanted = at(inputs, places["context"])
                real = context.get(int(wanted.shape[-1]))
                if real is not None:
                    put(inputs, places["context"], _fitted(real, wanted))
                    given = "the encoder's hidden states"
            if "latent" not in places or "time" not in places:
                self.ran(member, model, inputs, gave, given)
                return
            latent, clock = at(inputs, places["latent"]), at(inputs, places["time"])
            card = self.knowledge.family(str(member.component.family))
            shift = self.options.settings.get("shift")
            plan = schedule(
                card.get("sampling") or {},
                max(1, self.options.steps),
                float(clock.reshape(-1)[0]),
                shift=float(shift) if shift else None,
            )
            step = 0

            def predict(x: torch.Tensor, now: float) -> torch.Tensor:
                nonlocal step
                step += 1
                put(inputs, places["latent"], x)
                put(inputs, places["time"], torch.full_like(clock, now))
                out = self.ran(member, model, inputs, gave, given, step=step)
                if out is None:
                    raise Stopped("", "")
                return out.reshape(x.shape) if out.numel() == x.numel() else out

            try:
                gave.latent = euler(latent, plan, predict)
            except Stopped:
                return
            except ValueError as e:
                self.emit({"event": "note", "component": member.index, "why": str(e)})

    def _decode(self, member: Member, gave: Gave) -> None:
        """Decode the latent, or a made-up one, and send a test card through encoder and decoder."""
        with self._opened(member) as model:
            if model is None:
                return
            halves = {h: member.component.facts.get(h) is not False for h in ("encoder", "decoder")}
            calls = model.built.spec.calls
            if "decode" in calls and halves["decoder"]:
                decode(self, member, model, gave)
            if "encode" in calls and halves["encoder"]:
                round_trip(self, member, model, gave, back=halves["decoder"])

    @contextmanager
    def _opened(self, member: Member, loras: bool = False) -> Iterator[Model | None]:
        """A member ready to run, or None with the reason told."""
        options = self.options
        dtype = options.dtype
        if "dtype" in options.swap:
            dtype = "float32" if dtype == "bfloat16" else "bfloat16"
        try:
            changes = self._changes(member) if loras else None
            model = open_model(
                member.component, self.knowledge, source=member.source, dtype=dtype, device=options.device,
                vram=options.vram, patches=changes, family=self._sibling(member),
            )  # fmt: skip
        except _SKIPS as e:
            self.emit({"event": "skipped", "component": member.index, "why": str(e)})
            yield None
            return
        try:
            yield model
        finally:
            model.close()

    def _sibling(self, member: Member) -> str | None:
        """Of header-identical VAEs the one whose latents the set's model makes: their factors differ."""
        model = self._one("diffusion")
        if member.component.role != "vae" or model is None or not model.component.family:
            return None
        space = self._space(model.component.family)
        return next((f for f in member.component.families if space and self._space(f) == space), None)

    def _space(self, family: str) -> str:
        known = self.knowledge.has_family(family)
        return str((self.knowledge.family(family).get("latent") or {}).get("space") or "") if known else ""

    def _changes(self, base: Member) -> dict[str, list[Patch]]:
        """What the LoRAs of the set change in a base. One that cannot be applied is told and left out."""
        out: dict[str, list[Patch]] = {}
        for member in self.members:
            if member.component.role != "lora" or f"lora:{member.index}" in self.options.swap:
                continue
            strength = float(self.options.settings.get(f"strength:{member.index}", 1.0))
            try:
                with Weights.open(member.source) as weights:
                    found = patches(base.component, member.component, weights, strength, self.knowledge)
            except _SKIPS as e:
                self.emit({"event": "skipped", "component": member.index, "why": f"it is not applied: {e}"})
                continue
            for source, made in found.patches.items():
                out.setdefault(source, []).extend(made)
            if found.left_out:
                why = f"{len(found.left_out)} of its {found.modules} changes are not applied: {found.left_out[0]}"
                self.emit({"event": "note", "component": member.index, "why": why})
        return out

    def ran(
        self,
        member: Member,
        model: Model,
        inputs: Mapping[str, Any],
        gave: Gave,
        given: str,
        *,
        call: str | None = None,
        step: int = 1,
    ) -> Any:
        """The output of one call, recorded and told; None if it raised."""
        start = time.perf_counter()
        name = call or model.built.usual_call
        try:
            result = model.run(inputs, call)
        except _SKIPS as e:
            self.emit({"event": "skipped", "component": member.index, "why": str(e)})
            return None
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as e:
            text = " ".join(str(e).split())[:400] or type(e).__name__
            self.emit({"event": "stopped", "component": member.index, "call": name, "why": text,
                       "raised": type(e).__name__})  # fmt: skip
            return None
        out = result.output
        gave.ran += 1
        record = result.record
        first = record.broken or next(iter(record.above(RUNAWAY)), None)
        if first and not gave.broken:
            gave.broken, gave.where = first.label, member.index
        told = {"component": member.index, "call": name, "step": step, "given": given, **summary(record)}
        kind, place = str(model.dtype).removeprefix("torch."), str(model.supply.device)
        cost = {"seconds": round(time.perf_counter() - start, 3), "vram": _vram(model)}
        self.emit({"event": "run", "dtype": kind, "device": place, **told, **cost, "output": _described(out)})
        return out


def summary(record: Record) -> dict[str, Any]:
    """A record as events carry it."""

    def row(place: Any) -> dict[str, Any]:
        return {"module": place.module, "op": place.op, "max_abs": place.max_abs, "count": place.nonfinite}

    largest = record.largest()
    return {
        "operations": record.operations,
        "largest": row(largest) if largest else None,
        "broken": row(record.broken) if record.broken else None,
        "runaway": next((row(p) for p in record.above(RUNAWAY)), None),
        "above": [row(p) for p in record.above(FP16_MAX)][:_LISTED],
        "above_count": len(record.above(FP16_MAX)),
        "near": [row(p) for p in record.above(FP16_NEAR)][:_LISTED],
        "modules": [[name, value] for name, value in record.by_module().items()],
    }


def _described(out: Any) -> dict[str, Any]:
    import torch

    if not isinstance(out, torch.Tensor):
        return {}
    values = out.detach().float()
    finite = torch.isfinite(values)
    known = values[finite]
    return {
        "shape": list(out.shape),
        "nonfinite": int((~finite).sum()),
        "mean": float(known.mean()) if known.numel() else None,
        "std": float(known.std(correction=0)) if known.numel() else None,
    }


def _vram(model: Model) -> int:
    """The most GPU memory torch has taken so far, 0 on the CPU."""
    import torch

    return torch.cuda.max_memory_reserved(model.supply.device) if model.supply.device.type == "cuda" else 0


def _fitted(real: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Hidden states cut or repeated to the number of tokens that is wanted, in its shape and dtype."""
    import torch

    rows = real.reshape(-1, real.shape[-1])
    need = wanted.numel() // wanted.shape[-1]
    index = torch.arange(need, device=rows.device) % len(rows)
    return rows[index].reshape(wanted.shape).to(wanted)


def name_of(member: Member) -> str:
    """A member's file, as messages name it."""
    return shown(base_name(member.source))
