"""What stands for the things a pickle would import, call or hold: the data of the opcode machine, without behaviour."""

from __future__ import annotations

from typing import Any


class Broken(Exception):
    """The opcodes make no sense. `at` is the offset in the buffer, the text completes "the pickle …"."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__(what)
        self.at = at


class Ended(Exception):
    """The buffer ends before the pickle does; `at` is where the opcode starts that is not wholly there."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


class Global:
    """What a pickle would import: `name` of `module`; both are empty where that is known only when it runs."""

    __slots__ = ("module", "name", "path")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name
        self.path = f"{module}.{name}" if module else "a name that it computes"


class Made:
    """What a call or a class would have made: `what` was called with `args`, then given `state` and `items`."""

    __slots__ = ("args", "items", "state", "what")

    def __init__(self, what: Any, args: Any = ()) -> None:
        self.what, self.args = what, args
        self.state: Any = None
        self.items: dict[Any, Any] = {}


class Blob:
    """Bytes that stay where they are: `length` of them at offset `at` of the buffer.

    At -1 they stand nowhere in this form: then they are the Latin-1 encoding of `text`.
    """

    __slots__ = ("at", "length", "text")

    def __init__(self, at: int, length: int, text: str = "") -> None:
        self.at, self.length, self.text = at, length, text


class Odd:
    """A dictionary key that could not be used as one here; no two are equal."""

    __slots__ = ()


def usable(key: Any) -> Any:
    """A dictionary key that cannot be made to collide or to recurse when hashed."""
    if type(key) is str or key is None or isinstance(key, (bool, Global, Made)):
        return key
    return key if type(key) is int and -(1 << 31) <= key < 1 << 31 else Odd()
