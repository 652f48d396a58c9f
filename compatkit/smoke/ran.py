"""The stage after the scan: a worker runs the set, and rules judge what each run, latent and picture came to."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from compatkit.checks.parts import Part, parts
from compatkit.checks.subject import Subject
from compatkit.knowledge.store import Knowledge
from compatkit.smoke import supervise
from compatkit.smoke.facts import number
from compatkit.smoke.judge import Judge
from compatkit.smoke.record import FP16_MAX, FP16_NEAR
from compatkit.smoke.session import Limits, _texts, merged
from compatkit.sources.open import is_remote, shown_name
from compatkit.stacks import wholes
from compatkit.vocabulary import Component, NotChecked, Report, Stack

#: Roles whose models are run, or change one that is.
ROLES = ("text_encoder", "llm", "diffusion", "vae", "lora")
#: What rules of these kinds look at comes from a run.
KINDS = ("forward", "latent", "picture", "roundtrip", "guilt")
#: How `--set dtype=` may be written -> torch's name.
DTYPES = {
    "bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16", "float16": "float16", "half": "float16",
    "fp32": "float32", "float32": "float32",
}  # fmt: skip
_FORWARD = "smoke/forward"


class Run(Struct, frozen=True):
    """How to run: `steps` of the model, a device as torch names it, bytes of GPU memory, a folder for pictures."""

    steps: int = 2
    device: str = "cpu"
    vram: int | None = None
    save: str = ""
    bisect: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


def ran(
    report: Report,
    sources: Sequence[str],
    knowledge: Knowledge,
    limits: Limits,
    how: Run,
    *,
    rules: Iterable[Path] = (),
    offline: bool = False,
) -> Report:
    """The report, with what running the set found. What could not be run is `not_checked` and leaves no pass."""
    texts = _texts(report.components, sources)
    members, missing = _members(report, texts)
    if not any(m["role"] != "lora" for m in members):
        why = "the set has no text encoder, diffusion model or VAE whose family is known"
        return merged(report, (), (), [*missing, NotChecked(_FORWARD, f"nothing was run: {why}", blocks=True)])
    events: list[Mapping[str, Any]] = []
    job = {
        "do": "forward", "members": members, "rules": [str(r) for r in rules], "offline": offline,
        "dtype": DTYPES.get(str(how.settings.get("dtype") or "").lower()), "device": how.device, "vram": how.vram,
        "steps": how.steps, "save": how.save, "bisect": how.bisect,
        "settings": {**how.settings, **_strengths(report, sources)},
    }  # fmt: skip
    # a driver maps far more than it uses: the bound of the system would stop it, the watch over it does not
    memory = None if how.device != "cpu" else limits.memory
    outcome = supervise.run(job, events.append, timeout=limits.seconds, memory=memory)
    judge = _judged(report, events, knowledge, how)
    missing += _skipped(report, events)
    if outcome.why:
        missing.append(NotChecked(_FORWARD, f"the run stopped: {outcome.why}", blocks=True))
    saved = _plots(report, events, how.save)
    numbers = {"runs": _numbers(events), "seconds": round(outcome.seconds, 3), "peak_memory": outcome.peak,
               "complete": not outcome.why, "saved": saved, **_begin(events)}  # fmt: skip
    report = merged(report, judge.findings, judge.checked, [*judge.not_checked.values(), *missing])
    return replace(report, smoke={**report.smoke, "forward": numbers})


def _strengths(report: Report, sources: Sequence[str]) -> dict[str, str]:
    """How strongly each LoRA is applied, where a stack file says so: by its index, as settings of the worker."""
    stack = wholes.named(list(sources)).stack
    told = {shown_name(e.source): e.strength for e in (stack.entries if stack else ()) if e.strength is not None}
    return {f"strength:{i}": str(told[c.source]) for i, c in enumerate(report.components) if c.source in told}


def _members(report: Report, texts: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[NotChecked]]:
    """What the worker is told of each component it may run, and why others are left out."""
    out: list[dict[str, Any]] = []
    missing: list[NotChecked] = []
    for index, component in enumerate(report.components):
        if component.role not in ROLES or component.source not in texts:
            continue
        text = texts[component.source]
        if is_remote(text):
            missing.append(
                NotChecked(_FORWARD, f"{component.source} is not on this machine: it was not run", blocks=True)
            )
            continue
        if component.family is None and component.role != "lora":
            continue  # that it is unknown was said
        out.append({
            "index": index, "source": text, "role": component.role, "family": component.family,
            "prefix": component.prefix, "assume": component.family if component.assumed else None,
        })  # fmt: skip
    return out, missing


def _judged(report: Report, events: Sequence[Mapping[str, Any]], knowledge: Knowledge, how: Run) -> Judge:
    every = parts(Stack(report.components), knowledge)
    judge = Judge(knowledge, KINDS)
    for index, calls in _by_component(events).items():
        card = knowledge.family(str(report.components[index].family)) if report.components[index].family else {}
        values = _worst(calls, _fp16(report.components[index], card, how))
        judge.one(Subject("forward", (index,), {"component": every[index].fields, "run": values}))
    for event in events:
        kind, index = event.get("event"), int(event.get("component", -1))
        if index < 0:
            continue
        fields = every[index].fields
        if kind in ("latent", "picture") and _too_early(report, events, event, knowledge, how):
            continue
        if kind == "latent":
            judge.one(Subject("latent", _makers(every, index), {"latent": event["fields"]}))
        elif kind == "picture" and event.get("given") == "the latent of the model":
            judge.one(Subject("picture", _makers(every, index), {"picture": event["fields"]}))
        elif kind == "round-trip":
            judge.one(Subject("roundtrip", (index,), {"component": fields, "trip": event["fields"]}))
        elif kind == "bisect":
            guilt = {n: event[n] for n in ("swap", "why", "broken")}
            guilt["swap"] = str(guilt["swap"]).partition(":")[0]
            guilt["where"] = every[int(event["where"])].fields["name"]
            guilt["tried"] = [f"{t['swap']}: {t['broken'] or 'runs'}" for t in event["tried"]]
            judge.one(Subject("guilt", (index,), {"component": fields, "guilt": guilt}))
    return judge


#: Verdicts that hold however few steps were made, and whatever the embeddings were.
_CERTAIN = ("ok", "nan", "black", "constant", "statistics")


def _too_early(
    report: Report, events: Sequence[Mapping[str, Any]], event: Mapping[str, Any], knowledge: Knowledge, how: Run
) -> bool:
    """Whether a verdict says nothing of the set: noise is what a model gives of noise, or after too few steps."""
    if event["fields"]["verdict"] in _CERTAIN:
        return False
    index = next((i for i, c in enumerate(report.components) if c.role == "diffusion"), -1)
    if index < 0:
        return True
    calls = _by_component(events).get(index, [])
    steps = (knowledge.family(str(report.components[index].family)).get("sampling") or {}).get("steps") or [20]
    return how.steps < int(steps[0]) or any(c["given"] != "the encoder's hidden states" for c in calls)


def _makers(every: Sequence[Part], vae: int) -> tuple[int, ...]:
    """The model whose latent a VAE decodes, and the VAE."""
    models = [p.index for p in every if p.role == "diffusion"][:1]
    return (*models, vae)


def _by_component(events: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    out: dict[int, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("event") == "run":
            out.setdefault(int(event["component"]), []).append(event)
    return out


def _fp16(component: Component, card: Mapping[str, Any], how: Run) -> str:
    """What float16 is to a component: asked for by the user, meant by its makers, or avoided."""
    if DTYPES.get(str(how.settings.get("dtype") or "").lower()) == "float16":
        return "asked"
    stored = component.quantization.dtypes
    safe = (card.get("dtypes") or {}).get("safe")
    if safe is not None and "fp16" not in safe:
        return "avoided"
    half, wide = stored.get("F16", 0), stored.get("BF16", 0) + stored.get("F32", 0)
    return "meant" if safe or half > wide else "open"


def _worst(calls: Sequence[Mapping[str, Any]], fp16: str) -> dict[str, Any]:
    """The fields of `subjects.RUN` of all calls of one component."""
    broken = next((c for c in calls if c.get("broken")), None)
    wild = next((c for c in calls if c.get("runaway")), None)
    first_above = next((c for c in calls if c.get("above")), None) if fp16 != "avoided" else None
    most = max(calls, key=lambda c: float((c.get("largest") or {}).get("max_abs") or 0.0))
    chosen = broken or wild or first_above or most
    place = chosen.get("broken") or chosen.get("runaway") or chosen.get("largest") or {}
    if chosen is first_above and not (broken or wild):
        place = chosen["above"][0]
    largest = max(float((c.get("largest") or {}).get("max_abs") or 0.0) for c in calls)
    return {
        "module": place.get("module", ""),
        "op": place.get("op", ""),
        "where": f"{place['module']} ({place['op']})" if place.get("module") else str(place.get("op", "")),
        "broken": broken is not None,
        "count": int(place.get("count") or 0),
        "max_abs": float(place.get("max_abs") or 0.0),
        "max_words": number(float(place.get("max_abs") or 0.0)),
        "largest": largest,
        "above": sum(int(c.get("above_count") or 0) for c in calls[:1]) or int(chosen.get("above_count") or 0),
        "call": chosen["call"],
        "step": int(chosen.get("step") or 1),
        "given": chosen["given"],
        "dtype": chosen["dtype"],
        "fp16": fp16,
        "over": largest > FP16_MAX,
        "near": largest > FP16_NEAR,
        "runaway": wild is not None,
        "std": float((chosen.get("output") or {}).get("std") or 0.0),
    }


def _skipped(report: Report, events: Sequence[Mapping[str, Any]]) -> list[NotChecked]:
    """What was not run, and why."""
    out = []
    for event in events:
        kind = event.get("event")
        index = int(event.get("component", -1))
        name = report.components[index].source if index >= 0 else "the set"
        if kind == "skipped":
            out.append(NotChecked(_FORWARD, f"{name} was not run: {event['why']}", blocks=True))
        elif kind == "stopped":
            why = f"{name} was not run to its end: {event['raised']}: {event['why']}"
            out.append(NotChecked(_FORWARD, why, blocks=True))
        elif kind == "failed":
            out.append(NotChecked(_FORWARD, f"nothing was run: {event['why']}", blocks=True))
        elif kind == "note":
            out.append(NotChecked("smoke/picture", f"{name}: {event['why']}"))
    return list(dict.fromkeys(out))


def _begin(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = next((e for e in events if e.get("event") == "begin"), {})
    return {k: found[k] for k in ("torch", "device", "dtype") if k in found}


def _numbers(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs, latents, pictures and trials as the report's JSON has them."""
    kept = ("run", "latent", "picture", "round-trip", "bisect")
    return [{k: v for k, v in e.items() if k not in ("modules", "fields")} for e in events if e.get("event") in kept]


def _plots(report: Report, events: Sequence[Mapping[str, Any]], folder: str) -> list[str]:
    """Plots of activations and the latent's statistics, written beside the pictures; their paths."""
    saved = [str(e["path"]) for e in events if e.get("path")]
    if not folder:
        return saved
    from compatkit.smoke.draw import Bar, activation_plot

    with contextlib.suppress(OSError):  # what cannot be written is missing from the list of what was
        Path(folder).mkdir(parents=True, exist_ok=True)
    for index, calls in _by_component(events).items():
        last = calls[-1]
        broken = (last.get("broken") or {}).get("module")
        bars = [Bar(n or "(model)", float(v), int(n == broken)) for n, v in last.get("modules") or ()]
        name = report.components[index].role.replace("_", "-")
        path = Path(folder) / f"activations-{index}-{name}.svg"
        title = f"{report.components[index].title or name}: largest magnitudes, {last['dtype']}"
        try:
            path.write_text(activation_plot(bars, title), encoding="utf-8")
        except OSError:
            continue
        saved.append(str(path))
    latents = [{k: v for k, v in e.items() if k != "fields"} for e in events if e.get("event") == "latent"]
    if latents:
        path = Path(folder) / "latent.json"
        with contextlib.suppress(OSError):
            path.write_text(json.dumps(latents, indent=1), encoding="utf-8")
            saved.append(str(path))
    return saved
