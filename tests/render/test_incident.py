"""The incident report: what its first lines say, that it stays inert in every format, and that it gives nobody away."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from compatkit.checks.diagnosis import Cause
from compatkit.render.catalogue import catalogue, folder, languages, parse
from compatkit.render.diagram import diagram
from compatkit.render.document import as_json
from compatkit.render.incident import Incident, incident_document, incident_html, incident_markdown, labels
from compatkit.render.markdown import check_markdown
from compatkit.render.redact import Redactor
from compatkit.render.templating import environment
from compatkit.vocabulary import Finding, Report
from tests.render.reports import HOSTILE, component, report

ANY_TEXT = st.text(st.characters(codec=None), max_size=60) | st.sampled_from(HOSTILE)
FORBIDDEN = {"\u202e", "\x1b", "\x00", "\r"}


def incident(given: Report, causes: list[Cause] | None = None) -> Incident:
    return Incident(given, {"some": "Some Model"}, causes, "compatkit report x", {"python": "3.11"})


def first_lines(given: Report, causes: list[Cause] | None = None) -> list[str]:
    return incident_markdown(incident(given, causes)).split("\n")[:5]


def test_the_first_five_lines_of_a_failure_say_what_to_do() -> None:
    lines = first_lines(report())
    assert lines[0].startswith("**FAIL**")
    assert "2560" in lines[1]
    assert "cannot be multiplied" in lines[2]
    assert "Use plain." in lines[3]
    assert "2 points" in lines[4]


def test_the_first_lines_of_a_pass_and_of_an_unknown_verdict() -> None:
    passed = replace(report(verdict="pass"), findings=(), not_checked=())
    lines = first_lines(passed)
    assert lines[0].startswith("**PASS**")
    assert "Nothing needs to change" in lines[3]
    assert "nothing was left out" in lines[4]
    unknown = replace(report("why it is open", verdict="unknown"), findings=())
    lines = first_lines(unknown)
    assert lines[0].startswith("**UNKNOWN**")
    assert "why it is open" in lines[1]
    assert "another runtime" in lines[3]
    assert "this is no yes" in lines[3]
    nameless = replace(unknown, components=(component(role="unknown", family=None),))
    assert "`--assume FILE=FAMILY`" in first_lines(nameless)[3]
    warned = replace(report("cfg is too high", "warning", verdict="pass"))
    lines = first_lines(warned)
    assert "It runs, with a warning: cfg is too high" in lines[1]
    part = replace(passed, headline="pass (diffusion; no text encoder given)")
    assert "Name the other files of the set" in first_lines(part)[3]


def test_a_line_of_the_log_that_a_finding_explains_stands_in_front() -> None:
    seen = Cause("encoder/width", 1.0, "RuntimeError: shapes", {}, "m", "f", 3, True)
    lines = first_lines(report(), [seen])
    assert "`RuntimeError: shapes` (in the log; this explains it)" in lines[2]
    alone = Cause("host/torch", 0.5, "CUDA error: no kernel image", {}, "m", "Another torch.")
    passed = replace(report(verdict="pass"), findings=())
    lines = first_lines(passed, [alone])
    assert "no kernel image` (in the log; no finding explains it)" in lines[2]
    assert "Another torch." in lines[3]


def test_the_two_facts_stand_side_by_side() -> None:
    text = incident_markdown(incident(report()))
    assert "| `plain.safetensors` | `plain.gguf` |" in text
    assert "| **2560** | **2304** |" in text


def test_json_holds_check_digests_and_causes() -> None:
    document = incident_document(incident(report(), []))
    assert document["check"]["verdict"] == "fail"
    assert [len(h["sha256"]) for h in document["headers"]] == [64, 64]
    assert document["causes"] == []
    assert incident_document(incident(report()))["causes"] is None


def test_the_digest_is_of_the_tensors_and_not_of_the_name() -> None:
    tensors = component().tensors
    one, two = component("a", tensors=tensors), component("b", tensors=tensors)
    given = replace(report(), components=(one, two, component("c")))
    digests = [incident(given).digest(c) for c in given.components]
    assert digests[0] == digests[1] != digests[2]


class _Page(HTMLParser):
    """Collects what a browser would run, load or follow."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.pictures: list[str] = []
        self.attributes: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":  # a picture of a smoke test: data, never an address
            self.pictures.append(str(dict(attrs)["src"]))
            self.attributes |= {name for name, _ in attrs} - {"src"}
            return
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(text: str) -> _Page:
    found = _Page()
    found.feed(text)
    found.close()
    assert found.open == []
    return found


def harmless(text: str) -> None:
    found = page(text)
    assert not found.tags & {"script", "img", "iframe", "object", "embed", "link", "a", "form", "base", "foreignobject"}
    assert all(re.fullmatch(r"data:image/(png|svg\+xml);base64,[\w+/=]+", p) for p in found.pictures)
    assert not {a for a in found.attributes if a.startswith("on")} | found.attributes & {"src", "href", "xlink:href"}
    assert not FORBIDDEN & set(text)


def test_the_page_is_self_contained_and_has_what_a_reader_needs() -> None:
    text = incident_html(incident(report(), []))
    harmless(text)
    assert text.startswith("<!DOCTYPE html>")
    assert "url(" not in text
    assert "@import" not in text
    for wanted in ("prefers-color-scheme: dark", "@media print", "default-src 'none'", "<details>", 'lang="en"'):
        assert wanted in text
    assert re.search(r'<path d="[^"]+" class="broken"/>', text)
    assert "gives 2304" in text


def test_a_sound_set_has_no_broken_junction() -> None:
    sound = replace(report(verdict="pass"), findings=())
    drawn = diagram(sound, {}, str)
    assert drawn is not None
    assert [a.broken for a in drawn.arrows] == [False]
    assert diagram(replace(sound, components=sound.components[:1]), {}, str) is None


def test_an_encoder_too_many_feeds_nothing() -> None:
    surplus = Finding("encoder/surplus", "info", (1,), "one too many")
    drawn = diagram(replace(report(), findings=(surplus,)), {}, str)
    assert drawn is not None
    assert drawn.arrows == []


def test_of_two_encoders_no_width_is_claimed_that_is_not_known() -> None:
    model = component("d", facts={"context_dim": 4096})
    encoders = [component(f"e{w}", "text_encoder", facts={"width": w}) for w in (4096, 768)]
    drawn = diagram(replace(report(), findings=(), components=(model, *encoders)), {}, str)
    assert drawn is not None
    assert [a.labels for a in drawn.arrows] == [("4096",), ()]


def test_adapters_are_counted() -> None:
    row = {"component": 1, "base": 0, "runtime": "r", "keys": 480, "keys_matched": 470, "modules": 240}
    given = replace(report(), adapters=(row | {"modules_matched": 235, "verdict": "partial"},))
    assert "| 2 → 1 | r | 470/480 | 235/240 | partial |" in incident_markdown(incident(given))
    assert "<td>470/480</td><td>235/240</td>" in incident_html(incident(given))


def test_a_fix_is_said_once() -> None:
    one = report().findings[0]
    given = replace(report(), findings=(replace(one, fix="Use A. It fits."), replace(one, fix="Use A.")))
    assert incident(given).fixes() == ["Use A. It fits."]


def test_a_hundred_components_are_counted_and_not_all_drawn() -> None:
    many = replace(report(), findings=(), components=tuple(component(f"{i}") for i in range(100)))
    drawn = diagram(many, {}, str)
    assert drawn is not None
    assert len(drawn.boxes) + drawn.left_out == 100
    assert len(drawn.boxes) <= 8


@given(ANY_TEXT)
def test_html_stays_inert(text: str) -> None:
    harmless(incident_html(incident(report(text), [Cause("x/y", 0.5, text, {}, text, text)])))


@given(ANY_TEXT)
def test_markdown_stays_inert(text: str) -> None:
    for made in (
        incident_markdown(incident(report(text), [Cause("x/y", 0.5, text, {}, text, text)])),
        check_markdown(report(text), {}),
    ):
        assert not FORBIDDEN & set(made)
        plain = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", made)  # what stands in code is text
        assert not re.search(r"(?<!\\)\]\(|(?<!\\)<\w", plain)
        headings = [line for line in made.split("\n") if line.startswith("#")]
        assert all(re.match(r"#{2,3} [A-Z]|### (error|info|warning): `", line) for line in headings)


def test_ten_megabytes_of_name_stay_bounded() -> None:
    big = incident(report("x" * 10_000_000))
    assert len(incident_markdown(big)) < 100_000
    assert len(incident_html(big)) < 200_000


def test_a_page_of_many_tensors_stays_bounded() -> None:
    one = component().tensors["dit.safetensors"]
    given = replace(report(), components=(component(tensors={f"t{i}": one for i in range(50_000)}),))
    text = incident_html(incident(given))
    assert "50000 tensors" in text
    assert len(text) < 200_000


# -- languages --------------------------------------------------------------------------------------------------------


def messages() -> set[str]:
    out = set(labels())
    for name in ("report.md.j2", "report.html.j2", "diff.md.j2"):
        text = (folder("templates") / name).read_text(encoding="utf-8")
        out |= {str(m) for _, _, m in environment(False).extract_translations(text) if m}  # type: ignore[attr-defined]
    return out


@pytest.mark.parametrize("language", [x for x in languages() if x != "en"])
def test_every_message_of_the_frame_is_translated(language: str) -> None:
    known = catalogue(language).messages
    assert messages() - set(known) == set()
    assert all(known.values())


def test_french_changes_the_frame() -> None:
    text = incident_markdown(incident(report()), "fr")
    assert "Ce qui ne concorde pas" in text
    assert "What disagrees" not in text
    assert 'lang="fr"' in incident_html(incident(report()), "fr")


def test_catalogues_are_read_as_po_files() -> None:
    text = (
        '# c\nmsgid ""\nmsgstr "Language: x\\n"\n\nmsgid "a"\n"b"\nmsgstr ""\n"c \\"d\\"\\n"\n\nmsgid "e"\nmsgstr "f"\n'
    )
    assert parse(text) == {"ab": 'c "d"\n', "e": "f"}


# -- what is sent to strangers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ('File "/home/ada lovelace/ComfyUI/nodes.py", line 5', "ada"),
        (r"C:\Users\ada\models\x.gguf is broken", "ada"),
        ("open /media/ada/disk/x.gguf failed", "ada"),
        ("token hf_abcdefghij0123 refused", "hf_abc"),
        ("Authorization: Bearer abcdef0123456789", "abcdef"),
        ("https://ada:pass@host/x.gguf?token=s3cret#s3cret", "s3cret"),
        ("https://ada:pass@host/x.gguf?token=s3cret", "ada"),
        ("api_key=abcdef012345", "abcdef"),
        ("signed in as <ada.l+x@mail.example.org>", "ada"),
    ],
)
def test_names_and_secrets_are_taken_out(text: str, hidden: str) -> None:
    assert hidden not in Redactor().text(text)
    if "/" not in text.partition("://")[0] and "\\" not in text:
        assert hidden not in Redactor(full_paths=True).text(text)


@pytest.mark.parametrize(
    "text",
    [
        "mat1 and mat2 (512x7680 and 12288x4096)",
        "a/b ratio 1/2",
        "width 2560, 3/4 of it",
        "comfyui@0.3.76 reads name@v2.safetensors and a @ b",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert Redactor().text(text) == text


def test_paths_become_base_names(tmp_path: Path) -> None:
    path = tmp_path / "my models" / "x.gguf"
    redactor = Redactor([str(path)])
    assert redactor.source(str(path)) == "x.gguf"
    assert redactor.text(f"{path} does not exist") == "x.gguf does not exist"
    assert str(tmp_path) in Redactor([str(path)], full_paths=True).text(f"{path} does not exist")
    assert redactor.source("https://u:p@h/a/x.gguf?token=1") == "https://h/a/x.gguf"


def test_a_redacted_report_says_nothing_of_the_place(tmp_path: Path) -> None:
    where = str(tmp_path / "secret place")
    finding = Finding("file/x", "error", (0,), f"{where}/x.gguf is cut", {}, f"Look at {where}", {"path": f"{where}/x"})
    one = replace(component("x"), source=f"{where}/x.gguf", reason=f"{where} was moved")
    given = replace(report(), components=(one,), findings=(finding,), headline=where)
    shown = Redactor([f"{where}/x.gguf"]).report(given)
    for text in (
        as_json(incident_document(incident(shown))),
        incident_markdown(incident(shown)),
        incident_html(incident(shown)),
    ):
        assert "secret" not in text
        assert "x.gguf" in text
