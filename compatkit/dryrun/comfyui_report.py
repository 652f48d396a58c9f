"""What a checkout made of a set, as a report: every stage a subject of the `dryrun/comfyui-…` rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from compatkit.checks.parts import file_name
from compatkit.checks.subject import Subject
from compatkit.dryrun.comfyui import RUNTIME, Stage, run
from compatkit.dryrun.comfyui_process import Checkout, CheckoutError
from compatkit.dryrun.wording import pattern, read, telling
from compatkit.hosts.comfyui import read_install
from compatkit.knowledge.store import Knowledge
from compatkit.vocabulary import LEVELS, Finding, NotChecked, Report, SourceError, Stack

_DOING = {
    "checkpoint_load": "loads the checkpoint",
    "diffusion_load": "loads the diffusion model",
    "text_encoder_load": "loads the text encoder",
    "vae_load": "loads the VAE",
    "lora_load": "applies the LoRA",
    "text_encoder_forward": "encodes the prompt",
    "diffusion_forward": "takes the first denoising step",
    "vae_decode": "decodes the latent",
}
#: Header rules that speak of the same thing as a stage.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "checkpoint_load": ("component", "loader", "file", "quant"),
    "diffusion_load": ("component", "loader", "file", "quant"),
    "text_encoder_load": ("encoder", "loader", "file", "component"),
    "vae_load": ("vae", "loader", "file", "component"),
    "lora_load": ("lora", "adapter"),
    "text_encoder_forward": ("encoder", "loader"),
    "diffusion_forward": ("encoder", "lora", "loader"),
    "vae_decode": ("vae",),
}
_LONGEST = 300


def dry_run(
    stack: Stack, knowledge: Knowledge, header: Report, directory: str, checkout: Checkout | None = None
) -> Report:
    """Run a set on a ComfyUI folder and judge what happened.

    Args:
        stack: the set.
        knowledge: the rules.
        header: what `checks.judge` said of the same set: findings that say the same are named.
        directory: the ComfyUI folder.
        checkout: a process over that folder which runs already, and stays running.

    A folder without a ComfyUI, one whose code cannot be run here, or that comes to no end is a `dryrun/environment`
    finding, and the verdict is unknown.
    """
    from compatkit.checks.engine import collected, judged

    builder = collected(stack, knowledge, ())
    stages: Sequence[Stage] = ()
    failure, title = "", "ComfyUI"
    own: Checkout | None = None
    try:
        install = checkout.install if checkout else read_install(directory)
        title = install.title
        if checkout is None:
            checkout = own = Checkout(install)
        stages = run(stack, knowledge, directory, checkout)
    except (CheckoutError, SourceError) as e:
        failure = str(e).removeprefix(f"--comfyui {directory}: ")
    finally:
        environment: Mapping[str, Any] = checkout.environment if checkout else {}
        if own:
            own.close()
    loader = {"runtime": RUNTIME, "label": title, "engine": "torch"}
    for stage in stages:
        values = _fields(stage, stack, header.findings, title, str(environment.get("torch", "")))
        half = values["state"] == "half" and not stage.stage.endswith("_load")  # a LoRA that does not fit its weights
        about = sorted({*stage.components, *(_loras(stack) if half else ())})
        builder.add(Subject("stage", tuple(about), {"stage": values, "loader": loader}))
    if failure:
        values = {"ok": False, "message": failure, "comfyui": title}
        builder.add(Subject("environment", (), {"environment": values}))
    rules = {str(r["id"]): r for r in knowledge.checks() if str(r["id"]).startswith("dryrun/")}
    mine = {k: r for k, r in rules.items() if r["binds"] in ("stage", "environment")}
    report = judged(builder, stack, mine, pending=False)
    skipped = (*(n for n in report.not_checked if n.blocks), *_open(stages, failure), *_beside(stack))
    order = {s.stage: i for i, s in enumerate(stages)}
    ordered = sorted(report.findings, key=lambda f: (LEVELS.index(f.level), order.get(str(f.evidence.get("stage")), 0)))
    report = replace(report, findings=tuple(ordered), not_checked=tuple(dict.fromkeys(skipped)))
    return _verdict(report, builder.parts, stages, title, environment)


def _fields(stage: Stage, stack: Stack, findings: Sequence[Finding], title: str, torch: str) -> dict[str, Any]:
    confirmed = _confirmed(stage, findings) if stage.state != "ran" else None
    lost = [line for line in stage.logs if line.startswith(("lora key not loaded", "NOT LOADED"))]
    broken = next((line for line in stage.logs if line.startswith("ERROR")), "")
    state = stage.state
    if state == "ran" and stage.stage == "lora_load" and lost:
        state = "half" if stage.facts.get("patched") else "failed"
    message = stage.message or broken or (lost[0] if state in ("half", "failed") and lost else "")
    state = "half" if state == "ran" and broken else state
    about = _loras(stack) if lost or broken else stage.components
    return {
        "stage": stage.stage,
        "state": state,
        "doing": _DOING.get(stage.stage, stage.stage),
        "message": message,
        "first": _short(telling(message)),
        "error": stage.error,
        "op": stage.op,
        "shapes": " and ".join("[" + ", ".join(map(str, s)) + "]" for s in stage.shapes),
        "module": stage.module,
        "model_class": stage.model_class,
        "file": stage.file,
        "line": stage.line,
        "files": list(dict.fromkeys(file_name(stack.components[i].source) for i in about)),
        "regex": pattern(message) if message else "",
        "comfyui": title,
        "torch": torch,
        "confirms": confirmed.rule if confirmed else None,
        "predicted": next(iter(confirmed.predicts.values()), None) if confirmed else None,
        "fix": confirmed.fix if confirmed else "",
    }


def _loras(stack: Stack) -> list[int]:
    return [i for i, c in enumerate(stack.components) if c.role == "lora"]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST].rstrip() + " …"


def _confirmed(stage: Stage, findings: Sequence[Finding]) -> Finding | None:
    """The header's finding about the same files: the one that predicts this very text, else the worst."""
    groups = _GROUPS.get(stage.stage, ())
    about = set(stage.components)
    found = [
        f
        for f in findings
        if f.level != "info" and f.rule.partition("/")[0] in groups and (not f.components or about & set(f.components))
    ]
    said = read(stage.message)
    exact = [f for f in found if said and any(read(t) == said for t in f.predicts.values())]
    return next(iter(exact or found), None)


def _open(stages: Sequence[Stage], failure: str) -> list[NotChecked]:
    """What could not be run to its end."""
    out = [
        NotChecked(
            f"dryrun/{s.stage}",
            f"{s.file}:{s.line} in ComfyUI asks for a value that only real weights have ({s.message})",
            blocks=True,
        )
        for s in stages
        if s.state == "unknowable"
    ]
    if failure:
        out.append(NotChecked("dryrun/comfyui-run", f"ComfyUI could not be run: {failure}", blocks=True))
    return out


def _beside(stack: Stack) -> list[NotChecked]:
    """Parts of the set that such a run leaves out."""
    ran = {"diffusion", "text_encoder", "llm", "vae", "lora"}
    roles = dict.fromkeys(c.role for c in stack.components if c.role not in ran and c.role != "unknown")
    why = "a run in ComfyUI's code takes model, encoder, VAE and LoRAs; without --comfyui its junctions are probed"
    return [NotChecked("dryrun/adapter", f"{role.replace('_', ' ')}: {why}") for role in roles]


def _verdict(report: Report, parts: Any, stages: Sequence[Stage], title: str, environment: Mapping[str, Any]) -> Report:
    from compatkit.checks.verdict import headline, verdict

    outcome = verdict(parts, report.findings, report.not_checked)
    said = headline(outcome, parts)
    torch = environment.get("torch")
    ran = sum(s.state in ("ran", "half") for s in stages)
    note = f"dry run: {ran} of {len(stages)} steps in {title}{f' on torch {torch}' if torch else ''}"
    return replace(report, verdict=outcome, headline=f"{said[:-1]}; {note})")
