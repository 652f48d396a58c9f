"""`compatkit schema`: the JSON Schema of the reports, or of a stack file."""

from __future__ import annotations

import click


@click.command("schema")
@click.argument("what", type=click.Choice(["reports", "stack"]), default="reports")
def command(what: str) -> None:
    """Print the JSON Schema (2020-12) of what the commands print with --format json, or of a `stack.toml`."""
    from compatkit.render.document import as_json

    if what == "stack":
        from compatkit.render import stackschema

        click.echo(as_json(stackschema.schema()))
        return
    from compatkit.render.schema import schema

    click.echo(as_json(schema()))
