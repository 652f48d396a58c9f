"""torch checkpoints for tests, byte for byte as torch.save of torch 2.13 writes them, without torch.

    write_torch(path, {"state_dict": {"a.weight": ("F16", (4, 3))}})
    write_torch(path, ..., legacy=True)                      # as torch wrote before 1.6

A value `(dtype, shape)` becomes a tensor of zeros (a `Fake` has more to say: strides, a shared storage, a parameter);
dictionaries, lists, texts and numbers are what they are, and a `Name` is any import.
"""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: dtype -> (torch's storage class, bytes)
STORAGES = {
    "F32": ("FloatStorage", 4),
    "F16": ("HalfStorage", 2),
    "BF16": ("BFloat16Storage", 2),
    "F64": ("DoubleStorage", 8),
    "I64": ("LongStorage", 8),
    "I32": ("IntStorage", 4),
    "I16": ("ShortStorage", 2),
    "I8": ("CharStorage", 1),
    "U8": ("ByteStorage", 1),
    "BOOL": ("BoolStorage", 1),
    "C64": ("ComplexFloatStorage", 8),
}
#: dtype -> (torch's dtype, bytes): those that came after typed storages
UNTYPED = {
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "U16": ("uint16", 2),
    "U32": ("uint32", 4),
    "U64": ("uint64", 8),
}
SERIALIZATION_ID = b"0" * 40


class Name:
    """An import. Called with arguments it is a call, which nobody makes; `Name(...).new(state)` an object."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *args: Any) -> Call:
        return Call(self, args)

    def new(self, state: Any = None) -> Call:
        """An object of this class, made without `__init__`."""
        return Call(self, (), new=True, state=state)

    def __reduce__(self) -> str:
        return self.name


class Call:
    """What a pickle would call on loading."""

    def __init__(self, what: Any, args: tuple[Any, ...], new: bool = False, state: Any = None) -> None:
        self.what, self.args, self.new, self.state = what, args, new, state

    def __call__(self, *args: Any) -> Call:
        return Call(self, args)


class Fake:
    """A tensor. `of` shares the storage of another one; `elements` makes the storage larger than the tensor."""

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...],
        *,
        stride: tuple[int, ...] | None = None,
        offset: int = 0,
        elements: int | None = None,
        of: Fake | None = None,
        parameter: bool = False,
        data: bytes = b"",
    ) -> None:
        self.dtype, self.shape, self.offset, self.parameter, self.data = dtype, shape, offset, parameter, data
        stride_of, count = [], 1
        for side in reversed(shape):
            stride_of.insert(0, count)
            count *= max(side, 1)
        self.stride = stride or tuple(stride_of)
        needed = 1
        for side in shape:
            needed *= side
        self.elements = of.elements if of else needed if elements is None else elements
        self.root: Fake = of.root if of else self

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return {**STORAGES, **UNTYPED}[self.dtype][1]


ORDERED = Name("collections", "OrderedDict")
_CPU, _STORAGE = "cpu", "storage"
_NAMES: dict[tuple[str, str], Name] = {}


def name(module: str, what: str) -> Name:
    """The one `Name` of that import: a pickle refers back to what it has imported."""
    return _NAMES.setdefault((module, what), Name(module, what))


# the Python version: it writes what the C version writes, and lets an import be made up
class _Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    def __init__(self, out: io.BytesIO, protocol: int, legacy: bool) -> None:
        super().__init__(out, protocol)
        self.legacy = legacy
        self.storages: dict[int, tuple[str, Fake]] = {}

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if not isinstance(obj, Name):
            super().save_global(obj, name)
        elif self.proto >= 4:
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)
            self.memoize(obj)
        else:
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            self.memoize(obj)

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        root = obj.fake.root
        if id(root) not in self.storages:
            key = str(94_607_455_000_000 + 176 * len(self.storages)) if self.legacy else str(len(self.storages))
            self.storages[id(root)] = (key, root)
        key = self.storages[id(root)][0]
        if root.dtype in STORAGES:
            kind, count = name("torch", STORAGES[root.dtype][0]), root.elements
        else:
            kind, count = name("torch.storage", "UntypedStorage"), root.elements * root.itemsize
        return (_STORAGE, kind, key, _CPU, count, None) if self.legacy else (_STORAGE, kind, key, _CPU, count)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Fake):
            return _rebuilt(obj)
        if isinstance(obj, Call):
            if obj.new:
                return _newobj(obj)
            return obj.what, obj.args
        return NotImplemented

    def save_reduce(self, func: Any, args: Any, state: Any = None, *rest: Any, **words: Any) -> None:
        if func is _NEW:
            self.save(args[0])
            self.save(())
            self.write(pickle.NEWOBJ)
            self.memoize(words["obj"])
            if state is not None:
                self.save(state)
                self.write(pickle.BUILD)
        else:
            super().save_reduce(func, args, state, *rest, **words)


class _Storage:
    def __init__(self, fake: Fake) -> None:
        self.fake = fake


_NEW = Name("", "")


def _newobj(obj: Call) -> Any:
    return _NEW, (obj.what,), obj.state


def _rebuilt(obj: Fake) -> Any:
    shape, stride = (*obj.shape,), (*obj.stride,)
    args: tuple[Any, ...] = (_Storage(obj), obj.offset, shape, stride, False, OrderedDict())
    made = name("torch._utils", "_rebuild_tensor_v2")
    if obj.dtype in UNTYPED:
        made = name("torch._utils", "_rebuild_tensor_v3")
        args = (*args, name("torch", UNTYPED[obj.dtype][0]))
    if not obj.parameter:
        return made, args
    inner = Call(made, args)
    return name("torch._utils", "_rebuild_parameter"), (inner, True, OrderedDict())


def _real(value: Any) -> Any:
    """Replaces `(dtype, shape)` by tensors, in containers of all kinds."""
    if isinstance(value, tuple) and len(value) == 2 and value[0] in {**STORAGES, **UNTYPED}:
        return Fake(*value)
    if isinstance(value, Mapping):
        return type(value)((k, _real(v)) for k, v in value.items())  # type: ignore[call-arg]
    if type(value) in (list, tuple):
        return type(value)(_real(v) for v in value)
    if isinstance(value, Call):
        return Call(value.what, tuple(_real(a) for a in value.args), value.new, _real(value.state))
    return value


def pickled(content: Any, protocol: int = 2, legacy: bool = False) -> tuple[bytes, list[tuple[str, Fake]]]:
    """The pickle of `content` and the storages it names, in the order in which it names them."""
    out = io.BytesIO()
    pickler = _Pickler(out, protocol, legacy)
    pickler.dump(_real(content))
    return out.getvalue(), list(pickler.storages.values())


def torch_zip(
    content: Any,
    top: str = "archive",
    *,
    protocol: int = 2,
    raw: bytes | None = None,
    identity: bytes = SERIALIZATION_ID,
) -> bytes:
    """A checkpoint as torch.save writes it since 1.6. `raw` replaces its pickle."""
    data, storages = pickled(content, protocol)
    members = [("data.pkl", data if raw is None else raw), (".format_version", b"1"), (".storage_alignment", b"64")]
    members += [("byteorder", b"little"), *((f"data/{key}", _bytes(fake)) for key, fake in storages)]
    members += [("version", b"3\n"), (".data/serialization_id", identity)]
    return zipped([(f"{top}/{n}", c) for n, c in members])


def zipped(members: list[tuple[str, bytes]]) -> bytes:
    """A zip as torch's writer makes it: members at multiples of 64, sizes after the data, a zip64 end record."""
    out, entries = bytearray(), []
    for member, content in members:
        raw, at = member.encode(), len(out)
        pad = -(at + 30 + len(raw) + 4) % 64
        out += struct.pack("<4s5H3L2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, len(raw), pad + 4)
        out += raw + b"FB" + struct.pack("<H", pad) + b"Z" * pad + content
        about = struct.pack("<3L", zlib.crc32(content), len(content), len(content))
        out += b"PK\7\x08" + about
        entries.append(
            struct.pack("<4s6H", b"PK\1\2", 0, 0, 0x808, 0, 0, 0)
            + about
            + struct.pack("<5H2L", len(raw), 0, 0, 0, 0, 0, at)
            + raw
        )
    start, listing, count = len(out), b"".join(entries), len(entries)
    out += listing
    end = len(out)
    out += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 798, 45, 0, 0, count, count, len(listing), start)
    out += struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    return bytes(out + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(listing), start, 0))


def torch_legacy(content: Any, *, raw: bytes | None = None) -> bytes:
    """A checkpoint as torch wrote it before 1.6."""
    data, storages = pickled(content, legacy=True)
    sizes = {"short": 2, "int": 4, "long": 4}
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    out = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, about))
    storages.sort(key=lambda pair: pair[0])
    out += (data if raw is None else raw) + pickle.dumps([key for key, _ in storages], 2)
    for _, fake in storages:
        out += struct.pack("<q", fake.elements if fake.dtype in STORAGES else len(_bytes(fake))) + _bytes(fake)
    return out


def _bytes(fake: Fake) -> bytes:
    size = fake.elements * fake.itemsize
    return fake.data + bytes(size - len(fake.data))


def write_torch(path: Path, content: Any, *, legacy: bool = False, protocol: int = 2) -> Path:
    """Writes a checkpoint and returns its path."""
    path.write_bytes(torch_legacy(content) if legacy else torch_zip(content, protocol=protocol))
    return path
