"""Runs a model whose weights stay in the file: each is brought when an operation asks for it, and let go of after.

The model is made on the meta device. A function mode looks at the arguments of every call of torch; where one is a
parameter (or a stored buffer), the real tensor takes its place for that one call. So it does not matter whether a
module uses its own weight, a parent's, or one inside a list, and no class needs to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct, field

from compatkit.dryrun.plan import Recipe
from compatkit.smoke.fetch import Fetcher
from compatkit.smoke.record import Record, Recorder

if TYPE_CHECKING:
    import torch

#: An embedding table of this many values or more is read by the rows that are asked for.
_TABLE = 1 << 24


class Supply(Protocol):
    """Where real tensors come from."""

    device: Any

    def start(self, order: list[str]) -> None:
        """A run begins that will probably ask for tensors in this order."""

    def take(self, name: str) -> torch.Tensor:
        """The tensor of that name; valid until `give`."""

    def give(self, name: str) -> None:
        """The operation that took the tensor is done."""

    def end(self) -> None:
        """The run is over."""


class Result(Struct):
    """What a streamed run gave: the output, what was recorded, and which tensors were used in which order."""

    output: Any
    record: Record
    order: list[str] = field(default_factory=list)


class FromFile:
    """Tensors for the CPU: views of the mapped file, or unpacked where they must be. Implements `Supply`."""

    def __init__(self, fetcher: Fetcher, plan: Mapping[str, Recipe], dtypes: Mapping[str, torch.dtype]) -> None:
        import torch

        self.device = torch.device("cpu")
        self.fetcher, self.plan, self.dtypes = fetcher, plan, dtypes

    def start(self, order: list[str]) -> None:
        """See `Supply.start`; nothing is brought ahead: the pages of a view come as fast by being looked at."""

    def take(self, name: str) -> torch.Tensor:
        """See `Supply.take`."""
        return self.fetcher.tensor(self.plan[name], self.dtypes[name])

    def give(self, name: str) -> None:
        """See `Supply.give`."""
        self.fetcher.release(self.plan[name])

    def end(self) -> None:
        """See `Supply.end`."""


class _Meta:
    """Stand-ins for themselves, to learn what is asked for. Implements `Supply`."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        import torch

        self.device = torch.device("meta")
        self.tensors = tensors

    def start(self, order: list[str]) -> None:
        """See `Supply.start`."""

    def take(self, name: str) -> torch.Tensor:
        """See `Supply.take`."""
        return self.tensors[name]

    def give(self, name: str) -> None:
        """See `Supply.give`."""

    def end(self) -> None:
        """See `Supply.end`."""


class Streamed:
    """A module on the meta device that can be run with the weights of a file.

    Args:
        module: its parameters are on the meta device, in the dtypes they are computed in.
        plan: state-dict name -> recipe, for every parameter and stored buffer.
        supply: where their values come from.
        tied: state-dict name -> the other name it shares a tensor with.

    Raises KeyError where a parameter on the meta device has no recipe; the text names it.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        plan: Mapping[str, Recipe],
        supply: Supply,
        tied: Mapping[str, str] | None = None,
    ) -> None:
        self.module, self.supply, self.plan = module, supply, plan
        self.names: dict[int, str] = {}
        self._keep: list[torch.Tensor] = []
        tied = tied or {}
        for name, tensor in stored(module):
            if tensor.device.type != "meta":
                continue
            known = name if name in plan else tied.get(name, name)
            if known not in plan:
                if not tensor.is_floating_point():
                    continue  # a counter of training; were it used, torch would say so
                raise KeyError(f"the file has no values for {name}")
            self.names.setdefault(id(tensor), known)
            self._keep.append(tensor)
        self.order = list(dict.fromkeys(self.names.values()))

    def run(self, call: Callable[[], Any], recorder: Recorder | None = None) -> Result:
        """`call()` with the weights streamed; `recorder` watches its operations."""
        import torch

        taken: list[str] = []
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            if recorder is not None:
                stack.enter_context(recorder.watching(self.module))
            self.supply.start(self.order)
            stack.callback(self.supply.end)
            stack.enter_context(_feeding(self, recorder, taken))
            output = call()
        if taken:
            self.order = taken
        return Result(output, recorder.record if recorder else Record(), taken)


def order_of(module: torch.nn.Module, call: Callable[[], Any], tied: Mapping[str, str] | None = None) -> list[str]:
    """State-dict names in the order in which `call`, a run of a module that is all on the meta device, asks for them.

    What went before an error is given, too: `call` may fail where values decide the way.
    """
    import torch

    tied = tied or {}
    taken: list[str] = []
    on_meta = Streamed.__new__(Streamed)
    on_meta.module, on_meta.plan, on_meta.names = module, {}, {}
    stand_ins = {}
    for name, tensor in stored(module):
        stand_ins[on_meta.names.setdefault(id(tensor), tied.get(name, name))] = tensor
    on_meta.supply = _Meta(stand_ins)
    with torch.no_grad(), suppress(Exception), _feeding(on_meta, None, taken):
        call()
    return taken


def stored(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(state-dict name, tensor) of every parameter, and of every buffer that a state dict holds; shared ones once each
    name."""
    for prefix, inner in module.named_modules(remove_duplicate=False):
        lead = f"{prefix}." if prefix else ""
        for name, parameter in inner._parameters.items():
            if parameter is not None:
                yield lead + name, parameter
        for name, buffer in inner._buffers.items():
            if buffer is not None and name not in inner._non_persistent_buffers_set:
                yield lead + name, buffer


def dtypes_of(module: torch.nn.Module) -> dict[str, torch.dtype]:
    """State-dict name -> the dtype that its values are computed in."""
    return {name: tensor.dtype for name, tensor in stored(module)}


def _described() -> frozenset[Any]:
    """Questions about a tensor that its stand-in on the meta device answers rightly."""
    import torch

    named = ("dtype", "shape", "ndim", "requires_grad", "layout", "is_leaf", "grad", "is_sparse", "is_quantized")
    getters = {getattr(torch.Tensor, n).__get__ for n in named}
    plain = {
        torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.nelement, torch.Tensor.stride,
        torch.Tensor.is_floating_point, torch.Tensor.is_complex, torch.Tensor.__len__, torch.Tensor.is_contiguous,
        torch.Tensor.element_size, torch.is_floating_point, torch.numel, torch.Tensor.requires_grad_, torch.is_complex,
    }  # fmt: skip
    return frozenset(getters | plain)


def _feeding(streamed: Streamed, recorder: Recorder | None, taken: list[str]) -> Any:
    import torch
    from torch.overrides import TorchFunctionMode

    names, supply = streamed.names, streamed.supply
    described = _described()
    device = torch.Tensor.device.__get__
    on_meta = {torch.Tensor.is_meta.__get__: False, torch.Tensor.is_cuda.__get__: supply.device.type == "cuda"}
    embedding = torch.nn.functional.embedding

    @contextmanager
    def quiet() -> Iterator[None]:
        with recorder.pause() if recorder else nullcontext():
            yield

    class Feeding(TorchFunctionMode):  # type: ignore[misc]
        """Puts real tensors in the place of those on the meta device."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            wanted = [a for a in args if id(a) in names]
            nested = any(isinstance(a, list | tuple) for a in args)
            if not wanted and not nested and not any(id(v) in names for v in kwargs.values()):
                return func(*args, **kwargs)
            if func in described:
                return func(*args, **kwargs)
            if wanted and func == device:
                return supply.device
            if wanted and func in on_meta:
                return on_meta[func]
            if func is embedding and id(args[1] if len(args) > 1 else None) in names:
                return self.look_up(args, kwargs)
            held: dict[str, torch.Tensor] = {}
            with quiet():
                args = tuple(self.real(a, held) for a in args)
                kwargs = {k: self.real(v, held) for k, v in kwargs.items()}
            if not held:
                return func(*args, **kwargs)
            try:
                result = func(*args, **kwargs)
                return _own(result, held) if supply.device.type != "cpu" else result
            finally:
                for name in held:
                    supply.give(name)

        def real(self, value: Any, held: dict[str, torch.Tensor]) -> Any:
            name = names.get(id(value))
            if name is not None:
                if name not in held:
                    taken.append(name)
                    held[name] = supply.take(name)
                return held[name]
            if isinstance(value, list | tuple) and any(id(v) in names for v in value):
                return type(value)(self.real(v, held) for v in value)
            return value

        def look_up(self, args: Any, kwargs: Any) -> Any:
            """An embedding: of a large table only the rows that are asked for."""
            tokens, weight, rest = args[0], args[1], args[2:]
            name = names[id(weight)]
            recipe = streamed.plan.get(name)
            fetcher = getattr(supply, "fetcher", None)
            whole = weight.numel() < _TABLE or recipe is None or not recipe.plain
            if whole or fetcher is None or fetcher.changed(recipe):
                held: dict[str, torch.Tensor] = {}
                with quiet():
                    table = self.real(weight, held)
                try:
                    return embedding(tokens, table, *rest, **kwargs)
                finally:
                    supply.give(name)
            with quiet():
                unique, places = torch.unique(tokens.cpu(), return_inverse=True)
                if int(unique[-1]) >= len(weight) or int(unique[0]) < 0:
                    raise IndexError("index out of range in self")
                rows = fetcher.rows(recipe, unique.tolist(), weight.dtype).to(tokens.device)
            return embedding(places.to(tokens.device), rows)

    return Feeding()


def _own(result: Any, held: Mapping[str, torch.Tensor]) -> Any:
    """The result, copied where it is only another view of a tensor whose memory is about to be used again."""
    import torch

    if isinstance(result, torch.Tensor):
        at = result.untyped_storage().data_ptr()
        return result.clone() if any(t.untyped_storage().data_ptr() == at for t in held.values()) else result
    if isinstance(result, list | tuple) and any(isinstance(r, torch.Tensor) for r in result):
        made = [_own(r, held) for r in result]
        return type(result)(*made) if hasattr(result, "_fields") else type(result)(made)
    return result
