"""`compatkit dryrun` as a user runs it, on a machine whose torch is broken: the one thing every machine can show."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run
from tests.cli.test_check import validate

BROKEN = 'raise RuntimeError("operator torchvision::nms does not exist")\n'


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing torch fails."""
    (tmp_path / "site" / "torch").mkdir(parents=True)
    (tmp_path / "site" / "torch" / "__init__.py").write_text(BROKEN)
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "site")])}


def test_a_broken_torch_is_a_finding_and_no_crash(run: Run, right_set: list[Path], broken: dict[str, str]) -> None:
    done = run("dryrun", *right_set, env=broken)
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stdout.startswith("UNKNOWN")
    assert "torchvision::nms" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_header_checks_are_not_touched_by_it(run: Run, wrong_set: list[Path], broken: dict[str, str]) -> None:
    done = run("check", "--dryrun", *wrong_set, "--format", "json", env=broken)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    validate(report, "check")
    rules = {f["rule"] for f in report["findings"]}
    assert {"encoder/width", "dryrun/environment"} <= rules


def test_every_format_is_written(run: Run, tmp_path: Path, right_set: list[Path], broken: dict[str, str]) -> None:
    names = ["a.json", "a.md", "a.html", "a.sarif", "a.xml", "a.txt"]
    done = run("dryrun", *right_set, *(x for n in names for x in ("-o", n)), "--format", "github", env=broken)
    assert done.returncode == 3
    assert all("dryrun/environment" in (tmp_path / n).read_text(encoding="utf-8") for n in names)
    assert "::warning" in done.stdout


def test_strict_makes_the_open_verdict_fail(run: Run, right_set: list[Path], broken: dict[str, str]) -> None:
    assert run("dryrun", "--strict", *right_set, env=broken).returncode == 1


def test_nothing_to_examine(run: Run) -> None:
    done = run("dryrun", "nothing.safetensors")
    assert done.returncode == 2
    assert "nothing.safetensors" in done.stderr
