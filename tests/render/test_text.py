"""The table of a set: a file's size stands once, and a narrow terminal gets lines that fit it."""

from __future__ import annotations

from typing import Any

import pytest

from compatkit.render.incident import Incident, incident_html, incident_markdown
from compatkit.render.markdown import check_markdown
from compatkit.render.style import TERMINAL, Paint, shortened, sizes
from compatkit.render.text import check_text
from compatkit.vocabulary import Finding, Report, Tensor
from tests.render.reports import component

NAME = "a-checkpoint-with-a-long-name-of-many-words.safetensors"


def checkpoint() -> Report:
    size: dict[str, Any] = {"size": 6_900_000_000, "title": "a model"}
    inside = {"vae.conv_in.weight": Tensor("BF16", (8, 8), 128)}
    parts = (
        component(NAME, **size), component(NAME, "vae", tensors=inside, **size), component("other.gguf", "vae", **size)
    )  # fmt: skip
    words = "so many words that they fill more than one line of the terminal whatever its width is " * 2
    finding = Finding("vae/latent-space", "error", (0, 2), words, {}, words)
    return Report("fail", ("diffusion", "vae"), parts, (finding,), not_checked=(), headline="fail (diffusion, vae)")


def test_the_size_of_a_file_stands_with_the_first_of_its_parts() -> None:
    report = checkpoint()
    incident = Incident(report, {}, None, "compatkit report", {})
    for text in (
        check_text(report, Paint(False), {}),
        check_markdown(report, {}).replace("\\", ""),
        incident_markdown(incident).replace("\\", ""),
    ):
        table = text[: text.index("vae/latent-space")] if "**Do:**" not in text else text
        assert table.count("6.9 GB") == 2
        assert table.count("in [1]") == 1
    assert [r.count("in [1]") for r in incident_html(incident).split("<tr>") if '<td class="n">' in r] == [0, 1, 0]
    french = incident_markdown(incident, "fr").replace("\\", "")
    assert "dans [1]" in french


def test_two_files_of_one_name_each_have_their_size() -> None:
    folders = (component(NAME, size=1000), component(NAME, "vae", size=2000), component(NAME, "vae", size=1000))
    assert sizes(folders) == ["1.0 kB", "2.0 kB", "1.0 kB"]


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_on_a_terminal_no_line_is_wider_and_nothing_is_lost(columns: int) -> None:
    token = TERMINAL.set(columns)
    try:
        text = check_text(checkpoint(), Paint(False), {"some": "a title of several words in brackets (or another)"})
    finally:
        TERMINAL.reset(token)
    assert max(map(len, text.splitlines())) <= columns
    assert text.count("a title of several words in brackets (or another)") == 3
    assert (NAME in text) == (columns > 60)


def test_a_name_is_cut_in_the_middle() -> None:
    assert shortened("short.gguf", 10) == "short.gguf"
    cut = shortened(NAME, 20)
    assert len(cut) == 20
    assert (cut[:5], cut[-5:]) == (NAME[:5], NAME[-5:])
