"""Rule files of checks and runtimes: what is refused, where, and with which hint; and that every example comes out."""

from __future__ import annotations

from pathlib import Path

import pytest

from compatkit.checks import selftest
from compatkit.headers.problems import MEANINGS
from compatkit.knowledge import cel, checkfile, runtimefile
from compatkit.knowledge.subjects import SUBJECTS, blank, unknown_field
from compatkit.knowledge.yamlfile import RuleFileError, load
from tests.checks.fake import check_entries

GOOD = """\
checks:
  - id: policy/small
    level: warning
    title: too large
    binds: component
    when: component.family != null
    require: component.parameters < 1000
    message: "{{ component.name }} has {{ component.parameters }} parameters"
    fix: [{when: component.role == "vae", text: smaller VAE}, {text: "smaller {{ component.role }}"}]
    why: because
    examples:
      fail: [{component: {name: m, family: x, parameters: 2000}, mention: ["2000"]}]
      pass: [{component: {family: x, parameters: 10}}]
"""


def parse(tmp_path: Path, text: str) -> list[dict[str, object]]:
    path = tmp_path / "checks.yaml"
    path.write_text(text)
    return checkfile.parse(load(path))


def test_a_good_file_is_read_and_its_examples_hold(tmp_path: Path) -> None:
    rules = parse(tmp_path, GOOD)
    assert [r["id"] for r in rules] == ["policy/small"]
    assert selftest.run(rules) == []
    assert selftest.count(rules) == 2


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("    level: warning", "    levle: warning", 3, "unknown key 'levle'; did you mean 'level'?"),
        ("level: warning", "level: fatal", 3, "level 'fatal' is not one of error, warning, info"),
        ("binds: component", "binds: componnet", 5, "did you mean 'component'?"),
        ("id: policy/small", "id: Policy", 2, "written group/name"),
        ("component.parameters < 1000", "component.parameter < 1000", 7, "component has no field 'parameter'; did you"),
        ("component.parameters < 1000", "component.parameters <", 7, "Syntax error"),
        ("component.parameters < 1000", "componnet.parameters < 1", 7, "did you mean 'component'?"),
        ("component.parameters < 1000", '1 + "a" == "a1"', 7, "no matching overload"),
        ("component.parameters < 1000", "size(component.name)", 7, "a condition is true or false; this is INT"),
        ("{{ component.name }} has", "{{ component.nmae }} has", 8, "did you mean 'name'?"),
        ('component.role == "vae"', 'component.rol == "vae"', 9, "did you mean 'role'?"),
        ("    why: because\n", "", 2, "has no 'why'"),
        ("      pass: [{component: {family: x, parameters: 10}}]\n", "", 11, "at least one example that must pass"),
        ("parameters: 2000}", "paramters: 2000}", 12, "did you mean 'parameters'?"),
        ("checks:", "check:", 1, "unknown key 'check'; did you mean 'checks'?"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    assert old in GOOD
    with pytest.raises(RuleFileError) as caught:
        parse(tmp_path, GOOD.replace(old, new, 1))
    assert caught.value.line == line
    assert says in caught.value.message


def test_examples_that_come_out_wrong_are_told(tmp_path: Path) -> None:
    wrong = GOOD.replace("parameters: 2000", "parameters: 20").replace("parameters: 10}", "parameters: 10000}")
    failures = selftest.run(parse(tmp_path, wrong))
    assert len(failures) == 2
    assert "gives no finding" in failures[0]
    assert "gives a finding" in failures[1]
    [unmentioned] = selftest.run(parse(tmp_path, GOOD.replace('["2000"]', '["3000"]')))
    assert "does not mention '3000'" in unmentioned


def test_every_rule_of_the_repository_holds_to_its_examples() -> None:
    assert selftest.run(check_entries()) == []
    assert selftest.count(check_entries()) > 60


def test_every_finding_of_the_readers_is_documented() -> None:
    assert set(MEANINGS) <= {r["id"] for r in check_entries() if r["binds"] == "file"}


def test_ids_are_unique() -> None:
    ids = [r["id"] for r in check_entries()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("id: x\ntitle: X\nengine: torch\nhistroy: []\n", 4, "did you mean 'history'?"),
        ("id: x\ntitle: X\nengine: jax\n", 3, "neither torch nor ggml"),
        ("title: X\nengine: torch\n", 1, "'id' is missing"),
        ("id: x\ntitle: X\nengine: torch\nlayouts: {vae: {native: some}}\n", 4, "all, none, or a list"),
        (
            "id: x\ntitle: X\nengine: torch\nclip_types: {single: [flux]}\n"
            "te_models:\n  A: {routes: [{types: [fluks], class: B}]}\n",
            6,
            "'fluks' is not one of clip_types; did you mean 'flux'?",
        ),
        ("id: x\ntitle: X\nengine: torch\ntogether: [{class: A, parts: [B]}]\n", 4, "'B' is not one of te_models"),
    ],
)
def test_a_bad_runtime_file_is_refused_with_its_place(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RuleFileError) as caught:
        runtimefile.parse(load(path))
    assert caught.value.line == line
    assert says in caught.value.message


def test_field_names_in_strings_and_calls_are_no_fields() -> None:
    assert unknown_field("component", "component.name.startsWith('component.nope')") is None
    assert unknown_field("component", "component.first_missing.size() > 0") is None
    assert unknown_field("encoder", "slot.titles.exists(t, t == encoder.title)") is None
    wrong = unknown_field("encoder", "slot.titels.size() > 0")
    assert wrong is not None
    assert wrong[:2] == ("slot", "titels")


def test_a_blank_subject_has_every_field_and_no_other() -> None:
    for kind, variables in SUBJECTS.items():
        assert {k: set(v) for k, v in blank(kind).items()} == {k: set(v) for k, v in variables.items()}
    with pytest.raises(KeyError):
        blank("component", {"component": {"nope": 1}})


def test_values_of_any_header_become_plain() -> None:
    odd = cel.plain({"a": (1, 1 << 70), "b": "\ud800x", 3: {4}, "c": b"x", "d": 10**400})
    assert cel.evaluate("v.a[0] == 1 && v.b.endsWith('x')", {"v": odd}) is True
    assert cel.show([1, None, 2.0, True]) == "1, unknown, 2, yes"


def test_texts_hold_expressions() -> None:
    assert cel.render("{{ a.n }} of {{ a.n * 2 }}", {"a": {"n": 3}}) == "3 of 6"
    with pytest.raises(cel.CelError):
        cel.render("{{ a.m }}", {"a": {}})
