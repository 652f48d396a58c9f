"""The verdict of a set, its first line, and what no check looks at yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compatkit.checks.attachments import ROLES
from compatkit.checks.parts import Part, label
from compatkit.checks.slots import slots_of
from compatkit.vocabulary import Finding, NotChecked, Verdict

#: Roles that need no family: identified to their architecture is identified.
_ARCHITECTURE_ENOUGH = frozenset({"llm", "upscaler", "embedding"})
#: They work on pictures, and no other model of a set has to fit them.
_APART = frozenset({"detector", "other"})
_JUDGED = frozenset({"diffusion", "text_encoder", "vae", "lora", "clip_vision", "audio_encoder", "mmproj", *ROLES})

#: Checks that do not exist yet: id, roles they would look at, settings they would read, and why.
_PENDING: tuple[tuple[str, tuple[str, ...], tuple[str, ...], str], ...] = (
    ("encoder/tokenizer-version", ("text_encoder",), (), "tokenizers are not compared with the loader's version yet"),
    ("host/disk", (), ("disk_free",), "disk space is not checked yet"),
    ("host/memory", (), ("vram", "offload", "host"), "memory is not estimated yet"),
    ("host/torch", (), ("torch", "driver", "host"), "GPU, driver and torch are not checked yet"),
    ("workflow/sampling", (), ("sampler", "scheduler", "shift"), "sampler, scheduler and shift are not judged"),
    ("workflow/size", (), ("width", "height"), "the size of the picture is not judged"),
    ("lora/strength", (), ("strength",), "what a strength makes of a picture is not judged"),
)
#: Settings that a user may give although no check reads them yet.
UNREAD_SETTINGS = frozenset(key for _, _, keys, _ in _PENDING for key in keys)

#: Why a check that does not exist yet is missing, by its id.
PENDING_WHY = {rule: why for rule, _, _, why in _PENDING}


def identified(part: Part) -> bool:
    """Whether it is known what a component is."""
    if part.role == "unknown":
        return False
    return bool(part.component.family) or part.role in _ARCHITECTURE_ENOUGH or _is_adapter(part)


def _is_adapter(part: Part) -> bool:
    """A LoRA is of no family: what it is stands in its algorithm."""
    return part.role == "lora" and bool(part.fact("algorithm"))


def verdict(every: Sequence[Part], findings: Sequence[Finding], not_checked: Sequence[NotChecked]) -> Verdict:
    """fail if there is an error; unknown if a file or a check with both sides present is open; else pass."""
    if any(f.level == "error" for f in findings):
        return "fail"
    if not every or any(not identified(p) for p in every) or any(n.blocks for n in not_checked):
        return "unknown"
    return "pass"


def headline(outcome: Verdict, every: Sequence[Part], not_checked: Sequence[NotChecked] = ()) -> str:
    """The first line of a report: the verdict, the roles judged, what was not there, and why it is open if it is."""
    roles = list(dict.fromkeys(p.role for p in every if identified(p)))
    notes = []
    unknown = sum(not identified(p) for p in every)
    if unknown:
        notes.append(f"{unknown} of {len(every)} not identified")
    diffusions = [p for p in every if p.role == "diffusion"]
    if not diffusions and {"text_encoder", "vae"} & set(roles):
        notes.append("no diffusion model given")
    if any(slots_of(p.card) for p in diffusions) and "text_encoder" not in roles:
        notes.append("no text encoder given")
    if any(has_latent(p) for p in diffusions) and "vae" not in roles:
        notes.append("no VAE given")
    if outcome == "unknown" and not unknown:
        notes += [n.why for n in not_checked if n.blocks][:1]
    named = ", ".join(r.replace("_", " ") for r in roles) or "nothing identified"
    return f"{outcome} ({'; '.join(x for x in (named, ', '.join(notes)) if x)})"


def has_latent(part: Part) -> bool:
    """Whether a diffusion model works on latents that a VAE makes."""
    latent = part.card.get("latent") or {}
    return bool(latent.get("space")) and latent.get("space") != "pixel"


def pending(every: Sequence[Part], settings: Mapping[str, str]) -> list[NotChecked]:
    """What no check looks at yet, with the settings given in vain; and roles that nothing compares yet."""
    roles = {p.role for p in every}
    out = []
    for rule, needs, keys, why in _PENDING:
        given = [f"{k}={settings[k]}" for k in keys if k in settings]
        if given or not needs or roles & set(needs):
            if not given and rule in ("host/torch", "lora/strength", "workflow/sampling", "workflow/size"):
                continue
            out.append(NotChecked(rule, f"{why} ({', '.join(given)} not read)" if given else why))
    # An adapter beside a base is a pair that some check ought to compare.
    for part in every:
        if part.role in _JUDGED or part.role in _ARCHITECTURE_ENOUGH or part.role in _APART or part.role == "unknown":
            continue
        rule = "adapter/match"
        why = f"{part.fields['name']}: how a {label(part.role)} fits its base is not compared yet"
        out.append(NotChecked(rule, why, blocks="diffusion" in roles))
    return out
