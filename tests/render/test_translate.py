"""What the core rules say in French: complete, with the same facts in it, and inert."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from compatkit.knowledge.store import load
from compatkit.render.catalogue import catalogue, languages
from compatkit.render.translate import CORE, Sayer, numbered, texts, translated
from compatkit.vocabulary import Finding, NotChecked
from tests.render.reports import HOSTILE, report

OTHERS = [x for x in languages() if x != "en"]


def core_texts() -> list[str]:
    found = [t for r in load().checks() if str(r["id"]).partition("/")[0] in CORE for t in texts(r)]
    return list(dict.fromkeys(found))


def test_the_places_of_a_template_are_numbered() -> None:
    assert numbered("{{ a.name }} takes\n {{ b }}; {{a.name}} is  {{ c ? 1 : 2 }}.") == "{1} takes {2}; {1} is {3}."


@pytest.mark.parametrize("language", OTHERS)
def test_nearly_all_of_what_core_rules_say_is_translated(language: str) -> None:
    """New rules may be ahead of the translator; `python -m reports.locale.update` lists what is missing."""
    known = catalogue(language).messages
    missing = [t for t in core_texts() if not known.get(t)]
    assert len(missing) <= len(core_texts()) // 10, missing


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_has_all_places_of_its_sentence(language: str) -> None:
    for source, target in catalogue(language).messages.items():
        assert set(re.findall(r"\{\d+\}", target)) == set(re.findall(r"\{\d+\}", source)), source


def said(template: str, values: list[str]) -> str:
    return " ".join(re.sub(r"\{(\d+)\}", lambda m: values[int(m[1]) - 1], template).split())


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("template", core_texts())
def test_what_stands_in_the_places_comes_through(language: str, template: str) -> None:
    target = catalogue(language).messages.get(template)
    if not target:
        pytest.skip("not translated yet")
    values = [f"v{i}.gguf" for i in range(1, 12)]
    assert Sayer(language).sentence(said(template, values)) == said(target, values)


def test_an_empty_place_leaves_no_gap() -> None:
    assert Sayer("fr").sentence("Use Qwen3-4B.") == "Prenez Qwen3-4B."
    assert Sayer("fr").sentence("Use one of these instead - A, B.") == "Prenez l'un de ceux-ci - A, B."


def test_a_report_is_said_in_french_and_its_facts_stay() -> None:
    message = "a.gguf (A) makes latents of 16 channels; b.safetensors (B) takes 4."
    finding = Finding(
        "vae/latent-channels", "error", (0, 1), message, {"comfyui": "stays"}, "Get the model file itself."
    )
    other = replace(finding, rule="own/rule", message="Use my thing here.", fix="Use that.")
    given_ = replace(report(), findings=(finding, other), not_checked=(NotChecked("lora/none", "no LoRA given"),))
    shown = translated(given_, "fr")
    assert shown.findings[0].message == "a.gguf (A) produit des latents de 16 canaux ; b.safetensors (B) en accepte 4."
    assert shown.findings[0].predicts == {"comfyui": "stays"}
    assert shown.findings[1] == other
    assert shown.not_checked[0].why == "pas de LoRA donné"
    assert "encodeur de texte" in shown.headline
    assert translated(given_, "en") is given_


def test_what_rests_on_the_users_word_is_still_said() -> None:
    text = "Get the model file itself. (This rests on your word that a.gguf is A.)"
    assert Sayer("fr").sentence(text) == (
        "Prenez le fichier du modèle lui-même. (This rests on your word that a.gguf is A.)"
    )


@given(st.text(max_size=200) | st.sampled_from(HOSTILE))
def test_no_text_breaks_it_or_gets_lost(text: str) -> None:
    assume(text not in Sayer("fr").catalogue.messages)  # "none" is a word of the rules' own: it is translated
    for sentence in (text, f"{text} is corrupt: {text}", f"{text} is {text}; {text} ({text}) was trained with {text}."):
        shown = Sayer("fr").sentence(sentence)
        assert " ".join(text.split()) in " ".join(shown.split())


def test_long_sentences_take_no_time() -> None:
    assert Sayer("fr").sentence("x (" * 1_000_000) == "x (" * 1_000_000
    Sayer("fr").sentence(("a (b) is " * 400)[:3_999])
