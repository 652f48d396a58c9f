"""`compatkit report`, `--diff`, and `check --baseline`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run

LOG = """File "/home/ada/ComfyUI/nodes.py", line 5
RuntimeError: Given normalized_shape=[2560], expected input with shape [*, 2560], but got input of size[1, 18, 2304]
"""


def test_a_report_says_what_to_do_and_matches_the_log(run: Run, wrong_set: list[Path], tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text(LOG)
    done = run("report", *wrong_set, "--log", "run.log", "-o", "r.md", "-o", "r.html", "-o", "r.json")
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    lines = (tmp_path / "r.md").read_text().split("\n")
    assert lines[0].startswith("**FAIL**")
    assert "1, 18, 2304" in lines[2]
    assert "Qwen3-4B" in lines[3]
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["causes"][0]["confirmed"] is True
    assert document["reproduce"] == "compatkit report dit.gguf encoder.safetensors vae.safetensors --log run.log"
    for name in ("r.md", "r.html", "r.json"):
        text = (tmp_path / name).read_text()
        assert str(tmp_path) not in text
        assert "/home/" not in text


def test_a_passing_set_in_french(run: Run, right_set: list[Path]) -> None:
    done = run("report", *right_set, "--lang", "fr")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("**PASS**")
    assert "Rien n'est à changer" in done.stdout.split("\n")[3]
    assert run("report", *right_set, "--lang", "xx").returncode == 2


def test_full_paths_and_own_templates(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "report.md.j2").write_text("mine: {{ report.components[0].source }}")
    done = run("report", *right_set, "--templates", "mine", "--full-paths")
    assert done.stdout.strip() == f"mine: {right_set[0]}"
    (folder / "report.md.j2").write_text("{{ nothing.at.all }}")
    done = run("report", *right_set, "--templates", "mine")
    assert done.returncode == 2
    assert "report.md.j2" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_writes_a_page(run: Run, wrong_set: list[Path], tmp_path: Path) -> None:
    done = run("check", *wrong_set, "--format", "html")
    assert done.returncode == 1
    assert done.stdout.startswith("<!DOCTYPE html>")
    assert "<svg" in done.stdout


def test_diff_and_baseline(run: Run, right_set: list[Path], wrong_set: list[Path], tmp_path: Path) -> None:
    assert run("check", *right_set, "-o", "right.json").returncode == 0
    assert run("check", *wrong_set, "-o", "wrong.json").returncode == 1
    assert run("report", *wrong_set, "-o", "report.json").returncode == 1
    done = run("report", "--diff", "right.json", "wrong.json", "--format", "json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["verdict"] == {"old": "pass", "new": "fail"}
    assert [f["rule"] for f in document["new"] if f["level"] == "error"] == ["encoder/width"]
    assert any(text.startswith("encoder.gguf: is gone") for text in document["files"])
    back = run("report", "--diff", "wrong.json", "right.json")
    assert back.returncode == 0
    assert back.stdout.startswith("**FAIL → PASS**")
    same = json.loads(run("report", "--diff", "wrong.json", "report.json", "--format", "json").stdout)
    assert (same["new"], same["gone"], same["files"]) == ([], [], [])

    known = run("check", *wrong_set, "--baseline", "wrong.json", "-o", "b.sarif", "-o", "b.xml")
    assert known.returncode == 0
    assert known.stdout.startswith("FAIL")  # what it is, is still said
    assert "findings are known" in known.stderr
    results = json.loads((tmp_path / "b.sarif").read_text())["runs"][0]["results"]
    assert {r["baselineState"] for r in results} == {"unchanged"}
    assert 'failures="0"' in (tmp_path / "b.xml").read_text()
    assert run("check", *wrong_set, "--baseline", "right.json").returncode == 1


def test_what_is_no_report_is_refused(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    for text in ("{}", "[", '{"tool": "compatkit", "verdict": "pass", "components": [3]}', "\x00", "null"):
        (tmp_path / "x.json").write_text(text)
        done = run("check", right_set[0], "--baseline", "x.json")
        assert done.returncode == 2
        assert "x.json is no" in done.stderr
        assert run("report", "--diff", "x.json", "x.json").returncode == 2
    assert run("report").returncode == 2
    assert run("report", right_set[0], "--format", "sarif").returncode == 2
