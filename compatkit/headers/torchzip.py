"""The list of contents of a zip file, and where its members' bytes lie, in as few reads as possible.

Read as torch's own zip reader does (miniz): by the last end record, with names that differ in more than case. A member
that two readers could find in two places is refused, not chosen.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from compatkit.headers.problems import corrupt, refused
from compatkit.sources.naming import shown
from compatkit.vocabulary import HeaderError

if TYPE_CHECKING:
    from compatkit.sources import Source

START = b"PK\x03\x04"
_ENTRY, _END, _END64, _LOCATOR64 = b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"

#: Bytes of the list of contents; 10,000 storages need 700,000.
MAX_LISTING = 1 << 22
#: Members whose start is looked up in the file itself, one read each, where it does not follow from the list.
MAX_LOOKUPS = 256

_TAIL = 22 + 0xFFFF  # the end record and the longest comment after it
_end = Struct("<4s4H2LH").unpack_from
_end64 = Struct("<4sQ2H2L4Q").unpack_from
_locator64 = Struct("<4sLQL").unpack_from
_entry = Struct("<4s6H3L5H2L").unpack_from
_local = Struct("<4s5H3L2H").unpack_from
_U64 = Struct("<Q").unpack_from

#: torch begins every member at a multiple of this.
_ALIGNED = 64


class Member(NamedTuple):
    """One file in a zip: `at` is where its header starts, `named` the bytes of its name, `next` where the
    following one starts."""

    name: str
    at: int
    size: int
    packed: int
    method: int
    flags: int
    named: int
    next: int


class Listing:
    """Everything a zip file holds, by lower-case name. `start` is where the list stands, `length` its bytes."""

    def __init__(self, source: Source) -> None:
        """Raises `HeaderError` if the list makes no sense, `NoEnd` if there is none."""
        self.source = source
        self.lookups = MAX_LOOKUPS
        raw = self._raw()
        self.members: dict[str, Member] = {}
        self._parse(raw)

    def _raw(self) -> bytes:
        source, size = self.source, self.source.size
        base = max(0, size - _TAIL)
        tail = source.read(base, _TAIL)
        at = tail.rfind(_END)
        if at < 0 or len(tail) - at < 22:
            raise NoEnd
        _, _, _, _, self.count, self.length, self.start, _ = _end(tail, at)
        locator = tail[at - 20 : at] if at >= 20 else b""
        if locator[:4] == _LOCATOR64:
            where = _locator64(locator)[2]
            wide = tail[where - base : where - base + 56] if where >= base else source.read(where, 56)
            if len(wide) < 56 or wide[:4] != _END64:
                raise self._wrong(f"its end record points to byte {where:,}, where none is", offset=where)
            self.count, self.length, self.start = _end64(wide)[7:10]
        if self.start + self.length > base + at or self.count * 46 > self.length:
            what = f"its list of contents should have {self.length:,} bytes from byte {self.start:,} on"
            raise self._wrong(f"{what}, which do not fit before its end record at byte {base + at:,}", offset=base + at)
        if self.length > MAX_LISTING:
            raise self._wrong(f"its list of contents has {self.length:,} bytes; no model's has over {MAX_LISTING:,}")
        if self.start >= base:
            return tail[self.start - base : self.start - base + self.length]
        return source.read(self.start, self.length)

    def _parse(self, raw: bytes) -> None:
        at, found = 0, []
        for number in range(self.count):
            if raw[at : at + 4] != _ENTRY or len(raw) - at < 46:
                raise self._wrong(f"entry {number + 1:,} of its list of contents is damaged", offset=self.start + at)
            fields = _entry(raw, at)
            flags, method, packed, size = fields[3], fields[4], fields[8], fields[9]
            name_length, extra_length, comment_length, place = *fields[10:13], fields[16]
            name = raw[at + 46 : at + 46 + name_length].decode("utf-8", "surrogateescape")
            extra = raw[at + 46 + name_length : at + 46 + name_length + extra_length]
            size, packed, place = _widened(extra, size, packed, place)
            if place + 30 > self.start or packed > self.start:
                raise self._wrong(f"it places {shown(name)} at byte {place:,}, outside its data", offset=place)
            found.append((place, name, size, packed, method, flags, name_length))
            at += 46 + name_length + extra_length + comment_length
        found.sort()
        for i, (place, name, _, packed, *_) in enumerate(found):
            following = found[i + 1][0] if i + 1 < len(found) else self.start
            if place + 30 + packed > following:
                raise self._wrong(f"{shown(name)} overlaps what follows it", offset=place)
            if name.lower() in self.members:
                raise self._wrong(f"it holds {shown(name)} twice, and readers differ over which one counts")
            self.members[name.lower()] = Member(name, place, *found[i][2:], following)

    def _wrong(self, what: str, **evidence: int) -> HeaderError:
        return corrupt(self.source.name, f"as a zip file, {what}", **evidence)

    def place(self, member: Member) -> int:
        """Where the bytes of a member start; -1 if they cannot be read straight, or would take too many reads to find.

        torch writes members without gaps, each at a multiple of 64, so the start follows from the next member's; where
        that gives no round number, it is read from the file.
        """
        if member.method or member.flags & 1 or member.packed != member.size:
            return -1
        for trailer in (16, 24) if member.flags & 8 else (0,):
            start = member.next - trailer - member.size
            if start % _ALIGNED == 0 and start >= member.at + 30 + member.named:
                return start
        if self.lookups <= 0:
            return -1
        self.lookups -= 1
        return self._looked_up(member)[0]

    def _looked_up(self, member: Member, more: int = 0) -> tuple[int, bytes]:
        raw = self.source.read(member.at, 30 + more)
        if raw[:4] != START or len(raw) < 30:
            raise self._wrong(f"{shown(member.name)} should start at byte {member.at:,}, where none does")
        fields = _local(raw)
        start = member.at + 30 + fields[9] + fields[10]
        if start + member.packed > self.start:
            raise self._wrong(f"{shown(member.name)} reaches into its list of contents", offset=start)
        return start, raw[start - member.at :]

    def content(self, member: Member, limit: int) -> tuple[bytes, int]:
        """The bytes of a member, unpacked, and where they start in the file (-1 if they are packed there).

        Raises `HeaderError` if it has more than `limit`, is encrypted, or does not unpack.
        """
        name = self.source.name
        if member.size > limit or member.packed > limit:
            what = f"{shown(name)}: its {shown(member.name)} has {max(member.size, member.packed):,} bytes"
            raise refused("file/pickle", f"{what}; over {limit:,} bytes it is not read", "Convert it to safetensors.")
        if member.flags & 1 or member.method not in (0, 8):
            what = f"{shown(name)}: its {shown(member.name)} is encrypted or packed in a way that torch does not read"
            raise refused("file/pickle", what, "Get the file that torch.save wrote.")
        start, raw = self._looked_up(member, len(member.name) + 256 + member.packed)
        if len(raw) < member.packed:
            raw += self.source.read(start + len(raw), member.packed - len(raw))
        raw = raw[: member.packed]
        if member.method == 0:
            if member.size != member.packed:
                raise self._wrong(f"{shown(member.name)} is said to have two sizes")
            return raw, start
        import zlib

        try:
            unpacked = zlib.decompressobj(-15).decompress(raw, member.size + 1)
        except zlib.error as error:
            raise self._wrong(f"{shown(member.name)} does not unpack ({error})") from None
        if len(unpacked) != member.size:
            raise self._wrong(f"{shown(member.name)} does not unpack to its {member.size:,} bytes")
        return unpacked, -1


class NoEnd(Exception):
    """A zip file without its end record: it was cut short, or is none."""


def _widened(extra: bytes, size: int, packed: int, place: int) -> tuple[int, int, int]:
    """The three numbers of an entry, those that did not fit in 32 bits from its zip64 field."""
    numbers = [size, packed, place]
    at = 0
    while at + 4 <= len(extra):
        kind, length = extra[at] | extra[at + 1] << 8, extra[at + 2] | extra[at + 3] << 8
        if kind == 1:
            field, inside = extra[at + 4 : at + 4 + length], 0
            for i, number in enumerate(numbers):
                if number == 0xFFFFFFFF and inside + 8 <= len(field):
                    numbers[i] = _U64(field, inside)[0]
                    inside += 8
            break
        at += 4 + length
    return numbers[0], numbers[1], numbers[2]


def first_name(head: bytes) -> tuple[str, int]:
    """Name of the first member by the file's first bytes, and where its content starts: for a file without a list."""
    if head[:4] != START or len(head) < 30:
        return "", 0
    name_length, extra_length = _local(head)[9:11]
    return head[30 : 30 + name_length].decode("utf-8", "replace"), 30 + name_length + extra_length
