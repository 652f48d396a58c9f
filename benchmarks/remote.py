"""Requests and bytes for files behind HTTP, counted by the server, against what the project holds itself to.

    python -m benchmarks.remote [--latency SECONDS]

A range server and one like the Hub run in this process; the files are sparse, their headers as long as the real ones.
Every row is a process of its own: `compatkit inspect` or `check`. The factor is bytes sent by header bytes. At the end
a repository is read from a server that takes its time (0.25 s for every request unless --latency says otherwise): the
wall time, less what the same command takes without a network, against latency x (requests / connections).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from compatkit.headers.sparse import write_gguf, write_safetensors
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from tests.support.servers import Repo, Server, hub_server, range_server

ROOT = Path(__file__).resolve().parents[1]
ENCODER = {
    "general.architecture": "qwen3",
    "qwen3.block_count": 36,
    "qwen3.embedding_length": 2560,
    "qwen3.feed_forward_length": 9728,
    "qwen3.attention.head_count": 32,
    "qwen3.attention.head_count_kv": 8,
    "qwen3.attention.key_length": 128,
}
TOKENS = 151_936
#: Connections that are open to one server at most, and how slow the slow one is.
CONNECTIONS = 16
SLOW = 0.25


def files(folder: Path) -> None:
    """The files of the table."""
    knowledge = load()

    def shapes(family: str, layout: str | None = None) -> dict[str, tuple[int, ...]]:
        return example_shapes(knowledge.grammar(family), layout)

    dit = shapes("z_image_turbo")
    write_safetensors(folder / "dit.safetensors", dit)
    write_gguf(folder / "dit.gguf", dit, "Q5_K", {"general.architecture": "lumina2"})
    write_gguf(folder / "encoder.gguf", shapes("qwen3_4b", "gguf"), "Q4_K", ENCODER, TOKENS)
    write_safetensors(folder / "encoder.safetensors", shapes("qwen3_4b"))
    write_safetensors(folder / "vae.safetensors", shapes("flux1_vae"))
    write_safetensors(folder / "lora.safetensors", adapter(dit))
    checkpoint = {f"model.diffusion_model.{n}": s for n, s in shapes("sdxl").items()}
    checkpoint |= {f"first_stage_model.{n}": s for n, s in shapes("sd15_vae").items()}
    checkpoint |= {f"conditioner.embedders.1.model.{n}": s for n, s in shapes("clip_g", "open_clip").items()}
    checkpoint |= {f"conditioner.embedders.0.transformer.{n}": s for n, s in shapes("clip_l").items()}
    write_safetensors(folder / "checkpoint.safetensors", checkpoint, "F16")


def adapter(base: Mapping[str, tuple[int, ...]], rank: int = 32) -> dict[str, tuple[int, ...]]:
    """A LoRA on every matrix of the base's main blocks, as trainers write it."""
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in base.items():
        if name.startswith("layers.") and len(shape) == 2:
            module = f"diffusion_model.{name.removesuffix('.weight')}"
            out |= {f"{module}.lora_A.weight": (rank, shape[1]), f"{module}.lora_B.weight": (shape[0], rank)}
    return out


def repository(root: Path) -> None:
    """A diffusers folder of 48 + 11 + 1 files."""
    index: dict[str, object] = {"_class_name": "ZImagePipeline"}
    for name, cls, family, layout, stem, shards in (
        ("transformer", "ZImageTransformer2DModel", "z_image_turbo", "diffusers", "diffusion_pytorch_model", 48),
        ("text_encoder", "Qwen3Model", "qwen3_4b", "hf", "model", 11),
        ("vae", "AutoencoderKL", "flux1_vae", "diffusers", "diffusion_pytorch_model", 1),
    ):
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps({"_class_name": cls}))
        index[name] = ["diffusers", cls]
        shapes = list(example_shapes(load().grammar(family), layout).items())
        weight_map: dict[str, str] = {}
        for number in range(shards):
            file = f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else f"{stem}.safetensors"
            part = dict(shapes[number::shards])
            write_safetensors(root / name / file, part)
            weight_map |= dict.fromkeys(part, file)
        if shards > 1:
            (root / name / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (root / "model_index.json").write_text(json.dumps(index))


def run(env: Mapping[str, str], *arguments: str) -> tuple[dict[str, object], float]:
    """One command's JSON, and its wall seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "compatkit", *arguments, "--format", "json"]
    done = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(done.stdout + done.stderr)
    document: dict[str, object] = json.loads(done.stdout)
    return document, time.perf_counter() - start


def row(name: str, server: Server, document: dict[str, object], seconds: float, most: str) -> None:
    """Prints one line and forgets what the server counted."""
    components = document["components"]
    assert isinstance(components, list)
    header = sum({c["source"]: c["header_bytes"] for c in components}.values())
    share = f"{server.sent / header:.2f}x" if header else "-"
    counts = f"{len(server.log):4} requests {server.sent:9,} bytes {share:>6} {server.at_once:3} at once"
    print(f"{name:34} {counts} {seconds:5.2f} s   at most {most}")
    server.log.clear()
    server.at_once = 0


def main() -> None:
    """Print the table."""
    latency = float(sys.argv[2]) if sys.argv[1:2] == ["--latency"] else 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files(folder)
        repository(folder / "repo")
        base = {**os.environ, "PYTHONPATH": str(ROOT)}
        with range_server(folder, latency) as server:
            for file, options, most in (
                ("dit.safetensors", (), "1 request, 131,072 bytes"),
                ("checkpoint.safetensors", (), "2 requests, 1.1x"),
                ("dit.gguf", (), "1 request"),
                ("encoder.gguf", (), "1 request, 131,072 bytes"),
                ("encoder.gguf", ("--full",), "1.1x"),
            ):
                env = {**base, "COMPATKIT_CACHE": "off"}
                document, seconds = run(env, "inspect", server.url(file), *options)
                row(" ".join((file, *options)), server, document, seconds, most)
            env = {**base, "COMPATKIT_CACHE": str(folder / "cache")}
            names = ("dit.safetensors", "encoder.safetensors", "vae.safetensors", "lora.safetensors")
            urls = [server.url(n) for n in names]
            for which, most in (("first", "500,000 bytes"), ("second", "0 bytes but revalidation")):
                document, seconds = run(env, "check", *urls)
                row(f"DiT, encoder, VAE, LoRA: {which} run", server, document, seconds, most)
        with hub_server({"org/repo": Repo(folder / "repo")}, latency=latency) as hub:
            env = {**base, "COMPATKIT_CACHE": str(folder / "cache2"), "HF_ENDPOINT": hub.endpoint}
            for which, most in (("first", "64 requests"), ("second", "0 bytes but revalidation")):
                document, seconds = run(env, "check", "hf://org/repo", "--runtime", "diffusers")
                row(f"60-shard repository, {which} run", hub, document, seconds, most)
        slow(folder, latency or SLOW)


def slow(folder: Path, latency: float) -> None:
    """Prints how long a repository of 60 shards takes behind a slow server."""
    base = {**os.environ, "PYTHONPATH": str(ROOT), "COMPATKIT_CACHE": "off"}
    _, alone = run(base, "check", str(folder / "repo"), "--runtime", "diffusers")
    with hub_server({"org/repo": Repo(folder / "repo")}, latency=latency) as hub:
        env = {**base, "HF_ENDPOINT": hub.endpoint}
        _, seconds = run(env, "check", "hf://org/repo", "--runtime", "diffusers")
        ideal = latency * len(hub.log) / CONNECTIONS
        factor = (seconds - alone) / ideal
        counts = f"{len(hub.log)} requests, {hub.at_once} at once, {latency:g} s each"
        print(f"60 shards, slow server: {counts}: {seconds:.2f} s, of which {alone:.2f} s are the command itself")
        print(f"  {factor:.1f} x latency x (requests / {CONNECTIONS} connections)   at most 3.0")


if __name__ == "__main__":
    main()
