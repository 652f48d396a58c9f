"""Several sets at once: a model and a VAE that each have their own counterpart are not held against each other."""

from __future__ import annotations

from tests.checks.fake import check, component, rules_of

SETS = {"z_image_turbo": "flux1_vae", "sdxl": "sdxl_vae"}


def test_each_model_with_its_own_vae_passes() -> None:
    report = check(*(component(f) for pair in SETS.items() for f in pair))
    assert rules_of(report, "error") == []


def test_a_model_without_a_vae_of_its_own_is_held_against_those_given() -> None:
    report = check(component("z_image_turbo"), component("sdxl"), component("flux1_vae"))
    assert rules_of(report, "error") == ["vae/latent-channels"]
    assert [f.components for f in report.findings if f.level == "error"] == [(1, 2)]


def test_a_vae_that_fits_no_model_is_an_error() -> None:
    report = check(component("z_image_turbo"), component("flux1_vae"), component("sdxl_vae"))
    assert rules_of(report, "error") == ["vae/latent-channels"]
