"""How fast `pull` brings files to a disk, and what an interruption costs.

    python -m benchmarks.pull [--size MB]

Two files of random bytes (64 MB each unless --size says otherwise) from servers in this process: a plain range server,
and one like the Hub. Seconds are of a whole process each; the baseline reads the same files one after the other with
urllib and hashes them. The last rows kill a pull half way and count what the next one asks for again.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.support.servers import Repo, Server, hub_server, range_server

ROOT = Path(__file__).resolve().parents[1]


def lock(folder: Path, where: Callable[[str], str], path: Path) -> None:
    """A stack.lock that names the files of a folder."""
    sources = []
    for file in sorted(folder.iterdir()):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        entry = {"name": file.name, "source": where(file.name), "size": file.stat().st_size, "sha256": digest}
        sources.append({"asked": where(file.name), "source": where(file.name), "role": "vae", "files": [entry]})
    path.write_text(json.dumps({"lock": 1, "verdict": "pass", "sources": sources}))


def pulling(path: Path, to: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """A pull that has begun."""
    command = [sys.executable, "-m", "compatkit", "pull", str(path), "--to", str(to), "--layout", "flat"]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done(running: subprocess.Popen[str]) -> None:
    """Wait for a pull; exits with what it said if it failed."""
    out, err = running.communicate()
    if running.returncode:
        raise SystemExit(out + err)


def kept(folder: Path) -> int:
    """Bytes of unfinished files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob(".*.part")) if folder.is_dir() else 0


def table(name: str, server: Server, path: Path, to: Path, env: dict[str, str], total: int) -> None:
    """The rows of one kind of server."""
    for which in ("first run", "second run"):
        server.log.clear()
        start = time.perf_counter()
        done(pulling(path, to, env))
        seconds = time.perf_counter() - start
        print(f"{name}, {which:11} {seconds:6.2f} s {len(server.log):4} requests {server.sent / 1e6:8.1f} MB sent")
    again = to.with_name(f"{to.name}-killed")
    running = pulling(path, again, env)
    while kept(again) < total // 3 and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(0.5)
    had = kept(again)
    server.log.clear()
    done(pulling(path, again, env))
    print(f"{name}, killed with {had / 1e6:.1f} MB on the disk: the next run was sent {server.sent / 1e6:.1f} MB")


def main() -> None:
    """Print the table."""
    size = int(sys.argv[2]) if sys.argv[1:2] == ["--size"] else 64
    base = {**os.environ, "PYTHONPATH": str(ROOT), "COMPATKIT_CACHE": "off"}
    with tempfile.TemporaryDirectory() as name:
        folder, served = Path(name), Path(name) / "served"
        served.mkdir()
        for file in ("a.bin", "b.bin"):
            (served / file).write_bytes(os.urandom(size << 20))
        total = 2 * (size << 20)
        with range_server(served) as server:
            start = time.perf_counter()
            for file in ("a.bin", "b.bin"):
                with urllib.request.urlopen(server.url(file)) as answer:
                    data = answer.read()
                (folder / f"plain-{file}").write_bytes(data)
                hashlib.sha256(data).hexdigest()
            print(f"urllib, one after the other {time.perf_counter() - start:6.2f} s for {total / 1e6:.1f} MB")
            lock(served, server.url, folder / "http.lock")
            table("web server", server, folder / "http.lock", folder / "http", base, total)
        repo = Repo(served)
        with hub_server({"org/repo": repo}) as hub:
            lock(served, lambda file: f"hf://org/repo@{repo.commit}/{file}", folder / "hub.lock")
            env = {**base, "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
            table("Hub", hub, folder / "hub.lock", folder / "hub", env, total)


if __name__ == "__main__":
    main()
