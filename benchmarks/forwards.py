"""Full forwards of library classes without weights: which families run, what they cost, how much memory.

    python -m benchmarks.forwards [FAMILY …] [--write]

Every family with a class in `rules/classes/` is built at its full size from the header its file shows first, compared
with the class name for name, and called once with the smallest valid inputs (a VAE in both directions). All of them run
in one process, as a dry run does. Times are CPU seconds of this process; the peak is the process's resident memory
while that family ran, libraries included. With `--write` the table goes into `docs/dryrun-families.md`. Needs the extra
`smoke`.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from compatkit.dryrun.build import build
from compatkit.dryrun.build import load as load_library
from compatkit.dryrun.classes import NoClass
from compatkit.dryrun.forward import forward
from compatkit.identify.identify import identify
from compatkit.identify.selftest import header_of
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import Knowledge, load

PAGE = Path(__file__).resolve().parent.parent / "docs" / "dryrun-families.md"
START, END = "<!-- table: python -m benchmarks.forwards --write -->\n", "<!-- end of table -->"
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Row:
    """One family's run."""

    family: str
    role: str
    name: str
    parameters: int
    build: float
    forward: float
    peak: int
    ok: bool
    result: str


def run(family: str, knowledge: Knowledge) -> Row:
    """Build and call one family's class."""
    role = str(knowledge.family(family)["role"])
    reset_peak()
    started = time.process_time()
    try:
        component = identify(header_of(example_shapes(knowledge.grammar(family))), knowledge)[0]
        built = build(component, knowledge, family=family)
    except NoClass as e:
        return Row(family, role, "", 0, 0, 0, peak(), False, str(e))
    seconds = time.process_time() - started
    calls = [forward(built, call=call) for call in built.spec.calls]
    said = [f"{c.call} {list(c.shape)}" if c.ok else f"{c.call}: {c.message.splitlines()[0]}" for c in calls]
    lacking = [n for n in built.missing if not n.endswith("num_batches_tracked")]
    if lacking:
        said.append(f"{len(lacking)} tensors of the class not in the file ({lacking[0]}, …)")
    ok = all(c.ok for c in calls) and not built.wrong
    cost = time.process_time() - started - seconds
    return Row(family, role, built.spec.name, built.parameters, seconds, cost, peak(), ok, "; ".join(said))


def reset_peak() -> None:
    """Start measuring the peak anew, where the system can."""
    gc.collect()
    if RESET.exists():
        RESET.write_text("5", encoding="ascii")


def peak() -> int:
    """Peak resident memory since the last reset, in MB; 0 where the system does not say."""
    if not STATUS.exists():
        return 0
    line = next(x for x in STATUS.read_text(encoding="ascii").splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def table(rows: Iterable[Row]) -> Iterator[str]:
    """The rows as markdown, by role."""
    rows = list(rows)
    good = [r for r in rows if r.ok]
    second = [r.build + r.forward for r in rows[1:]] or [0.0]
    yield f"{len(good)} of {len(rows)} families run in full, {len({r.name for r in good})} classes; the largest is "
    largest = max(good, key=lambda r: r.parameters)
    yield f"{largest.family} with {largest.parameters / 1e9:.1f} B parameters. "
    yield f"Highest peak {max(r.peak for r in rows)} MB; "
    yield f"of those after the first, the slowest took {max(second):.1f} CPU seconds to build and run, "
    yield f"the median {sorted(second)[len(second) // 2]:.1f}.\n"
    for role in dict.fromkeys(r.role for r in rows):
        yield f"\n### {role.replace('_', ' ')}\n\n"
        yield "| family | class | parameters | build, s | forward, s | peak, MB | result |\n"
        yield "|---|---|---:|---:|---:|---:|---|\n"
        for r in (r for r in rows if r.role == role):
            mark = r.result if r.ok else f"**fails**: {r.result}"
            size = f"{r.parameters / 1e9:.2f} B"
            yield f"| {r.family} | {r.name} | {size} | {r.build:.2f} | {r.forward:.2f} | {r.peak} | {mark} |\n"


def main() -> None:
    """Print the table; put it into the page with `--write`."""
    knowledge = load()
    asked = [a for a in sys.argv[1:] if not a.startswith("-")]
    order = {"diffusion": 0, "vae": 1, "text_encoder": 2}
    families = asked or sorted(
        knowledge.classes()["families"], key=lambda f: (order.get(str(knowledge.family(f)["role"]), 3), f)
    )
    for library in ("torch", "diffusers", "transformers"):
        load_library(library)
    rows = []
    for family in families:
        row = run(family, knowledge)
        rows.append(row)
        cost = f"{row.build + row.forward:6.2f} s {row.peak:5} MB"
        print(f"{row.family:28} {row.name:40} {cost} {row.ok} {row.result}", flush=True)
    text = "".join(table(rows))
    if "--write" in sys.argv[1:]:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(START)
        _, _, after = rest.partition(END)
        PAGE.write_text(before + START + "\n" + text + "\n" + END + after, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
