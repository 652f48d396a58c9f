"""Families that no one has: two hundred and fifty made from templates, to see what knowing many more costs.

They are no strangers to the real ones: three templates are spelled like what people publish (a stream of blocks, a
double stream, a convolutional VAE), every family has names and sizes of its own, and every third shares its telling
names with another one, so that the index alone cannot refuse it.
"""

from __future__ import annotations

from pathlib import Path

#: How many.
COUNT = 250

_STREAM = """\
id: made_stream_{n}
role: diffusion
released: "2030-01"
tensors:
  {stem}_embedder.proj: lin(hidden, patch)
  "{block}.{{layers}}":
    attn: {{qkv: "lin(3*hidden, hidden)", proj: "lin(hidden, hidden)", "{{q,k}}_norm": scale(head)}}
    mlp: {{fc1: "lin(ffn, hidden)", fc2: "lin(hidden, ffn)"}}
    "norm{{1,2}}": norm(hidden)
  final_layer.linear: lin(patch, hidden)
where: {{hidden: {hidden}, patch: {patch}}}
"""
_DOUBLE = """\
id: made_double_{n}
role: diffusion
released: "2030-01"
parts:
  "stream(c)":
    attn: {{qkv: "lin(3*c, c)", proj: "lin(c, c)", "norm.{{query,key}}_norm.scale": [head]}}
    mlp: {{0: "lin(4*c, c)", 2: "lin(c, 4*c)"}}
tensors:
  "{{img,txt}}_in_{stem}": lin(hidden, {patch})
  "double_{block}.{{depth}}": {{img: stream(hidden), txt: stream(hidden)}}
  "single_{block}.{{depth_single}}": {{linear1: "lin(7*hidden, hidden)", linear2: "lin(hidden, 5*hidden)"}}
  final_{stem}: lin({patch}, hidden)
where: {{hidden: {hidden}}}
layouts:
  diffusers:
    - split: {{from: "**.attn.qkv", to: ["**.attn.to_q", "**.attn.to_k", "**.attn.to_v"]}}
    - rename:
        "double_{block}.{{i}}": "transformer_{block}.{{i}}"
        "single_{block}.{{i}}": "single_transformer_{block}.{{i}}"
"""
_VAE = """\
id: made_{n}_vae
role: vae
released: "2030-01"
optional:
  encoder: {{"encoder.{stem}.{{downs}}": "conv(c, c, 3)", encoder.conv_out: "conv(2*z, c, 3)"}}
  decoder: {{"decoder.{stem}.{{ups}}": "conv(c, c, 3)", decoder.conv_in: "conv(c, z, 3)"}}
where: {{z: {patch}, c: {hidden}}}
"""
_TEMPLATES = (_STREAM, _DOUBLE, _VAE)


def write(folder: Path, count: int = COUNT) -> None:
    """Write `count` family files into a rules folder."""
    target = folder / "families" / "generated"
    target.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        shared = n % 3 == 2  # the names of the family before it, at another size
        own = n - 1 if shared else n
        text = _TEMPLATES[(own // 3) % 3].format(
            n=n, stem=f"s{own}" if own % 2 else "x", block=f"blocks_{own}" if own % 2 else "blocks",
            hidden=512 + 64 * n, patch=4 + n,
        )  # fmt: skip
        (target / f"made_{n}.yaml").write_text(text, encoding="utf-8")
