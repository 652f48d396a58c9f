"""The tensors of one module to write: cut, joined, scaled and named as the convention wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compatkit.convert.changes import OUTER_INNER, Change
from compatkit.convert.cut import Refused, block, merge, take
from compatkit.convert.plan import Target
from compatkit.convert.record import Record, Row
from compatkit.convert.scale import Alpha, alpha_value, factor, fold, unfold
from compatkit.convert.values import Value, made, same

#: The matrices of other algorithms whose zeros leave their rows as they are.
_OUTER = {"full": ("weight", "bias"), "kronecker": ("w1", "w1_a"), "blocks": ("blocks",)}
_PAIR = ("up", "down", "mid")
_MAGNITUDES = ("dora", "dora_peft")
_PEFT_BIAS = ("bias", "bias_up")


class Builder:
    """Makes the tensors of one target after the other; nothing is kept between them but small decisions."""

    def __init__(
        self, style: Mapping[str, Any], targets: Sequence[Target], back: Record | None, general: Mapping[str, str]
    ) -> None:
        self.style, self.back = style, back
        self.pair: Mapping[str, str] = back.pair if back and back.pair else style["pair"]
        self.magnitude = str((back.magnitude if back else "") or style["magnitude"])
        #: Which ending each kind of magnitude has: a number for each row (PEFT's) or a column of them.
        self.general = general
        self.siblings: dict[int, list[Target]] = {}
        for target in targets:
            for change in target.changes:
                self.siblings.setdefault(id(change), []).append(target)
        for owner, own in self.siblings.items():  # blocks lie on the diagonal in the order of the rows
            own.sort(key=lambda t, o=owner: min(p.start for p in t.pieces if id(p.change) == o))  # type: ignore[misc]
        self._blocks: dict[int, list[tuple[int, int]] | None] = {}
        self.wider = 0
        self.joined = 0
        self.divided = 0

    def tensors(self, target: Target) -> dict[str, Value]:
        """Name -> value of every tensor of a module.

        Raises:
            Refused: with the module's name before the reason.
        """
        try:
            return self._tensors(target)
        except Refused as e:
            names = " + ".join(dict.fromkeys(c.module for c in target.changes))
            raise Refused(f"{names} -> {target.module}: {e}") from None

    def _tensors(self, target: Target) -> dict[str, Value]:
        changes = target.changes
        first = changes[0]
        if target.copied:
            parts, alpha = dict(first.parts), first.alpha
        elif len(changes) == 1 and all(p.change for p in target.pieces):
            parts, alpha = self._divided(target, first)
        else:
            parts, alpha = self._joined(target)
        if not parts:
            return {}
        if target.math == "product":
            self._refuse_bias(parts, alpha)
        if target.math in OUTER_INNER:
            parts, alpha = self._scaled(target, parts, alpha)
        if target.math == "product":
            self._magnitude(parts)
        out: dict[str, Value] = {}
        for part, value in parts.items():
            out[target.module + self._ending(target, part, changes)] = value
        if alpha is not None:
            dtype = next(iter(parts.values())).dtype
            out[f"{target.module}.alpha"] = alpha_value(alpha, dtype)
        return out

    def _ending(self, target: Target, part: str, changes: Sequence[Change]) -> str:
        if target.math == "product" and part in _PAIR:
            ending = self.pair.get(part)
            if ending is None:
                raise Refused("its middle matrix (CP decomposition) has no name there")
            return ending
        if part in _MAGNITUDES and target.math == "product":
            return self.magnitude
        return changes[0].endings[part]

    def _refuse_bias(self, parts: Mapping[str, Value], alpha: Alpha | None) -> None:
        bias = next((p for p in _PEFT_BIAS if p in parts), None)
        if bias is None:
            return
        if self.pair.get("up") != ".lora_B.weight":
            raise Refused("the bias of its lora_B has no name there")
        if alpha is not None and alpha.number != parts["down"].shape[0]:
            raise Refused("the bias of its lora_B would have to be scaled along")

    # rows of one change

    def _divided(self, target: Target, change: Change) -> tuple[dict[str, Value], Alpha | None]:
        ranges = [(p.start, p.size) for p in target.pieces]
        scaled = change.alpha is not None and change.alpha.number != 0
        parts = take(target.math, change.parts, ranges, change.rows, scaled)
        for name in _PEFT_BIAS:
            if name in parts:
                raise Refused("the bias of its lora_B would have to be cut")
        if "reshape" in parts or "scalar" in parts:
            raise Refused(f"its {'reshape_weight' if 'reshape' in parts else 'scalar'} holds for the whole module")
        if self.back and target.module in self.back.absent and _nothing(target.math, parts):
            return {}, None
        self.divided += 1
        blocks = self._blocks_of(change)
        if blocks is None:
            return parts, change.alpha
        start, size = blocks[self.siblings[id(change)].index(target)]
        rank = change.parts[OUTER_INNER[target.math][0][1]].shape[0]
        for up, down in OUTER_INNER[target.math]:
            cut = block(parts, up, down, start, size)
            assert cut is not None, "looked at when the blocks were found"
            parts = cut
        alpha = change.alpha
        if alpha is not None:
            alpha = Alpha(alpha.number * size / rank, alpha.dtype, alpha.shape)
        return parts, alpha

    def _blocks_of(self, change: Change) -> list[tuple[int, int]] | None:
        """(first column, columns) of each target's own block, where the change is block-diagonal; else None."""
        if id(change) not in self._blocks:
            self._blocks[id(change)] = self._find_blocks(change)
        return self._blocks[id(change)]

    def _find_blocks(self, change: Change) -> list[tuple[int, int]] | None:
        targets = self.siblings[id(change)]
        if change.math not in OUTER_INNER or any(n in change.parts for n in ("mid", "t1", "t2")) or len(targets) < 2:
            return None
        pairs = OUTER_INNER[change.math]
        rank = change.parts[pairs[0][1]].shape[0]
        known = [self.back.row(t.module) for t in targets] if self.back else []
        gone = [self.back is not None and t.module in self.back.absent for t in targets]
        sizes = [
            0 if lost or row is None else row.rank for lost, row in zip(gone, known or [None] * len(gone), strict=True)
        ]
        if sum(sizes) != rank:
            there = gone.count(False)
            if not there or rank % there:
                return None
            sizes = [0 if lost else rank // there for lost in gone]
            if there == 1:
                return None
        out, at = [], 0
        for target, size in zip(targets, sizes, strict=True):
            ranges = [(p.start, p.size) for p in target.pieces]
            try:
                parts = take(change.math, change.parts, ranges, change.rows, False)
            except Refused:
                return None
            if any(block(parts, up, down, at, size) is None for up, down in pairs):
                return None
            out.append((at, size))
            at += size
        return out

    # several changes

    def _joined(self, target: Target) -> tuple[dict[str, Value], Alpha | None]:
        rows: list[tuple[Change | None, list[tuple[int, int]], int]] = []
        for piece in target.pieces:
            if rows and rows[-1][0] is piece.change:
                rows[-1][1].append((piece.start, piece.size))
                rows[-1] = (piece.change, rows[-1][1], rows[-1][2] + piece.size)
            else:
                rows.append((piece.change, [(piece.start, piece.size)], piece.size))
        changes = target.changes
        for change in changes:
            if any(n in change.parts for n in (*_PEFT_BIAS, "reshape", "scalar")):
                raise Refused("what stands beside the pairs of its parts cannot be joined")
        pieces: list[tuple[dict[str, Value] | None, int]] = []
        for taken, ranges, size in rows:
            if taken is None:
                pieces.append((None, size))
                continue
            whole = ranges == [(0, taken.rows)]
            scaled = taken.alpha is not None and taken.alpha.number != 0
            pieces.append(
                (dict(taken.parts) if whole else take(target.math, taken.parts, ranges, taken.rows, scaled), size)
            )
        alpha = self._one_scale(target, changes, pieces, [r[0] for r in rows])
        self.joined += 1
        return merge(target.math, pieces), alpha

    def _one_scale(
        self,
        target: Target,
        changes: Sequence[Change],
        pieces: list[tuple[dict[str, Value] | None, int]],
        owners: Sequence[Change | None],
    ) -> Alpha | None:
        """The alpha of the joined module; where the parts are scaled differently, the scales go into them."""
        alphas = [c.alpha for c in changes]
        if all(a is None for a in alphas):
            return None
        if target.math not in OUTER_INNER:
            if any(a is None or a.number != (alphas[0].number if alphas[0] else None) for a in alphas):
                raise Refused("its parts are scaled differently")
            return alphas[0]
        outer, inner = OUTER_INNER[target.math][0]
        ranks = [c.parts[inner].shape[0] for c in changes]
        scales = [factor(a, r) for a, r in zip(alphas, ranks, strict=True)]
        if len(set(scales)) == 1 and all(a is not None for a in alphas):
            shared = all(
                same(c.parts[down], changes[0].parts[down]) for c in changes for _, down in OUTER_INNER[target.math]
            )
            number = sum(a.number for a in alphas if a)
            first = alphas[0]
            assert first is not None
            return first if shared else Alpha(number, first.dtype, first.shape)
        by_change = dict(zip(map(id, changes), scales, strict=True))
        for number_, ((parts, size), owner) in enumerate(zip(pieces, owners, strict=True)):
            if parts is not None and owner is not None:
                folded = fold(parts[outer], by_change[id(owner)])
                self.wider += folded.wider
                owner.folded = True
                pieces[number_] = ({**parts, outer: folded.value}, size)
        return None

    # the scale of a pair of matrices

    def _scaled(
        self, target: Target, parts: dict[str, Value], alpha: Alpha | None
    ) -> tuple[dict[str, Value], Alpha | None]:
        outer, inner = OUTER_INNER[target.math][0]
        rank = parts[inner].shape[0]
        row = self.back.row(target.module) if self.back else None
        if row is not None:
            restored = _restored(row, parts, alpha, rank, outer)
            if restored is not None:
                return restored
        how = self.style["alpha"] if target.math == "product" else "kept"
        if how == "folded":
            scale = factor(alpha, rank)
            if scale != 1 and any(p in parts for p in _PEFT_BIAS):
                raise Refused("the bias of its lora_B would have to be scaled along")
            folded = fold(parts["up"], scale)
            self.wider += folded.wider
            for change in target.changes:
                change.folded = change.folded or scale != 1
            return {**parts, "up": folded.value}, None
        if alpha is None and how == "needed":
            return parts, Alpha(float(rank))
        return parts, alpha

    def _magnitude(self, parts: dict[str, Value]) -> None:
        """DoRA's magnitudes in the shape the target's ending stands for."""
        name = next((n for n in _MAGNITUDES if n in parts), None)
        if name is None:
            return
        wanted = self.general[self.magnitude]
        value = parts.pop(name)
        sides = len(parts["down"].shape)
        rows = parts["up"].shape[0]
        if wanted == name:
            parts[name] = value
            return
        column = (rows, *[1] * (sides - 1))
        flat = (rows,) if sides == 2 else (1, rows, *[1] * (sides - 2))
        if value.shape not in (column, flat, (rows,)):
            raise Refused("its DoRA magnitudes are one for each column, which has no name there")
        parts[wanted] = made(value.load().reshape(column if wanted == "dora" else flat), value.dtype)


def _nothing(math: str, parts: Mapping[str, Value]) -> bool:
    """Whether the change of these rows is zero because the outer matrices are."""
    names = [up for up, _ in OUTER_INNER[math]] if math in OUTER_INNER else _OUTER.get(math, ())
    found = [parts[n] for n in names if n in parts]
    return bool(found) and not any(v.load().tobytes().strip(b"\0") for v in found)


def _restored(
    row: Row, parts: dict[str, Value], alpha: Alpha | None, rank: int, outer: str
) -> tuple[dict[str, Value], Alpha | None] | None:
    """The pair and alpha of the original that a record tells of; None where the file is not what it was."""
    if row.rank != rank:
        return None
    original = None if row.alpha is None else Alpha(row.alpha, row.alpha_dtype, row.alpha_shape)
    told = original if row.alpha_dtype is not None else None  # one from the metadata goes back there
    scale = factor(original, rank)
    if row.folded:
        if factor(alpha, rank) != 1:
            return None
        up = unfold(parts[outer], scale, row.dtype)
        return None if up is None else ({**parts, outer: up}, told)
    return (parts, told) if factor(alpha, rank) == scale else None
