"""What a smoke test left in a folder: its report, pictures and plots, for the page.

The folder holds `report.json` (what `compatkit smoke --format json` prints) and pictures: `*.png`, `*.svg`. They are
taken into the page as data; their number and size are bounded, and what is no picture is left out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from compatkit.render.style import line
from compatkit.vocabulary import LEVELS, Finding, Report, SourceError

_MOST, _LARGEST, _REPORT = 24, 4 << 20, 64 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
#: The largest number that half precision holds.
FP16 = 65504.0
#: Places of a plot of magnitudes; the largest are kept.
_PLACES = 60


class Picture(NamedTuple):
    """A picture as a `data:` address, with what it is called."""

    title: str
    address: str


class Plot(NamedTuple):
    """Magnitudes by place: (name, largest magnitude, share of the logarithmic scale in percent)."""

    title: str
    bars: list[tuple[str, float, float]]
    limit: float


class Smoke(NamedTuple):
    """What a smoke test said, and its pictures. `findings` name components of the set at hand."""

    verdict: str
    findings: tuple[Finding, ...]
    pictures: list[Picture]
    plots: list[Plot]
    left_out: int


def read(folder: Path, sources: list[str]) -> Smoke:
    """The folder of a smoke test of the set with these base names.

    Raises:
        SourceError: there is no report in it, or it is none.
    """
    path = folder / "report.json"
    try:
        if path.stat().st_size > _REPORT:
            raise SourceError("report.json is too large for a report")
        document = json.loads(path.read_bytes())
    except OSError as e:
        raise SourceError(
            f"--smoke: {path.name} in that folder cannot be read ({e.strerror or e}); make it with `compatkit smoke"
            " … --save DIR -o DIR/report.json`"
        ) from None
    except (ValueError, RecursionError):
        raise SourceError("--smoke: report.json is no JSON") from None
    if not isinstance(document, dict) or document.get("tool") != "compatkit" or "verdict" not in document:
        raise SourceError("--smoke: report.json is no report of compatkit")
    pictures, left = _pictures(folder)
    return Smoke(str(document["verdict"])[:20], tuple(_findings(document, sources)), pictures, _plots(document), left)


def joined(report: Report, smoke: Smoke) -> Report:
    """The report of the headers with what the weights said; an error of theirs makes the set fail."""
    known = {(f.rule, f.components, f.message) for f in report.findings}
    new = tuple(f for f in smoke.findings if (f.rule, f.components, f.message) not in known)
    findings = tuple(sorted((*report.findings, *new), key=lambda f: LEVELS.index(f.level)))
    if report.verdict == "fail" or not any(f.level == "error" for f in new):
        return replace(report, findings=findings)
    headline = "fail" + report.headline.removeprefix(report.verdict)
    return replace(report, findings=findings, verdict="fail", headline=headline)


def redacted(smoke: Smoke, text: Callable[[str], str]) -> Smoke:
    """The same without what tells who and where; `text` takes it out of a sentence."""
    plots = [p._replace(bars=[(text(name), value, share) for name, value, share in p.bars]) for p in smoke.plots]
    pictures = [p._replace(title=text(p.title)) for p in smoke.pictures]
    return smoke._replace(plots=plots, pictures=pictures)


def _findings(document: Mapping[str, Any], sources: list[str]) -> Iterator[Finding]:
    """What only weights tell: what headers tell is judged anew."""
    own = [_base(str(c.get("source", ""))) for c in _rows(document.get("components"))]
    for row in _rows(document.get("findings")):
        rule, level = str(row.get("rule", "")), row.get("level")
        if level not in LEVELS or not rule.startswith(("smoke/", "dryrun/")):
            continue
        named = [own[i] for i in row.get("components") or [] if isinstance(i, int) and 0 <= i < len(own)]
        numbers = tuple(sources.index(n) for n in named if n in sources)
        predicts, evidence = row.get("predicts"), row.get("evidence")
        yield Finding(
            rule,
            level,
            numbers,
            str(row.get("message", "")),
            {str(k): str(v) for k, v in predicts.items()} if isinstance(predicts, dict) else {},
            str(row.get("fix", "")),
            evidence if isinstance(evidence, dict) else {},
        )


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [r for r in value if isinstance(r, dict)] if isinstance(value, list) else []


def _base(source: str) -> str:
    return source.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or source


def _pictures(folder: Path) -> tuple[list[Picture], int]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".svg") and p.is_file())
    out: list[Picture] = []
    for path in found[:_MOST]:
        try:
            if path.stat().st_size > _LARGEST:
                continue
            raw = path.read_bytes()
        except OSError:
            continue
        kind = "image/png" if raw.startswith(_PNG) else "image/svg+xml" if b"<svg" in raw[:2000] else ""
        if kind:
            title = line(path.stem.replace("-", " ").replace("_", " "), 80)
            out.append(Picture(title, f"data:{kind};base64,{base64.b64encode(raw).decode('ascii')}"))
    return out, len(found) - len(out)


def _plots(document: Mapping[str, Any]) -> list[Plot]:
    """Of each stage that measured magnitudes, the largest, on a logarithmic scale up to beyond half precision."""
    out: list[Plot] = []
    stages = document.get("smoke")
    for stage, numbers in stages.items() if isinstance(stages, dict) else ():
        for rows in _lists(numbers):
            found = [(name, value) for row in rows if (name := _name(row)) and (value := _magnitude(row)) > 0]
            if len(found) >= 2:
                kept = set(sorted(range(len(found)), key=lambda i: -found[i][1])[:_PLACES])
                scale = [(n, v) for i, (n, v) in enumerate(found) if i in kept]
                top = max(FP16 * 4, *(v for _, v in scale))
                out.append(
                    Plot(line(stage, 60), [(line(n, 80), v, _share(v, top)) for n, v in scale], _share(FP16, top))
                )
    return out[:8]


def _lists(value: Any, depth: int = 0) -> Iterator[list[Mapping[str, Any]]]:
    if isinstance(value, list):
        rows = _rows(value)
        if any(_name(r) and _magnitude(r) for r in rows):
            yield rows
            return
    if isinstance(value, dict) and any(isinstance(v, dict) and _magnitude(v) for v in value.values()):
        yield [{**v, "name": str(k)} for k, v in value.items() if isinstance(v, dict)]
        return
    if depth < 4 and isinstance(value, (dict, list)):
        for child in value.values() if isinstance(value, dict) else value[:40]:
            yield from _lists(child, depth + 1)


def _name(row: Mapping[str, Any]) -> str:
    return next((str(row[k]) for k in ("name", "module", "tensor", "label") if isinstance(row.get(k), str)), "")


def _magnitude(row: Mapping[str, Any]) -> float:
    value = row.get("max_abs")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        return 0.0  # no number, NaN, or none that can be drawn
    return abs(float(value))


def _share(value: float, top: float) -> float:
    from math import log10

    return max(0.5, min(100.0, 100 * (log10(max(value, 1e-3)) + 3) / (log10(top) + 3)))
