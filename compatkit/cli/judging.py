"""What the commands that judge a set share: their options, how their report is delivered, their exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec import Struct

from compatkit.cli.answers import rendered
from compatkit.cli.options import (
    deliver,
    headers_only_option,
    network_options,
    output_options,
    rules_option,
    step_summary,
    workflow_options,
)

if TYPE_CHECKING:
    from compatkit.vocabulary import Report

F = TypeVar("F", bound=Callable[..., Any])


def set_options(command: F) -> F:
    """SOURCE…, the settings of the run, what makes the exit code, where headers come from, where the report goes."""
    for option in (
        rules_option,
        output_options,
        headers_only_option,
        network_options,
        workflow_options,
        click.option("--baseline", "baseline", metavar="FILE.json",
                     type=click.Path(exists=True, dir_okay=False, path_type=Path),
                     help="An earlier report (check -o FILE.json): only findings that are not in it fail."),
        click.option("--strict", is_flag=True, help="Also exit 1 where the verdict is unknown."),
        click.option("--fail-on", type=click.Choice(["error", "warning"]), default="error", show_default=True,
                     help="The level from which findings make the exit code 1."),
        click.option("--require", "required", metavar="ROLE,…",
                     help="Roles that must be in the set: text_encoder,vae."),
        click.option("--assume", "assumed", multiple=True, metavar="FILE=FAMILY",
                     help="Take FILE for that family, whatever it looks like. Repeatable."),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                     help="A setting of the run, such as steps=9 or clip_type=TYPE. Repeatable."),
        click.option("--runtime", "runtimes", multiple=True, metavar="NAME[@VERSION]",
                     help="What would open the set: comfyui, comfyui-gguf[@COMMIT], diffusers, sd.cpp, invokeai."
                     " It must hold in each."),
        click.argument("sources", nargs=-1, required=True, metavar="SOURCE…"),
    ):  # fmt: skip
        command = option(command)
    return command


class Answer(Struct, frozen=True):
    """How a report is delivered: the options of a judging command, as click hands them over."""

    fail_on: str
    strict: bool
    baseline: Path | None
    format_: str
    outputs: list[tuple[str, str]]
    color: str
    verbose: bool
    rules: tuple[Path, ...]


def split(options: dict[str, Any]) -> tuple[dict[str, Any], Answer]:
    """(the arguments of `api.check` and `api.dryrun`, how to deliver) of a command's options."""
    from compatkit import api

    asked = {
        "runtime": options["runtimes"],
        "assume": api.pairs(options["assumed"], "--assume", "FILE=FAMILY"),
        "require": tuple(r.strip() for r in (options["required"] or "").split(",") if r.strip()),
        **{k: options[k] for k in ("rules", "headers_only", "offline", "full", "models", "comfyui", "links")},
        **api.pairs(options["settings"], "--set", "KEY=VALUE"),
    }
    return asked, Answer(**{k: options[k] for k in Answer.__struct_fields__})


def answered(report: Report, answer: Answer) -> None:
    """Write the report where it is wanted, and end with its exit code."""
    from compatkit import api

    past = None
    if answer.baseline:
        from compatkit.render.diff import Baseline, read

        past = Baseline(read(answer.baseline))
    known = (lambda finding: past.knows(finding, report)) if past else None

    def render(kind: str, colour: bool) -> str:
        how = answer
        return rendered(
            report, kind, colour, how.rules, verbose=how.verbose, fail_on=how.fail_on, strict=how.strict, known=known
        )

    deliver(render, answer.format_, answer.outputs, answer.color)
    if answer.format_ == "github":
        step_summary(lambda: render("markdown", False))
    levels = api.policy(report, answer.fail_on, answer.strict)
    if past and known:
        old = sum(map(known, report.findings))
        click.echo(f"Baseline: {old} of {len(report.findings)} findings are known, and do not fail.", err=True)
        raise click.exceptions.Exit(past.exit_code(report, *levels))
    raise click.exceptions.Exit(api.exit_code(report, answer.fail_on, answer.strict))
