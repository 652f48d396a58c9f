"""Whatever fsspec has a driver for: `s3://`, `gs://`, `az://`, `memory://`, …"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compatkit.sources.address import redacted
from compatkit.sources.naming import shown
from compatkit.sources.ranged import FIRST, RangedSource
from compatkit.sources.trouble import trouble
from compatkit.vocabulary import SourceError

if TYPE_CHECKING:
    from compatkit.sources.network import Network


def filesystem(url: str) -> tuple[Any, str]:
    """(the driver's file system, the path in it).

    Raises:
        SourceError: there is no such scheme, or its driver is not installed.
    """
    import fsspec

    name, scheme = redacted(url), url.partition("://")[0].lower()
    if "::" in url:
        raise SourceError(f"{shown(name)}: chained fsspec URLs are not supported; name the file itself")
    if scheme not in fsspec.available_protocols():
        raise SourceError(f"{shown(name)}: there is no kind of source {scheme}://")
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError as e:
        raise SourceError(f"{shown(name)}: {scheme}:// needs a driver that is not installed ({_brief(e)})") from None
    except Exception as e:  # drivers raise what they like
        raise trouble("file/unreachable", name, f"could not be opened: {_brief(e)}") from None
    return found


class FsspecSource(RangedSource):
    """One file that an fsspec driver reads. Implements `Source`."""

    #: See `Source.workers`.
    workers = 8

    def __init__(self, network: Network, url: str, opened: tuple[Any, str] | None = None) -> None:
        super().__init__()
        self.name = redacted(url)
        self.url = url
        self.network = network
        network.allow(self.name)
        self._fs, self._path = opened or filesystem(url)
        info = self._ask(lambda: self._fs.info(self._path))
        if info.get("type") == "directory":
            raise SourceError(f"{shown(self.name)} is a folder, not a model file")
        size = info.get("size")
        if not isinstance(size, int):
            raise trouble("file/no-range", self.name, "could not be read: the driver does not know how large it is")
        self.size = size
        version = next(
            (str(info[k]) for k in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created") if info.get(k)), ""
        )
        self.identity = f"{self.url}|{size}|{version}"

    def sibling(self, name: str, first: int = 0) -> FsspecSource | None:
        """See `Source.sibling`."""
        if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
            return None
        lead = self._path[: self._path.rfind("/") + 1]
        try:
            return FsspecSource(self.network, self.url[: self.url.rfind("/") + 1] + name, (self._fs, lead + name))
        except SourceError as e:
            if e.problem and e.problem.rule == "file/not-found":
                return None
            raise

    def _fetch(self, start: int, end: int, why: str = "") -> None:
        upto = max(end, min(FIRST, self.size)) if start == 0 else end
        data = self._ask(lambda: self._fs.cat_file(self._path, start=start, end=upto))
        self.network.counters.add(received=len(data))
        if not isinstance(data, bytes) or len(data) != upto - start:
            raise trouble(
                "file/unreachable", self.name, "could not be read: the driver sent fewer bytes than asked for"
            )
        self.spans.add(start, data)

    def _ask(self, work: Any) -> Any:
        return asked(self.network, self.name, work)


class FsspecFolder:
    """A folder that an fsspec driver lists. Implements `Folder`."""

    #: See `Folder.workers`.
    workers = 8

    def __init__(self, network: Network, url: str) -> None:
        self.name = redacted(url.rstrip("/"))
        self.url = url.rstrip("/")
        self.network = network
        network.allow(self.name)
        self._fs, self._path = filesystem(self.url)
        self._known: dict[str, list[str]] = {}
        if not asked(network, self.name, lambda: self._fs.isdir(self._path)):
            raise trouble("file/not-found", self.name, "does not exist")

    def names(self, inside: str = "") -> list[str]:
        """See `Folder.names`."""
        if inside not in self._known:
            path = f"{self._path}/{inside}" if inside else self._path
            rows = (
                asked(self.network, self.name, lambda: self._fs.ls(path, detail=False)) if self._is_folder(path) else []
            )
            self._known[inside] = sorted(str(r).rstrip("/").rsplit("/", 1)[-1] for r in rows)
        return self._known[inside]

    def _is_folder(self, path: str) -> bool:
        return bool(asked(self.network, self.name, lambda: self._fs.isdir(path)))

    def has(self, path: str) -> bool:
        """See `Folder.has`."""
        folder, _, name = path.rpartition("/")
        return name in self.names(folder)

    def where(self, path: str) -> str:
        """See `Folder.where`."""
        return f"{self.url}/{path}"

    def open(self, path: str) -> FsspecSource:
        """See `Folder.open`."""
        return FsspecSource(self.network, self.where(path), (self._fs, f"{self._path}/{path}"))


def asked(network: Network, name: str, work: Any) -> Any:
    """One question to a driver, counted, its errors in words."""
    network.counters.add(requests=1)
    try:
        return work()
    except FileNotFoundError:
        raise trouble("file/not-found", name, "does not exist") from None
    except PermissionError:
        raise trouble("file/gated", name, "may not be read with the credentials of this machine") from None
    except Exception as e:  # drivers raise what they like
        raise trouble("file/unreachable", name, f"could not be read: {_brief(e)}") from None


def _brief(error: Exception) -> str:
    """An error of a driver in a few words; a URL in it loses its query, where secrets stand."""
    text = " ".join(redacted(w) if "://" in w else w for w in str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
