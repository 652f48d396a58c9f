"""Markdown through Jinja2 templates (`reports/templates/`). Text from files is escaped so that it stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compatkit.render.style import basename, dtypes, parameters, safe, size
from compatkit.vocabulary import Component, Report

if TYPE_CHECKING:
    import jinja2

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")
_PACKAGE = Path(__file__).resolve().parent.parent


def escaped(text: object, limit: int = 2000) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", safe(text, limit).replace("\n", " "))


def code(text: object, limit: int = 300) -> str:
    """Inline code: fenced with one backtick more than the longest run inside."""
    plain = safe(text, limit).replace("\n", " ").replace("|", "\\|")
    longest = max((len(run) for run in re.findall(r"`+", plain)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def templates() -> Path:
    """Where the templates lie: in the installed package, or in the checkout."""
    packaged = _PACKAGE / "_data" / "reports" / "templates"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "reports" / "templates"


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates()),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    env.filters |= {"md": escaped, "code": code, "size": size, "parameters": parameters, "basename": basename}
    env.filters["dtypes"] = dtypes
    return env


def check_markdown(report: Report, titles: Mapping[str, str]) -> str:
    """The report of `check`."""
    return _render("check.md.j2", report=report, titles=titles)


def inspect_markdown(components: Iterable[Component], titles: Mapping[str, str]) -> str:
    """The report of `inspect`."""
    return _render("inspect.md.j2", components=list(components), titles=titles)


def _render(name: str, **values: Any) -> str:
    return _environment().get_template(name).render(**values).rstrip("\n") + "\n"
