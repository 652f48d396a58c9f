"""Runs the benchmarks that take about a minute or less, each in a process of its own.

    python -m benchmarks [NAME…]

`readers` is not among them unless it is named. Those that need the reference data say so where there is none.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHEAP = ("identify", "check", "sets", "cases", "scan")


def main() -> int:
    """Run them in turn; the exit status is that of the worst."""
    known = sorted(
        p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in ("__init__", "__main__", "generated")
    )
    names = sys.argv[1:] or list(CHEAP)
    odd = [n for n in names if n not in known]
    if odd:
        print(f"there is no benchmark {odd[0]!r} (known: {', '.join(known)})", file=sys.stderr)
        return 2
    worst = 0
    for name in names:
        print(f"== {name} ==", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, check=False)
        worst = max(worst, abs(done.returncode))
        print(flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
