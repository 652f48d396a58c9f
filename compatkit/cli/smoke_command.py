"""`compatkit smoke`: look at the weights, run them, look at the picture."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from compatkit.cli.judging import answered, set_options, split
from compatkit.cli.options import is_address

if TYPE_CHECKING:
    from compatkit.smoke.session import Limits
    from compatkit.vocabulary import Report

_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")
#: Settings of `--set` that a run heeds.
_SETTINGS = ("dtype", "shift")
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


def _device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no device: write cpu, cuda or cuda:N", ctx, param)
    return value


@click.command("smoke")
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
@click.option("--steps", type=click.IntRange(1, 100), default=2, show_default=True, help="Steps of the sampler.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    metavar="cpu|cuda[:N]",
    callback=_device,
    help="Where to compute. The CPU computes in bf16 or fp32 and predicts fp16.",
)
@click.option("--vram", type=_Bytes(), metavar="SIZE", help="The most GPU memory that the run may take.")
@click.option("--save", metavar="DIR", default="", help="Write the picture, plots and the latent's statistics there.")
@click.option("--bisect", is_flag=True, help="If it fails, swap parts for stand-ins until the file at fault is found.")
@set_options
def command(
    sources: tuple[str, ...],
    scan_only: bool,
    only: tuple[str, ...],
    timeout: float,
    memory: int,
    steps: int,
    device: str,
    vram: int | None,
    save: str,
    bisect: bool,
    **options: Any,
) -> None:
    """Look at what only the weights of the SOURCEs tell: NaN, Inf, zeros, damaged blocks, values out of range.

    First what `check` says of the headers; then every weight is read once (`--scan` stops there); then the set is run:
    text encoder, a few steps of the model, VAE, with weights streamed from the files and every operation watched. Each
    stage has a process of its own, bounded by --timeout and --memory; Ctrl-C leaves nothing behind.

    With --comfyui http://HOST:8188 the set is run on that server instead, if it has the files: --steps, a small
    picture. Nothing is uploaded, and the weights are not scanned here.
    """
    from compatkit import api
    from compatkit.smoke.session import Limits, weights_only

    asked, answer = split(options)
    server = str(asked["comfyui"]) if is_address(asked["comfyui"]) else None
    if server:
        _only_here(("scan_only", "--scan"), ("only", "--only"), ("memory", "--memory"), ("device", "--device"),
                   ("vram", "--vram"), ("bisect", "--bisect"))  # fmt: skip
        report = api.check(sources, **{**asked, "comfyui": None})
        settings = {"steps": str(steps), **api.pairs(options["settings"], "--set", "KEY=VALUE")}
        answered(_served(report, server, timeout, save, answer.rules, settings), answer)
    report = api.check(sources, **{**asked, "full": True})
    if scan_only:
        report = weights_only(report)
    report = _scanned(report, sources, Limits(timeout, memory), only, answer.rules, bool(options["offline"]))
    if not scan_only:
        from compatkit.knowledge.store import load
        from compatkit.smoke.ran import Run, ran

        settings = {k: v for k, v in asked.items() if k in _SETTINGS and isinstance(v, str)}
        how = Run(steps, device, vram, save, bisect, settings)
        limits = Limits(timeout, memory)
        offline = bool(options["offline"])
        report = ran(report, sources, load(answer.rules), limits, how, rules=answer.rules, offline=offline)
    answered(report, answer)


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
        show = bar if bar.on else None
        return scan(report, sources, load(rules), limits, only=only, rules=rules, offline=offline, progress=show)


def _only_here(*options: tuple[str, str]) -> None:
    """Refuse what means nothing on a server."""
    context = click.get_current_context()
    for name, option in options:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option} is for a run on this machine; with --comfyui the server runs the set.")


def _served(
    report: Report, server: str, seconds: float, save: str, rules: tuple[Path, ...], settings: dict[str, str]
) -> Report:
    """The set on a server; the picture is kept where `--save` says."""
    from compatkit.knowledge.store import load
    from compatkit.smoke import comfyui
    from compatkit.vocabulary import Stack

    knowledge = load(rules)
    asked = click.get_current_context().get_parameter_source("timeout")
    usual = asked is click.core.ParameterSource.DEFAULT
    stack = Stack(report.components, settings=settings)
    outcome = comfyui.run(stack, knowledge, server, comfyui.SECONDS if usual else seconds)
    return comfyui.judged(report, stack, outcome, knowledge, Path(save) if save else None)


class _Bar:
    """A bar on a terminal's standard error, one for each file; nothing elsewhere. Click's own: it is here already."""

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
