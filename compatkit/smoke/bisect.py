"""Which file of a set is at fault: parts are swapped for known-good stand-ins until what was broken is whole.

A LoRA is left out, the encoder's output replaced by noise of the right width, the latent by one with the VAE's
statistics, the dtype by a wider one. What still breaks with good inputs is broken itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from compatkit.knowledge.store import Knowledge
from compatkit.smoke.member import Emit, Gave, Member, Options
from compatkit.smoke.trial import Trial

#: Roles whose runs a swap can heal, by the kind of swap.
_HEALS = {"lora": ("diffusion",), "encoder": ("diffusion",), "latent": ("vae",)}


class Verdict(NamedTuple):
    """Who is at fault: the component's index (-1: nobody in the set), what was swapped, and why that is the answer."""

    component: int
    swap: str
    why: str
    tried: tuple[tuple[str, str], ...]


Try = Callable[[Sequence[Member], frozenset[str]], Gave]


def bisect(members: Sequence[Member], broken: Gave, attempt: Try) -> Verdict:
    """The file at fault for what broke. `attempt` runs members with some parts swapped and says what that gave."""
    member = next(m for m in members if m.index == broken.where)
    role = member.component.role
    # stages after the one that broke have nothing to say
    upto = [m for m in members if not (m.component.role == "vae" and role != "vae")]
    tried: list[tuple[str, str]] = []

    def heals(swap: str) -> bool:
        gave = attempt(upto, frozenset({swap}))
        outcome = "" if gave.where != member.index or not gave.broken else gave.broken
        tried.append((swap, outcome))
        return not outcome and gave.ran > 0

    for other in members:
        if other.component.role == "lora" and role in _HEALS["lora"] and heals(f"lora:{other.index}"):
            return Verdict(other.index, f"lora:{other.index}", "without this LoRA it runs", tuple(tried))
    encoders = [m for m in members if m.component.role in ("text_encoder", "llm")]
    if role in _HEALS["encoder"] and encoders and heals("encoder"):
        return Verdict(encoders[0].index, "encoder", "with synthetic embeddings it runs", tuple(tried))
    models = [m for m in members if m.component.role == "diffusion"]
    if role in _HEALS["latent"] and models and heals("latent"):
        why = "a latent with the statistics the VAE expects decodes well"
        return Verdict(models[0].index, "latent", why, tuple(tried))
    if heals("dtype"):
        return Verdict(member.index, "dtype", "in a wider dtype it runs: its numbers are too large", tuple(tried))
    return Verdict(member.index, "", "it breaks with every other part swapped for a good one", tuple(tried))


def run(members: Sequence[Member], broken: Gave, knowledge: Knowledge, options: Options, emit: Emit) -> Verdict:
    """`bisect` with real trials; the answer is told."""

    def attempt(some: Sequence[Member], swap: frozenset[str]) -> Gave:
        emit({"event": "trial", "swap": sorted(swap)})
        return Trial(some, knowledge, replace(options, swap=options.swap | swap, save=""), _silent).run()

    found = bisect(members, broken, attempt)
    rows = [{"swap": swap, "broken": outcome} for swap, outcome in found.tried]
    emit({"event": "bisect", "component": found.component, "swap": found.swap, "why": found.why,
          "broken": broken.broken, "where": broken.where, "tried": rows})  # fmt: skip
    return found


def _silent(_: Mapping[str, Any]) -> None:
    """What a swapped trial gives is not part of the report."""
