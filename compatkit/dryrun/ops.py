"""The operations that make up junctions, run by torch on tensors that take no memory.

A chain is a list of steps, plain values of JSON. Each takes the tensor that the step before it gave:

    {"op": "linear", "module": "txt_in", "weight": [3072, 4096], …}

A chain first runs on the meta device, where nothing is computed. The wording of that device is not the user's, and it
compares no dtypes: a step that fails there, or whose dtypes differ, is run again by the CPU kernels on tensors of one
element whose strides are all zero. Their text is what a user of this torch sees.

Imported by the worker only: everything with torch runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

Step = Mapping[str, Any]
#: (shape, dtype name or "") -> a tensor on the device in turn.
Make = Callable[..., torch.Tensor]


def _parameter(make: Make, step: Step, name: str = "weight") -> torch.Tensor:
    return make(step[name], step.get("dtype", ""))


def _linear(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    return F.linear(x, _parameter(make, step))


def _rms_norm(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    weight = _parameter(make, step)
    return F.rms_norm(x, list(weight.shape), weight, 1e-6)


def _layer_norm(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    weight = _parameter(make, step)
    return F.layer_norm(x, list(weight.shape), weight, _parameter(make, step))


def _group_norm(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    weight = _parameter(make, step)
    return F.group_norm(x, int(step.get("groups", 32)), weight, weight)


def _mul(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    return x * _parameter(make, step)


def _add(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    return x + _parameter(make, step)


def _conv(dimensions: int) -> Callable[[torch.Tensor, Step, Make], torch.Tensor]:
    function = (F.conv1d, F.conv2d, F.conv3d)[dimensions - 1]

    def run(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
        weight = _parameter(make, step)
        kernel = tuple(weight.shape[2:])
        if step.get("patch"):
            return function(x, weight, stride=kernel)
        return function(x, weight, padding=tuple(k // 2 for k in kernel))

    return run


def _matmul(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    return x @ _parameter(make, step)


def _attention(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """Keys and values (the tensor) against queries, both [batch, tokens, heads * width of a head]."""
    queries = make(step["weight"], step.get("dtype", ""))
    heads = int(step.get("heads", 1))

    def split(t: torch.Tensor) -> torch.Tensor:
        return t.reshape(t.shape[0], t.shape[1], heads, -1).transpose(1, 2)

    return F.scaled_dot_product_attention(split(queries), split(x), split(x))


def _cat(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    return torch.cat([x, _parameter(make, step)], dim=int(step.get("dim", 1)))


def _reshape(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    return x.reshape([int(s) for s in step["shape"]])


def _cut(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """At most so many features; fewer stay fewer."""
    return x[..., : int(step["size"])]


def _widen(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """Features filled up with zeros to so many."""
    return F.pad(x, (0, int(step["size"]) - x.shape[-1]))


def _beside(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """So many more channels (a mask, a picture) or features (sizes) of the model's own making."""
    dim = int(step.get("dim", 1))
    shape = list(x.shape)
    shape[dim] = int(step["size"])
    return torch.cat([x, make(shape, step.get("dtype", ""))], dim=dim)


def _frame(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """The first frame of a video, as a picture."""
    return x[:, :, 0]


def _side(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """Code that reads a side of the shape, and leaves the tensor as it is."""
    _ = x.shape[int(step["axis"])]
    return x


def _frames(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """The frames of a video as a batch of pictures; a picture stays one."""
    if x.dim() != 5:
        return x
    return x.movedim(2, 1).flatten(0, 1)


def _folded(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """Two frames that lie on top of each other in the channels, one after the other."""
    half = x.shape[1] // 2
    return torch.stack([x[:, :half], x[:, half:]], dim=3).flatten(2, 3)


def _halves(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """The two halves of the channels as a batch: both sides of the stereo."""
    return x.reshape(2 * x.shape[0], x.shape[1] // 2, *x.shape[2:])


def _flat(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """The tokens of all prompts in one row."""
    return x.flatten(0, 1)


def _mean(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """The mean over the tokens."""
    return x.mean(dim=1)


def _patches(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """[batch, channels, *sides] -> [batch, patches, channels * size of a patch]."""
    patch = [int(p) for p in step["patch"]]
    sides = list(x.shape[2:])
    if len(sides) != len(patch):
        raise RuntimeError(f"patches of {len(patch)} sides from a tensor of {len(sides)}")
    shape = [x.shape[0], x.shape[1]]
    for side, size in zip(sides, patch, strict=True):
        shape += [side // size, size]
    x = x.reshape(shape)
    n = len(patch)
    order = [0, *(2 + 2 * i for i in range(n)), *(3 + 2 * i for i in range(n)), 1]
    return x.permute(order).flatten(1 + n).flatten(1, n)


def _tokens(x: torch.Tensor, step: Step, make: Make) -> torch.Tensor:
    """[batch, channels, *sides] -> [batch, all sides, channels]."""
    return x.flatten(2).transpose(1, 2)


def _none(x: torch.Tensor | None, step: Step, make: Make) -> torch.Tensor:
    """What a linear layer says where no tensor comes."""
    return F.linear(x, _parameter(make, step))


def _load(x: torch.Tensor | None, step: Step, make: Make) -> torch.Tensor:
    """A parameter of the file into the class that the runtime builds."""
    module: torch.nn.Module = type(str(step["class"]), (torch.nn.Module,), {})()
    name = str(step["module"])
    *path, last = name.split(".")
    inner = module
    for part in path:
        inner.add_module(part, torch.nn.Module())
        inner = inner.get_submodule(part)
    wanted, given = (torch.empty([int(s) for s in step[k]], device="meta") for k in ("weight", "given"))
    inner.register_parameter(last, torch.nn.Parameter(wanted))
    module.load_state_dict({name: given}, strict=False, assign=True)
    return given


OPS: dict[str, Callable[..., torch.Tensor]] = {
    "linear": _linear,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "mul": _mul,
    "stats": _mul,
    "add": _add,
    "conv1d": _conv(1),
    "conv2d": _conv(2),
    "conv3d": _conv(3),
    "matmul": _matmul,
    "attention": _attention,
    "cat": _cat,
    "reshape": _reshape,
    "cut": _cut,
    "widen": _widen,
    "beside": _beside,
    "frame": _frame,
    "side": _side,
    "frames": _frames,
    "folded": _folded,
    "halves": _halves,
    "flat": _flat,
    "mean": _mean,
    "patches": _patches,
    "tokens": _tokens,
    "none": _none,
    "load": _load,
}
#: Those that refuse an input of another dtype than their weight's; the meta device does not.
_SAME_DTYPE = frozenset({"linear", "conv1d", "conv2d", "conv3d", "matmul"})


def on_meta(default: str) -> Make:
    """Makes tensors of the meta device, of `default` where no dtype is named."""

    def make(shape: Any, dtype: str = "") -> torch.Tensor:
        return torch.empty([int(s) for s in shape], dtype=getattr(torch, dtype or default), device="meta")

    return make


def on_cpu(default: str) -> Make:
    """Makes CPU tensors of any shape that hold one element."""

    def make(shape: Any, dtype: str = "") -> torch.Tensor:
        return torch.zeros(1, dtype=getattr(torch, dtype or default)).expand([int(s) for s in shape])

    return make


def run_chain(chain: Mapping[str, Any]) -> dict[str, Any]:
    """Run one chain: `{"ok": True}`, or what stopped it: step, exception class, its text, the shape that came in.

    Raises:
        KeyError: an operation that does not exist.
    """
    dtype = str(chain.get("dtype") or "bfloat16")
    meta, cpu = on_meta(dtype), on_cpu(dtype)
    x: torch.Tensor | None = meta(chain["input"]) if chain.get("input") is not None else None
    for number, step in enumerate(chain["steps"]):
        op = OPS[step["op"]]
        before = list(x.shape) if x is not None else None
        try:
            got = op(x, step, meta)
            differs = step["op"] in _SAME_DTYPE and x is not None and step.get("dtype", dtype) != dtype
        except Exception:
            differs, got = True, None
        if differs:
            try:
                # A weight with no elements cannot be expanded to: its sides are kept, the text names them.
                got = op(cpu(before) if before is not None else None, step, cpu).to("meta")
            except Exception as e:
                text = str(e) or type(e).__name__
                return {"ok": False, "step": number, "error": type(e).__name__, "message": text, "input": before}
        assert got is not None
        x = got
    return {"ok": True, "output": list(x.shape) if x is not None else None}


def elements(chain: Mapping[str, Any]) -> int:
    """The most elements that a tensor of this chain declares, for the bound on what the worker is asked."""
    shapes = [chain.get("input") or (), *(s.get("weight") or () for s in chain["steps"])]
    return max((prod(int(side) for side in shape) for shape in shapes), default=0)
