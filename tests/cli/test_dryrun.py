"""`compatkit dryrun` as a user runs it, on a machine whose torch is broken: the one thing every machine can show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run
from tests.cli.test_check import validate
from tests.support import graphs

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


def test_a_workflow_is_run_sampler_by_sampler(
    run: Run, wrong_set: list[Path], tmp_path: Path, broken: dict[str, str]
) -> None:
    (tmp_path / "workflow.json").write_text(json.dumps(graphs.api(clip="encoder.safetensors")))
    done = run("dryrun", "workflow.json", "--format", "json", env=broken)
    report = json.loads(done.stdout)
    assert done.returncode == 3, done.stderr
    assert {f["rule"].partition("/")[0] for f in report["findings"]} == {"dryrun"}
    assert "torch could not be used" in json.dumps(report["not_checked"])


def test_a_module_that_lies_among_the_models_is_not_run(run: Run, tmp_path: Path, right_set: list[Path]) -> None:
    for name in ("torch.py", "json.py", "resource.py"):
        (tmp_path / name).write_text("import pathlib; pathlib.Path('ran').touch()")
    script = "import sys; sys.argv[0] = 'compatkit'; from compatkit.cli import main; main()"
    subprocess.run(
        [sys.executable, "-P", "-c", script, "dryrun", "--probes-only", *map(str, right_set)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there_is_named(run: Run, right_set: list[Path], broken: dict[str, str]) -> None:
    done = run("dryrun", right_set[0], right_set[0].parent / "nosuch.safetensors", env=broken)
    assert done.returncode == 3
    assert "does not exist" in done.stdout
