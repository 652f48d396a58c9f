"""What every operation of a forward gives: the largest magnitude, and the first value that is no number.

A dispatch mode sees each operation of torch, so an overflow in a product between two layers is seen where hooks on
layers see nothing. Only results in the dtype of the computation count: what a norm squares in float32 may be as large
as it likes, and stays in float32 in a half-precision run, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

if TYPE_CHECKING:
    import torch

#: The largest finite float16, and a quarter of it: other prompts and latents make other numbers.
FP16_MAX, FP16_NEAR = 65504.0, 16384.0
#: Beyond this no network computes anything: the largest that trained ones are known for are about a million.
RUNAWAY = 1e9

#: Operations whose result is memory that nothing was written to yet.
_EMPTY = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "resize_")
#: Operations that compute: a result of theirs at the end of the range is an overflow, not a mask that was put there.
_COMPUTES = (
    "mm", "bmm", "addmm", "baddbmm", "linear", "convolution", "silu", "gelu", "rsqrt", "pow", "exp",
    "native_layer_norm", "native_group_norm", "mkldnn_convolution", "_scaled_dot_product", "tanh", "sigmoid",
    "_fused_rms_norm", "einsum",
)  # fmt: skip


class Place(Struct):
    """One operation of one module: how often it ran, what it gave at most, how many values were no numbers."""

    module: str
    op: str
    count: int = 0
    max_abs: float = 0.0
    nonfinite: int = 0
    values: int = 0
    first: int = 0

    @property
    def label(self) -> str:
        """Module and operation, as a message names them."""
        return f"{self.module or 'the model itself'} ({self.op})"


class Record(Struct):
    """All places of a run in the order they first ran, and the first operation that made a NaN or Inf."""

    places: dict[tuple[str, str], Place] = field(default_factory=dict)
    broken: Place | None = None
    operations: int = 0

    def largest(self) -> Place | None:
        """The place with the largest finite magnitude."""
        return max(self.places.values(), key=lambda p: p.max_abs, default=None)

    def above(self, limit: float) -> list[Place]:
        """Places whose results exceed `limit`, first to run first."""
        return sorted((p for p in self.places.values() if p.max_abs > limit), key=lambda p: p.first)

    def by_module(self) -> dict[str, float]:
        """Module -> largest magnitude, in the order they ran: what the plot of activations shows."""
        out: dict[str, float] = {}
        for place in sorted(self.places.values(), key=lambda p: p.first):
            out[place.module] = max(out.get(place.module, 0.0), place.max_abs)
        return out


class Recorder:
    """Records one run, as a context: `with Recorder(torch.bfloat16).watching(module) as record: …`."""

    def __init__(self, dtype: torch.dtype) -> None:
        import torch

        self.dtype = dtype
        self.record = Record()
        self.paused = False
        self.path: list[str] = [""]
        self._known: dict[Any, int] = {}
        self._floor = torch.finfo(dtype).min * 0.99
        self._waiting: list[tuple[Place, torch.Tensor]] = []

    @contextmanager
    def watching(self, module: torch.nn.Module | None = None) -> Iterator[Record]:
        """Record what runs inside; names of the modules of `module` say where."""
        hooks = []
        for name, inner in module.named_modules() if module is not None else ():
            hooks.append(inner.register_forward_pre_hook(partial(self._enter, name)))
            hooks.append(inner.register_forward_hook(self._leave, always_call=True))
        try:
            with _mode(self):
                yield self.record
        finally:
            for hook in hooks:
                hook.remove()
            self.path = [""]
            self._collect()

    def _enter(self, name: str, *_: Any) -> None:
        self.path.append(name)

    def _leave(self, *_: Any) -> None:
        if len(self.path) > 1:
            self.path.pop()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Look away: weights being unpacked are no activations."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def saw(self, func: Any, result: Any) -> None:
        """Called with every operation and what it gave."""
        kind = self._known.get(func)
        if kind is None:
            kind = self._known[func] = _kind(func)
        if kind == 0:
            return
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if getattr(tensor, "dtype", None) == self.dtype and tensor.numel():
                self._measure(func, tensor, kind)

    def _measure(self, func: Any, tensor: torch.Tensor, kind: int) -> None:
        import torch

        if tensor.device.type == "meta":
            return
        record = self.record
        record.operations += 1
        key = (self.path[-1], func.name().removeprefix("aten::").partition(".")[0])
        place = record.places.get(key)
        if place is None:
            place = record.places[key] = Place(*key, first=record.operations)
        place.count += 1
        place.values = max(place.values, tensor.numel())
        low_high = torch.stack(torch.aminmax(tensor.detach()))
        if tensor.device.type != "cpu":
            # reading a number back would make the device wait: all are read at the end, the exact count is left out
            self._waiting.append((place, low_high))
            return
        low, high = low_high.tolist()
        if kind == 1 and low <= self._floor:  # minus infinity, or the lowest number there is: a mask
            rest = tensor.detach()[tensor.detach() > self._floor]
            if rest.numel() + int(tensor.isnan().sum()) == 0:
                return
            low, high = torch.stack(torch.aminmax(rest)).tolist() if rest.numel() else (float("nan"),) * 2
            if tensor.isnan().any():
                low = float("nan")
        self._note(place, low, high, lambda: int((~torch.isfinite(tensor.detach())).sum()))

    def _note(self, place: Place, low: float, high: float, count: Any) -> None:
        largest = max(-low, high)
        if low != low or high != high or largest == float("inf"):
            place.nonfinite = max(place.nonfinite, count())
            if self.record.broken is None:
                self.record.broken = place
        else:
            place.max_abs = max(place.max_abs, largest)

    def _collect(self) -> None:
        """Read what a device measured, all at once."""
        import torch

        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        numbers = torch.stack([n for _, n in waiting]).float().cpu().tolist()
        for (place, _), (low, high) in zip(waiting, numbers, strict=True):
            if low <= self._floor and high > self._floor and high != float("inf"):
                low = -abs(high)  # a mask: its lowest value says nothing
            self._note(place, low, high, lambda: 1)


def _kind(func: Any) -> int:
    """0: not looked at (views, empty memory), 1: may make a mask, 2: computes."""
    name = func.name().removeprefix("aten::").partition(".")[0]
    if name in _EMPTY:
        return 0
    returns = func._schema.returns
    if returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns):
        return 0
    return (
        2 if any(name == c or name.startswith(f"{c}_") or (c in name and c.startswith("_")) for c in _COMPUTES) else 1
    )


def _mode(recorder: Recorder) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):  # type: ignore[misc]
        """Hands every operation's result on."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if not recorder.paused:
                recorder.saw(func, result)
            return result

    return Watching()
