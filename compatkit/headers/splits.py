"""Models split over several files, read as one: sharded safetensors or .bin (with or without an index), split GGUF."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from compatkit.headers.problems import problem, refused
from compatkit.sources.naming import base_name, counted, shown
from compatkit.vocabulary import FileProblem, Header, HeaderError, SourceError, Tensor

if TYPE_CHECKING:
    from compatkit.sources import Source

MAX_SHARDS = 4096
MAX_INDEX = 1 << 26  # bytes; an index of 100,000 tensors has 10 MB

_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5,6})-of-(?P<of>\d{5,6})(?P<end>\.safetensors|\.gguf|\.bin)", re.I | re.S)
_FIX_MISSING = "Download the missing parts into the same folder as the others."
_FIX_MIXED = "Download all parts and the index again, from the same revision."


def join_safetensors(source: Source) -> Header | None:
    """The whole of which `source` is the index or one shard; `None` if it is neither.

    Raises `HeaderError` if none of its shards can be read, or if the index is not to be trusted.
    """
    base = base_name(source.name)
    if base.lower().endswith(".json"):
        weight_map, index = _index(source)
        if weight_map is None:
            return None
        return _by_index(source, weight_map, index)
    part = _PART.fullmatch(base)
    if not part or part["end"].lower() == ".gguf":
        return None
    for name in _index_names(part["stem"], part["end"]):
        try:
            beside = source.sibling(name)
        except SourceError:
            continue
        if beside:
            with beside:
                weight_map, index = _index(beside)
                if weight_map and base in weight_map.values():
                    return _by_index(source, weight_map, index)
    return _by_name(source, part)


def _index_names(stem: str, end: str) -> tuple[str, ...]:
    names = [f"{stem}{end}.index.json"]
    if "." in stem:  # a variant: model.fp16-00001-of-00002 belongs to model.safetensors.index.fp16.json
        front, variant = stem.rsplit(".", 1)
        names.append(f"{front}{end}.index.{variant}.json")
    return tuple(names)


def _index(source: Source) -> tuple[dict[str, str] | None, dict[str, Any]]:
    """(weight_map, the index's metadata). The map is `None` if this is no index at all."""
    from compatkit.headers.sniff import read_json

    content = read_json(source, source.read(0, 64), MAX_INDEX)
    if not isinstance(content, dict) or "weight_map" not in content:
        return None, {}
    weight_map, about = content["weight_map"], content.get("metadata")
    name = source.name
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise refused("file/corrupt", f"{shown(name)} is an index whose weight_map is no list of files", _FIX_MIXED)
    for key, file in weight_map.items():
        if not file or file in (".", "..") or any(c in file for c in "/\\:\0"):
            raise refused(
                "file/shard-mismatch",
                f"{shown(name)} places tensor {shown(key)} in {shown(file)}, which is outside the index's folder",
                "Do not use this index: shards stand beside it, under bare names.",
                file=shown(file),
            )
    return weight_map, about if isinstance(about, dict) else {}


def _expected(weight_map: Mapping[str, str]) -> dict[str, int]:
    """About how long each shard's header is: what it says of a tensor takes some 130 bytes beside the name."""
    out: dict[str, int] = {}
    for key, file in weight_map.items():
        out[file] = out.get(file, 1024) + len(key) + 160
    return out


class _Whole:
    """Gathers shards into one header."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.base = base_name(source.name)
        self.known: Header | None = None  # that of `source`, where it was read before
        self.headers: list[tuple[str, Header]] = []
        self.missing: list[str] = []
        self.broken: list[str] = []
        self.problems: list[FileProblem] = []

    def add(self, files: Iterable[str], expected: Mapping[str, int] | None = None) -> None:
        """Reads the shards of those bare names, or notes why one cannot be; at once where the place gains by it.

        `expected` says about how long the headers are.
        """
        from compatkit.sources.network import mapped

        listed = list(files)
        found = mapped(lambda base: self._read(base, (expected or {}).get(base, 0)), listed, self.source.workers)
        for base, got in zip(listed, found, strict=True):
            if got is None:
                self.missing.append(base)
            elif isinstance(got, Header):
                self.headers.append((base, got))
            else:
                self.broken.append(base)
                self.problems.append(got)

    def _read(self, base: str, first: int) -> Header | FileProblem | None:
        from compatkit.headers import read_one

        try:
            if base == self.base:
                return self.known or read_one(self.source)
            opened = self.source.sibling(base, first)
            if opened is None:
                return None
            with opened:
                return read_one(opened)
        except HeaderError as error:
            return error.problem
        except SourceError as error:
            fix = "Check the file's kind and permissions."
            return error.problem or problem("file/unreadable", str(error), fix)

    def mismatch(self, message: str, fix: str = _FIX_MIXED, **evidence: Any) -> None:
        """Notes that the parts disagree."""
        level = evidence.pop("level", "error")
        self.problems.append(
            problem("file/shard-mismatch", f"{shown(self.source.name)}: {message}", fix, level, **evidence)
        )

    def note_missing(self, of: int) -> None:
        """Turns the shards that were not found into a problem."""
        if self.missing:
            names = ", ".join(shown(m) for m in self.missing[:3]) + (", …" if len(self.missing) > 3 else "")
            self.problems.append(
                problem(
                    "file/missing-shard",
                    f"{shown(self.source.name)}: {len(self.missing):,} of {of:,} parts are not in its folder: {names}",
                    _FIX_MISSING,
                    missing=[shown(m) for m in self.missing[:20]],
                    parts=of,
                )
            )

    def header(self) -> Header:
        """The whole. Raises the first problem if no shard could be read."""
        if not self.headers:
            worst = self.problems or [problem("file/missing-shard", f"{shown(self.source.name)} names no parts", "")]
            raise HeaderError(worst[0])
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, Any] = {}
        twice: list[str] = []
        for at, (base, header) in enumerate(self.headers):
            for key, tensor in header.tensors.items():
                if key in tensors:
                    twice.append(f"{shown(key)} in {shown(self.headers[tensors[key].shard][0])} and in {shown(base)}")
                else:
                    tensors[key] = tensor._replace(shard=at)
            metadata = {**header.metadata, **metadata}  # the first to say something is believed
            self.problems.extend(header.problems)
        if twice:
            self.mismatch(f"{counted(len(twice), 'tensor')} stand in two parts, first {twice[0]}", count=len(twice))
        return Header(
            self.source.name,
            self.headers[0][1].format,
            sum(h.size for _, h in self.headers),
            sum(h.header_bytes for _, h in self.headers),
            tensors,
            metadata,
            tuple(h.source for _, h in self.headers),
            tuple(self.problems),
        )


def _by_index(source: Source, weight_map: dict[str, str], about: dict[str, Any]) -> Header:
    files = sorted(set(weight_map.values()))
    if len(files) > MAX_SHARDS:
        message = f"{shown(source.name)} belongs to an index of {len(files):,} shards; no model has over {MAX_SHARDS:,}"
        raise refused("file/corrupt", message, _FIX_MIXED, parts=len(files))
    whole = _Whole(source)
    whole.add(files, _expected(weight_map))
    whole.note_missing(len(files))
    inside = {base: header.tensors for base, header in whole.headers}
    everywhere = {key for tensors in inside.values() for key in tensors}
    absent = [k for k, f in weight_map.items() if f in inside and k not in everywhere]
    moved = [k for k, f in weight_map.items() if f in inside and k not in inside[f] and k in everywhere]
    extra = [k for k in everywhere if k not in weight_map]
    if absent:
        first = f"first {shown(absent[0])} in {shown(weight_map[absent[0]])}"
        message = f"its index promises {counted(len(absent), 'tensor')} that no shard holds, {first}"
        whole.mismatch(message, count=len(absent))
    if moved:
        first = f"first {shown(moved[0])} in {shown(weight_map[moved[0]])}"
        message = f"its index places {counted(len(moved), 'tensor')} in the wrong shard, {first}"
        whole.mismatch(message, level="warning", count=len(moved))
    if extra:
        message = (
            f"its shards hold {counted(len(extra), 'tensor')} that the index does not list, first {shown(min(extra))}"
        )
        whole.mismatch(message, level="warning", count=len(extra))
    size = about.get("total_size")
    if type(size) is int and not whole.missing and not whole.broken:
        data = sum(t.nbytes for tensors in inside.values() for t in tensors.values())
        if size != data:
            # no loader reads it, and writers of tied weights get it wrong
            message = f"its index promises {counted(size, 'byte')} of data, the shards hold {data:,}"
            whole.mismatch(message, level="info", total_size=size, data=data)
    return whole.header()


def _by_name(source: Source, part: re.Match[str]) -> Header | None:
    """A shard without an index: its siblings by their names."""
    of = int(part["of"])
    if not 1 < of <= MAX_SHARDS or not 1 <= int(part["part"]) <= of:
        return None
    whole = _Whole(source)
    whole.add(_part_name(part, number) for number in range(1, of + 1))
    whole.note_missing(of)
    return whole.header()


def _part_name(part: re.Match[str], number: int) -> str:
    return f"{part['stem']}-{number:0{len(part['part'])}d}-of-{part['of']}{part['end']}"


def join_gguf(source: Source, header: Header) -> Header:
    """The whole of which `source` (already read: `header`) is one part, or `header` if it is the only one.

    Raises nothing of its own: one part has been read.
    """
    of, no = header.metadata.get("split.count"), header.metadata.get("split.no", 0)
    if type(of) is not int or type(no) is not int or of <= 1:
        return header
    base = base_name(source.name)
    whole = _Whole(source)
    part = _PART.fullmatch(base)
    if of > MAX_SHARDS or not 0 <= no < of:
        whole.headers.append((base, header))
        whole.mismatch(f"it says it is part {no + 1:,} of {of:,}", part=no, parts=of)
        return whole.header()
    if not part or part["end"].lower() != ".gguf" or int(part["of"]) != of or int(part["part"]) != no + 1:
        # loaders find the other parts by these names and no others
        whole.headers.append((base, header))
        whole.mismatch(
            f"it is part {no + 1} of {of} by its metadata, but its name does not end in -{no + 1:05d}-of-{of:05d}.gguf,"
            " by which loaders find the other parts",
            "Give all parts the names they were published under.",
            part=no,
            parts=of,
        )
        return whole.header()
    whole.known = header
    whole.add(_part_name(part, number) for number in range(1, of + 1))
    whole.note_missing(of)
    first = whole.headers[0][1].metadata
    for name, other in whole.headers:
        if other.metadata.get("split.count") != of:
            whole.mismatch(
                f"{shown(name)} says it is one of {shown(other.metadata.get('split.count'))} parts, not of {of}"
            )
        wanted = _PART.fullmatch(name)
        if wanted and other.metadata.get("split.no", 0) != int(wanted["part"]) - 1:
            whole.mismatch(f"{shown(name)} says it is part number {shown(other.metadata.get('split.no'))} (from 0)")
    total, found = first.get("split.tensors.count"), sum(len(h.tensors) for _, h in whole.headers)
    if type(total) is int and total != found and not whole.missing and not whole.broken:
        whole.mismatch(
            f"its parts hold {counted(found, 'tensor')}, {total:,} were promised", tensors=found, promised=total
        )
    return whole.header()
