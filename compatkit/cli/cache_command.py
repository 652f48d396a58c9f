"""`compatkit cache`: what was read of remote files, kept between runs."""

from __future__ import annotations

import json

import click


@click.group("cache")
def command() -> None:
    """Show or clear what was read of remote files.

    A second look at a file elsewhere costs one short question to its server, or none where a commit names the version.
    COMPATKIT_CACHE names another folder, or switches the cache off (COMPATKIT_CACHE=off).
    """


@command.command("info")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)
def info(format_: str) -> None:
    """Say where the cache lies and how much it holds."""
    from compatkit.sources.cache import Cache

    found = Cache.default().info()
    if format_ == "json":
        click.echo(json.dumps({"path": found.path, "files": found.files, "bytes": found.bytes, "disk": found.disk}))
    elif found.path is None:
        click.echo("The header cache is switched off (COMPATKIT_CACHE).")
    else:
        click.echo(
            f"{found.path}: {_files(found.files)}, {found.bytes:,} bytes of headers, {found.disk:,} bytes on disk"
        )


@command.command("clear")
def clear() -> None:
    """Forget everything that was kept."""
    from compatkit.sources.cache import Cache

    held = Cache.default().clear()
    click.echo("The header cache is switched off." if held.path is None else f"Forgot {_files(held.files)}.")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"
