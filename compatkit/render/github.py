"""GitHub's workflow commands: each finding an annotation, on the line of the stack file that names the file."""

from __future__ import annotations

import os

from compatkit.render.style import basename, safe
from compatkit.vocabulary import Finding, Place, Report

_COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}


def check_github(report: Report) -> str:
    """The report of `check` as annotations; the last line is the verdict, which GitHub shows in the log only."""
    out = [_finding(finding, report) for finding in report.findings]
    blocking = [n for n in report.not_checked if n.blocks]
    if report.verdict == "unknown":
        why = "; ".join(f"{n.rule}: {n.why}" for n in blocking) or "a file was not recognised"
        out.append(_command("warning", report.places.get(""), "verdict unknown", why))
    out.append(_inert(safe(report.headline or report.verdict)))
    return "\n".join(out) + "\n"


def _finding(finding: Finding, report: Report) -> str:
    names = [basename(report.components[i].source) for i in finding.components if i < len(report.components)]
    text = [finding.message]
    text += [f"{runtime} will say: {error}" for runtime, error in finding.predicts.items()]
    if finding.fix:
        text.append(f"Fix: {finding.fix}")
    title = f"{finding.rule} ({', '.join(dict.fromkeys(names))})" if names else finding.rule
    return _command(_COMMANDS[finding.level], _place(finding, report), title, "\n".join(text))


def _place(finding: Finding, report: Report) -> Place | None:
    """The line that names the file a finding is about: of several the last, which is the one to exchange as a rule."""
    places = [report.places[s] for s in _sources(finding, report) if s in report.places]
    return places[-1] if places else report.places.get("")


def _sources(finding: Finding, report: Report) -> list[str]:
    """The sources of a finding; parts of a folder count for the folder."""
    out = []
    for i in finding.components:
        source = report.components[i].source if i < len(report.components) else ""
        inside = [s for s in report.places if s and source.startswith(s.rstrip("/\\") + "/")]
        out.append(source if source in report.places else max(inside, key=len, default=source))
    return out


def _command(kind: str, place: Place | None, title: str, text: str) -> str:
    properties = [f"file={_property(_below_workspace(place.file))}", f"line={place.line}"] if place else []
    properties.append(f"title={_property(safe(title, 200))}")
    return f"::{kind} {','.join(properties)}::{_data(safe(text))}"


def _below_workspace(path: str) -> str:
    """GitHub finds a file by its path below the checkout."""
    root = os.environ.get("GITHUB_WORKSPACE")
    if not root:
        return path
    full = os.path.abspath(path)  # noqa: PTH100 (a path is a text here)
    return os.path.relpath(full, root).replace(os.sep, "/") if full.startswith(root.rstrip("/") + "/") else path


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _inert(text: str) -> str:
    """A line of the log that GitHub does not take for a command."""
    return text.replace("::", ": :")
