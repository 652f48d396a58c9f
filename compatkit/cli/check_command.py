"""`compatkit check`: will this set run?"""

from __future__ import annotations

from typing import Any

import click

from compatkit.cli.judging import answered, set_options, split


@click.command("check")
@set_options
@click.option("--dryrun", is_flag=True, help="Also run every place where two models meet, with the installed torch.")
def command(sources: tuple[str, ...], dryrun: bool, **options: Any) -> None:
    """Say whether the SOURCEs will run together, which error they would meet, and what to change.

    Give the files of one set: the diffusion model, its text encoders, the VAE. `ROLE=SOURCE` (vae=x.safetensors)
    forces a role. A `stack.toml`, a `stack.lock` or a ComfyUI workflow (its JSON, or a PNG made with it) names a whole
    set. A set is judged for the roles it holds; what was not checked is listed with the reason.
    """
    from compatkit import api

    asked, answer = split(options)
    report = api.dryrun(sources, join=True, **asked) if dryrun else api.check(sources, **asked)
    answered(report, answer)
