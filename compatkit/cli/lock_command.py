"""`compatkit lock`: a stack that was checked, pinned."""

from __future__ import annotations

from pathlib import Path

import click

from compatkit.cli.options import coloured, write_file


@click.command("lock")
@click.argument("stack", default="stack.toml", metavar="STACK.TOML")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write it (default: beside the stack file, with the suffix .lock).",
)
@click.option("--hash", "hashing", is_flag=True, help="Also compute the SHA-256 of files on this machine.")
@click.option("--force", is_flag=True, help="Write it even if the stack does not pass.")
def command(stack: str, output: Path | None, hashing: bool, force: bool) -> None:
    """Check a stack.toml and write a stack.lock: commits, sizes, SHA-256, digests of the headers, and the verdict.

    Written only for a stack that passes, unless --force is given. Same stack, same lock: it holds no date.
    """
    from compatkit import __version__, api
    from compatkit.fetch import resolve
    from compatkit.render.style import Paint
    from compatkit.render.text import check_text
    from compatkit.sources.open import Network
    from compatkit.stacks import kinds, lockfile, stackfile

    if not kinds.is_stackfile(stack):
        raise click.UsageError(f"{stack}: a lock is made from a stack.toml (`compatkit init` writes one).")
    parsed = stackfile.load(stack)
    report = api.check([stack], full=True)
    code = api.exit_code(report)
    if code and not force:
        click.echo(check_text(report, Paint(coloured("auto")), api.titles(report.components)), color=True)
        click.echo("No lock is written: the stack does not pass. --force writes it all the same.", err=True)
        raise click.exceptions.Exit(code)
    target = output or Path(stack).with_suffix(".lock")
    with Network() as network:
        locked = resolve.lock(parsed, report, network, hashing=hashing)
    write_file(target, lockfile.dump(locked, __version__, str(target.parent)))
    files = [f for s in locked.sources for f in s.files]
    hashed = sum(f.sha256 is not None for f in files)
    click.echo(f"{target}: {len(files)} files, {hashed} with a SHA-256; {report.headline}")
    raise click.exceptions.Exit(code)
