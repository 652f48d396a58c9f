"""`compatkit pull`: what a lock pins, onto this machine."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from compatkit.fetch.pull import Counts


@click.command("pull")
@click.argument("lock_path", default="stack.lock", metavar="STACK.LOCK")
@click.option("--to", "root", required=True, type=click.Path(file_okay=False), metavar="DIR", help="Where files go.")
@click.option(
    "--layout",
    type=click.Choice(["comfyui", "flat", "diffusers"]),
    default="comfyui",
    show_default=True,
    help="comfyui: DIR is ComfyUI's folder (or its models folder); flat: all in DIR; diffusers: one diffusers folder.",
)
@click.option("--force", is_flag=True, help="Pull a lock that does not pass; replace files that have other content.")
def command(lock_path: str, root: str, layout: str, force: bool) -> None:
    """Download what a stack.lock pins into DIR, verify it, and put each file where the runtime looks for it.

    Looks for room first. Interrupt it at any moment and run it again: what is there is kept, nothing unverified is ever
    in place. Exits 1 if a file could not be had.
    """
    from compatkit.fetch import places
    from compatkit.fetch.pull import pull
    from compatkit.fetch.recheck import differing
    from compatkit.knowledge.store import load
    from compatkit.render.style import size
    from compatkit.sources.open import Network
    from compatkit.stacks import lockfile
    from compatkit.vocabulary import SourceError

    lock = lockfile.load(lock_path)
    if lock.verdict != "pass" and not force:
        click.echo(
            f"{lock_path}: the stack did not pass when it was locked ({lock.headline}); --force pulls it.", err=True
        )
        raise click.exceptions.Exit(1)
    folders = load().runtime("comfyui").get("folders", {})
    files = places.placed(lock, root, layout, folders)
    show = _Progress()
    with Network() as network:
        try:
            outcome = pull(files, root, network, force=force, show=show if sys.stderr.isatty() else None)
        except SourceError as e:
            click.echo(f"Error: {e}.", err=True)
            raise click.exceptions.Exit(1) from None
        finally:
            show.end()
    for line in outcome.failed:
        click.echo(f"Error: {line}.", err=True)
    wrong = [] if outcome.failed else differing(lock, files)
    for line in wrong:
        click.echo(f"Error: {line}.", err=True)
    brought = sum(p.file.size for p in outcome.brought)
    click.echo(
        f"{len(files) - len(outcome.failed)} of {len(files)} files in place: {len(outcome.brought)} brought "
        f"({size(brought)}), {len(outcome.present)} there already."
    )
    raise click.exceptions.Exit(1 if outcome.failed or wrong else 0)


class _Progress:
    """One line on a terminal's standard error, at most ten times a second."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()
        self.shown = False

    def __call__(self, counts: Counts) -> None:
        from compatkit.render.style import size

        now = time.monotonic()
        if now - self.last < 0.1 and counts.bytes_done < counts.bytes:
            return
        self.last, self.shown = now, True
        rate = size(counts.bytes_done / max(now - self.start, 0.1))
        text = f"{counts.files_done}/{counts.files} files  {size(counts.bytes_done)} of {size(counts.bytes)}  {rate}/s"
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self.shown:
            sys.stderr.write("\n")
