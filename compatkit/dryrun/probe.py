"""A probe: one place where two models of a set meet, as operations with shapes, and what came of running them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from compatkit.checks.loaders import Loader
from compatkit.checks.parts import Part

#: Where in a run a probe stands: files are loaded, adapters put on, the model runs, the latent is decoded.
LOADING, PATCHING, FORWARD, DECODING = 0, 1, 2, 3


class Probe(Struct):
    """What to run. `about` is the junction's kind: load, context, pooled, image, latent, vae, lora, adapter, unfed.

    `giver` is the component whose tensor comes in, `taker` the one whose weights meet it. `input` is the shape of the
    tensor, None where nothing comes; `what` says in words what it is. `steps` are those of `ops`, each with the
    module's name in the runtime's spelling. `when` names the circumstances of a further variant ("VAEDecodeTiled").
    """

    about: str
    giver: Part
    taker: Part
    loader: Loader
    input: tuple[int, ...] | None
    steps: list[dict[str, Any]]
    what: str = ""
    stage: int = FORWARD
    order: int = 0
    dtype: str = "bfloat16"
    when: str = ""
    notes: tuple[str, ...] = ()
    components: tuple[int, ...] = ()
    junction: str = ""

    def chain(self) -> dict[str, Any]:
        """What the worker is asked."""
        return {"input": list(self.input) if self.input is not None else None, "dtype": self.dtype, "steps": self.steps}


class Outcome(Struct):
    """What running it gave. `message` is the exact text of the installed torch, "" where it works.

    Other backends make these too: then `op`, `module` and `message` are what their own run met.
    """

    probe: Probe
    ok: bool
    op: str = ""
    module: str = ""
    error: str = ""
    message: str = ""
    input: tuple[int, ...] | None = None
    weight: tuple[int, ...] | None = None
    backend: str = "probe"
    line: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


class Gap(Struct, frozen=True):
    """A junction with both sides in the set that could not be probed, and why. `blocks`: the verdict is open."""

    about: str
    why: str
    blocks: bool = True
