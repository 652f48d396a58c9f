"""False alarms over known-good sets: the official ComfyUI workflow templates, as published, must not fail.

    python -m benchmarks.templates [--verbose]

A template names files, CLIP types, a latent node and sampler settings; benchmarks/templates.yaml says which family
a file is, and the family's own first example gives the header. Templates that hold files of unknown models, or several
sets at once, are counted apart. Reads `templates.json` of the reference data (see `benchmarks.cases`).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cases import shared
from compatkit.checks import judge
from compatkit.identify.identify import identify
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component, Header, Report, Stack, Tensor

FILES: dict[str, str | list[str] | None] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())["files"]


def families(name: str) -> list[str]:
    """The families of the models in a file, none if it takes no part.

    Raises:
        KeyError: no line says.
    """
    for pattern, answer in FILES.items():
        if fnmatchcase(name, pattern):
            return [answer] if isinstance(answer, str) else answer or []
    raise KeyError(name)


@cache
def components(name: str, of: str) -> tuple[Component, ...]:
    """What a file of that family's first example holds."""
    document = load().grammar(of)
    read = ((load().family(of).get("runtimes") or {}).get("comfyui") or {}).get("layouts") or [None]
    layout = read[0] if read[0] in document["layouts"] else None
    tensors = {}
    for tensor, shape in example_shapes(document, layout).items():
        n = 2
        for side in shape:
            n *= side
        tensors[tensor] = Tensor("BF16", shape, n)
    tokenizer = (load().family(of).get("tokenizer") or {}).get("needs")
    if tokenizer:
        tensors.setdefault(tokenizer, Tensor("U8", (1000,), 1000))
    size = sum(t.nbytes for t in tensors.values())
    metadata = document["example"].get("metadata") or {}
    return tuple(identify(Header(name, "safetensors", size, 0, tensors, metadata), load()))


def verdict(row: dict[str, Any]) -> Report:
    """The report about a template's set.

    Raises:
        KeyError: it names a file of an unknown model.
    """
    names = dict.fromkeys(m["name"] for m in row["models"] if m.get("active", True))
    parts: list[Component] = []
    for name in names:
        for of in families(name):
            parts += components(name, of)
    settings: dict[str, Any] = {}
    if row["clip_type"] and not row["clip_type"][0].endswith("Loader"):
        settings["clip_type"] = row["clip_type"][0]
    if row["latent_node"]:
        settings["latent_node"] = row["latent_node"][0]
    for node in row["sampler"]:
        if node.get("active", True):
            for key in ("steps", "cfg", "shift", "sampler_name", "scheduler"):
                if node.get(key) is not None:
                    settings.setdefault(key.removesuffix("_name"), node[key])
    return judge(Stack(tuple(parts), (), settings), load())


def main() -> None:
    """Print every set that does not pass, and the table."""
    rows = json.loads((shared() / "templates.json").read_text())
    counts: Counter[str] = Counter()
    for row in rows:
        if len(row["clip_type"]) > 1:
            counts["several sets in one"] += 1
            continue
        try:
            report = verdict(row)
        except KeyError as e:
            counts["a file of a model not known"] += 1
            if "--verbose" in sys.argv:
                print(f"{row['template']}: {e}")
            continue
        answer = str(report.verdict)
        counts[answer] += 1
        shown = [f"{f.level} {f.rule}: {f.message}" for f in report.findings if f.level != "info"]
        shown += [f"open {n.rule}: {n.why}" for n in report.not_checked if n.blocks]
        if answer != "pass" or (shown and "--verbose" in sys.argv):
            print(f"{row['template']}: {answer}")
            for line in shown:
                print(f"    {line[:300]}")
    print()
    for answer, n in counts.most_common():
        print(f"{answer:28} {n}")


if __name__ == "__main__":
    main()
