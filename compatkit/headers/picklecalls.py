"""What a torch checkpoint's pickle means: which of its calls are tensors, and which would run code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from compatkit.headers.picklenames import DTYPES, MAKERS, NUMPY, STORAGES, verdict
from compatkit.headers.pickleops import MAX_OPCODES, Machine
from compatkit.headers.picklesymbols import Blob, Broken, Ended, Global, Made, usable
from compatkit.sources.naming import shown

_LIMIT = 1 << 63  # sides, strides and their products are signed 64-bit numbers
_MAX_SIDES = 64
_KEEP_CALLS = 20
_MAX_NESTED = 4096  # bytes of the pickles of one storage inside of another pickle; torch writes 400

#: What torch wrote first before 1.6, and the protocol number that follows.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Storage(NamedTuple):
    """A row of elements outside the pickle. `first` counts elements of the row that come before (a view of a row).

    `elements` of an untyped one are bytes. `at` is its place in the file where the pickle itself holds the bytes.
    """

    key: str
    dtype: str
    itemsize: int
    elements: int
    first: int = 0
    at: int = -1

    @property
    def nbytes(self) -> int:
        """Bytes of the row, as the pickle declares it."""
        return self.elements * self.itemsize


class Weight(NamedTuple):
    """A tensor as the pickle would rebuild it. `skip` counts bytes from the start of its storage."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    storage: Storage
    skip: int
    strided: bool


class Noted:
    """What pickles would do beside making tensors. It outlives a pickle that breaks off: what came before would run."""

    def __init__(self) -> None:
        self.codes: dict[str, None] = {}  # names that may do anything, in the order met
        self.calls: list[str] = []  # calls of such names, as far as they can be told
        self.refused: dict[str, None] = {}  # harmless names that torch.load(weights_only=True) refuses


class TorchMachine(Machine):
    """Runs a pickle and knows torch's calls. What would run code is noted, never run."""

    def __init__(self, buffer: bytes, at: int, noted: Noted, nested: bool = False) -> None:
        super().__init__(buffer, at)
        self.noted = noted
        self.nested = nested
        self.verdicts: dict[Global, str] = {}
        self.storages: dict[str, Storage] = {}
        self.patience = MAX_OPCODES  # entries that may be copied from one container to another
        self.nesting = 4 * MAX_OPCODES  # bytes of pickles inside of this one that may be run

    def imported(self, found: Global) -> Any:
        """See `Machine.imported`."""
        if found not in self.verdicts:
            self.verdicts[found] = judged = verdict(found.module, found.name)
            if judged == "code" and found.path != "builtins.getattr":  # that one depends on its arguments
                self.noted.codes[_path(found)] = None
            elif judged == "harmless":
                self.noted.refused[_path(found)] = None
        return found

    def call(self, function: Any, args: Any) -> Any:
        """See `Machine.call`."""
        if not isinstance(function, Global):
            self._note(f"the result of {_path(function.what)}" if isinstance(function, Made) else "a value", args)
            return Made(None, args)
        if meaning := _MEANINGS.get(function.path):
            return meaning(self, args)
        judged = self.verdicts.get(function)
        if judged == "allowed" or (judged == "harmless" and _plain_call(function, args)):
            return Made(function, args)
        self._note(_path(function), args)
        return Made(function, args)

    def make(self, kind: Any, args: Any) -> Any:
        """See `Machine.make`."""
        if isinstance(kind, Global):
            if kind.path == "collections.OrderedDict":
                return {}
            if kind.path == "torch.nn.parameter.Parameter" and self._first(args) is not None:
                return args[0]
            if self.verdicts.get(kind) == "code":
                self._note(_path(kind), args)
        else:
            self._note("a value", args)
        return Made(kind, args)

    def build(self, target: Any, state: Any) -> None:
        """See `Machine.build`."""
        if isinstance(target, Made):
            target.state = state
        elif isinstance(target, Global):
            self._note(f"setattr on {_path(target)}", ())

    def refer(self, pid: Any) -> Any:
        """See `Machine.refer`."""
        if not isinstance(pid, tuple) or len(pid) < 2:
            return Made(None, pid)
        if pid[0] == "module":  # torch before 1.6: a class with its source text
            return pid[1]
        if pid[0] != "storage" or len(pid) < 5 or not isinstance(pid[1], Global):
            return Made(None, pid)
        kind, key, elements = pid[1], pid[2], pid[4]
        if not (type(key) is str and type(elements) is int and 0 <= elements < _LIMIT):
            raise Broken(self.at - 1, "names a storage without a key or a size")
        dtype, itemsize = STORAGES.get(kind.name, ("", 1))
        storage = Storage(key, dtype, itemsize, elements)
        known = self.storages.get(key)
        if known is None or known.nbytes < storage.nbytes:
            self.storages[key] = storage
        view = pid[5] if len(pid) > 5 else None
        if isinstance(view, tuple) and len(view) == 3 and type(view[1]) is int and 0 <= view[1] < _LIMIT:
            return storage._replace(first=view[1])
        return storage

    def _note(self, what: str, args: Any) -> None:
        self.noted.codes.setdefault(what, None)
        if len(self.noted.calls) < _KEEP_CALLS:
            self.noted.calls.append(f"{what}({_arguments(args)})")

    # What torch's and numpy's calls mean

    def _mapping(self, args: Any) -> Any:
        pairs = args[0] if isinstance(args, tuple) and args else ()
        if isinstance(pairs, dict):
            return pairs
        made: dict[Any, Any] = {}
        if isinstance(pairs, (list, tuple)):
            self.patience -= len(pairs)
            if self.patience < 0:
                raise Broken(self.at - 1, "copies its lists over and over")
            for pair in pairs:
                if isinstance(pair, (list, tuple)) and len(pair) == 2:
                    made[usable(pair[0])] = pair[1]
        return made

    def _first(self, args: Any) -> Any:
        return args[0] if isinstance(args, tuple) and args else None

    def _sequence(self, args: Any) -> Any:
        first = self._first(args)
        return first if isinstance(first, (list, tuple)) else []

    def _tensor(self, args: Any) -> Any:
        if not (isinstance(args, tuple) and len(args) >= 4 and isinstance(args[0], Storage)):
            return Made(None, args)
        storage, offset, shape, stride = args[:4]
        if not storage.dtype:
            raise Broken(self.at - 1, f"names storage {shown(storage.key)} of a type that is not known")
        return self._weight(storage, storage.dtype, storage.itemsize, offset, shape, stride)

    def _tensor_with_dtype(self, args: Any) -> Any:
        if not (isinstance(args, tuple) and len(args) >= 7 and isinstance(args[0], Storage)):
            return Made(None, args)
        kind = args[6]
        if not (isinstance(kind, Global) and kind.module == "torch" and kind.name in DTYPES):
            raise Broken(self.at - 1, f"gives a tensor the type {_brief(kind)}, which is not known")
        return self._weight(args[0], *DTYPES[kind.name], *args[1:4])

    def _weight(self, storage: Storage, dtype: str, itemsize: int, offset: Any, shape: Any, stride: Any) -> Any:
        sides, steps = _sides(shape), _sides(stride)
        if sides is None or steps is None or len(sides) != len(steps) or type(offset) is not int or offset < 0:
            raise Broken(self.at - 1, "rebuilds a tensor whose shape is no list of sizes")
        count, last, packed, strided = 1, offset, 1, False
        for side, step in zip(reversed(sides), reversed(steps), strict=True):
            strided |= side > 1 and step != packed
            packed *= side
            count *= side
            last += (side - 1) * step
        if count >= _LIMIT:
            raise Broken(self.at - 1, "rebuilds a tensor of more elements than 64 bits can count")
        if count and (last + 1) * itemsize > storage.nbytes:
            what = f"rebuilds a tensor of {(last + 1) * itemsize:,} bytes from storage {shown(storage.key)}"
            raise Broken(self.at - 1, f"{what}, which has {storage.nbytes:,}")
        if dtype == "F4" and sides:  # two elements to the byte, as safetensors counts them
            sides = (*sides[:-1], sides[-1] * 2)
        skip = storage.first * storage.itemsize + offset * itemsize
        return Weight(dtype, sides, count * itemsize, storage, skip, bool(count) and strided)

    def _rebuilt(self, args: Any) -> Any:
        """`_rebuild_from_type(_v2)`: a call in a call."""
        if isinstance(args, tuple) and len(args) >= 3 and isinstance(args[0], Global) and isinstance(args[2], tuple):
            meaning = _MEANINGS.get(args[0].path)
            if meaning is not TorchMachine._rebuilt:
                return self.call(args[0], args[2])
        return Made(None, args)

    def _reconstructed(self, args: Any) -> Any:
        kind = self._first(args)
        return self.make(kind, ()) if isinstance(kind, Global) else Made(None, args)

    def _attribute(self, args: Any) -> Any:
        """`getattr`: an attribute of a harmless class is harmless, but for the doors that begin with "_"."""
        if isinstance(args, tuple) and len(args) == 2 and isinstance(args[1], str) and not args[1].startswith("_"):
            holder = args[0].what if isinstance(args[0], Made) else args[0]
            if isinstance(holder, Global) and self.verdicts.get(holder) != "code" and holder.path != "builtins.getattr":
                self.noted.refused["builtins.getattr"] = None
                return Made(None, args)
        self._note("builtins.getattr", args)
        return Made(None, args)

    def _encoded(self, args: Any) -> Any:
        """`_codecs.encode`: bytes as protocol 2 writes them."""
        if isinstance(args, tuple) and len(args) == 2 and isinstance(args[0], str) and args[1] in ("latin1", "latin-1"):
            return Blob(-1, len(args[0]), args[0])
        return Made(None, args)

    def _nested(self, args: Any) -> Any:
        """A storage as a torch file of the old kind inside of the pickle. Its own pickles are looked at as well."""
        blob = self._first(args)
        if not isinstance(blob, Blob) or self.nested:
            self._note("torch.storage._load_from_bytes", args)
            return Made(None, args)
        length = min(blob.length, _MAX_NESTED)
        inside = (
            self.buffer[blob.at : blob.at + length] if blob.at >= 0 else blob.text[:length].encode("latin-1", "replace")
        )
        try:
            inner = LegacyFile(inside, self.noted, nested=True)
            places = inner.places()
        except (Broken, Ended):
            raise Broken(max(blob.at, 0), "holds a storage that cannot be read") from None
        self.nesting -= inner.end
        if self.nesting < 0:
            raise Broken(self.at - 1, "holds too many storages one by one")
        found = inner.content
        if not isinstance(found, Storage):
            return Made(None, ())
        if places[""] > blob.length:
            raise Broken(max(blob.at, 0), "holds a storage that is cut short")
        place = blob.at + places[found.key] if blob.at >= 0 and not inner.big_endian else -1
        return found._replace(key="(inside)", at=place)

    def _array(self, made: Made) -> Weight | None:
        """A numpy array, from its state or, since protocol 5, from the call that makes it."""
        if made.what.path in _FROM_BUFFER:
            if not (isinstance(made.args, tuple) and len(made.args) == 4):
                return None
            raw, kind, shape, order = made.args
            columns = order == "F"
        elif isinstance(made.state, tuple) and len(made.state) == 5:
            _, shape, kind, columns, raw = made.state
        else:
            return None
        sides = _sides(shape)
        if not isinstance(kind, Made) or not isinstance(raw, Blob) or sides is None:
            return None
        code = self._first(kind.args)
        if not isinstance(code, str) or code not in NUMPY:
            return None
        count, itemsize = 1, int(code[1:])
        for side in sides:
            count *= side
        if count * itemsize != raw.length:
            return None
        swapped = isinstance(kind.state, tuple) and len(kind.state) > 1 and kind.state[1] == ">"
        storage = Storage("(inside)", NUMPY[code], itemsize, count, at=-1 if swapped else raw.at)
        return Weight(NUMPY[code], sides, raw.length, storage, 0, columns is True and len(sides) > 1)

    def weight(self, value: Any) -> Weight | None:
        """`value` as a tensor, if it is one."""
        if isinstance(value, Weight):
            return value
        if isinstance(value, Made) and isinstance(value.what, Global) and value.what.path in _ARRAYS + _FROM_BUFFER:
            return self._array(value)
        return None


_ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")

_MEANINGS: dict[str, Callable[[TorchMachine, Any], Any]] = {
    **dict.fromkeys(("collections.OrderedDict", "collections.Counter", "builtins.dict"), TorchMachine._mapping),
    "collections.defaultdict": lambda m, args: {},
    **dict.fromkeys((f"builtins.{t}" for t in ("set", "frozenset", "list", "tuple")), TorchMachine._sequence),
    "torch.Size": TorchMachine._first,
    **dict.fromkeys((f"torch._utils._rebuild_{t}" for t in ("tensor", "tensor_v2", "qtensor")), TorchMachine._tensor),
    "torch._utils._rebuild_tensor_v3": TorchMachine._tensor_with_dtype,
    "torch._utils._rebuild_parameter": TorchMachine._first,
    "torch._utils._rebuild_parameter_with_state": TorchMachine._first,
    "torch.nn.parameter.Parameter": TorchMachine._first,
    "torch._tensor._rebuild_from_type_v2": TorchMachine._rebuilt,
    "torch._tensor._rebuild_from_type": TorchMachine._rebuilt,
    "torch._utils._rebuild_from_type": TorchMachine._rebuilt,
    "torch.storage._load_from_bytes": TorchMachine._nested,
    "copyreg._reconstructor": TorchMachine._reconstructed,
    "copyreg.__newobj__": TorchMachine._reconstructed,
    "builtins.getattr": TorchMachine._attribute,
    "_codecs.encode": TorchMachine._encoded,
    **dict.fromkeys((p for p in MAKERS if p.startswith("torch.jit._pickle.")), TorchMachine._first),
}  # fmt: skip


class LegacyFile:
    """A torch file from before 1.6, in a buffer: a row of pickles, then the storages in the order of their keys.

    Raises `Broken` or `Ended`, with offsets in the buffer.
    """

    def __init__(self, buffer: bytes, noted: Noted, nested: bool = False) -> None:
        at = 0
        for wanted, what in ((MAGIC, "does not start with torch's mark"), (PROTOCOL, "is of an unknown torch format")):
            mark = TorchMachine(buffer, at, noted, nested)
            if mark.run() != wanted:
                raise Broken(at, what)
            at = mark.at
        about = TorchMachine(buffer, at, noted, nested)
        system = about.run()
        self.big_endian = isinstance(system, dict) and system.get("little_endian") is False
        self.machine = TorchMachine(buffer, about.at, noted, nested)
        self.content = self.machine.run()
        keys = TorchMachine(buffer, self.machine.at, noted, nested)
        found = keys.run()
        if not isinstance(found, list) or not all(type(k) is str for k in found):
            raise Broken(self.machine.at, "does not list its storages")
        self.keys: list[str] = found
        self.end = keys.at

    def places(self) -> dict[str, int]:
        """Where each storage starts; under "" where the last one ends."""
        places: dict[str, int] = {}
        at = self.end
        for key in self.keys:
            storage = self.machine.storages.get(key)
            if storage is None or key in places:
                raise Broken(
                    self.end, f"lists storage {shown(key)} {'that no tensor uses' if not storage else 'twice'}"
                )
            places[key] = at + 8  # its number of elements comes first
            at += 8 + storage.nbytes
        missing = next((key for key in self.machine.storages if key not in places), None)
        if missing is not None:
            raise Broken(self.end, f"uses storage {shown(missing)}, which is not listed")
        places[""] = at
        return places


def _sides(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, (tuple, list)) or len(value) > _MAX_SIDES:
        return None
    if not all(type(side) is int and 0 <= side < _LIMIT for side in value):
        return None
    return tuple(value)


def _plain_call(function: Global, args: Any) -> bool:
    """Whether calling a harmless class runs nothing but the making of a value."""
    if function.path in MAKERS or function.module.startswith("__torch__"):
        return True
    if not isinstance(args, tuple) or len(args) > 1:
        return False
    # an entry of an enumeration; a text that could be a path or an address is none
    return not args or type(args[0]) is int or (type(args[0]) is str and args[0].isidentifier())


def _path(what: Any) -> str:
    return shown(what.path, 100)[1:-1] if isinstance(what, Global) else "something unknown"


def _brief(value: Any) -> str:
    """A value from the pickle, short and without walking into it."""
    if isinstance(value, str):
        return shown(value, 80)
    if isinstance(value, int) and -_LIMIT <= value < _LIMIT:
        return str(value)
    if isinstance(value, Global):
        return _path(value)
    if isinstance(value, Made):
        return f"{_path(value.what)}(…)"
    return {"NoneType": "None", "tuple": "(…)", "list": "[…]", "dict": "{…}"}.get(type(value).__name__, "…")


def _arguments(args: Any) -> str:
    if not isinstance(args, tuple):
        return _brief(args)
    return ", ".join([_brief(a) for a in args[:3]] + (["…"] if len(args) > 3 else []))
