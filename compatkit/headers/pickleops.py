"""A pickle's opcodes, run without Python's unpickler: they build plain containers, and symbols for everything else.

A pickle is a program. What it would import stands here as a `Global`, what it would call as a `Made`; nothing is ever
imported, called or unpickled. Every length is compared with the bytes that remain, nothing recurses, and what is built
can be no larger than a small multiple of the bytes that were read.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from struct import error as StructError
from typing import Any, ClassVar

from compatkit.headers.picklesymbols import Blob, Broken, Ended, Global, Made, usable

#: Opcodes of one pickle; twenty thousand tensors need 700,000.
MAX_OPCODES = 1 << 21
#: Bytes of a number; torch's own mark, the longest in use, has 10.
MAX_NUMBER = 255

# The opcodes that torch.load(weights_only=True) of torch 2.13 knows; it refuses a pickle with any other.
_WEIGHTS_ONLY = frozenset(b"\x80.c\x81Rbaesu(t\x85\x86\x87N\x89\x88)]}\x8fJKMGXUQhjqr\x8a")
# Names that changed between the Python that wrote a pickle and the one that reads it.
_MOVED = {"__builtin__": "builtins", "copy_reg": "copyreg", "exceptions": "builtins"}

_INT = Struct("<i").unpack_from
_U16 = Struct("<H").unpack_from
_U32 = Struct("<I").unpack_from
_U64 = Struct("<Q").unpack_from
_F64 = Struct(">d").unpack_from


class Machine:
    """Runs one pickle that starts at `at` of a buffer. `run` gives what it builds; `at` is then the byte after it.

    A subclass gives the symbols a meaning: `call`, `make`, `refer`, `build` and `imported`.
    """

    def __init__(self, buffer: bytes, at: int = 0) -> None:
        self.buffer = buffer
        self.at = at
        self.protocol = 0
        self.odd_opcode: int | None = None  # the first that torch.load(weights_only=True) does not know
        self.globals: dict[tuple[str, str], Global] = {}
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}

    # What a subclass decides

    def imported(self, found: Global) -> Any:
        """What stands for something imported."""
        return found

    def call(self, function: Any, args: Any) -> Any:
        """What stands for the result of `function(*args)`."""
        return Made(function, args)

    def make(self, kind: Any, args: Any) -> Any:
        """What stands for a new object of class `kind`, made without its `__init__`."""
        return Made(kind, args)

    def build(self, target: Any, state: Any) -> None:
        """`target` is given `state`, as `__setstate__` would be."""
        if isinstance(target, Made):
            target.state = state

    def refer(self, pid: Any) -> Any:
        """What stands for something outside the pickle."""
        return Made(None, pid)

    # The machine

    def run(self) -> Any:
        """What the pickle builds. Raises `Broken` or `Ended`."""
        start = self.at
        try:
            return self._run()
        except Broken as broken:
            raise broken from None
        except IndexError:
            if self.at >= len(self.buffer):
                raise Ended(start) from None
            raise Broken(self.at - 1, "takes a value where there is none") from None
        except StructError:  # a number that the buffer does not hold wholly
            raise Ended(start) from None
        except UnicodeDecodeError:
            raise Broken(self.at - 1, "holds text that is not UTF-8") from None

    def _run(self) -> Any:
        buffer, memo, rare = self.buffer, self.memo, self._RARE
        for _ in range(MAX_OPCODES):
            op = buffer[self.at]
            self.at += 1
            # the opcodes that tensors are made of first
            if op == 0x71:  # BINPUT
                memo[buffer[self.at]] = self.stack[-1]
                self.at += 1
            elif op == 0x72:  # LONG_BINPUT
                memo[_U32(buffer, self.at)[0]] = self.stack[-1]
                self.at += 4
            elif op == 0x68:  # BINGET
                self.at += 1
                self._recall(buffer[self.at - 1])
            elif op == 0x6A:  # LONG_BINGET
                slot = _U32(buffer, self.at)[0]
                self.at += 4
                self._recall(slot)
            elif op == 0x4B:  # BININT1
                self.stack.append(buffer[self.at])
                self.at += 1
            elif op == 0x58:  # BINUNICODE
                self.stack.append(self._text(self._number(_U32, 4)))
            elif op == 0x28:  # MARK
                self.outer.append(self.stack)
                self.stack = []
            elif op == 0x74:  # TUPLE
                made = tuple(self._marked())
                self.stack.append(made)
            elif 0x85 <= op <= 0x87:  # TUPLE1..3
                count = op - 0x84
                if len(self.stack) < count:
                    raise Broken(self.at - 1, "takes a value where there is none")
                self.stack[-count:] = [tuple(self.stack[-count:])]
            elif op == 0x4D:  # BININT2
                self.stack.append(_U16(buffer, self.at)[0])
                self.at += 2
            elif op == 0x4A:  # BININT
                self.stack.append(_INT(buffer, self.at)[0])
                self.at += 4
            elif op == 0x52:  # REDUCE
                args = self.stack.pop()
                self.stack[-1] = self.call(self.stack[-1], args)
            elif op == 0x51:  # BINPERSID
                self.stack[-1] = self.refer(self.stack[-1])
            elif op == 0x29:  # EMPTY_TUPLE
                self.stack.append(())
            elif op == 0x2E:  # STOP
                if not self.stack:
                    raise Broken(self.at - 1, "stops without having built anything")
                return self.stack.pop()
            else:
                if self.odd_opcode is None and op not in _WEIGHTS_ONLY:
                    self.odd_opcode = op
                step = rare.get(op)
                if step is None:
                    raise Broken(self.at - 1, f"holds the byte {op:#04x}, which is no opcode")
                step(self)
        raise Broken(self.at, f"has more than {MAX_OPCODES:,} opcodes; no list of tensors is that long")

    def _take(self, length: int) -> int:
        """Moves past `length` bytes and gives their start, once it is known that they are there."""
        start = self.at
        if length > len(self.buffer) - start:
            self.at = len(self.buffer)
            raise IndexError
        self.at = start + length
        return start

    def _number(self, unpack: Callable[[bytes, int], tuple[Any, ...]], size: int) -> Any:
        return unpack(self.buffer, self._take(size))[0]

    def _text(self, length: int) -> str:
        start = self._take(length)
        return self.buffer[start : self.at].decode("utf-8", "surrogatepass")

    def _line(self) -> bytes:
        end = self.buffer.find(b"\n", self.at)
        if end < 0:
            self.at = len(self.buffer)
            raise IndexError
        line = self.buffer[self.at : end]
        self.at = end + 1
        return line

    def _marked(self) -> list[Any]:
        """The values above the last mark, which is gone then."""
        if not self.outer:
            raise Broken(self.at - 1, "goes back to a mark that it never set")
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _recall(self, slot: int) -> None:
        if slot not in self.memo:
            raise Broken(self.at - 1, f"recalls value {slot:,}, which it never kept")
        self.stack.append(self.memo[slot])

    def _decimal(self, text: bytes) -> int:
        try:
            if len(text) <= MAX_NUMBER:
                return int(text)
        except ValueError:
            pass
        raise Broken(self.at - 1, "holds a number that is none")

    def _float(self) -> None:
        try:
            self.stack.append(float(self._line()[:MAX_NUMBER]))
        except ValueError:
            raise Broken(self.at - 1, "holds a number that is none") from None

    def _int(self) -> None:
        line = self._line().strip()
        self.stack.append(line == b"01" if line in (b"00", b"01") else self._decimal(line))

    def _long(self, length: int) -> None:
        start = self._take(length)
        if length > MAX_NUMBER:
            raise Broken(start, f"holds a number of {length:,} bytes")
        self.stack.append(int.from_bytes(self.buffer[start : self.at], "little", signed=True))

    def _string(self) -> None:
        from codecs import escape_decode  # what pickle itself uses

        line = self._line().strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
            raise Broken(self.at - 1, "holds a text without quotes")
        try:
            self.stack.append(escape_decode(line[1:-1])[0].decode("latin-1"))
        except ValueError:
            raise Broken(self.at - 1, "holds a text with broken escapes") from None

    def _old_text(self, length: int) -> None:
        """Text of Python 2, which may be bytes in truth."""
        start = self._take(length)
        self.stack.append(self.buffer[start : self.at].decode("utf-8", "surrogateescape"))

    def _blob(self, length: int) -> None:
        self.stack.append(Blob(self._take(length), length))

    def _set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if len(pairs) % 2:
            raise Broken(self.at - 1, "sets a key without a value")
        into = target if isinstance(target, dict) else target.items if isinstance(target, Made) else {}
        for i in range(0, len(pairs), 2):
            key = pairs[i]
            into[key if type(key) is str else usable(key)] = pairs[i + 1]

    def _add(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _import(self, module: Any, name: Any) -> Any:
        if not (isinstance(module, str) and isinstance(name, str)):
            module = name = ""
        key = (_MOVED.get(module, module), name)
        if key not in self.globals:
            self.globals[key] = Global(*key)
        return self.imported(self.globals[key])

    def _global(self) -> None:
        module = self._line().decode("utf-8")
        self.stack.append(self._import(module, self._line().decode("utf-8")))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._import(module, name))

    def _extension(self, size: int) -> None:
        code = int.from_bytes(self.buffer[self._take(size) : self.at], "little")
        self.stack.append(self._import("copyreg", f"extension {code}"))

    def _old_instance(self, kind: Any, args: list[Any]) -> None:
        self.stack.append(self.call(kind, tuple(args)) if args else self.make(kind, ()))

    def _inst(self) -> None:
        module, name = self._line().decode("utf-8"), self._line().decode("utf-8")
        args = self._marked()
        self._old_instance(self._import(module, name), args)

    def _obj(self) -> None:
        kind, *args = self._marked() or [None]
        self._old_instance(kind, args)

    def _new(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.make(self.stack[-1], args)

    def _new_with_keywords(self) -> None:
        words, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = self.make(self.stack[-1], (args, words))

    def _build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def _pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._marked()

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _append(self) -> None:
        item = self.stack.pop()
        self._add([item])

    def _dict(self) -> None:
        pairs = self._marked()
        self.stack.append({})
        self._set(pairs)

    def _onto(self, add: Callable[[list[Any]], None]) -> None:
        items = self._marked()
        add(items)

    def _refuse_buffer(self) -> None:
        raise Broken(self.at - 1, "wants a buffer from outside the file")

    def _put(self, slot: int) -> None:
        if not 0 <= slot < 1 << 32:
            raise Broken(self.at - 1, "keeps a value under a number that is none")
        self.memo[slot] = self.stack[-1]

    def _proto(self) -> None:
        self.protocol = self.buffer[self.at]
        self.at += 1
        if self.protocol > 5:
            raise Broken(self.at - 1, f"is of protocol {self.protocol}; there are 0 to 5")

    _RARE: ClassVar[dict[int, Callable[[Machine], object]]] = {
        0x80: _proto,
        0x95: lambda m: m._take(8),  # FRAME: a hint for buffered reading
        ord("0"): _pop,
        ord("1"): _marked,
        ord("2"): lambda m: m.stack.append(m.stack[-1]),
        ord("N"): lambda m: m.stack.append(None),
        0x88: lambda m: m.stack.append(True),
        0x89: lambda m: m.stack.append(False),
        ord("I"): _int,
        ord("L"): lambda m: m.stack.append(m._decimal(m._line().strip().rstrip(b"L"))),
        0x8A: lambda m: m._long(m.buffer[m._take(1)]),
        0x8B: lambda m: m._long(m._number(_U32, 4)),
        ord("F"): _float,
        ord("G"): lambda m: m.stack.append(m._number(_F64, 8)),
        ord("S"): _string,
        ord("T"): lambda m: m._old_text(m._number(_U32, 4)),
        ord("U"): lambda m: m._old_text(m.buffer[m._take(1)]),
        ord("V"): lambda m: m.stack.append(m._line().decode("raw-unicode-escape")),
        0x8C: lambda m: m.stack.append(m._text(m.buffer[m._take(1)])),
        0x8D: lambda m: m.stack.append(m._text(m._number(_U64, 8))),
        ord("B"): lambda m: m._blob(m._number(_U32, 4)),
        ord("C"): lambda m: m._blob(m.buffer[m._take(1)]),
        0x8E: lambda m: m._blob(m._number(_U64, 8)),
        0x96: lambda m: m._blob(m._number(_U64, 8)),
        ord("]"): lambda m: m.stack.append([]),
        ord("a"): _append,
        ord("e"): lambda m: m._onto(m._add),
        ord("l"): lambda m: m.stack.append(m._marked()),
        ord("}"): lambda m: m.stack.append({}),
        ord("d"): _dict,
        ord("s"): _setitem,
        ord("u"): lambda m: m._onto(m._set),
        0x8F: lambda m: m.stack.append([]),  # a set is a list here: its entries need not be hashed
        0x90: lambda m: m._onto(m._add),
        0x91: lambda m: m.stack.append(m._marked()),
        ord("g"): lambda m: m._recall(m._decimal(m._line())),
        ord("p"): lambda m: m._put(m._decimal(m._line())),
        0x94: lambda m: m._put(len(m.memo)),
        ord("c"): _global,
        0x93: _stack_global,
        0x82: lambda m: m._extension(1),
        0x83: lambda m: m._extension(2),
        0x84: lambda m: m._extension(4),
        ord("b"): _build,
        ord("i"): _inst,
        ord("o"): _obj,
        0x81: _new,
        0x92: _new_with_keywords,
        ord("P"): lambda m: m.stack.append(m.refer(m._line().decode("utf-8"))),
        0x97: _refuse_buffer,
        0x98: lambda m: None,
    }
