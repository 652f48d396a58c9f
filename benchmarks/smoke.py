"""What a streamed forward costs: time, memory and copies, beside the same model loaded whole.

    python -m benchmarks.smoke [--device cuda] [--family z_image_turbo] [--kinds bf16,q8_0,q4_k_m] [--depth N]
                               [--vram 4GB] [--folder DIR] [--json FILE]

Writes each file of random weights into a folder of its own (12 GB for bf16), runs every measurement in a process of
its own, and removes the file again. `streamed` is compatkit's way; `loaded` has all weights in memory (CPU: of the
mapped file, warm) or on the GPU, in the dtype of the computation, unpacked by the `gguf` package and put together by
a few lines of this file. The best of several runs counts; times of a machine that does other things are ratios at best.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import weights as made
from compatkit import api
from compatkit.knowledge.store import load

FP16 = 65504.0
RUNS = 3


class Peak:
    """The most memory this process had, sampled: resident in all, of its own, and of mapped files."""

    def __init__(self) -> None:
        self.own = self.mapped = self.all = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.004):
            now = memory()
            self.own, self.mapped = max(self.own, now["RssAnon"]), max(self.mapped, now["RssFile"])
            self.all = max(self.all, now["VmRSS"])


def memory() -> dict[str, int]:
    """/proc's figures of this process in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    rows = (line.split() for line in lines if line.startswith(("Rss", "VmHWM", "VmRSS")))
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows}


def timed(run: Callable[[], Any], device: str, repeats: int = RUNS) -> tuple[Any, float, float]:
    """(last result, best seconds of wall time, CPU seconds of that run)."""
    import torch

    best, cpu, result = float("inf"), 0.0, None
    for _ in range(repeats):
        result = None
        if device != "cpu":
            torch.cuda.synchronize()
        start, before = time.perf_counter(), time.process_time()
        result = run()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        if seconds < best:
            best, cpu = seconds, time.process_time() - before
    return result, best, cpu


def streamed(given: argparse.Namespace) -> dict[str, Any]:
    """One file, streamed."""
    import torch

    from compatkit.smoke.model import open_model

    (component,) = api.inspect(given.file)
    model = open_model(component, load(), dtype=given.dtype, device=given.device, vram=given.vram)
    inputs = model.inputs()
    base = memory()["VmRSS"]
    out: dict[str, Any] = {"family": component.family, "base": base}
    with Peak() as peak:
        first = time.perf_counter()
        result = model.run(inputs, record=False)
        out["first_seconds"] = time.perf_counter() - first
        traffic = getattr(model.supply, "traffic", None)
        before = traffic.bytes if traffic else 0
        result, out["seconds"], out["cpu"] = timed(lambda: model.run(inputs, record=False), given.device)
        if traffic:
            moved = (traffic.bytes - before) / RUNS
            out |= {"copied": moved, "rate": moved / out["seconds"], "out_of_turn": traffic.out_of_turn}
            _, alone, _ = timed(lambda: only_copies(model), given.device)
            out |= {"copies_seconds": alone, "copies_rate": moved / alone}
        recorded, out["recorded_seconds"], _ = timed(lambda: model.run(inputs), given.device, 1)
    record = recorded.record
    largest = record.largest()
    out |= {
        "std": float(result.output.float().std()), "finite": bool(torch.isfinite(result.output).all()),
        "largest": [largest.label, largest.max_abs] if largest else None,
        "broken": record.broken.label if record.broken else "",
        "above": [[p.label, p.max_abs] for p in record.above(FP16)][:4],
        "peak": memory()["VmHWM"], "own": peak.own, "mapped": peak.mapped,
    }  # fmt: skip
    if given.device != "cpu":
        free, total = torch.cuda.mem_get_info()
        out |= {"vram_reserved": torch.cuda.max_memory_reserved(), "vram_device": total - free}
    if given.save:
        torch.save(result.output.cpu(), given.save)
    model.close()
    return out


def only_copies(model: Any) -> None:
    """Bring every weight in the order of the last run, and compute nothing."""
    model.supply.start(model.streamed.order)
    for name in model.streamed.order:
        model.supply.take(name)
        model.supply.give(name)
    model.supply.end()


def loaded(given: argparse.Namespace) -> dict[str, Any]:
    """The same file with all of its weights in memory, put into the class by other means."""
    import torch

    from compatkit.dryrun.build import build
    from compatkit.smoke.stream import stored

    (component,) = api.inspect(given.file)
    built = build(component, load(), dtype=given.dtype, tables="cpu")
    module, device = built.module, torch.device(given.device)
    start = time.perf_counter()
    fetch = _by_gguf(given.file) if given.file.endswith(".gguf") else _by_safetensors(given.file)
    for name, tensor in list(stored(module)):
        recipe = built.plan.get(name) or built.plan[built.tied.get(name, name)]
        rows = [fetch(p.source)[p.start : None if p.rows is None else p.start + p.rows] for p in recipe.pieces]
        whole = rows[0] if len(rows) == 1 else torch.cat(rows)
        value = whole.reshape(recipe.shape).to(device=device, dtype=tensor.dtype)
        owner = module.get_submodule(name.rpartition(".")[0])
        leaf = name.rpartition(".")[2]
        if leaf in owner._parameters:
            owner._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
        else:
            owner._buffers[leaf] = value
    for inner in module.modules():
        for name, buffer in inner._buffers.items():
            if buffer is not None:
                inner._buffers[name] = buffer.to(device)
    out: dict[str, Any] = {"load_seconds": time.perf_counter() - start}
    inputs = built.inputs(device=given.device)

    def run() -> Any:
        with torch.no_grad():
            return built.output(built.method()(**inputs))

    run()
    result, out["seconds"], out["cpu"] = timed(run, given.device)
    out |= {"std": float(result.float().std()), "finite": bool(torch.isfinite(result).all()), "peak": memory()["VmHWM"]}
    if given.device != "cpu":
        out["vram_reserved"] = torch.cuda.max_memory_reserved()
    if given.save:
        torch.save(result.cpu(), given.save)
    return out


def _by_safetensors(path: str) -> Callable[[str], Any]:
    from safetensors import safe_open

    return safe_open(path, "pt").get_tensor


def _by_gguf(path: str) -> Callable[[str], Any]:
    import torch
    from gguf import GGUFReader, quants

    tensors = {t.name: t for t in GGUFReader(path).tensors}
    last: dict[str, Any] = {}

    def fetch(name: str) -> Any:
        if name not in last:  # rows of one tensor are asked for one after the other
            last.clear()
            tensor = tensors[name]
            values = quants.dequantize(tensor.data, tensor.tensor_type)
            last[name] = torch.from_numpy(values.copy()).reshape([int(n) for n in reversed(tensor.shape)])
        return last[name]

    return fetch


def child(mode: str, file: Path, given: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.smoke", "--mode", mode, "--file", str(file), "--device", given.device]
    for key, value in more.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["?"])[-1], "stderr": done.stderr[-2000:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(one: Path, other: Path) -> dict[str, Any]:
    """How far apart two outputs are."""
    import torch

    a, b = torch.load(one).float(), torch.load(other).float()
    return {
        "largest": float((a - b).abs().max()), "equal": bool(torch.equal(a, b)),
        "relative": float((a - b).norm() / b.norm()),
    }  # fmt: skip


def planted(folder: Path, family: str, where: str) -> Path:
    """A shallow bf16 file in which the gated product of one layer, or its second matrix, overflows float16."""
    import numpy as np

    path = folder / f"planted-{where or 'none'}.safetensors"
    made.write(path, family, "bf16", depth=3)
    size = int.from_bytes(path.open("rb").read(8), "little")
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(size))
    factors = {"product": {"w1.weight": 512.0, "w3.weight": 512.0}, "matrix": {"w2.weight": 65536.0}}.get(where, {})
    for ending, factor in factors.items():
        entry = header[f"layers.1.feed_forward.{ending}"]
        at, width = 8 + size + entry["data_offsets"][0], entry["shape"][1]
        row = np.memmap(path, "<u2", "r+", at, (width,))
        values = (row.astype(np.uint32) << 16).view(np.float32) * np.float32(factor)
        row[:] = (values.view(np.uint32) >> 16).astype(np.uint16)
        row.flush()
    return path


def overflow(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    """What a bf16 run predicts of float16, and what a float16 run does."""
    out = []
    for where in ("", "product", "matrix"):
        path = planted(folder, given.family, where)
        bf16 = child("streamed", path, given, dtype="bfloat16")
        fp16 = child("streamed", path, given, dtype="float16") if given.device != "cpu" else {}
        out.append({"planted": where or "nothing", "predicted": bf16.get("above"), "fp16_finite": fp16.get("finite"),
                    "fp16_broken": fp16.get("broken"), "error": bf16.get("error") or fp16.get("error")})  # fmt: skip
        path.unlink()
    return out


def size(n: float) -> str:
    """Bytes in words."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every kind of file."""
    results: dict[str, Any] = {"device": given.device, "family": given.family, "kinds": {}}
    if given.device != "cpu":
        import torch

        from compatkit.smoke.lane import ceiling

        results["gpu"] = torch.cuda.get_device_name()
        results["ceiling"] = ceiling(torch.device(given.device))
        print(f"{results['gpu']}: pinned copies reach {results['ceiling'] / 1e9:.1f} GB/s", flush=True)
    for kind in given.kinds.split(","):
        path = folder / f"model.{'gguf' if kind.startswith('q') else 'safetensors'}"
        start = time.perf_counter()
        made.write(path, given.family, kind, depth=given.depth)
        wrote = time.perf_counter() - start
        row: dict[str, Any] = {"size": path.stat().st_size, "write_seconds": wrote}
        one, other = folder / "streamed.pt", folder / "loaded.pt"
        limit = {"vram": given.vram} if given.vram and given.device != "cpu" else {}
        row["streamed"] = child("streamed", path, given, save=one, **limit)
        print(f"{kind}: {size(row['size'])}; streamed {told(row['streamed'])}", flush=True)
        if not given.no_loaded:
            row["loaded"] = child("loaded", path, given, save=other)
            print(f"  loaded {told(row['loaded'])}", flush=True)
            if one.exists() and other.exists():
                row["difference"] = compare(one, other)
                print(f"  difference {row['difference']}", flush=True)
        for file in (one, other, path):
            file.unlink(missing_ok=True)
        results["kinds"][kind] = row
    if not given.no_overflow:
        results["overflow"] = overflow(folder, given)
        for row in results["overflow"]:
            print(f"planted {row['planted']}: {row}", flush=True)
    return results


def told(row: dict[str, Any]) -> str:
    """One line of a measurement."""
    if "error" in row:
        return f"FAILED: {row['error']}\n{row.get('stderr', '')}"
    parts = [f"{row['seconds']:.2f} s ({row['cpu']:.1f} s CPU), peak {size(row['peak'])}"]
    if "own" in row:
        parts.append(f"of it own {size(row['own'])}, mapped {size(row['mapped'])}, before {size(row['base'])}")
        parts.append(f"first {row['first_seconds']:.2f} s, recorded {row['recorded_seconds']:.2f} s")
    if "rate" in row:
        parts.append(f"copied {size(row['copied'])} at {row['rate'] / 1e9:.1f} GB/s, out of turn {row['out_of_turn']}")
        parts.append(f"copies alone {row['copies_seconds']:.2f} s, {row['copies_rate'] / 1e9:.1f} GB/s")
    if "vram_reserved" in row:
        parts.append(f"GPU {size(row['vram_reserved'])} reserved, {size(row.get('vram_device', 0))} of the device")
    return "; ".join(parts)


def main() -> int:
    """Measure; or, as a child, one thing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--family", default="z_image_turbo")
    parser.add_argument("--kinds", default="bf16,q8_0,q4_k_m")
    parser.add_argument("--depth", type=int)
    parser.add_argument(
        "--vram", type=lambda t: int(float(t.upper().removesuffix("GB")) * (1e9 if "G" in t.upper() else 1))
    )
    parser.add_argument("--folder")
    parser.add_argument("--json")
    parser.add_argument("--no-loaded", action="store_true")
    parser.add_argument("--no-overflow", action="store_true")
    for hidden in ("mode", "file", "save"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="bfloat16", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.mode:
        print(json.dumps({"streamed": streamed, "loaded": loaded}[given.mode](given)))
        return 0
    with tempfile.TemporaryDirectory(prefix="smoke-", dir=given.folder) as folder:
        results = measure(given, Path(folder))
    target = given.json or (Path(os.environ["OUT"]) / "smoke.json" if os.environ.get("OUT") else None)
    if target:
        Path(target).write_text(json.dumps(results, indent=1), encoding="utf-8")
    failed = [k for k, row in results["kinds"].items() if "error" in row["streamed"]]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
