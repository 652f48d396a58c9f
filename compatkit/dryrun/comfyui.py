"""A set through the user's own ComfyUI, without weights: what its loaders, its sampler and its VAE would say.

The checkout's code runs in a process of its own (`comfyui_process`, `comfyui_worker`); here a set is handed over and
the answers are given back as `Stage`s, each with the components it is about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from compatkit.checks.routing import usual_type
from compatkit.dryrun.comfyui_parts import left_out, part
from compatkit.dryrun.comfyui_process import Checkout
from compatkit.hosts.comfyui import read_install
from compatkit.knowledge.store import Knowledge
from compatkit.vocabulary import Component, Stack

RUNTIME = "comfyui"
_LONGEST = 600
_QUOTED = re.compile(r"'([^']+)'")


class Stage(Struct, frozen=True):
    """One step of the run: loading a part, encoding the prompt, a denoising step, decoding.

    `state` is "ran", "failed", "half" (ComfyUI went on with tensors that nothing was loaded into), "refused" (the GGUF
    loader does not take the file) or "unknowable" (the code asked for a value that only real weights have).
    `components` are indexes into the set's. `message` is ComfyUI's or torch's own text, `error` its type; `op` and
    `shapes` tell the operation if one failed, `module` where in the model, `file` and `line` where in ComfyUI.
    """

    stage: str
    state: str
    components: tuple[int, ...]
    message: str = ""
    error: str = ""
    op: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    module: str = ""
    model_class: str = ""
    file: str = ""
    line: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    logs: tuple[str, ...] = ()
    seconds: float = 0.0


def run(stack: Stack, knowledge: Knowledge, directory: str | Path, checkout: Checkout | None = None) -> list[Stage]:
    """Run a set on a ComfyUI folder; `checkout` is one that runs already, and stays running.

    Raises:
        SourceError: there is no ComfyUI in the folder.
        CheckoutError: its code cannot be run here, or did not come to an end.
    """
    own = checkout is None
    checkout = checkout or Checkout(read_install(directory))
    try:
        return _run(stack, knowledge, checkout)
    finally:
        if own:
            checkout.close()


def _run(stack: Stack, knowledge: Knowledge, checkout: Checkout) -> list[Stage]:
    request, holders = _request(stack, knowledge)
    refused = [
        Stage(f"{c.role}_load", "refused", (i,), _refusal(c, knowledge))
        for i, c in enumerate(stack.components)
        if c.source in holders and _refused(c)
    ]
    without = {stack.components[i].source for s in refused for i in s.components}
    request = _left(request, without)
    names = [n for n in dict.fromkeys(holders) if n not in without]
    for name in names:
        if not checkout.knows(name):
            checkout.part(name, part([c for c in stack.components if c.source == name], knowledge))
    if not any(request.get(k) for k in ("diffusion", "checkpoint", "encoders", "vae", "loras")):
        return refused
    stages = checkout.run(request, names)
    told = [_stage(s, request, stack) for s in stages]
    return [*refused, *(_settled(s, stack, knowledge) for s in told)]


def _request(stack: Stack, knowledge: Knowledge) -> tuple[dict[str, Any], list[str]]:
    """What to run, by the sources' names, and every source in it."""
    by_source: dict[str, set[str]] = {}
    for component in stack.components:
        by_source.setdefault(component.source, set()).add(component.role)
    request: dict[str, Any] = {"encoders": [], "loras": []}
    for source, roles in by_source.items():
        if "diffusion" in roles:
            request.setdefault("checkpoint" if roles & {"text_encoder", "vae"} else "diffusion", source)
        elif roles & {"text_encoder", "llm"}:
            request["encoders"].append(source)
        elif "vae" in roles:
            request.setdefault("vae", source)
        elif "lora" in roles:
            request["loras"].append(source)
    request["clip_type"] = stack.settings.get("clip_type") or _usual(stack, knowledge) or "stable_diffusion"
    return request, _sources(request)


def _sources(request: Mapping[str, Any]) -> list[str]:
    one = [request[k] for k in ("checkpoint", "diffusion", "vae") if request.get(k)]
    return [*one, *request["encoders"], *request["loras"]]


def _left(request: Mapping[str, Any], without: set[str]) -> dict[str, Any]:
    """The request without some sources; encoders are loaded together or not at all."""
    out = {k: v for k, v in request.items() if not (isinstance(v, str) and v in without)}
    out["loras"] = [s for s in request["loras"] if s not in without]
    out["encoders"] = [] if without.intersection(request["encoders"]) else list(request["encoders"])
    return out


def _usual(stack: Stack, knowledge: Knowledge) -> str | None:
    for component in stack.components:
        for family in component.families if component.role == "diffusion" else ():
            if knowledge.has_family(family) and (found := usual_type(knowledge.family(family), RUNTIME)):
                return found
    return None


def _refused(component: Component) -> bool:
    """Whether ComfyUI-GGUF would not open the file: its code is a custom node, and is not run."""
    gguf = component.format == "gguf" and component.role in ("text_encoder", "diffusion", "llm")
    return gguf and RUNTIME in component.loads_as and component.loads_as[RUNTIME] is None


def _refusal(component: Component, knowledge: Knowledge) -> str:
    """What ComfyUI-GGUF says of an architecture that is not in its list."""
    table = knowledge.runtime(f"{RUNTIME}-gguf")
    architecture = component.metadata.get("general.architecture")
    listed: Sequence[str] = ()
    for entry in table.get("history") or ():
        listed = entry.get(component.role, listed)
    if architecture is None or architecture in listed:
        return "ComfyUI-GGUF does not load this file cleanly"
    text = ((table.get("errors") or {}).get("architecture") or {}).get(component.role, "")
    return str(text).replace("{architecture}", str(architecture))


def _stage(answer: Mapping[str, Any], request: Mapping[str, Any], stack: Stack) -> Stage:
    state, message, error = str(answer["state"]), str(answer.get("message", "")), str(answer.get("type", ""))
    logs = tuple(str(line) for line in answer.get("logs") or ())
    if state == "ran" and str(answer["stage"]).endswith("_load"):
        lost = next((line for line in logs if _lost(line)), None)
        if lost is not None:
            state, message = "half", lost[:_LONGEST]
    return Stage(
        stage=str(answer["stage"]),
        state=state,
        components=_about(str(answer["stage"]), request, stack),
        message=message,
        error=error,
        op=str(answer.get("op", "")),
        shapes=tuple(tuple(s) for s in answer.get("shapes") or ()),
        module=str(answer.get("module") or answer.get("module_class") or ""),
        model_class=str(answer.get("model_class", "")),
        file=str(answer.get("file", "")),
        line=int(answer.get("line") or 0),
        facts=answer.get("facts") or {},
        logs=logs,
        seconds=float(answer.get("seconds") or 0),
    )


def _settled(stage: Stage, stack: Stack, knowledge: Knowledge) -> Stage:
    """A stage that lost nothing but what files of this layout never have ran like any other."""
    if stage.state != "half":
        return stage
    never = frozenset().union(*(left_out(stack.components[i], knowledge) for i in stage.components))
    lost = {name for line in stage.logs if _lost(line) for name in _QUOTED.findall(line)}
    if never and all(_ends(name, never) for name in lost):
        return replace(stage, state="ran", message="")
    return stage


def _ends(name: str, names: frozenset[str]) -> bool:
    """Whether a name is one of `names`, or ends with one after a dot."""
    parts = name.split(".")
    return any(".".join(parts[i:]) in names for i in range(len(parts)))


def _lost(line: str) -> bool:
    return "missing" in line.lower() and "[" in line


def _about(stage: str, request: Mapping[str, Any], stack: Stack) -> tuple[int, ...]:
    """The components a stage is about, by the sources it opens or joins."""
    model = [request.get("diffusion") or request.get("checkpoint")]
    text = list(request.get("encoders") or [request.get("checkpoint")])
    image = [request.get("vae") or request.get("checkpoint")]
    wanted, roles = {
        "checkpoint_load": (model, None),
        "diffusion_load": (model, ("diffusion",)),
        "text_encoder_load": (text, ("text_encoder", "llm")),
        "text_encoder_forward": (text, ("text_encoder", "llm")),
        "lora_load": ([*request.get("loras", ()), *model], ("lora", "diffusion")),
        "diffusion_forward": ([*text, *model], ("text_encoder", "llm", "diffusion")),
        "vae_load": (image, ("vae",)),
        "vae_decode": ([*model, *image], ("diffusion", "vae")),
    }[stage]
    return tuple(i for i, c in enumerate(stack.components) if c.source in wanted and (roles is None or c.role in roles))
