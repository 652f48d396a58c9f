"""Solves a header for one grammar: symbols from shapes, run lengths from names, then every line checked.

The cost of a solve is one dictionary lookup a tensor. Nothing here knows a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from msgspec import Struct, field

from compatkit.identify.packing import View
from compatkit.knowledge.expr import evaluate, solve_for
from compatkit.knowledge.patterns import Pattern, count, names

#: A run longer than this is not looked at further: no model has that many blocks.
MAX_RUN = 4096
#: Nor does one line of any grammar stand for more tensors than this.
MAX_NAMES = 200_000
#: So small a part of a file's flattened tensors is not stored in another width than all others: it has another shape.
ODD_SHARE = 0.02


class Match(Struct):
    """How one grammar reads one header."""

    family: str
    layout: str
    prefix: str
    symbols: dict[str, int]
    matched: set[str]
    missing: list[str]
    mismatched: list[str]
    foreign: list[str] = field(default_factory=list)
    tolerated: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    expected: int = 0
    markers: list[str] = field(default_factory=list)  # full names: they stand outside any prefix

    @property
    def distance(self) -> int:
        """Tensors that do not agree: 0 is a complete match."""
        return len(self.missing) + 2 * len(self.mismatched) + len(self.foreign)


class _Found(Struct):
    """What the lines of one group (or of none) found: how many tensors they expect, and which of those are there.

    `covered` of the names found are only known to lie below a packed module: that says nothing of whether they exist.
    """

    expected: int = 0
    covered: int = 0
    names: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    @property
    def score(self) -> int:
        return len(self.names) - self.covered - len(self.missing) - 2 * len(self.mismatched)

    @property
    def present(self) -> bool:
        """Whether most of what must show does show."""
        return bool(shown := len(self.names) - self.covered) and shown * 2 >= self.expected - self.covered


class Solver:
    """Tries one layout of one family on a view of a header."""

    def __init__(self, document: Mapping[str, Any], layout: str, view: View) -> None:
        self.document = document
        self.layout = layout
        self.spec = document["layouts"][layout]
        self.view = view
        self.symbols: dict[str, int] = {}
        self.absent: set[str] = set()  # runs of which no tensor is there
        self.shares: dict[float, list[tuple[_Found, str]]] = {}

    def solve(self, *, whatever: bool = False) -> Match:
        """Bind, then check every line. `refused` says why the family is out of the question, if it is.

        With `whatever` a refused family is checked too: the user says that it is this one.
        """
        self._bind_runs()
        self._bind_sides()
        match = Match(self.document["id"], self.layout, self.view.prefix, self.symbols, set(), [], [])
        self._markers(match)
        match.refused = self._refusal()
        if whatever or not match.refused:
            self._check(match)
            if not match.refused:
                match.refused = self._conditions(match)
        return match

    def _bind_runs(self) -> None:
        tensors, covers = self.view.tensors, self.view.covers
        for symbol, probes in self.spec["runs"].items():
            best, endless, some = 0, False, False
            for format_, starts, position, start, step in probes:
                index = list(starts)
                i = start
                index[position] = MAX_RUN
                # below a module that packs all away, names say nothing of how many there are
                packed = bool(covers) and not self.view.covered(format_ % tuple(index))
                endless |= bool(covers) and not packed
                while i < MAX_RUN:
                    index[position] = i
                    name = format_ % tuple(index)
                    if name not in tensors and not (packed and self.view.covered(name)):
                        break
                    i += step
                best = max(best, i - step + 1 if i > start else start)
                some |= i > start
            # a hole in one probe's run must not end it: go on where any probe still finds something
            while best and best < MAX_RUN and any(self._has(p, best) for p in probes):
                best += 1
            if best or not endless:
                self.symbols[symbol] = best
            if not some:
                self.absent.add(symbol)

    def _has(self, probe: list[Any], i: int) -> bool:
        format_, starts, position, start, step = probe
        if i < start or (i - start) % step:
            return False
        index = list(starts)
        for at in (i, i + step):
            index[position] = at
            if format_ % tuple(index) in self.view.tensors:
                return True
        return False

    def _bind_sides(self) -> None:
        tensors, hidden = self.view.tensors, self.view.hidden
        for symbol, places in self.spec["bind"].items():
            votes: Counter[int] = Counter()
            for name, axis, rank in places:
                tensor = tensors.get(name)
                if tensor is None or len(tensor.shape) != rank or hidden(name, axis, rank):
                    continue
                votes[tensor.shape[axis]] += 1
            if votes:
                value, _ = votes.most_common(1)[0]
                # a symbol that is also a run's length keeps the length the names say
                self.symbols.setdefault(symbol, value)
        self._derive()
        wanted = [*self.spec["bind"], *(row[0] for row in self.spec["derive"])]
        if (self.view.loose or self.view.covers) and not all(s in self.symbols for s in wanted):
            self._bind_packed()

    def _derive(self) -> None:
        """Symbols that only stand inside expressions."""
        tensors, hidden = self.view.tensors, self.view.hidden
        for _ in range(3):
            progress = False
            for symbol, name, axis, rank, expr in self.spec["derive"]:
                if symbol in self.symbols:
                    continue
                if not isinstance(name, str):
                    name = self._computed(*name)
                tensor = tensors.get(name)
                if tensor is None or len(tensor.shape) != rank or hidden(name, axis, rank):
                    continue
                solved = solve_for(expr, symbol, tensor.shape[axis], self.symbols)
                if solved is not None:
                    self.symbols[symbol] = solved
                    progress = True
            if not progress:
                break

    def _computed(self, format_: str, starts: list[Any]) -> str:
        """A name whose indexes are expressions; empty while their symbols are not bound."""
        try:
            return str(format_ % tuple(evaluate(s, self.symbols) for s in starts))
        except KeyError:
            return ""

    def _markers(self, match: Match) -> None:
        """Tensors at the top of a file that say something by being there (`v_pred`): all or none of a fact's names."""
        for fact, wanted in self.document["markers"].items():
            found = [self._marked(n) for n in wanted]
            match.options[fact] = all(found)
            match.markers += [name for names_found in found for name in names_found]

    def _bind_packed(self) -> None:
        """Symbols only packed sides could tell: from how many values are packed, or the one value `where` leaves."""
        from compatkit.identify.counts import bind

        bind(self.spec, self.view, self.symbols, {})
        for symbol, places in self.spec["bind"].items():
            if symbol not in self.symbols:
                allowed = self.document["where"].get(symbol, ())
                fits = next((f for p in places if (f := self._hidden_side(p[0], p[1], p[2], allowed)) is not None), [])
                if len(fits) == 1:
                    self.symbols[symbol] = fits[0]
        bind(self.spec, self.view, self.symbols, self.document["example"].get("symbols", {}))
        self._derive()

    def _hidden_side(self, name: str, axis: int, rank: int, allowed: Iterable[int]) -> list[int] | None:
        """Which of the values allowed a packed side may have; None if this tensor does not hide the side."""
        tensor = self.view.tensors.get(name)
        if tensor is None:
            return list(allowed) if self.view.covers and self.view.covered(name) else None
        if name in self.view.opaque:
            return list(allowed)
        if name not in self.view.loose or axis != rank - 1 or len(tensor.shape) != rank:
            return None
        stored = tensor.shape[axis]
        return [v for v in allowed if stored and v % stored == 0]

    def _marked(self, name: str) -> list[str]:
        root = self.view.root
        if name.endswith("*"):
            return [n for n in root if n.startswith(name[:-1])]
        return [name] if name in root else []

    def _refusal(self) -> str:
        for symbol, allowed in self.document["where"].items():
            value = self.symbols.get(symbol)
            if value is not None and value not in allowed:
                return f"{symbol} is {value}, not {' or '.join(map(str, allowed))}"
        for pattern in self.document["forbid"]:
            name = self.view.find(pattern)
            if name:
                return f"has {name}"
        return ""

    def _conditions(self, match: Match) -> str:
        flags = {k: int(v) for k, v in match.options.items() if isinstance(v, bool)}
        for condition in self.document["require"]:
            try:
                if not evaluate(condition, {**self.symbols, **flags}):
                    from compatkit.knowledge.expr import text

                    return f"{text(condition)} does not hold"
            except KeyError:
                continue
        return ""

    def _check(self, match: Match) -> None:
        groups = self.document["groups"]
        found = [_Found() for _ in groups]
        found.append(_Found())  # the last row, [-1], is of the lines that stand in no group
        tensors = self.view.tensors
        for format_, ranges, shapes, group, when in self.spec["lines"]:
            if when != 1 and not self._holds(when):
                continue
            row = found[group]
            try:
                if not ranges and shapes is not None:  # most lines are one tensor, there, with the first of the shapes
                    name = format_ % ()
                    tensor = tensors.get(name)
                    if tensor is not None and tensor.shape == self._sides(shapes[0]):
                        row.expected += 1
                        row.names.append(name)
                        continue
                line_names = self._names(format_, ranges)
                if not line_names:
                    if any(type(r[1]) is str and r[1] in self.absent for r in ranges):  # at least its first is missing
                        row.missing.append(format_ % tuple(0 if type(r[0]) is not int else r[0] for r in ranges))
                        row.expected += 1
                    continue
                wanted = [self._sides(s) for s in shapes] if shapes is not None else None
            except KeyError:
                if not self._hidden_line(format_, ranges, row):
                    row.missing.append(format_.replace("%d", "0"))
                    row.expected += 1
                continue
            self._line(line_names, wanted, row)
        self._odd_shares()
        self._keep(found.pop(), match)
        if groups:
            self._settle_groups(groups, found, match)
        if self.view.covers:
            from compatkit.identify.counts import disagreeing

            match.mismatched += disagreeing(self.spec, self.view, self.symbols)

    def _holds(self, when: Any) -> bool:
        try:
            return bool(evaluate(when, self.symbols))
        except KeyError:
            return False

    def _names(self, format_: str, ranges: list[Any]) -> list[str]:
        """The names of a line. Raises KeyError where a run is not bound, or so long that no model has it."""
        if not ranges:
            return [format_ % ()]
        symbols = self.symbols
        if len(ranges) == 1:
            start, stop, step = ranges[0]
            first, end = evaluate(start, symbols), evaluate(stop, symbols)
            if end - first > MAX_NAMES * step:
                raise KeyError(format_)
            return [format_ % i for i in range(first, end, step)]
        pattern = Pattern(format_, tuple(ranges))
        if count(pattern, symbols) > MAX_NAMES:
            raise KeyError(format_)
        return list(names(pattern, symbols))

    def _sides(self, shape: list[Any]) -> tuple[int | None, ...]:
        symbols = self.symbols
        out: list[int | None] = []
        for side in shape:
            if type(side) is int or side is None:
                out.append(side)
            elif type(side) is str:
                out.append(symbols[side])
            else:
                out.append(evaluate(side, symbols))
        return tuple(out)

    def _line(self, line_names: list[str], wanted: list[tuple[int | None, ...]] | None, row: _Found) -> None:
        """Look up the names of one line: nearly all are there with the one shape wanted; only the others cost more."""
        tensors = self.view.tensors
        row.expected += len(line_names)
        if wanted is None:
            odd = [n for n in line_names if n not in tensors]
        else:
            only = wanted[0] if len(wanted) == 1 else None
            odd = [n for n in line_names if (t := tensors.get(n)) is None or t.shape != only]
        if not odd:
            row.names += line_names
            return
        gone = set()
        for name in odd:
            tensor = tensors.get(name)
            if tensor is None:
                if self.view.covers and self.view.covered(name):
                    row.covered += 1
                else:
                    gone.add(name)
                    row.missing.append(name)
            elif wanted is not None and not self.view.fits(name, tensor, wanted):
                row.mismatched.append(name)
            elif wanted and name in self.view.opaque and name not in self.view.counts:
                held = prod(s or 1 for s in wanted[0]) / tensor.elements
                self.shares.setdefault(held, []).append((row, name))
        row.names += [n for n in line_names if n not in gone] if gone else line_names

    def _odd_shares(self) -> None:
        """Of flattened tensors whose sizes nothing else tells, nearly all alike, a few odd ones have another shape."""
        alike = max(map(len, self.shares.values()), default=0)
        for rows in self.shares.values():
            if len(rows) < alike and len(rows) <= ODD_SHARE * alike:
                for row, name in rows:
                    row.mismatched.append(name)

    def _hidden_line(self, format_: str, ranges: list[Any], row: _Found) -> bool:
        """A line whose shape is not known, but whose tensors are all packed away: they are there, of whatever size."""
        if not (self.view.covers or self.view.loose):
            return False
        try:
            line_names = self._names(format_, ranges)
        except KeyError:
            return False
        tensors = self.view.tensors
        if not all(n in self.view.loose if n in tensors else self.view.covered(n) for n in line_names):
            return False
        row.expected += len(line_names)
        row.covered += sum(n not in tensors for n in line_names)
        row.names += line_names
        return True

    def _settle_groups(self, groups: list[Any], found: list[_Found], match: Match) -> None:
        """Keep the optional groups that are (mostly) there; of a choice's alternatives the one that is there most."""
        present = [f.present for f in found]
        for number, (_, parent, _, _) in enumerate(groups):
            if parent >= 0 and not found[parent].expected:
                present[parent] = present[parent] or present[number]
        choices: dict[str, list[int]] = {}
        for number, (fact, parent, choice, _) in enumerate(groups):
            if choice:
                choices.setdefault(choice, []).append(number)
                continue
            if parent >= 0 and not present[parent]:
                present[number] = False
            if present[number]:
                self._keep(found[number], match)
            if fact:
                match.options[fact] = present[number]
        for choice, numbers in choices.items():
            best = max(numbers, key=lambda n: found[n].score)
            self._keep(found[best], match)
            match.options[choice] = groups[best][3]

    @staticmethod
    def _keep(row: _Found, match: Match) -> None:
        match.expected += row.expected
        match.matched.update(row.names)
        match.missing += row.missing
        match.mismatched += row.mismatched
