"""Markdown through Jinja2 templates (`reports/templates/`). Text from files is escaped so that it stays text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from compatkit.render.templating import code, escaped, rendered
from compatkit.vocabulary import Component, Report

__all__ = ["check_markdown", "code", "escaped", "inspect_markdown"]


def check_markdown(report: Report, titles: Mapping[str, str]) -> str:
    """The report of `check`."""
    return rendered("check.md.j2", report=report, titles=titles)


def inspect_markdown(components: Iterable[Component], titles: Mapping[str, str]) -> str:
    """The report of `inspect`."""
    return rendered("inspect.md.j2", components=list(components), titles=titles)
