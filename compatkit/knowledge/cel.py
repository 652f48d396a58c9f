"""CEL, the language of `when` and `require`: compile, evaluate, and texts with `{{ expressions }}` in them.

The runtime is imported inside functions: importing this module costs nothing. An expression sees plain dicts, lists,
strings, numbers and booleans; `plain` makes such values of anything a header may hold.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

_PLACE = re.compile(r"\{\{(.*?)\}\}", re.S)
_WHERE = re.compile(r"<input>:(\d+):(\d+): (.*)")
_INT64 = 1 << 63


class CelError(Exception):
    """An expression that does not compile, or one that cannot be evaluated on the facts at hand.

    `line` and `column` count from 1 within the expression.
    """

    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


@lru_cache(maxsize=64)
def _environment(variables: tuple[str, ...]) -> Any:
    from cel_expr_python import cel

    return cel.NewEnv(variables=dict.fromkeys(variables, cel.Type.DYN))


@lru_cache(maxsize=2048)
def _program(expression: str, variables: tuple[str, ...]) -> Any:
    try:
        return _environment(variables).compile(expression)
    except RuntimeError as e:
        match = _WHERE.search(str(e))
        if not match:
            raise CelError(str(e).split("\n", 1)[0]) from None
        message = match[3].replace(" (in container '')", "")
        raise CelError(message, int(match[1]), int(match[2])) from None


def check(expression: str, variables: Iterable[str]) -> str:
    """Compile and type-check an expression; returns the name of its type ("BOOL", "DYN", …).

    Raises:
        CelError: with line and column within the expression.
    """
    return str(_program(expression, tuple(sorted(variables))).return_type().name())


class Facts(dict[str, Any]):
    """Plain values under the names of their variables, handed to CEL once for all expressions about them."""

    activation: Any = None


def evaluate(expression: str, values: Mapping[str, Any]) -> Any:
    """The value of an expression over plain values (`Facts`, if more than one expression looks at them).

    Raises:
        CelError: it does not compile, or has no value for these facts.
    """
    variables = tuple(sorted(values))
    program = _program(expression, variables)
    if isinstance(values, Facts):
        if values.activation is None:
            values.activation = _environment(variables).Activation(dict(values))
        result = program.eval(values.activation)
    else:
        result = program.eval(data=dict(values))
    if result.type().name() == "ERROR":
        raise CelError(str(result.value()).removeprefix("INVALID_ARGUMENT: "))
    return _plain_value(result)


def _plain_value(result: Any) -> Any:
    """The value as Python's own types.

    cel-expr-python 0.1.3 gives back one reference too many for every null it converts; below Python 3.12 that ends the
    process ("deallocating None") after a few thousand. So a null is not converted, and nulls inside are paid for.
    """
    if result.type().name() == "NULL":
        return None
    value = result.plain_value()
    nulls = _nulls(value) if isinstance(value, (list, dict)) else 0
    if nulls and sys.version_info < (3, 12):
        import ctypes

        for _ in range(nulls):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(None))
    return value


def _nulls(value: Any) -> int:
    if isinstance(value, (list, dict)):
        return sum(map(_nulls, value.values() if isinstance(value, dict) else value))
    return value is None


def holds(expression: str, values: Mapping[str, Any]) -> bool:
    """The value of a condition.

    Raises:
        CelError: it has no value, or the value is not true or false.
    """
    value = evaluate(expression, values)
    if not isinstance(value, bool):
        raise CelError(f"is neither true nor false but {value!r}")
    return value


def places(text: str) -> list[tuple[str, int]]:
    """The expressions in a text with `{{ }}`, and where each starts."""
    return [(m[1], m.start(1)) for m in _PLACE.finditer(text)]


def render(text: str, values: Mapping[str, Any]) -> str:
    """A text with every `{{ expression }}` replaced by its value.

    Raises:
        CelError: an expression has no value.
    """
    return _PLACE.sub(lambda m: show(evaluate(m[1].strip(), values)), text)


def show(value: Any) -> str:
    """A value as a sentence shows it: lists with commas, whole numbers without a point, nothing as "unknown"."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return ", ".join(show(v) for v in value)
    return str(value)


def plain(value: Any) -> Any:
    """A value as CEL takes it: no tuples, no numbers beyond 64 bits, no text that is not Unicode."""
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return value if -_INT64 <= value < _INT64 else float(value) if abs(value) < 1 << 1000 else None
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return {plain(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        return [plain(v) for v in value]
    return plain(str(value))
