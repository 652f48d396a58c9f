"""From what was run to what is said: outcomes as subjects of the `dryrun/…` rules, held against the header's
findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from compatkit.checks.parts import Part
from compatkit.checks.subject import Subject
from compatkit.dryrun.junctions import Model
from compatkit.dryrun.probe import Outcome
from compatkit.dryrun.wording import pattern, read, telling
from compatkit.vocabulary import Finding, Report

#: Header rules that speak of the same thing as a probe, by what the probe is about.
GROUPS = {
    "load": ("encoder",),
    "context": ("encoder",),
    "glyph": ("encoder",),
    "pooled": ("encoder",),
    "unfed": ("encoder",),
    "image": ("adapter",),
    "vae": ("vae",),
    "lora": ("lora",),
    "adapter": ("adapter",),
    "forward": ("encoder", "vae", "adapter"),
}
#: What a prediction says of a run that nothing stops.
_QUIET = ("no error", "no exception")


def subjects(outcomes: Sequence[Outcome], header: Report, models: Mapping[int, Model], torch: str) -> list[Subject]:
    """What the rules judge: every outcome, and every place where header and run do not say the same."""
    out: list[Subject] = []
    stops: dict[tuple[str, int], Outcome] = {}
    for outcome in sorted(_told_once(outcomes), key=_place):
        probe = outcome.probe
        chain = (probe.loader.name, _run_of(outcome))
        before = stops.get(chain)
        confirmed = None if outcome.ok else _confirmed(outcome, header.findings)
        values = {
            "probe": _fields(outcome, before, confirmed, models, torch),
            "giver": probe.giver.fields,
            "taker": probe.taker.fields,
            "loader": probe.loader.fields(),
        }
        out.append(Subject("probe", probe.components, values, probe.loader))
        if not outcome.ok and not probe.when:
            stops.setdefault(chain, outcome)
    return out + _disagreements(outcomes, header)


def _told_once(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes; where a whole model stops with the error of a probe, the probe says so and the model is silent."""
    out: list[Outcome] = []
    for outcome in outcomes:
        said = read(outcome.message)
        same = [o for o in out if not o.ok and o.probe.taker is outcome.probe.taker and read(o.message) == said]
        if outcome.probe.about == "forward" and not outcome.ok and said and same:
            out[out.index(same[0])] = replace(same[0], backend=outcome.backend, line=outcome.line)
            outcome = replace(outcome, ok=True)
        out.append(outcome)
    return out


def _place(outcome: Outcome) -> tuple[int, int, bool]:
    return (outcome.probe.stage, outcome.probe.order, bool(outcome.probe.when))


def _run_of(outcome: Outcome) -> int:
    """The diffusion model whose run an outcome belongs to: what stops it hides what comes later."""
    probe = outcome.probe
    parts = [probe.taker, probe.giver]
    return next((p.index for p in parts if p.role == "diffusion"), min(probe.components, default=-1))


def _fields(
    outcome: Outcome,
    before: Outcome | None,
    confirmed: Finding | None,
    models: Mapping[int, Model],
    torch: str,
) -> dict[str, Any]:
    probe = outcome.probe
    return {
        "about": probe.about,
        "ok": outcome.ok,
        "backend": outcome.backend,
        "op": outcome.op,
        "module": outcome.module,
        "junction": probe.junction,
        "what": probe.what,
        "when": probe.when,
        "input": list(outcome.input) if outcome.input is not None else None,
        "weight": list(outcome.weight) if outcome.weight is not None else None,
        "message": outcome.message,
        "telling": telling(outcome.message),
        "error": outcome.error,
        "regex": pattern(outcome.message) if outcome.message else "",
        "tensors": _tensors(outcome, models),
        "line": outcome.line,
        "notes": list(probe.notes),
        "after": before.module or before.op if before else "",
        "order": 100 * probe.stage + max(probe.order, 0),
        "confirms": confirmed.rule if confirmed else None,
        "predicted": next(iter(confirmed.predicts.values()), None) if confirmed else None,
        "fix": confirmed.fix if confirmed else "",
        "torch": torch,
    }


def _tensors(outcome: Outcome, models: Mapping[int, Model]) -> list[dict[str, Any]]:
    """Both sides: the file each came from, its tensor, its shape, the dtype it is stored in."""
    probe = outcome.probe
    out = []
    if outcome.input is not None:
        row = {
            "file": probe.giver.fields["name"],
            "tensor": probe.what,
            "shape": list(outcome.input),
            "dtype": probe.dtype,
        }
        out.append(row)
    if outcome.weight is not None:
        out.append(_weight(outcome, models.get(probe.taker.index), probe.taker))
    return out


def _weight(outcome: Outcome, model: Model | None, taker: Part) -> dict[str, Any]:
    name, dtype = outcome.module, ""
    step = next((s for s in outcome.probe.steps if s.get("module") == outcome.module), None)
    if model and step and step.get("own"):
        name, dtype = model.in_file(step["own"]), model.stored(step["own"])
    weight = list(outcome.weight or ())
    return {"file": taker.fields["name"], "tensor": name, "shape": weight, "dtype": dtype or outcome.probe.dtype}


def _confirmed(outcome: Outcome, findings: Iterable[Finding]) -> Finding | None:
    """The header's finding of the same pair: the one that predicts this very text, else the worst one."""
    found = [f for f in findings if f.level != "info" and _same_pair(outcome, f)]
    said = read(outcome.message)
    exact = [f for f in found if said and any(read(t) == said for t in f.predicts.values())]
    return next(iter(exact or found), None)


def _same_pair(outcome: Outcome, finding: Finding) -> bool:
    groups = GROUPS.get(outcome.probe.about, ())
    if finding.rule.partition("/")[0] not in groups:
        return False
    return set(outcome.probe.components) <= set(finding.components) or set(finding.components) <= set(
        outcome.probe.components
    )


def _disagreements(outcomes: Sequence[Outcome], header: Report) -> list[Subject]:
    out: list[Subject] = []
    for outcome in outcomes:
        if outcome.ok or outcome.probe.about not in GROUPS or outcome.probe.stage is None:
            continue
        if _confirmed(outcome, header.findings) is None and header_looked(outcome, header):
            text = telling(outcome.message)
            out.append(_disagreement(outcome, "", "", text))
    for finding in header.findings:
        if finding.level != "error":
            continue
        same = [o for o in outcomes if _same_pair(o, finding)]
        for outcome in same:
            text = finding.predicts.get(outcome.probe.loader.name, "")
            if not read(text) or any(q in text for q in _QUIET) or any(not o.ok for o in same):
                continue
            out.append(_disagreement(outcome, finding.rule, text, ""))
            break
    return out


def header_looked(outcome: Outcome, header: Report) -> bool:
    """Whether the header checks judged this pair at all: a rule of the group ran."""
    groups = GROUPS.get(outcome.probe.about, ())
    return any(rule.partition("/")[0] in groups for rule in header.checked)


def _disagreement(outcome: Outcome, rule: str, claims: str, message: str) -> Subject:
    probe = outcome.probe
    values = {
        "agreement": {
            "about": probe.about,
            "rule": rule,
            "claims": claims,
            "message": message,
            "what": probe.what,
            "module": outcome.module or next((s["module"] for s in probe.steps if s.get("module")), ""),
        },
        "giver": probe.giver.fields,
        "taker": probe.taker.fields,
        "loader": probe.loader.fields(),
    }
    return Subject("agreement", probe.components, values, probe.loader)
