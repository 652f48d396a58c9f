"""The GitHub Action's own script, run by bash as the runner would, and the pre-commit hook's command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import ROOT, Run
from tests.cli.test_stack import RIGHT, write


def action() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    return loaded


@pytest.fixture
def step(tmp_path: Path) -> Any:
    """Run the step that checks, with these inputs; (exit code, standard output, outputs of the step, summary)."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash on this machine")
    temp = tmp_path / "temp"
    (temp / "compatkit/bin").mkdir(parents=True)
    program = temp / "compatkit/bin/compatkit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m compatkit "$@"\n')
    program.chmod(0o755)
    (temp / "compatkit/bin/python").symlink_to(sys.executable)

    def run_step(**inputs: str) -> tuple[int, str, str, str]:
        document = action()
        check = next(s for s in document["runs"]["steps"] if s.get("id") == "check")
        given = {name: inputs.get(name.replace("-", "_"), str(i["default"])) for name, i in document["inputs"].items()}
        env = {k: v.replace("${{ inputs.", "").replace(" }}", "") for k, v in check["env"].items()}
        done = subprocess.run(
            [bash, "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", check["run"]],
            cwd=tmp_path,
            env={
                **os.environ,
                **{k: given[name] for k, name in env.items()},
                "PYTHONPATH": str(ROOT),
                "RUNNER_TEMP": str(temp),
                "GITHUB_OUTPUT": str(temp / "output"),
                "GITHUB_STEP_SUMMARY": str(temp / "summary"),
                "GITHUB_WORKSPACE": str(tmp_path),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        texts = [(temp / n).read_text() if (temp / n).exists() else "" for n in ("output", "summary")]
        return done.returncode, done.stdout + done.stderr, texts[0], texts[1]

    return run_step


def test_the_action_fails_a_failing_stack(step: Any, wrong_set: list[Path], tmp_path: Path) -> None:
    write(tmp_path, RIGHT.replace("encoder.gguf", "encoder.safetensors"))
    code, out, outputs, summary = step()
    assert code == 1, out
    assert "::error file=stack.toml,line=3" in out
    assert outputs == "verdict=fail\n"
    assert summary.startswith("**FAIL**")


def test_the_action_passes_a_passing_one_and_names_are_no_commands(
    step: Any, right_set: list[Path], tmp_path: Path
) -> None:
    write(tmp_path, RIGHT)
    assert step()[::2] == (0, "verdict=pass\n")
    code, _, _, _ = step(sources="stack.toml $(touch owned) ;touch owned")
    assert code != 0
    assert not (tmp_path / "owned").exists()


def test_every_input_is_used_and_described() -> None:
    text = (ROOT / "action.yml").read_text()
    for name, given in action()["inputs"].items():
        assert given["description"]
        assert f"inputs.{name}" in text
    for s in action()["runs"]["steps"]:
        assert "${{" not in s.get("run", ""), "an input in a script is an injection"


def test_the_hook_runs(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    write(tmp_path, RIGHT)
    program, *words = hook["entry"].split()
    assert program == "compatkit"
    assert run(*words, *hook["args"]).returncode == 0
    assert json.loads(run(*words, *hook["args"], "--format", "json").stdout)["verdict"] == "pass"
