"""What identifying one header costs, and how often the answer is right.

    python -m benchmarks.identify [--misses]

Printed are

- the time to solve one header after start-up, and that it follows the grammars tried, not the families known: the same
  headers are timed with 250 generated families on top, in turn with and without;
- per kind and layout of the reference headers: family right, unknown or wrong; ComfyUI's class as observed; latent
  channels and rank as observed; all of these together;
- the same for what the rules' authors did not write from: derived files (packed, prefixed, GGUF, diffusers) on their
  own, and each size of a family that has several, with and without the values that only this size gave `where`.

Reads the reference data in `../shared` (or $COMPATKIT_SHARED). Without it the headers are the rules' own examples, and
only the times and the sizes are measured.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import generated  # noqa: E402
from compatkit.identify.identify import identify  # noqa: E402
from compatkit.identify.solve import Match, Solver  # noqa: E402
from compatkit.knowledge.compile import compile_documents  # noqa: E402
from compatkit.knowledge.store import Knowledge, rules_root  # noqa: E402
from compatkit.vocabulary import Header  # noqa: E402
from tests.support.corpus import Answer, answer, header, right_families  # noqa: E402
from tests.support.rules import Example, examples  # noqa: E402

ROUNDS = 3


def shared() -> Path | None:
    """The folder of reference data, if there is one."""
    folder = Path(os.environ.get("COMPATKIT_SHARED") or ROOT.parent / "shared")
    return folder if (folder / "corpus").is_dir() else None


def headers(folder: Path | None) -> dict[str, Header]:
    """What is solved: every reference header, or every example of every family."""
    if folder is not None:
        return {key: header(folder, key) for key in right_families(folder)}
    return {f"{e.family} {e.number} {layout}": e.header(layout) for e in examples() for layout in e.layouts}


def timed(heads: Iterable[Header], knowledge: Knowledge) -> list[float]:
    """Milliseconds of processor time for each header: other work on the machine does not count."""
    out = []
    for head in heads:
        start = time.process_time()
        identify(head, knowledge)
        out.append(1000 * (time.process_time() - start))
    return out


@contextmanager
def counting() -> Iterator[list[str]]:
    """Every grammar that is solved inside, by family."""
    tried: list[str] = []
    solve = Solver.solve

    def counted(self: Solver, *, whatever: bool = False) -> Match:
        tried.append(self.document["id"])
        return solve(self, whatever=whatever)

    setattr(Solver, "solve", counted)  # noqa: B010
    try:
        yield tried
    finally:
        setattr(Solver, "solve", solve)  # noqa: B010


def cost(heads: Mapping[str, Header], few: Knowledge, many: Knowledge) -> None:
    """Print the times of one header: with the families there are, and with the generated ones on top."""
    for head in heads.values():  # a family's grammar is read when it is first tried: that is start-up
        identify(head, few)
        identify(head, many)
    with counting() as tried:
        counts = []
        for head in heads.values():
            tried.clear()
            identify(head, few)
            counts.append(len(tried))
    with counting() as tried_many:
        for head in heads.values():
            identify(head, many)
    best_few, best_many = [[float("inf")] * len(heads) for _ in range(2)]
    for _ in range(ROUNDS):
        best_few = list(map(min, best_few, timed(heads.values(), few)))
        best_many = list(map(min, best_many, timed(heads.values(), many)))
    rows = []
    for name, knowledge, times in (("as they are", few, best_few), ("with generated ones", many, best_many)):
        ranked = sorted(times)
        p95 = ranked[int(0.95 * len(ranked))]
        rows.append([name, grammars(knowledge), statistics.median(times), p95, ranked[-1]])
    print(f"one header of {len(heads)}, after start-up, best of {ROUNDS}:")
    print(tabulate(rows, ["families", "grammars", "median ms", "p95 ms", "max ms"], floatfmt=".2f"))
    more = grammars(many) / grammars(few)
    print(f"ratio of all times: {sum(best_many) / sum(best_few):.2f} with {more:.1f} times the grammars")
    slow = max(zip(best_few, heads.items(), strict=True), key=lambda row: row[0])
    print(f"slowest: {slow[1][0]}, {len(slow[1][1].tensors)} tensors, {slow[0]:.1f} ms")
    largest = max(heads.items(), key=lambda item: len(item[1].tensors))
    own = best_few[list(heads).index(largest[0])]
    print(f"largest: {largest[0]}, {len(largest[1].tensors)} tensors, {own:.1f} ms")
    print(
        f"grammars tried per header: {statistics.mean(counts):.2f} on average, {max(counts)} at most;"
        f" with the generated families {len(tried_many) / len(heads):.2f}\n"
    )


def grammars(knowledge: Knowledge) -> int:
    """Layouts of families that can be tried."""
    return len(knowledge.index["grammars"])


def share(part: int, whole: int) -> str:
    """`12 of 13 (92.3 %)`."""
    return f"{part} of {whole} ({100 * part / max(1, whole):.1f} %)"


def table(answers: Sequence[Answer]) -> None:
    """Print the table per kind and layout, and the totals the project holds itself to."""
    groups: dict[tuple[str, str], list[Answer]] = {}
    for a in answers:
        groups.setdefault((a.kind, a.layout), []).append(a)
    rows = []
    for (kind, layout), own in sorted(groups.items()):
        verdicts = Counter(a.family for a in own)
        latent = [a for a in own if a.latent is not None]
        rows.append(
            [
                *(
                    kind,
                    layout,
                    len(own),
                    verdicts["right"],
                    verdicts["unknown"],
                    verdicts["wrong"] + verdicts["taken"],
                ),
                *(sum(a.loads for a in own), f"{sum(bool(a.latent) for a in latent)} of {len(latent)}"),
                sum(a.right for a in own),
            ]
        )
    columns = ["kind", "layout", "headers", "right", "unknown", "wrong", "class", "latent", "all together"]
    print(tabulate(rows, columns))
    print(f"family right {share(sum(a.family == 'right' for a in answers), len(answers))},", end=" ")
    print(f"wrong {sum(a.family in ('wrong', 'taken') for a in answers)};", end=" ")
    print(f"class {share(sum(a.loads for a in answers), len(answers))};", end=" ")
    print(f"all together {share(sum(a.right for a in answers), len(answers))}")


def derived(answers: Sequence[Answer]) -> None:
    """Print the score of files that the rules were not written from."""
    rest = [a for a in answers if a.derived]
    print(
        f"derived files (packed, prefixed, GGUF, diffusers): {share(sum(a.right for a in rest), len(rest))} right,",
        end=" ",
    )
    print(f"{sum(a.family in ('wrong', 'taken') for a in rest)} wrong")


def without(documents: Mapping[str, Any], family: str, values: Mapping[str, set[int]]) -> Knowledge:
    """The knowledge without these values in the family's `where`."""
    name = f"families/{family}.json"
    document, index = copy.deepcopy(documents[name]), copy.deepcopy(documents["index.json"])
    gates = [gate for owner, _, _, gates in index["grammars"] if owner == family for gate in gates]
    for symbol, gone in values.items():
        for allowed in (document["where"].get(symbol, []), *(gate[1] for gate in gates if gate[0] == symbol)):
            allowed[:] = [v for v in allowed if v not in gone] or allowed
    return Knowledge({**documents, name: document, "index.json": index})


def sizes(documents: Mapping[str, Any], knowledge: Knowledge) -> None:
    """Print how well a size of a family is solved that the family's file does not name."""
    by_family: dict[str, list[Example]] = {}
    for example in examples():
        by_family.setdefault(example.family, []).append(example)
    right, blind, tried, changed = Counter[str](), Counter[str](), 0, 0
    for family, own in by_family.items():
        if len({tuple(sorted(e.symbols.items())) for e in own}) < 2:
            continue
        where = documents[f"families/{family}.json"]["where"]
        for example in own:
            head = example.header(example.layouts[0])
            tried += 1
            right[_verdict(head, example, knowledge)] += 1
            others = [e for e in own if e.symbols != example.symbols]
            only = {
                s: {v}
                for s, v in example.symbols.items()
                if len(where.get(s, ())) > 1 and v in where[s] and all(e.symbols.get(s) != v for e in others)
            }
            changed += bool(only)
            blind[_verdict(head, example, without(documents, family, only) if only else knowledge)] += 1
    print(
        f"sizes of families that show several: {share(right['right'], tried)} right, {right['wrong']} wrong;", end=" "
    )
    print(f"with what only that size gave `where` taken out ({changed} of them name it there):", end=" ")
    print(f"{share(blind['right'], tried)} right, {blind['unknown']} unknown, {blind['wrong']} wrong")


def _verdict(head: Header, example: Example, knowledge: Knowledge) -> str:
    found = identify(head, knowledge)[0]
    if found.family is None:
        return "unknown"
    return "right" if example.family in found.families else "wrong"


def main() -> None:
    """Print everything."""
    folder = shared()
    if folder is None:
        print("no reference data (COMPATKIT_SHARED): the headers are the rules' own examples\n")
    documents = compile_documents([rules_root()])
    few = Knowledge(documents)
    with tempfile.TemporaryDirectory() as extra:
        generated.write(Path(extra))
        many = Knowledge(compile_documents([rules_root(), Path(extra)]))
    heads = headers(folder)
    cost(heads, few, many)
    if folder is not None:
        answers = [answer(folder, key, identify(head, few), few) for key, head in heads.items()]
        table(answers)
        derived(answers)
        for a in answers:
            if a.misses and "--misses" in sys.argv:
                print(f"  {a.key}: {'; '.join(a.misses)}")
    sizes(documents, few)


if __name__ == "__main__":
    main()
