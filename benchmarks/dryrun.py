"""The executed sets (`corpus/pairs.json`) in the dry run: can they be run, do they fail as recorded, in the same words.

    python -m benchmarks.dryrun [--verbose] [--loras]
    python -m benchmarks.dryrun --comfyui DIR      the same through a checkout's own code (benchmarks.dryrun_comfyui)

Rows whose `expect` is null are no sets and are skipped. Three figures, and what it costs:
- run: sets in which every pair of models met in a probe; the others are listed by reason;
- outcome: of those, sets that run through or stop as recorded (rows that worked although a part is the wrong one say
  nothing of shapes and are not counted);
- words: of those that stopped with the text of an operation of torch, sets whose first error says the same. Compared is
  what the text says (`compatkit.dryrun.wording.read`): the sizes of the models and not of the run, in whatever
  version's words.
`--loras`: instead, every LoRA whose shapes are known on every base that ComfyUI read any of it for: does a change stop
in torch where ComfyUI could not apply one.
Reads the reference data in `../shared` (or $COMPATKIT_SHARED). Needs torch.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.cases import shared
from benchmarks.lora import read as unzipped
from benchmarks.sets import components
from compatkit import adapters
from compatkit.checks import judge
from compatkit.dryrun.dry import dry_run
from compatkit.dryrun.run import Worker
from compatkit.dryrun.wording import read
from compatkit.identify.identify import identify
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component, Finding, Header, Report, Runtime, Stack, Tensor

RUNTIME = "comfyui"


def stack(folder: Any, row: dict[str, Any]) -> Stack:
    """One row's set."""
    parts: list[Component] = []
    for key, role in (("diffusion", "diffusion"), ("text_encoders", "text_encoder"), ("vae", "vae")):
        names = row.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            parts += components(folder, name, role)
    settings = {"clip_type": row["clip_type"]} if row.get("clip_type") else {}
    return Stack(tuple(parts), (Runtime(RUNTIME),), settings)


def first(report: Report) -> Finding | None:
    """The error that a user meets first: errors only in some nodes (tiled decoding) are not it."""
    errors = [f for f in report.findings if f.level == "error" and not f.evidence.get("when")]
    return min(errors, key=lambda f: f.evidence.get("order", 0), default=None)


def predicted(header: Report, error: Finding) -> bool:
    """Whether a header check predicted this very error, before anything was run."""
    said = read(str(error.evidence["message"]))
    return any(read(text) == said for f in header.findings for text in f.predicts.values())


def loras(folder: Path) -> None:
    """Every LoRA on every base that ComfyUI read any of it for: whether its change goes onto its weight."""
    knowledge, counts = load(), Counter[tuple[str, str]]()
    rows = json.loads((folder / "lora" / "index.json").read_text())
    truth = unzipped(folder / "lora" / "truth.json.gz")["files"]
    bases = {}
    for path in sorted((folder / "lora" / "bases").glob("*.json.gz")):
        shapes = {n.removeprefix("diffusion_model."): s for n, s in unzipped(path).items()}  # as files have them
        tensors = {n: Tensor("BF16", tuple(s), 2 * prod(s)) for n, s in shapes.items()}
        bases[path.name.removesuffix(".json.gz")] = identify(Header("base", "safetensors", 0, 0, tensors), knowledge)[0]
    with Worker() as worker:
        for name in (r["file"].removesuffix(".json") for r in rows if r["shapes_known"]):
            shapes = unzipped(folder / "lora" / f"{name}.json.gz")["tensors"]
            tensors = {n: Tensor("BF16", tuple(s), 2 * prod(s)) for n, s in shapes.items()}
            lora = adapters.recognise(Header(name, "safetensors", 0, 0, tensors), knowledge)
            for base, seen in truth[name]["results"].items():
                verdict = seen["unet"]["verdict"]
                if lora is None or verdict == "none" or base not in bases:
                    continue
                made = Stack((bases[base], lora), (Runtime(RUNTIME),))
                report = dry_run(made, knowledge, judge(made, knowledge), worker)
                stopped = any(f.rule == "dryrun/lora" for f in report.findings)
                ran = "dryrun/lora" in report.checked
                wanted = "stops" if verdict.startswith("shape_mismatch") else "goes"
                counts[wanted, "stops" if stopped else "goes" if ran else "was not run"] += 1
    for (wanted, found), n in sorted(counts.items()):
        print(f"a change that {wanted} in ComfyUI {found}: {n}")


def main() -> None:
    """Print the misses and the figures."""
    if "--loras" in sys.argv:
        loras(shared())
        return
    if "--comfyui" in sys.argv:  # the same sets through a checkout's own code
        from benchmarks.dryrun_comfyui import main as through_checkout

        sys.argv.remove("--comfyui")
        through_checkout()
        return
    folder, knowledge = shared(), load()
    rows = [r for r in json.loads((folder / "corpus" / "pairs.json").read_text()) if r["expect"] is not None]
    unrun: Counter[str] = Counter()
    outcome: Counter[str] = Counter()
    words: Counter[str] = Counter()
    disagree: list[str] = []
    seconds, foretold, foretold_right = 0.0, 0, 0
    with Worker() as worker:
        for row in rows:
            made = stack(folder, row)
            header = judge(made, knowledge)
            start = time.perf_counter()
            report = dry_run(made, knowledge, header, worker)
            seconds += time.perf_counter() - start
            error = first(report)
            for f in report.findings:
                if f.rule == "dryrun/disagrees":
                    disagree.append(f"{row['set']}: {f.message}")
            blocked = [n.why for n in report.not_checked if n.blocks]
            if blocked and not error:
                unrun[blocked[0]] += 1
                continue
            if row["works"] and row["expect"] == "fail":
                outcome["not counted: worked with a wrong part"] += 1
                continue
            stopped = error is not None
            outcome["as recorded" if stopped == (not row["works"]) else "otherwise"] += 1
            if stopped == bool(row["works"]):
                said = error.evidence["message"] if error else "ran through"
                print(f"{row['set']} {row.get('clip_type')}: {said!r}; recorded: {str(row['error'])[:150]!r}")
                continue
            if error is not None and read(str(error.evidence["message"])):
                foretold += 1
                foretold_right += predicted(header, error)
            recorded = read(row["error"] or "")
            if error is None or recorded is None:
                continue
            same = read(str(error.evidence["message"])) == recorded
            words["same" if same else "other"] += 1
            if not same or "--verbose" in sys.argv:
                print(f"{row['set']}: {error.evidence['message']!r}\n    recorded: {row['error'][:160]!r}")
        memory = worker.ask({"do": "memory"})["peak"]
        torch = worker.environment["torch"]
    print()
    total, run = len(rows), sum(outcome.values())
    print(f"{total} sets, torch {torch}")
    print(f"run: {run} of {total} ({run / total:.1%})")
    for why, n in unrun.most_common():
        print(f"    not run: {n} x {why}")
    counted = outcome["as recorded"] + outcome["otherwise"]
    print(f"outcome as recorded: {outcome['as recorded']} of {counted} ({outcome['as recorded'] / counted:.1%})")
    print(f"    {outcome['not counted: worked with a wrong part']} worked with a wrong part and are not counted")
    of = sum(words.values())
    print(f"same words: {words['same']} of {of} ({words['same'] / of:.1%})")
    print(f"header checks predicted that error: {foretold_right} of {foretold} ({foretold_right / foretold:.1%})")
    print(f"header check and dry run disagree: {len(disagree)}")
    for line in disagree:
        print(f"    {line}")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{1000 * seconds / total:.1f} ms a set")
    print(f"peak memory {memory / 1e6:.0f} MB (torch's process), {own:.0f} MiB (this one)")


if __name__ == "__main__":
    main()
