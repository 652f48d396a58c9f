"""Colour, units and safe text for terminals."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compatkit.vocabulary import Component

#: The columns of the terminal that the answer goes to; 0: none, or not known.
TERMINAL: ContextVar[int] = ContextVar("TERMINAL", default=0)
#: Text is wrapped there, on a narrower terminal at its width, but not below the least.
_TEXT, _LEAST = 100, 60

_CODES = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "bold": "1", "dim": "2"}
LEVEL_COLOUR = {"error": "red", "warning": "yellow", "info": "cyan"}
VERDICT_COLOUR = {"pass": "green", "fail": "red", "unknown": "yellow"}


class Paint:
    """Colours text, or leaves it alone."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def __call__(self, text: str, *colours: str) -> str:
        if not self.on or not colours:
            return text
        return f"\x1b[{';'.join(_CODES[c] for c in colours)}m{text}\x1b[0m"


def text_width() -> int:
    """Where running text is wrapped."""
    columns = TERMINAL.get()
    return min(_TEXT, max(_LEAST, columns)) if columns else _TEXT


def shortened(name: str, most: int) -> str:
    """A name cut in the middle: how it begins and how it ends tell most."""
    if len(name) <= most:
        return name
    end = max(1, most // 2 - 1)
    return f"{name[: most - end - 1]}…{name[-end:]}"


def safe(text: object, limit: int = 2000) -> str:
    """Text from a file, fit for a terminal: control characters, undecodable bytes and turning marks are escaped."""
    whole = str(text)
    cut = whole if len(whole) <= limit else whole[:limit] + "…"
    if cut.isascii() and cut.isprintable():
        return cut
    return "".join(c if c in "\n" or _shows(c) else _escaped(c) for c in cut)


def _shows(c: str) -> bool:
    return unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _escaped(c: str) -> str:
    return c.encode("unicode_escape", "surrogatepass").decode("ascii")


def line(text: object, limit: int = 200) -> str:
    """`safe`, on one line."""
    return safe(text, limit).replace("\n", "\\n")


def size(n: float) -> str:
    """12309866400 -> 12.3 GB (powers of ten, as hubs show them)."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def sizes(components: Sequence[Component]) -> list[str]:
    """Each component's file size; where several lie in one file, it stands with the first of them.

    A report that hides folders gives files of one name the same source: those differ in size, or hold the same tensors.
    """
    first: dict[tuple[str, int, int], int] = {}
    out = []
    for number, c in enumerate(components, 1):
        at = first.setdefault((c.source, c.size, c.header_bytes), number)
        inside = at != number and c.tensors.keys().isdisjoint(components[at - 1].tensors)
        out.append(f"in [{at}]" if inside else size(c.size))
    return out


def parameters(n: int) -> str:
    """6154908736 -> 6.15 B."""
    for unit, step in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= step:
            return f"{n / step:.3g} {unit}"
    return str(n)


def basename(source: str) -> str:
    """The last part of a path or address."""
    return line(source.rstrip("/").replace("\\", "/").rpartition("/")[2] or source, 120)


def dtypes(counts: Mapping[str, int]) -> str:
    """`Q4_K 210, F32 243`."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())
