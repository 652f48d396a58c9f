"""Rows taken from a change, and changes of neighbouring rows made one, by the mathematics of each algorithm.

Both are exact: values are moved, repeated or set to zero, never computed. What cannot be moved so is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compatkit.convert.values import Array, Value, made, same

#: Rows of a module's output: the first, and how many.
Range = tuple[int, int]
Parts = Mapping[str, Value]


class Refused(ValueError):
    """A change that cannot be written this way without losing or rounding something; the sentence says why."""


def take(math: str, parts: Parts, ranges: Sequence[Range], rows: int, scaled: bool) -> dict[str, Value]:
    """The change of some rows only, in the order given.

    Args:
        math: of the algorithm.
        parts: its tensors.
        ranges: the rows wanted.
        rows: how many rows the whole change has.
        scaled: whether an alpha stands beside it (a constraint, for orthogonal blocks).

    Raises:
        Refused: these rows cannot be told apart in this algorithm.
    """
    out = dict(parts)
    every = sorted(ranges) == _runs_of(rows, ranges)
    for name in ("dora", "dora_peft"):
        if name in out:
            out[name] = _magnitudes(out[name], ranges, rows, every)
    if math == "product":
        out["up"] = _rows(parts["up"], ranges)
    elif math == "hadamard":
        for name, core in (("w1_a", "t1"), ("w2_a", "t2")):
            out[name] = _rows(parts[name], ranges, axis=1 if core in parts else 0)
    elif math == "kronecker":
        _take_kronecker(out, ranges)
    elif math == "glora":
        name = _glora_rows(parts, rows)
        out[name] = _rows(parts[name], ranges)
    elif math == "blocks":
        _take_blocks(out, ranges, scaled)
    elif math in ("full", "set"):
        for name in parts:
            if len(parts[name].shape) == 0:
                raise Refused("a single number stands for all rows")
            if parts[name].shape[0] != rows:
                raise Refused(f"its {parts[name].shape[0]} rows are not the {rows} of the weight")
            out[name] = _rows(parts[name], ranges)
    else:
        raise Refused("rows of this algorithm cannot be told apart")
    return out


def _runs_of(rows: int, ranges: Sequence[Range]) -> list[Range]:
    """The ranges in order if they are all rows, each once; else nothing that equals them."""
    at = 0
    for start, size in sorted(ranges):
        if start != at:
            return []
        at += size
    return sorted(ranges) if at == rows else []


def _rows(value: Value, ranges: Sequence[Range], axis: int = 0) -> Value:
    array = value.load()
    pieces = [array[start : start + size] if axis == 0 else array[:, start : start + size] for start, size in ranges]
    return made(np.concatenate(pieces, axis=axis) if len(pieces) > 1 else pieces[0], value.dtype)


def _magnitudes(value: Value, ranges: Sequence[Range], rows: int, every: bool) -> Value:
    if value.shape and value.shape[0] == rows:
        return _rows(value, ranges)
    if every:
        return value  # one for each column: the order of rows is nothing to it
    raise Refused("its DoRA magnitudes are measured over all rows together")


def _take_kronecker(out: dict[str, Value], ranges: Sequence[Range]) -> None:
    name, inner = _kronecker_rows(out)
    if any(start % inner or size % inner for start, size in ranges):
        raise Refused(f"its Kronecker factor has blocks of {inner} rows, which the cut goes through")
    out[name] = _rows(out[name], [(start // inner, size // inner) for start, size in ranges])


def _kronecker_rows(parts: Parts) -> tuple[str, int]:
    """(the tensor whose rows repeat the second factor, the rows of that factor)."""
    if "t2" in parts:
        inner = parts["w2_a"].shape[1]
    else:
        inner = parts["w2"].shape[0] if "w2" in parts else parts["w2_a"].shape[0]
    return ("w1" if "w1" in parts else "w1_a"), inner


def _glora_rows(parts: Parts, rows: int) -> str:
    """The tensor that holds the rows: GLoRA has had two orders."""
    b1, b2 = parts["b1"].shape, parts["b2"].shape
    old = b2[1] == b1[0] == parts["a1"].shape[0] == parts["a2"].shape[1]
    name = "b2" if old and b2[0] == rows else "b1"
    if parts[name].shape[0] != rows:
        raise Refused("the order of its matrices is not known")
    return name


def _take_blocks(out: dict[str, Value], ranges: Sequence[Range], scaled: bool) -> None:
    shape = out["blocks"].shape
    if len(shape) != 3:
        raise Refused("butterfly blocks mix all rows")
    if scaled:
        raise Refused("its constraint holds for all blocks together")
    size = shape[-1]
    if any(start % size or length % size for start, length in ranges):
        raise Refused(f"its orthogonal blocks of {size} rows are cut through")
    if "rescale" in out:
        out["rescale"] = _rows(out["rescale"], ranges)
    out["blocks"] = _rows(out["blocks"], [(start // size, length // size) for start, length in ranges])


def merge(math: str, pieces: Sequence[tuple[Parts | None, int]]) -> dict[str, Value]:
    """Changes of neighbouring rows as one; (None, n) are n rows that nothing changes.

    Scales must have been made equal before. Raises Refused where the algorithm has no such form.
    """
    present = [parts for parts, _ in pieces if parts is not None]
    if any(parts.keys() != present[0].keys() for parts in present):
        raise Refused("its parts hold different kinds of tensors")
    gaps = any(parts is None for parts, _ in pieces)
    first = present[0]
    out: dict[str, Value] = {}
    for name in ("dora", "dora_peft"):
        if name in first:
            if gaps:
                raise Refused("a DoRA needs the magnitudes of all rows, and some are not there")
            if any(parts[name].shape[:1] != (size,) for parts, size in pieces if parts is not None):
                raise Refused("its DoRA magnitudes are measured over all rows together")
            out[name] = _stacked([(parts[name] if parts else None, size) for parts, size in pieces])
    if math == "product":
        out.update(_merge_products(pieces, first, "up", "down"))
    elif math == "hadamard":
        if "t1" in first or "t2" in first:
            raise Refused("the cores of its parts cannot be joined")
        out.update(_merge_products(pieces, first, "w1_a", "w1_b"))
        out.update(_merge_products(pieces, first, "w2_a", "w2_b"))
    elif math == "kronecker":
        out.update(_merge_kronecker(pieces, present))
    elif math == "glora":
        out.update(_merge_glora(pieces, present, gaps))
    elif math == "blocks":
        out.update(_merge_blocks(pieces, first, gaps))
    elif math in ("full", "set"):
        if math == "set" and gaps:
            raise Refused("some rows of the replaced weight are not there")
        for name in first:
            out[name] = _stacked([(parts[name] if parts else None, size) for parts, size in pieces])
    else:
        raise Refused("parts of this algorithm cannot be made one")
    return out


def _stacked(pieces: Sequence[tuple[Value | None, int]]) -> Value:
    """Rows one after the other; zeros where there are none. A common dtype holds all of them exactly."""
    values = [v for v, _ in pieces if v is not None]
    dtype = common([v.dtype for v in values])
    arrays = []
    for value, size in pieces:
        if value is None:
            arrays.append(np.zeros((size, *values[0].shape[1:]), dtype=as_dtype(values[0], dtype).dtype))
        else:
            arrays.append(as_dtype(value, dtype))
    return made(np.concatenate(arrays, axis=0), dtype)


def _merge_products(pieces: Sequence[tuple[Parts | None, int]], first: Parts, up: str, down: str) -> dict[str, Value]:
    """Side by side on the diagonal; where all share the inner matrix it stays one."""
    if "mid" in first:
        raise Refused("the middle matrices of its parts cannot be joined")
    present = [parts for parts, _ in pieces if parts is not None]
    if all(same(parts[down], first[down]) for parts in present):
        return {up: _stacked([(parts[up] if parts else None, size) for parts, size in pieces]), down: first[down]}
    dtype_up = common([parts[up].dtype for parts in present])
    rank = sum(parts[down].shape[0] for parts in present)
    tail = first[up].shape[2:]
    outer = np.zeros((sum(size for _, size in pieces), rank, *tail), dtype=as_dtype(first[up], dtype_up).dtype)
    row = column = 0
    for parts, size in pieces:
        if parts is not None:
            width = parts[down].shape[0]
            outer[row : row + size, column : column + width] = as_dtype(parts[up], dtype_up)
            column += width
        row += size
    return {up: made(outer, dtype_up), down: _stacked([(parts[down], parts[down].shape[0]) for parts in present])}


def _merge_kronecker(pieces: Sequence[tuple[Parts | None, int]], present: Sequence[Parts]) -> dict[str, Value]:
    name, inner = _kronecker_rows(present[0])
    shared = [n for n in present[0] if n != name and not n.startswith("dora")]
    if any(not same(parts[n], present[0][n]) for parts in present for n in shared):
        raise Refused("a Kronecker product of its parts is none: their second factors differ")
    if any(size % inner for _, size in pieces):
        raise Refused(f"rows that nothing changes are no multiple of its factor's {inner}")
    out = {n: present[0][n] for n in shared}
    out[name] = _stacked([(parts[name] if parts else None, size // inner) for parts, size in pieces])
    return out


def _merge_glora(pieces: Sequence[tuple[Parts | None, int]], present: Sequence[Parts], gaps: bool) -> dict[str, Value]:
    if gaps:
        raise Refused("what it does to a row depends on the weight, and some rows are not there")
    sizes = [size for parts, size in pieces if parts is not None]
    names = {_glora_rows(parts, size) for parts, size in zip(present, sizes, strict=True)}
    name = next(iter(names))
    shared = [n for n in present[0] if n != name]
    if len(names) > 1 or any(not same(parts[n], present[0][n]) for parts in present for n in shared):
        raise Refused("its parts share no matrices, so that no GLoRA is their sum")
    return {**{n: present[0][n] for n in shared}, name: _stacked([(p[name] if p else None, s) for p, s in pieces])}


def _merge_blocks(pieces: Sequence[tuple[Parts | None, int]], first: Parts, gaps: bool) -> dict[str, Value]:
    size = first["blocks"].shape[-1]
    if any(p is not None and (len(p["blocks"].shape) != 3 or p["blocks"].shape[-1] != size) for p, _ in pieces):
        raise Refused("its parts have orthogonal blocks of different sizes")
    if any(length % size for _, length in pieces) or ("rescale" in first and gaps):
        raise Refused("rows that nothing changes have no blocks")
    out = {"blocks": _stacked([(p["blocks"] if p else None, length // size) for p, length in pieces])}
    if "rescale" in first:
        out["rescale"] = _stacked([(p["rescale"] if p else None, length) for p, length in pieces])
    return out


def common(dtypes: Sequence[str]) -> str:
    """A dtype that holds the values of all of these exactly."""
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    return "F64" if "F64" in kinds else "F32"


def as_dtype(value: Value, dtype: str) -> Array:
    """The raw array in a wider dtype."""
    return (
        value.load() if value.dtype == dtype else value.numbers().astype(np.float64 if dtype == "F64" else np.float32)
    )


def block(parts: Parts, up: str, down: str, start: int, size: int) -> dict[str, Value] | None:
    """One block of a block-diagonal product whose rows are taken already; None if other columns are not zero."""
    array = parts[up].load()
    outside = np.concatenate([array[:, :start], array[:, start + size :]], axis=1)
    if outside.tobytes().strip(b"\0"):
        return None
    inner = parts[down].load()[start : start + size]
    return {
        **parts,
        up: made(array[:, start : start + size], parts[up].dtype),
        down: made(inner, parts[down].dtype),
    }
