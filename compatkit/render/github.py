"""GitHub's workflow commands: each finding an annotation, on the line of the stack file that names the file."""

from __future__ import annotations

import os

from compatkit.render.places import finding_text, place
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
    title = f"{finding.rule} ({', '.join(dict.fromkeys(names))})" if names else finding.rule
    return _command(_COMMANDS[finding.level], place(finding, report), title, finding_text(finding))


def _command(kind: str, where: Place | None, title: str, text: str) -> str:
    properties = [f"file={_property(below_workspace(where.file))}", f"line={where.line}"] if where else []
    properties.append(f"title={_property(safe(title, 200))}")
    return f"::{kind} {','.join(properties)}::{_data(safe(text))}"


def below_workspace(path: str) -> str:
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
