"""Reports in memory, with texts as hostile as a file can make them."""

from __future__ import annotations

from compatkit.vocabulary import Component, Finding, NotChecked, Place, Quantization, Report, Tensor

#: What a name or a metadata value may hold: each is refused or escaped by every format.
HOSTILE = [
    "\x1b[31mred\x1b[0m",
    "](javascript:alert(1))",
    "[x](javascript:alert(1))",
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "a\u202egnp.exe",
    "line\n# heading\r\n::error::forged",
    "]]><failure/>",
    "{{ 7*7 }}{% raw %}",
    "\udcff\x00\ufffe",
    "`|`` ```",
]


def component(source: str = "dit.safetensors", role: str = "diffusion", **changes: object) -> Component:
    """A component with a name, a tensor and a fact called as its source."""
    values: dict[str, object] = {
        "source": source, "format": "safetensors", "size": 1000, "header_bytes": 100, "role": role, "family": "some",
        "also": (), "layout": "native", "prefix": "", "quantization": Quantization("none", {"BF16": 1}),
        "parameters": 64, "key_groups": {source: 1}, "loads_as": {"comfyui": source}, "facts": {"hidden_size": source},
        "evidence": (f"{source} [8, 8]",), "tensors": {source: Tensor("BF16", (8, 8), 128)}, "title": source,
    }  # fmt: skip
    return Component(**{**values, **changes})  # type: ignore[arg-type]


def report(text: str = "plain", level: str = "error", verdict: str = "fail", places: bool = True) -> Report:
    """A report of two components, a finding and a check left out, with `text` everywhere that text from a file goes."""
    parts = (component(f"{text}.safetensors"), component(f"sub/{text}.gguf", "text_encoder", format="gguf"))
    finding = Finding(
        "encoder/width",
        level,  # type: ignore[arg-type]
        (0, 1),
        f"{text} takes 2560, {text} gives 2304",
        {"comfyui": f"{text} cannot be multiplied"},
        f"Use {text}.",
        {"context_dim": 2560, "output_width": 2304, text: text},
    )
    return Report(
        verdict,  # type: ignore[arg-type]
        ("diffusion", "text_encoder"),
        parts,
        (finding,),
        checked=("encoder/width", "encoder/kind"),
        not_checked=(NotChecked("host/disk", f"{text} is not checked"), NotChecked("vae/latent-space", text, True)),
        headline=f"{verdict} (diffusion, text encoder)",
        places={"": Place("stack.toml", 1), f"sub/{text}.gguf": Place("stack.toml", 7)} if places else {},
    )
