"""Files and folders of the Hugging Face Hub, read in place."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from msgspec import Struct
from msgspec.structs import replace

from compatkit.sources.address import Address, endpoint, hub_text
from compatkit.sources.http import HttpSource
from compatkit.sources.trouble import trouble
from compatkit.vocabulary import SourceError

if TYPE_CHECKING:
    from compatkit.sources.client import Head
    from compatkit.sources.network import Network

#: The list of a repository's files is refused beyond so many bytes.
MAX_LISTING = 32 << 20
_COMMIT = frozenset("0123456789abcdef")


def token() -> str:
    """The user's token: HF_TOKEN, else what a login left on this machine. Empty if there is none."""
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in ("1", "true", "yes", "on"):
        return ""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if own := os.environ.get(variable, "").strip():
            return own if own.isprintable() else ""
    home = os.environ.get("HF_HOME") or os.path.join(  # noqa: PTH118
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"),  # noqa: PTH111, PTH118
        "huggingface",
    )
    place = os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")  # noqa: PTH118
    if not os.path.exists(os.path.expanduser(place)):  # noqa: PTH110, PTH111
        return ""  # the library takes longer to load than most headers to read
    from huggingface_hub import get_token

    return get_token() or ""


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit, which never changes."""
    return len(revision) == 40 and not set(revision) - _COMMIT


def file_url(address: Address) -> str:
    """The link to the bytes of a file."""
    kind = f"{address.repo_kind}/" if address.repo_kind else ""
    return f"{endpoint()}/{kind}{address.repo}/resolve/{quote(address.revision, safe='')}/{quote(address.path)}"


class HubSource(HttpSource):
    """One file of a repository. `commit` is the one it was read from, where the Hub said so."""

    def __init__(self, network: Network, address: Address, first: int = 0) -> None:
        self.address = address
        self.commit = address.revision if is_commit(address.revision) else ""
        super().__init__(network, file_url(address), address.name, pinned=self.commit, first=first)

    @property
    def identity(self) -> str:
        """See `Source.identity`."""
        where = hub_text(self.address.repo, self.commit or self.address.revision, self.address.path)
        return f"{where}|{self.size}|{self.etag}"

    def token(self) -> str:
        """The user's, for the Hub's own host."""
        return token()

    def learn(self, head: Head) -> bool:
        """The Hub sends large files from elsewhere, and says in the redirect which commit and content they are."""
        self.commit = head.headers.get("x-repo-commit", "") or self.commit
        linked = head.headers.get("x-linked-etag", "")
        if not linked:
            return False
        self.etag = linked
        entry = self._entry
        return entry is not None and entry.etag == linked and head.headers.get("x-linked-size", "") == str(entry.size)

    def refusal(self, head: Head) -> SourceError | None:
        """The Hub's own reasons."""
        return explained(self.address, self.name, head)

    def sibling(self, name: str, first: int = 0) -> HubSource | None:
        """See `Source.sibling`: a file beside this one, of the same commit."""
        if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
            return None
        folder = self.address.path.rpartition("/")[0]
        beside = replace(self.address, revision=self.commit or self.address.revision)
        try:
            return HubSource(self.network, beside.at(f"{folder}/{name}" if folder else name), first)
        except SourceError as e:
            if e.problem and e.problem.rule == "file/not-found":
                return None
            raise


def explained(address: Address, name: str, head: Head) -> SourceError | None:
    """What an error of the Hub means; `None` if it is none of its own."""
    code, status = head.headers.get("x-error-code", ""), head.status
    page = f"{endpoint()}/{address.repo_kind + '/' if address.repo_kind else ''}{address.repo}"
    known = bool(token())
    if code == "GatedRepo" or (status == 403 and not code):
        how = (
            f"Accept the licence at {page} with the account that the token belongs to."
            if known
            else f"Accept the licence at {page}, and log in (`hf auth login`) or set HF_TOKEN."
        )
        return trouble("file/gated", name, f"is gated: its licence has to be accepted first ({status})", how)
    if code == "EntryNotFound":
        return trouble(
            "file/not-found", name, f"does not exist in {address.repo} at {address.revision}", f"See {page}/tree/main."
        )
    if code == "RevisionNotFound":
        return trouble(
            "file/not-found", name, f"does not exist: {address.repo} has no revision {address.revision}", f"See {page}."
        )
    if code == "RepoNotFound" or status == 401:
        what = "does not exist, or is private and needs " + ("another token" if known else "a token")
        how = f"Check the name at {page}" + ("." if known else "; for a private one log in or set HF_TOKEN.")
        rule = "file/not-found" if status == 404 else "file/gated"
        return trouble(rule, name, f"{what} ({status})", how)
    return None


class Entry(Struct, frozen=True):
    """One file of a repository: its size, and the SHA-256 of its content where the Hub stores it as a large file."""

    size: int | None
    sha256: str | None


class HubFolder:
    """A repository or a folder of one, as it stands at one commit. Implements `Folder`."""

    #: See `Folder.workers`.
    workers = 16

    def __init__(self, network: Network, address: Address) -> None:
        self.network = network
        self.address = address
        self.name = address.name
        commit, entries = listing(network, address)
        self.commit = commit
        lead = f"{address.path}/" if address.path else ""
        #: Path below this folder → what is known of the file.
        self.files: Mapping[str, Entry] = {p.removeprefix(lead): e for p, e in entries.items() if p.startswith(lead)}
        if not self.files:
            raise trouble(
                "file/not-found", self.name, f"does not exist in {address.repo} at {address.revision}, or is empty"
            )

    def names(self, inside: str = "") -> list[str]:
        """See `Folder.names`."""
        lead = f"{inside}/" if inside else ""
        return sorted({p[len(lead) :].partition("/")[0] for p in self.files if p.startswith(lead)})

    def has(self, path: str) -> bool:
        """See `Folder.has`."""
        return path in self.files

    def where(self, path: str) -> str:
        """See `Folder.where`."""
        return self._at(path, self.address.revision).text

    def open(self, path: str) -> HubSource:
        """See `Folder.open`."""
        source = HubSource(self.network, self._at(path, self.commit))
        source.name = self.where(path)
        return source

    def _at(self, path: str, revision: str) -> Address:
        whole = f"{self.address.path}/{path}" if self.address.path else path
        return replace(self.address, revision=revision).at(whole)


def listing(network: Network, address: Address) -> tuple[str, dict[str, Entry]]:
    """(commit, every file of the repository with what is known of it), in one request.

    Raises:
        SourceError: there is no such repository or revision, or it may not be read.
    """
    answered = _Listing(network, address)
    with answered:
        raw = answered.read(0, answered.size)
    try:
        data: Any = json.loads(raw)
        commit = str(data["sha"])
        entries = {
            str(row["rfilename"]): Entry(row.get("size"), (row.get("lfs") or {}).get("sha256"))
            for row in data["siblings"]
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise trouble(
            "file/unreachable", address.name, "could not be listed: the server's answer is no list of files"
        ) from None
    return commit, entries


class _Listing(HttpSource):
    """The Hub's answer about a repository, which is sent whole."""

    def __init__(self, network: Network, address: Address) -> None:
        self.address = address
        kind = address.repo_kind or "models"
        pinned = address.revision if is_commit(address.revision) else ""
        url = f"{endpoint()}/api/{kind}/{address.repo}/revision/{quote(address.revision, safe='')}?blobs=true"
        super().__init__(network, url, address.name, pinned=pinned, whole=MAX_LISTING)

    def token(self) -> str:
        return token()

    def refusal(self, head: Head) -> SourceError | None:
        return explained(self.address, self.name, head)
