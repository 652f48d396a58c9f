"""Two JSON reports side by side: what is new, what is gone, what else changed. And a report as a baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from compatkit import __version__
from compatkit.render.document import finding_document
from compatkit.render.places import fingerprint
from compatkit.render.style import basename
from compatkit.vocabulary import Finding, Report, SourceError

#: A report is a few hundred kilobytes; more is some other file.
_MAX = 64 << 20
_WORSE = {"pass": 0, "unknown": 1, "fail": 2}


def read(path: Path) -> dict[str, Any]:
    """The JSON of `check` or of `report` (then the check inside). Raises SourceError for any other file."""
    try:
        if path.stat().st_size > _MAX:
            raise SourceError(f"{path.name} is too large for a report")
        document = json.loads(path.read_bytes())
    except OSError as e:
        raise SourceError(f"{path.name}: {e.strerror or e}") from None
    except (ValueError, RecursionError):
        raise SourceError(f"{path.name} is no JSON: give what `compatkit check -o FILE.json` wrote") from None
    if isinstance(document, dict) and isinstance(document.get("check"), dict):
        document = document["check"]
    if not isinstance(document, dict) or not _sound(document):
        raise SourceError(f"{path.name} is no report: give what `compatkit check -o FILE.json` wrote")
    return document


def _sound(document: Mapping[str, Any]) -> bool:
    if document.get("tool") != "compatkit" or document.get("verdict") not in _WORSE:
        return False
    shapes = {"components": ("source", str), "findings": ("rule", str), "not_checked": ("rule", str)}
    for name, (key, kind) in shapes.items():
        rows = document.get(name)
        if not isinstance(rows, list) or not all(isinstance(r, dict) and isinstance(r.get(key), kind) for r in rows):
            return False
    return all(
        isinstance(f.get("level"), str)
        and isinstance(f.get("evidence"), dict)
        and isinstance(f.get("components"), list)
        and all(isinstance(i, int) for i in f["components"])
        for f in document["findings"]
    )


def keyed(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Fingerprint -> finding."""
    sources = [c["source"] for c in document["components"]]
    return {
        fingerprint(
            f["rule"], f["level"], (sources[i] for i in f["components"] if 0 <= i < len(sources)), f["evidence"]
        ): f
        for f in document["findings"]
    }


class Difference(Struct, frozen=True):
    """What changed from one report to another."""

    verdicts: tuple[str, str]
    new: Sequence[Mapping[str, Any]]
    gone: Sequence[Mapping[str, Any]]
    same: int
    files: Sequence[str]
    coverage: Sequence[str]

    @property
    def worse(self) -> bool:
        """A new error, or a verdict that is worse."""
        return any(f["level"] == "error" for f in self.new) or _WORSE[self.verdicts[1]] > _WORSE[self.verdicts[0]]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Difference:
    """From `old` to `new`, both as `read` gives them."""
    before, after = keyed(old), keyed(new)
    unasked = [{n["rule"] for n in d["not_checked"]} for d in (old, new)]
    coverage = [f"{r}: no longer checked" for r in sorted(unasked[1] - unasked[0])]
    coverage += [f"{r}: no longer left out" for r in sorted(unasked[0] - unasked[1])]
    return Difference(
        (old["verdict"], new["verdict"]),
        [f for k, f in after.items() if k not in before],
        [f for k, f in before.items() if k not in after],
        len(before.keys() & after.keys()),
        _files(old["components"], new["components"]),
        coverage,
    )


_FACTS = ("role", "family", "layout", "size", "parameters")


def _files(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[str]:
    """What happened to each file, by base name and place among those of that name."""
    before, after = _named(old), _named(new)
    out: list[str] = []
    for key in dict.fromkeys([*before, *after]):
        one, two = before.get(key), after.get(key)
        if one is None or two is None:
            c = two or one or {}
            out.append(f"{key[0]}: {'is new' if one is None else 'is gone'} ({c.get('role')}, {c.get('family')})")
            continue
        changes = [f"{f} {one.get(f)} → {two.get(f)}" for f in _FACTS if one.get(f) != two.get(f)]
        schemes = [(c.get("quantization") or {}).get("scheme") for c in (one, two)]
        if schemes[0] != schemes[1]:
            changes.append(f"stored as {schemes[0]} → {schemes[1]}")
        if changes:
            out.append(f"{key[0]}: {', '.join(changes)}")
    return out


def _named(components: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], Mapping[str, Any]]:
    out: dict[tuple[str, int], Mapping[str, Any]] = {}
    for c in components:
        name, n = basename(c["source"]), 0
        while (name, n) in out:
            n += 1
        out[name, n] = c
    return out


def difference_document(d: Difference) -> dict[str, Any]:
    """The JSON of `report --diff`."""
    return {
        "tool": "compatkit",
        "version": __version__,
        "worse": d.worse,
        "verdict": {"old": d.verdicts[0], "new": d.verdicts[1]},
        "new": list(d.new),
        "gone": list(d.gone),
        "same": d.same,
        "files": list(d.files),
        "coverage": list(d.coverage),
    }


def difference_markdown(d: Difference, language: str = "en", overrides: Sequence[Path] = ()) -> str:
    """The same for people."""
    from compatkit.render.templating import rendered

    return rendered("diff.md.j2", False, language, overrides, d=d)


class Baseline:
    """A report whose findings are known: only what is new fails."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._known = set(keyed(document))
        self._open = {(n["rule"], n.get("why")) for n in document["not_checked"]}

    def knows(self, finding: Finding, report: Report) -> bool:
        """Whether a finding stands in the baseline."""
        f = finding_document(finding)
        sources = [report.components[i].source for i in finding.components if i < len(report.components)]
        return fingerprint(f["rule"], f["level"], sources, f["evidence"]) in self._known

    def exit_code(self, report: Report, fail_on: str = "error", strict: bool = False) -> int:
        """As that of `check`, for what is new: 1 a finding, 3 (1 with `strict`) something that became unknown."""
        levels = {"error"} if fail_on == "error" else {"error", "warning"}
        new = [f for f in report.findings if not self.knows(f, report)]
        if any(f.level in levels for f in new):
            return 1
        opened = any(n.blocks and (n.rule, n.why) not in self._open for n in report.not_checked)
        return (1 if strict else 3) if opened or any(f.rule == "component/unknown" for f in new) else 0
