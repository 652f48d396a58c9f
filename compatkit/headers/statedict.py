"""The state dict in what a checkpoint's pickle builds: which of its dictionaries it is, and the names in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from compatkit.headers.picklecalls import TorchMachine, Weight
from compatkit.headers.picklesymbols import Made

#: Limits that no real checkpoint comes near.
MAX_TENSORS = 1 << 18
MAX_VALUES = 1 << 21  # looked at, also again and again by way of several names
MAX_NAME = 4096
MAX_NAMES = 1 << 26  # characters of all names
MAX_DEPTH = 100

#: Keys under which trainers put the state dict, in the order in which loaders of such files look for them.
CONTAINERS = (
    "state_dict", "params_ema", "params-ema", "params", "model", "net", "module", "model_state_dict", "ema",
    "model_ema", "ema_state_dict", "state_dict_ema", "weights", "weight", "generator", "model_state",
)  # fmt: skip
#: The key that makes a file a textual inversion; its tensors keep their full names.
_EMBEDDING = "string_to_param"
_KEPT_SCALARS, _KEPT_TEXT = 64, 1024


class TooMuch(Exception):
    """More tensors, names or nesting than any checkpoint has; the text completes "the pickle …"."""


class StateDict:
    """The tensors in `content`, which `machine` built.

    `container` is the key under which they stood (dotted if there were several, empty if none), `tensors` their names
    in it, `scalars` the plain values beside them.
    """

    def __init__(self, machine: TorchMachine, content: Any) -> None:
        self.machine = machine
        self.values = 0
        self.container, chosen = self._choose(content)
        self.scalars = dict(self._scalars(content))
        self.tensors = dict(self._flat(chosen))

    def _choose(self, content: Any) -> tuple[str, Any]:
        """ComfyUI takes `state_dict`, or the only entry; loaders of upscalers know the other keys."""
        path: list[str] = []
        for _ in range(4):
            inside = dict(self._children(content) or ())
            if not inside or _EMBEDDING in inside:
                break
            key = CONTAINERS[0] if CONTAINERS[0] in inside else ""
            if not key and not any(self.machine.weight(v) for v in inside.values()):
                key = next((k for k in CONTAINERS if k in inside), "")
                if not key and len(inside) == 1:
                    key = next(iter(inside))
            if not key or isinstance(content, (list, tuple)) or not self._holds(inside[key]):
                break
            content = inside[key]
            path.append(key)
        return ".".join(path), content

    def _holds(self, value: Any) -> bool:
        """Whether a value is a container with a tensor in it, or with containers that may have one."""
        for _, inner in self._children(value) or ():
            if self.machine.weight(inner) or isinstance(inner, (dict, list, tuple, Made)):
                return True
        return False

    def _children(self, value: Any) -> Iterator[tuple[str, Any]] | None:
        """The entries of a container under their names, `None` for anything else."""
        if isinstance(value, Made):
            return self._attributes(value)
        if isinstance(value, dict):
            return self._entries(value)
        if isinstance(value, (list, tuple)) and not isinstance(value, Weight):
            self._count(len(value))
            return ((str(i), v) for i, v in enumerate(value) if isinstance(v, (dict, list, tuple, Made)))
        return None

    def _entries(self, value: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
        self._count(len(value))
        for key, inner in value.items():
            if type(key) is str or type(key) is int:
                yield str(key), inner

    def _attributes(self, made: Made) -> Iterator[tuple[str, Any]]:
        """Of a whole module: its parameters, buffers and modules, as its `state_dict()` would name them."""
        state = made.state
        parts = [s for s in (state if isinstance(state, tuple) else (state,)) if isinstance(s, dict)]
        for part in parts:
            if isinstance(part.get("_parameters"), dict):
                unsaved = part.get("_non_persistent_buffers_set")
                skip = {k for k in unsaved if type(k) is str} if isinstance(unsaved, (list, tuple)) else set()
                for group in ("_parameters", "_buffers", "_modules"):
                    for key, inner in self._entries(found) if isinstance(found := part.get(group), dict) else ():
                        if group != "_buffers" or key not in skip:
                            yield key, inner
            else:
                yield from self._entries(part)
        yield from self._entries(made.items)

    def _count(self, values: int) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            raise TooMuch(f"holds more than {MAX_VALUES:,} values, counted under every name they have")

    def _flat(self, chosen: Any) -> Iterator[tuple[str, Weight]]:
        """Every tensor under its dotted name; a tensor that two names share comes twice."""
        if alone := self.machine.weight(chosen):
            yield "tensor", alone
            return
        count = letters = 0
        waiting: list[tuple[str, int, Iterator[tuple[str, Any]]]] = [
            ("", id(chosen), self._children(chosen) or iter(()))
        ]
        above = {id(chosen)}  # a container that holds itself is not entered again
        seen: set[str] = set()
        while waiting:
            prefix, own, entries = waiting[-1]
            for key, value in entries:
                name = f"{prefix}{key}"
                weight = self.machine.weight(value)
                inner = None if weight or id(value) in above else self._children(value)
                if weight is None and inner is None:
                    continue
                if len(name) > MAX_NAME:
                    raise TooMuch(f"holds a name of more than {MAX_NAME:,} characters")
                if inner is not None:
                    if len(waiting) >= MAX_DEPTH:
                        raise TooMuch(f"nests its containers more than {MAX_DEPTH} deep")
                    above.add(id(value))
                    waiting.append((f"{name}.", id(value), inner))
                    break
                assert weight is not None
                count, letters = count + 1, letters + len(name)
                if count > MAX_TENSORS or letters > MAX_NAMES:
                    raise TooMuch(f"holds more than {MAX_TENSORS:,} tensors, or names beyond measure")
                if name not in seen:
                    seen.add(name)
                    yield name, weight
            else:
                waiting.pop()
                above.discard(own)

    def _scalars(self, content: Any) -> Iterator[tuple[str, Any]]:
        """Plain values that stand beside the state dict: the step, the name of an embedding."""
        if not isinstance(content, dict):
            return
        left = _KEPT_SCALARS
        for key, value in content.items():
            short = isinstance(value, (bool, float)) or (type(value) is int and abs(value) < 1 << 63)
            if (
                type(key) is str
                and len(key) <= 128
                and (short or (isinstance(value, str) and len(value) <= _KEPT_TEXT))
            ):
                yield key, value
                left -= 1
                if not left:
                    return
