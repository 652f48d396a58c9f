"""The part of SARIF 2.1.0 that compatkit writes, as a JSON Schema of our own (the standard's sections 3.13 to 3.58).

Objects are closed, so that a property in the wrong place is found too.
"""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string", "minLength": 1}
_LEVEL = {"enum": ["none", "note", "warning", "error"]}
_BAG = {"type": "object"}


def _closed(needed: tuple[str, ...] = (), /, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(needed), "additionalProperties": False}


_MESSAGE = _closed(("text",), text=_TEXT, markdown=_TEXT)
_URI = {"type": "string", "pattern": r"^(?:[A-Za-z][A-Za-z0-9+.-]*:)?[A-Za-z0-9._~:/?#@!$&'()*+,;=%-]*$"}
_PHYSICAL = _closed(
    ("artifactLocation",),
    artifactLocation=_closed(("uri",), uri=_URI, uriBaseId=_TEXT),
    region=_closed(("startLine",), startLine={"type": "integer", "minimum": 1}),
)
_LOCATION = _closed((), id={"type": "integer", "minimum": -1}, physicalLocation=_PHYSICAL, message=_MESSAGE)
_RULE = _closed(
    ("id",), id=_TEXT, name=_TEXT, shortDescription=_MESSAGE, fullDescription=_MESSAGE, help=_MESSAGE,
    helpUri=_URI, defaultConfiguration=_closed((), level=_LEVEL, enabled={"type": "boolean"}), properties=_BAG,
)  # fmt: skip
_NOTIFICATION = _closed(
    ("message",),
    message=_MESSAGE,
    level=_LEVEL,
    associatedRule=_closed((), id=_TEXT, index={"type": "integer", "minimum": -1}),
)
_RESULT = _closed(
    ("message",), ruleId=_TEXT, ruleIndex={"type": "integer", "minimum": -1}, level=_LEVEL, message=_MESSAGE,
    locations={"type": "array", "items": _LOCATION},
    relatedLocations={"type": "array", "items": _LOCATION, "uniqueItems": True},
    partialFingerprints={"type": "object", "additionalProperties": {"type": "string"}}, properties=_BAG,
    baselineState={"enum": ["new", "unchanged", "updated", "absent"]},
)  # fmt: skip
_DRIVER = _closed(
    ("name",), name=_TEXT, version=_TEXT, semanticVersion=_TEXT, informationUri=_URI,
    rules={"type": "array", "items": _RULE, "uniqueItems": True},
)  # fmt: skip
_RUN = _closed(
    ("tool",), tool=_closed(("driver",), driver=_DRIVER), results={"type": "array", "items": _RESULT},
    invocations={"type": "array", "items": _closed(
        ("executionSuccessful",), executionSuccessful={"type": "boolean"},
        toolExecutionNotifications={"type": "array", "items": _NOTIFICATION},
    )},
    columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]}, properties=_BAG,
)  # fmt: skip
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **_closed(
        ("version", "runs"),
        version={"const": "2.1.0"},
        runs={"type": "array", "items": _RUN, "minItems": 1},
        **{"$schema": {"type": "string"}},
    ),
}
