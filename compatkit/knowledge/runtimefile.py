"""The schema of `rules/runtimes/*.yaml`: what a loader opens, since which version, and what it says when it refuses.

id: comfyui-gguf
title: ComfyUI-GGUF
part_of: comfyui             # it opens some formats for that runtime; `formats` says which
helpers: [comfyui-gguf]      # the other end of `part_of`
engine: torch                # whose error texts apply: torch or ggml
reference: {version: …, date: …}
formats: {diffusion: [gguf]}
layouts: {diffusion: {native: all, diffusers: [family, …]}, vae: {native: {known: [family, …]}}}   # of others not known
folders: {root: models, vae: vae}                   # where it looks for files, by role; `root` above all
prefixes: {diffusion: ["", "model."]}                # for one model in a file
checkpoint_prefixes: {vae: ["vae."]}                 # for an all-in-one checkpoint
history: [{version: …, date: …, diffusion: [arch, …], text_encoder: […]}]   # oldest first; lists stay until replaced
latents: [{from: 5, to: 4, op: frame, since: …, note: …}]   # what it does to latents of another rank than the VAE's
te_models: {NAME: {embedding: …, module: CLASS, routes: [{types: […], class: …, taps: 3, vocab: 32128}]}}
clip_types: {single: […], several: […], fallback: …}
together: [{types: […], class: …, parts: [NAME, …], count: 2}]
quantization_types: {fast: […], slow: […], fail: […]}
errors: {architecture: {diffusion: "text with {architecture}"}}
models:                      # what it makes of each family, where its own code decides; compiled apart, read on demand
  - {class: Flux, families: [flux_dev, …], layouts: [native], since: …, prefixes: [""], with: "--clip_l … --t5xxl …"}
  - {class: Wan 2.x, families: […], misread: true}         # it takes them for that class, which they are not
  - {class: SD 1.x, families: […], whole: true}            # only from a checkpoint or folder with its encoders
  - {families: […], refused: "its error"}
unlisted: {refused: "its error", but: […]}                 # every other family, as of `reference`; `but`: not known
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compatkit.knowledge.yamlfile import RuleFile, nearest

_KEYS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "title": str,
    "part_of": str,
    "default": bool,
    "engine": str,
    "versions": str,
    "reference": dict,
    "formats": dict,
    "layouts": dict,
    "single_file_classes": list,
    "folders": dict,
    "prefixes": dict,
    "checkpoint_prefixes": dict,
    "history": list,
    "compatible": dict,
    "te_models": dict,
    "clip_types": dict,
    "together": list,
    "helpers": list,
    "quantization_types": dict,
    "latents": list,
    "errors": dict,
    "models": list,
    "unlisted": dict,
    "notes": list,
    "references": list,
}
_TE_KEYS = ("embedding", "routes", "network", "module", "note")
_ROUTE_KEYS = ("types", "class", "taps", "vocab", "note")
_TOGETHER_KEYS = ("types", "class", "parts", "count", "concat", "gives", "vocab", "note")
_LATENT_KEYS = ("from", "to", "op", "axis", "except", "since", "otherwise", "note")
_CLIP_KEYS = ("single", "several", "fallback")
_MODEL_KEYS = (
    "class", "families", "layouts", "since", "prefixes", "formats", "with", "misread", "whole", "refused", "note",
)  # fmt: skip
_HISTORY_KEYS = ("version", "date", "build", "diffusion", "text_encoder", "clip_vision", "mmproj", "note")


def parse(file: RuleFile) -> dict[str, Any]:
    """`{id: table}` of one file.

    Raises:
        RuleFileError: at the position of what is wrong.
    """
    data = file.data
    if not isinstance(data, Mapping):
        raise file.error((), "a runtime file is a mapping")
    for key, value in data.items():
        if key not in _KEYS:
            raise file.error((key,), f"unknown key {key!r}{nearest(str(key), _KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise file.error((key,), f"{key!r} has the wrong type: {type(value).__name__}")
    for key in ("id", "title", "engine"):
        if key not in data:
            raise file.error((), f"{key!r} is missing")
    if data["engine"] not in ("torch", "ggml"):
        raise file.error(("engine",), f"engine {data['engine']!r} is neither torch nor ggml")
    _layouts(file, data.get("layouts") or {})
    for name, model in (data.get("te_models") or {}).items():
        _keys(file, ("te_models", name), model, _TE_KEYS)
        for i, route in enumerate(model.get("routes") or []):
            _keys(file, ("te_models", name, "routes", i), route, _ROUTE_KEYS, needed=("class",))
    _keys(file, ("clip_types",), data.get("clip_types") or {}, _CLIP_KEYS)
    for i, route in enumerate(data.get("together") or []):
        _keys(file, ("together", i), route, _TOGETHER_KEYS, needed=("class",))
        for j, part in enumerate(route.get("parts") or []):
            if part not in (data.get("te_models") or {}):
                raise file.error(("together", i, "parts", j), f"{part!r} is not one of te_models")
    for i, entry in enumerate(data.get("history") or []):
        _keys(file, ("history", i), entry, _HISTORY_KEYS, needed=("version",))
    for i, entry in enumerate(data.get("latents") or []):
        _keys(file, ("latents", i), entry, _LATENT_KEYS, needed=("from", "to", "op"))
    _types(file, data)
    for i, entry in enumerate(data.get("models") or []):
        _keys(file, ("models", i), entry, _MODEL_KEYS, needed=("families",))
        if ("class" in entry) == ("refused" in entry):
            raise file.error(("models", i), "either the class that it builds, or the error with which it refuses")
    _keys(file, ("unlisted",), data.get("unlisted") or {}, ("refused", "but"))
    return {str(data["id"]): {k: v for k, v in data.items() if k != "models"} | _flag(data)}


def _flag(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"models": True} if data.get("models") else {}


def models(file: RuleFile) -> dict[str, dict[str, Any]]:
    """`{family: what the runtime makes of it}` of one file that `parse` accepts.

    Raises:
        RuleFileError: a family stands there twice.
    """
    out: dict[str, dict[str, Any]] = {}
    for i, entry in enumerate(file.data.get("models") or []):
        for j, family in enumerate(entry["families"]):
            if family in out:
                raise file.error(("models", i, "families", j), f"{family!r} stands in two entries")
            known = {k: v for k, v in entry.items() if k not in ("families", "note")}
            if entry.get("misread"):
                known["misread"] = entry["class"]
            out[str(family)] = known
    return out


def _layouts(file: RuleFile, layouts: Mapping[str, Any]) -> None:
    for role, table in layouts.items():
        if not isinstance(table, Mapping):
            raise file.error(("layouts", role), "a mapping of layouts: all, none, or a list of families")
        for layout, families in table.items():
            if isinstance(families, Mapping) and set(families) == {"known"}:
                continue
            if not isinstance(families, list) and families not in ("all", "none"):
                raise file.error(("layouts", role, layout), "all, none, or a list of families, also under 'known'")


def _types(file: RuleFile, data: Mapping[str, Any]) -> None:
    """Every clip type a route names must be one of `clip_types`."""
    kinds = data.get("clip_types") or {}
    known = {*(kinds.get("single") or []), *(kinds.get("several") or [])}
    for name, model in (data.get("te_models") or {}).items():
        for i, route in enumerate(model.get("routes") or []):
            for j, kind in enumerate(route.get("types") or []):
                if kind not in known:
                    where = ("te_models", name, "routes", i, "types", j)
                    raise file.error(where, f"{kind!r} is not one of clip_types{nearest(kind, known)}")
    for i, route in enumerate(data.get("together") or []):
        for j, kind in enumerate(route.get("types") or []):
            if kind not in known:
                raise file.error(
                    ("together", i, "types", j), f"{kind!r} is not one of clip_types{nearest(kind, known)}"
                )


def _keys(
    file: RuleFile, where: tuple[Any, ...], value: Any, known: tuple[str, ...], needed: tuple[str, ...] = ()
) -> None:
    if not isinstance(value, Mapping):
        raise file.error(where, f"a mapping with the keys {', '.join(known)}")
    for key in value:
        if key not in known:
            raise file.error((*where, key), f"unknown key {key!r}{nearest(str(key), known)}")
    for key in needed:
        if key not in value:
            raise file.error(where, f"{key!r} is missing")
