"""Whole models: each component's class made without weights and run from end to end, in the process with torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compatkit.checks.loaders import Loader
from compatkit.checks.parts import Part
from compatkit.dryrun.handover import packed
from compatkit.dryrun.probe import FORWARD, LOADING, Gap, Outcome, Probe
from compatkit.dryrun.run import Worker, WorkerError

if TYPE_CHECKING:
    from compatkit.checks.subject import Builder

#: Roles whose classes are run.
ROLES = ("text_encoder", "diffusion", "vae")
#: The runtime whose classes they are: there a class gets what the set gives it, elsewhere what it was made for.
LIBRARY = "diffusers"
_SHOWN = 3


def run(
    builder: Builder, probes: Sequence[Probe], worker: Worker, rules: Sequence[Path] = ()
) -> tuple[list[Outcome], list[Gap]]:
    """Run every class of a set; what cannot be run is a gap that leaves the verdict as it is.

    Returns the outcomes, two for each class: whether the file fills it, and whether it goes through.
    """
    outcomes: list[Outcome] = []
    gaps: list[Gap] = []
    for loader in builder.loaders:
        for part in builder.parts:
            if part.role not in ROLES or not part.component.family:
                continue
            given = _given(part, probes) if loader.name == LIBRARY else {}
            request = {
                "do": "forward",
                "component": packed(part.component),
                "rules": [str(r) for r in rules],
                "replace": {k: v for k, (_, v) in given.items()},
            }
            try:
                answer = worker.ask(request)
            except WorkerError as e:
                gaps.append(Gap("forward", f"{part.fields['name']}: {e}", blocks=False))
                continue
            if "none" in answer:
                gaps.append(Gap("forward", f"{part.fields['name']}: {answer['none']}", blocks=False))
                continue
            if "environment" in answer:
                gaps.append(Gap("forward", _library(answer["environment"]), blocks=False))
                return outcomes, gaps
            outcomes += _outcomes(part, loader, answer, given)
        if loader.name != LIBRARY and len(builder.loaders) == 1:
            break
    return outcomes, list(dict.fromkeys(gaps))


def _library(problem: str) -> str:
    return f"whole models are run by their library's classes, but {problem} (pip install torch diffusers transformers)"


def _given(part: Part, probes: Sequence[Probe]) -> dict[str, tuple[Part, int]]:
    """What other models of the set give to this one: name of the width -> (who gives it, the width)."""
    out: dict[str, tuple[Part, int]] = {}
    for probe in probes:
        if probe.taker is not part or probe.giver is part or probe.input is None or probe.loader.name != LIBRARY:
            continue
        if probe.about == "vae":
            if len(probe.input) == part.number("latent_ndim"):
                out["latent_channels"] = (probe.giver, probe.input[1])
        elif probe.junction and part.number(probe.junction) is not None:
            out[probe.junction] = (probe.giver, probe.input[-1])
    return {k: v for k, v in out.items() if v[1] != part.number(k)}


def _outcomes(
    part: Part, loader: Loader, answer: Mapping[str, Any], given: Mapping[str, tuple[Part, int]]
) -> list[Outcome]:
    giver = next((p for p, _ in given.values()), part)
    library = f"{answer['library']} {answer['version']}".strip()
    wrong, missing = answer["wrong"], answer["missing"]
    lacks = wrong or missing
    filled = Probe("state-dict", part, part, loader, None, [], answer["class"], LOADING, components=(part.index,))
    goes = Probe("forward", giver, part, loader, None, [], answer["class"], FORWARD, order=90)
    goes.components = tuple(dict.fromkeys((part.index, giver.index)))
    names = ", ".join(lacks[:_SHOWN]) + (", …" if len(lacks) > _SHOWN else "")
    how = "another shape" if wrong else "nothing"
    message = f"{len(lacks)} of its {answer['tensors']} tensors have {how} in the file: {names}" if lacks else ""
    error = "RuntimeError" if wrong else ""
    state = Outcome(filled, not lacks, "load", answer["class"], error, message, backend=library)
    if answer["ok"]:
        return [state, Outcome(goes, True, backend=library)]
    shapes = [o for o in answer["operands"] if o["shape"]]
    weight = next((tuple(o["shape"]) for o in shapes if o["name"]), None)
    came = next((tuple(o["shape"]) for o in shapes if not o["name"]), None)
    failed = Outcome(
        goes,
        False,
        op=answer["op"],
        module=answer["module"] or answer["class"],
        error=answer["raised"],
        message=answer["message"],
        input=came,
        weight=weight,
        backend=library,
        line=answer["line"],
    )
    return [state, failed]
