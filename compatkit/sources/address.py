"""What a source's text means: a path, a URL, a place on the Hub, or something an fsspec driver opens.

Nothing here touches the network or the disk.
"""

from __future__ import annotations

import os
import re
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

from msgspec import Struct
from msgspec.structs import replace

from compatkit.sources.naming import shown
from compatkit.vocabulary import SourceError

Kind = Literal["local", "http", "hub", "fsspec"]

DEFAULT_ENDPOINT = "https://huggingface.co"
#: Hosts whose web links are the Hub's, whatever endpoint is set.
_HUB_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
_REPO_KINDS = ("datasets", "spaces")
_FILE_LINKS = ("blob", "resolve", "raw")
#: The last part of a Hub path that ends so is a file; whether another one is, only the Hub knows.
FILE_SUFFIXES = (".safetensors", ".sft", ".gguf", ".json", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".toml", ".onnx")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://", re.A)
_REVISION = re.compile(r"refs/(?:pr|convert|heads|tags)/[^/]+|[^/]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.A)
_SECRET = re.compile(r"token|key|secret|sig|password|passwd|pwd|auth|cred|policy|session|jwt", re.I)
_CONTROL = re.compile(r"[\x00-\x20\x7f]")


class Address(Struct, frozen=True):
    """One source, understood. `name` is the text with every secret in it blotted out: the only form to show.

    `url` is set for "http" and "fsspec"; the last fields for "hub". `folder` says that the text can only be a folder
    (True), only be a file (False), or that it takes a look (None).
    """

    kind: Kind
    text: str
    name: str
    url: str = ""
    repo: str = ""
    repo_kind: str = ""
    revision: str = "main"
    path: str = ""
    folder: bool | None = None

    def at(self, path: str) -> Address:
        """The file or folder at `path` (from the repository's root), of the same repository and revision."""
        text = hub_text(self.repo, self.revision, path, self.repo_kind)
        return replace(self, text=text, name=text, path=path, folder=None)


def hub_text(repo: str, revision: str, path: str = "", repo_kind: str = "") -> str:
    """The `hf://…` spelling of a place on the Hub."""
    kind = f"{repo_kind}/" if repo_kind else ""
    at = f"@{revision}" if revision != "main" else ""
    return f"hf://{kind}{repo}{at}" + (f"/{path}" if path else "")


def endpoint() -> str:
    """Where the Hub is: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).strip().rstrip("/")


def is_remote(text: str) -> bool:
    """Whether a source's text is anything but a path (`file://` counts as remote: it is not a plain path)."""
    return "://" in text and _SCHEME.match(text) is not None


def parse(text: str) -> Address:
    """What `text` means.

    Raises:
        SourceError: it is a URL that cannot be used, in one sentence.
    """
    found = _SCHEME.match(text)
    if not found:
        return Address("local", text, text)
    scheme = found[1].lower()
    if scheme == "file":
        return Address("local", _file_path(text), text)
    if scheme == "hf":
        return _hub(text)
    if scheme in ("http", "https"):
        return _web(text)
    return Address("fsspec", text, redacted(text), url=text)


def redacted(url: str) -> str:
    """The URL with user, password and every value of a query that looks like a secret replaced by `…`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("?")[0]
    place = parts.netloc.rpartition("@")[2]
    if "@" in parts.netloc:
        place = "…@" + place
    query = "&".join(
        f"{key}={'…' if _SECRET.search(key) or len(value) > 40 else value}" if value else key
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
    )
    return urlunsplit((parts.scheme, place, parts.path, query, ""))


def _file_path(text: str) -> str:
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise SourceError(f"{shown(text)} names another machine; give a path on this one")
    path = unquote(parts.path)
    return path[1:] if re.match(r"/[A-Za-z]:", path) else path


def _web(text: str) -> Address:
    name = redacted(text)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise SourceError(f"{shown(name)} is not a URL: {e}") from None
    if not host or _CONTROL.search(parts.netloc):
        raise SourceError(f"{shown(name)} is not a URL: it names no host")
    if parts.username or parts.password:
        raise SourceError(f"{shown(name)} holds a user or password; put no secrets into a source's name")
    base = urlsplit(endpoint())
    if host in _HUB_HOSTS or (host, port) == (base.hostname, base.port):
        public = host in _HUB_HOSTS
        hub = _hub_link(name, parts.path if public else parts.path.removeprefix(base.path.rstrip("/")), public)
        if hub is not None:
            return hub
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    url = urlunsplit((parts.scheme.lower(), parts.netloc, path, quote(parts.query, safe="=&%:@!$'()*+,;/?~-._"), ""))
    return Address("http", text, name, url=url, folder=False)


def _hub_link(name: str, path: str, public: bool) -> Address | None:
    """A link to a page, file or folder of a repository; `None` if it is some other address on that host.

    A host that is not the `public` one may serve plain files beside the Hub's pages.
    """
    steps = [unquote(s) for s in path.split("/") if s]
    kind = steps.pop(0) if steps and steps[0] in _REPO_KINDS else ""
    if len(steps) > 1 and steps[1] in (*_FILE_LINKS, "tree"):
        repo, rest = steps[0], steps[1:]
    elif len(steps) > 1:
        repo, rest = "/".join(steps[:2]), steps[2:]
    else:
        return None
    if not all(_NAME.fullmatch(s) for s in repo.split("/")) or repo.startswith("api/"):
        return None
    address = Address("hub", name, name, repo=repo, repo_kind=kind)
    if not public and (not rest or rest[0] not in (*_FILE_LINKS, "tree")) and steps[-1].lower().endswith(FILE_SUFFIXES):
        return None
    if not rest:
        return replace(address, folder=True)
    if rest[0] not in (*_FILE_LINKS, "tree"):
        raise SourceError(f"{shown(name)} is a page about a repository; give the link of a file or of the repository")
    revision, path = _revision("/".join(rest[1:]))
    if not revision or (rest[0] != "tree" and not path):
        raise SourceError(f"{shown(name)} is not the link of a file: it should read …/{rest[0]}/REVISION/PATH")
    return _checked(replace(address, revision=revision, path=path, folder=rest[0] == "tree"))


def _hub(text: str) -> Address:
    steps = text.partition("://")[2].partition("?")[0].strip("/").split("/")
    kind = steps.pop(0) if steps[0] in _REPO_KINDS else ""
    if len(steps) < 2 or not steps[0] or not steps[1]:
        raise SourceError(f"{shown(text)} should read hf://ORG/REPO/PATH or hf://ORG/REPO@REVISION/PATH")
    last, marked, revision = "/".join(steps[1:]).partition("@")
    repo_name, _, path = last.partition("/")
    if marked and "/" not in last:
        revision, path = _revision(unquote(revision))
    else:  # an @ further on belongs to a file's name
        revision, path = "main", "/".join(steps[2:])
    repo = f"{steps[0]}/{repo_name}"
    if not all(_NAME.fullmatch(s) for s in repo.split("/")) or not revision:
        raise SourceError(f"{shown(text)} should read hf://ORG/REPO/PATH or hf://ORG/REPO@REVISION/PATH")
    folder = True if not path else False if path.lower().endswith(FILE_SUFFIXES) else None
    return _checked(Address("hub", text, text, "", repo, kind, revision, path, folder))


def _checked(address: Address) -> Address:
    if any(s in ("", ".", "..") for s in address.path.split("/")) and address.path:
        raise SourceError(f"{shown(address.name)} has a path with an empty step or dots in it")
    return address


def _revision(text: str) -> tuple[str, str]:
    """(revision, path) of `REVISION/PATH`."""
    found = _REVISION.match(text)
    return (found[0], text[found.end() :].strip("/")) if found else ("", "")
