"""`compatkit inspect`: what is this file?"""

from __future__ import annotations

from pathlib import Path

import click

from compatkit.cli.options import (
    deliver,
    headers_only_option,
    network_options,
    only,
    output_formats,
    rules_option,
    workflow_options,
)

_FORMATS = ("text", "json", "markdown")


@click.command("inspect")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@workflow_options
@network_options
@headers_only_option
@output_formats(*_FORMATS)
@rules_option
def command(
    sources: tuple[str, ...],
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
) -> int:
    """Say what each SOURCE is: role, family, layout, quantisation, facts, and the evidence for it.

    A SOURCE is a model file (safetensors or GGUF), one shard or the index of a split one, or a diffusers folder: a
    path, https://…, hf://ORG/REPO[@REVISION][/PATH], a link to the Hub, or an fsspec URL. Names are never evidence.
    `ROLE=SOURCE` (vae=x.safetensors) reads it as that role.
    """
    from compatkit import api
    from compatkit.render import document

    only(_FORMATS, "inspect", format_, outputs)
    components, unreachable = api.inspect_all(
        sources,
        rules=rules,
        headers_only=headers_only,
        offline=offline,
        full=full,
        models=models,
        comfyui=comfyui,
        links=links,
    )
    for message in () if components else unreachable:  # beside others they stand in the report
        click.echo(f"Error: {message}", err=True)
    if components or not unreachable:

        def render(kind: str, colour: bool) -> str:
            if kind == "json":
                return document.as_json(document.inspect_document(components, api.problem_findings(components)))
            titles = api.titles(components, rules)
            if kind == "markdown":
                from compatkit.render.markdown import inspect_markdown

                return inspect_markdown(components, titles)
            from compatkit.render.style import Paint
            from compatkit.render.text import inspect_text

            return inspect_text(components, Paint(colour), titles, verbose)

        deliver(render, format_, outputs, color)
    raise click.exceptions.Exit(api.inspect_exit_code(components, unreachable))
