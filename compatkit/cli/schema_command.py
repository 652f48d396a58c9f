"""`compatkit schema`: the JSON Schema of the reports."""

from __future__ import annotations

import click


@click.command("schema")
def command() -> None:
    """Print the JSON Schema (2020-12) of what `inspect` and `check` print with --format json."""
    from compatkit.render.document import as_json
    from compatkit.render.schema import schema

    click.echo(as_json(schema()))
