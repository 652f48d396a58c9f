"""`compatkit report`: one document about a set that a person would send."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from compatkit.cli.options import deliver, network_options, only, output_formats, rules_option

if TYPE_CHECKING:
    from compatkit.render.redact import Redactor

_FORMATS = ("markdown", "html", "json")


@click.command("report")
@click.argument("sources", nargs=-1, metavar="SOURCE…")
@click.option("--log", "log", metavar="FILE|-", help="What the run said (or - for standard input): it is matched.")
@click.option(
    "--smoke",
    "smoke",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="What a smoke test left: report.json, pictures and plots (*.png, *.svg).",
)
@click.option(
    "--diff",
    "diff",
    nargs=2,
    metavar="OLD NEW",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Say what changed between two JSON reports, instead.",
)
@click.option("--lang", default="en", show_default=True, metavar="LANG", help="Language of the report's frame: en, fr.")
@click.option(
    "--templates",
    "templates",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Your own report.md.j2 or report.html.j2, used instead.",
)
@click.option("--full-paths", is_flag=True, help="Show paths whole; by default files are shown by base name.")
@click.option("--runtime", "runtimes", multiple=True, metavar="NAME[@VERSION]", help="As in check.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As in check.")
@click.option("--assume", "assumed", multiple=True, metavar="FILE=FAMILY", help="As in check.")
@click.option("--require", "required", metavar="ROLE,…", help="As in check.")
@network_options
@output_formats(*_FORMATS)
@rules_option
def command(
    sources: tuple[str, ...],
    log: str | None,
    smoke: Path | None,
    diff: tuple[Path, Path] | None,
    lang: str,
    templates: Path | None,
    full_paths: bool,
    runtimes: tuple[str, ...],
    settings: tuple[str, ...],
    assumed: tuple[str, ...],
    required: str | None,
    offline: bool,
    full: bool,
    format_: str,
    outputs: list[tuple[str, str]],
    color: str,
    verbose: bool,
    rules: tuple[Path, ...],
) -> None:
    """Write an incident report about the SOURCEs: verdict, what disagrees, the error, the fix, how to reproduce it.

    \b
      compatkit report dit.gguf encoder.gguf vae.safetensors --log comfyui.log -o incident.md
      compatkit report stack.toml -o incident.html --lang fr
      compatkit report --diff old.json new.json

    Files are shown by base name, and no user name, home folder or token goes into the report. The exit code is that of
    `check`.
    """
    from compatkit import api
    from compatkit.cli.explain_command import read_log
    from compatkit.render.catalogue import catalogue
    from compatkit.render.document import as_json
    from compatkit.render.incident import (
        Incident,
        incident_document,
        incident_html,
        incident_markdown,
        this_environment,
    )
    from compatkit.render.redact import Redactor
    from compatkit.render.style import basename

    only(_FORMATS, "report", format_, outputs)
    catalogue(lang)  # a language that does not exist is refused before anything is read
    overrides = (templates,) if templates else ()
    if diff:
        if sources:
            raise click.UsageError("--diff compares two reports; it takes no further files.")
        _differ(diff, format_, outputs, lang, overrides)
    if not sources:
        raise click.UsageError("Name the files of the set, or two reports with --diff.")
    run: dict[str, Any] = api.pairs(settings, "--set", "KEY=VALUE")
    report = api.check(
        sources,
        runtime=runtimes,
        assume=api.pairs(assumed, "--assume", "FILE=FAMILY"),
        require=tuple(r.strip() for r in (required or "").split(",") if r.strip()),
        rules=rules,
        offline=offline,
        full=full,
        **run,
    )
    named = [c.source for c in report.components] + [s.partition("=")[2] or s for s in sources]
    tested = None
    if smoke is not None:
        from compatkit.render.smokedir import joined, read, redacted

        tested = read(smoke, [basename(c.source) for c in report.components])
        report = joined(report, tested)
    redactor = Redactor(
        [*named, *map(str, rules), *([log] if log else []), *([str(smoke)] if smoke else [])], full_paths
    )
    if tested is not None:
        tested = redacted(tested, redactor.text)
    causes = None
    run_facts: dict[str, str] = {}
    if log is not None:
        text = read_log(log)
        found = api.causes(text, report.findings, rules)
        run_facts = {k: redactor.text(v) for k, v in api.run_facts(text, rules).items()}
        causes = [
            c._replace(
                matched=redactor.text(c.matched), message=redactor.text(c.message), fix=redactor.text(c.fix),
                captured=redactor.value(c.captured),
            )
            for c in found
        ]  # fmt: skip
    options = [("--runtime", r) for r in runtimes] + [("--set", redactor.text(s)) for s in settings]
    options += [("--assume", _pair(a, redactor)) for a in assumed] + ([("--require", required)] if required else [])
    options += [("--rules", redactor.source(str(r))) for r in rules]
    options += [("--log", redactor.source(log))] if log else []
    options += [("--smoke", redactor.source(str(smoke)))] if smoke else []
    shown = redactor.report(report)
    incident = Incident(
        shown,
        api.titles(report.components, rules),
        causes,
        _command([_pair(s, redactor, first=False) for s in sources], options),
        this_environment(),
        tested,
        run_facts,
        api.cards(rules),
    )

    def render(kind: str, colour: bool) -> str:
        if kind == "json":
            return as_json(incident_document(incident))
        made = incident_html if kind == "html" else incident_markdown
        return made(incident, lang, overrides)

    deliver(render, format_, outputs, color, quiet=bool(outputs))
    raise click.exceptions.Exit(api.exit_code(report))


def _differ(
    paths: tuple[Path, Path],
    format_: str,
    outputs: Sequence[tuple[str, str]],
    language: str,
    overrides: tuple[Path, ...],
) -> NoReturn:
    """Print what changed; exit 1 where it got worse."""
    from compatkit.render.diff import difference, difference_document, difference_markdown, read
    from compatkit.render.document import as_json

    only(("markdown", "json"), "report --diff", format_, outputs)
    found = difference(read(paths[0]), read(paths[1]))

    def render(kind: str, colour: bool) -> str:
        if kind == "json":
            return as_json(difference_document(found))
        return difference_markdown(found, language, overrides)

    deliver(render, format_, outputs, "never", quiet=bool(outputs))
    raise click.exceptions.Exit(1 if found.worse else 0)


def _pair(text: str, redactor: Redactor, first: bool = True) -> str:
    """`ROLE=SOURCE` or `FILE=FAMILY` with the file redacted."""
    if first:
        file, equals, family = text.rpartition("=")
        return f"{redactor.source(file)}{equals}{family}"
    role, equals, source = text.partition("=")
    if equals and role.isidentifier():
        return f"{role}={redactor.source(source)}"
    return redactor.source(text)


def _command(sources: Iterable[str], options: Iterable[tuple[str, str]]) -> str:
    from compatkit.render.style import line

    return line(shlex.join(["compatkit", "report", *sources, *(x for pair in options for x in pair)]), 4000)
