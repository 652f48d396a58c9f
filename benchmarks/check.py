"""Whole-process cost of `compatkit check DiT.gguf encoder.gguf`, against floors and a peer in the same run.

The encoder's header holds 151,936 tokens and as many merges, as Qwen3's does. Printed: medians of wall time and peak
memory, and the ratios the project holds itself to: at most 4x `python -c "import click"`, under 40 MB, at least 50x
faster than `gguf-dump`.

    python -m benchmarks.check
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from compatkit.headers.sparse import write_gguf
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load

ROUNDS = 11


#: Run by a bare interpreter: a child's peak memory counts from what its parent held at the fork.
MEASURE = """
import os, sys, time
out = os.open(os.devnull, os.O_WRONLY)
start = time.perf_counter()
silent = [(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
usage = os.wait4(pid, 0)[2]
print(1000 * (time.perf_counter() - start), usage.ru_maxrss)
"""


def timed(command: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Wall milliseconds and peak resident megabytes of one run."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", MEASURE, *command], env=env, capture_output=True, text=True, check=True
    )
    wall, peak = map(float, done.stdout.split())
    return wall, peak / (1024 if sys.platform != "darwin" else 1024 * 1024)


def medians(commands: dict[str, list[str]], env: dict[str, str], rounds: int) -> dict[str, tuple[float, float]]:
    """Each command `rounds` times in turn (after one warm-up), so that a drift of the machine hits all alike."""
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for round_ in range(rounds + 1):
        for name, command in commands.items():
            row = timed(command, env)
            if round_:
                rows[name].append(row)
    return {n: (statistics.median(t for t, _ in r), max(m for _, m in r)) for n, r in rows.items()}


def main() -> None:
    """Print the table."""
    knowledge = load()
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        dit, encoder = Path(folder) / "dit.gguf", Path(folder) / "encoder.gguf"
        write_gguf(dit, example_shapes(knowledge.grammar("z_image_turbo")), "Q5_K", {"general.architecture": "lumina2"})
        shapes = example_shapes(knowledge.grammar("qwen3_4b"), "gguf")
        write_gguf(encoder, shapes, "Q4_K", {"general.architecture": "qwen3"}, 151_936)
        python = sys.executable
        commands = {
            "python -c pass": [python, "-c", "pass"],
            "python -c 'import click'": [python, "-c", "import click"],
            "compatkit check DiT encoder": [python, "-m", "compatkit", "check", str(dit), str(encoder)],
            "compatkit inspect encoder": [python, "-m", "compatkit", "inspect", str(encoder)],
        }
        cost = medians(commands, env, ROUNDS)
        dump = shutil.which("gguf-dump", path=f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}")
        if dump:
            cost["gguf-dump encoder"] = medians({"d": [dump, str(encoder)]}, env, 1)["d"]
    for name, (wall, memory) in cost.items():
        print(f"{name:30} {wall:9.1f} ms {memory:8.1f} MB")
    check, click = cost["compatkit check DiT encoder"], cost["python -c 'import click'"]
    print(f"check / import click: {check[0] / click[0]:.2f}x (at most 4); peak memory {check[1]:.1f} MB (under 40)")
    if dump:
        ratio = cost["gguf-dump encoder"][0] / cost["compatkit inspect encoder"][0]
        print(f"gguf-dump / inspect, encoder alone: {ratio:.0f}x (at least 50)")


if __name__ == "__main__":
    main()
