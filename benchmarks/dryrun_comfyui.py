"""The executed sets (`corpus/pairs.json`) through a ComfyUI checkout: run, works or fails as recorded, same text.

    python -m benchmarks.dryrun_comfyui DIR [--python PYTHON] [--only TEXT] [--misses]

DIR is a checkout of ComfyUI; `--python` is the interpreter with its packages. Texts are compared as a user would read
them: free sizes (batch, tokens, latent sides, frames) do not count, nor which of its wordings torch chooses. Reads the
reference data in `../shared` (or $COMPATKIT_SHARED).
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.cases import shared
from benchmarks.sets import components
from compatkit.dryrun.comfyui import Stage, run
from compatkit.dryrun.comfyui_process import Checkout, CheckoutError
from compatkit.dryrun.wording import read
from compatkit.hosts.comfyui import read_install
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component, Stack

_TYPE = re.compile(r"^\w+(?:Error|Exception): ")


def told(text: str) -> tuple[object, ...]:
    """What an error text says, without what is free."""
    said = read(text)
    return tuple(said) if said else ("text", re.sub(r"\s+", " ", _TYPE.sub("", text))[:200])


def set_of(row: Mapping[str, Any]) -> Stack:
    """One row as a set."""
    folder = shared()
    parts: list[Component] = []
    for name, role in _files(row):
        parts += components(folder, name, role)
    return Stack(tuple(parts), (), {"clip_type": row["clip_type"]} if row.get("clip_type") else {})


def _files(row: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if row.get("diffusion"):
        yield row["diffusion"], "diffusion"
    for encoder in row.get("text_encoders") or []:
        yield encoder, "text_encoder"
    if row.get("vae"):
        yield row["vae"], "vae"


def first_problem(stages: Iterable[Stage]) -> Stage | None:
    """The stage that decides: the first that failed; else one that left tensors without weights, or was refused."""
    problems = [s for s in stages if s.state != "ran"]
    return next((s for s in problems if s.state not in ("half", "unknowable")), next(iter(problems), None))


def main() -> None:
    """Print the misses and the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--python")
    parser.add_argument("--only", default="")
    parser.add_argument("--misses", action="store_true")
    asked = parser.parse_args()
    rows = json.loads((shared() / "corpus" / "pairs.json").read_text())
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    texts: Counter[tuple[str, bool]] = Counter()
    seconds: list[float] = []
    with Checkout(read_install(asked.directory), asked.python) as checkout:
        for row in rows:
            if row["works"] is None or not row.get("diffusion") or not row.get("text_encoders"):
                continue
            if asked.only not in " ".join(row["set"]):
                continue
            counts["sets"] += 1
            start = time.perf_counter()
            try:
                stages = run(set_of(row), load(), asked.directory, checkout)
            except CheckoutError as e:
                reasons[str(e)] += 1
                continue
            seconds.append(time.perf_counter() - start)
            problem = first_problem(stages)
            if problem is not None and problem.state == "unknowable":
                reasons[f"{problem.file}:{problem.line} asks for a value"] += 1
                if asked.misses:
                    print(f"{row['set']}: {problem.stage} {problem.message} {problem.file}:{problem.line}")
                continue
            counts["run"] += 1
            if row["works"] and row["expect"] == "fail":
                counts["not counted (works, wrong part)"] += 1
                continue
            counts["compared"] += 1
            agrees = row["works"] == (problem is None)
            counts["as recorded"] += agrees
            if not agrees and asked.misses:
                shown = f"{problem.stage} {problem.error}: {problem.message[:200]}" if problem else "ran"
                print(f"{row['set']} {row['clip_type']}: {shown}; recorded: {row['stage']} {str(row['error'])[:150]}")
            if agrees and problem is not None:
                kind = "torch" if told(row["error"])[0] != "text" else f"own ({row['error_origin']})"
                same = told(problem.message) == told(row["error"])
                texts[kind, same] += 1
                if not same and asked.misses:
                    print(
                        f"{row['set']} {row['clip_type']}: {problem.stage} {problem.error}: {problem.message[:300]!r}"
                    )
                    print(f"    recorded: {row['stage']} {row['error'][:300]!r}")
    for name, n in counts.items():
        print(f"{name:40} {n}")
    for name, n in reasons.most_common():
        print(f"    not run: {n:4} {name}")
    for kind in sorted({k for k, _ in texts}):
        print(f"text equal, {kind:28} {texts[kind, True]} of {texts[kind, True] + texts[kind, False]}")
    if seconds:
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        print(f"seconds a set: median {statistics.median(seconds):.2f}, most {max(seconds):.1f}; peak {peak:.0f} MB")


if __name__ == "__main__":
    main()
