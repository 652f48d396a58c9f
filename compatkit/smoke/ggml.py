"""The block formats of ggml, unpacked with torch on whatever device the bytes are.

Each format is one function from a matrix of bytes, a block in each row, to the values of those blocks in float32. The
layouts are those the `gguf` package documents and unpacks itself (its version 0.19.0 is the oracle of the tests); here
they exist a second time because a stream needs them on a GPU, and for less than a gigabyte of a weight at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from compatkit.headers.ggml import TYPES

if TYPE_CHECKING:
    import torch

#: name -> (values, bytes) of a block
SIZES = {name: (values, nbytes) for name, values, nbytes in TYPES.values()}

#: Values unpacked at a time: what is needed beside the result stays a few dozen megabytes.
CHUNK = 1 << 22

#: What the 16 codes of IQ4_NL and IQ4_XS stand for.
_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _half(raw: torch.Tensor) -> torch.Tensor:
    """Two bytes of every block as float32, one column."""
    import torch

    return raw.contiguous().view(torch.float16).float()


def _nibbles(raw: torch.Tensor) -> torch.Tensor:
    """(n, k) bytes -> (n, 2k): all low halves, then all high ones."""
    import torch

    return torch.cat((raw & 15, raw >> 4), dim=1)


def _bits(raw: torch.Tensor) -> torch.Tensor:
    """(n, k) bytes -> (n, 8k) of 0 and 1, the lowest bit of a byte first."""
    import torch

    shifts = torch.arange(8, dtype=torch.uint8, device=raw.device)
    return ((raw[:, :, None] >> shifts) & 1).flatten(1)


def _q4_0(raw: torch.Tensor) -> torch.Tensor:
    return (_nibbles(raw[:, 2:]).float() - 8) * _half(raw[:, :2])


def _q4_1(raw: torch.Tensor) -> torch.Tensor:
    return _nibbles(raw[:, 4:]).float() * _half(raw[:, :2]) + _half(raw[:, 2:4])


def _q5_0(raw: torch.Tensor) -> torch.Tensor:
    codes = _nibbles(raw[:, 6:]) | (_bits(raw[:, 2:6]) << 4)
    return (codes.float() - 16) * _half(raw[:, :2])


def _q5_1(raw: torch.Tensor) -> torch.Tensor:
    codes = _nibbles(raw[:, 8:]) | (_bits(raw[:, 4:8]) << 4)
    return codes.float() * _half(raw[:, :2]) + _half(raw[:, 2:4])


def _q8_0(raw: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.mul(raw[:, 2:].view(torch.int8), _half(raw[:, :2]))


def _spread(raw: torch.Tensor, steps: tuple[int, ...]) -> torch.Tensor:
    """(n, g, k) bytes -> (n, g, len(steps), k): the bytes shifted right by each step."""
    import torch

    return torch.stack([raw >> s if s else raw for s in steps], dim=2)


def _q2_k(raw: torch.Tensor) -> torch.Tensor:
    n = len(raw)
    scales, d, low = raw[:, :16], _half(raw[:, 80:82]), _half(raw[:, 82:84])
    codes = (_spread(raw[:, 16:80].reshape(n, 2, 32), (0, 2, 4, 6)) & 3).reshape(n, 16, 16)
    factor, offset = (scales & 15).float() * d, (scales >> 4).float() * low
    return (codes * factor[:, :, None] - offset[:, :, None]).flatten(1)


def _q3_k(raw: torch.Tensor) -> torch.Tensor:
    import torch

    n = len(raw)
    low = _nibbles(raw[:, 96:104])
    high = torch.cat([(raw[:, 104:108] >> s) & 3 for s in (0, 2, 4, 6)], dim=1)
    scales = ((low | (high << 4)).to(torch.int8) - 32).float() * _half(raw[:, 108:110])
    codes = _spread(raw[:, 32:96].reshape(n, 2, 32), (0, 2, 4, 6)) & 3
    # the third bit of all eight groups of 32 stands in one mask: bit g of byte j is that of value 32 g + j
    third = _spread(raw[:, None, :32], tuple(range(8))) & 1
    values = codes.reshape(n, 256).to(torch.int8) - (4 - 4 * third.reshape(n, 256).to(torch.int8))
    return (values.reshape(n, 16, 16) * scales[:, :, None]).flatten(1)


def _six_bit(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The 8 scales and 8 minima of a block that share 12 bytes, six bits each."""
    import torch

    first, second, third = raw[:, :4], raw[:, 4:8], raw[:, 8:12]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), dim=1)
    minima = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=1)
    return scales, minima


def _with_minima(raw: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Values of eight groups of 32 codes (n, 8, 32) whose scales and minima stand at the block's start."""
    scales, minima = _six_bit(raw[:, 4:16])
    factor, offset = scales.float() * _half(raw[:, :2]), minima.float() * _half(raw[:, 2:4])
    return (codes * factor[:, :, None]).sub_(offset[:, :, None]).flatten(1)


def _q4_k(raw: torch.Tensor) -> torch.Tensor:
    n = len(raw)
    codes = _spread(raw[:, 16:144].reshape(n, 4, 32), (0, 4)) & 15
    return _with_minima(raw, codes.reshape(n, 8, 32))


def _q5_k(raw: torch.Tensor) -> torch.Tensor:
    n = len(raw)
    codes = (_spread(raw[:, 48:176].reshape(n, 4, 32), (0, 4)) & 15).reshape(n, 8, 32)
    fifth = (_spread(raw[:, None, 16:48], tuple(range(8))) & 1).reshape(n, 8, 32)
    return _with_minima(raw, codes | (fifth << 4))


def _q6_k(raw: torch.Tensor) -> torch.Tensor:
    import torch

    n = len(raw)
    low = _spread(raw[:, :128].reshape(n, 2, 64), (0, 4)) & 15
    high = _spread(raw[:, 128:192].reshape(n, 2, 32), (0, 2, 4, 6)) & 3
    codes = low.reshape(n, 256) | (high.reshape(n, 256) << 4)
    scales = raw[:, 192:208].view(torch.int8).float() * _half(raw[:, 208:210])
    return ((codes.float() - 32).reshape(n, 16, 16) * scales[:, :, None]).flatten(1)


def _looked_up(codes: torch.Tensor) -> torch.Tensor:
    import torch

    table = torch.tensor(_NONLINEAR, dtype=torch.float32, device=codes.device)
    return table[codes.int()]


def _iq4_nl(raw: torch.Tensor) -> torch.Tensor:
    return _looked_up(_nibbles(raw[:, 2:])) * _half(raw[:, :2])


def _iq4_xs(raw: torch.Tensor) -> torch.Tensor:
    import torch

    n = len(raw)
    low = _spread(raw[:, 4:8, None], (0, 4)).reshape(n, 8) & 15
    high = _spread(raw[:, 2:4, None], (0, 2, 4, 6)).reshape(n, 8) & 3
    scales = ((low | (high << 4)).to(torch.int8) - 32).float() * _half(raw[:, :2])
    codes = (_spread(raw[:, 8:136].reshape(n, 8, 16), (0, 4)) & 15).reshape(n, 8, 32)
    return (_looked_up(codes) * scales[:, :, None]).flatten(1)


_UNPACK: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}

#: Formats that the `gguf` package unpacks, with numpy: an order of magnitude slower, and only on the CPU.
SLOW = frozenset(
    {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"}
)
#: Every block format that `unpack` takes.
FORMATS = frozenset(_UNPACK) | SLOW


def unpack(raw: torch.Tensor, kind: str, out: torch.Tensor) -> None:
    """Writes the values of whole blocks into `out`, rounded to its dtype.

    Args:
        raw: uint8, one dimension, contiguous, on the device of `out`.
        kind: a name in `FORMATS`.
        out: one dimension, contiguous; as many values as the blocks hold.

    Raises ValueError where the sizes disagree, KeyError for a format that is not known.
    """
    values, nbytes = SIZES[kind]
    count = raw.numel() // nbytes
    if raw.numel() % nbytes or out.numel() != count * values:
        raise ValueError(f"{raw.numel()} bytes of {kind} do not hold {out.numel()} values")
    blocks, into = raw.view(count, nbytes), out.view(count, values)
    step = max(1, (CHUNK if raw.device.type == "cpu" else CHUNK << 3) // values)
    how = _UNPACK.get(kind) or _by_package(kind)
    for at in range(0, count, step):
        into[at : at + step].copy_(how(blocks[at : at + step]))


def _by_package(kind: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if kind not in SLOW:
        raise KeyError(kind)
    from gguf import GGMLQuantizationType, quants

    def convert(raw: torch.Tensor) -> torch.Tensor:
        import torch

        made = quants.dequantize(raw.cpu().numpy(), GGMLQuantizationType[kind])
        return torch.from_numpy(made).to(raw.device)

    return convert
