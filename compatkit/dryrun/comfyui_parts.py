"""Model files as ComfyUI's loaders would see them: names, shapes and dtypes of what a state dict holds.

A plain file is handed over as it is. Packed weights (GGUF, scaled fp8, nvfp4, …) stand in with the shapes they unpack
to, so that what is compared is the model; names that ComfyUI-GGUF translates are translated by compatkit's key maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compatkit.dryrun.classes import solved
from compatkit.dryrun.plan import layout_in_file, weight_plan
from compatkit.identify.packing import Packings, Unpacked
from compatkit.knowledge.store import Knowledge
from compatkit.vocabulary import Component, Header

#: What a packed weight is computed in.
_UNPACKED = "F16"
_PLAIN = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"})


def part(components: Sequence[Component], knowledge: Knowledge) -> dict[str, Any]:
    """What one source holds, as a message: `tensors` {name: [dtype, shape]}, `metadata` {name: text}.

    `components` are all that were found in the source.
    """
    first = components[0]
    tensors = {name: t for c in components for name, t in c.tensors.items()}
    metadata = {k: v for c in components for k, v in c.metadata.items()}
    header = Header(first.source, first.format, first.size, first.header_bytes, tensors, metadata)
    unpacked = Packings(knowledge.table("packings")).unpack(header)
    shapes = _known_shapes(components, knowledge, _hidden(unpacked))
    out: dict[str, list[Any]] = {}
    for name, tensor in unpacked.tensors.items():
        packed = name in unpacked.loose or tensor.dtype not in _PLAIN
        shape = shapes.get(name, tensor.shape) if packed else tensor.shape
        out[name] = [_UNPACKED if packed and tensor.dtype not in ("F8_E4M3", "F8_E5M2") else tensor.dtype, list(shape)]
    if unpacked.covers:
        known = {n: [_UNPACKED, list(s)] for n, s in shapes.items() if n not in out}
        out.update(known)
    if first.format == "gguf":
        out = _translated(first, knowledge, out)
    plain = {k: v for k, v in metadata.items() if isinstance(v, str) and not k.startswith("_quant")}
    return {"tensors": out, "metadata": {} if first.format == "gguf" else plain}


def _hidden(unpacked: Unpacked) -> bool:
    return bool(unpacked.covers or unpacked.loose)


def _known_shapes(components: Iterable[Component], knowledge: Knowledge, needed: bool) -> Mapping[str, tuple[int, ...]]:
    """Full name -> shape as the families' grammars have it, for what a packing hides."""
    out: dict[str, tuple[int, ...]] = {}
    for component in components if needed else ():
        if component.family is None:
            continue
        document = knowledge.grammar(component.family)
        layout = layout_in_file(component, document)
        symbols, options = solved(component, document)
        try:
            plan = weight_plan(document, layout, layout, symbols, options, component.prefix)
        except KeyError:
            continue
        out.update({component.prefix + n: recipe.shape for n, recipe in plan.items()})
    return out


def _translated(component: Component, knowledge: Knowledge, tensors: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """llama.cpp's names as ComfyUI-GGUF hands them on; a diffusion model's names are ComfyUI's already."""
    if component.family is None or component.role not in ("text_encoder", "llm"):
        return tensors
    document = knowledge.grammar(component.family)
    of_file = layout_in_file(component, document)
    own = next(iter(document["layouts"]))
    if of_file == own:
        return tensors
    symbols, options = solved(component, document)
    out: dict[str, list[Any]] = {}
    for name, recipe in weight_plan(document, of_file, own, symbols, options, component.prefix).items():
        source = tensors.get(recipe.pieces[0].source)
        if source is not None:
            same = recipe.plain and _elements(source[1]) == _elements(recipe.shape)
            out[name] = [source[0], list(recipe.shape) if same or not recipe.plain else source[1]]
    return out or tensors


def left_out(component: Component, knowledge: Knowledge) -> frozenset[str]:
    """Tensors of the family that this layout never has, by the family's own names: a GGUF encoder without its vision.

    ComfyUI logs them as missing and runs: nothing that turns a prompt into features is among them.
    """
    if component.family is None or component.format != "gguf":
        return frozenset()
    document = knowledge.grammar(component.family)
    of_file, own = layout_in_file(component, document), next(iter(document["layouts"]))
    symbols, options = solved(component, document)
    whole = {**options, **((document.get("example") or {}).get("options") or {})}
    try:
        every = weight_plan(document, own, own, symbols, whole)
        return frozenset(every) - frozenset(weight_plan(document, of_file, own, symbols, options))
    except KeyError:
        return frozenset()


def _elements(shape: Iterable[int]) -> int:
    n = 1
    for side in shape:
        n *= side
    return n
