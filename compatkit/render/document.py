"""The JSON of `inspect` and `check`: the contract other tools rely on (`compatkit schema` prints its JSON Schema)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from compatkit import __version__
from compatkit.vocabulary import Candidate, Component, Finding, Report

if TYPE_CHECKING:
    from compatkit.checks.diagnosis import Cause

#: Long lists of tensor names are cut here; the counts beside them are exact.
LISTED = 40
#: Longer texts are cut: a name in a file may have megabytes.
LONGEST = 10_000
#: Characters that show nothing or turn text around (format characters, surrogates, line and paragraph separators).
_TURNING = re.compile(
    "[\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\uffff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def component_document(component: Component) -> dict[str, Any]:
    """One component as the contract has it."""
    c = component
    document: dict[str, Any] = {
        "source": c.source,
        "format": c.format,
        "size": c.size,
        "header_bytes": c.header_bytes,
        "role": c.role,
        "family": c.family,
        "also": list(c.also),
        "title": c.title,
        "layout": c.layout,
        "prefix": c.prefix,
        "quantization": {
            "scheme": c.quantization.scheme,
            "dtypes": dict(c.quantization.dtypes),
            "bits": c.quantization.bits,
        },
        "parameters": c.parameters,
        "key_groups": dict(c.key_groups),
        "loads_as": dict(c.loads_as),
        "facts": dict(c.facts),
        "evidence": list(c.evidence),
    }
    for name in ("missing", "mismatched", "foreign"):
        names: tuple[str, ...] = getattr(c, name)
        if names:
            document[name] = {"count": len(names), "names": list(names[:LISTED])}
    for name, more in (("formats", dict(c.quantization.formats)), ("notes", list(c.quantization.notes))):
        if more:
            document["quantization"][name] = more
    if c.not_checked:
        document["not_checked"] = [{"rule": n.rule, "why": n.why} for n in c.not_checked]
    if c.values_read:
        document["values_read"] = [
            {"tensor": r.tensor, "bytes": r.bytes} | ({"says": r.says} if r.says else {})
            for r in c.values_read[:LISTED]
        ]
    if c.runner_up is not None:
        document["runner_up"] = candidate_document(c.runner_up)
    if c.reason:
        document["reason"] = c.reason
    if c.assumed:
        document["assumed"] = True
    return document


def candidate_document(candidate: Candidate) -> dict[str, Any]:
    """The next best reading and what did not fit."""
    out: dict[str, Any] = {"family": candidate.family, "layout": candidate.layout, "matched": candidate.matched}
    for name in ("missing", "mismatched", "foreign"):
        names: tuple[str, ...] = getattr(candidate, name)
        out[name] = {"count": len(names), "names": list(names[:5])}
    if candidate.reason:
        out["reason"] = candidate.reason
    return out


def finding_document(finding: Finding) -> dict[str, Any]:
    """One finding as the contract has it."""
    return {
        "rule": finding.rule,
        "level": finding.level,
        "components": list(finding.components),
        "message": finding.message,
        "predicts": dict(finding.predicts),
        "fix": finding.fix,
        "evidence": plain(finding.evidence),
    }


def inspect_document(components: Iterable[Component], findings: Iterable[Finding] = ()) -> dict[str, Any]:
    """The whole answer of `inspect`; `findings` are the files that could not be read."""
    document: dict[str, Any] = {
        "tool": "compatkit",
        "version": __version__,
        "components": [component_document(c) for c in components],
    }
    problems = [finding_document(f) for f in findings]
    if problems:
        document["findings"] = problems
    return document


def check_document(report: Report) -> dict[str, Any]:
    """The whole answer of `check`; of `smoke`, which prints the same, with its numbers."""
    document = {
        "tool": "compatkit",
        "version": __version__,
        "verdict": report.verdict,
        "judged": list(report.judged),
        "components": [component_document(c) for c in report.components],
        "findings": [finding_document(f) for f in report.findings],
        "adapters": [plain(a) for a in report.adapters],
        "checked": list(report.checked),
        "not_checked": [{"rule": n.rule, "why": n.why} for n in report.not_checked],
        "cost": {
            "requests": report.cost.requests,
            "bytes": report.cost.bytes,
            "seconds": round(report.cost.seconds, 3),
        },
    }
    if report.smoke:
        document["smoke"] = plain(report.smoke)
    return document


def causes_document(causes: Iterable[Cause], said: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The answer of `explain --log`; `said` is what the log says of the run."""
    return {
        "tool": "compatkit",
        "version": __version__,
        "causes": [
            {
                "rule": c.rule,
                "score": round(c.score, 3),
                "matched": c.matched,
                "captured": plain(c.captured),
                "message": c.message,
                "fix": c.fix,
                "lines": c.lines,
                "confirmed": c.confirmed,
            }
            for c in causes
        ],
        "log": dict(said or {}),
    }


def plain(value: Any) -> Any:
    """Tuples and mappings as JSON has them."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    return value


def as_json(document: Any) -> str:
    """JSON text. What is undecodable or turns text around is escaped, and texts of megabytes are cut."""
    import json

    return _TURNING.sub(_escaped, json.dumps(_bounded(document), indent=1, ensure_ascii=False))


def _escaped(match: re.Match[str]) -> str:
    """A character as JSON escapes it; a reader of the JSON gets the character itself."""
    raw = match[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{raw[i : i + 4]}" for i in range(0, len(raw), 4))


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= LONGEST else f"{value[:LONGEST]}… ({len(value)} characters)"
    if isinstance(value, Mapping):
        return {_bounded(k): _bounded(v) for k, v in value.items()}
    return [_bounded(v) for v in value] if isinstance(value, (list, tuple)) else value
