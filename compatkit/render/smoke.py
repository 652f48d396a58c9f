"""What a terminal shows of a smoke test's numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compatkit.render.style import basename, line, size
from compatkit.vocabulary import Report


def smoke_lines(report: Report, verbose: bool = False) -> Iterator[str]:
    """A few lines for each stage; with `verbose` the largest values of each file."""
    scan: Mapping[str, Any] = report.smoke.get("scan") or {}
    if scan:
        yield from _scan(scan, verbose)
    forward: Mapping[str, Any] = report.smoke.get("forward") or {}
    if forward:
        yield from _forward(report, forward, verbose)


def _forward(report: Report, forward: Mapping[str, Any], verbose: bool) -> Iterator[str]:
    """One line for each call of a component, and what came of picture, latent and round trip."""
    runs = [r for r in forward["runs"] if r["event"] == "run"]
    if not runs:
        return
    memory = f", {size(forward['peak_memory'])} of memory of its own" if forward.get("peak_memory") else ""
    where = f" on {forward['device']}, torch {forward['torch']}" if forward.get("torch") else ""
    yield f"Run: {len(runs)} call{'s' if len(runs) != 1 else ''} in {forward['seconds']:.1f} s{memory}{where}"
    for run in runs:
        name = basename(report.components[int(run["component"])].source)
        call = run["call"] if run["call"] != "forward" else f"step {run['step']}" if run["step"] > 1 else "forward"
        yield f"  {name}: {call} with {run['given']}, {run['dtype']}, {run['seconds']:.1f} s; {_largest(run)}"
        for place in (run.get("near") or ()) if verbose else ():
            yield f"    {float(place['max_abs']):>10.4g}  {line(place['module'], 80)} ({place['op']})"
    for event in forward["runs"]:
        if event["event"] == "picture":
            numbers = event["statistics"]
            path = f", {event['path']}" if event.get("path") else ""
            yield (
                f"  picture of {event['given']}: {numbers['verdict']} ({numbers['width']} x {numbers['height']}, "
                f"mean {numbers['mean']:.2f}, deviation {numbers['std']:.2f}){path}"
            )
        elif event["event"] == "latent":
            ratio = f"{event['std_ratio']:.2f} of the expected deviation"
            yield f"  latent: {event['verdict']} ({event['channels']} channels, {ratio})"


def _largest(run: Mapping[str, Any]) -> str:
    """The first operation that broke, or the one with the largest values."""
    broken, largest = run.get("broken"), run.get("largest")
    if broken:
        return f"NaN or Inf first in {line(broken['module'] or 'the model', 60)} ({broken['op']})"
    if not largest:
        return "nothing to see"
    return f"largest {float(largest['max_abs']):.4g} in {line(largest['module'] or 'the model', 60)} ({largest['op']})"


def _scan(scan: Mapping[str, Any], verbose: bool) -> Iterator[str]:
    files = [f for f in scan["files"] if f["tensors"]]
    seconds = float(scan["seconds"])
    tensors = sum(f["tensors"] for f in files)
    what = f"{tensors:,} tensor{'s' if tensors != 1 else ''}, {size(scan['bytes'])}"
    rate = f", {size(scan['bytes'] / seconds)}/s" if scan["bytes"] > 1e9 and seconds else ""
    yield f"Weights: {what} read once in {seconds:.1f} s{rate}" + ("" if scan["complete"] else " (not all of them)")
    for file in files:
        rows = sorted(file["measured"].items(), key=lambda item: -float(item[1].get("max_abs", 0.0)))
        rows = [(n, r) for n, r in rows if r.get("kind") != "integer" and not r.get("owner")]
        if not rows:
            continue
        name, row = rows[0]
        yield f"  {basename(file['source'])}: largest value {float(row.get('max_abs', 0.0)):.4g} in {line(name, 90)}"
        for name, row in rows[1:10] if verbose else ():
            yield f"    {float(row.get('max_abs', 0.0)):>10.4g}  {line(name, 90)}"
