"""Builds a component's class without weights: every parameter on the meta device, every name accounted for.

torch and the library are loaded by `build`, not by importing this module. What goes wrong while they load is the
environment's fault and raised as `EnvironmentProblem`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import itertools
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from msgspec import Struct, field

from compatkit.dryrun.classes import NoClass, Spec, arguments, spec_of
from compatkit.dryrun.plan import Recipe, layout_in_file, weight_plan
from compatkit.knowledge.store import Knowledge
from compatkit.vocabulary import Component


class EnvironmentProblem(Exception):
    """torch or a library cannot be loaded, or is too old for a class; the text is one sentence."""


class Built(Struct):
    """A component's class, without weights.

    `module` has all parameters on the meta device. `plan` says which rows of which tensors of the file make each of
    its tensors; `missing` are tensors of the class that the file's family has not, `unused` what the file's layout has
    and the class has not, `tied` maps a name that the class shares with another to that other. `dtype` is what
    parameters and inputs are computed in.
    """

    module: Any
    spec: Spec
    plan: dict[str, Recipe]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    wrong: tuple[str, ...]
    tied: dict[str, str]
    dtype: Any
    parameters: int
    ignored: tuple[str, ...] = field(default=())

    def size(
        self, latent_side: int | None = None, tokens: int | None = None, frames: int | None = None
    ) -> dict[str, int]:
        """The sizes of a forward: the smallest valid ones where none is asked for."""
        asked = {"latent_side": latent_side, "prompt_tokens": tokens, "latent_frames": frames}
        return {k: v if (v := asked[k]) is not None else least for k, least in self.spec.sizes.items()}

    def inputs(
        self,
        latent_side: int | None = None,
        tokens: int | None = None,
        *,
        frames: int | None = None,
        device: str = "meta",
        dtype: Any = None,
        call: str | None = None,
        replace: Mapping[str, int] | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """The keyword arguments of a call (the class's usual one, if none is named), tensors on `device`.

        `latent_side` is the latent's height and width, `tokens` those of the prompt, `frames` the latent's. `replace`
        gives other values for symbols that shapes name: a context of another width than the model has, say. On a real
        device noise is drawn with `seed`.

        Raises:
            NoClass: the header does not tell a size that an input has.
        """
        env = {**self.spec.env, **self.size(latent_side, tokens, frames), **(replace or {})}
        out: dict[str, Any] = {}
        try:
            for path, described in arguments(self._call(call)["inputs"], env):
                _put(out, path, _argument(described, dtype or self.dtype, device, seed))
        except KeyError as e:
            raise NoClass(f"the header does not tell {e.args[0]}, which the inputs of {self.spec.name} need") from None
        return out

    def places(self, call: str | None = None) -> dict[str, tuple[str | int, ...]]:
        """What an input is for ("latent", "context", "pooled", "time", …) -> the path of keys to it."""
        env = {**self.spec.env, **self.spec.sizes}
        return {d["is"]: path for path, d in arguments(self._call(call)["inputs"], env) if d.get("is")}

    def output(self, result: Any, call: str | None = None) -> Any:
        """The tensor that matters, out of what the call returned."""
        for step in self._call(call)["output"]:
            result = result[step] if isinstance(step, int) else getattr(result, step)
            result = result() if inspect.ismethod(result) else result
        return result

    def method(self, call: str | None = None) -> Any:
        """What to call with the inputs: the module itself, or one of its methods (`decode`)."""
        name = call or self.usual_call
        return self.module if name == "forward" else getattr(self.module, name)

    @property
    def usual_call(self) -> str:
        """The first of the class's calls."""
        return next(iter(self.spec.calls), "forward")

    def _call(self, call: str | None) -> Mapping[str, Any]:
        return self.spec.calls.get(call or self.usual_call) or {"inputs": {}, "output": [0]}


def build(
    component: Component,
    knowledge: Knowledge,
    *,
    dtype: Any = None,
    depth: int | None = None,
    tables: str = "meta",
    family: str | None = None,
) -> Built:
    """Build the class of a component.

    `dtype` is a torch dtype or its name ("bfloat16", the default). `depth` caps every run of blocks. With
    `tables="cpu"` buffers and tables the class computes when it is made (rotary frequencies) are real, so that the
    model can be run once its weights are filled in; "meta" puts all on the meta device, for a run on shapes alone.

    Raises:
        NoClass: no class is known for the component, or it refuses the sizes of its header.
        EnvironmentProblem: torch or the library does not load, or has no such class.
    """
    return build_spec(
        spec_of(component, knowledge, depth=depth, family=family), knowledge, component, dtype=dtype, tables=tables
    )


def build_spec(
    spec: Spec, knowledge: Knowledge, component: Component | None = None, *, dtype: Any = None, tables: str = "meta"
) -> Built:
    """Build a class that is already configured. Without a component the plan is for a file in the class's layout.

    Raises:
        NoClass: the class refuses the configuration.
        EnvironmentProblem: torch or the library does not load, or has no such class.
    """
    torch = load("torch")
    kind = class_of(spec)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.bfloat16
    config, ignored = _accepted(kind, spec.config)
    with _quiet(), _without_weights(torch, tables):
        configured = getattr(kind, "config_class", None)
        try:
            module = kind(_configure(configured, config)) if configured else kind(**config)
        except Exception as e:  # the class's own checks of a configuration that no release has
            why = " ".join(str(e).split()) or type(e).__name__
            raise NoClass(f"{spec.name} cannot be made with the sizes of this header: {why}") from e
    _cast(torch, module, wanted)
    module.eval()
    for method in spec.setup:
        getattr(module, method)()
    document = knowledge.grammar(spec.family)
    prefix = component.prefix if component else ""
    of_file = layout_in_file(component, document) if component else spec.layout
    plan = weight_plan(document, of_file, spec.layout, spec.symbols, spec.options, prefix)
    tied = dict(getattr(module, "all_tied_weights_keys", None) or {})
    state = {n: tuple(t.shape) for n, t in module.state_dict().items() if n not in tied}
    plan_used = {n: recipe for n, recipe in plan.items() if n in state}
    return Built(
        module=module,
        spec=spec,
        plan=plan_used,
        missing=tuple(n for n in state if n not in plan),
        unused=tuple(n for n in plan if n not in state and n not in tied),
        wrong=tuple(
            n for n, r in plan_used.items() if r.shape != state[n] and math.prod(r.shape) != math.prod(state[n])
        ),
        tied=tied,
        dtype=wanted,
        parameters=sum(math.prod(s) for s in state.values()),
        ignored=tuple(ignored),
    )


def load(name: str) -> Any:
    """Import a library. Raises EnvironmentProblem with its own words if that fails for whatever reason."""
    try:
        return importlib.import_module(name)
    except Exception as e:
        why = " ".join(str(e).split()) or type(e).__name__
        raise EnvironmentProblem(f"{name.partition('.')[0]} cannot be loaded here: {why}") from e


def class_of(spec: Spec) -> Any:
    """The class itself. Raises EnvironmentProblem where the installed library has none of that name."""
    module, _, name = f"{spec.module}.{spec.name}".rpartition(".")
    with _quiet():
        library = load(module)
        try:
            return getattr(library, name)
        except AttributeError:
            version = getattr(load(spec.library), "__version__", "of unknown version")
            raise EnvironmentProblem(f"{spec.library} {version} has no {name}: install a newer one") from None
        except Exception as e:  # a lazy module imports what the class needs only now
            why = " ".join(str(e).split()) or type(e).__name__
            raise EnvironmentProblem(f"{spec.library} cannot load {name} here: {why}") from e


def _accepted(kind: Any, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The part of a configuration that the installed class takes, and the keys it does not know."""
    given = copy.deepcopy(dict(config))  # a library may change what it is given
    if getattr(kind, "config_class", None):
        return given, []
    known = inspect.signature(kind.__init__).parameters
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return given, []
    return {k: v for k, v in given.items() if k in known}, [k for k in given if k not in known]


def _configure(kind: Any, config: Mapping[str, Any]) -> Any:
    return kind(**config)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what libraries print and warn of while they load and build out of the user's report."""
    before = logging.root.manager.disable
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def _without_weights(torch: Any, tables: str) -> Iterator[None]:
    """Make parameters on the meta device; with `tables` "cpu" everything else that a class computes stays real.

    Layers of torch itself then allocate on meta (nothing large is ever made), and whatever else becomes a parameter
    is moved there.
    """
    if tables == "meta":
        with torch.device("meta"):
            yield
        return
    from torch.overrides import TorchFunctionMode
    from torch.utils._device import _device_constructors

    makers = _device_constructors()
    register = torch.nn.Module.register_parameter

    class Layers(TorchFunctionMode):  # type: ignore[misc]
        """Factories called by torch's own layers make meta tensors."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in makers and kwargs.get("device") is None and _within_layer():
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    def on_meta(module: Any, name: str, parameter: Any) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = on_meta
    try:
        with Layers():
            yield
    finally:
        torch.nn.Module.register_parameter = register


def _within_layer() -> bool:
    """Whether the innermost caller outside this module and the overrides of torch is one of torch's layers."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("torch.nn."):
            return True
        if not name.startswith(("torch.", "compatkit.dryrun.build")) and name != "torch":
            return False
        frame = frame.f_back
    return False


def _cast(torch: Any, module: Any, dtype: Any) -> None:
    """Give parameters and stored buffers the compute dtype, but for those the class keeps in float32.

    Tables that are not stored stay as they were computed: a library casts what it loads, and those are not loaded.
    """
    keep = tuple(getattr(module, "_keep_in_fp32_modules", None) or ())
    for prefix, inner in module.named_modules():
        for name, parameter in inner._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                path = f"{prefix}.{name}".split(".")
                to = torch.float32 if any(k in path for k in keep) else dtype
                if parameter.dtype != to:
                    cast = torch.nn.Parameter(parameter.to(to), requires_grad=False)
                    inner._parameters[name] = cast
        stored = set(inner._buffers) - inner._non_persistent_buffers_set
        for name in stored:
            buffer = inner._buffers[name]
            if buffer is not None and buffer.is_floating_point():
                inner._buffers[name] = buffer.to(dtype)
    module.requires_grad_(False)


def _put(tree: dict[str, Any], path: Sequence[str | int], value: Any) -> None:
    """Set what stands at a path of keys and indexes; the lists and mappings on the way are made."""
    inner: Any = tree
    for key, after in itertools.pairwise(path):
        empty: Any = [] if isinstance(after, int) else {}
        if isinstance(inner, list) and key == len(inner):
            inner.append(empty)
        inner = inner.setdefault(key, empty) if isinstance(inner, dict) else inner[key]
    if isinstance(inner, list):
        inner.append(value)
    else:
        inner[path[-1]] = value


def _argument(described: Mapping[str, Any], dtype: Any, device: str, seed: int) -> Any:
    if "value" in described:
        return described["value"]
    tensor = _tensor(described, dtype, device, seed)
    for depth in range(int(described.get("list") or 0)):
        tensor = [tensor] * (described.get("times", 1) if depth == 0 else 1)
    return tensor


def _tensor(described: Mapping[str, Any], dtype: Any, device: str, seed: int) -> Any:
    import torch

    shape = described["shape"]
    kind = dtype if described["dtype"] == "compute" else getattr(torch, described["dtype"])
    if device == "meta":
        return torch.empty(shape, dtype=kind, device="meta")
    fill = described["fill"]
    if isinstance(fill, (int, float)):
        return torch.full(shape, fill, dtype=kind, device=device)
    if fill == "ones":
        return torch.ones(shape, dtype=kind, device=device)
    if fill == "zeros":
        return torch.zeros(shape, dtype=kind, device=device)
    if fill == "index":
        return torch.arange(math.prod(shape), device=device).reshape(shape).to(kind)
    if fill == "after":  # a mask: nothing before, everything from there on
        return (torch.arange(math.prod(shape), device=device) >= described["after"]).reshape(shape).to(kind)
    if fill == "grid":  # positions: one row a point of the grid, one column an axis
        axes = torch.meshgrid(*(torch.arange(n) for n in described["grid"]), indexing="ij")
        return torch.stack([a.flatten() for a in axes], -1).reshape(shape).to(device=device, dtype=kind)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device=device, dtype=kind)
