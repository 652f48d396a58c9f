"""`compatkit init`: a first stack.toml."""

from __future__ import annotations

from pathlib import Path

import click

from compatkit.cli.options import rules_option


@click.command("init")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("stack.toml"),
    show_default=True,
    metavar="FILE",
    help="Where to write it; - is standard output.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@rules_option
def command(sources: tuple[str, ...], output: Path, force: bool, rules: tuple[Path, ...]) -> None:
    """Write a stack.toml that names the SOURCEs by the roles their tensors show.

    Roles come from identification; `ROLE=SOURCE` sets one. Exits 3, and writes nothing, if a file is not recognised.
    """
    from compatkit import api
    from compatkit.stacks import initial

    to_stdout = str(output) == "-"
    if output.exists() and not force and not to_stdout:
        raise click.UsageError(f"{output} exists; --force replaces it.")
    rows, all_components, unknown = [], [], []
    for text in sources:
        role, source, components = api.opened_as(text, rules)
        role = role or initial.entry_role(components, Path(source).is_dir())
        if role is None:
            unknown.append(f"{source}: {components[0].reason or 'not recognised'}")
            continue
        rows.append((role, source, components))
        all_components += components
    for line in unknown:
        click.echo(f"Not written: {line}. Give it as ROLE=FILE if you know what it is.", err=True)
    if unknown:
        raise click.exceptions.Exit(3)
    document = initial.text(rows, api.titles(all_components, rules), "" if to_stdout else str(output.parent))
    if to_stdout:
        click.echo(document, nl=False)
        return
    try:
        output.write_text(document, encoding="utf-8")
    except OSError as e:
        raise click.UsageError(f"{output}: {e.strerror or e}.") from None
    click.echo(f"{output}: {len(rows)} sources. Next: compatkit check {output}")
