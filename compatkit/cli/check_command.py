"""`compatkit check`: will this set run?"""

from __future__ import annotations

from pathlib import Path

import click

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


@click.command("check")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME[@VERSION]",
    help="What would open the set: comfyui, comfyui-gguf[@COMMIT], diffusers, sd.cpp. It must hold in each.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the run, such as steps=9 or clip_type=TYPE. Repeatable.",
)
@click.option(
    "--assume",
    "assumed",
    multiple=True,
    metavar="FILE=FAMILY",
    help="Take FILE for that family, whatever it looks like. Repeatable.",
)
@click.option("--require", "required", metavar="ROLE,…", help="Roles that must be in the set: text_encoder,vae.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning"]),
    default="error",
    show_default=True,
    help="The level from which findings make the exit code 1.",
)
@click.option("--strict", is_flag=True, help="Also exit 1 where the verdict is unknown.")
@click.option(
    "--baseline",
    "baseline",
    metavar="FILE.json",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An earlier report (check -o FILE.json): only findings that are not in it fail.",
)
@workflow_options
@network_options
@headers_only_option
@output_options
@rules_option
def command(
    sources: tuple[str, ...],
    runtimes: tuple[str, ...],
    settings: tuple[str, ...],
    assumed: tuple[str, ...],
    required: str | None,
    fail_on: str,
    strict: bool,
    baseline: Path | None,
    models: tuple[str, ...],
    comfyui: str | None,
    links: bool,
    offline: bool,
    full: bool,
    headers_only: bool,
    format_: str,
    outputs: list[tuple[str, str]],
    color: str,
    verbose: bool,
    rules: tuple[Path, ...],
) -> None:
    """Say whether the SOURCEs will run together, which error they would meet, and what to change.

    Give the files of one set: the diffusion model, its text encoders, the VAE. `ROLE=SOURCE` (vae=x.safetensors)
    forces a role. A `stack.toml`, a `stack.lock` or a ComfyUI workflow (its JSON, or a PNG made with it) names a whole
    set. A set is judged for the roles it holds; what was not checked is listed with the reason.
    """
    from compatkit import api

    past = None
    if baseline:
        from compatkit.render.diff import Baseline, read

        past = Baseline(read(baseline))
    report = api.check(
        sources,
        runtime=runtimes,
        assume=api.pairs(assumed, "--assume", "FILE=FAMILY"),
        require=tuple(r.strip() for r in (required or "").split(",") if r.strip()),
        rules=rules,
        headers_only=headers_only,
        offline=offline,
        full=full,
        models=models,
        comfyui=comfyui,
        links=links,
        **api.pairs(settings, "--set", "KEY=VALUE"),
    )

    known = (lambda finding: past.knows(finding, report)) if past else None

    def render(kind: str, colour: bool) -> str:
        return rendered(report, kind, colour, rules, verbose=verbose, fail_on=fail_on, strict=strict, known=known)

    deliver(render, format_, outputs, color)
    if format_ == "github":
        step_summary(lambda: render("markdown", False))
    if past and known:
        old = sum(map(known, report.findings))
        click.echo(f"Baseline: {old} of {len(report.findings)} findings are known, and do not fail.", err=True)
        raise click.exceptions.Exit(past.exit_code(report, *api.policy(report, fail_on, strict)))
    raise click.exceptions.Exit(api.exit_code(report, fail_on, strict))
