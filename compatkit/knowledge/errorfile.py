"""The schema of `rules/errors/*.yaml`, and the numbers their conditions may compare with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from compatkit.knowledge import cel
from compatkit.knowledge.yamlfile import RuleFile, nearest

#: `topic`: counts only where nothing else speaks. `exact`: only a finding of a cause's own rule explains the line, not
#: one of its group. `fact`: no cause, but something a log says of the run (`value` is captured); `many`: all of its
#: values are of interest, not only the last. `silent`: it happens without ending a run, so it counts after one that
#: ended. `chatter`: lines of a log that mean no trouble; `finished`: lines that say a run came to its end.
_KEYS = {"id", "title", "patterns", "causes", "topic", "exact", "silent", "fact", "many", "chatter", "finished"}
_KINDS = ("causes", "fact", "chatter", "finished")
_CAUSE = {"rule", "score", "when", "message", "fix"}
#: Encoders whose hidden layers are concatenated give multiples of their width.
_TAPS = (1, 3)
#: The pieces of a picture come with the class token, or without, or it is counted twice.
_CLASS_TOKEN = (-1, 0, 1)
#: Of the models that share a width so many are named.
_NAMED = 4


def parse_errors(file: RuleFile) -> list[dict[str, Any]]:
    """The entries in order. Raises RuleFileError at what is wrong: keys, a pattern, a condition."""
    if not isinstance(file.data, list):
        raise file.error((), "a list of error texts")
    for i, entry in enumerate(file.data):
        for key in entry:
            if key not in _KEYS:
                raise file.error((i, key), f"unknown key {key!r}{nearest(str(key), _KEYS)}")
        if sum(kind in entry for kind in _KINDS) != 1:
            raise file.error((i,), "an entry has one of causes, fact, chatter and finished")
        for j, pattern in enumerate(entry.get("patterns") or []):
            try:
                groups = re.compile(pattern).groupindex
            except re.error as e:
                raise file.error((i, "patterns", j), f"not a regular expression: {e}") from None
            if "fact" in entry and "value" not in groups:
                raise file.error((i, "patterns", j), "the pattern of a fact captures (?P<value>...)")
        for j, cause in enumerate(entry.get("causes") or []):
            where = (i, "causes", j)
            for key in cause:
                if key not in _CAUSE:
                    raise file.error((*where, key), f"unknown key {key!r}{nearest(str(key), _CAUSE)}")
            if not {"rule", "score", "message"} <= set(cause):
                raise file.error(where, "a cause has a rule, a score and a message")
            if "when" in cause:
                try:
                    cel.check(str(cause["when"]), ("c", "known"))
                except cel.CelError as e:
                    raise file.error((*where, "when"), e.message) from None
    return list(file.data)


def known_numbers(documents: Mapping[str, Any]) -> dict[str, list[int]]:
    """Widths and channels of every known model: what its encoder gives, its model takes, its latent has."""
    out: dict[str, set[int]] = {
        "encoder": set(),
        "image": set(),
        "image_tokens": set(),
        "text": set(),
        "pooled": set(),
        "latent": set(),
        "patch": set(),
    }
    for name, document in documents.items():
        if not name.startswith("families/"):
            continue
        card, example = document["card"], document["example"].get("symbols") or {}
        role = card["role"]
        width = _number(document, "width", example)
        if role == "text_encoder" and width:
            out["encoder"] |= {width * taps for taps in _TAPS}
        elif role == "clip_vision" and width:
            out["image"].add(width)
            pieces = _number(document, "positions", example)
            out["image_tokens"] |= {pieces + token for token in _CLASS_TOKEN} if pieces else set()
        elif role == "diffusion":
            for encoder in card.get("text_encoders") or []:
                into = str(encoder.get("into") or "")
                value = _number(document, into, example)
                if value:
                    out["pooled" if into not in ("context_dim", "context") else "text"].add(value)
                    out["text"].add(value)
            value = _number(document, "patch_channels", example)
            if value:
                out["patch"].add(value)
        if role in ("diffusion", "vae"):
            channels = (card.get("latent") or {}).get("channels")
            if isinstance(channels, int):
                out["latent"].add(channels)
    return {k: sorted(v) for k, v in out.items()}


def known_names(documents: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Width -> the encoders that give it (`gives`), the models that take it (`takes`, by width x hidden too)."""
    cards = [d["card"] for name, d in documents.items() if name.startswith("families/")]
    titles = {c["id"]: re.sub(r" \(.*?\)", "", str(c.get("title") or c["id"])) for c in cards}
    gives: dict[str, dict[str, str]] = {}
    takes: dict[str, dict[str, str]] = {}
    for name, document in documents.items():
        if not name.startswith("families/"):
            continue
        card, example = document["card"], document["example"].get("symbols") or {}
        released = str(card.get("released") or "9999")
        width = _number(document, "width", example)
        if card["role"] == "text_encoder" and width:
            gives.setdefault(str(width), {})[titles[card["id"]]] = released
        encoders = card.get("text_encoders") or [] if card["role"] == "diffusion" else []
        for encoder in encoders:
            value, taps = _number(document, str(encoder.get("into") or ""), example), encoder.get("taps", 1)
            if not value:
                continue
            hidden = _number(document, "hidden_size", example) or _number(document, "hidden", example)
            for key in (str(value), f"{value}x{hidden}"):
                takes.setdefault(key, {})[titles[card["id"]]] = released
            if isinstance(taps, int) and taps > 1:
                joined = f"{titles.get(str(encoder['kind']), encoder['kind'])} with {taps} layers"
                gives.setdefault(str(value), {}).setdefault(joined, released)
            if encoder.get("join") == "concat" and encoder.get("into") == "context_dim":
                side = [titles.get(str(e["kind"]), "") for e in encoders if e.get("into") == "context_dim"]
                gives.setdefault(str(value), {})[" beside ".join(side)] = ""
    return {"gives": _few(gives), "takes": _few(takes)}


def _few(names: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    out = {}
    for width, titles in names.items():
        ordered = sorted(titles, key=lambda t: (titles[t], t))
        out[width] = ", ".join(ordered[:_NAMED]) + (" or another" if len(ordered) > _NAMED else "")
    return dict(sorted(out.items()))


def _number(document: Mapping[str, Any], fact: str, example: Mapping[str, Any]) -> int | None:
    symbol = document["facts"].get(fact, fact)
    value = example.get(symbol) if isinstance(symbol, str) else symbol
    return value if isinstance(value, int) else None
