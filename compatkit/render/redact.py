"""A report that may be sent to strangers: no home folder, user name, working folder or token in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from msgspec.structs import replace

from compatkit.vocabulary import Component, Finding, Place, Report

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s\"'<>]+")
#: Tokens as the services that models come from write them, and what stands behind a word that announces a secret.
_TOKENS = re.compile(
    r"\b(?:hf|gh[pousr]|github_pat|sk|xox[abp]|glpat|AKIA)[_-]?[A-Za-z0-9_-]{16,}|\bhf_[A-Za-z0-9]{6,}"
)
_SECRETS = re.compile(
    r"(?i)\b((?:authorization|api[_-]?key|access[_-]?token|token|password|passwd|secret)\s*[:=]\s*(?:bearer\s+|basic\s+)?)"
    r"[^\s,;\"']{4,}"
)
#: An e-mail address; `comfyui@0.3.76` and `name@v2.safetensors` are none.
_MAIL = re.compile(
    r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}"
    r"(?!(?:safetensors|sft|gguf|ckpt|json|ya?ml|toml|pth?|bin|py|txt|log|png)\b)[A-Za-z]{2,24}\b"
)
#: `/home/NAME`, `C:\Users\NAME`: the name ends at the next slash or quote, so that it may hold a space.
_HOMES = re.compile(
    r"(?:(?:[A-Za-z]:)?[\\/]+(?:home|Users|Documents and Settings)|/mnt/[a-z]/Users)[\\/]+[^\\/\n\"':*?<>|]+"
)
_PATHS = re.compile(r"(?<![\w.~:/\\…-])(?:[A-Za-z]:[\\/]|[\\/]{1,2}|~[\\/])(?:[^\s\\/\"'<>|:*?,;()\[\]]+[\\/])+")
_MAX = 200_000


class Redactor:
    """Takes out of texts what tells who and where their author is.

    Args:
        sources: the paths and addresses of the set; local ones are shown by base name.
        full_paths: leave paths as they are; secrets go in any case.
    """

    def __init__(self, sources: Iterable[str] = (), full_paths: bool = False) -> None:
        self.full_paths = full_paths
        folders = {os.path.dirname(s) for s in sources if not _SCHEME.match(s)}  # noqa: PTH120
        folders |= {os.path.dirname(os.path.abspath(f)) for f in folders if f}  # noqa: PTH100, PTH120 (texts)
        folders |= {os.path.expanduser("~"), os.getcwd()}  # noqa: PTH109, PTH111
        self._folders = sorted((f for f in folders if len(f) > 1), key=len, reverse=True)

    def text(self, text: str) -> str:
        """A sentence or a log line."""
        out = _URL.sub(lambda m: self.address(m[0]), text[:_MAX])
        out = _MAIL.sub("…", _SECRETS.sub(r"\1…", _TOKENS.sub("…", out)))
        if self.full_paths:
            return out
        for folder in self._folders:
            out = re.sub(rf"(?<![\w.]){re.escape(folder.rstrip('/' + os.sep))}(?:[/\\]|(?![\w.-]))", "…/", out)
        out = _PATHS.sub("…/", _HOMES.sub("…", out))
        return re.sub(r"(?:…/)+", "", out)

    def address(self, url: str) -> str:
        """An address without user, password, query and fragment."""
        try:
            parts = urlsplit(url)
        except ValueError:
            return "…"
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], _TOKENS.sub("…", parts.path), "", ""))

    def source(self, source: str) -> str:
        """A path by its base name, an address without its secrets."""
        if _SCHEME.match(source):
            return self.address(source)
        if self.full_paths:
            return source
        return source.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or self.text(source)

    def value(self, value: Any) -> Any:
        """Texts anywhere inside a value."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(k)): self.value(v) for k, v in value.items()}
        return [self.value(v) for v in value] if isinstance(value, (list, tuple)) else value

    def report(self, report: Report) -> Report:
        """The same report, fit to be sent."""
        return replace(
            report,
            components=tuple(self._component(c) for c in report.components),
            findings=tuple(self._finding(f) for f in report.findings),
            adapters=tuple(self.value(a) for a in report.adapters),
            not_checked=tuple(n._replace(why=self.text(n.why)) for n in report.not_checked),
            headline=self.text(report.headline),
            places={self.source(s): Place(self.source(p.file), p.line) for s, p in report.places.items()},
        )

    def _component(self, c: Component) -> Component:
        return replace(c, source=self.source(c.source), reason=self.text(c.reason))

    def _finding(self, f: Finding) -> Finding:
        return replace(
            f,
            message=self.text(f.message),
            predicts={k: self.text(v) for k, v in f.predicts.items()},
            fix=self.text(f.fix),
            evidence=self.value(f.evidence),
        )
