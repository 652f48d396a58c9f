"""`compatkit demo`: the set that failed its users, and the one that works, made and checked on the spot."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from compatkit.cli.options import coloured, fit_terminal
from compatkit.knowledge.store import Knowledge, load


@click.command("demo")
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
def command(color: str) -> None:
    """Write full-size files (sparse: 12 GB cost no disk) of a failing and of a passing set, and check both.

    Exits 0 if both answers are the expected ones. Nothing is left behind.
    """
    from compatkit import api
    from compatkit.render.style import Paint, size
    from compatkit.render.text import check_text

    fit_terminal()
    knowledge = load()
    paint = Paint(coloured(color))
    wrong = 0
    for number, one in enumerate(knowledge.table("demo"), 1):
        with tempfile.TemporaryDirectory(prefix="compatkit-demo-") as folder:
            paths = [_made(Path(folder), entry, knowledge) for entry in one["files"]]
            report = api.check([str(p) for p in paths], **one.get("settings", {}))
            flags = " ".join(f"--set {k}={v}" for k, v in one.get("settings", {}).items())
            total = sum(p.stat().st_size for p in paths)
            click.echo(paint(f"{number}. {one['title']} ({size(total)} of files, as holes)", "bold"), color=True)
            click.echo(paint(f"$ compatkit check {' '.join(p.name for p in paths)} {flags}", "dim"), color=True)
            click.echo(check_text(report, paint, api.titles(report.components)), color=True)
        rules = {f.rule for f in report.findings}
        if report.verdict != one["verdict"] or one.get("rule", "") not in {*rules, ""}:
            click.echo(f"Expected {one['verdict']}, got {report.verdict}: please report this.", err=True)
            wrong += 1
    raise click.exceptions.Exit(1 if wrong else 0)


def _made(folder: Path, entry: Mapping[str, Any], knowledge: Knowledge) -> Path:
    """Write one file of the set from its family's grammar and example."""
    from compatkit.headers.sparse import write_gguf, write_safetensors
    from compatkit.identify.shapes import example_shapes

    path = folder / str(entry["name"])
    shapes = example_shapes(knowledge.grammar(entry["family"]), entry.get("layout"))
    if path.suffix == ".gguf":
        write_gguf(path, shapes, entry["type"], entry["metadata"], entry.get("vocabulary", 0))
    else:
        write_safetensors(path, shapes, entry["dtype"])
    return path
