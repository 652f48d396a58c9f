"""A model that makes several latents is held against every VAE in the one it decodes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from compatkit.checks.parts import vae_of
from compatkit.checks.vaes import _meant_for

OURS: dict[str, Any] = {"spaces": ["film"], "channels": 128, "ndim": 5}
CARD = {"latent": {"space": "film", "more": [{"space": "sound", "channels": 8, "ndim": 4}]}}


@pytest.mark.parametrize(("spaces", "channels", "ndim"), [(["sound"], 8, 4), (["film"], 128, 5), (["other"], 128, 5)])
def test_the_latent_is_the_one_the_vae_decodes(spaces: list[str], channels: int, ndim: int) -> None:
    found = _meant_for({"spaces": spaces}, OURS, SimpleNamespace(card=CARD))  # type: ignore[arg-type]
    assert (found["channels"], found["ndim"]) == (channels, ndim)


def test_a_model_of_one_latent_is_left_as_it_is() -> None:
    assert _meant_for({"spaces": ["sound"]}, OURS, SimpleNamespace(card={})) == OURS  # type: ignore[arg-type]


class _Cards:
    """Two VAEs of one latent space."""

    def has_family(self, family: str) -> bool:
        return family in ("film_vae", "theirs")

    def family(self, family: str) -> dict[str, Any]:
        return {"latent": {"space": "film"}}


def test_the_vae_to_get_is_the_one_published_for_the_model_if_it_decodes_that_space() -> None:
    named = {"latent": {"space": "film", "vae": "theirs"}}
    assert vae_of(named, "film", _Cards()) == "theirs"  # type: ignore[arg-type]
    assert vae_of(named, "sound", _Cards()) == "sound_vae"  # type: ignore[arg-type]
    assert vae_of(CARD, "film", _Cards()) == "film_vae"  # type: ignore[arg-type]
