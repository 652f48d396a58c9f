"""`stack.lock`: a stack that was checked, with every byte it stands for pinned. JSON, written by `compatkit lock`.

    {"lock": 1, "compatkit": "0.1.0", "verdict": "pass", "headline": "pass (diffusion, …)",
     "name": …, "runtime": [...], "host": …, "settings": {...}, "policy": {...},
     "sources": [{"asked": "hf://org/repo/vae.safetensors", "source": "hf://org/repo@COMMIT/vae.safetensors",
                  "role": "vae", "commit": "…", "header": "sha256 over the tensors", "components": [{"role": …, …}],
                  "files": [{"name": "vae.safetensors", "source": "hf://…", "size": 335304388, "sha256": "…"}]}]}

A source is what the stack file names; its files are what lies on disk in the end (one, or all of a folder or a split
model).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from msgspec import Struct, field
from msgspec.structs import asdict

from compatkit.sources.naming import shown
from compatkit.sources.open import shown_name
from compatkit.stacks.stackfile import Entry, StackFile
from compatkit.vocabulary import Component, FileProblem, Place, Policy, SourceError

VERSION = 1
#: No lock is longer; a longer file is something else.
MAX_BYTES = 8 << 20


class LockedFile(Struct, frozen=True):
    """One file to have: its name below the place it goes to, where it comes from, and what it must be.

    `etag` is the version a plain web server named; it is compared where no checksum is known.
    """

    name: str
    source: str
    size: int
    sha256: str | None = None
    etag: str | None = None


class LockedSource(Struct, frozen=True):
    """One source of the stack, pinned."""

    entry: Entry
    asked: str
    files: tuple[LockedFile, ...]
    components: tuple[Mapping[str, Any], ...] = ()
    header: str | None = None
    commit: str | None = None


class Lock(Struct, frozen=True):
    """A parsed lock: the stack it stands for, its pinned sources, and what was found when it was made."""

    stack: StackFile
    sources: tuple[LockedSource, ...]
    verdict: str
    headline: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def header_digest(components: Iterable[Component]) -> str | None:
    """SHA-256 over the names, dtypes, shapes and offsets of every tensor of one source; None if it has none."""
    tensors = {name: t for c in components for name, t in c.tensors.items()}
    if not tensors:
        return None
    digest = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        digest.update(json.dumps([name, t.dtype, list(t.shape), t.offset, t.shard]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def identified(components: Iterable[Component]) -> tuple[dict[str, Any], ...]:
    """What a lock keeps of the components of one source."""
    return tuple(
        {"role": c.role, "family": c.family, "layout": c.layout, "quantization": c.quantization.scheme}
        for c in components
    )


def moved(locked: LockedSource, components: Sequence[Component]) -> tuple[FileProblem, ...]:
    """How a source that was opened again differs from what was locked."""
    out = []
    name = shown(locked.entry.source)
    size = sum(f.size for f in locked.files if _is_weights(f.name))
    now = max((c.size for c in components), default=0) if len(components) < 2 else _sizes(components)
    digest = header_digest(components)
    readable = any(c.format != "unreadable" for c in components)
    if readable and size and now != size:
        out.append(_moved(f"{name} has {now:,} bytes; {size:,} were locked", {"size": size, "size_now": now}))
    elif readable and locked.header and digest and digest != locked.header:
        out.append(
            _moved(f"{name} has other tensors than were locked", {"header": locked.header, "header_now": digest})
        )
    return tuple(out)


def _sizes(components: Sequence[Component]) -> int:
    return sum({c.source: c.size for c in components}.values())


def _is_weights(name: str) -> bool:
    return name.lower().endswith((".safetensors", ".gguf", ".sft", ".bin", ".pt", ".ckpt", ".pth"))


def _moved(message: str, evidence: dict[str, Any]) -> FileProblem:
    fix = "Write the lock anew with `compatkit lock` once you trust the new file, or restore the old one."
    return FileProblem("file/moved", message, fix, evidence)


def dump(lock: Lock, version: str, folder: str = "") -> str:
    """The text of a lock that will lie in `folder`. The same stack gives the same text: there is no date in it."""
    stack = lock.stack
    document: dict[str, Any] = {
        "lock": VERSION,
        "compatkit": version,
        "verdict": lock.verdict,
        "headline": lock.headline,
        "name": stack.name,
        "runtime": list(stack.runtimes),
        "host": stack.host,
        "settings": dict(stack.settings),
        "policy": _policy_document(stack.policy, folder),
        "sources": [_source_document(s, folder) for s in lock.sources],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _policy_document(policy: Policy | None, folder: str) -> dict[str, Any] | None:
    if policy is None:
        return None
    rules = [written(r, folder) for r in policy.rules]
    return {**asdict(policy), "quantization": {k: list(v) for k, v in policy.quantization.items()}, "rules": rules}


def _source_document(s: LockedSource, folder: str) -> dict[str, Any]:
    e = s.entry
    document: dict[str, Any] = {"asked": s.asked, "source": written(e.source, folder), "role": e.role}
    for key in ("assume", "license", "to", "strength", "strength_clip"):
        if getattr(e, key) is not None:
            document[key] = getattr(e, key)
    if s.commit:
        document["commit"] = s.commit
    document["header"] = s.header
    document["components"] = [dict(c) for c in s.components]
    document["files"] = [_file_document(f, folder) for f in s.files]
    return document


def _file_document(f: LockedFile, folder: str) -> dict[str, Any]:
    document = {"name": f.name, "source": written(f.source, folder), "size": f.size, "sha256": f.sha256}
    return document | {"etag": f.etag} if f.etag else document


def written(source: str, folder: str) -> str:
    """A source as a file in `folder` names it: paths relative to it where they are not absolute."""
    if "://" in source or os.path.isabs(source):
        return source
    return os.path.relpath(source, folder or ".").replace(os.sep, "/")


def load(path: str) -> Lock:
    """Read a lock.

    Raises:
        SourceError: it cannot be read, or is no lock of a version known here.
    """
    try:
        with open(path, "rb") as f:
            raw = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise SourceError(f"{shown(path)} cannot be read: {e.strerror or e}") from None
    try:
        text = raw.decode("utf-8") if len(raw) <= MAX_BYTES else ""
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or "lock" not in document:
        raise SourceError(f"{shown(path)} is no lock: `compatkit lock stack.toml` writes one")
    if document["lock"] != VERSION:
        raise SourceError(f"{shown(path)} is a lock of version {document['lock']!r}; this compatkit reads {VERSION}")
    return _Reader(path, document, text).lock()


class _Reader:
    """Every value of a lock is checked: what it names is written to disk later."""

    def __init__(self, path: str, document: Mapping[str, Any], text: str) -> None:
        self.path, self.document, self.text = path, document, text
        self.folder = os.path.dirname(path)

    def fail(self, message: str) -> NoReturn:
        raise SourceError(f"{shown(self.path)}: {message}; write it anew with `compatkit lock`")

    def lock(self) -> Lock:
        d = self.document
        entries = d.get("sources")
        if not isinstance(entries, list) or not entries:
            self.fail("it names no sources")
        sources = tuple(self._source(e) for e in entries)
        places = {"": Place(self.path, 1)}
        for s in sources:
            places.setdefault(shown_name(s.entry.source), Place(self.path, s.entry.line))
        stack = StackFile(
            path=self.path,
            entries=tuple(s.entry for s in sources),
            name=self._text(d, "name") or "",
            runtimes=tuple(str(r) for r in d.get("runtime") or ()),
            host=self._text(d, "host") or "",
            settings={str(k): str(v) for k, v in (d.get("settings") or {}).items()},
            policy=self._policy(d.get("policy")),
            places=places,
        )
        return Lock(stack, sources, self._text(d, "verdict") or "unknown", self._text(d, "headline") or "")

    def _policy(self, value: Any) -> Policy | None:
        if not isinstance(value, dict):
            return None
        size = value.get("size")
        return Policy(
            fail_on=str(value.get("fail_on", "error")),
            strict=bool(value.get("strict")),
            quantization={str(k): tuple(map(str, v)) for k, v in (value.get("quantization") or {}).items()},
            size=size if isinstance(size, int) else None,
            licenses=tuple(map(str, value.get("licenses") or ())),
            rules=tuple(self._beside(str(r)) for r in value.get("rules") or ()),
        )

    def _source(self, d: Any) -> LockedSource:
        if not isinstance(d, dict) or not isinstance(d.get("source"), str) or not d["source"]:
            self.fail("an entry of 'sources' has no 'source'")
        asked = self._text(d, "asked") or d["source"]
        files = d.get("files")
        if not isinstance(files, list) or not files:
            self.fail(f"{shown(asked)} has no files")
        entry = Entry(
            source=self._beside(d["source"]),
            role=self._text(d, "role"),
            line=self._line(asked),
            written=asked,
            assume=self._text(d, "assume"),
            license=self._text(d, "license"),
            to=self._text(d, "to"),
            strength=d.get("strength"),
            strength_clip=d.get("strength_clip"),
        )
        return LockedSource(
            entry=entry,
            asked=asked,
            files=tuple(self._file(f, asked) for f in files),
            components=tuple(c for c in d.get("components") or () if isinstance(c, dict)),
            header=self._text(d, "header"),
            commit=self._text(d, "commit"),
        )

    def _file(self, d: Any, asked: str) -> LockedFile:
        name, size = (d.get("name"), d.get("size")) if isinstance(d, dict) else (None, None)
        if not isinstance(name, str) or not is_inside(name):
            self.fail(f"a file of {shown(asked)} has a name that leads elsewhere: {shown(name)}")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            self.fail(f"{shown(name)} has no size")
        sha256, source = self._text(d, "sha256"), self._text(d, "source")
        if not source:
            self.fail(f"{shown(name)} has no source")
        return LockedFile(name, self._beside(source), size, sha256, self._text(d, "etag"))

    def _beside(self, source: str) -> str:
        return source if "://" in source or os.path.isabs(source) else os.path.join(self.folder, source)

    def _line(self, asked: str) -> int:
        at = self.text.find(json.dumps(asked, ensure_ascii=False))
        return self.text.count("\n", 0, at) + 1 if at >= 0 else 1

    def _text(self, d: Mapping[str, Any], key: str) -> str | None:
        value = d.get(key)
        if value is not None and not isinstance(value, str):
            self.fail(f"{key!r} is not a text")
        return value


def is_inside(name: str) -> bool:
    """Whether a relative name stays below the folder it is joined to, on every platform."""
    parts = name.replace("\\", "/").split("/")
    return bool(name) and all(p not in ("", ".", "..") and "\0" not in p and ":" not in p for p in parts)
