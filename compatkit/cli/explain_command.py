"""`compatkit explain`: a rule or a family in words."""

from __future__ import annotations

from pathlib import Path

import click

from compatkit.cli.options import coloured, rules_option


@click.command("explain")
@click.argument("name", metavar="RULE|FAMILY")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@rules_option
def command(name: str, color: str, rules: tuple[Path, ...]) -> None:
    """Explain a RULE (encoder/width): what, why, a failing and a passing example, the fix; or a model FAMILY (sdxl)."""
    from compatkit.knowledge.store import load
    from compatkit.render.explain import family_text, rule_text
    from compatkit.render.style import Paint

    knowledge = load(rules)
    paint = Paint(coloured(color))
    checks = {str(c["id"]): c for c in knowledge.checks()}
    if name in checks:
        click.echo(rule_text(checks[name], paint), nl=False, color=True)
    elif knowledge.has_family(name):
        document = knowledge.grammar(name)
        click.echo(family_text(knowledge.family(name), document, paint), nl=False, color=True)
    else:
        from difflib import get_close_matches

        close = get_close_matches(name, [*checks, *knowledge.members()], n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else " `compatkit rules list` names them all."
        raise click.UsageError(f"There is no rule or family {name!r}.{hint}")
