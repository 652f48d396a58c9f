"""The set as a drawing: who feeds whom, with the widths on the arrows, and where it breaks. Boxes and lines only: the
template draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from compatkit.render.style import basename
from compatkit.vocabulary import Component, Finding, Report

WIDTH, HEIGHT, GAP, ACROSS = 230, 74, 22, 250
#: More boxes in one column are not drawn, but counted.
MOST = 8
_COLUMNS = {"text_encoder": 0, "clip_vision": 0, "llm": 0, "mmproj": 0, "diffusion": 1, "vae": 2, "upscaler": 2}
#: What is put onto a model, or steers it: drawn below the encoders.
_ADAPTERS = {
    *("lora", "controlnet", "ip_adapter", "face_adapter", "style_model", "embedding", "motion_module", "t2i_adapter"),
    *("model_patch", "gligen", "hypernetwork"),
}


class Box(NamedTuple):
    """One component: place, texts, and whether a finding says that it does not work."""

    x: int
    y: int
    number: int
    role: str
    title: str
    name: str
    broken: bool


class Arrow(NamedTuple):
    """One junction: from, to, what flows, whether it breaks, and at which end there is room for the labels."""

    x1: int
    y1: int
    x2: int
    y2: int
    labels: tuple[str, ...]
    broken: bool
    near: str


class Diagram(NamedTuple):
    """The whole drawing. `left_out` counts components without a box."""

    width: int
    height: int
    boxes: list[Box]
    arrows: list[Arrow]
    left_out: int
    text: str


def diagram(report: Report, titles: Mapping[str, str], say: Callable[[str], str]) -> Diagram | None:
    """The drawing of a set; None where there is nothing to draw a line between."""
    columns: list[list[int]] = [[], [], []]
    rest: list[int] = []
    put_on: list[int] = []
    for i, c in enumerate(report.components):
        column = _COLUMNS.get(c.role)
        (put_on if c.role in _ADAPTERS else rest if column is None else columns[column]).append(i)
    columns[0] += put_on
    if not columns[1] or len(report.components) < 2:
        return None
    drawn = [c[:MOST] for c in columns]
    drawn[1] += rest[: MOST - len(drawn[1])]
    tall = max(map(len, drawn)) * (HEIGHT + GAP) - GAP
    boxes: dict[int, Box] = {}
    for x, column_ in enumerate(drawn):
        top = (tall - (len(column_) * (HEIGHT + GAP) - GAP)) // 2
        for y, i in enumerate(column_):
            boxes[i] = _box(report, i, x * (WIDTH + ACROSS), top + y * (HEIGHT + GAP), titles, say)
    arrows = []
    for d in columns[1]:
        if d in boxes:
            feeding = [e for e in drawn[0] if e not in put_on and not _idle(report, e)]
            alone = len(feeding) == 1
            arrows += [_arrow(report, boxes, e, d, _text(report, e, d, alone, say)) for e in feeding]
            arrows += [
                _arrow(report, boxes, a, d, _coverage(report, a, d, say))
                for a in drawn[0]
                if a in put_on and _belongs(report, a, d)
            ]
            arrows += [
                _arrow(report, boxes, d, v, _latent(report, d, v, say))
                for v in drawn[2]
                if report.components[v].role == "vae"
            ]
    words = "; ".join(
        f"{boxes_.title} {'✗' if arrow.broken else '→'} {', '.join(arrow.labels)}"
        for arrow in arrows
        for boxes_ in boxes.values()
        if boxes_.x + WIDTH == arrow.x1 and boxes_.y + HEIGHT // 2 == arrow.y1
    )
    left = len(report.components) - len(boxes)
    return Diagram(3 * WIDTH + 2 * ACROSS, tall, list(boxes.values()), arrows, left, words)


def _box(report: Report, i: int, x: int, y: int, titles: Mapping[str, str], say: Callable[[str], str]) -> Box:
    c = report.components[i]
    broken = any(f.level == "error" and f.components == (i,) for f in report.findings)
    title = titles.get(c.family, c.family) if c.family else c.title or say("not recognised")
    return Box(x, y, i + 1, say(c.role.replace("_", " ")), _ended(title, 28), _cut(basename(c.source), 32), broken)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 10] + "…" + text[-9:]


def _ended(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip(" (") + "…"


def _arrow(report: Report, boxes: Mapping[int, Box], a: int, b: int, labels: tuple[str, ...]) -> Arrow:
    broken = _breaks(report, a, b)
    one, two = boxes[a], boxes[b]
    near = "start" if one.x == 0 else "end"
    return Arrow(one.x + WIDTH, one.y + HEIGHT // 2, two.x, two.y + HEIGHT // 2, labels, broken, near)


def _between(report: Report, a: int, b: int, *names: str) -> Finding | None:
    for f in report.findings:
        if {a, b} <= set(f.components) and all(n in f.evidence for n in names):
            return f
    return None


def _idle(report: Report, encoder: int) -> bool:
    """Whether an encoder feeds nothing: it is one too many."""
    return any(f.rule == "encoder/surplus" and encoder in f.components for f in report.findings)


def _belongs(report: Report, adapter: int, model: int) -> bool:
    """Of several models in a set an adapter is drawn onto those that it was measured against."""
    bases = {a["base"] for a in report.adapters if a["component"] == adapter}
    return not bases or model in bases


def _coverage(report: Report, adapter: int, model: int, say: Callable[[str], str]) -> tuple[str, ...]:
    """How much of an adapter the runtime takes."""
    for entry in report.adapters:
        if (entry["component"], entry["base"]) == (adapter, model):
            lost = entry.get("modules_shape_mismatch")
            counts = f"{entry['keys_matched']}/{entry['keys']} {say('keys')}"
            return (counts, f"{lost} {say('do not fit')}") if lost else (counts,)
    found = _between(report, adapter, model, "adapter_width", "base_width")
    if found:
        return (f"{say('made for')} {found.evidence['adapter_width']}", f"{say('base')} {found.evidence['base_width']}")
    return (say("does not fit"),) if _breaks(report, adapter, model) else ()


def _breaks(report: Report, a: int, b: int) -> bool:
    return any(f.level == "error" and {a, b} <= set(f.components) for f in report.findings)


def _text(report: Report, encoder: int, model: int, alone: bool, say: Callable[[str], str]) -> tuple[str, ...]:
    """Widths of text features: given, and taken where they differ; of several encoders only what is certain."""
    found = _between(report, encoder, model, "context_dim", "output_width")
    if found:
        gives, takes = found.evidence["output_width"], found.evidence["context_dim"]
        return (f"{say('gives')} {gives}", f"{say('takes')} {takes}") if gives != takes else (str(gives),)
    takes = report.components[model].facts.get("context_dim")
    if not isinstance(takes, int):
        return ()
    facts = report.components[encoder].facts
    if takes in (facts.get("width"), facts.get("hidden_size")):
        return (str(takes),)
    return (f"{say('takes')} {takes}",) if alone else ()


def _latent(report: Report, model: int, vae: int, say: Callable[[str], str]) -> tuple[str, ...]:
    one, two = _space(report.components[model]), _space(report.components[vae])
    if any(f.level == "error" and {model, vae} <= set(f.components) for f in report.findings):
        return tuple(x for x in (one and f"{say('makes')} {one}", two and f"{say('takes')} {two}") if x)
    return (one,) if one else ()


def _space(c: Component) -> str:
    facts: Mapping[str, Any] = c.facts
    spaces = facts.get("latent_space") or ()
    names = "/".join(map(str, spaces)) if isinstance(spaces, (list, tuple)) else str(spaces)
    channels, ndim = facts.get("latent_channels"), facts.get("latent_ndim")
    sizes = f"{channels}ch {ndim}D" if channels and ndim else ""
    return _cut(" ".join(x for x in (names, sizes) if x), 26)
