"""The schema of `rules/checks/*.yaml`; a bad entry is refused with file, line and column.

    checks:
      - id: encoder/width
        level: error
        title: …
        binds: encoder                    # a kind of `subjects.SUBJECTS`
        when: slot.width != null          # CEL; where it is false the rule does not apply
        require: encoder.output_width == slot.width
        message: "… {{ encoder.output_width }} …"
        predicts: {torch: …}              # by runtime, or by engine (torch, ggml)
        fix: …
        evidence: {context_dim: slot.width}
        why: …                            # for `explain`
        references: [{what: …, ref: …}]
        examples: {fail: [{encoder: {…}, mention: ["2304"]}], pass: […]}

`milder: {when: CEL, level: …}` gives a lower level where its condition holds. `replaces: CEL` (or true): where it
holds, the fix puts another file in the place of the last one that the finding is about; what else is wrong with the
file that goes is told with no fix of its own.
`message`, `fix` and each of `predicts` is a text, or a list of `{when: CEL, text: …}` of which the first that holds is
used. The variables and fields that expressions see stand in `subjects.SUBJECTS`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from compatkit.knowledge import cel
from compatkit.knowledge.subjects import SUBJECTS, blank, unknown_field
from compatkit.knowledge.yamlfile import RuleFile, nearest
from compatkit.vocabulary import LEVELS

_KEYS = (
    "id", "level", "milder", "title", "binds", "when", "require", "message", "predicts", "fix", "replaces", "evidence",
    "why", "references", "examples",
)  # fmt: skip
#: A `file` rule documents findings whose texts the readers write.
_NEEDED = {"file": ("id", "level", "title", "binds", "why")}
_NEEDED_ELSE = ("id", "level", "title", "binds", "require", "message", "why", "examples")
_ID = re.compile(r"[a-z][a-z0-9-]*/[a-z][a-z0-9-]*\Z")

Where = tuple[Hashable, ...]


def parse(file: RuleFile) -> list[dict[str, Any]]:
    """The entries of one file as plain values, in order.

    Raises:
        RuleFileError: at the position of what is wrong.
    """
    if not isinstance(file.data, Mapping):
        raise file.error((), "a file of checks is a mapping with the key 'checks'")
    for key in file.data:
        if key != "checks":
            raise file.error((key,), f"unknown key {key!r}{nearest(str(key), ['checks'])}")
    entries = file.data.get("checks")
    if not isinstance(entries, list):
        raise file.error(("checks",), "'checks' is a list of rules")
    seen: set[str] = set()
    out = []
    for i, entry in enumerate(entries):
        out.append(_entry(file, ("checks", i), entry))
        if entry["id"] in seen:
            raise file.error(("checks", i, "id"), f"rule {entry['id']!r} stands here twice")
        seen.add(entry["id"])
    return out


def _entry(file: RuleFile, where: Where, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise file.error(where, "a rule is a mapping with the keys id, level, binds, require, …")
    for key in entry:
        if key not in _KEYS:
            raise file.error((*where, key), f"unknown key {key!r}{nearest(str(key), _KEYS)}")
    binds = _text(file, where, entry, "binds") if "binds" in entry else ""
    for key in _NEEDED.get(binds, _NEEDED_ELSE):
        if entry.get(key) in (None, ""):
            raise file.error(where, f"rule {entry.get('id', '')!r} has no {key!r}")
    if binds not in SUBJECTS:
        raise file.error((*where, "binds"), f"nothing can be bound as {binds!r}{nearest(binds, SUBJECTS)}")
    if not _ID.match(_text(file, where, entry, "id")):
        raise file.error((*where, "id"), f"an id is written group/name in small letters, not {entry['id']!r}")
    if entry["level"] not in LEVELS:
        raise file.error((*where, "level"), f"level {entry['level']!r} is not one of {', '.join(LEVELS)}")
    if "milder" in entry:
        milder = entry["milder"]
        if not isinstance(milder, Mapping) or set(milder) != {"when", "level"} or milder["level"] not in LEVELS:
            raise file.error((*where, "milder"), "'milder' is {when: CEL, level: …}: where the level is a lower one")
    for key in ("title", "why"):
        _text(file, where, entry, key)
    for path, expression, offset in _expressions(file, where, entry):
        _compile(file, path, binds, expression, offset)
    _references(file, where, entry)
    _examples(file, where, entry, binds)
    return {"source_file": file.told, **_plain(entry)}


def _text(file: RuleFile, where: Where, entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise file.error((*where, key), f"{key!r} is a text")
    return value


def _expressions(file: RuleFile, where: Where, entry: Mapping[str, Any]) -> Iterator[tuple[Where, str, bool]]:
    """Every expression of a rule: where it stands, its text, and whether it must be a condition."""
    for key in ("when", "require", "replaces"):
        if key in entry:
            if not isinstance(entry[key], (str, bool)):
                raise file.error((*where, key), f"{key!r} is a CEL expression in one text")
            yield (*where, key), _expression(entry[key]), True
    if "milder" in entry:
        yield (*where, "milder", "when"), _expression(entry["milder"]["when"]), True
    for key in ("message", "fix"):
        if key in entry:
            yield from _texts(file, (*where, key), entry[key])
    for key in ("predicts", "evidence"):
        value = entry.get(key, {})
        if not isinstance(value, Mapping):
            raise file.error((*where, key), f"{key!r} is a mapping")
        for name, item in value.items():
            if key == "predicts":
                yield from _texts(file, (*where, key, name), item)
            else:
                yield (*where, key, name), _expression(item), False


def _texts(file: RuleFile, where: Where, value: Any) -> Iterator[tuple[Where, str, bool]]:
    if isinstance(value, str):
        for expression, _ in cel.places(value):
            yield where, expression.strip(), False
        return
    if not isinstance(value, list) or not value:
        raise file.error(where, "a text, or a list of {when: …, text: …}")
    for i, case in enumerate(value):
        if not isinstance(case, Mapping) or not isinstance(case.get("text"), str) or set(case) - {"when", "text"}:
            raise file.error((*where, i), "a case has the keys 'when' (left out in the last) and 'text'")
        if "when" in case:
            yield (*where, i, "when"), _expression(case["when"]), True
        yield from _texts(file, (*where, i, "text"), case["text"])


def _expression(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _compile(file: RuleFile, where: Where, kind: str, expression: str, condition: bool) -> None:
    wrong = unknown_field(kind, expression)
    if wrong:
        variable, name, _, fields = wrong
        raise file.error(where, f"{variable} has no field {name!r}{nearest(name, fields)}")
    try:
        type_name = cel.check(expression, SUBJECTS[kind])
    except cel.CelError as e:
        hint = ""
        word = re.search(r"undeclared reference to '(\w+)", e.message)
        if word:
            hint = nearest(word[1], SUBJECTS[kind]) or f"; this rule sees {', '.join(SUBJECTS[kind])}"
        raise file.error(
            where, f"{e.message}{hint} (line {e.line}, column {e.column} of: {expression.strip()})"
        ) from None
    if condition and type_name not in ("BOOL", "DYN"):
        raise file.error(where, f"a condition is true or false; this is {type_name}: {expression.strip()}")


def _references(file: RuleFile, where: Where, entry: Mapping[str, Any]) -> None:
    for i, reference in enumerate(entry.get("references") or []):
        if not isinstance(reference, Mapping) or set(reference) - {"what", "ref"} or "what" not in reference:
            raise file.error((*where, "references", i), "a reference has the keys 'what' and 'ref'")


def _examples(file: RuleFile, where: Where, entry: Mapping[str, Any], kind: str) -> None:
    examples = entry.get("examples") or {}
    if not isinstance(examples, Mapping) or set(examples) - {"fail", "pass"}:
        raise file.error((*where, "examples"), "'examples' has the keys 'fail' and 'pass'")
    for outcome in ("fail", "pass"):
        rows = examples.get(outcome) or []
        if not isinstance(rows, list) or (kind != "file" and not rows):
            raise file.error((*where, "examples"), f"at least one example that must {outcome}")
        for i, example in enumerate(rows):
            at = (*where, "examples", outcome, i)
            if not isinstance(example, Mapping):
                raise file.error(at, "an example is a mapping of the rule's variables")
            for name in example:
                if name not in SUBJECTS[kind] and name != "mention":
                    raise file.error((*at, name), f"unknown variable {name!r}{nearest(str(name), SUBJECTS[kind])}")
                if name != "mention" and not isinstance(example[name], Mapping):
                    raise file.error((*at, name), f"{name!r} is a mapping of its fields")
            try:
                blank(kind, {k: v for k, v in example.items() if k != "mention"})
            except KeyError as e:
                variable, _, name = str(e.args[0]).partition(".")
                raise file.error(
                    (*at, variable, name), f"{variable} has no field {name!r}{nearest(name, SUBJECTS[kind][variable])}"
                ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.strip() if isinstance(value, str) else value
