"""Verdicts over the executed sets (`corpus/pairs.json`): how many are as they ran.

    python -m benchmarks.sets [--verbose]

Rows whose `expect` is null are skipped. A row marked `twin` must pass with an `info` finding that names both readings.
Reads the reference data in `../shared` (or $COMPATKIT_SHARED).
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.cases import shared
from compatkit.checks import judge
from compatkit.identify.identify import identify
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component, Header, Report, Stack, Tensor

BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


@cache
def components(folder: Path, name: str, role: str) -> tuple[Component, ...]:
    """What one corpus entry of that role holds."""
    for kind in (role, "checkpoint"):
        path = folder / "corpus" / kind / f"{name}.json.gz"
        if path.is_file():
            break
    else:
        raise FileNotFoundError(name)
    entry = json.loads(gzip.decompress(path.read_bytes()))
    tensors = {}
    for tensor, (dtype, shape) in entry["tensors"].items():
        n = BYTES.get(dtype, 1)
        for side in shape:
            n *= side
        tensors[tensor] = Tensor(dtype, tuple(shape), n)
    metadata = entry.get("metadata") or {}
    if entry["format"] == "gguf":
        metadata = {k: tuple(v["value"]) if isinstance(v["value"], list) else v["value"] for k, v in metadata.items()}
    suffix = "gguf" if entry["format"] == "gguf" else "safetensors"
    header = Header(f"{name}.{suffix}", entry["format"], sum(t.nbytes for t in tensors.values()), 0, tensors, metadata)
    return tuple(identify(header, load()))


def verdict(folder: Path, row: dict[str, Any]) -> Report:
    """The report about one row's set."""
    parts: list[Component] = []
    if row.get("diffusion"):
        parts += components(folder, row["diffusion"], "diffusion")
    for encoder in row.get("text_encoders") or []:
        parts += components(folder, encoder, "text_encoder")
    if row.get("vae"):
        parts += components(folder, row["vae"], "vae")
    settings = {"clip_type": row["clip_type"]} if row.get("clip_type") else {}
    return judge(Stack(tuple(parts), (), settings), load())


def main() -> None:
    """Print the misses and the table."""
    folder = shared()
    counts: Counter[tuple[str, str]] = Counter()
    twins = [0, 0]
    for row in json.loads((folder / "corpus" / "pairs.json").read_text()):
        if row["expect"] is None:
            continue
        try:
            report = verdict(folder, row)
            answer = str(report.verdict)
        except FileNotFoundError as e:
            counts[row["expect"], f"no header of {e}"] += 1
            continue
        counts[row["expect"], answer] += 1
        if row.get("twin"):
            twins[0] += 1
            twins[1] += any(f.level == "info" and f.rule.startswith(("vae/", "encoder/")) for f in report.findings)
        if answer != row["expect"] or "--verbose" in sys.argv:
            shown = [f"{f.level} {f.rule}: {f.message}" for f in report.findings if f.level != "info"]
            open_ = [n.rule for n in report.not_checked if n.blocks] + [
                c.source for c in report.components if not c.family
            ]
            print(f"{row['set']} {row.get('clip_type')}: {answer}, not {row['expect']} ({row['stage']}, {row['note']})")
            for line in [*shown, str(row["error"])[:160], *open_][:4]:
                print(f"    {line[:200]}")
    print()
    for (expect, answer), n in sorted(counts.items()):
        print(f"expected {expect:5} answered {answer:10} {n}")
    print(f"twins with an info finding: {twins[1]} of {twins[0]}")


if __name__ == "__main__":
    main()
