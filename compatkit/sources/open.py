"""From a source's text to the source: the one place that knows every kind."""

# ruff: noqa: PTH112 (importing pathlib costs more than reading a header)

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from compatkit.sources.folders import Folder, LocalFolder
from compatkit.sources.local import LocalSource
from compatkit.sources.naming import shown
from compatkit.sources.network import Network
from compatkit.vocabulary import SourceError

if TYPE_CHECKING:
    from compatkit.sources import Source
    from compatkit.sources.address import Address

__all__ = ["Folder", "Network", "is_remote", "open_folder", "open_place", "open_source", "shown_name"]


def is_remote(text: str) -> bool:
    """Whether a source's text is a URL, not a path."""
    return "://" in text and _address(text).kind != "local"


def shown_name(text: str) -> str:
    """A source's text without the secrets that a URL may hold: what reports call it."""
    return _address(text).name if "://" in text else text


def open_source(text: str, *, network: Network | None = None, offline: bool = False) -> Source:
    """Opens the file that `text` names: a path, `https://`, `http://`, `hf://org/repo[@rev]/path`, a link to a file
    on the Hub, or a URL that an fsspec driver reads. The caller closes it (and the `network` it gave).

    Raises:
        SourceError: it is a folder, is not there, or may not be read; `problem` is the finding, where one is known.
    """
    found = open_place(text, network=network, offline=offline, folders=False)
    assert not isinstance(found, Folder)
    return found


def open_folder(text: str, *, network: Network | None = None, offline: bool = False) -> Folder:
    """Opens the folder that `text` names: a path, `hf://org/repo[@rev][/path]`, a link to a repository or a folder
    of it, or an fsspec URL.

    Raises:
        SourceError: it is not there, may not be listed, or is of a kind that cannot be listed (plain http).
    """
    if "://" not in text:
        return LocalFolder(text)
    address = _address(text)
    network = network or Network(offline=offline)
    if address.kind == "hub":
        from compatkit.sources.hub import HubFolder

        return HubFolder(network, address)
    if address.kind == "fsspec":
        from compatkit.sources.fsspec_source import FsspecFolder

        return FsspecFolder(network, address.url)
    if address.kind == "local":
        return LocalFolder(address.text)
    raise SourceError(
        f"{shown(address.name)}: a web server cannot be asked for its files; name the model files themselves"
    )


def open_place(
    text: str, *, network: Network | None = None, offline: bool = False, folders: bool = True
) -> Source | Folder:
    """Opens what `text` names, file or folder. With `folders` false a folder is refused.

    Raises:
        SourceError: as `open_source` and `open_folder`.
    """
    address = _address(text) if "://" in text else None
    if address is None or address.kind == "local":
        path = address.text if address else text
        return LocalFolder(path) if folders and os.path.isdir(path) else LocalSource(path)
    network = network or Network(offline=offline)
    if address.kind == "http":
        from compatkit.sources.http import HttpSource

        return HttpSource(network, address.url, address.name)
    if address.kind == "hub":
        return _hub(address, network, folders)
    from compatkit.sources.fsspec_source import FsspecFolder, FsspecSource, asked, filesystem

    network.allow(address.name)
    fs, path = opened = filesystem(address.url)
    if folders and asked(network, address.name, lambda: fs.isdir(path)):
        return FsspecFolder(network, address.url)
    return FsspecSource(network, address.url, opened)


def _hub(address: Address, network: Network, folders: bool) -> Source | Folder:
    from compatkit.sources.hub import HubFolder, HubSource

    if address.folder is False:
        return HubSource(network, address)
    if not folders:
        if address.folder:
            raise SourceError(f"{shown(address.name)} is a repository or folder, not a model file; name the file in it")
        return HubSource(network, address)
    try:
        return HubFolder(network, address)
    except SourceError:
        if address.folder is None:  # a file without a suffix
            return HubSource(network, address)
        raise


def _address(text: str) -> Address:
    from compatkit.sources.address import parse

    return parse(text)
