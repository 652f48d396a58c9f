"""A few hand-written families over the real checks and runtimes, and components without files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from compatkit.knowledge import checkfile, runtimefile
from compatkit.knowledge.yamlfile import load
from compatkit.vocabulary import Component, FileProblem, Quantization, Report, Runtime, Stack

RULES = Path(__file__).resolve().parents[2] / "rules"

_CTX = {"into": "context_dim"}


def _dit(
    title: str, space: str, encoders: list[Any], clip_type: str, junction: dict[str, Any], **more: Any
) -> dict[str, Any]:
    latent = {"space": space, "channels": more.pop("channels", 16), "ndim": more.pop("ndim", 4), "downscale": 8}
    runtimes = {"comfyui": {"class": title, "clip_type": clip_type, "since": more.pop("since", None)}}
    runtimes["comfyui-gguf"] = {"arch": "x"}
    return {
        "title": title,
        "role": "diffusion",
        "latent": latent,
        "text_encoders": encoders,
        "junctions": {"context_dim": junction},
        "runtimes": runtimes,
        **more,
    }


def _te(title: str, te_model: str | None) -> dict[str, Any]:
    comfyui = {"te_model": te_model} if te_model else {}
    return {"title": title, "role": "text_encoder", "runtimes": {"comfyui": comfyui}}


def _vae(title: str, space: str, op: str, weight: list[int], channels: int = 16, ndim: int = 4) -> dict[str, Any]:
    return {
        "title": title,
        "role": "vae",
        "latent": {"space": space, "channels": channels, "ndim": ndim},
        "junctions": {"latent_in": {"op": op, "module": "decoder.conv_in", "weight": weight}},
        "runtimes": {"comfyui": {"vae_class": "VAE"}},
    }


FAMILIES: dict[str, dict[str, Any]] = {
    "z_image_turbo": _dit(
        "Z-Image-Turbo", "flux1", [{"kind": "qwen3_4b", "taps": 1, **_CTX}], "lumina2",
        {"op": "rms_norm", "module": "cap_embedder.0"}, since="0.3.75",
    ),
    "z_image_base": _dit(
        "Z-Image", "flux1", [{"kind": "qwen3_4b", "taps": 1, **_CTX}], "lumina2",
        {"op": "rms_norm", "module": "cap_embedder.0"},
    ),
    "lumina2": _dit(
        "Lumina Image 2.0", "flux1", [{"kind": "gemma2_2b", **_CTX}], "lumina2", {"op": "rms_norm"}
    ),
    "flux2_klein_4b": _dit(
        "FLUX.2 klein 4B", "flux2", [{"kind": "qwen3_4b", "taps": 3, **_CTX}], "flux2",
        {"op": "linear", "module": "txt_in", "weight": ["hidden", "context_dim"]}, channels=128,
    ),
    "flux_dev": _dit(
        "FLUX.1 dev", "flux1", [{"kind": "clip_l", "into": "pooled_dim"}, {"kind": "t5xxl", **_CTX}], "flux",
        {"op": "linear", "module": "txt_in", "weight": ["hidden", "context_dim"]},
    ),
    "sdxl": _dit(
        "Stable Diffusion XL", "sdxl",
        [{"kind": "clip_l", "join": "concat", **_CTX}, {"kind": "clip_g", "join": "concat", **_CTX}], "sdxl",
        {"op": "linear", "module": "to_k"}, channels=4,
    ),
    "sd15": _dit(
        "Stable Diffusion 1.5", "sd15", [{"kind": "clip_l", **_CTX}], "stable_diffusion", {"op": "linear"}, channels=4
    ),
    "sd3_medium": _dit(
        "Stable Diffusion 3", "sd3",
        [
            {"kind": "clip_l", "join": "pad", **_CTX},
            {"kind": "clip_g", "join": "pad", **_CTX},
            {"kind": "t5xxl", "optional": True, **_CTX},
        ],
        "sd3", {"op": "linear"},
    ),
    "wan21_t2v_14b": _dit(
        "Wan 2.1", "wan21", [{"kind": "umt5_xxl", **_CTX}], "wan",
        {"op": "linear", "module": "text_embedding.0", "weight": [5120, "context_dim"]}, ndim=5,
    ),
    "qwen_image": _dit(
        "Qwen-Image", "wan21", [{"kind": "qwen2.5_vl_7b", **_CTX}], "qwen_image", {"op": "rms_norm"}, ndim=5
    ),
    "hidream_i1": _dit(
        "HiDream I1", "flux1",
        [
            {"kind": "clip_l", "into": None}, {"kind": "clip_g", "into": None},
            {"kind": "t5xxl", **_CTX}, {"kind": "llama3_8b", "vocab": 128256, **_CTX},
        ],
        "hidream", {"op": "linear"},
    ),
    "qwen3_4b": _te("Qwen3-4B", "QWEN3_4B"),
    "qwen3_8b": _te("Qwen3-8B", "QWEN3_8B"),
    "gemma2_2b": _te("Gemma-2-2B", "GEMMA_2_2B"),
    "gemma2_9b": _te("Gemma-2-9B", None),
    "gemma3_4b": _te("Gemma-3-4B", "GEMMA_3_4B"),
    "qwen2.5_vl_7b": _te("Qwen2.5-VL-7B", "QWEN25_7B"),
    "clip_l": _te("CLIP-L", "CLIP_L"),
    "clip_g": _te("CLIP-G", "CLIP_G"),
    "t5xxl": _te("T5-XXL", "T5_XXL"),
    "umt5_xxl": {**_te("UMT5-XXL", "T5_XXL"), "tokenizer": {"needs": "spiece_model"}},
    "llama3_8b": _te("Llama-3.1-8B", "LLAMA3_8"),
    "flux1_vae": _vae("FLUX.1 VAE (ae)", "flux1", "conv2d", [512, 16, 3, 3]),
    "sd3_vae": _vae("SD3 VAE", "sd3", "conv2d", [512, 16, 3, 3]),
    "sd15_vae": _vae("SD 1.5 VAE", "sd15", "conv2d", [4, 4, 1, 1], 4),
    "sdxl_vae": _vae("SDXL VAE", "sdxl", "conv2d", [4, 4, 1, 1], 4),
    "wan21_vae": _vae("Wan 2.1 VAE", "wan21", "conv3d", [16, 16, 1, 1, 1], 16, 5),
    "wan22_vae": _vae("Wan 2.2 VAE", "wan22", "conv3d", [48, 48, 1, 1, 1], 48, 5),
    "flux2_vae": _vae("FLUX.2 VAE", "flux2", "stats", [], 128),
}  # fmt: skip

FACTS: dict[str, dict[str, Any]] = {
    "z_image_turbo": {"context_dim": 2560, "hidden": 3840},
    "lumina2": {"context_dim": 2304},
    "flux2_klein_4b": {"context_dim": 7680, "hidden": 3072},
    "flux_dev": {"context_dim": 4096, "pooled_dim": 768, "hidden": 3072},
    "sdxl": {"context_dim": 2048},
    "sd15": {"context_dim": 768},
    "sd3_medium": {"context_dim": 4096},
    "wan21_t2v_14b": {"context_dim": 4096},
    "qwen_image": {"context_dim": 3584},
    "hidream_i1": {"context_dim": 4096},
    "qwen3_4b": {"width": 2560, "vocab": 151936},
    "qwen3_8b": {"width": 4096, "vocab": 151936},
    "gemma2_2b": {"width": 2304, "vocab": 256000},
    "gemma2_9b": {"width": 3584, "vocab": 256000},
    "gemma3_4b": {"width": 2560, "vocab": 262208},
    "qwen2.5_vl_7b": {"width": 3584, "vocab": 152064},
    "clip_l": {"width": 768, "vocab": 49408},
    "clip_g": {"width": 1280, "vocab": 49408},
    "t5xxl": {"width": 4096, "vocab": 32128},
    "umt5_xxl": {"width": 4096, "vocab": 256384},
    "llama3_8b": {"width": 4096, "vocab": 128256},
}

ALSO = {"z_image_turbo": ("z_image_base",), "sd15_vae": ("sdxl_vae",), "flux1_vae": ("sd3_vae",)}


@cache
def check_entries() -> list[dict[str, Any]]:
    return [rule for path in sorted((RULES / "checks").glob("*.yaml")) for rule in checkfile.parse(load(path))]


@cache
def runtimes() -> dict[str, Any]:
    return {
        k: v for path in sorted((RULES / "runtimes").glob("*.yaml")) for k, v in runtimefile.parse(load(path)).items()
    }


class FakeRules:
    """The rules of the repository with hand-written families."""

    def __init__(self, families: Mapping[str, Mapping[str, Any]] = FAMILIES) -> None:
        self.families = {k: {"id": k, **v} for k, v in families.items()}
        self.packings = {
            "dfloat11": {
                "title": "DFloat11",
                "loaders": {"dfloat11": {"since": None, "note": "a node of its own"}},
                "effect": "noise or black images",
            },
            "fp8_scaled": {"title": "fp8 with scales", "loaders": {"comfyui": {"since": "0.3.76"}}},
        }

    def family(self, family: str) -> Mapping[str, Any]:
        return self.families[family]

    def has_family(self, family: str) -> bool:
        return family in self.families

    def checks(self) -> Sequence[Mapping[str, Any]]:
        return check_entries()

    def runtime(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = runtimes()[name]
        return found

    def packing(self, scheme: str) -> Mapping[str, Any]:
        return self.packings.get(scheme, {})

    def fixed(self, family: str, fact: str) -> int | None:
        return None

    def models(self, runtime: str) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def adapters(self, name: str) -> Mapping[str, Any]:
        return {}

    def grammar(self, family: str) -> Mapping[str, Any]:
        raise KeyError(family)

    def owner(self, family: str) -> str:
        return family

    def table(self, name: str) -> Any:
        return {"APipeline": {"transformer": "ATransformer"}} if name == "pipelines" else []


def component(family: str | None, name: str = "", **more: Any) -> Component:
    """A component of a family of `FAMILIES`, as its file would give it."""
    card = FAMILIES.get(family or "", {})
    latent = card.get("latent", {})
    also = more.pop("also", ALSO.get(family or "", ()))
    facts = {**FACTS.get(family or "", {}), **more.pop("facts", {})}
    if latent:
        spaces = [latent["space"], *(FAMILIES[a]["latent"]["space"] for a in also)]
        facts.setdefault("latent_space", list(dict.fromkeys(spaces)))
        facts |= {"latent_channels": latent["channels"], "latent_ndim": latent["ndim"]}
    fields: dict[str, Any] = {
        "source": name or f"{family or 'file'}.safetensors",
        "format": "gguf" if name.endswith(".gguf") else "safetensors",
        "size": 12_309_866_400,
        "header_bytes": 1000,
        "role": card.get("role", "unknown"),
        "family": family,
        "also": also,
        "layout": "gguf" if name.endswith(".gguf") else "native",
        "prefix": "",
        "quantization": Quantization(more.pop("scheme", "none"), more.pop("dtypes", {"BF16": 100})),
        "parameters": 6_154_908_736,
        "key_groups": {},
        "loads_as": {},
        "facts": facts,
        "evidence": (),
        "title": card.get("title", ""),
    }
    return Component(**{**fields, **more})


def gguf(family: str, architecture: str | None, **more: Any) -> Component:
    """A component of a GGUF file."""
    metadata = {"general.architecture": architecture} if architecture else {}
    return component(
        family, f"{family}-Q4_K_M.gguf", metadata=metadata, dtypes={"Q4_K": 200, "F32": 100}, scheme="Q4_K", **more
    )


def check(*components: Component, runtime: Sequence[str] = (), require: Sequence[str] = (), **settings: str) -> Report:
    """Judge components with the fake rules."""
    from compatkit.checks import judge

    wanted = tuple(Runtime(*(r.split("@", 1))) for r in runtime)
    return judge(Stack(tuple(components), wanted, settings, tuple(require)), FakeRules())


def rules_of(report: Report, level: str = "") -> list[str]:
    """Rule ids of the findings, optionally of one level."""
    return [f.rule for f in report.findings if not level or f.level == level]


def broken(message: str = "the file is cut short") -> FileProblem:
    return FileProblem("file/truncated", message, "Download it again.", {"size": 5, "declared": 10})
