"""SARIF and JUnit against the schemas that others published, and every JSON against the one that `schema` prints.

The published schemas are not ours to ship: $COMPATKIT_SCHEMAS names a folder with `sarif-schema-2.1.0.json` (OASIS) and
`junit-10.xsd` (Jenkins' xunit plugin). CI fetches both; without the folder these tests are skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import pytest
from click.testing import CliRunner
from hypothesis import given
from msgspec.structs import replace

from compatkit import api
from compatkit.checks.diagnosis import Cause
from compatkit.cli import cli
from compatkit.render.diff import difference, difference_document
from compatkit.render.document import as_json, check_document
from compatkit.render.incident import Incident, incident_document
from compatkit.render.junit import check_junit
from compatkit.render.sarif import check_sarif
from compatkit.render.schema import schema
from compatkit.render.smokedir import Picture, Smoke
from tests.render.reports import HOSTILE, report
from tests.render.test_ci_formats import ANY_TEXT


def published(name: str) -> Path:
    folder = os.environ.get("COMPATKIT_SCHEMAS")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip(f"$COMPATKIT_SCHEMAS names no folder with {name}")
    return Path(folder) / name


@pytest.mark.parametrize("places", [True, False])
def test_sarif_is_valid_by_the_standards_own_schema(places: bool) -> None:
    text = published("sarif-schema-2.1.0.json").read_text(encoding="utf-8")
    validator = jsonschema.Draft4Validator(json.loads(text))
    rules = api.rule_entries()
    for name in ["plain", *HOSTILE]:
        for level in ("error", "warning", "info"):
            given_ = report(name, level=level, places=places)
            validator.validate(json.loads(check_sarif(given_, rules)))
            validator.validate(json.loads(check_sarif(given_, rules, known=lambda f: True)))
    broken = json.loads(check_sarif(report(), rules))
    broken["runs"][0]["results"][0]["ruleIndex"] = "none"
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(broken)


def test_junit_is_valid_by_the_schema_that_jenkins_reads() -> None:
    xmlschema = pytest.importorskip("xmlschema", reason="xmlschema is not installed (extra: dev)")
    read = xmlschema.XMLSchema(str(published("junit-10.xsd")))
    for name in ["plain", *HOSTILE]:
        for strict in (True, False):
            for verdict in ("fail", "unknown"):
                read.validate(ET.fromstring(check_junit(report(name, verdict=verdict), "warning", strict)))
    wrong = ET.fromstring(check_junit(report()))
    del wrong[0].attrib["tests"]
    assert not read.is_valid(wrong)


def valid(kind: str, document: Any) -> None:
    document = json.loads(as_json(document))
    jsonschema.Draft202012Validator(schema()).validate(document)
    jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": schema()["$defs"]}).validate(document)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@given(ANY_TEXT)
def test_reports_and_differences_are_as_the_schema_says(text: str) -> None:
    one = report(text)
    causes = [Cause("x/y", 0.5, text, {"n": 1}, text, text)]
    smoke = Smoke("fail", (), [Picture(text, "data:,")], [], 0)
    valid("report", incident_document(Incident(one, {}, causes, text, {"python": text}, smoke, {"GPU": text})))
    valid("report", incident_document(Incident(one, {})))
    old, new = check_document(replace(one, findings=())), check_document(one)
    valid("diff", difference_document(difference(old, new)))
    valid("diff", difference_document(difference(new, old)))


def test_what_commands_print_is_as_the_schema_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for kind, arguments in (
        ("explain", ["explain", "CUDA out of memory", "--format", "json"]),
        ("explain", ["explain", "nothing that is known of", "--format", "json"]),
        ("cache", ["cache", "info", "--format", "json"]),
    ):
        ran = CliRunner().invoke(cli, arguments)
        assert ran.exit_code in (0, 3), ran.output
        valid(kind, json.loads(ran.stdout))
    path = tmp_path / "one.json"
    path.write_text(as_json(check_document(report())), encoding="utf-8")
    ran = CliRunner().invoke(cli, ["report", "--diff", str(path), str(path), "--format", "json"])
    assert json.loads(ran.stdout)["worse"] is False
    valid("diff", json.loads(ran.stdout))
