"""`compatkit check` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from compatkit.render.schema import schema
from tests.cli.conftest import ROOT, Run


def validate(document: object, kind: str) -> None:
    jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": schema()["$defs"]}).validate(document)


def test_the_right_set_passes(run: Run, right_set: list[Path]) -> None:
    done = run("check", *right_set)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("PASS (diffusion, text encoder, vae)")
    assert "host/memory" in done.stdout  # what was not checked is said


def test_a_wrong_encoder_fails_with_both_widths_and_the_error_to_come(run: Run, wrong_set: list[Path]) -> None:
    done = run("check", *wrong_set, "--format", "json")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    validate(report, "check")
    assert report["verdict"] == "fail"
    finding = next(f for f in report["findings"] if f["rule"] == "encoder/width")
    assert "2560" in finding["message"]
    assert "2304" in finding["message"]
    assert "Given normalized_shape=[2560]" in json.dumps(finding["predicts"])
    assert "Qwen3-4B" in finding["fix"]
    assert {report["components"][i]["role"] for i in finding["components"]} == {"diffusion", "text_encoder"}


def test_a_renamed_file_gets_the_same_verdict(run: Run, wrong_set: list[Path]) -> None:
    before = json.loads(run("check", *wrong_set, "--format", "json").stdout)
    renamed = wrong_set[1].rename(wrong_set[1].with_name("qwen_3_4b.safetensors"))
    after = json.loads(run("check", wrong_set[0], renamed, wrong_set[2], "--format", "json").stdout)
    assert after["verdict"] == before["verdict"] == "fail"
    assert [c["family"] for c in after["components"]] == [c["family"] for c in before["components"]]


def test_order_of_the_sources_does_not_matter(run: Run, wrong_set: list[Path]) -> None:
    rules = [
        {f["rule"] for f in json.loads(run("check", *order, "--format", "json").stdout)["findings"]}
        for order in (wrong_set, wrong_set[::-1])
    ]
    assert rules[0] == rules[1]


def test_without_an_encoder_its_checks_are_not_checked(run: Run, right_set: list[Path]) -> None:
    report = json.loads(run("check", right_set[0], right_set[2], "--format", "json").stdout)
    assert report["verdict"] == "pass"
    assert report["judged"] == ["diffusion", "vae"]
    assert "encoder/width" in {n["rule"] for n in report["not_checked"]}


def test_require_makes_a_missing_part_an_error(run: Run, right_set: list[Path]) -> None:
    assert run("check", right_set[0], right_set[2], "--require", "text_encoder").returncode == 1


def test_an_unknown_file_makes_the_verdict_unknown(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    from tests.support.files import write_safetensors

    strange = tmp_path / "strange.safetensors"
    write_safetensors(strange, {"a.weight": ("BF16", (7, 7)), "b.weight": ("BF16", (7,))})
    done = run("check", right_set[0], strange)
    assert done.returncode == 3
    assert done.stdout.startswith("UNKNOWN")
    assert run("check", right_set[0], strange, "--strict").returncode == 1


def test_a_truncated_file_is_a_finding_with_both_sizes(run: Run, right_set: list[Path]) -> None:
    size = right_set[2].stat().st_size
    with right_set[2].open("r+b") as f:
        f.truncate(size // 2)
    done = run("check", *right_set, "--format", "json")
    assert done.returncode == 1
    finding = next(f for f in json.loads(done.stdout)["findings"] if f["rule"] == "file/truncated")
    assert f"{size:,}" in finding["message"]
    assert f"{size // 2:,}" in finding["message"]


def test_assume_overrides_and_says_so(run: Run, wrong_set: list[Path]) -> None:
    done = run("check", *wrong_set, "--assume", "encoder.safetensors=qwen3_4b", "--format", "json")
    report = json.loads(done.stdout)
    assert report["components"][1]["family"] == "qwen3_4b"
    assert report["components"][1]["assumed"] is True


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.safetensors"], "does not exist"),
        (["gopher://example.org/x.safetensors"], "no kind of source"),
        (["hf://org"], "hf://ORG/REPO"),
        (["vea=dit.gguf"], "vae"),
        (["dit.gguf", "--set", "clip_tipe=x"], "clip_type"),
        (["dit.gguf", "--set", "steps"], "KEY=VALUE"),
        (["dit.gguf", "--runtime", "nothing"], "comfyui"),
        (["dit.gguf", "--format", "yaml"], "text, json, markdown"),
        (["dit.gguf", "-o", "report.pdf"], ".sarif"),
        (["dit.gguf", "--assume", "dit.gguf=z_imag_turbo"], "z_image_turbo"),
        (["dit.gguf", "--assume", "other.gguf=sdxl"], "not among the sources"),
        (["."], "folder"),
    ],
)
def test_bad_arguments_get_one_sentence_and_exit_2(
    run: Run, right_set: list[Path], arguments: list[str], says: str
) -> None:
    done = run("check", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_one_missing_file_beside_others_is_an_error_in_the_report(run: Run, right_set: list[Path]) -> None:
    done = run("check", *right_set[:2], "nowhere.safetensors")
    assert done.returncode == 1
    assert "does not exist" in done.stdout


def test_output_files_get_the_format_of_their_suffix(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    assert run("check", *right_set, "-o", "r.json", "-o", "r.md", "-o", "r.txt").returncode == 0
    validate(json.loads((tmp_path / "r.json").read_text()), "check")
    assert (tmp_path / "r.md").read_text().startswith("**PASS**")
    assert (tmp_path / "r.txt").read_text().startswith("PASS")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
def test_a_disk_that_is_full_keeps_the_old_file_and_the_verdict(wrong_set: list[Path], tmp_path: Path) -> None:
    (tmp_path / "known.json").write_text("old")
    limit = "ulimit -f 1; trap '' XFSZ; exec"  # so no file grows beyond a kilobyte
    for name in ("known.json", "new.json"):
        command = f"{limit} {sys.executable} -m compatkit check {' '.join(map(str, wrong_set))} -o {name}"
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.stdout.startswith("FAIL")
        assert done.returncode == 2
        assert f"-o {name}: File too large" in done.stderr
        assert "Usage" not in done.stderr
    assert (tmp_path / "known.json").read_text() == "old"
    assert not [p for p in tmp_path.iterdir() if p.name == "new.json" or p.name.startswith(".")]


def test_what_is_no_plain_file_is_written_as_it_is(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("old")
    (tmp_path / "link.json").symlink_to("there.json")
    (tmp_path / "null.json").symlink_to("/dev/null")
    assert run("check", *right_set, "-o", "link.json", "-o", "null.json").returncode == 0
    assert (tmp_path / "link.json").is_symlink()
    validate(json.loads((tmp_path / "there.json").read_text()), "check")
    assert (tmp_path / "null.json").is_symlink()


def test_colour_only_where_it_is_wanted(run: Run, right_set: list[Path]) -> None:
    assert "\x1b[" not in run("check", *right_set).stdout
    assert "\x1b[" in run("check", *right_set, "--color", "always").stdout


def test_a_closed_pipe_ends_quietly(right_set: list[Path]) -> None:
    command = f"{sys.executable} -m compatkit check {' '.join(map(str, right_set))} --format json | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("{")
    assert done.stderr == ""


def test_names_cannot_colour_the_terminal(run: Run, model: Callable[..., Path]) -> None:
    path = model("vae\x1b[31m\nPASS.safetensors", "flux1_vae")
    done = run("check", path)
    assert "\x1b" not in done.stdout
    assert "\nPASS.safetensors" not in done.stdout
    document = json.loads(run("check", path, "--format", "json").stdout)
    assert document["components"][0]["source"] == str(path)


def test_a_check_loads_nothing_heavy(right_set: list[Path]) -> None:
    code = (
        "import sys, compatkit; compatkit.check(sys.argv[1:]);"
        "heavy = {'torch', 'numpy', 'yaml', 'huggingface_hub', 'fsspec', 'jinja2', 'http.client', 'urllib.request'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, right_set)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_file_named_twice_is_judged_once(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    report = json.loads(run("check", "dit.gguf", "./dit.gguf", *map(str, right_set), "--format", "json").stdout)
    assert len(report["components"]) == 3
    forced = json.loads(run("check", "dit.gguf", "diffusion=dit.gguf", "--format", "json").stdout)
    assert len(forced["components"]) == 2


def test_a_clip_type_that_no_loader_has_is_refused_with_the_nearest(run: Run, right_set: list[Path]) -> None:
    done = run("check", *right_set, "--set", "clip_type=lumina")
    assert (done.returncode, "'lumina2'" in done.stderr) == (2, True)


def test_a_wrong_clip_type_is_said_once(run: Run, right_set: list[Path]) -> None:
    report = json.loads(run("check", *right_set, "--set", "clip_type=flux2", "--format", "json").stdout)
    [error] = [f for f in report["findings"] if f["level"] == "error"]
    assert error["rule"] == "encoder/clip-type"
    assert "7680" in error["predicts"]["comfyui"]


def test_a_gguf_for_comfyui_alone_needs_its_nodes(run: Run, right_set: list[Path]) -> None:
    def helpers(*runtime: str) -> list[str]:
        found = json.loads(run("check", *right_set, *runtime, "--format", "json").stdout)["findings"]
        return [f["level"] for f in found if f["rule"] == "loader/helper"]

    assert helpers("--runtime", "comfyui") == ["info", "info"]
    assert helpers("--runtime", "comfyui", "--runtime", "comfyui-gguf") == []
    assert helpers() == []


def test_a_missing_file_beside_others_is_a_finding_of_both_commands(run: Run, right_set: list[Path]) -> None:
    for command in ("check", "inspect"):
        done = run(command, "nowhere.safetensors", right_set[0], "--format", "json")
        assert done.returncode == 1
        found = json.loads(done.stdout)
        assert "file/not-found" in {f["rule"] for f in found["findings"]}
        assert "nowhere.safetensors" in {c["source"] for c in found["components"]}
        assert done.stderr == ""
        alone = run(command, "nowhere.safetensors", "--format", "json")
        assert (alone.returncode, alone.stdout) == (2, "")


def test_an_open_verdict_says_why_in_its_first_line(run: Run, right_set: list[Path]) -> None:
    done = run("check", *right_set, "--runtime", "sd.cpp@fedcba9")
    assert done.returncode == 3
    first = " ".join(done.stdout.split("\n\n")[0].split())
    assert "sd.cpp@fedcba9 cannot be put in order with" in first
