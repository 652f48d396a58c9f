"""Turns the tensors of a model into what each quantisation makes of them: the header, and the bytes of its markers.

    packed(example_shapes(grammar), "nvfp4") -> Packed(header, contents)

Every 2-D weight of a linear layer is packed, so that as little as possible is left to read widths from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, NamedTuple

from compatkit.headers.ggml import TYPES
from compatkit.vocabulary import Header, Tensor
from tests.support.files import SAFETENSORS_BITS

Shape = tuple[int, ...]
Rows = dict[str, tuple[str, Shape]]
#: Parts of names that are embeddings, which quantisers leave alone.
_EMBEDDINGS = ("embed_tokens", "shared", "relative_attention_bias", "embeddings")


class Packed(NamedTuple):
    """A packed header, and what stands in its markers."""

    header: Header
    contents: dict[str, bytes]

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """As `headers.small.read_small` reads: what is a hole is left out."""
        return {n: self.contents[n] for n in names if n in self.contents}


def header(rows: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, Any] | None = None) -> Header:
    """A safetensors header of these tensors."""
    tensors, at = {}, 0
    for name, (dtype, shape) in rows.items():
        size = prod(shape) * SAFETENSORS_BITS[dtype] // 8
        tensors[name] = Tensor(dtype, shape, size, at)
        at += size
    return Header("model.safetensors", "safetensors", at, 0, tensors, dict(metadata or {}))


def gguf(shapes: Mapping[str, Shape], kind: str, metadata: Mapping[str, Any] | None = None) -> Header:
    """A GGUF header whose 2-D weights are of one ggml type, where their rows divide; the rest is F32."""
    name, block, size = next(row for row in TYPES.values() if row[0] == kind)
    tensors, at = {}, 0
    for tensor, shape in shapes.items():
        fits = len(shape) == 2 and shape[-1] % block == 0
        nbytes = prod(shape) // block * size if fits else 4 * prod(shape)
        tensors[tensor] = Tensor(name if fits else "F32", shape, nbytes, at)
        at += nbytes
    return Header("model.gguf", "gguf", at, 0, tensors, dict(metadata or {}))


def linears(shapes: Mapping[str, Shape]) -> list[str]:
    """The weights a quantiser takes: 2-D, with sides its blocks divide, and no embedding."""
    return [
        n
        for n, s in shapes.items()
        if n.endswith(".weight") and len(s) == 2 and s[0] % 8 == 0 and s[1] % 64 == 0
        if not any(e in n for e in _EMBEDDINGS)
    ]


def packed(shapes: Mapping[str, Shape], scheme: str) -> Packed:
    """The model packed by one scheme."""
    rows: Rows = {n: ("BF16", s) for n, s in shapes.items()}
    contents: dict[str, bytes] = {}
    metadata: dict[str, str] = {}
    if scheme in _WHOLE:
        return Packed(header({n: (_WHOLE[scheme], s) for n, s in shapes.items()}), {})
    if scheme == "dfloat11":
        return Packed(header(_dfloat11(shapes)), {})
    for number, name in enumerate(linears(shapes)):
        out, into = shapes[name]
        module = name.removesuffix(".weight")
        kind = ("fp8_scaled", "nvfp4")[number % 2] if scheme == "mixed" else scheme
        del rows[name]
        new, marker = _LAYERS[kind](out, into)
        rows |= {f"{module}.{suffix}": row for suffix, row in new.items()}
        if marker is not None:
            text = json.dumps(marker).encode()
            rows[f"{module}.comfy_quant"] = ("U8", (len(text),))
            contents[f"{module}.comfy_quant"] = text
    if scheme == "fp8_scaled_old":
        rows["scaled_fp8"] = ("F8_E4M3", (2,))
    if scheme == "fp8_scaled_metadata":
        layers = {n.removesuffix(".weight"): {"format": "float8_e4m3fn"} for n in linears(shapes)}
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})
    return Packed(header(rows, metadata), contents)


def _dfloat11(shapes: Mapping[str, Shape]) -> Rows:
    """The 2-D weights of each block become one blob, named after the block."""
    rows: Rows = {}
    blocks: dict[str, int] = {}
    taken = set(linears(shapes))
    for name, shape in shapes.items():
        segments = name.split(".")
        index = next((i for i, s in enumerate(segments) if s.isdigit()), 0)
        if index and name in taken:
            block = ".".join(segments[: index + 1])
            blocks[block] = blocks.get(block, 0) + prod(shape)
        else:
            rows[name] = ("BF16", shape)
    for block, count in blocks.items():
        rows |= {
            f"{block}.luts": ("U8", (12, 256)),
            f"{block}.encoded_exponent": ("U8", (count // 4,)),
            f"{block}.sign_mantissa": ("U8", (count,)),
            f"{block}.output_positions": ("U32", (count // 8192 + 1,)),
            f"{block}.gaps": ("U8", (count // 50 + 1,)),
            f"{block}.split_positions": ("I64", (3,)),
        }
    return rows


_WHOLE = {"fp8": "F8_E4M3", "fp8_e5m2": "F8_E5M2"}
_ONE: tuple[str, Shape] = ("F32", ())
Layer = Callable[[int, int], tuple[Rows, dict[str, Any] | None]]


def _bnb4(kind: str) -> Layer:
    def rows(o: int, i: int) -> tuple[Rows, None]:
        return {
            "weight": ("U8", (o * i // 2, 1)),
            "weight.absmax": ("U8", (o * i // 64,)),
            "weight.quant_map": ("F32", (16,)),
            "weight.nested_absmax": ("F32", (max(1, o * i // 16384),)),
            "weight.nested_quant_map": ("F32", (256,)),
            f"weight.quant_state.bitsandbytes__{kind}": ("U8", (120,)),
        }, None

    return rows


def _svdquant(group: int, scales: str, more: Rows) -> Layer:
    def rows(o: int, i: int) -> tuple[Rows, None]:
        if o % 6 == 0 and o == 6 * i:  # modulation: AWQ
            wide = ("BF16", (i // 64, o))
            return {"qweight": ("I32", (o // 4, i // 2)), "wscales": wide, "wzeros": wide}, None
        return {
            "qweight": ("I8", (o, i // 2)),
            "wscales": (scales, (i // group, o)),
            "smooth_factor": ("BF16", (i,)),
            "smooth_factor_orig": ("BF16", (i,)),
            "proj_down": ("BF16", (i, 32)),
            "proj_up": ("BF16", (o, 32)),
            **more,
        }, None

    return rows


_INT8 = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}
_LAYERS: dict[str, Layer] = {
    "fp8_scaled_old": lambda o, i: ({"weight": ("F8_E4M3", (o, i)), "scale_weight": ("F32", (1,))}, None),
    "fp8_unnamed": lambda o, i: ({"weight": ("F8_E4M3", (o, i)), "weight_scale": _ONE}, None),
    "fp8_scaled_metadata": lambda o, i: ({"weight": ("F8_E4M3", (o, i)), "weight_scale": _ONE}, None),
    "fp8_scaled": lambda o, i: (
        {"weight": ("F8_E4M3", (o, i)), "weight_scale": _ONE, "input_scale": _ONE},
        {"format": "float8_e4m3fn"},
    ),
    "nvfp4": lambda o, i: (
        {
            "weight": ("U8", (o, i // 2)),
            "weight_scale": ("F8_E4M3", (o, i // 16)),
            "weight_scale_2": _ONE,
            "input_scale": _ONE,
        },
        {"format": "nvfp4"},
    ),
    "mxfp8": lambda o, i: ({"weight": ("F8_E4M3", (o, i)), "weight_scale": ("U8", (o, i // 32))}, {"format": "mxfp8"}),
    "int8_tensorwise": lambda o, i: ({"weight": ("I8", (o, i)), "weight_scale": ("F32", (o, 1))}, _INT8),
    "int8_unnamed": lambda o, i: ({"weight": ("I8", (o, i)), "weight_scale": ("F32", (o, 1))}, None),
    "int8_convrot": lambda o, i: (
        {"weight": ("I8", (o, i)), "weight_scale": ("F32", (o, 1))},
        {"convrot": True, "convrot_groupsize": 256},
    ),
    "convrot_w4a4": lambda o, i: (
        {"weight": ("I8", (o, i // 2)), "weight_scale": ("F32", (o,))},
        {"format": "convrot_w4a4", "convrot_groupsize": 256},
    ),
    "w4a8": lambda o, i: (
        {
            "weight": ("I8", (o, i // 2)),
            "weight_s_rel": ("F8_E4M3", (o, i // 16)),
            "weight_s_channel": ("F32", (o,)),
            "weight_codebook": ("F32", (16,)),
        },
        {"format": "asym_w4a8_int8", "group_size": 16, "convrot_groupsize": 256},
    ),
    "comfy_unlisted": lambda o, i: (
        {"weight": ("F8_E4M3", (o, i)), "weight_scale": _ONE},
        {"format": "mxfp6_of_tomorrow"},
    ),
    "bnb_nf4": _bnb4("nf4"),
    "bnb_fp4": _bnb4("fp4"),
    "bnb_int8": lambda o, i: (
        {"weight": ("I8", (o, i)), "SCB": ("F32", (o,)), "weight_format": ("U8", ())},
        None,
    ),
    "svdquant_int4": _svdquant(64, "BF16", {}),
    "svdquant_fp4": _svdquant(16, "F8_E4M3", {"wtscale": ("BF16", (1,))}),
    "gptq": lambda o, i: (
        {
            "qweight": ("I32", (i // 8, o)),
            "qzeros": ("I32", (max(1, i // 128), o // 8)),
            "scales": ("F16", (max(1, i // 128), o)),
            "g_idx": ("I32", (i,)),
        },
        None,
    ),
    "awq": lambda o, i: (
        {
            "qweight": ("I32", (i, o // 8)),
            "qzeros": ("I32", (max(1, i // 128), o // 8)),
            "scales": ("F16", (max(1, i // 128), o)),
        },
        None,
    ),
    "sdnq": lambda o, i: (
        {
            "weight": ("U8", (o * i // 2,)),
            "scale": ("BF16", (o, i // 64, 1)),
            "zero_point": ("BF16", (o, i // 64, 1)),
            "svd_up": ("BF16", (o, 32)),
            "svd_down": ("BF16", (32, i)),
        },
        None,
    ),
    "torchao": lambda o, i: ({"_weight_qdata": ("F8_E4M3", (o, i)), "_weight_scale": ("F32", (o, 1))}, None),
    "quanto": lambda o, i: ({"weight._data": ("I8", (o, i)), "weight._scale": ("BF16", (o, 1))}, None),
    "hqq": lambda o, i: (
        {
            "W_q": ("U8", (32, o * i // 64)),
            "scale": ("F16", (1, o * i // 64)),
            "zero": ("F16", (1, o * i // 64)),
            "nbits": ("I64", ()),
            "group_size": ("I64", ()),
            "shape": ("I64", (2,)),
            "axis": ("I64", ()),
        },
        None,
    ),
}

#: Every scheme this module can make, by the name it is made under.
SCHEMES = (*_WHOLE, "dfloat11", "mixed", *_LAYERS)
