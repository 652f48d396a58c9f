"""`compatkit init`: a first stack.toml."""

from __future__ import annotations

from pathlib import Path

import click

from compatkit.cli.options import rules_option, workflow_options, write_file


@click.command("init")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("stack.toml"),
    show_default=True,
    metavar="FILE",
    help="Where to write it; - is standard output.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@workflow_options
@rules_option
def command(
    sources: tuple[str, ...],
    output: Path,
    force: bool,
    models: tuple[str, ...],
    comfyui: str | None,
    links: bool,
    rules: tuple[Path, ...],
) -> None:
    """Write a stack.toml that names the SOURCEs by the roles their tensors show.

    Roles come from identification; `ROLE=SOURCE` sets one. A ComfyUI workflow stands for its files, with the LoRAs'
    strengths and the sampler's settings; what is not here is left out, and said. Exits 3, and writes nothing, if a file
    is not recognised.
    """
    from compatkit import api
    from compatkit.stacks import initial

    to_stdout = str(output) == "-"
    if output.exists() and not force and not to_stdout:
        raise click.UsageError(f"{output} exists; --force replaces it.")
    rows, all_components, unknown = [], [], []
    plan = api.workflow_plan(sources, rules, models, comfyui, links)
    for absent in plan.absent() if plan else ():
        click.echo(f"Left out: {absent.reason}. {absent.problems[0].fix}", err=True)
    for text in [r.source for r in plan.requests] if plan else sources:
        role, source, components = api.opened_as(text, rules)
        role = role or initial.entry_role(components, Path(source).is_dir())
        if role is None:
            unknown.append(f"{source}: {components[0].reason or 'not recognised'}")
            continue
        rows.append((role, source, components))
        all_components += components
    for line in unknown:
        click.echo(f"Not written: {line}. Give it as ROLE=FILE if you know what it is.", err=True)
    if unknown:
        raise click.exceptions.Exit(3)
    folder = "" if to_stdout else str(output.parent)
    strengths, settings = (plan.strengths(), plan.settings()) if plan else ({}, {})
    document = initial.text(rows, api.titles(all_components, rules), folder, strengths, settings)
    if to_stdout:
        click.echo(document, nl=False)
        return
    write_file(output, document)
    click.echo(f"{output}: {len(rows)} sources. Next: compatkit check {output}")
