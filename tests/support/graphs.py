"""ComfyUI workflows for tests: one set in the API's format, and the editor's format around any nodes and links."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any


def api(
    unet: str = "dit.gguf",
    clip: str = "encoder.gguf",
    vae: str = "vae.safetensors",
    *,
    clip_type: str = "lumina2",
    latent: str = "EmptySD3LatentImage",
    **sampler: Any,
) -> dict[str, Any]:
    """One sampler with a diffusion model, an encoder and a VAE of their own; GGUF files get the loaders for them."""
    of = "LoaderGGUF" if unet.endswith(".gguf") else "LOADER"
    unet_class = "UnetLoaderGGUF" if of == "LoaderGGUF" else "UNETLoader"
    clip_class = "CLIPLoaderGGUF" if clip.endswith(".gguf") else "CLIPLoader"
    settings = {"steps": 9, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "seed": 7, "denoise": 1.0}
    nodes = {
        "1": (unet_class, {"unet_name": unet}),
        "2": (clip_class, {"clip_name": clip, "type": clip_type}),
        "3": ("VAELoader", {"vae_name": vae}),
        "4": ("CLIPTextEncode", {"clip": ["2", 0], "text": "a lighthouse"}),
        "5": (latent, {"width": 1024, "height": 1024, "batch_size": 1}),
        "6": (
            "KSampler",
            {
                "model": ["1", 0],
                "positive": ["4", 0],
                "negative": ["4", 0],
                "latent_image": ["5", 0],
                **settings,
                **sampler,
            },
        ),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["3", 0]}),
        "8": ("SaveImage", {"images": ["7", 0]}),
    }
    return {number: {"class_type": cls, "inputs": inputs} for number, (cls, inputs) in nodes.items()}


def node(
    number: int,
    cls: str,
    values: Any = (),
    *,
    wires: dict[str, tuple[str, int]] | None = None,
    outputs: tuple[str, ...] = (),
    mode: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """A node of the editor. `wires` maps inputs to (type, link number); widgets are only values, as in older files."""
    inputs = [{"name": n, "type": kind, "link": link} for n, (kind, link) in (wires or {}).items()]
    out = [{"name": kind, "type": kind, "links": []} for kind in outputs]
    values = list(values) if isinstance(values, tuple) else values
    return {"id": number, "type": cls, "mode": mode, "inputs": inputs, "outputs": out, "widgets_values": values, **more}


def editor(nodes: list[dict[str, Any]], links: list[list[Any]], **more: Any) -> dict[str, Any]:
    """A workflow as the editor saves it."""
    return {"version": 0.4, "nodes": nodes, "links": links, **more}


def png(keyword: str, graph: dict[str, Any], kind: bytes = b"tEXt") -> bytes:
    """A picture of one pixel that carries a graph."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    text = json.dumps(graph).encode()
    body = {
        b"tEXt": keyword.encode() + b"\0" + text,
        b"zTXt": keyword.encode() + b"\0\0" + zlib.compress(text),
        b"iTXt": keyword.encode() + b"\0\1\0\0\0" + zlib.compress(text),
    }[kind]
    pixel = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + pixel + chunk(kind, body) + chunk(b"IEND", b"")
