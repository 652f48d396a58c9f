"""One forward of a class without weights: does it go through, and if not, which operation of which module says what."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from msgspec import Struct, field

from compatkit.dryrun.build import Built, _quiet, _tensor
from compatkit.dryrun.classes import arguments
from compatkit.dryrun.replay import OpFailed, exact_errors
from compatkit.dryrun.shims import MOST, known_values, library_shims


class Operand(Struct, frozen=True):
    """A tensor of an operation that failed. `name` is the parameter's, in the class; "" for what flows through."""

    shape: tuple[int, ...]
    dtype: str
    name: str = ""


class Forward(Struct, frozen=True):
    """What one call did. Of a failure: `op` and `module` say where, `message` is the installed torch's own text.

    `meta` is what the meta device said instead, where that differs. `raised` is the type of the error. An error that is
    no operation's (the class's own check) has an empty `op`.
    """

    ok: bool
    call: str
    seconds: float
    shape: tuple[int, ...] = ()
    dtype: str = ""
    op: str = ""
    module: str = ""
    message: str = ""
    meta: str = ""
    raised: str = ""
    line: str = ""
    operands: tuple[Operand, ...] = field(default=())


def forward(
    built: Built,
    *,
    latent_side: int | None = None,
    tokens: int | None = None,
    frames: int | None = None,
    call: str | None = None,
    replace: Mapping[str, int] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Forward:
    """Call the class with the smallest valid inputs, or those asked for, and say what happened. Never raises for that.

    `replace` gives symbols of the inputs other values than the model has (`Built.inputs`); `given` replaces whole
    arguments.
    """
    import torch

    name = call or built.usual_call
    sizes = {"latent_side": latent_side, "tokens": tokens, "frames": frames}
    started = time.perf_counter()
    inputs = built.inputs(latent_side, tokens, frames=frames, call=name, replace=replace)
    values = _values(torch, built, name, inputs, sizes, replace)
    inputs.update(given or {})
    with (
        torch.no_grad(),
        library_shims(torch, built),
        known_values(torch, values, built.spec.shims),
        exact_errors(torch),
        _quiet(),
    ):
        try:
            result = built.output(built.method(name)(**inputs), name)
        except Exception as e:
            return _failure(built, name, e, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    shape = tuple(result.shape) if isinstance(result, torch.Tensor) else ()
    return Forward(True, name, seconds, shape, str(getattr(result, "dtype", "")).removeprefix("torch."))


def _values(
    torch: Any,
    built: Built,
    call: str,
    inputs: Mapping[str, Any],
    sizes: Mapping[str, int | None],
    replace: Mapping[str, int] | None,
) -> list[tuple[Any, Any]]:
    """Inputs whose values do not depend on noise (masks, positions, lengths), each with those values."""
    size = built.size(sizes["latent_side"], sizes["tokens"], sizes["frames"])
    env = {**built.spec.env, **size, **(replace or {})}
    out = []
    for path, described in arguments(built.spec.calls.get(call, {}).get("inputs", {}), env):
        if "value" in described or described["fill"] == "normal":
            continue
        tensor: Any = inputs
        for key in path:
            tensor = tensor[key]
        for _ in range(int(described.get("list") or 0)):
            tensor = tensor[0]
        fill = {"zeros": 0, "ones": 1}.get(described["fill"], described["fill"])
        if tensor.numel() > MOST:
            continue
        if isinstance(fill, (int, float)):
            out.append((tensor, torch.full(tensor.shape, fill, dtype=tensor.dtype)))
        else:
            out.append((tensor, _tensor(described, built.dtype, "cpu", 0)))
    return out


def _failure(built: Built, call: str, error: Exception, seconds: float) -> Forward:
    module, line = _where(built, error.__traceback__)
    if isinstance(error, OpFailed):
        names = {id(p): n for n, p in built.module.named_parameters()}
        operands = tuple(
            Operand(tuple(t.shape), str(t.dtype).removeprefix("torch."), names.get(id(t), "")) for t in error.tensors
        )
        meta = error.meta if error.meta != error.message else ""
        return Forward(
            False, call, seconds, op=error.op, module=module, message=error.message, meta=meta, raised=error.kind,
            line=line, operands=operands,
        )  # fmt: skip
    return Forward(
        False, call, seconds, module=module, message=str(error), raised=type(error).__name__, line=line
    )  # fmt: skip


def _where(built: Built, traceback: TracebackType | None) -> tuple[str, str]:
    """(path of the innermost module that ran, "file:line" of its code)."""
    names = {id(m): n for n, m in built.module.named_modules()}
    module, line = "", ""
    while traceback is not None:
        frame = traceback.tb_frame
        owner = names.get(id(frame.f_locals.get("self")))
        where = frame.f_globals.get("__name__", "")
        if owner is not None:
            module = owner
        if not where.startswith(("torch", "compatkit")):
            line = f"{where}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return module, line
