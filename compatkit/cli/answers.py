"""A report in the format asked for: what `check`, `dryrun` and `smoke` print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compatkit.vocabulary import Finding, Report


def rendered(
    report: Report,
    kind: str,
    colour: bool,
    rules: tuple[Path, ...] = (),
    *,
    verbose: bool = False,
    fail_on: str = "error",
    strict: bool = False,
    known: Callable[[Finding], bool] | None = None,
) -> str:
    """One of `options.FORMATS`. `known` tells the findings that a baseline has already."""
    from compatkit import api
    from compatkit.render import document

    if kind == "json":
        return document.as_json(document.check_document(report))
    titles = api.titles(report.components, rules)
    if kind == "markdown":
        from compatkit.render.markdown import check_markdown

        return check_markdown(report, titles)
    if kind == "html":
        from compatkit.render.incident import Incident, incident_html

        return incident_html(Incident(report, titles, cards=api.cards(rules)))
    if kind == "github":
        from compatkit.render.github import check_github

        return check_github(report)
    if kind == "sarif":
        from compatkit.render.sarif import check_sarif

        return check_sarif(report, api.rule_entries(rules), known)
    if kind == "junit":
        from compatkit.render.junit import check_junit

        return check_junit(report, *api.policy(report, fail_on, strict), known)
    from compatkit.render.style import Paint
    from compatkit.render.text import check_text

    return check_text(report, Paint(colour), titles, verbose)
