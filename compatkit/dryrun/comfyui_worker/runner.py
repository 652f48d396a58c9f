"""One set through ComfyUI's own loaders, text encoder, sampler and VAE, on tensors without weights."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compatkit.dryrun.comfyui_worker.states import state_dict
from compatkit.dryrun.comfyui_worker.weightless import META, Unknowable, Weightless, weightless

PROMPT = "a photo of a cat"
SIDE = 16
LONGEST = 4000
#: Told whatever their level; of keys that are missing only warnings are told: ComfyUI knows which are no matter.
_TELLING = ("unexpected", "left over", "lora key")
_KEPT = 6
_KEPT_RESULTS = 200


class Failed(Exception):
    """A stage failed; its record is in the answer."""


class Log(logging.Handler):
    """Keeps what ComfyUI says about keys, and its warnings."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:
            return
        telling = record.levelno >= logging.WARNING or any(w in text for w in _TELLING)
        if telling and len(self.lines) < 400:
            self.lines.append(text[:LONGEST])

    def taken(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


class Cache(OrderedDict[Any, Any]):
    """The last few results; an error is remembered as well as an answer."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def get_or(self, key: Any, make: Callable[[], Any]) -> Any:
        if key in self:
            self.move_to_end(key)
        else:
            self[key] = make()
            while len(self) > self.most:
                self.popitem(last=False)
        return self[key]


class Runner:
    """Holds the headers it was told of and runs sets of them."""

    def __init__(self, directory: str) -> None:
        self.directory = str(Path(directory).absolute())
        self.comfy = importlib.import_module("comfy")
        files = importlib.import_module("comfy.utils")
        self.log = Log()
        root = logging.getLogger()
        root.setLevel(logging.DEBUG)
        for handler in list(root.handlers):
            root.removeHandler(handler)
        root.addHandler(self.log)
        self.parts: dict[str, Mapping[str, Any]] = {}
        self.loaded = Cache(_KEPT)
        self.results = Cache(_KEPT_RESULTS)
        files.load_torch_file = self._file  # type: ignore[attr-defined] # headers instead of files
        self.mode: Weightless | None = None

    def _file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        part = self.parts[path]
        metadata = {k: v for k, v in (part.get("metadata") or {}).items() if isinstance(v, str)}
        state = state_dict(part["tensors"], part.get("values") or {})
        return (state, metadata) if kwargs.get("return_metadata") else state

    def run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Every stage the set allows, in order; one that fails does not keep independent ones from running."""
        start = time.perf_counter()
        with weightless() as self.mode:
            stages = list(self._stages(request))
        return {"stages": stages, "seconds": round(time.perf_counter() - start, 3)}

    def _stages(self, request: Mapping[str, Any]) -> Any:
        diffusion, encoders = request.get("diffusion"), tuple(request.get("encoders") or ())
        vae, kind = request.get("vae"), str(request.get("clip_type") or "stable_diffusion")
        checkpoint, loras = request.get("checkpoint"), tuple(request.get("loras") or ())
        model = clip = decoder = None
        if checkpoint:
            three, record = self._once(
                ("checkpoint", checkpoint), "checkpoint_load", lambda: self._checkpoint(checkpoint)
            )
            yield record
            model, clip, decoder = three or (None, None, None)
        if diffusion:
            model, record = self._once(("diffusion", diffusion), "diffusion_load", lambda: self._diffusion(diffusion))
            yield record
        if encoders:
            key: Any = ("encoders", encoders, kind)
            clip, record = self._once(key, "text_encoder_load", lambda: self._encoders(encoders, kind))
            yield record
        applied: tuple[str, ...] = ()
        for lora in loras:
            applied = (*applied, lora)
            key = ("lora", applied, diffusion, checkpoint, encoders, kind)
            both, record = self._once(key, "lora_load", partial(self._lora, model, clip, lora))
            yield record
            model, clip = both or (model, clip)
        given = ("condition", checkpoint, encoders, kind, loras)
        condition = latent = None
        if clip is not None:
            condition, record = self._once(given, "text_encoder_forward", lambda: self._condition(clip), self.results)
            yield record
        if model is not None:
            latent = tuple(request.get("latent") or self._latent(model))
            if condition is not None:
                work = partial(self._forward, model, condition, latent)
                key = ("forward", diffusion, latent, given)
                made, record = self._once(key, "diffusion_forward", work, self.results)
                yield record
                latent = made or latent
        if vae:
            decoder, record = self._once(("vae", vae), "vae_load", lambda: self._vae(vae))
            yield record
        if decoder is not None and latent is not None:
            key = ("decode", vae or checkpoint, latent)
            _, record = self._once(key, "vae_decode", partial(self._decode, decoder, latent), self.results)
            yield record

    def _once(self, key: Any, stage: str, work: Callable[[], Any], cache: Cache | None = None) -> Any:
        """(result, record) of a stage. `work` gives the result, and a dict of facts to tell where it is a pair."""
        return (self.loaded if cache is None else cache).get_or(key, lambda: self._stage(stage, work))

    def _stage(self, stage: str, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        record: dict[str, Any] = {"stage": stage, "state": "ran"}
        start = time.perf_counter()
        self.log.taken()
        result = None
        assert self.mode is not None
        self.mode.operation = ""
        try:
            result, facts = work()
            record["facts"] = facts
        except Unknowable as error:
            record.update(state="unknowable", message=str(error), **self._place(error))
        except Exception as error:
            record.update(state="failed", type=type(error).__name__, message=str(error)[:LONGEST], **self._place(error))
            if self.mode.operation:
                record.update(op=self.mode.operation, shapes=self.mode.shapes)
        record["logs"] = self.log.taken()
        record["seconds"] = round(time.perf_counter() - start, 3)
        return result, record

    def _place(self, error: BaseException) -> dict[str, Any]:
        """The checkout's innermost line, and the innermost module that was running."""
        place: dict[str, Any] = {}
        modules: list[torch.nn.Module] = []
        for frame, line in traceback.walk_tb(error.__traceback__):
            path = str(Path(frame.f_code.co_filename).absolute())  # not resolved: a part of the folder may be a link
            if path.startswith(self.directory + os.sep):
                place.update(file=os.path.relpath(path, self.directory).replace(os.sep, "/"), line=line)
            own = frame.f_locals.get("self")
            if isinstance(own, torch.nn.Module):
                modules.append(own)
        if modules:
            names = {id(m): n for n, m in modules[0].named_modules()}
            known = [names[id(m)] for m in modules if names.get(id(m))]
            place["module"] = known[-1] if known else ""
            place["module_class"] = type(modules[-1]).__name__
            place["model_class"] = type(modules[0]).__name__
        return place

    # The stages. Each gives (result, facts to tell).

    def _checkpoint(self, part: str) -> Any:
        found = self.comfy.sd.load_checkpoint_guess_config(part, output_vae=True, output_clip=True)
        model, clip, vae = found[:3]
        if vae is not None:
            try:
                vae.throw_exception_if_invalid()
            except Exception:  # one without a VAE in it; ComfyUI says so where the VAE is used, and it need not be
                vae = None
        return (model, clip, vae), self._model_facts(model) if model is not None else {}

    def _diffusion(self, part: str) -> Any:
        model = self.comfy.sd.load_diffusion_model(part, model_options={})
        return model, self._model_facts(model)

    @staticmethod
    def _model_facts(model: Any) -> dict[str, Any]:
        config = getattr(model.model, "model_config", None)
        latent = model.get_model_object("latent_format")
        return {"class": type(config).__name__, "model": type(model.model).__name__, "latent": type(latent).__name__}

    def _encoders(self, parts: tuple[str, ...], kind: str) -> Any:
        types = self.comfy.sd.CLIPType
        wanted = getattr(types, kind.upper(), types.STABLE_DIFFUSION)
        # model_options of its own: loaders write into the shared default, and one set would change the next
        clip = self.comfy.sd.load_clip(list(parts), embedding_directory=None, clip_type=wanted, model_options={})
        return clip, {"class": type(clip.cond_stage_model).__name__}

    def _lora(self, model: Any, clip: Any, part: str) -> Any:
        state = self._file(part)
        both = self.comfy.sd.load_lora_for_models(model, clip, state, 1.0, 1.0)
        patched = 0
        for patcher in (both[0], getattr(both[1], "patcher", None)):
            patched += len(getattr(patcher, "patches", {}) or {})
        return both, {"patched": patched}

    @staticmethod
    def _condition(clip: Any) -> Any:
        tokens = clip.tokenize(PROMPT)
        if hasattr(clip, "encode_from_tokens_scheduled"):
            condition = clip.encode_from_tokens_scheduled(tokens)
        else:
            cross, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
            condition = [[cross, {"pooled_output": pooled}]]
        cross, extra = condition[0]
        facts = {"context": list(cross.shape) if cross is not None else None}
        pooled = extra.get("pooled_output")
        facts["pooled"] = list(pooled.shape) if isinstance(pooled, torch.Tensor) else None
        return condition, facts

    @staticmethod
    def _latent(model: Any) -> tuple[int, ...]:
        latent = model.get_model_object("latent_format")
        sides = {1: (SIDE,), 2: (SIDE, SIDE), 3: (1, SIDE, SIDE)}[getattr(latent, "latent_dimensions", 2)]
        return (1, latent.latent_channels, *sides)

    def _forward(self, model: Any, condition: Any, shape: tuple[int, ...]) -> Any:
        try:
            return self._sampled(model, condition, shape)
        except ZeroDivisionError:  # the smallest latent is too small: a position table is scaled down to nothing
            return self._sampled(model, condition, tuple(128 if s == SIDE else s for s in shape))

    def _sampled(self, model: Any, condition: Any, shape: tuple[int, ...]) -> Any:
        sample = self.comfy.sample
        empty = sample.fix_empty_latent_channels(model, torch.zeros(shape))
        noise = sample.prepare_noise(empty, 0)
        given = inspect.signature(sample.sample).parameters
        options: dict[str, Any] = {k: v for k, v in (("disable_pbar", True), ("seed", 0)) if k in given}
        scheduler = "normal" if "normal" in self.comfy.samplers.KSampler.SCHEDULERS else "simple"
        out = sample.sample(model, noise, 1, 1.0, "euler", scheduler, condition, condition, empty, **options)
        return tuple(out.shape), {"latent": list(out.shape)}

    def _vae(self, part: str) -> Any:
        state, metadata = self._file(part, return_metadata=True)
        vae = self.comfy.sd.VAE
        more = {"metadata": metadata} if "metadata" in inspect.signature(vae.__init__).parameters else {}
        made = vae(sd=state, **more)
        made.throw_exception_if_invalid()
        return made, {"class": type(made.first_stage_model).__name__, "channels": made.latent_channels}

    @staticmethod
    def _decode(vae: Any, shape: tuple[int, ...]) -> Any:
        pixels = vae.decode(torch.empty(tuple(shape), device=META))
        return tuple(pixels.shape), {"pixels": list(pixels.shape)}
