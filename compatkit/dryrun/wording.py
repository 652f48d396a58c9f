"""The texts of torch's shape errors: what a text says, whatever version said it.

Torch words the same error differently over its versions and devices (`[*2560]` and `[*, 2560]`), and a text holds sizes
that depend on the run: tokens, the side of a picture. `read` gives what remains of a text when both are left out, so
that two texts of one error are equal; `pattern` makes the regular expression that finds one in a log.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple


class Said(NamedTuple):
    """What a text of torch says: the kind of error, and the sizes that the models decide."""

    kind: str
    sizes: tuple[object, ...]


def _list(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"-?\d+", text))


def _matmul(m: re.Match[str]) -> tuple[object, ...]:
    return (int(m["k"]), int(m["rows"]), int(m["columns"]))


def _norm(m: re.Match[str]) -> tuple[object, ...]:
    return (_list(m["wanted"]), _list(m["got"])[-1:])


def _channels(m: re.Match[str]) -> tuple[object, ...]:
    return (_list(m["weight"]), len(_list(m["input"])), int(m["wanted"]), int(m["got"]))


def _rank(m: re.Match[str]) -> tuple[object, ...]:
    return (m["op"], len(_list(m["input"])), _list(m["input"])[1:2])


def _sizes(m: re.Match[str]) -> tuple[object, ...]:
    return (frozenset({int(m["a"]), int(m["b"])}),)


def _broadcast(m: re.Match[str]) -> tuple[object, ...]:
    """The meta device names one side, and both shapes: the other side stands in the shape that lacks the first."""
    length, axis = int(m["length"]), int(m["axis"])
    one, other = _list(m["one"]), _list(m["other"])
    sides = {shape[axis] for shape in (one, other) if len(shape) >= -axis}
    return (frozenset({length, *sides}),)


def _load(m: re.Match[str]) -> tuple[object, ...]:
    return (m["name"], _list(m["got"]), _list(m["wanted"]))


def _view(m: re.Match[str]) -> tuple[object, ...]:
    return (_list(m["shape"]), int(m["size"]))


def _attention(m: re.Match[str]) -> tuple[object, ...]:
    return (_list(m["wanted"]), _list(m["got"]))


def _dtype(m: re.Match[str]) -> tuple[object, ...]:
    return (m["a"].lower(), m["b"].lower())


#: (kind, expression, what it says). Texts of torch 2.13 and what other versions and the meta device make of them.
_TEXTS: tuple[tuple[str, re.Pattern[str], Callable[[re.Match[str]], tuple[object, ...]]], ...] = tuple(
    (kind, re.compile(text), sizes)
    for kind, text, sizes in (
        ("product", r"mat1 and mat2 shapes cannot be multiplied \((?:\d+|N)x(?P<k>\d+) and"
                    r" (?P<rows>\d+)x(?P<columns>\d+)\)", _matmul),
        ("norm", r"Given normalized_shape=\[(?P<wanted>[\d, ]+)\], expected input with shape \[\*(?:, ?)?[\d, ]+\],"
                 r" but got input of size ?\[(?P<got>[\dN, ]+)\]", _norm),
        ("channels", r"Given groups=\d+, weight of size \[(?P<weight>[\d, ]+)\], expected input ?\[(?P<input>[\d, ]+)\]"
                     r" to have (?P<wanted>\d+) channels, but got (?P<got>\d+) channels instead", _channels),
        ("rank", r"Expected \dD \(unbatched\) or \dD \(batched\) input to (?P<op>\w+), but got input of size: "
                 r"\[(?P<input>[\d, ]+)\]", _rank),
        ("sizes", r"The size of tensor a \((?P<a>\d+)\) must match the size of tensor b \((?P<b>\d+)\) at non-singleton"
                  r" dimension \d+", _sizes),
        ("sizes", r"Attempting to broadcast a dimension of length (?P<length>\d+) at (?P<axis>-\d+)! Mismatching"
                  r" argument at index \d+ had torch\.Size\(\[(?P<one>[\d, ]+)\]\); but expected shape should be"
                  r" broadcastable to \[(?P<other>[\d, ]+)\]", _broadcast),
        ("load", r"size mismatch for (?P<name>[\w.]+): copying a param with shape torch\.Size\(\[(?P<got>[\d, ]*)\]\)"
                 r" from checkpoint, the shape in current model is torch\.Size\(\[(?P<wanted>[\d, ]*)\]\)", _load),
        ("view", r"shape '\[(?P<shape>[\d, ]+)\]' is invalid for input of size (?P<size>\d+)", _view),
        ("attention", r"Expected size for first two dimensions of batch2 tensor to be: \[(?P<wanted>[\d, ]+)\] but got:"
                      r" \[(?P<got>[\d, ]+)\]", _attention),
        ("dtype", r"to have the same dtype, but got: (?P<a>[\w:]+) != (?P<b>[\w:]+)", _dtype),
    )
)  # fmt: skip

#: How each version writes what differs between them.
_FREE = (
    (re.compile(r"\\\[\\\*(?:,\\ )?"), r"\\[\\*(?:, )?"),
    (re.compile(r"(cannot\\ be\\ multiplied\\ \\\()\d+x"), r"\1\\d+x"),
    (re.compile(r"(input\\ of\\ size\\\[)(?:\d+,\\ )+(?=\d+\\\])"), r"\1[\\d, ]*"),
    (re.compile(r"(expected\\ input\\\[)[^\]]*\\\]"), r"\1[\\d, ]+\\]"),
    (re.compile(r"(but\\ got\\ input\\ of\\ size:\\ \\\[)[^\]]*\\\]"), r"\1[\\d, ]+\\]"),
    (re.compile(r"(dimension\\ )\d+$"), r"\1\\d+"),
)


def read(text: str) -> Said | None:
    """What the first shape error in a text says, None where there is none that torch words."""
    found = [(m.start(), kind, sizes(m)) for kind, p, sizes in _TEXTS if (m := p.search(text))]
    if not found:
        return None
    _, kind, said = min(found, key=lambda f: f[0])
    return Said(kind, said)


def telling(text: str) -> str:
    """The one line of a text that says what is wrong: of a list of parameters the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if read(line)), lines[0] if lines else "")


def pattern(text: str) -> str:
    """A regular expression that matches this error in the wording of other torch versions, with other free sizes."""
    out = re.escape(telling(text))
    for expression, replacement in _FREE:
        out = expression.sub(replacement, out)
    return out.replace(r"\ ", " ").replace(r"\-", "-").replace(r"\#", "#")
