"""Which encoder of a set stands in which slot of a diffusion family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from compatkit.checks.parts import Part, of_role, title_of, to_get
from compatkit.knowledge.protocol import Rules

#: Roles that may turn out to be loaded as an encoder.
ENCODERS = ("text_encoder", "llm", "unknown")


class Slot(Struct, frozen=True):
    """One encoder that a diffusion family reads."""

    kinds: tuple[str, ...]
    into: str | None
    taps: int
    join: str
    optional: bool
    vocab: int | None

    def takes(self, part: Part) -> bool:
        """Whether an encoder is of a right kind, in one of the readings of its header."""
        return part.role == "text_encoder" and any(f in self.kinds for f in part.component.families)


def slots_of(card: Mapping[str, Any]) -> list[Slot] | None:
    """The slots a family declares; None where its card does not say."""
    entries = card.get("text_encoders")
    if entries is None:
        return None
    out = []
    for entry in entries:
        kinds = (str(entry["kind"]), *(str(k) for k in entry.get("alternatives") or ()))
        into = entry.get("into", "context_dim")
        taps = entry.get("taps")
        out.append(
            Slot(
                kinds,
                str(into) if into and into != "none" else None,
                taps if isinstance(taps, int) and taps > 0 else 1,
                str(entry.get("join") or "none"),
                bool(entry.get("optional")),
                entry.get("vocab"),
            )
        )
    return out


class Seating(Struct):
    """Who stands where, for one reading of a diffusion model."""

    family: str
    card: Mapping[str, Any]
    slots: list[Slot]
    filled: dict[int, Part] = field(default_factory=dict)
    stand_ins: dict[int, Part] = field(default_factory=dict)
    surplus: list[Part] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    unidentified: list[Part] = field(default_factory=list)
    open: list[int] = field(default_factory=list)

    @property
    def given(self) -> list[Part]:
        """Every encoder of the set that concerns this model, by its place in the report."""
        encoders = [p for p in self.unidentified if p.role == "text_encoder"]
        every = [*self.filled.values(), *self.stand_ins.values(), *self.surplus, *encoders]
        return sorted(every, key=lambda p: p.index)

    @property
    def faults(self) -> int:
        """How much is wrong with this reading."""
        return len(self.stand_ins) + len(self.missing)


def candidates(diffusion: Part, every: Sequence[Part], wired: bool = False) -> list[Part]:
    """The encoders that could be loaded with a diffusion model: those of other checkpoints are not among them.

    `wired`: a workflow brings them together, whatever file they are from.
    """
    own = diffusion.component.source
    return [p for p in of_role(every, *ENCODERS) if wired or not p.bundled or p.component.source == own]


def seat(
    diffusion: Part, family: str, encoders: Sequence[Part], rules: Rules, taken_elsewhere: set[int], required: bool
) -> Seating | None:
    """Seat the encoders for one reading of a diffusion model; None where its card declares no slots.

    An encoder of the right kind fills a slot. One that is of no right kind stands in the open slot it most plausibly
    targets; with no required slot open it is surplus. `taken_elsewhere` are encoders that fill a slot of another model.
    """
    card = rules.family(family)
    slots = slots_of(card)
    if slots is None:
        return None
    seating = Seating(family, card, slots)
    free = [e for e in encoders if e.component.families or e.role == "llm"]
    seating.unidentified = [e for e in encoders if not e.component.families and e.role in ("text_encoder", "unknown")]
    own = diffusion.component.source
    free.sort(key=lambda p: (p.component.source != own, p.index))
    for i, slot in enumerate(slots):
        right = next((e for e in free if slot.takes(e)), None)
        if right is not None:
            seating.filled[i] = right
            free.remove(right)
    wrong = [e for e in free if e.index not in taken_elsewhere]
    open_slots = [i for i in range(len(slots)) if i not in seating.filled and not slots[i].optional]
    if not open_slots and not seating.filled and wrong:
        open_slots = list(range(len(slots)))[:1]
    _stand_in(diffusion, seating, open_slots, wrong)
    seating.surplus = [e for e in wrong if e not in seating.stand_ins.values()]
    left = [i for i in open_slots if i not in seating.stand_ins and not slots[i].optional]
    if seating.filled or seating.stand_ins or required:
        # A file that was not identified may be the one: then nothing is said to be missing.
        covered = len(seating.unidentified)
        seating.open, seating.missing = left[:covered], left[covered:]
    return seating


def _stand_in(diffusion: Part, seating: Seating, open_slots: list[int], wrong: list[Part]) -> None:
    """Give every open slot at most one wrong encoder.

    Equal width first, text encoders before language models, then the widest.
    """
    waiting = sorted(wrong, key=lambda p: (p.role != "text_encoder", -(p.number("width") or 0), p.index))
    remaining = list(open_slots)
    for encoder in waiting:
        if not remaining:
            return
        width = encoder.number("width") or 0
        remaining.sort(
            key=lambda i: (slot_width(diffusion, seating, i) != width, -(slot_width(diffusion, seating, i) or 0), i)
        )
        seating.stand_ins[remaining.pop(0)] = encoder


def slot_width(diffusion: Part, seating: Seating, index: int) -> int | None:
    """The width one slot takes; None where the model does not tell (see `total` for joined ones)."""
    slot = seating.slots[index]
    whole = total(diffusion, seating, index)
    if whole is None or slot.join != "concat":
        return whole
    rest = 0
    for i, other in enumerate(seating.slots):
        if i == index or other.into != slot.into or other.join != "concat":
            continue
        part = seating.filled.get(i)
        width = part.number("width") if part else None
        if width is None:
            return None
        rest += width * other.taps
    return whole - rest if whole > rest else None


def total(diffusion: Part, seating: Seating, index: int) -> int | None:
    """The width of the input that a slot goes into."""
    into = seating.slots[index].into
    return diffusion.number(into) if into else None


def slot_fields(diffusion: Part, seating: Seating, index: int, rules: Rules) -> dict[str, Any]:
    """A slot as rules see it."""
    slot = seating.slots[index]
    titles = [title_of(rules, k) for k in slot.kinds]
    return {
        "kind": slot.kinds[0],
        "kinds": list(slot.kinds),
        "title": titles[0],
        "titles": list(dict.fromkeys(titles)),
        "to_get": list(dict.fromkeys(to_get(rules, k) for k in slot.kinds)),
        "width": slot_width(diffusion, seating, index),
        "into": slot.into,
        "join": slot.join,
        "total": total(diffusion, seating, index),
        "vocab": slot.vocab,
        "right_width": rules.fixed(slot.kinds[0], "width"),
        "right_vocab": rules.fixed(slot.kinds[0], "vocab"),
        "optional": slot.optional,
    }
