"""`compatkit dryrun`: what would torch itself say?"""

from __future__ import annotations

from typing import Any

import click

from compatkit.cli.judging import answered, set_options, split


@click.command("dryrun")
@set_options
@click.option(
    "--forward/--probes-only",
    default=True,
    show_default=True,
    help="Also run whole models, where diffusers or transformers is installed and has their class.",
)
def command(sources: tuple[str, ...], forward: bool, **options: Any) -> None:
    """Run the places where the SOURCEs meet, with the installed torch, on tensors without weights.

    Each text encoder's output goes into the model's text input, the latent into the VAE's first layers, a LoRA's change
    onto its weight: real operations on tensors that have the shapes of the headers and take no memory. What they raise
    is what a user of this torch would see. Needs torch (pip install torch), no GPU, and no weights: of
    files elsewhere only headers are read. `check --dryrun` does this and the header checks.

    With --comfyui DIR the set goes through that ComfyUI's own loaders, sampler and VAE instead, still without weights,
    on the CPU, in a process of its own with the Python of that install. Its custom nodes are never loaded.
    """
    from compatkit import api

    asked, answer = split(options)
    source = click.get_current_context().get_parameter_source("forward")
    if asked["comfyui"] and source is click.core.ParameterSource.COMMANDLINE:
        one = "--forward" if forward else "--probes-only"
        raise click.UsageError(f"{one} is for a dry run without --comfyui: that ComfyUI runs whole models itself.")
    answered(api.dryrun(sources, forward=forward, **asked), answer)
