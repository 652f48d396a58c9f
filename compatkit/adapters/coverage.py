"""What a runtime would load of an adapter on a base: which keys, onto which weights, and whether the shapes agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

from msgspec import Struct, field

from compatkit.adapters.base import Base
from compatkit.adapters.blocks import blocks
from compatkit.adapters.fit import FITS, NEEDED, Shape, matrix
from compatkit.adapters.keys import Key, Spellings
from compatkit.adapters.names import Target, held_names, held_weights, key_map
from compatkit.adapters.pieces import padded, unreached
from compatkit.adapters.routes import Stop, routed, stop
from compatkit.knowledge.protocol import Rules
from compatkit.vocabulary import Tensor

#: Examples kept of everything that is reported.
_SHOWN = 6


class Mismatch(NamedTuple):
    """A module that is mapped to a weight but cannot be applied to it. `parts` are the shapes of its tensors."""

    module: str
    algorithm: str
    weight: str
    expected: tuple[int | None, ...]
    problem: str
    made: tuple[int, int] | None = None
    parts: tuple[tuple[str, Shape], ...] = ()


class Coverage(Struct):
    """The answer for one adapter, base and runtime.

    `reasons` counts unmatched keys by why, `lost` lists them; `refused` is the error with which the loader stops;
    `fitting` is the first product that applies.
    """

    keys: int
    matched: int = 0
    modules: int = 0
    modules_matched: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    fitting: Mismatch | None = None
    absent: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    twice: list[str] = field(default_factory=list)
    applied: int = 0
    crash: str = ""
    refused: str = ""
    lost: dict[str, list[str]] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)
    conversion: str = ""
    blocks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """none, shape_mismatch, full or partial, as the contract defines them."""
        if not self.matched:
            return "none"
        if self.mismatches:
            return "shape_mismatch"
        return "full" if self.matched == self.keys and not self.absent else "partial"


class File(NamedTuple):
    """An adapter's tensors as a runtime sees them: after its own rewriting."""

    shapes: dict[str, Shape | None]
    reshapes: dict[str, Shape]
    conversion: str


def rewritten(tensors: Mapping[str, Tensor | Shape | None], table: Mapping[str, Any]) -> File:
    """The file after the runtime's own conversion, where it has one for it."""
    shapes = {n: t.shape if isinstance(t, Tensor) else t for n, t in tensors.items()}
    for conversion in table.get("conversions") or ():
        if not all(key in shapes for key in conversion["when"]):
            continue
        out: dict[str, Shape | None] = {}
        for name, shape in shapes.items():
            for old, new in conversion.get("replace") or ():
                name = name.replace(old, new)
            out[conversion.get("prepend", "") + name] = shape
        reshapes: dict[str, Shape] = {}
        for module, (up, down) in (conversion.get("reshape") or {}).items():
            one, other = out.get(up), out.get(down)
            if one and other and len(other) > 1:
                reshapes[module] = (one[0], other[1])
                out[f"{module}.reshape_weight"] = (2,)
        return File(out, reshapes, str(conversion.get("title") or conversion["id"]))
    return File(shapes, {}, "")


def coverage(
    tensors: Mapping[str, Tensor | Shape | None],
    spelled: Spellings,
    base: Base,
    table: Mapping[str, Any],
    knowledge: Rules,
    has: Callable[[str], bool] = lambda version: True,
    encoders: Mapping[str, Target] | None = None,
    encoder_shapes: Mapping[str, tuple[int | None, ...]] | None = None,
) -> Coverage:
    """Match an adapter's keys against a base the way a runtime does.

    Args:
        tensors: the adapter's tensors; a shape that is not known is None and says nothing.
        spelled: the spellings of adapters.
        base: the model it is put on.
        table: the runtime's file of `rules/adapters/`.
        knowledge: where key maps come from.
        has: whether the runtime is a version or later.
        encoders: what the set's text encoders add to the key map, with the shapes of their weights.
        encoder_shapes: by the names that `encoders` targets.
    """
    file = rewritten(tensors, table)
    keys, junk = spelled.keys(file.shapes if file.conversion else tensors)
    table = routed(table, base, file.shapes)
    held = held_names(base, table)
    weights = held_weights(base, table, knowledge, held)
    modules: dict[str, dict[str, Key]] = {}
    for key in keys:
        modules.setdefault(key.module, {})[key.ending] = key
    names = key_map(base, table, knowledge, has, held, modules, list(weights))
    names.update(encoders or {})
    weights.update(encoder_shapes or {})
    out = Coverage(len(file.shapes), conversion=file.conversion)
    out.modules = sum(any(k.sense.algorithm for k in own.values()) for own in modules.values())
    reader = _Reader(spelled, table, file, out)
    patches: dict[Target, tuple[str, str, dict[str, Shape | None]]] = {}
    late: set[str] = set()
    if table.get("walks"):
        names = {module: target for module, target in names.items() if target.weight in weights}
        late = unreached(names, modules)
    for module, own in modules.items():
        target = names.get(module)
        if target is None or module in late:
            _unmatched(out, spelled, module, own)
            continue
        before = len(patches)
        reader.take(module, own, target, patches)
        out.modules_matched += len(patches) > before or target in patches
    for name in junk:
        _because(out, "junk", name)
    if _stopped(out, table, names, modules, reader.readable()):
        return out
    fits = _Fits(spelled, table)
    for target, (module, algorithm, parts) in patches.items():
        _apply(out, fits, weights, target, module, algorithm, parts)
    out.touched = touched = {t.weight for t in patches}
    drawn = {n: s for n, s in weights.items() if n in touched or n not in (encoder_shapes or {})}
    out.blocks = blocks(drawn, touched, (m.weight for m in out.mismatches))
    return out


def _stopped(
    out: Coverage,
    table: Mapping[str, Any],
    names: Mapping[str, Target],
    modules: Mapping[str, Mapping[str, Key]],
    readable: set[str],
) -> bool:
    """Whether the loader refuses the file; then nothing of it is read."""
    if not table.get("stops") and not table.get("needs"):
        return False
    away, endings = out.lost.get("module", []), out.lost.get("ending", []) + out.lost.get("junk", [])
    strange = {k.name for own in modules.values() for k in own.values() if k.ending not in readable}
    endings = endings + [k for k in away if k in strange]
    found = stop(table, [k.name for own in modules.values() for k in own.values()], away, endings)
    for part in table.get("needs") or ():
        if found is None:
            alone = next(
                (m for m, own in modules.items() if m in names and all(k.sense.part != part for k in own.values())),
                None,
            )
            found = Stop(f"KeyError: '{alone}.{part}'", alone) if alone else None
    if found is None:
        return False
    out.refused = found.error
    out.matched = out.modules_matched = 0
    out.twice = []
    return True


class _Reader:
    """Takes what the runtime reads of one module."""

    def __init__(self, spelled: Spellings, table: Mapping[str, Any], file: File, out: Coverage) -> None:
        self.spelled, self.file, self.out = spelled, file, out
        reads: Mapping[str, Any] = table.get("reads") or {}
        self.beside = set(table.get("beside") or ())
        self.companions = set(table.get("companions") or ())
        self.ignored = dict(table.get("ignored") or {})
        self.drops = tuple(table.get("drops") or ())
        self.whole_biases = table.get("biases") == "whole"
        self.algorithms: list[tuple[str, Sequence[Mapping[str, str]]]] = []
        for name, algorithm in spelled.algorithms.items():
            if name in reads:
                first = "up" if algorithm["math"] == "product" else ""
                wanted = reads[name]
                own = [s for s in algorithm["spellings"] if wanted == "all" or s.get(first) in wanted]
                order = {e: i for i, e in enumerate(wanted)} if wanted != "all" else {}
                self.algorithms.append((name, sorted(own, key=lambda s: order.get(s.get(first, ""), 0))))

    def readable(self) -> set[str]:
        """Every ending that it reads or leaves out, whatever the module."""
        out = {e for _, spellings in self.algorithms for s in spellings for p, e in s.items() if p != "keep"}
        out.update(self.drops)
        for part, companion in (self.spelled.table.get("companions") or {}).items():
            if part in self.companions or part in self.ignored:
                out.update(companion["endings"])
        for algorithm, _ in self.algorithms:
            beside = self.spelled.algorithms[algorithm].get("beside") or {}
            out.update(e for p, e in beside.items() if p in self.beside)
        return out

    def take(
        self,
        module: str,
        own: Mapping[str, Key],
        target: Target,
        patches: dict[Target, tuple[str, str, dict[str, Shape | None]]],
    ) -> None:
        """Count the keys of a module that are read, and note the change they make."""
        shapes, taken = self.file.shapes, set[str]()
        if self.drops:
            for ending in [e for e in own if e in self.drops]:
                _because(self.out, "dropped", own[ending].name)
            own = {e: k for e, k in own.items() if e not in self.drops}
        shared: dict[str, Shape | None] = {}
        for key in own.values():
            if not key.sense.algorithm and key.sense.part in self.companions:
                shared[key.sense.part] = shapes[key.name]
                taken.add(key.ending)
        here = {key.sense.algorithm for key in own.values()}
        for algorithm, spellings in self.algorithms:
            if algorithm not in here:
                continue
            parts, used = self._parts(algorithm, spellings, own)
            if not used:
                continue
            taken |= used
            math = self.spelled.algorithms[algorithm]["math"]
            bias = parts.pop("bias", None) if math == "full" else None
            has_bias = math == "full" and any(e for e in used if own[e].sense.part == "bias")
            if math == "full" and has_bias:
                weight = f"{_stem(target.weight)}.bias"
                if target.rows is not None and self.whole_biases:
                    weight = f"{module}.bias"  # of some rows: nothing has that name
                patches[Target(weight)] = (module, algorithm, {"weight": bias})
            if math != "full" or "weight" in parts:
                if target in patches and patches[target][0] != module:
                    self.out.twice.append(target.weight)
                patches[target] = (module, algorithm, {**parts, **shared})
        self.out.matched += len(taken)
        for ending, key in own.items():
            if ending not in taken:
                part = key.sense.part
                known = part if not key.sense.algorithm and part in self.ignored else "ending"
                if known != "ending":
                    self.out.ignored[part] += 1
                _because(self.out, known, key.name)

    def _parts(
        self, algorithm: str, spellings: Sequence[Mapping[str, str]], own: Mapping[str, Key]
    ) -> tuple[dict[str, Shape | None], set[str]]:
        """The parts of the first spelling that the module has, and the endings used."""
        shapes, math = self.file.shapes, self.spelled.algorithms[algorithm]["math"]
        for spelling in spellings:
            lead = next(iter(spelling.values()))
            present = {p: e for p, e in spelling.items() if e in own}
            if not present or (math in ("product", "glora", "hadamard") and lead not in own):
                continue
            if math == "blocks" and not _ranked(shapes[own[lead].name] if lead in own else None, (3, 4)):
                continue
            if algorithm == "norm" and lead not in own:
                continue
            parts = {p: shapes[own[e].name] for p, e in present.items()}
            missing = [p for p in NEEDED.get(math, ()) if p not in parts and math != "full"]
            if missing:
                self.out.crash = self.out.crash or f"{own[lead].module}{spelling[missing[0]]}"
                parts.update(dict.fromkeys(missing, ()))
            used = set(present.values())
            for part, ending in (self.spelled.algorithms[algorithm].get("beside") or {}).items():
                if part in self.beside and ending in own:
                    used.add(ending)
                    parts[part] = self.file.reshapes.get(own[ending].module)
            return parts, used
        return {}, set()


def _ranked(shape: Shape | None, ranks: tuple[int, ...]) -> bool:
    return shape is None or len(shape) in ranks


def _stem(weight: str) -> str:
    return weight.removesuffix(".weight")


def _because(out: Coverage, reason: str, name: str) -> None:
    out.reasons[reason] += 1
    out.lost.setdefault(reason, []).append(name)
    examples = out.examples.setdefault(reason, [])
    if len(examples) < _SHOWN:
        examples.append(name)


def _unmatched(out: Coverage, spelled: Spellings, module: str, own: Mapping[str, Key]) -> None:
    part = spelled.convention(module).part
    reason = "encoder" if part.startswith("te") else "module"
    for key in own.values():
        _because(out, reason, key.name)


class Fit(NamedTuple):
    """What does not go together ("" if all does), the shape of the weight or of its rows, whether all is known."""

    problem: str
    wanted: tuple[int | None, ...]
    known: bool


class _Fits:
    """Whether a change applies to a weight, found once for equal algorithms and shapes."""

    def __init__(self, spelled: Spellings, table: Mapping[str, Any]) -> None:
        self.spelled = spelled
        self.pads = bool(table.get("pads"))
        self.fails = [(e["algorithm"], e["with"]) for e in table.get("fails") or ()]
        self._known: dict[Any, Fit] = {}

    def look(
        self,
        algorithm: str,
        parts: Mapping[str, Shape | None],
        shape: tuple[int | None, ...],
        rows: tuple[int, int] | None,
    ) -> Fit:
        """Of `shape`, or of `rows` of it."""
        alike = (algorithm, tuple(parts.items()), shape, rows)
        found = self._known.get(alike)
        if found is None:
            found = self._known[alike] = self._look(*alike)
        return found

    def _look(
        self, algorithm: str, pairs: tuple[tuple[str, Shape | None], ...], shape: Any, rows: tuple[int, int] | None
    ) -> Fit:
        parts = dict(pairs)
        if any(algorithm == name and part in parts for name, part in self.fails):
            return Fit("that loader cannot apply it", shape, False)
        if None in shape or any(s is None for p, s in parts.items() if p != "reshape"):
            return Fit("", shape, False)
        wanted: Shape = tuple(side for side in shape if side is not None)
        if rows is not None:
            start, size = rows
            if start + size > wanted[0]:
                return Fit(f"rows {start} to {start + size} of a weight with {wanted[0]}", shape, False)
            wanted = (size, *wanted[1:])
        check = FITS.get(self.spelled.algorithms[algorithm]["math"])
        known = {p: s for p, s in parts.items() if s is not None}
        problem = check(known, wanted) if check else ""
        left = (int(shape[0] or 0) - rows[0], *wanted[1:]) if rows else wanted
        fills = self.pads and padded(self.spelled.algorithms[algorithm]["math"], known, left, rows is None)
        return Fit("" if fills else problem, wanted, True)


def _apply(
    out: Coverage,
    fits: _Fits,
    weights: Mapping[str, tuple[int | None, ...]],
    target: Target,
    module: str,
    algorithm: str,
    parts: Mapping[str, Shape | None],
) -> None:
    """Whether the change of a module can be put on its weight."""
    shape = weights.get(target.weight)
    if shape is None:
        out.absent.append(target.weight)
        return
    out.applied += 1
    problem, wanted, known = fits.look(algorithm, parts, shape, target.rows)
    if not problem and (not known or out.fitting is not None):
        return
    math = fits.spelled.algorithms[algorithm]["math"]
    shapes = {p: s for p, s in parts.items() if s is not None}
    if problem:
        made = matrix(math, shapes) if known else None
        if made == (wanted[0] if wanted else 1, prod(side or 1 for side in wanted[1:])):
            made = None  # the size is right: something else is wrong
        told = tuple(shapes.items()) if known else ()
        out.mismatches.append(Mismatch(module, algorithm, target.weight, wanted, problem, made, told))
    elif math in ("product", "hadamard", "kronecker"):
        out.fitting = Mismatch(module, algorithm, target.weight, wanted, "", None, tuple(shapes.items()))
