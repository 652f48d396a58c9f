"""Runs any torch program on tensors without weights, and words its errors as the CPU does.

A parameter lives on the meta device: a shape and a dtype, no memory. What is small and known (token ids, positions,
timesteps, the empty latent) stays real, so that code which looks at values goes the way it would go; where a real
tensor meets one without values, it gives its own up. An operation that meta refuses is called once more on CPU tensors
of stride 0, which hold one element whatever their shape: that raises the text the user would read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

META = torch.device("meta")
#: A tensor of more elements is made without values: positions and masks are smaller, images and weights larger.
KEPT = 1 << 18

_FACTORIES = {
    f
    for n in ("empty", "zeros", "ones", "full", "rand", "randn", "randint", "arange", "linspace", "eye", "tensor",
              "logspace", "randperm", "scalar_tensor", "as_tensor", "empty_strided", "tril_indices", "triu_indices")
    if (f := getattr(torch, n, None)) is not None
}  # fmt: skip
_SIZED = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn}
_MOVES = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda, torch.Tensor.type}
_LIKE = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like", "new_empty",
         "new_zeros", "new_ones", "new_full", "new_tensor")  # fmt: skip
_INDEXING = {torch.Tensor.__getitem__}
_DEVICE = torch.Tensor.device.__get__
_OPERATORS = ("__iadd__", "__imul__", "__isub__", "__itruediv__")
_CPU = torch.device("cpu")
#: Read an attribute and touch no data.
_PLAIN = {"__get__", "__set__", "dim", "size", "stride", "numel", "nelement", "element_size", "is_floating_point",
          "is_contiguous", "data_ptr", "__len__", "__repr__", "__hash__", "is_complex", "ndimension"}  # fmt: skip
#: What the replay itself runs into, for which the first text is the right one.
_OF_THE_REPLAY = ("single memory location", "not enough memory", "can't allocate")


class Unknowable(Exception):
    """The program asked for a value that only real weights have."""


def _leaves(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _leaves(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from _leaves(value)


def _mapped(values: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(values, torch.Tensor):
        return change(values)
    if type(values) in (list, tuple):
        return type(values)([_mapped(v, change) for v in values])
    if type(values) is dict:
        return {k: _mapped(v, change) for k, v in values.items()}
    return values


def _valueless(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without its values; numbers of no dimension mix with anything and stay."""
    return tensor if tensor.is_meta or not tensor.dim() else torch.empty_like(tensor, device=META)


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor of that shape which occupies one element."""
    if not tensor.is_meta:
        return tensor
    return torch.zeros(1, dtype=tensor.dtype).expand(tensor.shape)


class Weightless(TorchFunctionMode):  # type: ignore[misc]
    """While active, tensors with and without values mix, all say they are on the CPU, and errors are the CPU's.

    `operation` and `shapes` describe the call that failed last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operation = ""
        self.shapes: list[list[int]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _PLAIN:
            return _CPU if func == _DEVICE else func(*args, **kwargs)
        if func in _FACTORIES:
            return self._made(func, args, kwargs)
        if func in _MOVES:
            return self._moved(func, args, kwargs)
        tensors = list(_leaves(args)) + list(_leaves(kwargs))
        without = sum(t.is_meta for t in tensors)
        if not without:
            return func(*args, **kwargs)
        return self._called(func, name, args, kwargs, tensors, without)

    def _made(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(t.is_meta for t in _leaves(args)):
            return func(*args, **{k: v for k, v in kwargs.items() if k != "device"})
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "meta":
            kwargs = {**kwargs, "device": "cpu"}
        if func in _SIZED and _elements(args, kwargs) > KEPT:
            kwargs = {k: v for k, v in kwargs.items() if k not in ("generator", "pin_memory")} | {"device": META}
        return func(*args, **kwargs)

    @staticmethod
    def _moved(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """No tensor changes its device: one without values cannot get any, and one with values keeps them."""
        tensor = args[0]
        if func in (torch.Tensor.cpu, torch.Tensor.cuda):
            return tensor
        if func is torch.Tensor.type:
            return func(*args, **kwargs) if not tensor.is_meta or len(args) + len(kwargs) == 1 else tensor
        dtype = kwargs.get("dtype")
        for value in args[1:]:
            if isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, torch.Tensor):
                dtype = value.dtype
        if isinstance(kwargs.get("other"), torch.Tensor):
            dtype = kwargs["other"].dtype
        kept = {k: v for k, v in kwargs.items() if k in ("copy", "memory_format")}
        return func(tensor, dtype or tensor.dtype, **kept)

    def _called(
        self,
        func: Callable[..., Any],
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[torch.Tensor],
        without: int,
    ) -> Any:
        if name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "__array__"):
            raise Unknowable(f"{name} of a tensor without values, shape {list(tensors[0].shape)}")
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        kept = first is not None and not first.is_meta and (name == "__setitem__" or _in_place(name))
        if name in _LIKE:
            kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
        if without < len(tensors) and not (func in _INDEXING and first is not None and first.is_meta):
            args, kwargs = _mapped(args, _valueless), _mapped(kwargs, _valueless)
        try:
            with torch._C.DisableTorchFunction():
                result = func(*args, **kwargs)
        except NotImplementedError as error:
            raise Unknowable(f"{name} needs values: {str(error)[:120]}") from error
        except Exception as error:
            self._replay(func, name, args, kwargs, error)
        return first if kept and name != "__setitem__" else result

    def _replay(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
    ) -> None:
        """Raise the CPU's error for a call that meta refused; the first one where the CPU has none."""
        self.operation = name
        self.shapes = [list(t.shape) for t in (*_leaves(args), *_leaves(kwargs))][:8]
        try:
            with torch._C.DisableTorchFunction():
                func(*_mapped(args, _hollow), **_mapped(kwargs, _hollow))
        except Exception as said:
            if not any(text in str(said) for text in _OF_THE_REPLAY):
                raise said.with_traceback(error.__traceback__) from None
        raise error


def _in_place(name: str) -> bool:
    return name in _OPERATORS or (name.endswith("_") and not name.endswith("__"))


def _elements(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    shape = kwargs.get("size", args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args)
    count = 1
    for side in shape if isinstance(shape, (list, tuple)) else ():
        count *= side if isinstance(side, int) else 1
    return count


@contextmanager
def weightless() -> Iterator[Weightless]:
    """Run what is inside on tensors without weights; parameters made inside have none either."""
    register = torch.nn.Module.register_parameter

    def without_values(module: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None and not param.is_meta and type(param.data) is torch.Tensor:
            param = torch.nn.Parameter(torch.empty_like(param.data, device=META), requires_grad=False)
        register(module, name, param)

    torch.nn.Module.register_parameter = without_values
    _assume_all_chosen()
    try:
        with torch.no_grad(), Weightless() as mode:
            yield mode
    finally:
        torch.nn.Module.register_parameter = register


def _assume_all_chosen() -> None:
    """Where a mask without values picks elements, take it for one that picks all (routing among experts)."""
    try:
        from torch.fx.experimental import _config

        _config.meta_nonzero_assume_all_nonzero = True
    except (ImportError, AttributeError):  # an older torch: such code then cannot be run
        return
