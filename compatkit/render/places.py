"""Where a finding stands: the line of the stack file that names its file. And what makes two findings the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from compatkit.render.style import basename
from compatkit.vocabulary import Finding, Place, Report


def place(finding: Finding, report: Report) -> Place | None:
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


def fingerprint(rule: str, level: str, files: Iterable[str], evidence: Mapping[str, Any]) -> str:
    """The same for one finding in two reports: rule, level, files by base name, and the facts; not its wording."""
    facts = json.dumps(evidence, sort_keys=True, default=str)
    text = json.dumps([rule, level, sorted(basename(f) for f in files), facts])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def finding_text(finding: Finding) -> str:
    """Message, the errors to come and the fix, a line each."""
    text = [finding.message]
    for runtime, error in finding.predicts.items():
        text.append(f"You would see{'' if runtime == 'any' else f' ({runtime})'}: {error}")
    if finding.fix:
        text.append(f"Fix: {finding.fix}")
    return "\n".join(text)
