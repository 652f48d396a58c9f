"""The worked incident reports say what they must, and are what `make incidents` writes today."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from compatkit.vocabulary import Report
from reports.incidents import make

HERE = Path(make.__file__).parent
Made = list[tuple[dict[str, Any], Report, str]]


@pytest.fixture(scope="module")
def made() -> Made:
    return list(make.made())


def test_each_report_is_up_to_date(made: Made) -> None:
    written = {entry["id"] + ".md": text for entry, _, text in made}
    written["README.md"] = make.overview([(entry, report) for entry, report, _ in made])
    stale = [name for name, text in written.items() if (HERE / name).read_text(encoding="utf-8") != text]
    assert stale == [], "run `make incidents`"
    assert {p.name for p in HERE.glob("*.md")} == set(written)


def test_each_report_says_what_it_must(made: Made) -> None:
    for entry, report, text in made:
        wanted = entry["expect"]
        errors = {f.rule for f in report.findings if f.level == "error"}
        assert report.verdict == wanted["verdict"], entry["id"]
        assert set(wanted["rules"]) <= errors or not wanted["rules"], (entry["id"], errors)
        assert bool(errors) == (wanted["verdict"] == "fail")
        assert set(wanted.get("warns", ())) <= {f.rule for f in report.findings if f.level == "warning"}
        for word in wanted["says"]:
            assert word in text, (entry["id"], word)
        assert "**Do:**" in text.split("\n")[3]


def test_a_quoted_error_is_explained_by_a_finding(made: Made) -> None:
    quoted = [(entry, text) for entry, _, text in made if entry.get("log")]
    assert quoted
    for entry, text in quoted:
        if entry["expect"]["verdict"] == "pass":
            continue
        assert "in the log; this explains it" in text.split("\n")[2], entry["id"]


def test_nothing_in_them_changes_with_the_day_the_machine_or_the_version(made: Made) -> None:
    for entry, _, text in made:
        assert not re.search(r"/tmp|/home|compatkit-incident|0\.1\.0", text), entry["id"]
        assert "## Environment" not in text
