"""The safetensors format: eight bytes of length, a JSON header, the data.

As strict as the safetensors library (0.8.0): no holes, no overlaps, no duplicate names, no wrong byte counts, nothing
after the last tensor. Where the library says "incomplete metadata", this says whether the file is cut short or damaged,
and where.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from msgspec import DecodeError, Raw, Struct
from msgspec import field as named
from msgspec.json import decode

from compatkit.headers.problems import corrupt, problem, refused, truncated
from compatkit.sources.naming import counted, shown
from compatkit.vocabulary import FileProblem, Header, Tensor

if TYPE_CHECKING:
    from compatkit.sources import Source

#: Bits per element of every dtype the library knows.
BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

#: The library's own limit on the JSON header, in bytes.
MAX_HEADER = 100_000_000
#: No model has as many tensors; to list more takes seconds and hundreds of megabytes.
MAX_TENSORS = 1 << 18

_U64 = 1 << 64
# Characters from which on JSON is looked at before it is parsed.
_LARGE = 1 << 20


class _Metadata(Struct):
    found: Raw | None = named(default=None, name="__metadata__")


class _Repeated(dict[str, Any]):
    """A JSON object that held a key twice; `key` is that key. The later value is the one kept."""

    __slots__ = ("key",)

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        seen: set[str] = set()
        self.key = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _Repeated(pairs)


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def read(source: Source) -> Header:
    """The header of one safetensors file. Reads 8 bytes and the JSON, no data.

    Raises `HeaderError`: `file/truncated`, `file/corrupt`, `file/unknown-dtype` or `file/unreadable`.
    """
    name, size = source.name, source.size
    if size < 8:
        raise truncated(name, size, 8, "a safetensors header needs 8 bytes for its length alone", exact=False)
    # one read is enough for nearly every header when the source is far away; `chunk` is cheap when it is near
    first = source.read(0, min(size, source.chunk))
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER:
        raise corrupt(
            name,
            f"bytes 0..8 give the header a length of {length:,} bytes, the format allows {MAX_HEADER:,}",
            header_length=length,
        )
    if length + 8 > size:
        raise truncated(name, size, length + 8, f"its header alone ends at byte {length + 8:,}", exact=False)
    raw = first[8 : length + 8]
    if len(raw) < length:
        raw += source.read(8 + len(raw), length - len(raw))
    del first
    top = _parse(name, raw)
    problems: list[FileProblem] = []
    metadata = _metadata(name, top, problems)
    tensors, end = _tensors(name, top, size, length + 8)
    if end < size:
        raise corrupt(
            name,
            f"its last tensor ends at byte {end:,}, but the file goes on for {counted(size - end, 'byte')}",
            data_end=end,
            size=size,
        )
    return Header(name, "safetensors", size, length + 8, tensors, metadata, (name,), tuple(problems))


def is_bomb(text: str) -> bool:
    """Whether a long JSON text is mostly brackets: parsed, those grow 20-fold in memory."""
    return len(text) > _LARGE and text.count("[") + text.count("{") > len(text) // 8


def _parse(name: str, raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        raise corrupt(name, f"its JSON header should start with '{{' at byte 8, but has {raw[:8]!r}", offset=8)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise corrupt(
            name, f"its JSON header is not UTF-8 at byte {8 + error.start:,}", offset=8 + error.start
        ) from None
    if (count := raw.count(b'"data_offsets"')) > MAX_TENSORS:
        what = f"{shown(name)} lists {count:,} tensors; no model has so many, and at most {MAX_TENSORS:,} are read"
        raise refused("file/not-a-model", what, "Name a file that holds one model.", tensors=count)
    if is_bomb(text):
        raise corrupt(name, f"its JSON header of {len(raw):,} bytes is mostly brackets, no list of tensors", offset=8)
    if (plain := _plain(raw, count)) is not None:
        return plain
    try:
        top = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        # `pos` counts characters
        at = 8 + len(text[: error.pos].encode())
        raise corrupt(name, f"its header is not JSON at byte {at:,}: {error.msg}", offset=at) from None
    except RecursionError:
        raise corrupt(name, "its JSON header is nested deeper than any list of tensors is", offset=8) from None
    except ValueError as error:
        raise corrupt(name, f"its header is not JSON: {str(error)[:80]}", offset=8) from None
    if not isinstance(top, dict):  # the text starts with '{', so this cannot be; the type checker wants it said
        raise corrupt(name, "its JSON header is not an object", offset=8)
    if isinstance(top, _Repeated):
        raise corrupt(name, f"its header names {shown(top.key)} twice", tensor=shown(top.key))
    if "\\ud" in text or "\\uD" in text:
        _no_lone_surrogates(name, top)
    return top


def _plain(raw: bytes, count: int) -> dict[str, Any] | None:
    """The header, decoded fast; None where anything is odd, for the slow look that can say what.

    A key given twice is seen by counting: every tensor has each of three words once, unless letters are written as
    numbers, and metadata is looked at alone.
    """
    if b"\\u00" in raw or raw.count(b'"__metadata__"') > 1:
        return None
    try:
        top: dict[str, Any] = decode(raw)
        metadata = decode(raw, type=_Metadata).found if "__metadata__" in top else None
    except (DecodeError, RecursionError):
        return None
    if metadata is not None:
        top["__metadata__"] = json.loads(bytes(metadata), object_pairs_hook=_object, parse_constant=_no_constant)
    tensors = len(top) - ("__metadata__" in top)
    if not tensors == count == raw.count(b'"dtype"') == raw.count(b'"shape"'):
        return None
    return top


def _no_lone_surrogates(name: str, top: dict[str, Any]) -> None:
    meta = top.get("__metadata__")
    inner = [w for pair in meta.items() for w in pair if isinstance(w, str)] if isinstance(meta, dict) else []
    for word in (*top, *inner):
        try:
            word.encode()
        except UnicodeEncodeError:
            raise corrupt(name, f"its header holds {shown(word)}, which is half a character", offset=8) from None


def _metadata(name: str, top: dict[str, Any], problems: list[FileProblem]) -> dict[str, str]:
    meta = top.pop("__metadata__", None)
    if meta is None:  # the library lets `null` pass
        return {}
    if not isinstance(meta, dict):
        raise corrupt(name, "its __metadata__ is not an object of strings")
    for key, value in meta.items():
        if type(value) is not str:
            raise corrupt(
                name, f"its __metadata__ holds {shown(key)} with a value that is not a string", key=shown(key)
            )
    if isinstance(meta, _Repeated):
        # the library keeps the last one in silence, so the file does load
        message = f"{shown(name)} holds the metadata key {shown(meta.key)} twice; the last value counts"
        problems.append(problem("file/corrupt", message, level="info", key=shown(meta.key)))
    return dict(meta)


def _tensors(name: str, top: dict[str, Any], size: int, start: int) -> tuple[dict[str, Tensor], int]:
    """Every tensor, checked one by one and then as a row without gaps; and the byte after the last."""
    tensors: dict[str, Tensor] = {}
    for key, entry in top.items():
        # the plain case first, in as few steps as possible: a checkpoint has thousands
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            count = 1
            for side in shape:
                if type(side) is not int or side < 0:
                    raise ValueError
                count *= side
            bits = BITS[dtype] * count
            good = type(begin) is type(end) is int and 0 <= begin <= end and (end - begin) * 8 == bits
        except (LookupError, TypeError, ValueError):
            good = False
        if not good or not count or type(entry) is _Repeated or type(shape) is not list:
            _examine(name, key, entry)
        tensors[key] = Tensor(dtype, tuple(shape), end - begin, start + begin)
    return tensors, _row(name, tensors, size, start)


def _row(name: str, tensors: dict[str, Tensor], size: int, start: int) -> int:
    """Holds the tensors to the library's rule: they fill the data from its first byte on, one after the other."""
    at, before = start, ""
    for key, t in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if t.offset != at:
            if t.offset < at:
                upto = min(at, t.offset + t.nbytes)
                what = f"tensors {shown(before)} and {shown(key)} both claim bytes {t.offset:,}..{upto:,}"
            elif before:
                what = f"bytes {at:,}..{t.offset:,} between tensors {shown(before)} and {shown(key)} belong to none"
            else:
                what = f"bytes {at:,}..{t.offset:,} before the first tensor {shown(key)} belong to none"
            raise corrupt(name, what, tensor=shown(key), offset=t.offset, expected=at)
        at, before = t.offset + t.nbytes, key
    if at > size:
        cut = sum(t.offset + t.nbytes > size for t in tensors.values())
        what = f"{cut:,} of {counted(len(tensors), 'tensor')} {'is' if cut == 1 else 'are'} not wholly there"
        raise truncated(name, size, at, what, tensors_cut=cut)
    return at


def _brief(value: Any) -> str:
    """A list from the header, short and without walking into what may be nested a thousand deep."""
    if not isinstance(value, list):
        return shown(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
    words = [str(v)[:24] if isinstance(v, (int, float)) else f"a {type(v).__name__}" for v in value[:8]]
    return f"[{', '.join(words)}{', …' if len(value) > 8 else ''}]"


def _examine(name: str, key: str, entry: Any) -> None:
    """Says what is wrong with an entry that did not pass the quick look; returns if nothing is."""

    def bad(what: str, **evidence: Any) -> NoReturn:
        raise corrupt(name, f"tensor {shown(key)} {what}", tensor=shown(key), **evidence)

    if not isinstance(entry, dict):
        bad("is not described by an object")
    if isinstance(entry, _Repeated) and entry.key in ("dtype", "shape", "data_offsets"):
        bad(f"has {entry.key!r} twice")
    for field in ("dtype", "shape", "data_offsets"):
        if field not in entry:
            bad(f"has no {field!r}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(type(s) is int and 0 <= s < _U64 for s in shape):
        bad(f"has a shape that is no list of sizes: {_brief(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(o) is int and 0 <= o < _U64 for o in offsets):
        bad(f"has data_offsets that are no pair of byte counts: {_brief(offsets)}")
    begin, end = offsets
    if begin > end:
        bad(f"ends at byte {end:,} of the data, before it begins at {begin:,}", data_offsets=[begin, end])
    if type(dtype) is not str:
        bad("has a dtype that is not a string")
    if dtype not in BITS:
        raise refused(
            "file/unknown-dtype",
            f"{shown(name)}: tensor {shown(key)} has dtype {shown(dtype)}, which safetensors 0.8.0 does not know",
            "Update the tools that read it, or convert the file to a known dtype.",
            tensor=shown(key),
            dtype=shown(dtype),
        )
    count = 1
    for side in shape:
        count *= side
        if count >= _U64:
            bad(f"has more elements than 64 bits can count: {_brief(shape)}")
    if count * BITS[dtype] % 8:
        bad(f"of dtype {dtype} and shape {_brief(shape)} does not fill whole bytes", dtype=dtype)
    if count * BITS[dtype] // 8 != end - begin:
        needs, has = count * BITS[dtype] // 8, end - begin
        bad(
            f"of dtype {dtype} and shape {_brief(shape)} needs {counted(needs, 'byte')}, but is given {has:,} "
            f"(data bytes {begin:,}..{end:,})",
            dtype=dtype,
            needs=needs,
            has=has,
        )
