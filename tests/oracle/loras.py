"""diffusers' own LoRA loaders, run without a pipeline: what they make of a file, and which modules it reaches."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from compatkit.adapters.base import of_family
from compatkit.adapters.keys import spellings
from compatkit.adapters.places import total
from compatkit.adapters.speller import Speller
from compatkit.knowledge.store import Knowledge

#: The loader of each class's pipelines.
LOADERS = {
    "UNet2DConditionModel": "StableDiffusionXLLoraLoaderMixin",
    "FluxTransformer2DModel": "FluxLoraLoaderMixin",
    "ChromaTransformer2DModel": "FluxLoraLoaderMixin",
    "SD3Transformer2DModel": "SD3LoraLoaderMixin",
    "AuraFlowTransformer2DModel": "AuraFlowLoraLoaderMixin",
    "CogVideoXTransformer3DModel": "CogVideoXLoraLoaderMixin",
    "MochiTransformer3DModel": "Mochi1LoraLoaderMixin",
    "LTXVideoTransformer3DModel": "LTXVideoLoraLoaderMixin",
    "LTX2VideoTransformer3DModel": "LTX2LoraLoaderMixin",
    "SanaTransformer2DModel": "SanaLoraLoaderMixin",
    "HunyuanVideoTransformer3DModel": "HunyuanVideoLoraLoaderMixin",
    "Lumina2Transformer2DModel": "Lumina2LoraLoaderMixin",
    "Kandinsky5Transformer3DModel": "KandinskyLoraLoaderMixin",
    "WanTransformer3DModel": "WanLoraLoaderMixin",
    "WanVACETransformer3DModel": "WanLoraLoaderMixin",
    "SkyReelsV2Transformer3DModel": "SkyReelsV2LoraLoaderMixin",
    "CogView4Transformer2DModel": "CogView4LoraLoaderMixin",
    "HiDreamImageTransformer2DModel": "HiDreamImageLoraLoaderMixin",
    "QwenImageTransformer2DModel": "QwenImageLoraLoaderMixin",
    "Krea2Transformer2DModel": "Krea2LoraLoaderMixin",
    "ZImageTransformer2DModel": "ZImageLoraLoaderMixin",
    "Flux2Transformer2DModel": "Flux2LoraLoaderMixin",
    "Ideogram4Transformer2DModel": "Ideogram4LoraLoaderMixin",
    "ErnieImageTransformer2DModel": "ErnieImageLoraLoaderMixin",
    "AceStepTransformer1DModel": "AceStepLoraLoaderMixin",
    "MiniMaxH3Transformer3DModel": "MiniMaxH3LoraLoaderMixin",
}
#: This one asks that some key says "lora", the others that every key does; these also take "lokr".
SOME, WITH_LOKR = "FluxLoraLoaderMixin", ("ZImageLoraLoaderMixin", "Flux2LoraLoaderMixin")
AB, UD = (".lora_B.weight", ".lora_A.weight"), (".lora_up.weight", ".lora_down.weight")
DOTS = (".lora.up.weight", ".lora.down.weight")
DEFAULT = (".lora_B.default.weight", ".lora_A.default.weight")
LOKR, LOHA, DIFF = (".lokr_w1", ".lokr_w2"), (".hada_w1_a", ".hada_w1_b"), (".diff", "")


class Way(NamedTuple):
    """A way to write a LoRA: whose names, before them, joined by underscores, endings, with alphas."""

    names: str
    prefix: str
    joined: bool
    endings: tuple[str, str]
    alpha: bool


OWN, THEIRS = "native", "diffusers"
WAYS = {
    "diffusers": Way(THEIRS, "transformer.", False, AB, False),
    "diffusers, alphas": Way(THEIRS, "transformer.", False, AB, True),
    "diffusers, dots": Way(THEIRS, "transformer.", False, DOTS, False),
    "native": Way(OWN, "diffusion_model.", False, AB, False),
    "native, alphas": Way(OWN, "diffusion_model.", False, AB, True),
    "native, up and down": Way(OWN, "diffusion_model.", False, UD, True),
    "native, up and down, no alphas": Way(OWN, "diffusion_model.", False, UD, False),
    "diffusers' names as native": Way(THEIRS, "diffusion_model.", False, AB, False),
    "native names as diffusers'": Way(OWN, "transformer.", False, AB, False),
    "kohya": Way(OWN, "lora_unet_", True, UD, True),
    "kohya without alphas": Way(OWN, "lora_unet_", True, UD, False),
    "kohya with diffusers' names": Way(THEIRS, "lora_unet_", True, UD, True),
    "bare": Way(THEIRS, "", False, AB, False),
    "bare, up and down": Way(THEIRS, "", False, UD, True),
    "bare, default": Way(THEIRS, "", False, DEFAULT, False),
    "bare native": Way(OWN, "", False, AB, False),
    "PEFT": Way(THEIRS, "base_model.model.", False, AB, False),
    "OneTrainer": Way(THEIRS, "lora_transformer_", True, UD, True),
    "LyCORIS LoRA": Way(THEIRS, "lycoris_", True, UD, True),
    "LyCORIS LoKr": Way(THEIRS, "lycoris_", True, LOKR, True),
    "native LoKr": Way(OWN, "diffusion_model.", False, LOKR, True),
    "native LoKr in diffusers' names": Way(THEIRS, "diffusion_model.", False, LOKR, True),
    "diffusers LoKr": Way(THEIRS, "transformer.", False, LOKR, False),
    "kohya LoKr": Way(OWN, "lora_unet_", True, LOKR, True),
    "kohya LoHa": Way(OWN, "lora_unet_", True, LOHA, True),
    "full differences": Way(OWN, "diffusion_model.", False, DIFF, False),
}
_BLOCKS = re.compile(r"(block|layer|refiner)s?\.\d")
#: Bare parameters, which are no modules.
_PARAMETER = re.compile(r"scale_shift_table|\.modulation$")
_ENDING = re.compile(r"\.(lora_[AB]\.weight|lora\.(up|down)\.weight|lora_(up|down)\.weight|lokr_w[12])$")


class Seen(NamedTuple):
    """What a loader did: refused the file, or reached so many of its modules."""

    refused: str
    reached: int
    keys: dict[str, torch.Tensor]


class Oracle:
    """One family's loader."""

    def __init__(self, family: str, knowledge: Knowledge) -> None:
        base = of_family(family, knowledge)
        assert base is not None
        self.base = base
        self.speller = Speller(base, knowledge, spellings(knowledge.adapters("spellings")))
        self.cls = str(base.runtime_class("diffusers"))
        self.name = "unet" if self.cls.startswith("UNet") else "transformer"
        self.theirs = self.speller.modules(self.speller.layout_of(THEIRS))

    def file(self, way: Way) -> tuple[dict[str, torch.Tensor], dict[int, str]]:
        """A LoRA of rank 1 of all blocks; the inner matrix of each module holds its number."""
        out: dict[str, torch.Tensor] = {}
        numbers: dict[int, str] = {}
        prefix = way.prefix.replace("transformer.", f"{self.name}.")
        for name, module in self.speller.modules(self.speller.layout_of(way.names)).items():
            if module.weight is None or not _BLOCKS.search(name) or _PARAMETER.search(name):
                continue
            shape = self.base.shapes[module.weight[0].tensor]
            if len(shape) < 2 or None in shape:
                continue
            number = len(numbers) + 1
            full = prefix + (name.replace(".", "_") if way.joined else name)
            numbers[number] = full
            self._module(out, full, number, way, (total(module.weight), *[s or 1 for s in shape[1:]]))
        return out, numbers

    def _module(self, out: dict[str, torch.Tensor], name: str, number: int, way: Way, shape: tuple[int, ...]) -> None:
        up, down = way.endings
        nothing = torch.zeros(())
        if way.endings == LOKR:
            out[name + up] = torch.full((1, 1), float(number))
            out[name + down] = nothing.expand(*shape)
        elif way.endings == LOHA:
            for n in "12":
                out[f"{name}.hada_w{n}_a"] = nothing.expand(shape[0], 1)
                out[f"{name}.hada_w{n}_b"] = torch.full((1, shape[1]), float(number))
        elif way.endings == DIFF:
            out[name + up] = nothing.expand(*shape)
        else:
            out[name + down] = torch.full((1, shape[1], *shape[2:]), float(number))
            out[name + up] = torch.zeros((shape[0], 1, *[1] * len(shape[2:])))
        if way.alpha:
            out[f"{name}.alpha"] = torch.tensor(1.0)

    def load(self, file: dict[str, torch.Tensor], numbers: dict[int, str]) -> Seen:
        """What the loader makes of a file; without `numbers` the modules that it reaches are not counted."""
        from diffusers.loaders import lora_pipeline

        loader = LOADERS[self.cls]
        more: dict[str, Any] = {"unet_config": SimpleNamespace(layers_per_block=2)} if self.name == "unet" else {}
        try:
            found = getattr(lora_pipeline, loader).lora_state_dict(dict(file), **more)
        except Exception as e:  # whatever it raises is its answer
            return Seen(f"{type(e).__name__}: {e}", 0, {})
        keys: dict[str, torch.Tensor] = found[0] if isinstance(found, tuple) else found
        if loader == SOME:
            wrong = [] if any("lora" in k for k in keys) else list(keys)
        else:
            words = ("lora", "lokr") if loader in WITH_LOKR else ("lora",)
            wrong = [k for k in keys if not any(word in k for word in words)]
        if wrong:
            return Seen(f"Invalid LoRA checkpoint: {wrong[0]}", 0, keys)
        reached: set[str | None] = set()
        if not numbers:
            return Seen("", 0, keys)
        for key, value in keys.items():
            if key.startswith(f"{self.name}.") and re.search(r"(lora_A\.weight|lora\.down\.weight|lokr_w1)$", key):
                module = _ENDING.sub("", key[len(self.name) + 1 :])
                module = re.sub(r"\.processor\.(to_\w+?)_lora(\.down\.weight)?$", _unprocessed, module)
                if module in self.theirs:
                    reached.add(numbers.get(round(float(value.flatten()[0]))))
        return Seen("", len(reached - {None}), keys)


def _unprocessed(match: re.Match[str]) -> str:
    name = match[1]
    return ".to_out.0" if name == "to_out" else f".{name}"
