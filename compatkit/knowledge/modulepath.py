"""A module's path without its numbers, so that all spellings of one module meet."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(\d+)")


def plain(module: str) -> tuple[str, tuple[int, ...]]:
    """`blocks.3.attn.to_q` -> `blocks_#_attn_to_q`, (3,): dots are underscores, every number is `#`."""
    pieces = _NUMBER.split(module.replace(".", "_"))
    return "#".join(pieces[::2]), tuple(map(int, pieces[1::2]))
