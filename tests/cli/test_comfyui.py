"""`--comfyui` of dryrun, check and smoke on the command line: folders, addresses, and what is neither."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """A ComfyUI whose own interpreter is this one, and whose code ends at its first import."""
    root = tmp_path / "ComfyUI"
    (root / "comfy").mkdir(parents=True)
    (root / "comfy" / "sd.py").write_text("raise SystemExit('imported')\n")
    (root / "comfyui_version.py").write_text('__version__ = "0.33.0"\n')
    return root


def test_a_folder_without_comfyui_is_one_finding(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    ran = run("dryrun", "--comfyui", folder, "--format", "json", *right_set)
    report = json.loads(ran.stdout)
    assert (ran.returncode, report["verdict"]) == (3, "unknown")
    [found] = report["findings"]
    assert found["rule"] == "dryrun/environment"
    assert "there is no ComfyUI in it (no comfy/sd.py)" in found["message"]
    assert "--comfyui" not in found["message"]


def test_the_header_checks_are_untouched_by_a_checkout_that_does_not_run(
    run: Run, right_set: list[Path], comfyui: Path
) -> None:
    torch = comfyui / "torch.py"
    torch.write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    ran = run("check", "--dryrun", "--comfyui", comfyui, "--format", "json", *right_set)
    report = json.loads(ran.stdout)
    assert (ran.returncode, report["verdict"]) == (3, "unknown")
    assert "encoder/width" in report["checked"]
    found = next(f for f in report["findings"] if f["rule"] == "dryrun/environment")
    assert "ComfyUI 0.33.0 could not be run: torch cannot be imported: OSError: libcudart.so.12" in found["message"]
    assert not list(comfyui.rglob("*.pyc"))


def test_check_reads_the_folder_and_runs_nothing_of_it(run: Run, right_set: list[Path], comfyui: Path) -> None:
    ran = run("check", "--comfyui", comfyui, *right_set)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "imported" not in ran.stdout + ran.stderr


@pytest.mark.parametrize("command", ["check", "dryrun"])
def test_an_address_is_for_smoke(run: Run, right_set: list[Path], command: str) -> None:
    ran = run(command, "--comfyui", "http://127.0.0.1:8188", *right_set)
    assert ran.returncode == 2
    assert "`compatkit smoke` runs sets on one" in " ".join(ran.stderr.split())


def test_smoke_on_a_server_that_is_down(run: Run, right_set: list[Path]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ran = run("smoke", "--comfyui", f"http://127.0.0.1:{port}", *right_set)
    assert (ran.returncode, ran.stderr) == (3, "")
    assert "connection refused" in ran.stdout
    assert "UNKNOWN" in ran.stdout


@pytest.mark.parametrize("option", ["--scan", "--bisect", "--device=cpu", "--only=*", "--vram=4GB"])
def test_what_means_nothing_on_a_server_is_refused(run: Run, right_set: list[Path], option: str) -> None:
    ran = run("smoke", option, "--comfyui", "http://127.0.0.1:1", *right_set)
    assert ran.returncode == 2
    assert f"{option.partition('=')[0]} is for a run on this machine" in ran.stderr


def test_probes_and_a_checkout_do_not_go_together(run: Run, right_set: list[Path], comfyui: Path) -> None:
    ran = run("dryrun", "--probes-only", "--comfyui", comfyui, *right_set)
    assert ran.returncode == 2
    assert "--probes-only is for a dry run without --comfyui" in " ".join(ran.stderr.split())


def test_what_is_no_address_of_a_server(run: Run, right_set: list[Path]) -> None:
    ran = run("smoke", "--comfyui", "ftp://127.0.0.1", *right_set)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "give the address of a running server" in ran.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is started by its first line")
def test_an_interpreter_of_the_install_that_does_not_start_gives_way_to_this_one(
    run: Run, right_set: list[Path], comfyui: Path
) -> None:
    python = comfyui / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/nowhere/python\n")
    python.chmod(0o755)
    ran = run("dryrun", "--comfyui", comfyui, "--format", "json", *right_set)
    [found] = json.loads(ran.stdout)["findings"]
    assert "cannot be started: No such file or directory" in found["message"]
