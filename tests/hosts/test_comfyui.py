"""What is read of a ComfyUI folder, and that nothing of it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from compatkit.hosts.comfyui import read_install
from compatkit.vocabulary import SourceError

COMMIT = "783545f689a0af730065994b46b382ae24844c99"


def install(folder: Path) -> Path:
    """A folder that looks like ComfyUI; running any of it would end the test."""
    (folder / "comfy").mkdir(parents=True)
    (folder / "comfy" / "sd.py").write_text("raise SystemExit('imported')\n")
    (folder / "comfyui_version.py").write_text('# made by the build\n__version__ = "0.33.0"\n')
    return folder


def test_version_commit_and_the_loader_beside_it(tmp_path: Path) -> None:
    root = install(tmp_path / "ComfyUI")
    (root / ".git" / "refs" / "heads").mkdir(parents=True)
    (root / ".git" / "HEAD").write_text("ref: refs/heads/master\n")
    (root / ".git" / "refs" / "heads" / "master").write_text(COMMIT + "\n")
    gguf = root / "custom_nodes" / "ComfyUI-GGUF"
    gguf.mkdir(parents=True)
    (gguf / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1.1.9"\n')
    (gguf / "__init__.py").write_text("raise SystemExit('a custom node was imported')\n")
    found = read_install(root)
    assert (found.version, found.commit, found.gguf_version) == ("0.33.0", COMMIT, "1.1.9")
    assert found.title == "ComfyUI 0.33.0 (783545f)"
    assert "comfy" not in sys.modules


def test_a_packed_branch_and_a_worktree(tmp_path: Path) -> None:
    root = install(tmp_path / "a")
    (root / ".git").write_text("gitdir: ../real\n")
    real = tmp_path / "real"
    real.mkdir()
    (real / "HEAD").write_text("ref: refs/heads/x\n")
    (real / "packed-refs").write_text(f"# pack-refs\n{COMMIT} refs/heads/x\n")
    assert read_install(root).commit == COMMIT


def test_a_branch_named_to_leave_the_folder_is_not_followed(tmp_path: Path) -> None:
    root = install(tmp_path / "a")
    (root / ".git").mkdir()
    (tmp_path / "outside").write_text(COMMIT)
    (root / ".git" / "HEAD").write_text("ref: refs/../../../outside\n")
    assert read_install(root).commit is None


def test_the_interpreter_of_a_portable_package(tmp_path: Path) -> None:
    install(tmp_path / "ComfyUI")
    python = tmp_path / "python_embeded" / "python.exe"
    python.parent.mkdir()
    python.write_bytes(b"")
    found = read_install(tmp_path)
    assert found.path == (tmp_path / "ComfyUI").resolve()
    assert found.python == python.resolve()


@pytest.mark.parametrize(("make", "says"), [(False, "does not exist"), (True, "no ComfyUI in it")])
def test_a_wrong_folder_is_said_in_one_sentence(tmp_path: Path, make: bool, says: str) -> None:
    folder = tmp_path / "x"
    if make:
        folder.mkdir()
    with pytest.raises(SourceError, match=says):
        read_install(folder)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "main.py"
    path.write_text("")
    with pytest.raises(SourceError, match="is a file"):
        read_install(path)
