"""Does the change an adapter's tensors make have the shape of the weight it is for? By algorithm, from shapes alone.

Each function takes the shapes of one module's tensors by part, and the shape of the weight (of its rows, where only
some are changed). It answers "" where the change applies, else what does not go together. `None` shapes are unknown:
nothing is said of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from math import prod

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def _listed(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _rest(shape: Shape) -> int:
    return prod(shape[1:])


def _sized(size: int, made: str, weight: Shape) -> str:
    return "" if size == prod(weight) else f"{made} for a weight of {_listed(weight)}"


def product(parts: Shapes, weight: Shape) -> str:
    """up x down: out rows and in columns must be those of the weight."""
    up, down, mid = parts["up"], parts["down"], parts.get("mid")
    if len(up) < 2 or len(down) < 2:
        return f"{_listed(up)} x {_listed(down)} is no product"
    inner, columns = down[0], _rest(down)
    if mid is not None:
        if len(mid) < 3 or len(down) < 2 or (mid[0], mid[1]) != (down[0], down[0]):
            return f"the middle {_listed(mid)} does not fit between {_listed(up)} and {_listed(down)}"
        columns = down[1] * prod(mid[2:])
    if _rest(up) != inner:
        return f"{_listed(up)} x {_listed(down)}: ranks {_rest(up)} and {inner} differ"
    reshape = parts.get("reshape")
    if reshape is not None:
        if len(reshape) != len(weight) or any(new < old for new, old in zip(reshape, weight, strict=True)):
            return f"it would widen the weight to {_listed(reshape)}, which is less than {_listed(weight)}"
        weight = reshape
    problem = _sized(up[0] * columns, f"{_listed(up)} x {_listed(down)} makes [{up[0]}, {columns}]", weight)
    return problem or _dora(parts, weight)


def hadamard(parts: Shapes, weight: Shape) -> str:
    """(w1_a x w1_b) * (w2_a x w2_b)."""
    made = []
    for n, t in (("1", "t1"), ("2", "t2")):
        a, b = parts[f"w{n}_a"], parts[f"w{n}_b"]
        core = parts.get(t)
        if len(a) != 2 or len(b) != 2:
            return f"{_listed(a)} x {_listed(b)} is no product"
        if core is not None:
            if len(core) < 3 or core[0] != a[0] or core[1] != b[0]:
                return f"the core {_listed(core)} does not fit {_listed(a)} and {_listed(b)}"
            made.append((a[1], b[1], *core[2:]))
        elif a[1] != b[0]:
            return f"{_listed(a)} x {_listed(b)}: ranks {a[1]} and {b[0]} differ"
        else:
            made.append((a[0], b[1]))
    both = broadcast(*made)
    if both is None:
        return f"{_listed(made[0])} and {_listed(made[1])} cannot be multiplied"
    return _sized(prod(both), f"it makes {_listed(both)}", weight) or _dora(parts, weight)


def kronecker(parts: Shapes, weight: Shape) -> str:
    """w1 (x) w2, either of which may be a product of two."""
    sizes = []
    for n in ("1", "2"):
        whole = parts.get(f"w{n}")
        a, b, core = parts.get(f"w{n}_a"), parts.get(f"w{n}_b"), parts.get(f"t{n}")
        if whole is None:
            if a is None or b is None:
                return f"one factor is not there (w{n})"
            if core is not None:
                if len(a) != 2 or len(b) != 2 or len(core) < 3 or core[0] != a[0] or core[1] != b[0]:
                    return f"the core {_listed(core)} does not fit {_listed(a)} and {_listed(b)}"
                whole = (a[1], b[1], *core[2:])
            elif len(a) != 2 or len(b) != 2 or a[1] != b[0]:
                return f"{_listed(a)} x {_listed(b)} is no product"
            else:
                whole = (a[0], b[1])
        sizes.append(whole)
    made = f"{_listed(sizes[0])} (x) {_listed(sizes[1])}"
    return _sized(prod(sizes[0]) * prod(sizes[1]), made, weight) or _dora(parts, weight)


def glora(parts: Shapes, weight: Shape) -> str:
    """W x a1 x a2 + b1 x b2, in the order of either of its two versions."""
    a1, a2, b1, b2 = (parts[n] for n in ("a1", "a2", "b1", "b2"))
    if any(len(s) < 2 for s in (a1, a2, b1, b2)):
        return "its tensors are no matrices"
    columns = _rest(weight)
    old = b2[1] == b1[0] == a1[0] == a2[1] and not (
        b2[0] == b1[1] == a1[1] == a2[0] and not (a2[0] == weight[0] == weight[1])
    )
    if old:
        fits = b2[0] * _rest(b1) == prod(weight) and columns == a2[0] and _rest(a1) == columns
    else:
        inner = weight[1] if len(weight) > 1 else 0
        fits = a1[0] == inner and a1[1] == a2[0] and a2[1] == inner and b1[0] * _rest(b2) == prod(weight)
    return "" if fits else f"{_listed(b1)} and {_listed(b2)} for a weight of {_listed(weight)}"


def blocks(parts: Shapes, weight: Shape) -> str:
    """Orthogonal blocks along the rows: three sides, or four where there are several factors."""
    shape = parts["blocks"]
    if not weight or len(shape) not in (3, 4) or shape[-1] != shape[-2]:
        return f"blocks {_listed(shape)} for a weight of {_listed(weight)}"
    rows = shape[-3] * shape[-1]
    if rows != weight[0]:
        return f"blocks {_listed(shape)} turn {rows} rows, the weight has {weight[0]}"
    if len(shape) == 4:
        if "alpha" not in parts:
            return "without an alpha its blocks cannot be applied"
        half = shape[-1] // 2
        if not half or any(rows % (2 * 2**i * half) for i in range(min(shape[0], 32))):
            return f"{shape[0]} factors of blocks of {shape[-1]} do not divide {rows} rows"
    return _dora(parts, weight)


def full(parts: Shapes, weight: Shape) -> str:
    """A difference of the same shape."""
    shape = parts["weight"]
    return "" if shape == weight else f"{_listed(shape)} for a weight of {_listed(weight)}"


def replaced(parts: Shapes, weight: Shape) -> str:
    """A tensor that takes the weight's place."""
    shape = parts["weight"]
    return "" if broadcast(shape, weight) == weight else f"{_listed(shape)} for a weight of {_listed(weight)}"


def _dora(parts: Shapes, weight: Shape) -> str:
    """A magnitude is a number for every row, or for every column."""
    scale = parts.get("dora")
    if scale is None or not weight:
        return ""
    if len(weight) < 2:
        return f"magnitudes {_listed(scale)} for a weight of one side, {_listed(weight)}"
    if not scale:
        return "its magnitudes are a single number"
    rows = scale[0] == weight[0]
    norm = (weight[0], *[1] * (len(weight) - 1)) if rows else (1, *weight[1:2], *[1] * (len(weight) - 2))
    both = broadcast(scale, norm)
    if both is None or broadcast(both, weight) != weight:
        return f"magnitudes {_listed(scale)} for a weight of {_listed(weight)}"
    return ""


def broadcast(one: Shape, other: Shape) -> Shape | None:
    """The shape two tensors have together, None if they have none."""
    out = []
    for a, b in zip_longest(reversed(one), reversed(other), fillvalue=1):
        if a != b and 1 not in (a, b):
            return None
        out.append(b if a == 1 else a)
    return tuple(reversed(out))


#: By the `math` of an algorithm in `rules/adapters/spellings.yaml`.
FITS: dict[str, Callable[[Shapes, Shape], str]] = {
    "product": product,
    "hadamard": hadamard,
    "kronecker": kronecker,
    "glora": glora,
    "blocks": blocks,
    "full": full,
    "set": replaced,
}

#: The parts without which nothing can be computed.
NEEDED: dict[str, tuple[str, ...]] = {
    "product": ("up", "down"),
    "hadamard": ("w1_a", "w1_b", "w2_a", "w2_b"),
    "glora": ("a1", "a2", "b1", "b2"),
    "blocks": ("blocks",),
    "full": ("weight",),
    "set": ("weight",),
}


def matrix(math: str, parts: Shapes) -> tuple[int, int] | None:
    """(rows, columns) of the weight that these tensors are made for, where they say so."""
    if any(p not in parts for p in NEEDED.get(math, ())):
        return None
    if math == "product":
        up, down, mid = parts["up"], parts["down"], parts.get("mid")
        if not up or not down:
            return None
        return up[0], (down[1] * prod(mid[2:]) if mid is not None and len(down) > 1 else _rest(down))
    if math == "hadamard":
        a, b, core = parts["w1_a"], parts["w1_b"], parts.get("t1")
        if len(a) != 2 or len(b) != 2:
            return None
        return (a[1], b[1] * prod(core[2:])) if core is not None else (a[0], b[1])
    if math == "kronecker":
        return _kronecker_matrix(parts)
    if math in ("full", "set"):
        shape = parts["weight"]
        return (shape[0], _rest(shape)) if len(shape) > 1 else None
    return None


def unsound(math: str, parts: Shapes) -> str:
    """What does not go together among a module's own tensors, whatever weight they are for; "" where nothing is known.

    An empty tensor is left to those who count them.
    """
    own = {p: shape for p, shape in parts.items() if p != "reshape"}
    made = matrix(math, own)
    if made is None or math not in FITS or any(0 in shape for shape in own.values()):
        return ""
    return FITS[math](own, made)


def _kronecker_matrix(parts: Shapes) -> tuple[int, int] | None:
    rows = columns = 1
    for n in ("1", "2"):
        whole, a, b, core = (parts.get(p) for p in (f"w{n}", f"w{n}_a", f"w{n}_b", f"t{n}"))
        if whole is not None and len(whole) > 1:
            rows, columns = rows * whole[0], columns * _rest(whole)
        elif a is not None and b is not None and len(a) == len(b) == 2:
            rows *= a[1] if core is not None else a[0]
            columns *= b[1] * (prod(core[2:]) if core is not None else 1)
        else:
            return None
    return rows, columns
