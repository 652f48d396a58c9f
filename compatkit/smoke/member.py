"""What the stages of a trial share: the set's members, how to run them, what they gave, and how a call is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct, field

from compatkit.vocabulary import Component

if TYPE_CHECKING:
    from compatkit.smoke.model import Model

Emit = Callable[[Mapping[str, Any]], None]


class Member(Struct, frozen=True):
    """One component of the set, by its index in the report, and the text that opens its file."""

    index: int
    component: Component
    source: str


class Options(Struct):
    """How to run. `dtype` is torch's name; `vram` bytes of GPU memory; `save` a folder; `swap` holds what stands-in
    parts take the place of (see `bisect`): "encoder", "latent", "vae", "lora:INDEX", "dtype"."""

    dtype: str = "bfloat16"
    device: str = "cpu"
    vram: int | None = None
    steps: int = 2
    save: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    swap: frozenset[str] = frozenset()
    latent_side: int | None = None


class Gave(Struct):
    """What a trial came to: the latent and picture it made, and the first thing that went wrong ("" if nothing did)."""

    latent: Any = None
    picture: Any = None
    broken: str = ""
    where: int = -1
    ran: int = 0


class Runner(Protocol):
    """What a stage asks of the trial it belongs to."""

    options: Options
    emit: Emit

    def ran(
        self,
        member: Member,
        model: Model,
        inputs: Mapping[str, Any],
        gave: Gave,
        given: str,
        *,
        call: str | None = None,
        step: int = 1,
    ) -> Any:
        """The output of one call, recorded and told; None if it raised."""


def at(inputs: Mapping[str, Any], path: Sequence[str | int]) -> Any:
    """The (first) tensor at a path of keys and indexes."""
    found: Any = inputs
    for key in path:
        found = found[key]
    while isinstance(found, list):
        found = found[0]
    return found


def put(inputs: dict[str, Any], path: Sequence[str | int], value: Any) -> None:
    """Replace the tensor at a path, in all the lists it stands in."""
    inner: Any = inputs
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = _in_lists(inner[path[-1]], value)


def _in_lists(old: Any, value: Any) -> Any:
    return [_in_lists(o, value) for o in old] if isinstance(old, list) else value
