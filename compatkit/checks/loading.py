"""Subjects of the loader checks: what a runtime makes of each component as it stands in its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compatkit.checks.loaders import Loader, accepted, accepts, at_least
from compatkit.checks.parts import Part, file_name, human
from compatkit.checks.subject import Builder, Subject
from compatkit.headers import ggml
from compatkit.identify import metadata
from compatkit.knowledge.protocol import Rules

_LOADED = ("diffusion", "text_encoder", "vae", "llm")
_PLAIN = frozenset({"", "none"})
_WORST = ("no", "later", "unknown", "yes")


def build(builder: Builder) -> None:
    """Add the subjects of kind `loading`."""
    base = any(p.role == "diffusion" for p in builder.parts)
    # a language model by itself is nobody's encoder yet
    loaded = [p for p in builder.parts if _judged(p, builder.rules) and (base or p.role != "llm")]
    if not loaded:
        builder.absent(("loading",), "no model that a loader would open was identified")
        return
    if not builder.loaders:
        builder.absent(("loading",), "no runtime is known for this set")
        return
    for part in loaded:
        for loader in builder.loaders:
            opens = opening(part, loader, builder.rules)
            if _apart(part, loader, loaded):
                opens |= {"apart": True, "error": str((loader.table.get("errors") or {}).get("whole") or "")}
            values = {"component": part.fields, "loader": loader.fields(), "opens": opens}
            builder.add(Subject("loading", (part.index,), values, loader))
            for why in _unknown(part, loader, opens):
                builder.stuck("loading", why, blocks=True)
            if opens.get("layout") == "unknown" and loader.table.get("layouts"):
                layout, name = part.fields["layout"], part.fields["name"]
                why = f"whether {loader.label} reads the {layout} layout of {name} is not known"
                builder.stuck("loading", why, blocks=loader.name in loader.named)  # else the user may mean another one


def _judged(part: Part, rules: Rules) -> bool:
    """Whether a loader's view of it can be told: it is identified, or its weights are packed in a way that is known."""
    if part.role in _LOADED and (part.component.family or part.role == "llm"):
        return True
    return bool(part.fields["readable"]) and any(_packing(rules, s) for s in _schemes(part))


def _unknown(part: Part, loader: Loader, opens: Mapping[str, Any]) -> list[str]:
    """What could not be told about a loader the user asked for."""
    if "layout" not in opens:
        return []
    name = part.fields["name"]
    out = []
    if opens["supported"] == "unknown":
        others = [n for n, entry in (part.card.get("runtimes") or {}).items() if entry and n != loader.name]
        runs = f" (known to run it: {', '.join(others)})" if others else ""
        out.append(f"whether {loader.label} runs {part.fields['title']} is not known{runs}")
    if opens["architecture"] == "unknown":
        version = loader.for_format("gguf")[1]
        at = f" at {version}" if version else ""
        out.append(f"which GGUF architectures {loader.label} accepts{at} is not known, so neither is {name}")
    if opens["scheme"] == "unknown":
        out.append(f"whether {loader.label} reads {opens['scheme_title']} of {name} is not known")
    if opens["family"] == "unknown":
        since = opens["family_since"]
        out.append(f"{loader.label} cannot be put in order with {since}, since when {part.fields['title']} runs")
    return out


def opening(part: Part, loader: Loader, rules: Rules) -> dict[str, Any]:
    """Whether and how a runtime opens one component (`subjects.LOADING`)."""
    fields = part.fields
    if not part.component.family and part.role != "llm":
        return _scheme(part, loader, rules)
    table, version = loader.for_format(fields["format"])
    entry = _entry(part, loader, table)
    since = entry.get("since")
    out: dict[str, Any] = {
        "supported": _supported(part, loader),
        "format": _format(part, loader, table, entry),
        "layout": _layout(part, loader, entry),
        "family": at_least(loader.version, str(since) if since else None, loader.table),
        "family_since": since,
        "becomes": entry.get("class") or entry.get("te_model") or entry.get("vae_class"),
        "misread": _misread(part, loader, table),
        "helper": _helper(part, loader, table),
        "options": str(entry.get("with") or ""),
        **_prefix(part, table, entry),
        **_architecture(part, table, version),
        **_scheme(part, loader, rules),
        **_types(part, table),
        **_tokenizer(part, table),
        "metadata_missing": _metadata_missing(part, entry) if table is loader.table else "",
    }
    out["error"] = _error(part, table, loader.table, out) or str(entry.get("refused") or "")
    return out


def _apart(part: Part, loader: Loader, loaded: Sequence[Part]) -> bool:
    """Whether the runtime finds this model only together with its text encoders, and they lie in files of their own."""
    entry = (part.card.get("runtimes") or {}).get(loader.name)
    if not isinstance(entry, Mapping) or not entry.get("whole") or part.bundled:
        return False
    if part.component.declared.get("part"):  # of a pipeline's folder, which is opened as a whole
        return False
    encoders = [p for p in loaded if p.role in ("text_encoder", "llm")]
    return bool(encoders) and not any(p.bundled for p in encoders)


def _entry(part: Part, loader: Loader, table: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the family's card says of this runtime; a helper's own entry on top."""
    runtimes = part.card.get("runtimes") or {}
    main = runtimes.get(loader.name)
    helper = runtimes.get(str(table.get("id"))) if table is not loader.table else None
    return {**(main if isinstance(main, Mapping) else {}), **(helper if isinstance(helper, Mapping) else {})}


def _helper(part: Part, loader: Loader, table: Mapping[str, Any]) -> str:
    """The package of custom nodes that opens the file for the runtime, where the user named the runtime alone."""
    named = loader.name in loader.named and str(table.get("id")) not in loader.named
    return str(table.get("title")) if table is not loader.table and named else ""


def _misread(part: Part, loader: Loader, table: Mapping[str, Any]) -> str:
    """The class of another model that the runtime takes these tensors for, as observed; "" where it does not."""
    observed = (part.card.get("misread") or {}).get(loader.name) or {}
    if part.fields["layout"] in observed:
        return str(observed[part.fields["layout"]])
    entry = (part.card.get("runtimes") or {}).get(loader.name)
    if isinstance(entry, Mapping) and entry.get("misread"):
        return str(entry["misread"])
    runtimes = part.card.get("runtimes") or {}
    main, helper = runtimes.get(loader.name), runtimes.get(str(table.get("id")))
    if table is loader.table or not isinstance(main, Mapping) or not isinstance(helper, Mapping):
        return ""
    return next((str(helper[k]) for k in ("class", "te_model") if k in helper and helper[k] != main.get(k)), "")


def _format(part: Part, loader: Loader, table: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    if entry.get("formats"):
        return "yes" if part.fields["format"] in entry["formats"] else "no"
    formats = {**(loader.table.get("formats") or {})}
    if table is not loader.table:
        formats = {r: [*formats.get(r, ()), *f] for r, f in (table.get("formats") or {}).items()} | {
            r: f for r, f in formats.items() if r not in (table.get("formats") or {})
        }
    role = "text_encoder" if part.role == "llm" else part.role
    if role not in formats:
        return "unknown" if not formats else "no"
    return "yes" if part.fields["format"] in formats[role] else "no"


def _layout(part: Part, loader: Loader, entry: Mapping[str, Any]) -> str:
    layout, role = part.fields["layout"], part.role
    if layout == "gguf" or role == "llm":
        return "yes"
    whole = loader.table.get("single_file_classes") or loader.table.get("models")
    if part.bundled and role != "diffusion" and whole:
        return "yes"  # a checkpoint is converted whole, or refused for its diffusion model
    if isinstance(entry.get("layouts"), Sequence):
        return "yes" if layout in entry["layouts"] else "no"
    known = (loader.table.get("layouts") or {}).get(role)
    if not isinstance(known, Mapping):
        return "unknown"
    classes = loader.table.get("single_file_classes")
    if layout == "native" and classes and layout not in known:
        return "yes" if entry.get("class") in classes else "unknown"
    families = known.get(layout)
    if families is None:
        return "unknown"
    if isinstance(families, str):
        return "yes" if families == "all" else "no"
    if isinstance(families, Mapping):
        return "yes" if any(f in families["known"] for f in part.component.families) else "unknown"
    return "yes" if any(f in families for f in part.component.families) else "no"


def _supported(part: Part, loader: Loader) -> str:
    """Whether the family's card names the runtime: null there means that it has no such model."""
    runtimes = part.card.get("runtimes") or {}
    helper = str(loader.for_format(part.fields["format"])[0].get("id"))
    if any(name in runtimes and runtimes[name] is None for name in (loader.name, helper)):
        return "no"
    entry = runtimes.get(loader.name)
    if isinstance(entry, Mapping) and entry.get("refused"):
        return "no"
    if loader.name in runtimes:
        return "yes"
    return "unknown" if part.role == "diffusion" and loader.table else "yes"


def _prefix(part: Part, table: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    role = "text_encoder" if part.role == "llm" else part.role
    prefix = part.fields["prefix"]
    if part.bundled:
        known = (table.get("checkpoint_prefixes") or {}).get(role)
        fits = known is None or any(prefix == p or (p.endswith("*") and prefix.startswith(p[:-1])) for p in known)
    else:
        known = entry.get("prefixes") or (table.get("prefixes") or {}).get(role)
        fits = known is None or prefix in known
    shown = [f"'{p}'" if p else "none" for p in known or ()]
    return {"prefix": "yes" if fits else "no", "prefixes": shown}


def _architecture(part: Part, table: Mapping[str, Any], version: str | None) -> dict[str, Any]:
    if part.fields["format"] != "gguf":
        return {"architecture": "none"}
    role = "text_encoder" if part.role == "llm" else part.role
    if role not in (table.get("formats") or {role: ()}):
        return {"architecture": "none"}  # it opens no such file at all
    name = part.fields["architecture"]
    compatible = table.get("compatible") or {}
    if name is None or name in (compatible.get("names") or ()):
        begun = str(compatible.get("since") or "") if name is not None else ""
        if role in (compatible.get("roles") or ()) and at_least(version, begun, table) == "no":
            then = accepted(table, version, role)
            return {"architecture": "no", "accepted": then, "architecture_since": _dated(table, begun)}
        if role in (compatible.get("roles") or ()):
            return {"architecture": "yes"}
        return {"architecture": "missing"} if compatible else {"architecture": "unknown"}
    if not any(role in entry for entry in table.get("history") or ()):
        return {"architecture": "yes"}
    state, first = accepts(table, version, role, name)
    return {
        "architecture": state,
        "accepted": accepted(table, version, role),
        "architecture_since": _dated(table, first),
    }


def _dated(table: Mapping[str, Any], version: str | None) -> str | None:
    for entry in table.get("history") or ():
        if str(entry["version"]) == version:
            return f"{version} ({entry['date']})" if entry.get("date") else version
    return version


def _schemes(part: Part) -> list[str]:
    """The packings of a part's weights: one, or what a mix is made of."""
    scheme = part.fields["scheme"]
    return list(part.component.quantization.formats) if scheme == "mixed" else [] if scheme in _PLAIN else [scheme]


def _scheme(part: Part, loader: Loader, rules: Rules) -> dict[str, Any]:
    """Whether a loader reads the quantisation: of a mix, what it makes of the packing it can do least with."""
    kinds = [_one_scheme(scheme, part, loader, rules) for scheme in _schemes(part)]
    if not kinds:
        return {"scheme": "yes"}
    worst = min(kinds, key=lambda k: _WORST.index(k["scheme"]))
    if worst["scheme"] == "later":  # a mix is read since the last of its packings is
        for kind in kinds:
            if at_least(worst["scheme_since"], kind["scheme_since"], loader.table) == "no":
                worst = kind
    if len(kinds) > 1:
        worst = {**worst, "scheme_title": "a mix of " + " and ".join(k["scheme_title"] for k in kinds)}
    size = human(part.component.parameters * 2) if part.component.parameters else ""
    return {**worst, "scheme_formats": _schemes(part), "full_size": size}


def _one_scheme(scheme: str, part: Part, loader: Loader, rules: Rules) -> dict[str, Any]:
    packing = _packing(rules, scheme)
    table, version = loader.for_format(part.fields["format"])
    readers = packing.get("loaders") or {}
    own = readers.get(loader.name, readers.get(str(table.get("id"))))
    effect = str(packing.get("effect") or "")
    known = {
        "scheme_title": str(packing.get("title") or scheme),
        "scheme_effect": effect,
        "scheme_error": str((packing.get("predicts") or {}).get(loader.name) or ""),
        "scheme_loaders": [_reader(rules, name, entry) for name, entry in readers.items() if _known(entry)],
        "scheme_fix": str(packing.get("fix") or ""),
        "scheme_since": None,
    }
    if not packing:
        # GGUF types are judged one by one.
        return {**known, "scheme": "yes" if part.fields["format"] == "gguf" else "unknown"}
    if own is None:
        return {**known, "scheme": "no" if readers or effect else "unknown"}
    if not _known(own):
        return {**known, "scheme": "unknown"}
    since = own.get("since") if isinstance(own, Mapping) else None
    state = at_least(version if table is not loader.table else loader.version, str(since) if since else None, table)
    return {**known, "scheme": "later" if state == "no" else state, "scheme_since": str(since) if since else None}


def _known(entry: Any) -> bool:
    """Whether the rules say that the loader reads it; `known: false` says that nobody knows."""
    return not isinstance(entry, Mapping) or entry.get("known", True) is not False


def _packing(rules: Rules, scheme: str) -> Mapping[str, Any]:
    try:
        return rules.packing(scheme) or {}
    except KeyError:
        return {}


def _reader(rules: Rules, name: str, entry: Any) -> str:
    try:
        title = str(rules.runtime(name).get("title") or name)
    except KeyError:
        title = name
    entry = entry if isinstance(entry, Mapping) else {}
    since = f"since {entry['since']}" if entry.get("since") else ""
    remarks = ", ".join(str(x) for x in (since, entry.get("note")) if x)
    return f"{title} ({remarks})" if remarks else title


def _types(part: Part, table: Mapping[str, Any]) -> dict[str, Any]:
    types = table.get("quantization_types") or {}
    have = part.fields["dtypes"]
    failing = [t for t in types.get("fail") or () if t in have]
    numbers = {name: code for code, (name, _, _) in ggml.TYPES.items()}
    return {
        "slow_types": [t for t in types.get("slow") or () if t in have],
        "failing_types": failing,
        "failing_numbers": [numbers[t] for t in failing if t in numbers],
    }


def _tokenizer(part: Part, table: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the tokenizer that this loader wants inside the file is there. What a GGUF holds is not judged here."""
    wanted = (part.card.get("tokenizer") or {}).get("needs")
    if not wanted or part.bundled or not (table.get("errors") or {}).get("tokenizer"):
        return {}
    there = part.fact(str(wanted))
    state = {True: "yes", False: "no"}.get(there, "unknown") if isinstance(there, bool) else "unknown"
    return {"tokenizer": state, "tokenizer_tensor": str(wanted)}


def _metadata_missing(part: Part, entry: Mapping[str, Any]) -> str:
    """The metadata key that the runtime builds the model by and that is not in the file."""
    wanted = [str(key) for key in entry.get("metadata") or ()]
    gone = next((key for key in wanted if metadata.value(part.component, key) is None), "")
    return gone.partition(":")[0]


def _error(part: Part, table: Mapping[str, Any], main: Mapping[str, Any], out: Mapping[str, Any]) -> str:
    """The text the loader prints when it refuses, from its table."""
    role = "text_encoder" if part.role == "llm" else part.role
    kind = ""
    if out["architecture"] in ("no", "later"):
        kind = "architecture"
    elif out["architecture"] == "missing":
        kind = "architecture_missing"
    elif out["failing_types"]:
        kind = "type"
    elif out.get("tokenizer") == "no":
        kind, role = "tokenizer", str(out["tokenizer_tensor"])
    elif out["layout"] == "no":
        kind = "layout"
    elif out["prefix"] == "no":
        kind = "prefix"
    for source in (table, main):
        texts = (source.get("errors") or {}).get(kind) or {}
        text = texts.get(role) if isinstance(texts, Mapping) else texts
        if text:
            values = {
                "architecture": str(part.fields["architecture"]),
                "type": str(out["failing_types"][0]) if out["failing_types"] else "",
                "file": file_name(part.component.source),
            }
            for name, value in values.items():
                text = str(text).replace("{" + name + "}", value)
            return str(text)
    return ""
