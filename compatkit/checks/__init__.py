"""Judging a stack: `judge(stack, knowledge) -> Report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compatkit.knowledge.protocol import Rules
    from compatkit.vocabulary import Report, Stack

__all__ = ["judge"]


def judge(stack: Stack, knowledge: Rules, *, extra_rules: Sequence[Mapping[str, Any]] = ()) -> Report:
    """Run every rule that applies to the set; see `compatkit.checks.engine`."""
    from compatkit.checks.engine import judge as run

    return run(stack, knowledge, extra_rules=extra_rules)
