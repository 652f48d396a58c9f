"""`compatkit rules`: list, test, draft, compile."""

from __future__ import annotations

from pathlib import Path

import click

from compatkit.cli.options import rules_option


@click.group("rules")
def command() -> None:
    """List what is known, test the rules' own examples, draft a rule file for a new model."""


@command.command("list")
@click.option("--stats", is_flag=True, help="Lines, literals and examples of every family file.")
@rules_option
def list_rules(stats: bool, rules: tuple[Path, ...]) -> None:
    """List every check and every model family."""
    from compatkit.knowledge.store import load, rules_root

    if stats:
        from compatkit.render.rulestats import family_statistics

        click.echo(family_statistics([rules_root(), *rules]), nl=False)
        return
    from tabulate import tabulate

    knowledge = load(rules)
    click.echo(tabulate([[c["id"], c["level"], c["title"]] for c in knowledge.checks()], tablefmt="plain"))
    roles: dict[str, list[str]] = {}
    for family, member in knowledge.members().items():
        if not member.get("abstract"):
            roles.setdefault(member["role"], []).append(family)
    for role, families in sorted(roles.items()):
        click.echo(f"\n{role} ({len(families)}): {', '.join(sorted(families))}")


@command.command("test")
@click.argument("family", required=False)
@rules_option
def test_rules(family: str | None, rules: tuple[Path, ...]) -> None:
    """Run the examples that every rule file carries (of one FAMILY, if named). Exits 1 if one does not hold."""
    from compatkit.checks import selftest as checks
    from compatkit.identify import selftest as families
    from compatkit.knowledge.compile import compile_documents
    from compatkit.knowledge.store import Knowledge, rules_root

    roots = [rules_root(), *rules]
    knowledge = Knowledge(compile_documents(roots))
    if family is not None and not knowledge.has_family(family):
        from compatkit.sources.naming import closest

        close = closest(family, knowledge.members())
        raise click.UsageError(f"There is no family {family!r}{f'; did you mean {close!r}?' if close else ''}")
    failures, tried = families.run(roots, knowledge, family)
    lines = [f"{f.where}: {f.message}" for f in failures]
    ran = 0
    if family is None:
        lines += [str(f) for f in checks.run(knowledge.checks())]
        ran = len(knowledge.checks())
    for line in lines:
        click.echo(line)
    click.echo(f"{tried} headers of {family or 'all families'}, {ran} checks: {len(lines)} failures")
    raise click.exceptions.Exit(1 if lines else 0)


@command.command("draft")
@click.argument("files", nargs=-1, required=True)
@click.option("--id", "family", default="my_family", show_default=True, help="The id to give the family.")
@click.option("--prefix", help="Leave out this prefix of the names (default: the one all share).")
def draft_rules(files: tuple[str, ...], family: str, prefix: str | None) -> None:
    """Draft a family file from the headers of FILES: two sizes of the same model draft far better than one."""
    from compatkit.headers import open_header
    from compatkit.identify.logical import logical
    from compatkit.knowledge.draft import draft
    from compatkit.knowledge.store import load
    from compatkit.vocabulary import HeaderError

    try:
        click.echo(draft([logical(open_header(f), load()) for f in files], family, prefix), nl=False)
    except HeaderError as e:
        raise click.UsageError(e.problem.message) from None
    except ValueError as e:
        raise click.UsageError(f"{e}.") from None
