"""JSON Schema (2020-12) of `stack.toml`, for editors and other tools (`compatkit schema stack`)."""

from __future__ import annotations

from typing import Any

from compatkit.stacks.files import ROLES
from compatkit.stacks.stackfile import FILE_ROLES

_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_FILE = {
    "source": _TEXT | {"description": "a path (relative to this file), https://…, hf://org/repo[@rev]/path"},
    "assume": _TEXT | {"description": "take it for that family, whatever it looks like"},
    "sha256": {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
    "license": _TEXT | {"description": "the licence of these weights: policy.licenses is compared with it"},
    "to": _TEXT | {"description": "file name to place it under"},
}
_STRENGTH = {"type": "number"}


def _object(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    out: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return out | {"required": list(required)} if required else out


def schema() -> dict[str, Any]:
    """The schema of a stack file."""
    file = {"oneOf": [_TEXT, _object(_FILE, ("source",))]}
    files = {"oneOf": [*file["oneOf"], {"type": "array", "items": file}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "compatkit stack file",
        **_object(
            {
                "name": {"type": "string"},
                "runtime": _TEXTS | {"description": "NAME or NAME@VERSION; of several the set must hold in each"},
                "host": {"type": "string", "description": "the machine it is meant for, such as RTX 5090"},
                "files": _object(dict.fromkeys(FILE_ROLES, files)),
                "lora": {
                    "type": "array",
                    "items": {
                        "oneOf": [
                            _TEXT,
                            _object(_FILE | {"strength": _STRENGTH, "strength_clip": _STRENGTH}, ("source",)),
                        ]
                    },
                },
                "settings": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
                "policy": _object(
                    {
                        "fail_on": {"enum": ["error", "warning"]},
                        "strict": {"type": "boolean"},
                        "quantization": {"oneOf": [*_TEXTS["oneOf"], _object(dict.fromkeys(ROLES, _TEXTS))]},
                        "size": {"oneOf": [{"type": "integer"}, _TEXT]},
                        "licenses": _TEXTS,
                        "rules": _TEXTS | {"description": "folders of further rules"},
                    }
                ),
            },
        ),
    }
