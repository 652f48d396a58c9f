"""The command line. Each command is a module of its own, imported only when it runs."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from typing import NoReturn

import click

from compatkit import __version__

#: Command -> its one line in `--help`. The module `compatkit.cli.NAME_command` holds it.
COMMANDS = {
    "inspect": "Say what a model file is: family, facts, evidence.",
    "check": "Say whether a set of files will run together.",
    "dryrun": "Run a set without weights: the error that torch would raise.",
    "smoke": "Look at the weights: NaN, Inf, zeros, damaged blocks.",
    "convert": "Write a LoRA in the names that another program reads.",
    "report": "Write an incident report about a set, to be sent.",
    "init": "Write a stack.toml for a set of files.",
    "lock": "Pin a stack.toml that passes: commits, sizes, checksums.",
    "pull": "Download what a stack.lock pins, verify it, put it in place.",
    "explain": "Explain a rule, a model family, or an error text.",
    "rules": "List, test or draft rules.",
    "schema": "Print the JSON Schema of the reports.",
    "cache": "Show or clear what was read of remote files.",
    "demo": "Show a failing and a passing set, made on the spot.",
}

#: Commands that read headers and end. They make no cycles worth collecting, and looking for some among thousands of
#: tensors takes a quarter of their time.
SHORT = frozenset({"check", "inspect", "explain"})

EPILOG = "Exit codes: 0 pass, 1 fail, 2 nothing could be examined, 3 unknown."
#: An error of compatkit itself: never to be read as a verdict.
INTERNAL = 70


class _Commands(click.Group):
    """Knows the commands by name and loads only the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        if name not in SHORT:
            gc.enable()
        module = importlib.import_module(f"compatkit.cli.{name}_command")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as e:
            from compatkit.sources.naming import closest

            close = closest(args[0], COMMANDS)
            hint = f" Did you mean {close!r}?" if close else f" Commands: {', '.join(COMMANDS)}."
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx) from e


@click.group(
    cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="compatkit")
def cli() -> None:
    """Will this set of diffusion model files run, which error would it meet, and what to change.

    Reads headers only, also of files elsewhere (https://, hf://, s3://): nothing is downloaded, unpickled
    or executed, and no GPU or torch is needed.

    \b
      compatkit check z_image_turbo-Q5_K_M.gguf Qwen3-4B-Q4_K_M.gguf ae.safetensors
      compatkit inspect model.safetensors
      compatkit explain encoder/width
    """


def main() -> NoReturn:
    """Entry point. A closed pipe (`| head`) ends quietly, with the exit code the answer had so far."""
    gc.disable()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli(standalone_mode=False)
    except click.exceptions.Exit as e:
        code = e.exit_code
    except click.ClickException as e:
        e.show()
        code = 2
    except click.Abort:
        click.echo("Interrupted.", err=True)
        code = 130
    except BrokenPipeError:
        code = _closed()
    except Exception as e:
        code = _known(e)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        code = _closed()
    except OSError as e:
        code = _known(e)
    _end(code if isinstance(code, int) else 0)


def _end(code: int) -> NoReturn:
    """End the process. A short command gives thousands of tensors back to the system at once, not one by one."""
    if not gc.isenabled() and not sys.getprofile() and not sys.gettrace():
        with contextlib.suppress(OSError, AttributeError):
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _closed() -> int:
    """Let what is still buffered go nowhere, so that no second error follows at exit."""
    if sys.stdout is None:
        return 0
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _known(error: Exception) -> int:
    from compatkit.vocabulary import RulesError, SourceError

    if isinstance(error, (RulesError, SourceError)):
        click.echo(f"Error: {error}", err=True)
        return 2
    if os.environ.get("COMPATKIT_DEBUG"):
        raise error
    if isinstance(error, OSError):
        _closed()
        click.echo(f"Error: the answer could not be written: {error.strerror or error}", err=True)
        return INTERNAL
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    click.echo(f"Internal error (please report it; COMPATKIT_DEBUG=1 shows where): {text}", err=True)
    return INTERNAL
