"""Bytes of one file of the Hub through huggingface_hub: its tokens, its mirrors, its errors, its transport.

The library is asked where the file is and streams it, but not for the whole download: what it does for that keeps
nothing of a run that was killed. Our own part file grows instead and is gone on from. Only a file that the Hub does not
send by plain HTTP any more (beyond 50 GB) is left to the library altogether, with its chunk storage (xet).
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from compatkit.sources.naming import shown
from compatkit.sources.trouble import trouble
from compatkit.vocabulary import SourceError

if TYPE_CHECKING:
    from compatkit.sources.address import Address

#: Tries without a new byte before a file is given up; it stays resumable.
TRIES = 5
_SLOW_START = 0.3


class Stopped(Exception):
    """The user ended the run while the library was at work."""


def grow(address: Address, part: str, size: int, progress: Callable[[int], None], stopped: Callable[[], bool]) -> None:
    """Add to a part file what it lacks of `size` bytes.

    Raises:
        SourceError: it could not be had; what there is of it stays and is used by the next run.
    """
    with open(part, "ab") as out:
        if out.tell() > size:
            out.truncate(0)
        progress(out.tell())
        tries = 0
        while (have := out.seek(0, os.SEEK_END)) < size:
            try:
                _stream(address, out, have, size, progress, stopped)
            except Stopped:
                raise SourceError(f"{shown(address.path)} is not complete; run the same command again") from None
            except Exception as e:  # the library's errors, and those of its transport, have no base in common
                _flush(out, address)
                problem = _explained(e, address, part)
                tries = 0 if out.seek(0, os.SEEK_END) > have else tries + 1
                if tries >= TRIES or problem.problem or stopped():
                    raise problem from None
                time.sleep(_SLOW_START * 2**tries)
        _flush(out, address)
        os.fsync(out.fileno())


def _flush(out: BinaryIO, address: Address) -> None:
    try:
        out.flush()
    except OSError as e:
        raise _explained(e, address, str(out.name)) from None


def _stream(
    address: Address,
    out: BinaryIO,
    have: int,
    size: int,
    progress: Callable[[int], None],
    stopped: Callable[[], bool],
) -> None:
    """One try: ask where the file is (signed links do not last), and add what comes from there."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get

    from compatkit.sources.address import endpoint
    from compatkit.sources.hub import token

    if size > getattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", size):
        _whole(address, out, progress, stopped)
        return
    kind = {"datasets": "dataset", "spaces": "space"}.get(address.repo_kind or "")
    url = hf_hub_url(address.repo, address.path, repo_type=kind, revision=address.revision, endpoint=endpoint())
    found = get_hf_file_metadata(url, token=token() or False, endpoint=endpoint())
    if found.size is not None and found.size != size:
        raise trouble("file/moved", address.name, f"has {found.size:,} bytes on the Hub now; {size:,} are locked")
    headers = {"user-agent": "compatkit"}
    if token() and urlsplit(found.location)[:2] == urlsplit(url)[:2]:  # for the Hub's own host alone
        headers["authorization"] = f"Bearer {token()}"
    more: dict[str, Any] = {}
    if "tqdm_class" in inspect.signature(http_get).parameters:
        more["tqdm_class"] = _bar(progress, stopped)
    http_get(
        found.location, out, resume_size=have, headers=headers, expected_size=size, displayed_filename="model", **more
    )


def _whole(address: Address, out: BinaryIO, progress: Callable[[int], None], stopped: Callable[[], bool]) -> None:
    """A file that only the library's own storage brings: all of it, in a folder beside the part, then moved over it."""
    from huggingface_hub import hf_hub_download

    from compatkit.sources.address import endpoint
    from compatkit.sources.hub import token

    folder = f"{out.name}.whole"
    kind = {"datasets": "dataset", "spaces": "space"}.get(address.repo_kind or "")
    try:
        path = hf_hub_download(
            address.repo, address.path, repo_type=kind, revision=address.revision, local_dir=folder,
            token=token() or False, endpoint=endpoint(), tqdm_class=_bar(progress, stopped),
        )  # fmt: skip
        with open(path, "rb") as whole:
            out.truncate(0)
            shutil.copyfileobj(whole, out, 16 << 20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _bar(progress: Callable[[int], None], stopped: Callable[[], bool]) -> Any:
    """What the library takes for a progress bar: it counts for ours, and shows nothing."""
    from huggingface_hub import utils

    base: Any = utils.tqdm  # type: ignore[attr-defined, unused-ignore]

    class Bar(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            if stopped():
                raise Stopped
            progress(int(n or 0))
            return None

    return Bar


def _explained(error: Exception, address: Address, part: str) -> SourceError:
    """What the library's error means for whoever waits for the file."""
    from huggingface_hub import errors

    name = address.name
    if isinstance(error, SourceError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = shown(os.path.dirname(part))
        return trouble("file/unreadable", name, f"was not written: the disk is full at {where}", "Make room and go on.")
    if isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/{address.repo}"
        how = f"Accept the licence at {page}, and log in (`hf auth login`) or set HF_TOKEN."
        return trouble("file/gated", name, "is gated: its licence has to be accepted first", how)
    if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)):
        return trouble("file/not-found", name, "does not exist, or may not be read without a token")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return trouble("file/offline", name, "was not asked for: HF_HUB_OFFLINE is set")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return trouble("file/not-found", name, f"does not exist in {address.repo} at {address.revision}")
    text = ""
    with contextlib.suppress(Exception):
        text = " ".join(str(error.__cause__ or error).split())[:200]
    return SourceError(f"{shown(name)} could not be read: {text or type(error).__name__}")
