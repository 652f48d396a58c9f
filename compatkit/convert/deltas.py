"""What an adapter really does to a weight, in numbers: the change of each algorithm, applied to given weights.

Written from the definitions of the algorithms, apart from the code that cuts and joins them: it is what a conversion is
held against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from msgspec import Struct

from compatkit.convert.values import Array

#: Parts whose numbers make the change.
Numbers = Mapping[str, Array]
_EPSILON = 1e-8
#: Rows computed at once where rows are independent of each other.
_CHUNK = 512
#: Up to this rank the effect of a Hadamard product is summed over pairs of its ranks.
_PAIRED = 32


class Weight(Struct, frozen=True):
    """Rows of a made-up weight: row i is `scale[i]` times row `index[i]` of a pattern."""

    pattern: Array
    index: Array
    scale: Array

    def rows(self, start: int, size: int) -> Array:
        """Those rows, flat."""
        own = slice(start, start + size)
        return np.asarray(self.pattern[self.index[own]] * self.scale[own, None])


def effect(
    math: str,
    parts: Numbers,
    made_up: Callable[[], Weight],
    shape: tuple[int, ...],
    alpha: float | None,
    probe: Array,
) -> Array:
    """The change applied to probes: (rows, columns) x (columns, n) -> (rows, n), float64.

    Two changes with the same effect on random probes are the same change. Large products are never written out.

    Args:
        math: of the algorithm.
        parts: its tensors' numbers.
        made_up: makes the weight that it changes, for those whose effect depends on it.
        shape: of the weight.
        alpha: the file's, None if there is none.
        probe: random numbers.
    """
    plain = not {"mid", "t1", "t2", "dora", "dora_peft"} & parts.keys()
    if math == "product" and plain:
        inner = _matrix(parts["down"]) @ probe
        return np.asarray(_scale(alpha, parts["down"].shape[0]) * (_matrix(parts["up"]) @ inner))
    rows, width = shape[0], shape[1:]
    if math == "product" and "mid" not in parts and _by_row(parts, rows):
        return _decomposed_rows(parts, made_up(), alpha, probe)
    if math == "kronecker" and plain:
        one, other, scale = _factors(parts, alpha)
        inner = np.einsum("cd,bdk->bck", _matrix(other), probe.reshape(one.shape[1], -1, probe.shape[1]))
        return np.asarray(scale * np.einsum("ab,bck->ack", one, inner).reshape(rows, -1))
    if math == "hadamard" and plain and parts["w1_b"].shape[0] * parts["w2_b"].shape[0] <= _PAIRED**2:
        a, b, c, d = (parts[n].astype(np.float64) for n in ("w1_a", "w1_b", "w2_a", "w2_b"))
        pairs = np.einsum("pj,qj,jk->pqk", b, d, probe, optimize=True)
        scale = _scale(alpha, parts["w1_b"].shape[0])
        return np.asarray(scale * np.einsum("ip,iq,pqk->ik", a, c, pairs, optimize=True))
    weight = made_up()
    names = _ROWS.get(math, ()) if plain or (math == "product" and _by_row(parts, rows)) else ()
    if not names or "mid" in parts:
        made = change(math, parts, weight.rows(0, rows).reshape(shape), alpha)
        return np.asarray(made.reshape(rows, -1) @ probe)
    out = np.empty((rows, probe.shape[1]))
    for start in range(0, rows, _CHUNK):
        size = min(_CHUNK, rows - start)
        own = {n: v[start : start + size] if n in names else v for n, v in parts.items()}
        made = change(math, own, weight.rows(start, size).reshape(size, *width), alpha)
        out[start : start + size] = made.reshape(size, -1) @ probe
    return out


#: Parts whose rows are the rows of the weight, each changed on its own.
_ROWS = {"product": ("up", "dora", "dora_peft"), "hadamard": ("w1_a", "w2_a"), "full": ("weight", "bias")}


def _by_row(parts: Numbers, rows: int) -> bool:
    """Whether it is a DoRA with a magnitude for every row."""
    found = [parts[n] for n in ("dora", "dora_peft") if n in parts]
    return bool(found) and all(m.size == rows and (m.ndim == 1 or rows in m.shape[:2]) for m in found)


def _decomposed_rows(parts: Numbers, weight: Weight, alpha: float | None, probe: Array) -> Array:
    """A DoRA with a magnitude for each row: lengths and effects of all rows, without writing out one of them."""
    magnitude = next(parts[n] for n in ("dora", "dora_peft") if n in parts).astype(np.float64).reshape(-1)
    up, down = _scale(alpha, parts["down"].shape[0]) * _matrix(parts["up"]), _matrix(parts["down"])
    cross = (up * (weight.pattern @ down.T)[weight.index]).sum(axis=1) * weight.scale
    own = (up @ (down @ down.T) * up).sum(axis=1)
    plain = (weight.pattern**2).sum(axis=1)[weight.index] * weight.scale**2
    norm = np.sqrt(np.maximum(plain + 2 * cross + own, 0)) + _EPSILON
    before = (weight.pattern @ probe)[weight.index] * weight.scale[:, None]
    return np.asarray((before + up @ (down @ probe)) * (magnitude / norm)[:, None] - before)


def change(math: str, parts: Numbers, weight: Array, alpha: float | None) -> Array:
    """The difference an adapter makes to a weight of (rows, columns), as float64 of that shape.

    `alpha` is the file's (None: the change is taken as it is). Raises KeyError for an algorithm without a formula here.
    """
    made = _PLAIN[math](parts, weight, alpha)
    for name in ("dora", "dora_peft"):
        if name in parts:
            return _decomposed(parts[name], weight, made)
    return made


def _matrix(array: Array) -> Array:
    return array.reshape(array.shape[0], -1).astype(np.float64)


def _scale(alpha: float | None, rank: int) -> float:
    return 1.0 if alpha is None or not rank else alpha / rank


def _product(parts: Numbers, weight: Array, alpha: float | None) -> Array:
    up, down, mid = parts["up"], parts["down"], parts.get("mid")
    scale = _scale(alpha, down.shape[0])
    if mid is not None:
        core = np.einsum("om,mn...->on...", _matrix(up), mid.astype(np.float64))
        return np.asarray(scale * np.einsum("on...,ni->oi...", core, _matrix(down)).reshape(weight.shape))
    return np.asarray(scale * (_matrix(up) @ _matrix(down)).reshape(weight.shape))


def _half(parts: Numbers, n: str) -> Array:
    a, b, core = parts[f"w{n}_a"].astype(np.float64), parts[f"w{n}_b"].astype(np.float64), parts.get(f"t{n}")
    if core is None:
        return np.asarray(a @ b)
    return np.asarray(np.einsum("ij...,ip,jr->pr...", core.astype(np.float64), a, b))


def _hadamard(parts: Numbers, weight: Array, alpha: float | None) -> Array:
    scale = _scale(alpha, parts["w1_b"].shape[0])
    return np.asarray(scale * (_half(parts, "1") * _half(parts, "2")).reshape(weight.shape))


def _factors(parts: Numbers, alpha: float | None) -> tuple[Array, Array, float]:
    factors, rank = [], 0
    for n in ("1", "2"):
        whole = parts.get(f"w{n}")
        if whole is None:
            rank = parts[f"w{n}_b"].shape[0]
            whole = _half(parts, n)
        factors.append(whole.astype(np.float64))
    return factors[0], factors[1], _scale(alpha, rank)


def _kronecker(parts: Numbers, weight: Array, alpha: float | None) -> Array:
    one, other, scale = _factors(parts, alpha)
    one = one.reshape(*one.shape, *[1] * (other.ndim - one.ndim))
    return np.asarray(scale * np.kron(one, other).reshape(weight.shape))


def _glora(parts: Numbers, weight: Array, alpha: float | None) -> Array:
    a1, a2, b1, b2 = (_matrix(parts[n]) for n in ("a1", "a2", "b1", "b2"))
    rows, columns = weight.shape[0], weight.reshape(weight.shape[0], -1).shape[1]
    old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1] and b2.shape[0] == rows and a2.shape[0] == columns
    flat = weight.reshape(rows, -1)
    if old:
        made, rank = b2 @ b1 + flat @ a2 @ a1, a1.shape[0]
    else:
        made, rank = b1 @ b2 + flat @ a1 @ a2, a2.shape[0]
    return np.asarray((_scale(alpha, rank) * made).reshape(weight.shape))


def _rotation(q: Array) -> Array:
    skew = q - np.swapaxes(q, -1, -2)
    one = np.eye(q.shape[-1])
    return np.linalg.solve(np.swapaxes(one - skew, -1, -2), np.swapaxes(one + skew, -1, -2)).swapaxes(-1, -2)


def _blocks(parts: Numbers, weight: Array, alpha: float | None) -> Array:
    q = parts["blocks"].astype(np.float64)
    if alpha:
        skew = q - np.swapaxes(q, -1, -2)
        norm = float(np.linalg.norm(skew))
        q = q * min(1.0, alpha / norm) if norm else q
    flat = weight.reshape(weight.shape[0], -1)
    turned = flat
    if q.ndim == 3:
        turned = (_rotation(q) @ flat.reshape(q.shape[0], q.shape[-1], -1)).reshape(flat.shape)
    else:
        for level, own in enumerate(_rotation(q)):
            turned = _butterfly(own, turned, level)
    rescale = parts.get("rescale")
    if rescale is not None:
        turned = turned * _matrix(rescale)
    return np.asarray((turned - flat).reshape(weight.shape))


def _butterfly(blocks: Array, weight: Array, level: int) -> Array:
    """One factor: rows are shuffled by a stride of 2^level half blocks, turned block by block, and shuffled back."""
    size = blocks.shape[-1]
    stride = 2**level * (size // 2)
    rows = weight.shape[0]
    order = np.arange(rows).reshape(-1, 2, stride).swapaxes(1, 2).reshape(-1)
    turned = (blocks @ weight[order].reshape(blocks.shape[0], size, -1)).reshape(weight.shape)
    out = np.empty_like(turned)
    out[order] = turned
    return out


def _full(parts: Numbers, weight: Array, alpha: float | None) -> Array:
    value = parts.get("weight", parts.get("bias"))
    assert value is not None
    return value.astype(np.float64).reshape(weight.shape)


def _set(parts: Numbers, weight: Array, alpha: float | None) -> Array:
    return np.broadcast_to(parts["weight"].astype(np.float64), weight.shape) - weight


def _decomposed(magnitude: Array, weight: Array, made: Array) -> Array:
    """DoRA: the changed weight is brought to the length that the magnitudes say, by row or by column."""
    flat = (weight + made).reshape(weight.shape[0], -1)
    size = magnitude.size
    if (magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.size != weight.shape[0]) or (
        magnitude.ndim > 1 and magnitude.shape[0] != weight.shape[0] and magnitude.shape[1] != weight.shape[0]
    ):
        side = np.moveaxis(weight + made, 1, 0).reshape(weight.shape[1], -1)
        norm = np.linalg.norm(side, axis=1) + _EPSILON
        scale = (magnitude.astype(np.float64).reshape(-1) / norm).reshape(1, size, *[1] * (weight.ndim - 2))
        return np.asarray((weight + made) * scale - weight)
    norm = np.linalg.norm(flat, axis=1) + _EPSILON
    scale = (magnitude.astype(np.float64).reshape(-1) / norm)[:, None]
    return np.asarray((flat * scale).reshape(weight.shape) - weight)


_PLAIN = {
    "product": _product,
    "hadamard": _hadamard,
    "kronecker": _kronecker,
    "glora": _glora,
    "blocks": _blocks,
    "full": _full,
    "set": _set,
}
