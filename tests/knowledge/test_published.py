"""Where files are published: names of families, files and repositories, and nothing that a verdict rests on."""

from __future__ import annotations

import re

from compatkit.knowledge.store import load


def test_every_entry_is_a_family_a_file_and_a_repository() -> None:
    published = load().table("published")
    assert len(published) > 30
    for family, (file, repository) in published.items():
        assert load().has_family(family), family
        assert load().family(family)["role"] in ("text_encoder", "vae", "clip_vision"), family
        assert file.endswith(".safetensors")
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", repository)


def test_a_family_that_models_ask_for_most_is_among_them() -> None:
    knowledge = load()
    asked = [str(e["kind"]) for m in knowledge.members() for e in knowledge.family(m).get("text_encoders") or ()]
    often = {kind for kind in asked if asked.count(kind) >= 8}
    in_checkpoints_only = {"clip_h"}
    assert often - in_checkpoints_only <= set(knowledge.table("published"))
