"""The exact words of the installed torch for an operation that fails without weights.

The meta device checks shapes with its own words, and some things not at all. So when an operation fails there, the very
operation is done again with CPU tensors of the same shapes and dtypes that hold one element each (all strides 0: no
memory), and the error that raises is what the user's run would say. Operands of different dtypes, which meta tensors
let pass, are tried the same way before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compatkit.dryrun.shims import _map, _tensors

#: Operations whose operands must have one dtype, and which the meta device does not ask.
_STRICT = frozenset(
    {
        *(
            "linear",
            "matmul",
            "__matmul__",
            "bmm",
            "mm",
            "addmm",
            "baddbmm",
            "bilinear",
            "scaled_dot_product_attention",
        ),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("group_norm", "layer_norm", "rms_norm", "batch_norm"),
    }
)
#: Of these even whole numbers among the operands are refused; others take masks and lengths beside them.
_SAME = frozenset({"linear", "matmul", "__matmul__", "bmm", "mm", "addmm", "conv1d", "conv2d", "conv3d"})
_NOT_WORTH = frozenset({"__get__", "__repr__", "__format__"})


class OpFailed(Exception):
    """One operation failed. `message` is the installed torch's text on the CPU, `meta` what the meta device said."""

    def __init__(self, op: str, message: str, meta: str, tensors: list[Any], kind: str) -> None:
        super().__init__(message)
        self.op, self.message, self.meta, self.tensors, self.kind = op, message, meta, tensors, kind


def exact_errors(torch: Any) -> Any:
    """A context in which an operation that fails raises `OpFailed` with the CPU's own words."""
    from torch.overrides import TorchFunctionMode

    class ExactErrors(TorchFunctionMode):  # type: ignore[misc]
        """Repeats what fails on the CPU."""

        def __init__(self) -> None:
            super().__init__()
            self.mixed: set[tuple[Any, ...]] = set()  # dtypes that an operation has been found to take together

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            name = getattr(func, "__name__", "")
            if name in _NOT_WORTH:
                return func(*args, **kwargs)
            if name in _STRICT:
                tensors = _tensors(torch, (args, kwargs))
                dtypes = (name, *(t.dtype for t in tensors if t.is_floating_point() or name in _SAME))
                if len(set(dtypes)) > 2 and dtypes not in self.mixed:
                    said = replayed(torch, func, args, kwargs)
                    if said is not None:
                        raise OpFailed(name, str(said), "", tensors, type(said).__name__)
                    self.mixed.add(dtypes)
            try:
                return func(*args, **kwargs)
            except OpFailed:
                raise
            except Exception as e:
                tensors = _tensors(torch, (args, kwargs))
                if not any(t.device.type == "meta" for t in tensors):
                    raise
                said = replayed(torch, func, args, kwargs)
                raise OpFailed(name, str(said or e), str(e), tensors, type(said or e).__name__) from e

    return ExactErrors()


def replayed(torch: Any, func: Callable[..., Any], args: Any, kwargs: Any) -> Exception | None:
    """What the operation raises with CPU tensors of one element; None if it works there.

    One that works is done in full, so its cost is bounded: operands are cut to what a failing shape check needs no
    more of, which is all of them. Those that fail do so before they compute.
    """

    def hollow(tensor: Any) -> Any:
        made = torch.zeros(1, dtype=tensor.dtype, device="cpu").expand(tensor.shape)
        return made.as_subclass(torch.Tensor)

    with torch._C.DisableTorchFunction(), torch.no_grad():
        try:
            func(*_map(torch, args, hollow), **_map(torch, kwargs, hollow))
        except Exception as e:
            return e
    return None
