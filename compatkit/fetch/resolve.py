"""A stack file and what was found in it -> a lock: commits, sizes, checksums, the files that make up each source."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from compatkit.headers import open_header
from compatkit.sources.naming import shown
from compatkit.sources.open import Network, is_remote, open_folder, open_place, open_source, shown_name
from compatkit.stacks.lockfile import Lock, LockedFile, LockedSource, header_digest, identified
from compatkit.stacks.stackfile import Entry, StackFile
from compatkit.vocabulary import Component, HeaderError, Report, SourceError

if TYPE_CHECKING:
    from compatkit.sources.address import Address

_WEIGHTS = (".safetensors", ".sft", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
#: What belongs to a diffusers folder beside its weights.
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_PIECE = 1 << 22


def lock(stack: StackFile, report: Report, network: Network, *, hashing: bool = False) -> Lock:
    """Pin every source of a stack.

    `hashing` computes the SHA-256 of files on this machine; those of the Hub come from its records.

    Raises:
        SourceError: a source cannot be pinned, in one sentence.
    """
    resolver = _Resolver(network, hashing)
    sources = tuple(resolver.source(e, _of(e, report.components)) for e in stack.entries)
    return Lock(stack, sources, report.verdict, report.headline)


def _of(entry: Entry, components: Sequence[Component]) -> list[Component]:
    """The components that one entry of a stack gave."""
    names = {entry.source, shown_name(entry.source)}
    inside = tuple(n.rstrip("/\\") + "/" for n in names)
    return [c for c in components if c.source in names or c.source.startswith(inside)]


class _Resolver:
    def __init__(self, network: Network, hashing: bool) -> None:
        self.network, self.hashing = network, hashing
        self._listings: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {}

    def source(self, entry: Entry, components: Sequence[Component]) -> LockedSource:
        asked = entry.written or entry.source
        digest, known = header_digest(components), identified(components)
        if is_remote(entry.source):
            from compatkit.sources.address import parse

            address = parse(entry.source)
            if address.kind == "hub":
                return self._hub(entry, asked, address, components, digest, known)
            if address.name != address.text:
                raise SourceError(f"{shown(address.name)} holds a secret or expires; a lock can only name plain links")
        files = self._files(entry, components)
        return LockedSource(entry, asked, files, known, digest)

    def _files(self, entry: Entry, components: Sequence[Component]) -> tuple[LockedFile, ...]:
        if not is_remote(entry.source) and os.path.isdir(entry.source):
            folder = open_folder(entry.source, network=self.network)
            names = _chosen(list(_walk(folder, "")), entry.source, components, folder)
            return tuple(self._file(n, folder.where(n)) for n in names)
        with open_source(entry.source, network=self.network) as source:
            shards = _shards(source)
        base = _base(entry.source)
        if not shards:
            return (self._file(base, entry.source, entry.sha256),)
        lead = entry.source[: len(entry.source) - len(base)]
        return tuple(self._file(n, lead + n) for n in shards)

    def _file(self, name: str, source: str, sha256: str | None = None) -> LockedFile:
        with open_source(source, network=self.network) as opened:
            size = opened.size
            version = str(getattr(opened, "etag", "")) or None
        if self.hashing and not is_remote(source):
            own = sha256_of(source)
            if sha256 and own != sha256:
                raise SourceError(f"{shown(source)} has SHA-256 {own}; the stack file says {sha256}")
            sha256 = own
        return LockedFile(name, source, size, sha256, version if is_remote(source) else None)

    def _hub(
        self,
        entry: Entry,
        asked: str,
        address: Address,
        components: Sequence[Component],
        digest: str | None,
        known: Any,
    ) -> LockedSource:
        commit, listed = self._listing(address)
        pinned = replace(address, revision=commit)
        lead = f"{address.path}/" if address.path else ""
        if address.path in listed:
            with open_source(pinned.at(address.path).text, network=self.network) as source:
                names = _shards(source) or [_base(address.path)]
            lead = address.path[: len(address.path) - len(_base(address.path))]
        else:
            folder = open_place(pinned.at(address.path).text, network=self.network)
            names = _chosen(
                [p.removeprefix(lead) for p in listed if p.startswith(lead)], entry.source, components, folder
            )
        files = []
        for name in names:
            record = listed.get(lead + name)
            if record is None or record.size is None:
                raise SourceError(f"{shown(asked)}: the Hub does not list {shown(name)} at {commit}")
            sha256 = record.sha256 or (entry.sha256 if len(names) == 1 else None)
            if record.sha256 and entry.sha256 and len(names) == 1 and record.sha256 != entry.sha256:
                raise SourceError(f"{shown(asked)} has SHA-256 {record.sha256}; the stack file says {entry.sha256}")
            files.append(LockedFile(name, pinned.at(lead + name).text, int(record.size), sha256))
        at = replace(entry, source=pinned.at(address.path).text)
        return LockedSource(at, asked, tuple(files), known, digest, commit)

    def _listing(self, address: Address) -> tuple[str, dict[str, Any]]:
        from compatkit.sources.hub import listing

        key = (address.repo_kind, address.repo, address.revision)
        if key not in self._listings:
            self._listings[key] = listing(self.network, replace(address, path=""))
        return self._listings[key]


def newer(source: LockedSource, network: Network, known: dict[tuple[str, ...], Any]) -> str:
    """What the place that the stack file names has now, in a sentence; empty where it is what was locked.

    `known` keeps the lists of repositories from one call to the next.
    """
    if not source.commit or not is_remote(source.asked):
        return ""
    from compatkit.sources.address import parse
    from compatkit.sources.hub import is_commit, listing

    asked = parse(source.asked)
    if asked.kind != "hub" or is_commit(asked.revision):
        return ""
    key = (asked.repo_kind, asked.repo, asked.revision)
    if key not in known:
        known[key] = listing(network, replace(asked, path=""))
    commit, listed = known[key]
    if commit == source.commit:
        return ""
    for file in source.files:
        record = listed.get(parse(file.source).path)
        if record is None:
            return f"{shown(source.asked)}: {shown(file.name)} is gone from {asked.revision} ({commit[:12]})"
        if record.size != file.size or (record.sha256 and file.sha256 and record.sha256 != file.sha256):
            return (
                f"{shown(source.asked)}: {asked.revision} has moved from {source.commit[:12]} to {commit[:12]}, with "
                f"another {shown(file.name)} ({record.size:,} bytes; {file.size:,} are locked)"
            )
    return ""


def sha256_of(path: str) -> str:
    """The SHA-256 of a file on this machine."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _shards(source: Any) -> list[str]:
    """Bare names of the files a split model is made of, its index first; none for one file."""
    try:
        header = open_header(source)
    except HeaderError:
        return []
    if len(header.shards) < 2:
        return []
    names = [_base(s) for s in header.shards]
    own = _base(source.name)
    return names if own in names else [own, *names]


def _chosen(names: Iterable[str], root: str, components: Sequence[Component], folder: Any) -> list[str]:
    """Of all files of a diffusers folder those that belong to the parts that were read, and every config."""
    wanted: set[str] = set()
    for c in components:
        inside = c.source.removeprefix(shown_name(root).rstrip("/\\")).replace("\\", "/").lstrip("/")
        wanted.add(inside)
        lead = inside[: len(inside) - len(_base(inside))]
        with folder.open(inside) as source:
            wanted |= {lead + n for n in _shards(source)}
    return sorted(
        n for n in names if n in wanted or (n.lower().endswith(_COMPANIONS) and not _foreign_index(n, wanted))
    )


def _foreign_index(name: str, wanted: set[str]) -> bool:
    """An index of weights that were not chosen (another variant)."""
    return name.endswith(".index.json") and name not in wanted


def _walk(folder: Any, inside: str) -> Iterable[str]:
    for name in folder.names(inside):
        path = f"{inside}/{name}" if inside else name
        if name.startswith("."):
            continue
        if folder.has(path):
            yield path
        else:
            yield from _walk(folder, path)


def _base(source: str) -> str:
    return source.rstrip("/\\").replace("\\", "/").rpartition("/")[2].partition("?")[0]
