"""`stack.toml`: a set of files by role, how it is meant to be run, and what its owner allows.

    name = "poster"
    runtime = "comfyui@0.33.0"              # or a list: the set must hold in each
    host = "RTX 5090"

    [files]                                 # ROLE = SOURCE, a list of them, or a table
    diffusion = "models/dit.gguf"
    text_encoder = ["hf://org/repo/clip_l.safetensors", "t5.safetensors"]
    vae = {source = "https://host/vae.safetensors", sha256 = "…", license = "apache-2.0"}

    [[lora]]
    source = "style.safetensors"
    strength = 0.8

    [settings]
    clip_type = "flux"

    [policy]
    fail_on = "warning"
    quantization = {diffusion = ["Q5_K", "Q6_K"]}
    size = "24 GB"
    licenses = ["apache-2.0"]
    rules = ["rules"]

Paths are relative to the file. Unknown keys are refused with the nearest known one and the line.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from msgspec import Struct, field

from compatkit.sources.naming import closest, shown
from compatkit.sources.open import shown_name
from compatkit.stacks.files import ROLES, Request
from compatkit.stacks.tomllines import Where, lines
from compatkit.vocabulary import LEVELS, Place, Policy, SourceError

#: No stack file is longer; a longer file is something else.
MAX_BYTES = 1 << 20
#: Keys of [files] that force no role: one file or folder that holds several.
WHOLES = ("checkpoint", "pipeline")
FILE_ROLES = (*(r for r in ROLES if r != "lora"), *WHOLES)

_TOP = ("name", "runtime", "host", "files", "lora", "settings", "policy")
_FILE = ("source", "assume", "sha256", "license", "to")
_LORA = (*_FILE, "strength", "strength_clip")
_POLICY = ("fail_on", "strict", "quantization", "size", "licenses", "rules")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?\Z")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class Entry(Struct, frozen=True):
    """One file of a stack: what to read, as what, and where the stack file names it."""

    source: str
    role: str | None
    line: int
    written: str = ""
    assume: str | None = None
    sha256: str | None = None
    license: str | None = None
    to: str | None = None
    strength: float | None = None
    strength_clip: float | None = None

    @property
    def request(self) -> Request:
        """The entry as a source that can be opened."""
        return Request(self.source, self.role, self.assume)


class StackFile(Struct, frozen=True):
    """A parsed `stack.toml`. `places` says where each source stands; the entry of "" is the table of files itself.

    `said` says where "runtime" and each setting ("settings.steps") stand.
    """

    path: str
    entries: tuple[Entry, ...]
    name: str = ""
    runtimes: tuple[str, ...] = ()
    host: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    policy: Policy | None = None
    places: Mapping[str, Place] = field(default_factory=dict)
    said: Mapping[str, Place] = field(default_factory=dict)

    def at(self, key: str) -> str:
        """The start of a sentence about what the file says: its name and, where it is known, the line."""
        place = self.said.get(key)
        return f"{place.file}:{place.line}: " if place else f"{self.path}: "

    @property
    def licenses(self) -> dict[str, str]:
        """Source, as reports name it -> the licence its entry names."""
        return {shown_name(e.source): e.license for e in self.entries if e.license}


def load(path: str) -> StackFile:
    """Read and check one stack file.

    Raises:
        SourceError: it cannot be read, is no TOML, or says something it may not; with the line.
    """
    try:
        with open(path, "rb") as f:
            raw = f.read(MAX_BYTES + 1)
    except OSError as e:
        raise SourceError(f"{shown(path)} cannot be read: {e.strerror or e}") from None
    if len(raw) > MAX_BYTES:
        raise SourceError(f"{shown(path)} is no stack file: it is longer than {MAX_BYTES >> 20} MB")
    return parse(raw, path)


def parse(raw: bytes, path: str) -> StackFile:
    """A stack file from its bytes; `path` is for messages and for what relative paths stand against."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise SourceError(f"{path}: not UTF-8 text (byte {e.start})") from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise SourceError(f"{path}: not TOML: {e}") from None
    except RecursionError:
        raise SourceError(f"{path}: not TOML that can be read: nested too deep") from None
    return _Parser(path, data, lines(text)).stack()


class _Parser:
    def __init__(self, path: str, data: dict[str, Any], where: Mapping[Where, int]) -> None:
        self.path, self.data, self.lines = path, data, where
        self.folder = os.path.dirname(path)

    def line(self, where: Where) -> int:
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)

    def fail(self, where: Where, message: str) -> NoReturn:
        raise SourceError(f"{self.path}:{self.line(where)}: {message}")

    def stack(self) -> StackFile:
        data = self.data
        self._keys((), data, _TOP)
        entries = [*self._files(), *self._loras()]
        if not entries:
            self.fail(("files",), "no file is named: [files] needs at least one ROLE = SOURCE")
        places: dict[str, Place] = {"": Place(self.path, self.line(("files",)))}
        for entry in entries:
            places.setdefault(shown_name(entry.source), Place(self.path, entry.line))
        return StackFile(
            path=self.path,
            entries=tuple(entries),
            name=self._text((), data, "name") or "",
            runtimes=tuple(self._texts((), data, "runtime")),
            host=self._text((), data, "host") or "",
            settings=self._settings(),
            policy=self._policy(),
            places=places,
            said=self._said(),
        )

    def _said(self) -> dict[str, Place]:
        named: dict[str, Where] = {"runtime": ("runtime",)}
        named |= {f"settings.{key}": ("settings", key) for key in self._table((), self.data, "settings")}
        return {key: Place(self.path, self.line(where)) for key, where in named.items()}

    def _files(self) -> list[Entry]:
        table = self._table((), self.data, "files")
        if "lora" in table:
            self.fail(("files", "lora"), "a LoRA has a strength: name it under [[lora]], with source = …")
        self._keys(("files",), table, FILE_ROLES)
        out = []
        for role, value in table.items():
            where: Where = ("files", role)
            several = value if isinstance(value, list) else [value]
            for i, item in enumerate(several):
                at: Where = (*where, i) if isinstance(value, list) else where
                out.append(self._entry(at, item, None if role in WHOLES else role, _FILE))
        return out

    def _loras(self) -> list[Entry]:
        value = self.data.get("lora", [])
        if not isinstance(value, list):
            self.fail(("lora",), "each LoRA is a table of its own, under [[lora]]")
        return [self._entry(("lora", i), item, "lora", _LORA) for i, item in enumerate(value)]

    def _entry(self, where: Where, item: Any, role: str | None, known: Sequence[str]) -> Entry:
        if isinstance(item, str):
            item = {"source": item}
        if not isinstance(item, Mapping):
            self.fail(where, "a file is a text (its source) or a table with the key 'source'")
        self._keys(where, item, known)
        source = self._text(where, item, "source")
        if not source:
            self.fail(where, "'source' is missing: a path, https://… or hf://…")
        sha256 = self._text(where, item, "sha256")
        if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
            self.fail((*where, "sha256"), "'sha256' is 64 hexadecimal digits")
        return Entry(
            source=self._beside(source),
            role=role,
            line=self.line((*where, "source")),
            written=source,
            assume=self._text(where, item, "assume"),
            sha256=sha256.lower() if sha256 else None,
            license=self._text(where, item, "license"),
            to=self._text(where, item, "to"),
            strength=self._number(where, item, "strength"),
            strength_clip=self._number(where, item, "strength_clip"),
        )

    def _beside(self, source: str) -> str:
        if "://" in source or os.path.isabs(source):
            return source
        return os.path.join(self.folder, os.path.expanduser(source)) if self.folder else os.path.expanduser(source)

    def _settings(self) -> dict[str, str]:
        out = {}
        for key, value in self._table((), self.data, "settings").items():
            if not isinstance(value, (str, int, float)):
                self.fail(("settings", key), f"setting {key!r} is a text or a number")
            out[key] = str(value).lower() if isinstance(value, bool) else str(value)
        return out

    def _policy(self) -> Policy | None:
        if "policy" not in self.data:
            return None
        where: Where = ("policy",)
        table = self._table((), self.data, "policy")
        self._keys(where, table, _POLICY)
        fail_on = self._text(where, table, "fail_on") or "error"
        if fail_on not in LEVELS[:2]:
            self.fail((*where, "fail_on"), f"'fail_on' is {' or '.join(LEVELS[:2])}, not {fail_on!r}")
        strict = table.get("strict", False)
        if not isinstance(strict, bool):
            self.fail((*where, "strict"), "'strict' is true or false")
        return Policy(
            fail_on=fail_on,
            strict=strict,
            quantization=self._quantization(table),
            size=self._size(table),
            licenses=tuple(self._texts(where, table, "licenses")),
            rules=tuple(self._beside(r) for r in self._texts(where, table, "rules")),
        )

    def _quantization(self, table: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        where: Where = ("policy", "quantization")
        value = table.get("quantization")
        if isinstance(value, Mapping):
            self._keys(where, value, ROLES)
            return {role: tuple(self._texts(where, value, role)) for role in value}
        return {"": tuple(self._texts(("policy",), table, "quantization"))} if value is not None else {}

    def _size(self, table: Mapping[str, Any]) -> int | None:
        value = table.get("size")
        if value is None:
            return None
        found = _SIZE.match(value) if isinstance(value, str) else None
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if not found:
            self.fail(("policy", "size"), "'size' is a number of bytes or a text such as \"24 GB\"")
        return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2].upper()])

    def _keys(self, where: Where, table: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in table:
            if key not in known:
                close = closest(key, known)
                hint = f"; did you mean {close!r}?" if close else f" (known: {', '.join(known)})"
                self.fail((*where, key), f"unknown key {key!r}{hint}")

    def _table(self, where: Where, table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = table.get(key, {})
        if not isinstance(value, Mapping):
            self.fail((*where, key), f"{key!r} is a table")
        return value

    def _text(self, where: Where, table: Mapping[str, Any], key: str) -> str | None:
        value = table.get(key)
        if value is not None and not isinstance(value, str):
            self.fail((*where, key), f"{key!r} is a text")
        return value

    def _texts(self, where: Where, table: Mapping[str, Any], key: str) -> list[str]:
        value = table.get(key, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            self.fail((*where, key), f"{key!r} is a text or a list of texts")
        return value

    def _number(self, where: Where, table: Mapping[str, Any], key: str) -> float | None:
        value = table.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail((*where, key), f"{key!r} is a number")
        return float(value)
