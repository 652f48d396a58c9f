"""How far the coverage of LoRAs agrees with what ComfyUI really loaded, file by file and base by base.

    python -m benchmarks.lora [--excerpts] [--speed] [NAME…]

Prints the share of equal verdicts over all pairs and over those whose verdict is not `none`, of equal counts of keys,
and every disagreement with its reason. `--excerpts` adds the files of which only names are known; `--speed` times a
whole process. Reads the reference data in `../shared` (or $COMPATKIT_SHARED).
"""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.cases import shared
from compatkit.adapters.base import Base, of_component
from compatkit.adapters.coverage import coverage
from compatkit.adapters.keys import spellings
from compatkit.identify.identify import identify
from compatkit.knowledge.store import Knowledge, load
from compatkit.vocabulary import Header, Tensor

RUNTIME = "comfyui"


def read(path: Path) -> Any:
    """A gzipped JSON file."""
    return json.loads(gzip.decompress(path.read_bytes()))


def bases(folder: Path, knowledge: Knowledge) -> dict[str, Base]:
    """Every base header, identified."""
    found = {}
    for path in sorted((folder / "bases").glob("*.json.gz")):
        tensors = {n: Tensor("BF16", tuple(s), 2 * prod(s)) for n, s in read(path).items()}
        component = identify(Header(path.name, "safetensors", 0, 0, tensors), knowledge)[0]
        base = of_component(component, knowledge)
        if base is None:
            print(f"{path.name}: not identified, left out")
        else:
            found[path.name.removesuffix(".json.gz")] = base
    return found


def pairs(folder: Path, knowledge: Knowledge, names: list[str], excerpts: bool) -> Iterator[dict[str, Any]]:
    """One row for each file and base: what was observed, what is computed."""
    truth = read(folder / "truth.json.gz")["files"]
    index = {row["file"].removesuffix(".json"): row for row in json.loads((folder / "index.json").read_text())}
    spelled, table = spellings(knowledge.adapters("spellings")), knowledge.adapters(RUNTIME)
    known = bases(folder, knowledge)
    for name, entry in truth.items():
        if (names and not name.startswith(tuple(names))) or not (excerpts or index[name]["shapes_known"]):
            continue
        tensors = {
            n: None if shape is None else tuple(shape)
            for n, shape in read(folder / f"{name}.json.gz")["tensors"].items()
        }
        for base_name, base in known.items():
            seen = entry["results"][base_name]["unet"]
            found = coverage(tensors, spelled, base, table, knowledge)
            yield {
                "file": name,
                "base": base_name,
                "class": index[name]["convention"],
                "seen": seen["verdict"].removesuffix("_some").removesuffix("_all"),
                "found": found.verdict,
                "seen_keys": (seen["matched"], seen["keys_total"]),
                "found_keys": (found.matched, found.keys),
                "reason": dict(found.reasons),
                "failed": (seen.get("apply_failed"), len(found.mismatches)),
            }


def share(rows: list[dict[str, Any]], seen: str, found: str) -> str:
    """How many rows agree, and the share."""
    equal = sum(r[seen] == r[found] for r in rows)
    return f"{equal} of {len(rows)} ({100 * equal / max(1, len(rows)):.2f} %)"


def speed() -> None:
    """A LoRA of 2,400 keys against SDXL: the whole process, the best of five."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from compatkit.identify.shapes import example_shapes
    from tests.support.files import write_safetensors

    knowledge = load()
    with tempfile.TemporaryDirectory() as folder:
        shapes = {n: ("F16", s) for n, s in example_shapes(knowledge.grammar("sdxl")).items()}
        base = write_safetensors(Path(folder) / "base.safetensors", shapes)
        keys: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, (_, shape) in shapes.items():
            if name.endswith(".weight") and len(shape) in (2, 4) and len(keys) < 2400:
                module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
                keys[f"{module}.lora_down.weight"] = ("F16", (32, *shape[1:]))
                keys[f"{module}.lora_up.weight"] = ("F16", (shape[0], 32, *[1] * (len(shape) - 2)))
                keys[f"{module}.alpha"] = ("F16", ())
        lora = write_safetensors(Path(folder) / "lora.safetensors", keys)
        check = [sys.executable, "-m", "compatkit", "check", str(base), str(lora), "--format", "json"]
        runs = [(_cost(check), _cost([sys.executable, "-c", "import click"])) for _ in range(5)]
        own, click = min(r[0] for r in runs), min(r[1] for r in runs)
        wall, cpu = own
        print(
            f"a LoRA of {len(keys)} keys against SDXL, whole process, best of 5: {1000 * wall:.0f} ms, "
            f"{1000 * cpu:.0f} ms of CPU, {cpu / click[1]:.1f}x `import click`"
        )


def _cost(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock and of CPU that a command takes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


def main() -> None:
    """Print the figures and the disagreements."""
    names = [a for a in sys.argv[1:] if not a.startswith("-")]
    if "--speed" in sys.argv:
        speed()
        return
    rows = list(pairs(shared() / "lora", load(), names, "--excerpts" in sys.argv))
    telling = [r for r in rows if r["seen"] != "none"]
    classes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        classes[row["class"]].append(row)
        if row["seen"] != row["found"] or row["seen_keys"] != row["found_keys"]:
            print(
                f"{row['file']} on {row['base']}: {row['seen']} {row['seen_keys']}, found {row['found']} "
                f"{row['found_keys']}; failed {row['failed']}; unmatched {row['reason']}"
            )
    for name, own in sorted(classes.items()):
        print(f"{name}: verdicts {share(own, 'seen', 'found')}, keys {share(own, 'seen_keys', 'found_keys')}")
    print(f"verdicts equal, all pairs: {share(rows, 'seen', 'found')}")
    print(f"verdicts equal, pairs that load something: {share(telling, 'seen', 'found')}")
    print(f"counts of keys equal: {share(rows, 'seen_keys', 'found_keys')}")


if __name__ == "__main__":
    main()
