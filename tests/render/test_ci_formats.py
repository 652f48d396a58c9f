"""SARIF and JUnit: valid, complete, on the right lines, and inert whatever a file is called."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from compatkit.render.junit import check_junit
from compatkit.render.sarif import address, check_sarif
from tests.render.reports import HOSTILE, report
from tests.support.sarif import SCHEMA

RULES = {"encoder/width": {"id": "encoder/width", "title": "T", "why": "Because.", "level": "error", "fix": "Do."}}
ANY_TEXT = st.text(st.characters(codec=None), max_size=60) | st.sampled_from(HOSTILE)


def sarif(text: str = "plain", places: bool = True) -> dict[str, object]:
    document = json.loads(check_sarif(report(text, places=places), RULES))
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    run: dict[str, object] = document["runs"][0]
    return run


def test_the_schema_refuses_what_is_wrong() -> None:
    document = json.loads(check_sarif(report(), RULES))
    document["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_a_result_stands_on_the_line_that_names_the_file_and_carries_the_rules_help() -> None:
    run = sarif()
    result = run["results"][0]  # type: ignore[index]
    assert result["level"] == "error"
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "stack.toml"},
        "region": {"startLine": 7},
    }
    assert "2560" in result["message"]["text"]
    assert "cannot be multiplied" in result["message"]["text"]
    rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]  # type: ignore[index]
    assert rule["id"] == "encoder/width"
    assert rule["help"]["text"].startswith("Because. Fix: Do.")
    notes = run["invocations"][0]["toolExecutionNotifications"]  # type: ignore[index]
    assert [n["level"] for n in notes] == ["note", "warning"]


def test_without_a_stack_file_a_result_stands_on_the_model_file() -> None:
    result = sarif(places=False)["results"][0]  # type: ignore[index]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "sub/plain.gguf"
    assert result["relatedLocations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "plain.safetensors"


def test_the_fingerprint_names_the_fact_and_not_the_wording() -> None:
    one = sarif()["results"][0]["partialFingerprints"]  # type: ignore[index]
    changed = report()
    reworded = replace(changed, findings=(replace(changed.findings[0], message="other words"),))
    again = json.loads(check_sarif(reworded, RULES))["runs"][0]["results"][0]["partialFingerprints"]
    other = replace(changed, findings=(replace(changed.findings[0], evidence={"context_dim": 1}),))
    third = json.loads(check_sarif(other, RULES))["runs"][0]["results"][0]["partialFingerprints"]
    assert one == again != third


def test_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert address("a b/ä.gguf") == "a%20b/%C3%A4.gguf"
    assert address(str(tmp_path / "x.gguf")) == "x.gguf"
    assert address("/elsewhere/x.gguf") == "file:///elsewhere/x.gguf"
    assert address("https://me:secret@host/x.gguf?token=abc") == "https://host/x.gguf"


@given(ANY_TEXT)
def test_sarif_stays_valid_and_shows_no_control_characters(text: str) -> None:
    sarif(text)
    sarif(text, places=False)
    raw = check_sarif(report(text), RULES)
    assert not {"\u202e", "\x1b", "\x00"} & set(raw)


def test_junit_has_a_case_for_each_check() -> None:
    root = ET.fromstring(check_junit(report()))
    suite = root[0]
    cases = {c.get("name"): c for c in suite.iter("testcase")}
    assert set(cases) == {"verdict", "encoder/width", "encoder/kind", "host/disk", "vae/latent-space"}
    failure = cases["encoder/width"].find("failure")
    assert failure is not None
    assert "cannot be multiplied" in str(failure.text)
    skipped = cases["host/disk"].find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "plain is not checked"
    assert list(cases["encoder/kind"]) == []
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "1",
        "errors": "0",
        "skipped": "2",
    }


def test_junit_fails_where_the_exit_code_does() -> None:
    warned = report(level="warning", verdict="pass")
    assert ET.fromstring(check_junit(warned)).get("failures") == "0"
    assert ET.fromstring(check_junit(warned, "warning")).get("failures") == "1"
    unknown = report(level="info", verdict="unknown")
    assert ET.fromstring(check_junit(unknown)).get("errors") == "0"
    assert ET.fromstring(check_junit(unknown, strict=True)).get("errors") == "1"


@given(ANY_TEXT)
def test_junit_stays_well_formed(text: str) -> None:
    raw = check_junit(report(text))
    root = ET.fromstring(raw.encode("utf-8"))
    assert root.get("tests") == "5"
    assert not {"\u202e", "\x1b", "\x00"} & set(raw)


def test_ten_megabytes_of_name_stay_bounded() -> None:
    big = report("x" * 10_000_000)
    assert len(check_junit(big)) < 200_000
    small = replace(big, places={}, components=(big.components[0],))
    assert len(check_junit(small)) < 200_000
    assert len(json.loads(check_sarif(big, {}))["runs"][0]["results"][0]["message"]["text"]) < 20_000
