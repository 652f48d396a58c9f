"""Names from outside (paths, tensor names, metadata keys) made safe to print."""

from __future__ import annotations

import os
from collections.abc import Iterable


def shown(name: object, limit: int = 120) -> str:
    """`name` in quotes, fit for one line of a report, at most about `limit` characters long.

    Control characters, undecodable bytes and the marks that turn text around are escaped, so that a file's name cannot
    forge a line of the report or colour the terminal. Of a long path the folders go first (a report that hides
    them could not know half a one); then the middle of the name is cut: both ends tell more.
    """
    text = name if isinstance(name, str) else str(name)
    if len(text) > limit and (text[:1] in "/\\~" or text[1:3] in (":/", ":\\")):
        text = base_name(text) or text
    if len(text) > limit:
        text = text[: limit * 2 // 3] + "…" + text[-(limit // 3) :]
    return repr(text)


def closest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` is a slip of the hand from, if any."""
    from difflib import get_close_matches  # only a mistake pays for it

    return next(iter(get_close_matches(word, list(known), n=1)), None)


def counted(number: int, noun: str) -> str:
    """`1 tensor`, `2,514 tensors`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def base_name(name: str) -> str:
    """The last part of a path or URL: the file's own name, without the URL's query."""
    if "://" in name:
        name = name.partition("?")[0].partition("#")[0]
    return name[max(name.rfind("/"), name.rfind(os.sep)) + 1 :]
