"""Sources that stand for a whole set: a `stack.toml`, a `stack.lock` or a workflow among what a command was given."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field
from msgspec.structs import replace

from compatkit.sources.naming import shown
from compatkit.stacks.files import Request
from compatkit.stacks.kinds import is_lockfile, is_stackfile, is_workflow
from compatkit.vocabulary import Component, SourceError

if TYPE_CHECKING:
    from compatkit.stacks.lockfile import LockedSource
    from compatkit.stacks.stackfile import StackFile


class Named(Struct, frozen=True):
    """What a command was given: sources one by one, the stack file or workflow among them, what a lock says of each."""

    sources: Sequence[str | Request]
    stack: StackFile | None = None
    locked: Sequence[LockedSource] = field(default_factory=tuple)
    workflow: str | None = None

    def compared(self, request: Request, components: list[Component]) -> list[Component]:
        """The components of one source, with what differs from its lock among their problems."""
        for one in self.locked:
            if one.entry.request == request and components:
                from compatkit.stacks import lockfile

                problems = lockfile.moved(one, components)
                return [replace(components[0], problems=(*components[0].problems, *problems)), *components[1:]]
        return components


def is_whole(source: str) -> bool:
    """Whether a source is a stack file or a lock."""
    return is_stackfile(source) or is_lockfile(source)


def named(texts: Sequence[str]) -> Named:
    """The sources of a command, with a stack file or lock replaced by what it names.

    Raises:
        SourceError: there are two of them, or one is not what it should be.
    """
    found = [t for t in texts if is_whole(t)]
    graphs = [t for t in texts if t not in found and is_workflow(t)]
    if len(graphs) + bool(found) > 1 and graphs:
        raise SourceError(
            f"{shown(graphs[0])} and {shown([*graphs[1:], *found][0])}: give one workflow or stack at a time"
        )
    if graphs:
        return Named([t for t in texts if t != graphs[0]], workflow=graphs[0])
    if not found:
        return Named(texts)
    if len(found) > 1:
        raise SourceError(f"{shown(found[0])} and {shown(found[1])}: give one stack at a time")
    from compatkit.stacks import lockfile, stackfile

    path = found[0]
    locked: Sequence[LockedSource] = ()
    if is_lockfile(path):
        lock = lockfile.load(path)
        stack, locked = lock.stack, lock.sources
    else:
        stack = stackfile.load(path)
    sources: list[str | Request] = []
    for text in texts:
        sources += [e.request for e in stack.entries] if text == path else [text]
    return Named(sources, stack, locked)


def rules(stack: StackFile | None, given: Iterable[Path]) -> tuple[Path, ...]:
    """Folders of rules: the user's, and those that the stack's policy names.

    Raises:
        SourceError: the policy names one that is not there.
    """
    out = [*given]
    for folder in stack.policy.rules if stack and stack.policy else ():
        if not os.path.isdir(folder):
            raise SourceError(f"{stack.path if stack else ''}: [policy] rules: {shown(folder)} is not a folder")
        out.append(Path(folder))
    return tuple(out)


def unread(stack: StackFile | None) -> dict[str, str]:
    """What a stack file says that no check reads yet, as settings of the run: reports list those."""
    if stack is None:
        return {}
    strengths = [f"{e.strength:g}" for e in stack.entries if e.strength is not None]
    out = {"host": stack.host} if stack.host else {}
    return {**out, "strength": ", ".join(strengths)} if strengths else out
