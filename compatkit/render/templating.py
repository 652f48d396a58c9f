"""The Jinja2 environments behind Markdown and HTML: filters that keep text from files text, and the language."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compatkit.render.catalogue import catalogue, folder
from compatkit.render.style import basename, dtypes, parameters, safe, size, sizes

if TYPE_CHECKING:
    import jinja2

_DATA = re.compile(r"data:image/(?:png|svg\+xml);base64,[A-Za-z0-9+/=]*")
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")


def escaped(text: object, limit: int = 2000) -> str:
    """Text that Markdown shows as it is, on one line."""
    plain = _SPECIAL.sub(r"\\\1", safe(text, limit).replace("\n", " "))
    return re.sub(r"^(\s*)([-=]|\d+(?=[.)]))", r"\1\\\2", plain) if plain[:1] in "-= " else plain


def code(text: object, limit: int = 300) -> str:
    """Inline code: fenced with one backtick more than the longest run inside."""
    plain = safe(text, limit).replace("\n", " ").replace("|", "\\|")
    longest = max((len(run) for run in re.findall(r"`+", plain)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def words(role: object) -> str:
    """`text_encoder` -> `text encoder`."""
    return str(role).replace("_", " ")


def listed(value: object) -> str:
    """A value of a fact or of evidence, as a reader writes it."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) and abs(value) > 99_999 else str(value)


@cache
def environment(html: bool, language: str = "en", overrides: tuple[Path, ...] = ()) -> jinja2.Environment:
    """The templates of this installation, with those of `overrides` before them.

    In HTML everything is escaped, and control characters and marks that turn text around are made visible; in Markdown
    the templates say how (`md` for text, `code` for names).
    """
    import jinja2
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        if isinstance(value, Markup):  # escaped already, as what a macro gives
            return Markup(safe(str(value), len(value)))
        return safe(value) if isinstance(value, str) else value

    def data(address: object) -> Markup:
        """A picture as a `data:` address, whole; anything else is no address."""
        return Markup(address if _DATA.fullmatch(str(address)) else "data:,")

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*overrides, folder("templates")]),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.i18n"],
        finalize=shown if html else None,
    )
    env.install_gettext_translations(catalogue(language), newstyle=True)  # type: ignore[attr-defined]
    env.filters |= {"md": escaped, "code": code, "size": size, "parameters": parameters, "basename": basename}
    env.filters |= {"dtypes": dtypes, "words": words, "listed": listed}
    env.filters |= {"data": data}
    env.globals |= {"language": language, "sizes": sizes}
    return env


def rendered(name: str, html: bool = False, language: str = "en", overrides: Sequence[Path] = (), **values: Any) -> str:
    """One template, filled in.

    Raises:
        SourceError: a template of the user's own is wrong; the message says where.
    """
    import jinja2

    from compatkit.vocabulary import SourceError

    try:
        text = environment(html, language, tuple(overrides)).get_template(name).render(**values)
    except jinja2.TemplateError as e:
        if not overrides:
            raise
        where = f"{getattr(e, 'filename', None) or name}:{getattr(e, 'lineno', '')}".rstrip(":")
        raise SourceError(f"the template {where} cannot be used: {e}") from None
    return text.strip("\n") + "\n"
