"""How fast `compatkit smoke --scan` looks at weights, beside the least that reading them costs on the same machine.

    python -m benchmarks.scan [--gb 1] [--runs 5] [--folder DIR]

1. In memory, on one core: each dtype's bytes go through the scan's meter in the pieces it uses. Floor: the largest of
   the same bytes as 64-bit integers, which numpy finds at the speed of memory. Both alternate, and take CPU time.
2. The whole command on a file in the page cache (a model of layers as in a 6 B transformer, written into a temporary
   folder): the worker's wall and CPU seconds, its own memory, beside reading the file with `readinto`.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from compatkit.smoke import supervise  # noqa: E402
from compatkit.smoke.measure import PIECE, Meter  # noqa: E402
from compatkit.smoke.number import bf16  # noqa: E402
from compatkit.smoke.weights import BLOCKS  # noqa: E402

#: What makes a scan of a kind of weights count as fast enough (issue: bf16 and fp16).
WANTED = {"BF16": 5.0, "F16": 5.0}


def contents(size: int) -> dict[str, Any]:
    """dtype -> about `size` bytes of it, with the statistics of weights."""
    import gguf

    draw = np.random.default_rng(0)
    values = draw.standard_normal(size // 4, dtype=np.float32) * 0.02
    half = np.concatenate((values, values))
    out: dict[str, Any] = {
        "F32": values.view(np.uint8),
        "BF16": bf16(half).view(np.uint8),
        "F16": half.astype(np.float16).view(np.uint8),
        "F8_E4M3": draw.integers(0, 126, size, dtype=np.uint8),
    }
    for name in ("Q8_0", "Q4_0", "Q4_K", "Q6_K"):
        block = BLOCKS[name][1]
        few = values[: 256 * 4096].reshape(-1, 4096)
        kind = gguf.GGMLQuantizationType[name]
        try:
            one = gguf.quantize(few, kind).reshape(-1)
        except NotImplementedError:  # no encoder: any bits under small scales
            rows = draw.integers(0, 256, (few.size // BLOCKS[name][0], block), dtype=np.uint8)
            rows[:, [1, 3, -1]] = 0x11
            one = rows.reshape(-1)
        out[name] = np.tile(one, max(1, size // one.size))  # whole rows
    return out


def metered(raw: Any, dtype: str) -> None:
    """One tensor through the meter, as the scan does it."""
    elements, block = BLOCKS.get(dtype, (1, 1))
    row = 4096 // elements * block  # rows of 4096 values
    meter = Meter(dtype, (raw.size // row, 4096) if dtype in BLOCKS else (raw.size,), raw.size)
    step = (PIECE << 2 if dtype in BLOCKS else PIECE) // meter.align * meter.align
    for at in range(0, raw.size, step):
        meter.add(raw[at : at + step])
    meter.finish()


def floor(raw: Any) -> None:
    """The largest of the bytes as 64-bit integers."""
    words = raw[: raw.size // 8 * 8].view("<u8")
    for at in range(0, words.size, PIECE // 8):
        words[at : at + PIECE // 8].max()


def cpu(work: Callable[[], None]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def in_memory(size: int, runs: int) -> list[str]:
    """A line for each dtype; the best of the runs."""
    lines = [f"{'dtype':10} {'scan GB/s':>10} {'floor GB/s':>11} {'share':>6}"]
    for dtype, raw in contents(size).items():
        pairs = [(cpu(lambda r=raw, d=dtype: metered(r, d)), cpu(lambda r=raw: floor(r))) for _ in range(runs)]  # type: ignore[misc]
        scan, least = (raw.size / 1e9 / min(p[i] for p in pairs) for i in (0, 1))
        wanted = WANTED.get(dtype)
        note = "" if wanted is None else f"  wanted: {wanted:g}" + ("" if scan >= wanted else "  MISSED")
        lines.append(f"{dtype:10} {scan:10.1f} {least:11.1f} {scan / least:6.0%}{note}")
    return lines


def write_model(path: Path, size: int) -> None:
    """A bf16 safetensors file of about `size` bytes: blocks of a 3840-wide transformer."""
    shapes = {"attention.qkv.weight": (11520, 3840), "feed_forward.w1.weight": (10240, 3840), "norm.weight": (3840,)}
    table: dict[str, Any] = {}
    at = block = 0
    while at < size:
        for name, shape in shapes.items():
            end = at + int(np.prod(shape)) * 2
            table[f"layers.{block}.{name}"] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
            at = end
        block += 1
    head = json.dumps(table).encode()
    chunk = bf16(np.random.default_rng(1).standard_normal(1 << 24, dtype=np.float32) * 0.02).tobytes()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        left = at
        while left:
            f.write(chunk[: min(left, len(chunk))])
            left -= min(left, len(chunk))


def read(path: Path) -> float:
    """Wall seconds of reading the file into one buffer again and again."""
    buffer = bytearray(8 << 20)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as f:
        while f.readinto(buffer):
            pass
    return time.perf_counter() - start


def whole(folder: Path, size: int, runs: int) -> list[str]:
    """The command's worker on one file."""
    path = folder / "model.safetensors"
    write_model(path, size)
    real = path.stat().st_size
    read(path)
    rows = []
    for _ in range(runs):
        least = read(path)
        outcome = supervise.run({"do": "scan", "sources": [str(path)]}, lambda event: None)
        assert not outcome.why, outcome.why
        rows.append((outcome.seconds, least, outcome.peak))
    seconds, least = min(r[0] for r in rows), min(r[1] for r in rows)
    size_gb = real / 1e9
    return [
        f"file of {size_gb:.2f} GB in the page cache:",
        f"  scan      {seconds:.2f} s ({size_gb / seconds:.1f} GB/s, start of the process included), "
        f"own memory {max(r[2] for r in rows) / 1e6:.0f} MB",
        f"  readinto  {least:.2f} s ({size_gb / least:.1f} GB/s)",
    ]


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--gb", type=float, default=1.0, help="size of the file")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the file is written; a temporary folder if not given")
    arguments = parser.parse_args()
    print(f"numpy {np.__version__}, Python {sys.version.split()[0]}, one core, best of {arguments.runs}")
    print("\n".join(in_memory(256 << 20, arguments.runs)))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print("\n".join(whole(Path(folder), int(arguments.gb * 1e9), arguments.runs)))


if __name__ == "__main__":
    main()
