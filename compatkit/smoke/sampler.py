"""A few steps of Euler's method from noise, for flows and for models that predict noise or velocity.

Enough to see a model's numbers at both ends of its schedule; a picture of the right kind, not a good one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    import torch

#: The schedule that models of noise were trained with, unless their family says otherwise: a thousand steps between
#: these, linear in their roots. Source: diffusers 0.42 StableDiffusionPipeline's scheduler config.
_FIRST, _LAST, _COUNT = 0.00085, 0.012, 1000


class Schedule(Struct, frozen=True):
    """How a family's model is stepped.

    `kind`: flow, eps or v. `sigmas`: one more than steps, from noise to 0. `times`: what each step tells the model.
    `sign`: -1 where the model gives the flow towards noise reversed.
    """

    kind: str
    sigmas: tuple[float, ...]
    times: tuple[float, ...]
    sign: float = 1.0


def schedule(sampling: Mapping[str, Any], steps: int, middle: float, *, shift: float | None = None) -> Schedule:
    """The schedule of a family.

    Args:
        sampling: of its card: `prediction`, `shift`, and `reversed` where time runs from noise (0) to picture (1) and
            the flow has the other sign.
        steps: how many, at least 1.
        middle: what the model is told halfway: 0.5 or 500, by which its unit of time is known.
        shift: instead of the card's.
    """
    prediction = str(sampling.get("prediction") or "flow").split()[0]
    unit = 1000.0 if middle > 10 else 1.0
    if prediction in ("eps", "v"):
        return _noise(prediction, steps, unit)
    by = float(shift if shift is not None else sampling.get("shift") or 1.0)
    straight = [1 - i / steps for i in range(steps + 1)]
    sigmas = tuple(by * s / (1 + (by - 1) * s) for s in straight)
    back = bool(sampling.get("reversed"))
    times = tuple(unit * (1 - s if back else s) for s in sigmas[:-1])
    return Schedule("flow", sigmas, times, -1.0 if back else 1.0)


def _noise(kind: str, steps: int, unit: float) -> Schedule:
    kept, alphas = 1.0, []
    for i in range(_COUNT):
        root = _FIRST**0.5 + (_LAST**0.5 - _FIRST**0.5) * i / (_COUNT - 1)
        kept *= 1 - root * root
        alphas.append(kept)
    at = [round((_COUNT - 1) * (1 - i / steps)) for i in range(steps)]
    sigmas = tuple(((1 - alphas[t]) / alphas[t]) ** 0.5 for t in at)
    return Schedule(kind, (*sigmas, 0.0), tuple(t * unit / 1000.0 for t in at))


def euler(latent: torch.Tensor, plan: Schedule, model: Callable[[torch.Tensor, float], torch.Tensor]) -> torch.Tensor:
    """The latent after all steps, in float32. `model(latent, time)` gives a prediction of the latent's shape.

    Raises ValueError where the prediction has another shape.
    """
    x = latent.float() * (1.0 if plan.kind == "flow" else (plan.sigmas[0] ** 2 + 1) ** 0.5)
    for number, time in enumerate(plan.times):
        sigma, following = plan.sigmas[number], plan.sigmas[number + 1]
        scale = 1.0 if plan.kind == "flow" else (sigma**2 + 1) ** -0.5
        out = model((x * scale).to(latent.dtype), time).float()
        if out.shape != x.shape:
            out = _narrowed(out, tuple(x.shape))
        if plan.kind == "v":  # the picture it means, and from there the direction
            out = (x - (x * scale * scale - out * sigma * scale)) / sigma
        x = x + (following - sigma) * plan.sign * out
    return x


def _narrowed(out: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The prediction without the variances that some models give beside it."""
    if out.dim() == len(shape):
        for axis, (have, want) in enumerate(zip(out.shape, shape, strict=True)):
            if have == 2 * want and out.shape[:axis] == shape[:axis] and out.shape[axis + 1 :] == shape[axis + 1 :]:
                return out.narrow(axis, 0, want)
    raise ValueError(f"the model's output {list(out.shape)} is no step of a latent {list(shape)}")
