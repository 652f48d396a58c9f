"""`smoke --comfyui URL`: the set on a server that is running, two steps and a picture, judged like any other.

Nothing is uploaded: the server must have the files. What it says is held against what compatkit knows of error texts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from compatkit.checks.parts import file_name
from compatkit.checks.subject import Subject
from compatkit.knowledge.store import Knowledge
from compatkit.smoke.comfyui_client import Run, Server, ServerError
from compatkit.smoke.comfyui_graph import Builder, Graph, NoGraph
from compatkit.vocabulary import Finding, NotChecked, Report, Stack

if TYPE_CHECKING:
    from compatkit.checks.diagnosis import Cause

#: Seconds for a run: a large model on a slow disk takes minutes to load.
SECONDS = 600.0
_UNRUN = ("unreachable", "foreign", "lost", "interrupted", "timeout", "incomplete")
_AT = re.compile(r'File "([^"]+)", line (\d+)')
_LONGEST = 2000


class Outcome(Struct):
    """What became of a set on a server. `picture`: the bytes of the first one; `components`: whom the end is about."""

    run: Run
    address: str
    version: str = ""
    graph: Graph | None = None
    components: tuple[int, ...] = ()
    picture: bytes | None = None
    trouble: str = ""


def run(stack: Stack, knowledge: Knowledge, address: str, seconds: float = SECONDS) -> Outcome:
    """Run a set on a server. Never raises for what the server does.

    Raises:
        SourceError: `address` is no address of a web server.
    """
    server = Server(address)
    out = Outcome(Run("done"), server.shown)
    try:
        info = server.object_info()
        out.version = server.version()
        out.graph = Builder(stack, knowledge, info).build()
        out.run = server.run(out.graph.nodes, seconds)
    except NoGraph as e:
        out.run, out.components = Run(e.state, str(e)), e.components
    except ServerError as e:
        out.run = Run(e.state, str(e))
    out.components = out.components or _about(out, stack)
    if out.run.state == "done" and out.run.pictures:
        try:
            out.picture = server.picture(out.run.pictures[0])
        except ServerError as e:
            out.trouble = f"the picture could not be fetched: {e}"
    return out


def judged(report: Report, stack: Stack, outcome: Outcome, knowledge: Knowledge, folder: Path | None = None) -> Report:
    """The report with what the run showed. `folder`: where the picture is kept."""
    from compatkit.smoke.judge import Judge
    from compatkit.smoke.session import merged

    judge = Judge(knowledge, ("server",))
    cause = _cause(outcome.run, knowledge, report.findings)
    values = {"server": _fields(outcome, stack, cause), "loader": {"runtime": "comfyui"}}
    judge.one(Subject("server", outcome.components, values))
    skipped: list[NotChecked] = list(judge.not_checked.values())
    if outcome.run.state != "done":  # the one that ended it is all there is to say
        judge.checked = {f.rule: None for f in judge.findings}
    if outcome.run.state in _UNRUN:
        skipped.append(NotChecked("smoke/comfyui", f"the set did not run to an end: {_said(outcome.run)}", blocks=True))
    look, path, why = _look(outcome, folder)
    if why:
        skipped.append(NotChecked("smoke/picture", why, blocks=outcome.run.state == "done"))
    if look is not None:
        pictures = Judge(knowledge, ("picture",))
        pictures.one(Subject("picture", outcome.components, {"picture": look.fields(path)}))
        judge.findings += pictures.findings
        judge.checked.update(pictures.checked)
        skipped += pictures.not_checked.values()
    made = merged(report, judge.findings, judge.checked, skipped)
    return replace(made, smoke={**report.smoke, "comfyui": _numbers(outcome, cause, look, path)})


def _look(outcome: Outcome, folder: Path | None) -> tuple[Any, str, str]:
    """(verdict on the picture, where it was kept, why there is no verdict)."""
    if outcome.picture is None:
        return None, "", outcome.trouble or ("" if outcome.run.state != "done" else "the server lists no picture")
    path = ""
    if folder is not None:
        target = folder / "comfyui.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            target.write_bytes(outcome.picture)
            path = str(target)
        except OSError as e:
            outcome.trouble = f"the picture could not be kept: {e.strerror or e}"
    try:
        import numpy as np
        from PIL import Image

        from compatkit.smoke.picture import judge_picture

        Image.MAX_IMAGE_PIXELS = 1 << 26
        with Image.open(io.BytesIO(outcome.picture)) as image:
            return judge_picture(np.asarray(image.convert("RGB"))), path, ""
    except ImportError as e:
        return None, path, f"judging pictures needs the Python package {e.name} (pip install numpy pillow)"
    except Exception as e:  # whatever a decoder makes of damaged bytes
        return None, path, f"what the server gave is no picture: {' '.join(str(e).split())[:120]}"


def _about(outcome: Outcome, stack: Stack) -> tuple[int, ...]:
    """Whom the end is about: the files of the node that failed, else all that took part."""
    made_for: Mapping[str, tuple[int, ...]] = outcome.graph.made_for if outcome.graph else {}
    if outcome.run.node in made_for:
        return made_for[outcome.run.node]
    if outcome.run.rejected:
        return tuple(dict.fromkeys(i for node, _, _ in outcome.run.rejected for i in made_for.get(node, ())))
    roles = ("diffusion", "text_encoder", "llm", "vae", "lora")
    return tuple(i for i, c in enumerate(stack.components) if c.role in roles)


def _cause(run: Run, knowledge: Knowledge, findings: Iterable[Finding]) -> Cause | None:
    """What compatkit's knowledge of error texts makes of it."""
    if run.state != "error" or not run.message:
        return None
    from compatkit.checks.diagnosis import diagnose

    text = f"{run.traceback}\n{run.error}: {run.message}" if run.traceback else f"{run.error}: {run.message}"
    known = {k: list(v) for k, v in (knowledge.table("known") or {}).items()} if knowledge.table("known") else {}
    found = diagnose(text, knowledge.table("errors") or [], known, findings)
    return found[0] if found else None


def _fields(outcome: Outcome, stack: Stack, cause: Cause | None) -> dict[str, Any]:
    run = outcome.run
    places = _AT.findall(run.traceback)
    file = next((file_name(stack.components[i].source) for i in outcome.components), "")
    node_loads = outcome.graph is not None and run.node in outcome.graph.made_for
    return {
        "state": run.state,
        "address": outcome.address,
        "version": outcome.version,
        "message": run.message[:_LONGEST],
        "first": next(iter(run.message.splitlines()), "")[:_LONGEST],
        "error": run.error,
        "node": run.node_class,
        "file": file if node_loads or run.state == "missing" else "",
        "line": f"{places[-1][0]}:{places[-1][1]}" if places else "",
        "rejected": [f"{kind}: {text}" if kind else text for _, kind, text in run.rejected],
        "rule": cause.rule if cause else "",
        "cause": cause.message if cause else "",
        "cause_fix": cause.fix if cause else "",
        "pictures": len(run.pictures),
        "dropped": run.dropped,
        "seconds": run.seconds,
    }


def _said(run: Run) -> str:
    words = {"interrupted": "someone stopped it on the server", "timeout": "it took too long"}
    return words.get(run.state) or run.message


def _numbers(outcome: Outcome, cause: Cause | None, look: Any, path: str) -> dict[str, Any]:
    """The `comfyui` part of the smoke numbers."""
    run = {k: v for k, v in asdict(outcome.run).items() if k not in ("traceback", "rejected", "pictures")}
    return {
        "address": outcome.address,
        "version": outcome.version,
        **run,
        "cause": cause.rule if cause else "",
        "pictures": len(outcome.run.pictures),
        "picture": {**look.statistics(), "file": path} if look is not None else {},
        "graph": outcome.graph.nodes if outcome.graph else {},
    }
