"""Model files' headers: what is in a file, from its first kilobytes.

`open_header` is the one entry. It goes by content, never by name; a name only matters where a loader would go by it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from msgspec.structs import replace

from compatkit.headers.problems import MEANINGS
from compatkit.sources.local import LocalSource
from compatkit.sources.naming import base_name
from compatkit.vocabulary import Header, HeaderError

if TYPE_CHECKING:
    from compatkit.sources import Source

__all__ = ["MEANINGS", "open_header", "read_one"]


def open_header(source: Source | str | os.PathLike[str], *, brief: bool = False) -> Header:
    """The header of a model file, read from `source` (which stays open) or from the file at that path.

    One part of a split model (`…-00001-of-00003.safetensors` or `.gguf`) or its index (`….safetensors.index.json`)
    gives the header of the whole: its parts stand in `Header.shards`, what is wrong with them in `Header.problems`.

    With `brief` a GGUF's vocabulary, and the tensor table behind it, may be left unread: see `Header.unread`.

    Raises `HeaderError` (with the `FileProblem` to report) if it is no model that can be read, `SourceError` if there
    is no regular file that may be read. Nothing else, whatever the bytes.
    """
    if isinstance(source, (str, bytes, os.PathLike)):
        with LocalSource(source) as opened:
            return open_header(opened)
    head = source.read(0, 16)
    if head[:4] == b"GGUF":
        header = read_one(source, head, brief=brief and "-of-" not in base_name(source.name))
        if header.unread or not header.metadata.get("split.count"):
            return header
        from compatkit.headers import splits

        return splits.join_gguf(source, header)
    name = source.name.lower()
    if name.endswith(".json") or "-of-" in name:  # cheap marks; what they hint at is checked there
        from compatkit.headers import splits

        if whole := splits.join_safetensors(source):
            return whole
    return read_one(source, head)


def read_one(source: Source, head: bytes = b"", *, brief: bool = False) -> Header:
    """The header of one file by itself, even if it is a part of a split model. `brief` and errors as in `open_header`.

    `head` is its first 16 bytes, if the caller has them already.
    """
    head = head or source.read(0, 16)
    if head[:4] == b"GGUF":
        from compatkit.headers import gguf

        header = gguf.read(source, brief)
    elif _like_safetensors(head, source.size):
        from compatkit.headers import safetensors

        header = safetensors.read(source)
    elif _like_pickle(head):
        from compatkit.headers import pickle

        header = pickle.read(source)
    else:
        header = _otherwise(source, head)
    return _named(header)


def _like_safetensors(head: bytes, size: int) -> bool:
    """Whether the first bytes are a length and an opening brace, or all that a cut left of those."""
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{":
        # JSON can have a brace there too; then the "length" is text
        return not all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:8])
    return size == 8 and 0 < length < 1 << 27


def _like_pickle(head: bytes) -> bool:
    """Whether the first bytes are those of a zip file, or of a pickle since protocol 2."""
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"))


def _named(header: Header) -> Header:
    from compatkit.headers.suffixes import wrong_suffix

    if wrong := wrong_suffix(header.source, header.format):
        return replace(header, problems=(wrong, *header.problems))
    return header


def _otherwise(source: Source, head: bytes) -> Header:
    """Content without a mark: the oldest pickles, which are text, under a name that makes loaders unpickle it."""
    from compatkit.headers import sniff
    from compatkit.headers.suffixes import OPENED_AS, suffix

    if head[:1] in (b"(", b"}", b"]", b"c") and OPENED_AS.get(suffix(source.name)) == "pickle":
        from compatkit.headers import pickle

        try:
            return pickle.read(source)
        except HeaderError as error:
            if error.problem.evidence.get("calls"):  # else it is text that begins like a pickle
                raise
    raise sniff.explain(source, source.read(0, sniff.HEAD))
