"""The page in a real browser: it asks for nothing, it is accessible, it fits narrow screens and paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from compatkit.render.incident import Incident, incident_html
from compatkit.render.smokedir import read
from compatkit.vocabulary import Finding, Report
from tests.render.reports import HOSTILE, component, report
from tests.render.test_page import CARDS, ENTRY, cell, left

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")

ONE_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f64540"
    "0000000049454e44ae426082"
)
#: What axe-core finds of these impacts fails the test.
SERIOUS = {"serious", "critical"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        installed = next((b for n in ("chromium", "chromium-browser", "google-chrome") if (b := shutil.which(n))), None)
        try:
            made = p.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except playwright.Error as e:
            pytest.skip(f"no Chromium: {str(e).splitlines()[0]}")
        yield made
        made.close()


def full(folder: Path, text: str = "plain") -> Incident:
    """A page with everything on it that a page can have."""
    (folder / "step.png").write_bytes(ONE_PIXEL)
    (folder / "plot.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><image href='https://example.org/x.png'/></svg>"
    )
    findings = tuple(Finding("vae/x", level, (0,), text, {"comfyui": text}, text) for level in ("warning", "info"))
    cells = [cell(i, 4 - i % 5, i % 7 == 3) for i in range(30)]
    given: Report = report(text)
    lora = component(f"{text}.lora", "lora", family=None)
    vae = component(f"{text}.vae", "vae", facts={"latent_space": ["some"], "latent_channels": 16, "latent_ndim": 4})
    given = replace(
        given,
        components=(*given.components, lora, vae),
        findings=(*given.findings, *findings),
        adapters=(ENTRY | {"component": 2, "blocks": cells},),
    )
    smoke = read(left(folder), ["plain.gguf"])
    run = {"GPU": "cuda:0 Some Card", "memory": "Total VRAM 8192 MB, total RAM 999 MB"}
    return Incident(given, {"some": "Some Model"}, [], "compatkit report x", {"python": "3.11"}, smoke, run, CARDS)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    path.write_text(incident_html(full(folder)), encoding="utf-8")
    return path


def test_it_makes_no_request(browser: Any, page_file: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.html"
    text = incident_html(full(tmp_path, " ".join(HOSTILE) + "<img src=https://example.org/y.png>"))
    hostile.write_text(text, encoding="utf-8", errors="backslashreplace")
    for path in (page_file, hostile):
        page = browser.new_page()
        asked: list[str] = []
        dialogs: list[str] = []
        page.on("request", lambda r, asked=asked: asked.append(r.url))
        page.on("dialog", lambda d, dialogs=dialogs: (dialogs.append(d.message), d.dismiss()))
        page.goto(path.as_uri())
        page.wait_for_timeout(200)
        assert [url for url in asked if url != path.as_uri() and not url.startswith("data:image/")] == []
        assert dialogs == []
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_axe_finds_nothing_serious(browser: Any, page_file: Path, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (extra: dev)")
    # axe is a script: it runs beside the page's policy, which allows none
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = axe.Axe().run(page).response["violations"]
    context.close()
    serious = [f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in found if v["impact"] in SERIOUS]
    assert serious == []


def test_axe_would_find_something_serious(browser: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (extra: dev)")
    page = browser.new_page()
    page.set_content("<p style='color:#bbb;background:#fff'>pale</p><img src='data:,'>")
    assert {v["impact"] for v in axe.Axe().run(page).response["violations"]} & SERIOUS
    page.close()


@pytest.mark.parametrize("width", [320, 390, 768])
def test_it_fits_narrow_screens(browser: Any, page_file: Path, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_the_keyboard_opens_tables_and_scrolls_what_is_wide(browser: Any, page_file: Path) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    opened = "document.querySelectorAll('details[open]').length"
    before = page.evaluate(opened)
    for _ in range(40):
        page.keyboard.press("Tab")
        closed = "document.activeElement.tagName === 'SUMMARY' && !document.activeElement.parentElement.open"
        if page.evaluate(closed):
            page.keyboard.press("Enter")
            break
    assert page.evaluate(opened) == before + 1
    wide = "[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0 && e.getAttribute('aria-label'))"
    assert page.evaluate(wide)
    page.close()


def test_what_breaks_is_told_without_colour(browser: Any, page_file: Path) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    label = page.locator("svg title").text_content()
    assert "✗" in label
    assert "gives 2304" in label
    assert page.locator("svg text.broken", has_text="✗").count() >= 1
    page.close()


def test_paper_is_white_in_dark_mode_too(browser: Any, page_file: Path) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(page_file.as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    context.close()
