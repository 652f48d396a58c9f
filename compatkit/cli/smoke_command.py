"""`compatkit smoke`: look at the weights, run them, look at the picture."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from compatkit.cli.answers import rendered
from compatkit.cli.options import deliver, network_options, output_options, rules_option, step_summary

if TYPE_CHECKING:
    from compatkit.smoke.session import Limits
    from compatkit.vocabulary import Report

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(k|m|g|t)?i?b?", re.I)


class _Bytes(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since click 8.3
    """A number of bytes: 2GB, 512M, 1000000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click."""
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        if not found or not float(found[1]):
            self.fail(f"{value!r} is no size: write it as 2GB, 512MB or a number of bytes", param, ctx)
        return int(float(found[1]) * 1000 ** " kmgt".index((found[2] or " ").lower()))


@click.command("smoke")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@click.option("--scan", "scan_only", is_flag=True, help="Only look at every weight once; run nothing. Needs no torch.")
@click.option("--only", multiple=True, metavar="GLOB", help="Scan only tensors with names like that. Repeatable.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="The longest that a stage may take.",
)
@click.option(
    "--memory",
    type=_Bytes(),
    default="4GB",
    show_default=True,
    metavar="SIZE",
    help="The most memory of its own that a stage may take (maps of model files are not counted).",
)
@click.option("--runtime", "runtimes", multiple=True, metavar="NAME[@VERSION]", help="As for `check`.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As for `check`.")
@click.option("--assume", "assumed", multiple=True, metavar="FILE=FAMILY", help="As for `check`.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning"]),
    default="error",
    show_default=True,
    help="The level from which findings make the exit code 1.",
)
@click.option("--strict", is_flag=True, help="Also exit 1 where the verdict is unknown.")
@network_options
@output_options
@rules_option
def command(
    sources: tuple[str, ...],
    scan_only: bool,
    only: tuple[str, ...],
    timeout: float,
    memory: int,
    runtimes: tuple[str, ...],
    settings: tuple[str, ...],
    assumed: tuple[str, ...],
    fail_on: str,
    strict: bool,
    offline: bool,
    full: bool,
    format_: str,
    outputs: list[tuple[str, str]],
    color: str,
    verbose: bool,
    rules: tuple[Path, ...],
) -> None:
    """Look at what only the weights of the SOURCEs tell: NaN, Inf, zeros, damaged blocks, values out of range.

    First what `check` says of the headers; then every weight is read once (`--scan` stops there). It runs in a
    process of its own, bounded by --timeout and --memory; Ctrl-C leaves nothing behind.
    """
    from compatkit import api
    from compatkit.smoke.session import Limits, weights_only

    report = api.check(
        sources,
        runtime=runtimes,
        assume=api.pairs(assumed, "--assume", "FILE=FAMILY"),
        rules=rules,
        offline=offline,
        headers_only=False,
        full=True,
        links=False,
        **api.pairs(settings, "--set", "KEY=VALUE"),
    )
    if scan_only:
        report = weights_only(report)
    limits = Limits(timeout, memory)
    report = _scanned(report, sources, limits, only, rules, offline)
    if not scan_only:
        report = _ran(report)
    _deliver(report, rules, format_, outputs, color, verbose, fail_on, strict)


def _scanned(
    report: Report,
    sources: tuple[str, ...],
    limits: Limits,
    only: tuple[str, ...],
    rules: tuple[Path, ...],
    offline: bool,
) -> Report:
    """The first stage."""
    from compatkit.knowledge.store import load
    from compatkit.smoke.session import scan

    with _Bar() as bar:
        return scan(
            report,
            sources,
            load(rules),
            limits,
            only=only,
            rules=rules,
            offline=offline,
            progress=bar if bar.on else None,
        )


def _ran(report: Report) -> Report:
    """The stages after the scan."""
    from compatkit.smoke.session import merged
    from compatkit.vocabulary import NotChecked

    why = "the weights were looked at, and not run: the forward of this set is not supported yet"
    return merged(report, (), (), [NotChecked("smoke/forward", why)])


def _deliver(
    report: Report,
    rules: tuple[Path, ...],
    format_: str,
    outputs: list[tuple[str, str]],
    color: str,
    verbose: bool,
    fail_on: str,
    strict: bool,
) -> None:
    from compatkit import api

    def render(kind: str, colour: bool) -> str:
        return rendered(report, kind, colour, rules, verbose=verbose, fail_on=fail_on, strict=strict)

    deliver(render, format_, outputs, color)
    if format_ == "github":
        step_summary(lambda: render("markdown", False))
    raise click.exceptions.Exit(api.exit_code(report, fail_on, strict))


class _Bar:
    """A bar on a terminal's standard error, one for each file; nothing elsewhere."""

    def __init__(self) -> None:
        self.on = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None
        self._source = ""
        self._start = 0.0
        self._done = 0

    def __call__(self, source: str, total: int, added: int) -> None:
        from compatkit.render.style import basename, size

        if source != self._source:
            self._close()
            self._source, self._start, self._done = source, time.monotonic(), 0

            def rate(_: Any) -> str:
                return f"{size(self._done / max(time.monotonic() - self._start, 0.05))}/s"

            label = basename(source)
            label = label if len(label) < 41 else f"{label[:28]}…{label[-11:]}"
            self._bar = click.progressbar(
                length=max(total, 1), label=label, file=sys.stderr, item_show_func=rate, update_min_steps=1 << 24
            )
            self._bar.__enter__()
        self._done += added
        self._bar.update(added, 0)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._close()
