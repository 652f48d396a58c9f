"""The job of the worker that needs torch: run a set, and find the file at fault if it does not work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compatkit.knowledge.store import Knowledge, load
from compatkit.smoke.member import Member, Options
from compatkit.smoke.trial import Trial
from compatkit.smoke.worker import rules_of
from compatkit.sources.network import Network
from compatkit.stacks.files import Request, opened
from compatkit.vocabulary import Component, SourceError


def forward(job: Mapping[str, Any], emit: Callable[[Mapping[str, Any]], None]) -> None:
    """Run the set of the job.

    The job has `members`: for each component its index in the report, the text that opens its file, and the role,
    family and prefix it was found to have; and the fields of `Options`.
    """
    from compatkit.dryrun.build import EnvironmentProblem
    from compatkit.dryrun.build import load as library

    try:
        torch = library("torch")
    except EnvironmentProblem as e:
        emit({"event": "failed", "why": str(e), "environment": True})
        return
    knowledge = load(rules_of(job))
    members = _members(job, knowledge)
    options = Options(
        dtype=str(job.get("dtype") or "bfloat16"),
        device=str(job.get("device") or "cpu"),
        vram=job.get("vram"),
        steps=int(job.get("steps") or 2),
        save=str(job.get("save") or ""),
        settings={k: str(v) for k, v in (job.get("settings") or {}).items()},
        latent_side=job.get("latent_side"),
    )
    if options.device == "cpu" and options.dtype not in ("bfloat16", "float32"):
        options.dtype = "bfloat16"  # float16 is many times slower on a CPU: it is predicted
    emit({"event": "begin", "torch": torch.__version__, "device": options.device, "dtype": options.dtype})
    gave = Trial(members, knowledge, options, emit).run()
    if gave.broken and job.get("bisect"):
        from compatkit.smoke import bisect

        bisect.run(members, gave, knowledge, options, emit)


def _members(job: Mapping[str, Any], knowledge: Knowledge) -> list[Member]:
    """The components of the report, read again from their headers."""
    files: dict[tuple[str, str | None], list[Component]] = {}
    out = []
    with Network(offline=bool(job.get("offline"))) as network:
        for wanted in job["members"]:
            assumed = wanted.get("assume")
            key = (str(wanted["source"]), assumed)
            if key not in files:
                files[key] = opened(
                    Request(key[0], wanted.get("role") if assumed else None, assumed), knowledge, network=network
                )
            found = next((c for c in files[key] if _is(c, wanted)), None)
            if found is None:
                raise SourceError(f"{key[0]} is not what it was a moment ago")
            out.append(Member(int(wanted["index"]), found, str(wanted.get("file") or key[0])))
    return out


def _is(component: Component, wanted: Mapping[str, Any]) -> bool:
    same = component.family == wanted.get("family") and component.prefix == wanted.get("prefix", "")
    return same and (not wanted.get("path") or component.source == wanted["path"])
