"""Lets a forward without weights pass the places where a model looks at values: masks, lengths, positions, routing.

A mask's values are known although weights are not: they come from the inputs. `known_values` keeps real ones beside
small tensors on the meta device, computes with both, and answers from them where code asks (`mask.sum().tolist()`,
`x[mask]`, `if mask.all():`). What follows from weights or noise stays unknown, but for expert routing, which a
class may ask to be assumed (`shims: [routing]`): which expert a token goes to changes no shape outside of the experts.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

#: Values are kept beside tensors of at most so many elements: whole numbers decide, floats hardly ever do.
MOST, MOST_FLOATS = 1 << 20, 1 << 12
#: Operators that write into their first operand, and factories whose values are nothing to rely on.
_IN_PLACE = frozenset({"__setitem__", *(f"__i{op}__" for op in ("add", "sub", "mul", "truediv", "and", "or", "xor"))})
_UNSET = ("empty", "rand", "normal", "bernoulli", "new_empty")
_CONSTANTS = {
    "zeros_like": 0,
    "new_zeros": 0,
    "ones_like": 1,
    "new_ones": 1,
    "full_like": None,
    "new_full": None,
}


def known_values(torch: Any, given: Iterable[tuple[Any, Any]] = (), shims: Iterable[str] = ()) -> Any:
    """A context in which values of small meta tensors are known.

    `given` are pairs of a tensor on meta and its values on the CPU. `shims` are names a class asks for.
    """
    from torch.overrides import TorchFunctionMode
    from torch.utils.weak import WeakTensorKeyDictionary

    assume_routing = "routing" in shims

    class KnownValues(TorchFunctionMode):  # type: ignore[misc]
        """Computes with the known values beside the meta tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.values: Any = WeakTensorKeyDictionary()
            for tensor, value in given:
                self.values[tensor] = value

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            name = getattr(func, "__name__", "")
            if name == "__get__":
                return func(*args, **kwargs)
            tensors = _tensors(torch, (args, kwargs))
            meta = [t for t in tensors if t.device.type == "meta"]
            known = all(t in self.values for t in meta)
            try:
                result = func(*args, **kwargs)
            except (RuntimeError, NotImplementedError, ValueError, TypeError) as e:
                return self._recovered(e, func, name, args, kwargs, meta, known, len(tensors) > len(meta))
            if name in _IN_PLACE or (name.endswith("_") and not name.startswith("__")):
                if meta and not (known and self._value(func, args, kwargs) is not _FAILED):
                    self.values.pop(meta[0], None)
                return result
            if meta and not known and name not in _CONSTANTS and name != "topk":
                return result
            outputs = [t for t in _tensors(torch, (result,)) if t.device.type == "meta"]
            if not outputs or any(t.numel() > (MOST_FLOATS if t.is_floating_point() else MOST) for t in outputs):
                return result
            if known and (meta or not tensors) and not name.startswith(_UNSET):
                self._keep(result, self._value(func, args, kwargs))
            elif name in _CONSTANTS:
                fill = _CONSTANTS[name]
                fill = kwargs.get("fill_value", args[-1] if args else 0) if fill is None else fill
                if isinstance(fill, (bool, int, float)):
                    self.values[result] = torch.full(result.shape, fill, dtype=result.dtype, device="cpu")
            elif name == "topk" and assume_routing:
                self.values[result[1]] = torch.arange(result[1].shape[-1]).expand(result[1].shape).contiguous()
            return result

        def _recovered(
            self,
            error: Exception,
            func: Any,
            name: str,
            args: Any,
            kwargs: Any,
            meta: list[Any],
            known: bool,
            mixed: bool,
        ) -> Any:
            """The result of an operation that meta tensors cannot do, where known values do it; else the error."""
            if not meta:
                raise error
            if known:
                value = self._value(func, args, kwargs)
                if value is _FAILED:
                    raise error
                result = _map(torch, value, lambda t: t.to("meta"))
                self._keep(result, value)
                return result
            if name == "__getitem__":
                index = args[1] if isinstance(args[1], tuple) else (args[1],)
                found = [self._positions(_map(torch, i, self._number)) for i in index]
                return func(args[0], tuple(p for positions in found for p in positions))
            if name == "__setitem__":
                self.values.pop(args[0], None)
                return None
            if name == "repeat_interleave" and len(args) > 1 and args[1] in self.values:
                return func(*args, **{**kwargs, "output_size": int(self.values[args[1]].sum())})
            numbered = tuple(_map(torch, a, self._number) for a in args[1:])
            if any(a is not b for a, b in zip(args[1:], numbered, strict=True)):
                return func(args[0], *numbered, **kwargs)
            if mixed:
                return func(*_map(torch, args, self._moved), **_map(torch, kwargs, self._moved))
            raise error

        def _positions(self, index: Any) -> tuple[Any, ...]:
            """An index, a mask with known values replaced by the positions it selects."""
            if isinstance(index, torch.Tensor) and index.dtype == torch.bool and index in self.values:
                with torch._C.DisableTorchFunction():
                    return tuple(p.to("meta") for p in self.values[index].nonzero(as_tuple=True))
            return (index,)

        def _number(self, tensor: Any) -> Any:
            """A whole number that is known, instead of the tensor that holds it (a size, an end of a slice)."""
            if tensor.ndim == 0 and not tensor.is_floating_point() and tensor in self.values:
                return self.values[tensor].item()
            return tensor

        def _moved(self, tensor: Any) -> Any:
            """A tensor on the CPU put beside those on meta, its values kept."""
            if tensor.device.type != "cpu":
                return tensor
            moved = tensor.to("meta")
            if tensor.numel() <= MOST:
                self.values[moved] = tensor
            return moved

        def _value(self, func: Any, args: Any, kwargs: Any) -> Any:
            """The same operation on the known values; `_FAILED` if that does not work either."""

            def real(tensor: Any) -> Any:
                return self.values[tensor] if tensor.device.type == "meta" else tensor

            try:
                here, there = _on_cpu(torch, _map(torch, args, real)), _on_cpu(torch, _map(torch, kwargs, real))
                if not _tensors(torch, (args, kwargs)):
                    there = {**there, "device": "cpu"}
                with torch._C.DisableTorchFunction(), torch.device("cpu"):
                    return func(*here, **there)
            except Exception:  # whatever it is, the operation on meta has worked or said why not
                return _FAILED

        def _keep(self, result: Any, value: Any) -> None:
            for tensor, known in zip(_tensors(torch, (result,)), _tensors(torch, (value,)), strict=False):
                if tensor.device.type == "meta" and tensor.shape == known.shape and known.device.type == "cpu":
                    self.values[tensor] = known

    return KnownValues()


@contextlib.contextmanager
def library_shims(torch: Any, built: Any) -> Iterator[None]:
    """What libraries need so that their code runs on the meta device at all, for as long as the context lasts.

    Autocast knows no meta device: it is entered as the CPU's. A class that resizes a mask with torchvision
    (`shims: [resize]`) gets torch's own nearest neighbour where torchvision is not installed.
    """
    kind = torch.amp.autocast_mode.autocast
    entered = kind.__init__

    def entering(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        entered(self, "cpu" if device_type == "meta" else device_type, *args, **kwargs)

    module = sys.modules.get(type(built.module).__module__)
    lacking = "resize" in built.spec.shims and module is not None and not hasattr(module, "transforms")
    kind.__init__ = entering
    if lacking:
        module.transforms = _Transforms(torch)  # type: ignore[union-attr]
    try:
        yield
    finally:
        kind.__init__ = entered
        if lacking:
            del module.transforms  # type: ignore[union-attr]


class _Transforms:
    """As much of `torchvision.transforms` as resizing a mask takes."""

    class InterpolationMode:
        """The one way of interpolating that is asked for."""

        NEAREST = "nearest"

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.functional = self

    def resize(self, image: Any, size: list[int], interpolation: str = "nearest") -> Any:
        """`image` (batch, channels, height, width) at another size."""
        return self._torch.nn.functional.interpolate(image, size=size, mode=interpolation)


class _Failed:
    """What stands for "the known values did not do it either"."""


_FAILED = _Failed()


def _tensors(torch: Any, tree: Any) -> list[Any]:
    """Every tensor in the arguments or the result of an operation."""
    found: list[Any] = []
    _collect(torch.Tensor, tree, found)
    return found


def _collect(kind: type, tree: Any, found: list[Any]) -> None:
    if isinstance(tree, kind):
        found.append(tree)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            _collect(kind, item, found)
    elif isinstance(tree, dict):
        for item in tree.values():
            _collect(kind, item, found)


def _map(torch: Any, tree: Any, change: Callable[[Any], Any]) -> Any:
    """`tree` with every tensor changed."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_map(torch, item, change) for item in tree))
    if isinstance(tree, (list, tuple)) and not isinstance(tree, torch.Size):
        try:
            return type(tree)(_map(torch, item, change) for item in tree)
        except TypeError:  # torch.return_types
            return tuple(_map(torch, item, change) for item in tree)
    if isinstance(tree, dict):
        return {k: _map(torch, item, change) for k, item in tree.items()}
    if isinstance(tree, slice):
        return slice(*(_map(torch, item, change) for item in (tree.start, tree.stop, tree.step)))
    return tree


def _on_cpu(torch: Any, tree: Any) -> Any:
    """`tree` with the meta device replaced by the CPU wherever it is named."""
    if isinstance(tree, torch.device) or (isinstance(tree, str) and tree == "meta"):
        return torch.device("cpu") if str(tree) == "meta" else tree
    if isinstance(tree, (list, tuple)) and type(tree) in (list, tuple):
        return type(tree)(_on_cpu(torch, item) for item in tree)
    if isinstance(tree, dict):
        return {k: _on_cpu(torch, item) for k, item in tree.items()}
    return tree
