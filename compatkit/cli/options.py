"""Options that several commands share, and how an answer is written out."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("text", "json", "markdown", "html", "github", "sarif", "junit")
_SUFFIXES = {
    ".json": "json",
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "text",
    ".html": "html",
    ".sarif": "sarif",
    ".xml": "junit",
}


def _outputs(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> list[tuple[str, str]]:
    out = []
    for path in value:
        suffix = Path(path).suffix.lower()
        if suffix not in _SUFFIXES:
            raise click.UsageError(f"-o {path}: the suffix chooses the format ({', '.join(_SUFFIXES)}).", ctx)
        out.append((path, _SUFFIXES[suffix]))
    return out


def only(formats: Sequence[str], command: str, format_: str, outputs: Sequence[tuple[str, str]]) -> None:
    """Refuse, in one sentence, a format that this command does not have."""
    for kind, said in ((format_, f"--format {format_}"), *((k, f"-o {path}") for path, k in outputs)):
        if kind not in formats:
            has = f"{', '.join(formats[:-1])} and {formats[-1]}"
            raise click.UsageError(f"{said}: `compatkit {command}` makes no {kind} report; it has {has}.")


def output_options(command: F) -> F:
    """--format, -o, --color, -v, with every format."""
    return output_formats(*FORMATS)(command)


def output_formats(*formats: str) -> Callable[[F], F]:
    """--format, -o, --color, -v of a command that has these formats; it prints the first of them unless told."""
    suffixes = [suffix for suffix, kind in _SUFFIXES.items() if kind in formats and suffix != ".markdown"]

    def known(ctx: click.Context, param: click.Parameter, value: str) -> str:
        if value not in FORMATS:
            raise click.UsageError(f"--format is one of {', '.join(formats)}, not {value!r}.", ctx)
        return value

    options = (
        click.option("-v", "--verbose", is_flag=True, help="Show everything that is known."),
        click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True),
        click.option("-o", "--output", "outputs", multiple=True, callback=_outputs, metavar="FILE",
                     help=f"Also write the report there; the suffix ({', '.join(suffixes)}) chooses the format."
                     " Repeatable."),
        click.option("--format", "format_", default=formats[0], callback=known, metavar="|".join(formats),
                     show_default=True, help="What standard output gets."),
    )  # fmt: skip

    def decorate(command: F) -> F:
        for option in options:
            command = option(command)
        return command

    return decorate


def headers_only_option(command: F) -> F:
    """--headers-only."""
    return click.option(
        "--headers-only", is_flag=True,
        help="Read nothing but headers: no small tensors that would tell what a header cannot.",
    )(command)  # fmt: skip


def network_options(command: F) -> F:
    """--offline, --full."""
    full = "Read whole headers of files elsewhere, also where a part tells what they are (a GGUF's vocabulary)."
    offline = "Never use the network; answer for files elsewhere from the header cache."
    command = click.option("--full", is_flag=True, help=full)(command)
    return click.option("--offline", is_flag=True, help=offline)(command)


def is_address(text: str | None) -> bool:
    """Whether `--comfyui` names a server that runs, and no folder."""
    return bool(text) and "://" in str(text)


class _Install(click.Path):
    """A folder; for `smoke` the address of a running server too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        if isinstance(value, str) and is_address(value):
            if ctx is not None and ctx.info_name == "smoke":
                return value
            self.fail(
                f"{value!r} is a server's address: `compatkit smoke` runs sets on one; here it is a folder", param, ctx
            )
        return super().convert(value, param, ctx)


def workflow_options(command: F) -> F:
    """--models, --comfyui, --links."""
    folder = click.Path(exists=True, file_okay=False)
    place = _Install(exists=True, file_okay=False)
    models = "Where a workflow's files lie: a folder laid out as ComfyUI's models folder. Repeatable."
    install = "A ComfyUI install: its models, its extra_model_paths.yaml, its version. Read, and run only by a dry run."
    links = "Read the headers of a workflow's files that are not here from where the workflow says they can be had."
    command = click.option("--links", is_flag=True, help=links)(command)
    command = click.option("--comfyui", metavar="DIR", type=place, help=install)(command)
    return click.option("--models", multiple=True, metavar="DIR", type=folder, help=models)(command)


def rules_option(command: F) -> F:
    """--rules DIR."""
    return click.option(
        "--rules", "rules", multiple=True, metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="A folder of your own rules, on top of those that come with compatkit. Repeatable.",
    )(command)  # fmt: skip


def coloured(choice: str) -> bool:
    """Whether to colour: `auto` means a terminal, no NO_COLOR, and TERM is not dumb."""
    if choice == "auto":
        return (
            sys.stdout is not None
            and sys.stdout.isatty()
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM") != "dumb"
        )
    return choice == "always"


def fit_terminal() -> None:
    """From here on text is wrapped to the terminal that standard output is, if it is one."""
    if sys.stdout is None or not sys.stdout.isatty():
        return
    from compatkit.render.style import TERMINAL

    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
        TERMINAL.set(os.get_terminal_size(sys.stdout.fileno()).columns)


def deliver(
    render: Callable[[str, bool], str],
    format_: str,
    outputs: Sequence[tuple[str, str]],
    color: str,
    quiet: bool = False,
) -> None:
    """Write one answer to every `-o` file and, unless `quiet`, to standard output. `render(kind, colour)` makes it.

    A file that cannot be written is said after the answer, and ends the command with 2.
    """
    failed = []
    for path, kind in outputs:
        try:
            write_file(path, render(kind, False), errors="backslashreplace")
        except click.ClickException as e:
            failed.append(f"-o {e.message}")
    if not quiet:
        fit_terminal()
        click.echo(render(format_, coloured(color)).rstrip("\n"), color=True)
    if failed:
        raise click.ClickException(" ".join(failed))


def write_file(path: str | Path, text: str, errors: str = "strict") -> None:
    """Write a file that the user named, whole or not at all.

    Raises:
        click.ClickException: it could not be written.
    """
    from compatkit.fetch.written import replace_text

    there = os.path.lexists(path)
    try:
        replace_text(Path(path), text, errors)
    except OSError as e:
        kept = "; the file that was there is unchanged" if there and Path(path).is_file() else ""
        raise click.ClickException(f"{path}: {e.strerror or e}{kept}.") from None


def step_summary(markdown: Callable[[], str]) -> None:
    """In a GitHub workflow: append the report to the summary of the step. Elsewhere nothing happens."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as f:
            f.write(markdown() + "\n")
    except OSError as e:
        click.echo(f"The step summary could not be written: {e.strerror or e}.", err=True)
