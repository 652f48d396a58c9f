"""How the rows of one stored tensor become values: which bytes are needed, and what turns them into a weight.

A `Coding` is made from the header alone; decoding is torch, on whatever device the bytes were brought to. So the
same code serves a view of the file on the CPU and a copy of its packed bytes on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from compatkit.headers.ggml import TYPES
from compatkit.smoke import ggml
from compatkit.vocabulary import Tensor

if TYPE_CHECKING:
    import torch

_BLOCKS = {name for name, values, _ in TYPES.values() if values > 1}
#: File dtype -> torch dtype, where torch holds the values as they are.
PLAIN = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_STEP = 1 << 22

#: The values of the 16 codes of fp4 (E2M1).
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


class Undecodable(Exception):
    """A weight whose packing cannot be unpacked here; the text says which and why."""


class Span(NamedTuple):
    """Bytes of one stored tensor: `length` of them from `offset` within it."""

    tensor: str
    offset: int
    length: int


class Coding(Struct, frozen=True):
    """How some rows of a weight are stored.

    `spans` are the bytes needed; `decode(bytes, out)` takes one uint8 tensor for each, in order, on one device, and
    writes the values into the flat `out`. `direct` names the torch dtype whose values the first span already is, ""
    where they must be computed.
    """

    spans: tuple[Span, ...]
    decode: Callable[[list[torch.Tensor], torch.Tensor], None]
    direct: str = ""


def coding(
    tensors: Mapping[str, Tensor],
    source: str,
    shape: tuple[int, ...],
    start: int = 0,
    rows: int | None = None,
    *,
    read: Callable[[str], bytes] | None = None,
) -> Coding:
    """How rows `start` … `start + rows` (all: None) of the weight `source` of logical `shape` are stored.

    `read` gives the bytes of a small tensor, for packings that say in one how they are packed.

    Raises Undecodable for a packing that is not known here, or whose sizes do not fit `shape`.
    """
    tensor = tensors.get(source)
    stem = source.removesuffix(".weight")
    if tensor is None:
        raise Undecodable(f"{source} is not in the file under that name")
    total = shape[0] if shape else 1
    count = total - start if rows is None else rows
    if start < 0 or count < 0 or start + count > total:
        raise Undecodable(f"{source} has {total} rows, not {start + count}")
    cut = _Cut(source, tensor, shape, start, count)
    beside = {
        n[len(stem) + 1 :]: t for n, t in _beside(tensors, stem) if n != source and n.rpartition(".")[2] != "bias"
    }
    if tensor.dtype in _BLOCKS:
        return _blocks(cut)
    if "weight_scale_2" in beside and tensor.dtype in ("U8", "F4"):
        return _nvfp4(cut, stem, beside)
    state = next((n for n in beside if n.startswith("weight.quant_state.bitsandbytes__")), "")
    if state:
        return _bnb4(cut, stem, beside, _json(read, f"{stem}.{state}"))
    if tensor.dtype == "I8":
        return _int8(cut, stem, beside, _json(read, f"{stem}.comfy_quant") if "comfy_quant" in beside else {})
    if tensor.dtype in _FP8:
        return _fp8(cut, stem, beside)
    if tensor.dtype in PLAIN and tensor.elements == prod(shape):
        return _plain(cut)
    raise Undecodable(f"{source}: {tensor.dtype} {list(tensor.shape)} cannot be unpacked here")


class _Cut(NamedTuple):
    """Some rows of a stored weight."""

    source: str
    tensor: Tensor
    shape: tuple[int, ...]
    start: int
    rows: int

    @property
    def width(self) -> int:
        """Values in a row."""
        return prod(self.shape[1:])

    def span(self) -> Span:
        """The bytes of these rows, where every row has as many."""
        total = self.shape[0] if self.shape else 1
        if total and self.tensor.nbytes % total:
            raise Undecodable(f"{self.source}: {self.tensor.nbytes} bytes do not divide into {total} rows")
        size = self.tensor.nbytes // total if total else 0
        return Span(self.source, self.start * size, self.rows * size)


def _beside(tensors: Mapping[str, Tensor], stem: str) -> Iterable[tuple[str, Tensor]]:
    for suffix in _COMPANIONS:
        found = tensors.get(f"{stem}.{suffix}")
        if found is not None:
            yield f"{stem}.{suffix}", found


_COMPANIONS = (
    "weight_scale", "weight_scale_2", "scale_weight", "pre_quant_scale", "comfy_quant", "SCB", "weight.absmax",
    "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", "weight.quant_state.bitsandbytes__nf4",
    "weight.quant_state.bitsandbytes__fp4", "scale", "weight_s_rel",
)  # fmt: skip


def _json(read: Callable[[str], bytes] | None, name: str) -> dict[str, Any]:
    try:
        found = json.loads(read(name)) if read else {}
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def _typed(raw: torch.Tensor, dtype: str) -> torch.Tensor:
    """Bytes as values; copied where they do not lie at a multiple of the value's size."""
    import torch

    kind = getattr(torch, PLAIN.get(dtype) or _FP8.get(dtype) or "uint8")
    if raw.data_ptr() % kind.itemsize:
        raw = raw.clone()
    return raw.view(kind)


def _numbers(raw: torch.Tensor, dtype: str) -> torch.Tensor:
    """A companion's values as float32, flat."""
    return e4m3(raw) if dtype == "F8_E4M3" else _typed(raw, dtype).float()


def _plain(cut: _Cut) -> Coding:
    def decode(parts: list[torch.Tensor], out: torch.Tensor) -> None:
        out.copy_(_typed(parts[0], cut.tensor.dtype))

    return Coding((cut.span(),), decode, PLAIN[cut.tensor.dtype])


def _blocks(cut: _Cut) -> Coding:
    kind = cut.tensor.dtype
    if kind not in ggml.FORMATS:
        raise Undecodable(f"{cut.source}: {kind} is a type that the gguf package does not unpack")
    values, nbytes = ggml.SIZES[kind]
    if len(cut.shape) > 1 and cut.width % values:
        raise Undecodable(f"{cut.source}: a row of {cut.width} values is no whole number of {kind} blocks")
    if cut.tensor.nbytes * values != prod(cut.shape) * nbytes:
        raise Undecodable(f"{cut.source}: {cut.tensor.nbytes} bytes of {kind} are no {list(cut.shape)}")

    def decode(parts: list[torch.Tensor], out: torch.Tensor) -> None:
        ggml.unpack(parts[0], kind, out)

    return Coding((cut.span(),), decode)


def e4m3(raw: torch.Tensor) -> torch.Tensor:
    """The values of float8_e4m3fn bytes as float32: by their bits, as torch's own conversion is far slower on a CPU."""
    import torch

    if raw.device.type != "cpu":
        return raw.view(torch.float8_e4m3fn).float()
    wide = raw.to(torch.int16)
    # the same sign, exponent and mantissa in bfloat16, whose exponent counts from 127 instead of 7
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 4)
    values = bits.view(torch.bfloat16).float().mul_(2.0**120)
    nan = (wide & 0x7F) == 0x7F
    return values.masked_fill_(nan, float("nan")) if bool(nan.any()) else values


def _e5m2(raw: torch.Tensor) -> torch.Tensor:
    import torch

    return (raw.to(torch.int16) << 8).view(torch.float16).float()


def _scaled(cut: _Cut, spans: tuple[Span, ...], scales: Tensor | None, values: Any) -> Coding:
    """Values times one scale, or one for each row, which the second span holds."""
    wide = max(1, cut.width)

    def decode(parts: list[torch.Tensor], out: torch.Tensor) -> None:
        raw, into = parts[0].view(cut.rows, -1), out.view(cut.rows, -1)
        scale = _numbers(parts[1], scales.dtype) if scales is not None else None
        step = max(1, _STEP // wide)
        for at in range(0, cut.rows, step):
            made = values(raw[at : at + step])
            if scale is not None:
                made = made.mul_(scale[at : at + step, None] if scale.numel() > 1 else scale)
            into[at : at + step].copy_(made)

    return Coding(spans, decode)


def _row_span(name: str, scales: Tensor, cut: _Cut) -> Span:
    """The part of a companion that belongs to these rows: all of a single value."""
    if scales.elements == 1:
        return Span(name, 0, scales.nbytes)
    if scales.elements != cut.shape[0]:
        raise Undecodable(f"{name}: {scales.elements} scales for {cut.shape[0]} rows")
    size = scales.nbytes // scales.elements
    return Span(name, cut.start * size, cut.rows * size)


def _fp8(cut: _Cut, stem: str, beside: Mapping[str, Tensor]) -> Coding:
    values = e4m3 if cut.tensor.dtype == "F8_E4M3" else _e5m2
    name = next((n for n in ("weight_scale", "scale_weight") if n in beside), "")
    if not name:
        return _scaled(cut, (cut.span(),), None, values)
    scales = beside[name]
    if scales.dtype in ("U8", "F8_E8M0") and scales.elements > 1:
        return _mxfp8(cut, f"{stem}.{name}", scales)
    if scales.dtype not in ("F32", "F16", "BF16", "F64"):
        raise Undecodable(f"{cut.source}: scales of {scales.dtype} {list(scales.shape)}")
    return _scaled(cut, (cut.span(), _row_span(f"{stem}.{name}", scales, cut)), scales, values)


def _int8(cut: _Cut, stem: str, beside: Mapping[str, Tensor], marker: Mapping[str, Any]) -> Coding:
    if marker.get("convrot") or (marker.get("params") or {}).get("convrot"):
        raise Undecodable(f"{cut.source}: rotated int8 (convrot) is not unpacked here")
    name = next((n for n in ("weight_scale", "SCB") if n in beside), "")
    if not name or "weight_s_rel" in beside or cut.tensor.elements != prod(cut.shape):
        raise Undecodable(f"{cut.source}: int8 of a packing that is not unpacked here")
    scales, factor = beside[name], 1 / 127 if name == "SCB" else 1.0

    def values(raw: torch.Tensor) -> torch.Tensor:
        import torch

        return raw.view(torch.int8).float().mul_(factor)

    return _scaled(cut, (cut.span(), _row_span(f"{stem}.{name}", scales, cut)), scales, values)


def untile(raw: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Block scales out of cuBLAS's tiles of 128 rows by 4 columns: bytes -> [rows, columns].

    In a tile, the scale of row 32 a + b and column c stands at byte 16 b + 4 a + c. Source: NVIDIA's cuBLAS
    documentation, "1D block scaling factors layout". Raises Undecodable where the bytes are not that many.
    """
    down, across = -(-rows // 128), -(-columns // 4)
    if raw.numel() != down * across * 512:
        if raw.numel() == rows * columns:
            return raw.view(rows, columns)
        raise Undecodable(f"{raw.numel()} block scales do not make {rows} x {columns}")
    tiles = raw.view(down, across, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(down * 128, across * 4)[:rows, :columns]


def _mxfp8(cut: _Cut, name: str, scales: Tensor) -> Coding:
    columns = cut.width // 32

    def decode(parts: list[torch.Tensor], out: torch.Tensor) -> None:
        exponents = untile(parts[1], cut.shape[0], columns)[cut.start : cut.start + cut.rows]
        factors = (exponents.float() - 127).exp2_()
        values = e4m3(parts[0]).view(cut.rows, columns, 32).mul_(factors[:, :, None])
        out.copy_(values.flatten())

    return Coding((cut.span(), Span(name, 0, scales.nbytes)), decode)


def _nvfp4(cut: _Cut, stem: str, beside: Mapping[str, Tensor]) -> Coding:
    if "weight_scale" not in beside or cut.tensor.nbytes * 2 != prod(cut.shape) or len(cut.shape) != 2:
        raise Undecodable(f"{cut.source}: nvfp4 with sizes that do not fit {list(cut.shape)}")
    if "pre_quant_scale" in beside:
        raise Undecodable(f"{cut.source}: nvfp4 with pre_quant_scale is not unpacked here")
    blocks, whole = beside["weight_scale"], beside["weight_scale_2"]
    columns = cut.width // 16

    def decode(parts: list[torch.Tensor], out: torch.Tensor) -> None:
        import torch

        table = torch.tensor(_E2M1, device=out.device)
        scales = e4m3(untile(parts[1], cut.shape[0], columns).contiguous())[cut.start : cut.start + cut.rows]
        scales = scales * _numbers(parts[2], whole.dtype)
        raw, into = parts[0].view(cut.rows, -1), out.view(cut.rows, -1)
        step = max(1, _STEP // max(1, cut.width))
        for at in range(0, cut.rows, step):
            codes = raw[at : at + step]
            # the first of two values stands in the high half
            pairs = torch.stack((codes >> 4, codes & 15), dim=-1).view(len(codes), columns, 16)
            into[at : at + step].copy_((table[pairs.int()] * scales[at : at + step, :, None]).flatten(1))

    spans = (
        cut.span(),
        Span(f"{stem}.weight_scale", 0, blocks.nbytes),
        Span(f"{stem}.weight_scale_2", 0, whole.nbytes),
    )
    return Coding(spans, decode)


def _bnb4(cut: _Cut, stem: str, beside: Mapping[str, Tensor], state: Mapping[str, Any]) -> Coding:
    """bitsandbytes' four-bit formats: codes of a table of 16, in blocks with one scale, itself packed where nested."""
    size = state.get("blocksize", 64)
    absmax, table = beside.get("weight.absmax"), beside.get("weight.quant_map")
    if absmax is None or table is None or not isinstance(size, int) or cut.tensor.nbytes * 2 < prod(cut.shape):
        raise Undecodable(f"{cut.source}: four-bit weights without their scales")
    nested = [n for n in ("weight.nested_absmax", "weight.nested_quant_map") if n in beside]
    first, count = cut.start * cut.width, cut.rows * cut.width
    if first % size:
        raise Undecodable(f"{cut.source}: rows from {cut.start} do not start at a block of {size}")
    low, high = first // size, -(-(first + count) // size)
    spans = [Span(cut.source, first // 2, -(-count // 2)), Span(f"{stem}.weight.quant_map", 0, table.nbytes)]
    spans.append(Span(f"{stem}.weight.absmax", 0, absmax.nbytes))
    spans += [Span(f"{stem}.{n}", 0, beside[n].nbytes) for n in nested]
    inner, offset = int(state.get("nested_blocksize", 256)), float(state.get("nested_offset", 0.0))

    def decode(parts: list[torch.Tensor], out: torch.Tensor) -> None:
        import torch

        codes, values = parts[0], _numbers(parts[1], table.dtype)
        if nested:
            outer, steps = _typed(parts[3], "F32"), _typed(parts[4], "F32")
            packed = parts[2][low:high].int()
            at = torch.arange(low, high, device=out.device) // inner
            scales = steps[packed] * outer[at] + offset
        else:
            scales = _numbers(parts[2], absmax.dtype)[low:high]
        pairs = values[torch.stack((codes >> 4, codes & 15), dim=-1).flatten()[:count].int()]
        whole = scales.repeat_interleave(size)[:count]
        out.copy_(pairs * whole)

    return Coding(tuple(spans), decode)
