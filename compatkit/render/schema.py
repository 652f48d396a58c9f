"""JSON Schema (2020-12) of what the commands print with `--format json`."""

from __future__ import annotations

from typing import Any

_STRINGS = {"type": "array", "items": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0}
_NAMES = {
    "type": "object",
    "description": "tensor names: the exact count, and the first few",
    "properties": {"count": _COUNT, "names": _STRINGS},
    "required": ["count", "names"],
}
_NOT_CHECKED = {
    "type": "object",
    "properties": {"rule": {"type": "string"}, "why": {"type": "string"}},
    "required": ["rule", "why"],
}
_CANDIDATE = {
    "type": "object",
    "description": "the next best reading of the header and what did not fit",
    "properties": {
        "family": {"type": "string"},
        "layout": {"type": "string"},
        "matched": _COUNT,
        "missing": _NAMES,
        "mismatched": _NAMES,
        "foreign": _NAMES,
        "reason": {"type": "string"},
    },
    "required": ["family", "layout", "matched"],
}
_COMPONENT = {
    "type": "object",
    "properties": {
        "source": {"type": "string"},
        "format": {"type": "string"},
        "size": _COUNT | {"description": "bytes, over all shards"},
        "header_bytes": _COUNT | {"description": "bytes before the data, over all shards"},
        "role": {"type": "string"},
        "family": {"type": ["string", "null"], "description": "the oldest of header-identical families; null: unknown"},
        "also": _STRINGS | {"description": "the other families with the same header"},
        "title": {"type": "string"},
        "layout": {"type": "string"},
        "prefix": {"type": "string"},
        "quantization": {
            "type": "object",
            "properties": {
                "scheme": {"type": "string"},
                "dtypes": {"type": "object", "additionalProperties": _COUNT},
                "bits": {"type": ["number", "null"], "description": "effective bits per parameter, scales counted"},
                "formats": {
                    "type": "object",
                    "description": "packed weights by packing; several of them where the scheme is mixed",
                    "additionalProperties": _COUNT,
                },
                "notes": _STRINGS,
            },
            "required": ["scheme", "dtypes"],
        },
        "parameters": _COUNT,
        "key_groups": {"type": "object", "additionalProperties": _COUNT},
        "loads_as": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "facts": {"type": "object"},
        "evidence": _STRINGS,
        "missing": _NAMES,
        "mismatched": _NAMES,
        "foreign": _NAMES,
        "not_checked": {
            "type": "array",
            "description": "checks that cannot be made of it because a part of it was not read",
            "items": _NOT_CHECKED,
        },
        "values_read": {
            "type": "array",
            "description": "small tensors that were read, because a few bytes tell what the header cannot",
            "items": {
                "type": "object",
                "properties": {"tensor": {"type": "string"}, "bytes": _COUNT, "says": {"type": "string"}},
                "required": ["tensor", "bytes"],
            },
        },
        "runner_up": _CANDIDATE,
        "reason": {"type": "string"},
        "assumed": {"type": "boolean"},
    },
    "required": [
        "source", "format", "size", "header_bytes", "role", "family", "also", "layout", "prefix", "quantization",
        "parameters", "key_groups", "loads_as", "facts", "evidence",
    ],
}  # fmt: skip
_FINDING = {
    "type": "object",
    "properties": {
        "rule": {"type": "string", "pattern": "^[a-z0-9_]+/[a-z0-9_-]+$"},
        "level": {"enum": ["error", "warning", "info"]},
        "components": {"type": "array", "items": _COUNT},
        "message": {"type": "string"},
        "predicts": {"type": "object", "additionalProperties": {"type": "string"}},
        "fix": {"type": "string"},
        "evidence": {"type": "object"},
    },
    "required": ["rule", "level", "components", "message", "predicts", "fix", "evidence"],
}
_ADAPTER = {
    "type": "object",
    "properties": {
        "component": _COUNT,
        "base": _COUNT,
        "runtime": {"type": "string"},
        "algorithm": {"type": "string"},
        "ranks": {"type": "array", "items": _COUNT},
        "keys": _COUNT,
        "keys_matched": _COUNT,
        "modules": _COUNT,
        "modules_matched": _COUNT,
        "modules_shape_mismatch": _COUNT,
        "verdict": {"enum": ["full", "partial", "shape_mismatch", "none"]},
        "blocks": {
            "type": "array",
            "description": "the base's blocks in its order: matrices, those that are changed, those that do not fit",
            "items": {
                "type": "object",
                "properties": {
                    "run": {"type": "string"},
                    "index": {"type": ["integer", "null"]},
                    "weights": _COUNT,
                    "changed": _COUNT,
                    "failed": _COUNT,
                },
                "required": ["run", "index", "weights", "changed", "failed"],
            },
        },
    },
}
_MEASURED = {
    "type": "object",
    "description": "one tensor; a number that is 0 or not known is left out",
    "properties": {
        "dtype": {"type": "string"},
        "kind": {"enum": ["float", "blocks", "scale", "integer", "none"]},
        "nan": _COUNT | {"description": "NaN values, of quantised blocks their scales"},
        "inf": _COUNT | {"description": "infinite values, of quantised blocks their scales"},
        "max_abs": {"type": "number", "description": "largest finite magnitude; of blocks: in dequantised samples"},
        "rms": {"type": "number", "description": "root mean square of a sample"},
        "zeros": {"type": "number", "description": "share of zeros in a sample"},
        "denormals": {"type": "number", "description": "share of denormals among the values of a sample but zeros"},
        "beyond": _COUNT | {"description": "values beyond 65504"},
        "lowest": {"type": "number", "description": "the least value of a small tensor"},
        "constant": {"type": "boolean"},
        "value": {"type": "number", "description": "the value of a constant tensor"},
        "blocks": _COUNT,
        "zero_blocks": _COUNT,
        "sampled": _COUNT | {"description": "values in the sample"},
        "owner": {"type": "string", "description": "the packed weight that this tensor holds scales of"},
    },
    "required": ["dtype"],
}
_SCAN = {
    "type": "object",
    "properties": {
        "files": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "source": {"type": "string"},
                    "tensors": _COUNT,
                    "bytes": _COUNT,
                    "not_read": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"tensor": {"type": "string"}, "why": {"type": "string"}},
                            "required": ["tensor", "why"],
                        },
                    },
                    "measured": {"type": "object", "additionalProperties": _MEASURED},
                },
                "required": ["source", "tensors", "bytes", "not_read", "measured"],
            },
        },
        "bytes": _COUNT,
        "seconds": {"type": "number"},
        "peak_memory": _COUNT | {"description": "bytes of its own that the process held; 0: not known"},
        "complete": {"type": "boolean", "description": "whether it came to its end"},
    },
    "required": ["files", "bytes", "seconds", "complete"],
}

_PLACE = {
    "type": ["object", "null"],
    "properties": {
        "module": {"type": "string"},
        "op": {"type": "string", "description": "torch's operation"},
        "max_abs": {"type": "number", "description": "largest finite magnitude of its results"},
        "count": _COUNT | {"description": "values that are not finite"},
    },
}
_FORWARD = {
    "type": "object",
    "properties": {
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "description": "one call of a component, or what came of a latent, picture, round trip or bisection",
                "properties": {
                    "event": {"enum": ["run", "latent", "picture", "round-trip", "bisect"]},
                    "component": {"type": "integer", "minimum": -1},
                    "call": {"type": "string"},
                    "step": _COUNT,
                    "given": {"type": "string", "description": "what it was run with, in words"},
                    "dtype": {"type": "string"},
                    "seconds": {"type": "number"},
                    "vram": _COUNT | {"description": "bytes torch took of the GPU; 0 on a CPU"},
                    "operations": _COUNT,
                    "largest": _PLACE,
                    "broken": _PLACE | {"description": "the first operation that gave a NaN or Inf"},
                    "runaway": _PLACE,
                    "above": {"type": "array", "items": _PLACE, "description": "the first that are beyond fp16"},
                    "above_count": _COUNT,
                    "near": {"type": "array", "items": _PLACE},
                },
                "required": ["event", "component"],
            },
        },
        "seconds": {"type": "number"},
        "peak_memory": _COUNT | {"description": "bytes of its own that the process held; 0: not known"},
        "complete": {"type": "boolean"},
        "saved": _STRINGS | {"description": "files written: pictures, plots, the latent's statistics"},
        "torch": {"type": "string"},
        "device": {"type": "string"},
        "dtype": {"type": "string"},
    },
    "required": ["runs", "seconds", "complete", "saved"],
}


_SERVER = {
    "type": "object",
    "description": "what became of the set on a running ComfyUI server",
    "properties": {
        "address": {"type": "string"},
        "version": {"type": "string"},
        "state": {
            "enum": [
                "done", "error", "rejected", "interrupted", "timeout", "lost", "unreachable", "foreign", "missing",
                "incomplete",
            ]
        },
        "message": {"type": "string"},
        "error": {"type": "string"},
        "node": {"type": "string", "description": "its id in the graph"},
        "node_class": {"type": "string"},
        "cause": {"type": "string", "description": "the rule that explains the error"},
        "seconds": {"type": "number"},
        "dropped": {"type": "boolean", "description": "whether the websocket ended early"},
        "pictures": _COUNT,
        "picture": {"type": "object", "description": "statistics of the first picture, its verdict and its file"},
        "graph": {"type": "object", "description": "the graph as it was submitted"},
    },
    "required": ["address", "state", "message", "seconds", "pictures", "graph"],
    "additionalProperties": False,
}  # fmt: skip


_KINDS = ("check", "inspect", "explain", "described", "report", "diff", "cache", "convert", "refused")


def schema() -> dict[str, Any]:
    """The schema; `$defs` holds one for each command that prints JSON, and the whole accepts any of them."""
    from compatkit.render.reportschema import definitions

    head = {"tool": {"const": "compatkit"}, "version": {"type": "string"}}
    components = {"type": "array", "items": {"$ref": "#/$defs/component"}}
    findings = {"type": "array", "items": {"$ref": "#/$defs/finding"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "compatkit reports",
        "oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in _KINDS],
        "$defs": {
            **definitions(),
            "component": _COMPONENT,
            "finding": _FINDING,
            "adapter": _ADAPTER,
            "inspect": {
                "type": "object",
                "properties": head | {"components": components, "findings": findings},
                "required": ["tool", "version", "components"],
                "additionalProperties": False,
            },
            "check": {
                "type": "object",
                "properties": head
                | {
                    "verdict": {"enum": ["pass", "fail", "unknown"]},
                    "judged": _STRINGS,
                    "components": components,
                    "findings": findings,
                    "adapters": {"type": "array", "items": {"$ref": "#/$defs/adapter"}},
                    "checked": _STRINGS,
                    "not_checked": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"rule": {"type": "string"}, "why": {"type": "string"}},
                            "required": ["rule", "why"],
                        },
                    },
                    "cost": {
                        "type": "object",
                        "properties": {"requests": _COUNT, "bytes": _COUNT, "seconds": {"type": "number"}},
                        "required": ["requests", "bytes", "seconds"],
                    },
                    "smoke": {
                        "type": "object",
                        "description": "numbers of `compatkit smoke`, by stage",
                        "properties": {"scan": _SCAN, "forward": _FORWARD, "comfyui": _SERVER},
                    },
                },
                "required": [
                    "tool", "version", "verdict", "judged", "components", "findings", "adapters", "checked",
                    "not_checked", "cost",
                ],
                "additionalProperties": False,
            },
        },
    }  # fmt: skip
