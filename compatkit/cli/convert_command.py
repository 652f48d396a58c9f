"""`compatkit convert`: a LoRA in another convention's names."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from msgspec.structs import asdict

from compatkit import __version__
from compatkit.cli.options import rules_option

_STYLES = ("native", "diffusers", "kohya")


@click.command("convert")
@click.argument("lora", metavar="LORA")
@click.option("--to", type=click.Choice(_STYLES), required=True, help="The names to write it in.")
@click.option(
    "--base",
    metavar="FILE|FAMILY",
    help="The model it is for: a file, or a family's name. Not needed where the LoRA's own tensors say it.",
)
@click.option("-o", "--output", required=True, metavar="OUT", help="The file to write (.safetensors).")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option("--format", "format_", type=click.Choice(("text", "json")), default="text", help="What is printed.")
@rules_option
def command(
    lora: str, to: str, base: str | None, output: str, force: bool, offline: bool, format_: str, rules: tuple[Path, ...]
) -> None:
    """Write a LoRA in the names that another program reads: the same change, to the last bit.

    \b
    native     diffusion_model.…  what ComfyUI reads for every model
    diffusers  transformer.…, unet.…  what diffusers and PEFT read
    kohya      lora_unet_…  what sd-scripts, musubi and most programs read

    Fused weights are split and split ones joined as the model's own file has them. What would be lost or rounded is
    refused, with the module and the reason. The file is compared with the original on random weights before it is put
    in place.

    Exit codes: 0 written, 1 refused, 2 a wrong argument or no such file.
    """
    from compatkit.convert.cut import Refused
    from compatkit.convert.run import convert
    from compatkit.fetch.written import Exists
    from compatkit.knowledge.store import load
    from compatkit.sources.naming import shown
    from compatkit.sources.open import Network

    if not output.lower().endswith((".safetensors", ".sft")):
        raise click.UsageError(f"-o {output}: a converted LoRA is a .safetensors file.")
    try:
        with _ended_cleanly(), Network(offline=offline) as network:
            result = convert(lora, to=to, output=output, base=base, knowledge=load(rules), force=force, network=network)
    except Exists:
        raise click.UsageError(f"{shown(output)} is there already; --force replaces it.") from None
    except Refused as e:
        click.echo(told({"refused": str(e)}) if format_ == "json" else f"Not converted: {e}.", err=format_ != "json")
        raise click.exceptions.Exit(1) from None
    except OSError as e:
        raise click.UsageError(f"{shown(output)} cannot be written: {e.strerror or e}.") from None
    if format_ == "json":
        click.echo(told(asdict(result)))
        return
    done = [f"{n} {what}" for n, what in ((result.joined, "joined"), (result.divided, "split")) if n]
    click.echo(f"{shown(result.output)}: {result.keys_after} keys, {result.style}, for {result.base}")
    click.echo(f"  {result.modules} modules{': ' + ', '.join(done) if done else ''}; {result.keys_before} keys before")
    click.echo(f"  verified: the same change of {result.verified} weights as {shown(result.source)}")
    for runtime, (read, keys) in result.read.items():
        click.echo(f"  {runtime} reads {read} of {keys} keys")
    for note in result.notes:
        click.echo(f"  note: {note}")


@contextlib.contextmanager
def _ended_cleanly() -> Iterator[None]:
    """Being told to end (SIGTERM, SIGHUP) removes what is half written, as Ctrl-C does."""

    def end(number: int, frame: object) -> None:
        click.echo("Interrupted.", err=True)
        raise SystemExit(128 + number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup has reasons to ignore one
            with contextlib.suppress(ValueError):  # only the first thread may
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def told(answer: Mapping[str, Any]) -> str:
    """The answer as JSON."""
    from compatkit.render.document import as_json, plain

    return as_json({"tool": "compatkit", "version": __version__, **plain(answer)})
