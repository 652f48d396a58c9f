"""Why a remote place could not be read, as the one sentence that is said about it."""

from __future__ import annotations

from typing import Any

from compatkit.sources.naming import shown
from compatkit.vocabulary import FileProblem, Level, SourceError

#: Why → the level of the finding. Only what certainly keeps the set from running is an error: a server that is down
#: today says nothing about the files, and the verdict is then unknown.
LEVELS: dict[str, Level] = {
    "file/not-found": "error",
    "file/gated": "warning",
    "file/no-range": "warning",
    "file/unreachable": "warning",
    "file/offline": "warning",
    "file/web-page": "error",
    "file/unreadable": "error",
}


def trouble(rule: str, name: str, what: str, fix: str = "", **evidence: Any) -> SourceError:
    """The error to raise: `what` completes a sentence that begins with the source's name."""
    message = f"{shown(name)} {what}"
    return SourceError(message, FileProblem(rule, message, fix, evidence, LEVELS[rule]))
