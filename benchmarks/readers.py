"""What reading a header costs a whole process, beside the packages that read the same files.

    python benchmarks/readers.py [--runs N]

Makes two sparse files in a temporary folder: a safetensors file of 453 tensors (a header of about 50 KB) and a GGUF
text encoder with 151,936 tokens and 151,387 merges (about 6.8 MB). Each reader runs in a process of its own, in turn
with the others; the figures are medians of wall and CPU milliseconds and of peak resident memory in MB. The last column
is the CPU time relative to compatkit's on that file.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.files import Typed, write_gguf, write_safetensors  # noqa: E402

# Peak memory as the process itself sees it: rusage of a child starts with what its parent held when it forked.
PEAK = """
try:
    _peak = [l for l in open("/proc/self/status") if l.startswith("VmHWM")][0].split()[1]
except OSError:
    import resource
    _peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.stderr.write(f"peak {_peak}")
"""

OURS = "from compatkit.headers import open_header; assert open_header(sys.argv[1]).tensors"
READERS = {
    "safetensors": {
        "compatkit": OURS,
        "safetensors safe_open, all slices": (
            "from safetensors import safe_open\n"
            "with safe_open(sys.argv[1], 'np') as f:\n"
            "    for k in f.keys(): f.get_slice(k).get_shape()"
        ),
    },
    "gguf": {
        "compatkit": OURS,
        "gguf.GGUFReader": "import gguf; gguf.GGUFReader(sys.argv[1])",
        "gguf-dump --no-tensors": (
            "from gguf.scripts.gguf_dump import main\n"
            "sys.argv = ['gguf-dump', '--no-tensors', sys.argv[1]]\n"
            "sys.stdout = open(os.devnull, 'w')\n"
            "main()"
        ),
    },
}


def make(folder: Path) -> dict[str, Path]:
    """The two files, the same on every run."""
    shapes = [(3840, 3840), (11520, 3840), (3840, 10240), (3840,), (128,)]
    tensors = {
        f"layers.{i // 13}.attention.part_{i % 13}.weight": ("BF16", shapes[i % len(shapes)]) for i in range(453)
    }
    draw = random.Random(0)
    text = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=4096))

    def words(count: int, shortest: int, longest: int) -> list[str]:
        lengths = draw.choices(range(shortest, longest + 1), k=count)
        starts = draw.choices(range(4000), k=count)
        return [text[s : s + n] for s, n in zip(starts, lengths, strict=True)]

    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "tokenizer.ggml.tokens": words(151_936, 2, 21),
        "tokenizer.ggml.token_type": Typed("int32", [1] * 151_936),
        "tokenizer.ggml.merges": words(151_387, 5, 21),
    }
    encoder = {f"blk.{i // 11}.part_{i % 11}.weight": ("Q4_K", (2560, 2560)) for i in range(398)}
    return {
        "safetensors": write_safetensors(folder / "model.safetensors", tensors),
        "gguf": write_gguf(folder / "encoder.gguf", encoder, metadata),
    }


def run(code: str, path: Path) -> tuple[float, float, float]:
    """(wall ms, CPU ms, peak MB) of one process."""
    # compiled once, as an installed package is, and not into the checkout
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(path.parent / "compiled")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", f"import os, sys\n{code}\n{PEAK}", str(path)],
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        check=True,
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall * 1e3, cpu * 1e3, int(done.stderr.rsplit("peak ", 1)[1]) / 1024


def main() -> None:
    """Runs and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--runs", type=int, default=7, help="processes per reader (default 7)")
    runs = options.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        paths = make(Path(folder))
        from compatkit.headers import open_header

        print(f"{'':44}{'wall ms':>9}{'CPU ms':>9}{'peak MB':>9}{'ratio':>8}")
        for kind, readers in READERS.items():
            bare = {"python, nothing read": "", "compatkit imported, nothing read": "import compatkit.headers"}
            rounds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in (*bare, *readers)}
            for turn in range(runs + 1):
                for name, code in (bare | readers).items():
                    figures = run(code, paths[kind])
                    if turn:  # the first turn fills caches
                        rounds[name].append(figures)
            header = open_header(paths[kind])
            print(f"{kind}: {len(header.tensors)} tensors, header of {header.header_bytes:,} bytes")
            middle = {
                name: [statistics.median(column) for column in zip(*r, strict=True)] for name, r in rounds.items()
            }
            for name, (wall, cpu, peak) in middle.items():
                ratio = cpu / middle["compatkit"][1]
                print(f"  {name:42}{wall:9.1f}{cpu:9.1f}{peak:9.1f}{ratio:8.2f}")


if __name__ == "__main__":
    main()
