"""JSON Schema of `explain`, `report`, `report --diff`, `convert` and `cache info`."""

from __future__ import annotations

from typing import Any

_STRINGS = {"type": "array", "items": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_VERDICT = {"enum": ["pass", "fail", "unknown"]}
_HEAD = {"tool": {"const": "compatkit"}, "version": {"type": "string"}}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


_CAUSE = _closed(
    {
        "rule": {"type": "string", "description": "a rule id, also of a check that does not exist yet"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "matched": {"type": "string", "description": "the line"},
        "captured": {"type": "object"},
        "message": {"type": "string"},
        "fix": {"type": "string"},
        "lines": _COUNT | {"description": "how many lines say it"},
        "confirmed": {"type": "boolean", "description": "a finding about the files at hand explains it"},
    }
)
_SUMMARY = _closed(
    {
        "what": {"type": "string"},
        "predicts": _TEXTS,
        "observed": {"type": ["string", "null"]},
        "fixes": _STRINGS,
        "todo": _STRINGS | {"description": "the fixes, or what to do where there are none"},
        "not_checked": _COUNT,
    }
)
_HEADER = _closed(
    {"source": {"type": "string"}, "sha256": {"type": ["string", "null"], "pattern": "^[0-9a-f]{64}$"}},
)

_LEVEL = {"enum": ["error", "warning", "info"]}
_TEXT = {"type": "string"}
_LISTED = {"type": "array", "items": _closed({"id": _TEXT, "level": _LEVEL, "title": _TEXT})}
_KNOWN = _closed(
    {
        "entry": _TEXT | {"description": "the entry of rules/errors"},
        "title": _TEXT,
        "patterns": _STRINGS | {"description": "regular expressions of the messages"},
        "message": _TEXT,
        "fix": _TEXT,
        "score": {"type": "number", "minimum": 0, "maximum": 1},
    }
)
_EXAMPLE = {
    "type": "object",
    "description": "what the rule says of a set that fails; empty where its texts are the readers'",
    "properties": {"message": _TEXT, "predicts": _TEXTS, "fix": _TEXT},
    "additionalProperties": False,
}
_NAMED = {
    "rule": _closed(
        {
            "id": _TEXT,
            "level": _LEVEL,
            "title": _TEXT,
            "why": _TEXT,
            "binds": _TEXT,
            "when": _TEXT | {"description": "CEL; empty: always"},
            "require": _TEXT,
            "example": _EXAMPLE,
            "written_in": _TEXT,
            "references": {"type": "array", "items": {"type": "object"}},
        }
    ),
    "family": _closed(
        {
            "id": _TEXT,
            "title": _TEXT,
            "role": _TEXT,
            "card": {"type": "object", "description": "what its file says of it, as docs/grammar.md spells it"},
            "where": {"type": "object", "description": "the sizes that tell it from others"},
            "layouts": _STRINGS,
            "written_in": _TEXT,
        }
    ),
    "cause": _closed({"id": _TEXT, "not_checked": _TEXT, "known": {"type": "array", "items": _KNOWN}}),
    "group": _closed({"id": _TEXT, "rules": _LISTED, "causes": _STRINGS}),
}
_DESCRIBED = {
    "type": "object",
    "description": "`explain` of a name: one of rule, family, cause (of error texts; no check finds it) and group",
    "properties": {**_HEAD, **_NAMED},
    "required": ["tool", "version"],
    "minProperties": 3,
    "maxProperties": 3,
    "additionalProperties": False,
}


def definitions() -> dict[str, Any]:
    """`$defs` for the whole schema; those of `check` are referred to."""
    causes = {"type": "array", "items": {"$ref": "#/$defs/cause"}, "description": "best first"}
    findings = {"type": "array", "items": {"$ref": "#/$defs/finding"}}
    log = _TEXTS | {"description": "what the log says of the run: versions, card, dtypes, what was loaded"}
    report = {
        **_HEAD,
        "verdict": _VERDICT,
        "headline": {"type": "string"},
        "summary": _SUMMARY,
        "headers": {"type": "array", "items": _HEADER},
        "check": {"$ref": "#/$defs/check"},
        "smoke": {"oneOf": [{"type": "null"}, _closed({"verdict": {"type": "string"}, "pictures": _STRINGS})]},
        "log": log,
        "causes": {"oneOf": [{"type": "null", "description": "no log was given"}, causes]},
        "environment": _TEXTS,
        "reproduce": {"type": "string"},
    }
    difference = {
        **_HEAD,
        "verdict": _closed({"old": _VERDICT, "new": _VERDICT}),
        "worse": {"type": "boolean", "description": "a new error, or a worse verdict: the exit code is 1"},
        "new": findings,
        "gone": findings,
        "same": _COUNT,
        "files": _STRINGS,
        "coverage": _STRINGS,
    }
    converted = {
        **_HEAD,
        **{key: {"type": "string"} for key in ("output", "source", "to", "style", "base")},
        **dict.fromkeys(("keys_before", "keys_after", "modules", "joined", "divided", "wider", "verified"), _COUNT),
        "notes": _STRINGS,
        "read": {
            "type": "object",
            "description": "runtime -> the keys it reads of the output, and all of them",
            "additionalProperties": {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2},
        },
    }
    return {
        "cause": _CAUSE,
        "explain": _closed({**_HEAD, "causes": causes, "log": log}),
        "described": _DESCRIBED,
        "report": _closed(report),
        "diff": _closed(difference),
        "convert": _closed(converted),
        "refused": _closed({**_HEAD, "refused": {"type": "string", "description": "why it is not converted"}}),
        "cache": _closed({"path": {"type": "string"}, "files": _COUNT, "bytes": _COUNT, "disk": _COUNT}),
    }
