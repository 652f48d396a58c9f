"""The GGUF format, versions 2 and 3, little-endian: typed metadata, a table of tensors, the data.

Vocabularies are walked, not built: an encoder's 150,000 tokens cost milliseconds and become an `ArraySummary`. Every
count is compared with the bytes that remain before it is believed.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

from compatkit.headers.cursor import Cursor, Past
from compatkit.headers.ggml import REMOVED, TYPES
from compatkit.headers.problems import DOWNLOAD_AGAIN, corrupt, problem, refused, truncated
from compatkit.sources.naming import counted, shown
from compatkit.vocabulary import ArraySummary, FileProblem, Header, HeaderError, Tensor, Unread

if TYPE_CHECKING:
    from compatkit.sources import Source

MAGIC = b"GGUF"
VERSIONS = (2, 3)

#: Limits no real file comes near (the largest vocabularies make headers of 20 MB); beyond them a header is damaged.
MAX_HEADER = 1 << 28
MAX_TENSORS = 1 << 18
MAX_KEYS = 1 << 16
MAX_NAME = (1 << 16) - 1  # the format's own, for keys
MAX_DIMENSIONS = 8
MAX_DEPTH = 4  # of arrays in arrays
MAX_NESTED = 1 << 16  # arrays in arrays, in all

#: What of the metadata is kept: arrays of up to so many entries, strings of up to so many bytes, so many bytes in all.
KEEP_ENTRIES = 64
KEEP_STRING = 1 << 18
KEEP_TOTAL = 1 << 24

_U64 = 1 << 64
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY, _BOOL = 8, 9, 7

# code -> (name, layout) of the numbers metadata may hold
_NUMBERS: dict[int, tuple[str, Struct]] = {
    0: ("uint8", Struct("<B")),
    1: ("int8", Struct("<b")),
    2: ("uint16", Struct("<H")),
    3: ("int16", Struct("<h")),
    4: ("uint32", Struct("<I")),
    5: ("int32", Struct("<i")),
    6: ("float32", Struct("<f")),
    _BOOL: ("bool", Struct("<?")),
    10: ("uint64", Struct("<Q")),
    11: ("int64", Struct("<q")),
    12: ("float64", Struct("<d")),
}
_ALIGNMENT_CODE = 4

_TENSOR_TAIL = {n: Struct(f"<{n}QIQ") for n in range(MAX_DIMENSIONS + 1)}  # sides, type, offset
_SMALLEST_TENSOR = 24  # length of an empty name, number of sides, type, offset
_SMALLEST_KEY = 13  # length of an empty key, type, one byte


class _Enough(Exception):
    """A list so long that the caller would rather do without what stands behind it. `key` is its name."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def read(source: Source, brief: bool = False) -> Header:
    """The header of one GGUF file. Shapes are turned to torch order, offsets count from the start of the file.

    With `brief` the reading stops before a vocabulary that does not lie in the first piece read: `Header.unread` is
    then set.

    Raises `HeaderError`: `file/gguf-version`, `file/big-endian`, `file/truncated`, `file/corrupt`,
    `file/unknown-dtype` or `file/unreadable`.
    """
    return _Reader(source, brief).read()


class _Reader:
    def __init__(self, source: Source, brief: bool = False) -> None:
        self.brief = brief
        self.metadata: dict[str, Any] = {}
        self.name = source.name
        self.size = source.size
        self.cursor = Cursor(source, MAX_HEADER)
        self.alignment = _DEFAULT_ALIGNMENT
        self.kept = 0  # bytes that the metadata strings kept so far take in memory, about
        self.nested = 0  # arrays in arrays so far
        self.key = ""  # of the metadata, the one being read
        self.where = "the first 24 bytes"  # what is being read, for messages

    def read(self) -> Header:
        try:
            tensor_count, key_count = self._start()
            try:
                metadata = self._metadata(key_count)
            except _Enough as enough:
                at = self.cursor.at
                unread = Unread(at, tensor_count, enough.key)
                return Header(self.name, "gguf", self.size, 0, {}, self.metadata, (self.name,), (), unread)
            table = self._table(tensor_count)
        except Past as past:
            raise self._past(past) from None
        start = -(-self.cursor.at // self.alignment) * self.alignment
        tensors = {key: Tensor(dtype, shape, n, start + offset) for key, dtype, shape, n, offset in table}
        problems = self._check_data(tensors, start)
        return Header(
            self.name, "gguf", self.size, min(start, self.size), tensors, metadata, (self.name,), tuple(problems)
        )

    def _past(self, past: Past) -> HeaderError:
        end = past.at + past.length
        evidence = {"offset": past.at, "needs": past.length}
        if past.length > MAX_HEADER:  # a damaged number: nothing in a header is that long
            left = self.size - past.at
            what = f"{self.where} at byte {past.at:,} claims {past.length:,} bytes, but {left:,} remain"
            return corrupt(self.name, what, **evidence)
        if end <= self.size:
            what = f"its header does not end within {MAX_HEADER:,} bytes; {self.where} reaches to byte {end:,}"
            return corrupt(self.name, what, **evidence)
        what = f"the header stops inside {self.where}, which reaches to byte {end:,}"
        return truncated(self.name, self.size, end, what, exact=False, **evidence)

    def _start(self) -> tuple[int, int]:
        magic, version = self.cursor.take(4), self.cursor.u32()
        if magic != MAGIC:
            raise corrupt(self.name, f"its first four bytes are {magic!r}, not {MAGIC!r}", offset=0)
        if version and version & 0xFFFF == 0:
            true = int.from_bytes(version.to_bytes(4, "little"), "big")
            raise refused(
                "file/big-endian",
                f"{shown(self.name)} is a GGUF v{true} for big-endian machines (bytes 4..8 hold the version reversed)",
                "Get the little-endian file, or turn it with gguf-convert-endian of the gguf package.",
                version=true,
            )
        if version == 0:
            what = "byte 4 holds version 0, which there never was"
            raise corrupt(self.name, what, version=version)
        if version not in VERSIONS:
            age = "older" if version < VERSIONS[0] else "newer"
            fix = (
                "Get a newer conversion of the model: no current loader reads v1."
                if age == "older"
                else "Update the tools that read it. If none knows that version, the file is damaged: get it again."
            )
            raise refused(
                "file/gguf-version",
                f"{shown(self.name)} is GGUF v{version} (byte 4), {age} than v2 and v3, which can be read",
                fix,
                version=version,
            )
        tensor_count, key_count = self.cursor.u64(), self.cursor.u64()
        for count, most, smallest, noun, at in (
            (tensor_count, MAX_TENSORS, _SMALLEST_TENSOR, "tensor", 8),
            (key_count, MAX_KEYS, _SMALLEST_KEY, "metadata key", 16),
        ):
            if count > most:
                raise corrupt(
                    self.name,
                    f"bytes {at}..{at + 8} claim {counted(count, noun)}; no model has over {most:,}",
                    count=count,
                )
            if count * smallest > self.size - 24:
                what = f"{counted(count, noun)} take at least {count * smallest:,} bytes of header"
                raise truncated(self.name, self.size, 24 + count * smallest, what, exact=False, count=count)
        return tensor_count, key_count

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata = self.metadata
        for index in range(count):
            self.where = f"metadata key {index + 1} of {count}"
            key, at = self._name("metadata key"), self.cursor.at
            if key in metadata:
                raise corrupt(self.name, f"metadata key {shown(key)} stands there twice", key=shown(key), offset=at)
            self.where, self.key = f"the value of {shown(key)}", key
            code = self.cursor.u32()
            metadata[key] = value = self._value(code, at, 0)
            if key == "general.alignment":
                if code != _ALIGNMENT_CODE or value < 1 or value & (value - 1):
                    raise corrupt(self.name, f"general.alignment is {shown(value)}, no power of two", offset=at)
                self.alignment = value
        return metadata

    def _name(self, noun: str) -> str:
        at = self.cursor.at
        length = self.cursor.u64()
        if length > MAX_NAME:
            what = f"the name of a {noun} at byte {at:,} is {length:,} bytes long, the format allows {MAX_NAME:,}"
            raise corrupt(self.name, what, offset=at, length=length)
        raw = self.cursor.take(length)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise corrupt(self.name, f"the name of a {noun} at byte {at:,} is not UTF-8", offset=at) from None

    def _value(self, code: int, at: int, depth: int) -> Any:
        cursor = self.cursor
        if number := _NUMBERS.get(code):
            layout = number[1]
            return layout.unpack(cursor.take(layout.size))[0]
        if code == _STRING:
            return self._string()
        if code != _ARRAY:
            raise corrupt(
                self.name, f"{self.where} has type {code} at byte {at:,}; types end at 12", offset=at, type=code
            )
        if depth >= MAX_DEPTH:
            raise corrupt(self.name, f"{self.where} nests arrays more than {MAX_DEPTH} deep at byte {at:,}", offset=at)
        at = cursor.at
        code, count = cursor.u32(), cursor.u64()
        if number := _NUMBERS.get(code):
            name, layout = number
            if count > KEEP_ENTRIES:
                cursor.skip(count * layout.size)
                return ArraySummary(name, count)
            raw = cursor.take(count * layout.size)
            return tuple(value for (value,) in layout.iter_unpack(raw))
        if code == _STRING:
            if count > KEEP_ENTRIES:
                if self.brief and not depth and cursor.ahead < count * 8 <= cursor.limit - cursor.at:
                    self.metadata[self.key] = ArraySummary("string", count)
                    raise _Enough(self.key)
                cursor.skip_strings(count)
                return ArraySummary("string", count)
            strings = [self._string() for _ in range(count)]
            return tuple(strings) if all(type(s) is str for s in strings) else ArraySummary("string", count)
        if code == _ARRAY:
            if count * 12 > cursor.limit - cursor.at:  # 12: type and count of an empty array
                raise Past(cursor.at, count * 12)
            self.nested += count
            if self.nested > MAX_NESTED:
                raise corrupt(self.name, f"{self.where} holds over {MAX_NESTED:,} arrays in arrays", offset=at)
        entries = [self._value(code, at, depth + 1) for _ in range(min(count, KEEP_ENTRIES))]
        for _ in range(count - len(entries)):
            self._value(code, at, depth + 1)
        return tuple(entries) if count <= KEEP_ENTRIES else ArraySummary("array", count)

    def _string(self) -> str | ArraySummary:
        """A string; one too long to keep (a whole tokenizer in one value) is an `ArraySummary` of its bytes."""
        length = self.cursor.u64()
        cost = length + 64
        if length > KEEP_STRING or self.kept + cost > KEEP_TOTAL:
            self.cursor.skip(length)
            return ArraySummary("byte", length)
        self.kept += cost
        # text for people: a damaged character must not stop the reading of the rest
        return self.cursor.take(length).decode("utf-8", "replace")

    def _table(self, count: int) -> list[tuple[str, str, tuple[int, ...], int, int]]:
        """(name, dtype, shape, bytes, offset in the data) of each tensor."""
        table: list[tuple[str, str, tuple[int, ...], int, int]] = []
        seen: set[str] = set()
        cursor = self.cursor
        for index in range(count):
            self.where = f"the description of tensor {index + 1} of {count}"
            at = cursor.at
            key = self._name("tensor")
            if key in seen:
                raise corrupt(self.name, f"tensor {shown(key)} stands there twice", tensor=shown(key), offset=at)
            seen.add(key)
            dimensions = cursor.u32()
            if dimensions > MAX_DIMENSIONS:
                raise corrupt(
                    self.name,
                    f"tensor {shown(key)} (byte {at:,}) has {dimensions:,} dimensions, over {MAX_DIMENSIONS}",
                    tensor=shown(key),
                    offset=at,
                )
            layout = _TENSOR_TAIL[dimensions]
            *sides, code, offset = layout.unpack(cursor.take(layout.size))
            if code not in TYPES:
                raise self._unknown(key, code, at)
            dtype, block, block_bytes = TYPES[code]
            elements = 1
            for side in sides:
                elements *= side
                if elements >= _U64:
                    what = f"tensor {shown(key)} (byte {at:,}) has more elements than 64 bits can count"
                    raise corrupt(self.name, what, tensor=shown(key), offset=at)
            if block > 1 and (sides[0] if sides else 1) % block:
                what = f"tensor {shown(key)} (byte {at:,}) has rows of {sides[0] if sides else 1:,}"
                raise corrupt(
                    self.name, f"{what}, {dtype} is packed in blocks of {block}", tensor=shown(key), offset=at
                )
            table.append((key, dtype, tuple(reversed(sides)), elements // block * block_bytes, offset))
        for key, _, _, _, offset in table:
            if offset % self.alignment:
                what = (
                    f"tensor {shown(key)} starts at data byte {offset:,}, no multiple of the alignment {self.alignment}"
                )
                raise corrupt(self.name, what, tensor=shown(key), offset=offset)
        return table

    def _unknown(self, key: str, code: int, at: int) -> HeaderError:
        old = REMOVED.get(code)
        which = f"{old}, which ggml no longer reads" if old else "not among those of gguf 0.19.0"
        return refused(
            "file/unknown-dtype",
            f"{shown(self.name)}: tensor {shown(key)} (byte {at:,}) has ggml type {code}, {which}",
            "Get the model in another quantisation." if old else f"Update the tools that read it. {DOWNLOAD_AGAIN}",
            tensor=shown(key),
            type=code,
        )

    def _check_data(self, tensors: dict[str, Tensor], start: int) -> list[FileProblem]:
        """Overlaps and the end of the file. Gaps are allowed: writers pad."""
        end, padded, before = start, 0, ""
        for key, t in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
            if t.offset < end and t.nbytes:
                upto = min(end, t.offset + t.nbytes)
                what = f"tensors {shown(before)} and {shown(key)} both claim bytes {t.offset:,}..{upto:,}"
                raise corrupt(self.name, what, tensor=shown(key), offset=t.offset)
            if t.offset + t.nbytes > self.size and t.offset > start + padded:
                # a cut file's tensors still stand in a row; one that starts beyond what all before it fill is misplaced
                claimed = f"bytes {t.offset:,}..{t.offset + t.nbytes:,}"
                what = f"tensor {shown(key)} claims {claimed}, the file has {self.size:,}"
                raise corrupt(self.name, what, tensor=shown(key), offset=t.offset, size=self.size)
            end, before = max(end, t.offset + t.nbytes), key
            padded += -(-t.nbytes // self.alignment) * self.alignment
        if end > self.size and tensors:
            cut = sum(t.offset + t.nbytes > self.size for t in tensors.values())
            what = f"{cut:,} of {counted(len(tensors), 'tensor')} {'is' if cut == 1 else 'are'} not wholly there"
            raise truncated(self.name, self.size, end, what, tensors_cut=cut)
        if tensors and self.size - end >= self.alignment:
            message = f"{shown(self.name)} goes on for {self.size - end:,} bytes after its last tensor (byte {end:,})"
            return [problem("file/trailing-data", message, DOWNLOAD_AGAIN, "info", data_end=end, size=self.size)]
        return []
