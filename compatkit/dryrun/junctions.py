"""A junction of a family's card as steps with the shapes that the file at hand has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt, prod
from typing import Any

from compatkit.adapters.base import of_component, own_layout, renamed
from compatkit.checks.loaders import Loader
from compatkit.checks.parts import Part
from compatkit.knowledge.protocol import Rules

#: Dtypes that a weight is computed in as it stands; all others are unpacked first.
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
COMPUTE = "bfloat16"
#: Tokens of a prompt: any number would do, it only shows in the text.
TOKENS = 18
#: Features that stand beside a vector are of the model's own making: sizes, times.
_LAST = -1


class Model:
    """A component's weights in its family's own names, with their true shapes, whatever the file's layout and
    packing.
    """

    def __init__(self, part: Part, rules: Rules) -> None:
        self.part = part
        self._rules = rules
        base = of_component(part.component, rules)
        self.shapes: Mapping[str, tuple[int | None, ...]] = base.shapes if base else {}
        self._symbols = base.symbols if base else {}
        self._names: dict[str, dict[str, str]] = {}

    def weight(self, module: str, declared: Sequence[Any] = ()) -> tuple[int, ...] | None:
        """The shape of a module's weight (or of the tensor of that name), else what the card declares."""
        for name in (f"{module}.weight", module):
            shape = self.shapes.get(name)
            if shape and all(side is not None for side in shape):
                return tuple(side for side in shape if side is not None)
        sides = [self.part.number(s) if isinstance(s, str) else s for s in declared]
        whole = [s for s in sides if isinstance(s, int) and not isinstance(s, bool)]
        return tuple(whole) if whole and len(whole) == len(sides) else None

    def dtype(self, module: str) -> str:
        """The name torch has for the dtype that the weight is computed in."""
        tensor = self.part.component.tensors.get(self.in_file(module))
        return DTYPES.get(tensor.dtype, COMPUTE) if tensor else COMPUTE

    def stored(self, module: str) -> str:
        """The dtype in the file, "" where the tensor is not found in it."""
        tensor = self.part.component.tensors.get(self.in_file(module))
        return tensor.dtype if tensor else ""

    def in_file(self, module: str) -> str:
        """The tensor's name in the file: the first of several it is made of."""
        component = self.part.component
        own = f"{module}.weight" if f"{module}.weight" in self.shapes else module
        return component.prefix + self._spelled(component.layout).get(own, own)

    def in_layout(self, module: str, layout: str) -> str:
        """The module's name in another layout, its own where that has none."""
        found = self._spelled(layout).get(f"{module}.weight")
        return found.removesuffix(".weight") if found else module

    def _spelled(self, layout: str) -> dict[str, str]:
        if layout not in self._names:
            family = self.part.component.family
            names: dict[str, str] = {}
            document = self._rules.grammar(family) if family else {"layouts": {}}
            if layout in document["layouts"] and layout != own_layout(document):
                for there, own, _ in renamed(document, layout, self._symbols):
                    names.setdefault(own, there)
            self._names[layout] = names
        return self._names[layout]


def entry(card: Mapping[str, Any], name: str | None, runtime: str) -> Mapping[str, Any] | None:
    """A junction as one runtime has it, None where there is none."""
    found = (card.get("junctions") or {}).get(name or "")
    if not isinstance(found, Mapping):
        return None
    other = found.get("runtimes") or {}
    if runtime in other:
        own: Mapping[str, Any] | None = other[runtime]
        return {**{k: v for k, v in found.items() if k in ("carries", "tokens")}, **own} if own else None
    return found


def about(junction: Mapping[str, Any], default: str) -> str:
    """What a junction carries: pooled, image, …"""
    return str(junction.get("carries") or default)


def steps(junction: Mapping[str, Any], model: Model, loader: Loader, base: Model | None = None) -> list[dict[str, Any]]:
    """The operations of a junction, in order.

    `base` is the model that an adapter is put on: a step that names a module of it (`onto`) takes that side from there.

    Raises:
        LookupError: a weight of it is not in this file, or its shape is not known. The text says which.
    """
    out: list[dict[str, Any]] = [{"op": op} for op in junction.get("via") or ()]
    if junction.get("patch") and junction["op"] == "linear":
        out.append({"op": "patches", "patch": list(junction["patch"])})
    for step in (junction, *(junction.get("then") or ())):
        if step["op"] == "folded":
            out.append({"op": "folded", "module": step["module"]})
            continue
        if step["op"] == "reshape":
            out.append(_reshaped(step, junction, model, loader))
            continue
        module = chosen(step["module"], model)
        weight = model.weight(module, step.get("weight") or ())
        if weight is None and step is not junction:
            continue  # a part that only some releases have
        if weight is None:
            raise LookupError(f"{model.part.fields['name']} has no {module} whose shape is known")
        made: dict[str, Any] = {
            "op": step["op"],
            "module": spelled(model, module, loader),
            "own": module,
            "weight": list(weight),
        }
        made |= {k: step[k] for k in ("groups", "heads") if k in step}
        if junction.get("patch") and step["op"].startswith("conv"):
            made["patch"] = True
        if step is junction and junction.get("cut"):
            out.append({"op": "cut", "size": weight[-1]})
        if step is junction and junction.get("beside"):
            size = junction["beside"]
            size = model.part.number(size) if isinstance(size, str) else size
            out.append({"op": "beside", "size": size or 0, "dim": _LAST})
        out.append(made)
    return out


def chosen(module: Any, model: Model) -> str:
    """The module's name; of several forms the one that this file has, else the first."""
    if isinstance(module, str):
        return module
    return next((str(m) for m in module if model.weight(str(m))), str(module[0]))


def _reshaped(step: Mapping[str, Any], junction: Mapping[str, Any], model: Model, loader: Loader) -> dict[str, Any]:
    known = {"tokens": junction.get("tokens") or TOKENS}
    sides = [known.get(s) or model.part.number(s) if isinstance(s, str) else s for s in step.get("shape") or ()]
    if not sides or None in sides:
        raise LookupError(f"{model.part.fields['name']}: the shape that {step['module']} takes is not known")
    return {"op": "reshape", "module": spelled(model, step["module"], loader), "shape": sides, "weight": sides}


def spelled(model: Model, module: str, loader: Loader) -> str:
    """A module's name as the runtime has it: a runtime that reads one layout only names its modules so."""
    layouts = (loader.table.get("layouts") or {}).get(model.part.role) or {}
    return model.in_layout(module, next(iter(layouts))) if len(layouts) == 1 else module


def stretched(weight: Sequence[int], ndim: int) -> list[int]:
    """A vector of one number a channel, as it is laid on a latent of so many sides."""
    return [1, *weight, *[1] * (ndim - 2)]


def patch_of(features: int, channels: int, ndim: int) -> list[int] | None:
    """The square patch that makes so many features of so many channels: [2, 2]; [1, 2, 2] with a time axis."""
    if channels <= 0 or features % channels:
        return None
    size = isqrt(features // channels)
    if size * size != features // channels or ndim not in (4, 5):
        return None
    return [1] * (ndim - 4) + [size, size]


def taken(junction: Mapping[str, Any], weight: Sequence[int]) -> int:
    """How many channels or features the first operation takes, before patches are cut."""
    if junction["op"] in ("rms_norm", "layer_norm", "mul", "stats", "group_norm"):
        return weight[-1]
    if junction["op"].startswith("conv"):
        return weight[1]
    return weight[-1] // prod(int(p) for p in junction.get("patch") or [1])
