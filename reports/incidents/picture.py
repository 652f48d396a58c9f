"""Takes the picture of a worked report that the README shows: `make picture` (needs Playwright and a Chromium).

Not part of `make incidents`: a picture changes with the fonts of the machine that takes it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from compatkit.render.incident import incident_html
from reports.incidents import make

#: The report that is shown, and how much of its page.
SHOWN, WIDTH, HEIGHT = "O1", 1000, 425


def main() -> None:
    """Write `reports/incidents/O1.png`."""
    from playwright.sync_api import sync_playwright

    entry = next(e for e in make.incidents() if e["id"] == SHOWN)
    with tempfile.TemporaryDirectory(prefix="compatkit-incident-") as name, sync_playwright() as p:
        _, incident = make.reported(entry, Path(name))
        page_file = Path(name) / "page.html"
        page_file.write_text(incident_html(incident), encoding="utf-8")
        installed = next((b for n in ("chromium", "chromium-browser", "google-chrome") if (b := shutil.which(n))), None)
        browser = p.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.screenshot(path=str(make.HERE / f"{SHOWN}.png"))
        browser.close()


if __name__ == "__main__":
    main()
