"""SARIF 2.1.0: what code scanning reads. A result stands on the line of the stack file that names the file, or on the
model file itself."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from compatkit import __version__
from compatkit.render.document import as_json, plain
from compatkit.render.github import below_workspace
from compatkit.render.places import finding_text, fingerprint, place
from compatkit.render.style import safe
from compatkit.vocabulary import Finding, Report

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def check_sarif(
    report: Report, rules: Mapping[str, Mapping[str, Any]], known: Callable[[Finding], bool] | None = None
) -> str:
    """The report of `check`; `rules` are the entries of the checks, by id, for the help texts.

    `known` says whether a finding stands in a baseline: then each result is marked as new or unchanged.
    """
    ids = list(dict.fromkeys([f.rule for f in report.findings] + [n.rule for n in report.not_checked]))
    index = {rule: i for i, rule in enumerate(ids)}
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "compatkit",
                "version": __version__,
                "semanticVersion": __version__,
                "rules": [_rule(i, rules.get(i, {})) for i in ids],
            }
        },
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": True,
                "toolExecutionNotifications": [
                    {
                        "level": "warning" if n.blocks else "note",
                        "message": {"text": safe(f"{n.rule} was not checked: {n.why}")},
                        "associatedRule": {"id": n.rule, "index": index[n.rule]},
                    }
                    for n in report.not_checked
                ],
            }
        ],
        "results": [_result(f, index[f.rule], report) | _state(f, known) for f in report.findings],
        "properties": {"verdict": report.verdict, "judged": list(report.judged), "checked": list(report.checked)},
    }
    return as_json({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}) + "\n"


def _rule(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    why = " ".join(str(entry.get("why", "")).split())
    out: dict[str, Any] = {"id": name}
    if entry.get("title"):
        out["shortDescription"] = {"text": str(entry["title"])}
    if why:
        out["fullDescription"] = {"text": why}
        fix = entry.get("fix")
        fix = fix if isinstance(fix, str) and "{{" not in fix else ""
        help_ = f"{why}{f' Fix: {fix}' if fix else ''} `compatkit explain {name}` shows examples."
        out["help"] = {"text": help_, "markdown": help_}
    if entry.get("level"):
        out["defaultConfiguration"] = {"level": _LEVELS[str(entry["level"])]}
    return out


def _result(finding: Finding, index: int, report: Report) -> dict[str, Any]:
    sources = [report.components[i].source for i in finding.components if i < len(report.components)]
    where = place(finding, report)
    physical: list[dict[str, Any]] = [{"artifactLocation": {"uri": address(s)}} for s in dict.fromkeys(sources)]
    out: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": _LEVELS[finding.level],
        "message": {"text": safe(finding_text(finding), 8000)},
        "partialFingerprints": {"compatkit/v1": fingerprint(finding.rule, finding.level, sources, finding.evidence)},
        "properties": _inert({"predicts": finding.predicts, "fix": finding.fix, "evidence": plain(finding.evidence)}),
    }
    if where:
        line = {"artifactLocation": {"uri": address(where.file)}, "region": {"startLine": max(1, where.line)}}
        out["locations"] = [{"physicalLocation": line}]
    elif physical:
        out["locations"] = [{"physicalLocation": physical.pop()}]
    if physical:
        out["relatedLocations"] = [{"id": i, "physicalLocation": p} for i, p in enumerate(physical, 1)]
    return out


def _state(finding: Finding, known: Callable[[Finding], bool] | None) -> dict[str, str]:
    return {} if known is None else {"baselineState": "unchanged" if known(finding) else "new"}


def _inert(value: Any) -> Any:
    """Names from files, wherever they stand, cannot turn text around in a viewer."""
    if isinstance(value, Mapping):
        return {safe(k): _inert(v) for k, v in value.items()}
    return [_inert(v) for v in value] if isinstance(value, list) else safe(value) if isinstance(value, str) else value


def address(source: str) -> str:
    """A source as a URI reference: relative below the workspace or the working folder, secrets of an address cut."""
    if _SCHEME.match(source):
        parts = urlsplit(source)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, quote(parts.path, safe="/%:@", errors="replace"), "", ""))
    path = below_workspace(source)
    if path.startswith(os.sep) or Path(path).is_absolute():
        here = os.getcwd().rstrip(os.sep) + os.sep  # noqa: PTH109 (texts)
        if not path.startswith(here):
            return Path(path).as_uri() if path.isprintable() else "file://" + quote(path, errors="replace")
        path = path[len(here) :]
    return quote(path.replace(os.sep, "/"), errors="replace")
