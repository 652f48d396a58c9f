"""Which names a pickle may use: those torch loads safely, those that are harmless, and all others. Mostly data."""

from __future__ import annotations

import re
from typing import Literal

Verdict = Literal["allowed", "harmless", "code"]

#: storage class -> safetensors' name of its type (torch's own for those that safetensors has not), bytes per element
STORAGES: dict[str, tuple[str, int]] = {
    "FloatStorage": ("F32", 4),
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "DoubleStorage": ("F64", 8),
    "LongStorage": ("I64", 8),
    "IntStorage": ("I32", 4),
    "ShortStorage": ("I16", 2),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
    "ComplexFloatStorage": ("C64", 8),
    "ComplexDoubleStorage": ("C128", 16),
    "QInt8Storage": ("QINT8", 1),
    "QUInt8Storage": ("QUINT8", 1),
    "QInt32Storage": ("QINT32", 4),
    "QUInt4x2Storage": ("QUINT4X2", 1),
    "QUInt2x4Storage": ("QUINT2X4", 1),
}

#: torch.dtype -> the same
DTYPES: dict[str, tuple[str, int]] = {
    "float32": ("F32", 4),
    "float": ("F32", 4),
    "float16": ("F16", 2),
    "half": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float64": ("F64", 8),
    "double": ("F64", 8),
    "int64": ("I64", 8),
    "long": ("I64", 8),
    "int32": ("I32", 4),
    "int": ("I32", 4),
    "int16": ("I16", 2),
    "short": ("I16", 2),
    "int8": ("I8", 1),
    "uint8": ("U8", 1),
    "uint16": ("U16", 2),
    "uint32": ("U32", 4),
    "uint64": ("U64", 8),
    "bool": ("BOOL", 1),
    "complex32": ("C32", 4),
    "complex64": ("C64", 8),
    "complex128": ("C128", 16),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
    "float8_e8m0fnu": ("F8_E8M0", 1),
    "float4_e2m1fn_x2": ("F4", 1),
    "qint8": ("QINT8", 1),
    "quint8": ("QUINT8", 1),
    "qint32": ("QINT32", 4),
    "quint4x2": ("QUINT4X2", 1),
    "quint2x4": ("QUINT2X4", 1),
    "bits8": ("BITS8", 1),
    "bits16": ("BITS16", 2),
    "bits1x8": ("BITS1X8", 1),
    "bits2x4": ("BITS2X4", 1),
    "bits4x2": ("BITS4X2", 1),
    **{f"{sign}int{bits}": (f"{sign}int{bits}".upper(), 1) for sign in ("", "u") for bits in range(1, 8)},
}

#: numpy's letter and size -> safetensors' name
NUMPY: dict[str, str] = {
    "f2": "F16",
    "f4": "F32",
    "f8": "F64",
    "c8": "C64",
    "c16": "C128",
    "b1": "BOOL",
    **{f"{letter}{size}": f"{letter.upper()}{size * 8}" for letter in "iu" for size in (1, 2, 4, 8)},
}

_REBUILDERS = (
    "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state", "qtensor", "sparse_tensor",
    "nested_tensor", "meta_tensor_no_storage", "wrapper_subclass", "device_tensor_from_numpy",
    "device_tensor_from_cpu_tensor",
)  # fmt: skip
_KINDS = [name.removesuffix("Storage") for name in STORAGES if not name.startswith("Q")]

#: What torch.load(weights_only=True) of torch 2.13 lets pass, and ComfyUI's additions to it.
ALLOWED = frozenset(
    {
        *("_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set"),
        *("collections.Counter", "collections.OrderedDict"),
        *("torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter"),
        *("torch._tensor._rebuild_from_type_v2", "torch.serialization._get_layout"),
        *("torch.storage.TypedStorage", "torch.storage.UntypedStorage"),
        *(f"torch.per_tensor_{kind}" for kind in ("affine", "symmetric")),
        *(f"torch.per_channel_{kind}" for kind in ("affine", "symmetric", "affine_float_qparams")),
        *(f"torch._utils._rebuild_{name}" for name in _REBUILDERS),
        *(f"torch.{name}" for name in (*STORAGES, *DTYPES)),
        *(f"torch.cuda.{kind}Storage" for kind in _KINDS),
        *(f"torch.{place}{kind}Tensor" for place in ("", "cuda.", "sparse.", "cuda.sparse.") for kind in _KINDS),
        # ComfyUI's own (comfy/utils.py)
        *("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "numpy.core.multiarray.scalar"),
        *("numpy.dtype", "numpy.dtypes.Float64DType"),
    }
)

#: Functions and plain types that do nothing but make a value; torch.load(weights_only=True) refuses them all the same.
MAKERS = frozenset(
    {
        *(f"builtins.{t}" for t in ("frozenset", "list", "tuple", "dict", "int", "float", "bool", "str", "bytes")),
        *(f"builtins.{t}" for t in ("object", "slice", "range")),
        *("collections.defaultdict", "collections.deque", "copyreg.__newobj__", "copyreg._reconstructor"),
        *("torch.storage._load_from_bytes", "torch._utils._rebuild_from_type", "torch._tensor._rebuild_from_type"),
        *(f"torch.{name}" for name in ("strided", "sparse_coo", "contiguous_format", "preserve_format")),
        *(f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")),
        *("torch.jit._pickle.restore_type_tag", "torch.Generator", "torch.nn.parameter.Buffer"),
        *(f"numpy.{core}.multiarray.{f}" for core in ("core", "_core") for f in ("_reconstruct", "scalar")),
        *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer", "numpy.ndarray"),
        *(f"numpy.{name}" for name in ("float64", "float32", "float16", "int64", "int32", "bool_", "uint8")),
        *("argparse.Namespace", "types.SimpleNamespace", "uuid.UUID", "decimal.Decimal", "fractions.Fraction"),
        *(f"pathlib.{p}" for p in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
        *(f"datetime.{t}" for t in ("datetime", "date", "time", "timedelta", "timezone")),
        *("pathlib._local.Path", "pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
        *("typing.Any", "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
    }
)

# Modules whose classes hold models and settings; making such an object runs no code that the file brings.
_HOMES = (
    "torch.nn.", "torch.optim.", "torch.torch_version.", "torch.amp.", "torch.cuda.amp.", "torch.ao.nn.", "torchaudio.",
    "torchvision.", "pytorch_lightning.", "lightning.", "lightning_fabric.", "lightning_utilities.", "omegaconf.",
    "numpy.dtypes.", "diffusers.", "transformers.", "tokenizers.", "accelerate.", "peft.", "timm.", "open_clip.",
    "ldm.", "sgm.", "clip.", "basicsr.", "ultralytics.", "easydict.", "addict.", "yacs.", "attr.", "box.", "deepspeed.",
    "megatron.", "taming.", "fairseq.", "detectron2.", "mmcv.", "mmengine.", "dnnlib.",
)  # fmt: skip
_CLASS = re.compile(r"_?[A-Z][A-Za-z0-9_]*")
_MANGLED = "__torch__."  # TorchScript's own classes: their names are paths


def verdict(module: str, name: str) -> Verdict:
    """What a name in a pickle means for who loads it.

    "allowed" is loaded even by torch.load(weights_only=True), "harmless" only without it, "code" may do anything.
    """
    path = f"{module}.{name}"
    if path in ALLOWED:
        return "allowed"
    if path in MAKERS or f"{module}.".startswith(_MANGLED):
        return "harmless"
    if f"{module}.".startswith(_HOMES) and _CLASS.fullmatch(name):
        return "harmless"
    return "code"
