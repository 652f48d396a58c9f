"""The last stage of a trial: the latent decoded and judged, and a test card sent through the VAE and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compatkit.smoke.channels import channel_plot
from compatkit.smoke.draw import save_png
from compatkit.smoke.latents import colour_card, judge_latent, judge_round_trip
from compatkit.smoke.member import Gave, Member, Runner, at, put
from compatkit.smoke.picture import judge_picture

if TYPE_CHECKING:
    import torch

    from compatkit.smoke.model import Model

#: The side of the test card: small, as a CPU does it, and large enough for the picture to be judged.
CARD = 128


def decode(trial: Runner, member: Member, model: Model, gave: Gave) -> None:
    """Decode what the model made; without that, noise with the statistics that the VAE expects."""
    inputs = model.inputs(call="decode")
    path = model.built.places("decode").get("latent")
    if path is None:
        trial.emit(
            {"event": "note", "component": member.index, "why": "its decoder takes no latent that is known here"}
        )
        return
    wanted = at(inputs, path)
    made = None if "latent" in trial.options.swap else _shaped(gave.latent, tuple(wanted.shape))
    given = "the latent of the model" if made is not None else "a made-up latent"
    if gave.latent is not None and made is None and "latent" not in trial.options.swap:
        why = f"the model's latent {list(gave.latent.shape)} is not unpacked here: a made-up one was decoded"
        trial.emit({"event": "note", "component": member.index, "why": why})
    if made is None:
        made = wanted.float()
    else:
        judged = judge_latent(made.detach().float().cpu().numpy())
        trial.emit({"event": "latent", "component": member.index, **judged.statistics(), "fields": judged.fields()})
        _write(trial, channel_plot(judged, title="The latent's channels"), "latent.svg")
    put(inputs, path, unscaled(made, model).to(wanted))
    out = trial.ran(member, model, inputs, gave, given, call="decode")
    if out is None:
        return
    picture = _picture(out)
    if picture is None:
        return
    gave.picture = picture
    found = judge_picture(picture)
    saved = _save(trial, picture, "picture.png")
    trial.emit({"event": "picture", "component": member.index, "given": given, "path": saved,
                "statistics": found.statistics(), "fields": found.fields(saved)})  # fmt: skip
    if found.verdict in ("nan", "black", "constant") and not gave.broken and given == "the latent of the model":
        gave.broken, gave.where = f"the picture is {found.verdict}", member.index


def round_trip(trial: Runner, member: Member, model: Model, gave: Gave, *, back: bool = True) -> None:
    """Encode a test card and, with `back`, decode it again."""
    import torch

    inputs = model.inputs(call="encode")
    path = model.built.places("encode").get("image")
    if path is None:
        return
    wanted = at(inputs, path)
    card = colour_card(CARD)
    image = torch.from_numpy(card).permute(2, 0, 1) * 2 - 1
    if wanted.dim() not in (4, 5) or wanted.shape[1] != 3:
        return
    image = image[None] if wanted.dim() == 4 else image[None, :, None].expand(-1, -1, wanted.shape[2], -1, -1)
    put(inputs, path, image.contiguous().to(wanted))
    latent = trial.ran(member, model, inputs, gave, "the test card", call="encode")
    if latent is None or not back:
        return
    into = model.inputs(call="decode")
    place = model.built.places("decode").get("latent")
    if place is None:
        return
    put(into, place, latent.to(at(into, place)))
    out = trial.ran(member, model, into, gave, "the test card's latent", call="decode")
    picture = None if out is None else _picture(out)
    if picture is None or picture.shape != card.shape:
        return
    found = judge_round_trip(card, picture)
    saved = _save(trial, picture, "round-trip.png")
    trial.emit({"event": "round-trip", "component": member.index, "path": saved, "fields": found.fields()})


def _write(trial: Runner, text: str, name: str) -> None:
    if not trial.options.save or trial.options.swap:
        return
    try:
        Path(trial.options.save).mkdir(parents=True, exist_ok=True)
        (Path(trial.options.save) / name).write_text(text, encoding="utf-8")
    except OSError as e:
        trial.emit({"event": "note", "component": -1, "why": f"{name} could not be saved: {e}"})


def _save(trial: Runner, picture: Any, name: str) -> str:
    if not trial.options.save or trial.options.swap:
        return ""
    folder = Path(trial.options.save)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return save_png(picture, folder / name)
    except (OSError, ImportError) as e:
        trial.emit({"event": "note", "component": -1, "why": f"{name} could not be saved: {e}"})
        return ""


def _picture(out: torch.Tensor) -> Any:
    """Values -1 … 1 of a decoder as a picture 0 … 1, [height, width, 3]; None if it makes no pictures."""
    values = out.detach().float().cpu()
    if values.dim() == 5:  # the last frame: the first of a film is decoded without neighbours
        values = values[:, :, -1]
    if values.dim() != 4 or values.shape[1] < 3:
        return None
    return (values[0, :3].permute(1, 2, 0) / 2 + 0.5).numpy()


def unscaled(latent: torch.Tensor, model: Model) -> torch.Tensor:
    """A latent of a sampler's scale as the decoder takes it, by the factors of the VAE's class."""
    import torch

    config = model.built.spec.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if isinstance(mean, list | tuple) and isinstance(std, list | tuple) and len(mean) == latent.shape[1]:
        sides = [1, -1, *[1] * (latent.dim() - 2)]
        return latent * torch.tensor(std).view(sides).to(latent) + torch.tensor(mean).view(sides).to(latent)
    factor, shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0
    return latent / float(factor) + float(shift)


def _shaped(latent: torch.Tensor | None, wanted: tuple[int, ...]) -> torch.Tensor | None:
    """A model's latent in the decoder's axes: frames added or left out, tokens put back into a plane; or None."""
    if latent is None:
        return None
    channels = wanted[1]
    if latent.dim() == 3 and latent.shape[0] == 1:
        return _unpacked(latent, channels, len(wanted))
    if latent.dim() == 4 and latent.shape[0] == channels and latent.shape[1] == 1:
        latent = latent[None]  # [channels, frames, height, width]
    if latent.dim() == len(wanted) - 1 and latent.shape[0] == channels:
        latent = latent[None]
    if latent.dim() == 5 and len(wanted) == 4 and latent.shape[2] == 1:
        latent = latent[:, :, 0]
    if latent.dim() == 4 and len(wanted) == 5:
        latent = latent[:, :, None]
    return latent if latent.dim() == len(wanted) and latent.shape[1] == channels else None


def _unpacked(latent: torch.Tensor, channels: int, rank: int) -> torch.Tensor | None:
    """Tokens of patches (channel, row, column) of a square picture back into a plane."""
    _, tokens, width = latent.shape
    side = round(tokens**0.5)
    patch = round((width / channels) ** 0.5) if width >= channels else 0
    if side * side != tokens or not patch or channels * patch * patch != width:
        return None
    plane = latent.reshape(1, side, side, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    plane = plane.reshape(1, channels, side * patch, side * patch)
    return plane if rank == 4 else plane[:, :, None]
