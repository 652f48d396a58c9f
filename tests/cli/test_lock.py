"""`lock`, `check stack.lock` and `pull` as a user runs them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.test_stack import RIGHT, write
from tests.support.files import write_safetensors
from tests.support.servers import Repo, hub_server, range_server


def document(folder: Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads((folder / "stack.lock").read_text())
    return loaded


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with one small file of tensors that nobody knows."""
    folder = tmp_path / "served"
    folder.mkdir()
    write_safetensors(folder / "x.safetensors", {"a.weight": ("F32", (100, 100))})
    return folder


def test_a_passing_stack_is_locked_and_passes_again(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    write(tmp_path, 'runtime = "comfyui"\n' + RIGHT + '[settings]\nclip_type = "lumina2"\n')
    done = run("lock")
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "stack.lock").read_text()
    assert json.loads(first)["verdict"] == "pass"
    assert str(tmp_path) not in first
    run("lock")
    assert (tmp_path / "stack.lock").read_text() == first
    again = run("check", "stack.lock", "--format", "json")
    assert again.returncode == 0
    assert "file/moved" in json.loads(again.stdout)["checked"]


def test_a_failing_stack_is_locked_only_by_force(run: Run, wrong_set: list[Path], tmp_path: Path) -> None:
    write(tmp_path, RIGHT.replace("encoder.gguf", "encoder.safetensors"))
    assert run("lock").returncode == 1
    assert not (tmp_path / "stack.lock").exists()
    assert run("lock", "--force").returncode == 1
    assert document(tmp_path)["verdict"] == "fail"
    refused = run("pull", "--to", "there")
    assert refused.returncode == 1
    assert not (tmp_path / "there").exists()


def test_what_moved_is_said(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    write(tmp_path, RIGHT)
    run("lock")
    shapes = {"a.weight": ("F32", (100, 100))}
    write_safetensors(tmp_path / "vae.safetensors", shapes)
    done = run("check", "stack.lock", "--format", "github")
    assert done.returncode == 1
    moved = next(line for line in done.stdout.splitlines() if "file/moved" in line)
    line = int(moved.partition("line=")[2].partition(",")[0])
    assert "vae.safetensors" in (tmp_path / "stack.lock").read_text().split("\n")[line - 1]


def test_other_tensors_of_the_same_size_have_moved(run: Run, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"a.weight": ("F32", (10, 40))})
    write(tmp_path, '[files]\nvae = "x.safetensors"\n')
    run("lock", "--force")
    write_safetensors(tmp_path / "x.safetensors", {"a.weight": ("F32", (40, 10))})
    assert "other tensors" in run("check", "stack.lock", "--format", "json").stdout


def test_a_locked_hub_file_is_pinned_pulled_and_verified(run: Run, small: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256((small / "x.safetensors").read_bytes()).hexdigest()
    with hub_server({"org/repo": Repo(small)}) as hub:
        env = {"HF_ENDPOINT": hub.endpoint}
        write(tmp_path, '[files]\nvae = "hf://org/repo/x.safetensors"\n')
        assert run("lock", "--force", env=env).returncode in (1, 3)
        (source,) = document(tmp_path)["sources"]  # type: ignore[misc]
        assert source["commit"] == Repo(small).commit
        assert source["source"] == f"hf://org/repo@{Repo(small).commit}/x.safetensors"
        assert [(f["name"], f["sha256"]) for f in source["files"]] == [("x.safetensors", digest)]
        done = run("pull", "--to", "ComfyUI", "--force", env=env)
        assert done.returncode == 0, done.stderr
        placed = tmp_path / "ComfyUI/models/vae/x.safetensors"
        assert placed.read_bytes() == (small / "x.safetensors").read_bytes()
        assert "1 there already" in run("pull", "--to", "ComfyUI", "--force", env=env).stdout
        assert done.stderr == ""  # no progress where there is no terminal


def test_a_repository_that_moved_on_is_an_info(run: Run, small: Path, tmp_path: Path) -> None:
    repo = Repo(small)
    with hub_server({"org/repo": repo}) as hub:
        env = {"HF_ENDPOINT": hub.endpoint}
        write(tmp_path, '[files]\nvae = "hf://org/repo/x.safetensors"\n')
        run("lock", "--force", env=env)

        def newer() -> list[dict[str, str]]:
            done = run("check", "stack.lock", "--format", "json", env=env)
            return [f for f in json.loads(done.stdout)["findings"] if f["rule"] in ("file/newer", "file/moved")]

        assert newer() == []
        repo.older, repo.commit = {repo.commit: small}, "ab" * 20
        assert newer() == []  # another commit, the same file
        repo.files = tmp_path / "later"
        repo.files.mkdir()
        write_safetensors(repo.files / "x.safetensors", {"a.weight": ("F32", (100, 101))})
        (finding,) = newer()
        assert (finding["rule"], finding["level"]) == ("file/newer", "info")
        assert "abababababab" in finding["message"]


def test_a_server_of_files_locks_the_version_it_names(run: Run, small: Path, tmp_path: Path) -> None:
    with range_server(small) as server:
        write(tmp_path, f'[files]\nvae = "{server.url("x.safetensors")}"\n')
        run("lock", "--force")
        (source,) = document(tmp_path)["sources"]  # type: ignore[misc]
        assert source["files"][0]["etag"].startswith('"')
        assert run("pull", "--to", "flat", "--layout", "flat", "--force").returncode == 0
        assert (tmp_path / "flat/x.safetensors").exists()


def test_a_diffusers_folder_is_locked_with_its_configs(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    (folder / "vae").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "P", "vae": ["diffusers", "V"]}')
    (folder / "vae/config.json").write_text('{"_class_name": "V"}')
    write_safetensors(folder / "vae/diffusion_pytorch_model.safetensors", {"a.weight": ("F32", (9, 9))})
    write_safetensors(folder / "vae/diffusion_pytorch_model.fp16.safetensors", {"a.weight": ("F16", (9, 9))})
    (folder / "README.md").write_text("no part of it")
    write(tmp_path, '[files]\npipeline = "repo"\n')
    run("lock", "--force")
    (source,) = document(tmp_path)["sources"]  # type: ignore[misc]
    names = {f["name"] for f in source["files"]}
    assert names == {"model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"}
    done = run("pull", "--to", "out", "--layout", "diffusers", "--force")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/vae/config.json").exists()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (('"name": "vae.safetensors"', '"name": "../../vae.safetensors"'), "leads elsewhere"),
        (('"lock": 1', '"lock": 2'), "version 2"),
        (('"size": 167664606', '"size": "many"'), "no size"),
        (("{", "[", 1), "is no lock"),
    ],
)
def test_a_lock_that_lies_is_refused(
    run: Run, right_set: list[Path], tmp_path: Path, edit: tuple[str, str], says: str
) -> None:
    write(tmp_path, RIGHT)
    run("lock")
    path = tmp_path / "stack.lock"
    path.write_text(path.read_text().replace(*edit))
    done = run("pull", "--to", "there")
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "there").exists()
