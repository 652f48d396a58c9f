"""`check stack.toml`, `init`, and annotations on the lines of the stack file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def write(folder: Path, text: str, name: str = "stack.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


RIGHT = '[files]\ndiffusion = "dit.gguf"\ntext_encoder = "encoder.gguf"\nvae = "vae.safetensors"\n'


def rules(done: object) -> dict[str, dict[str, object]]:
    return {f["rule"]: f for f in json.loads(done.stdout)["findings"]}  # type: ignore[attr-defined]


def test_init_writes_a_stack_that_passes(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    done = run("init", *(p.name for p in right_set))
    assert done.returncode == 0, done.stderr
    assert 'text_encoder = "encoder.gguf"' in (tmp_path / "stack.toml").read_text()
    assert run("check", "stack.toml").returncode == 0
    again = run("init", right_set[0].name)
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_init_writes_nothing_for_a_file_nobody_knows(run: Run, tmp_path: Path) -> None:
    from tests.support.files import write_safetensors

    write_safetensors(tmp_path / "x.safetensors", {"a.weight": ("BF16", (7, 7))})
    assert run("init", "x.safetensors").returncode == 3
    assert not (tmp_path / "stack.toml").exists()


def test_paths_are_relative_to_the_stack_file(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    inside = tmp_path / "sub"
    inside.mkdir()
    for path in right_set:
        path.rename(inside / path.name)
    write(inside, RIGHT)
    assert run("check", "sub/stack.toml").returncode == 0


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ('runtime = "nowhere"\n' + RIGHT, "stack.toml:1: there is no runtime 'nowhere'"),
        ('runtime = "comfyui@new"\n' + RIGHT, "stack.toml:1: 'comfyui@new': a version"),
        (RIGHT + '[settings]\nclip_type = "nothing"\n', "stack.toml:6: there is no clip_type 'nothing'"),
        (RIGHT + '[settings]\ncfg = 1\nstepps = 2\n', "stack.toml:7: there is no setting 'stepps'"),
        (RIGHT + '[settings]\nsteps = "many"\n', "stack.toml:6: steps is a number, not 'many'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_stack_file_is_said_with_its_line(run: Run, tmp_path: Path, lines: str, says: str) -> None:
    write(tmp_path, lines)
    done = run("check", "stack.toml")
    assert done.returncode == 2
    assert says in done.stderr


def test_what_the_command_says_is_not_blamed_on_the_file(run: Run, tmp_path: Path) -> None:
    write(tmp_path, RIGHT + "[settings]\nsteps = 5\n")
    assert "stack.toml" not in run("check", "stack.toml", "--set", "steps=x").stderr
    assert "Error: there is no runtime 'x'" in run("check", "stack.toml", "--runtime", "x").stderr


def test_a_second_setting_without_its_option_is_said(run: Run, right_set: list[Path]) -> None:
    done = run("check", *right_set, "--set", "steps=20", "cfg=3")
    assert done.returncode == 2
    assert "'cfg=3' is a setting, not a file; write --set before each: --set cfg=3" in done.stderr


@pytest.mark.parametrize("part", ["text_encoder", "vae", "diffusion"])
def test_a_missing_part_is_an_error(run: Run, right_set: list[Path], tmp_path: Path, part: str) -> None:
    text = "\n".join(line for line in RIGHT.split("\n") if not line.startswith(part))
    write(tmp_path, text)
    done = run("check", "stack.toml", "--format", "json")
    assert done.returncode == 1
    assert {"component/missing", "encoder/missing"} & set(rules(done))
    whole = run("check", *(p for p in right_set if p.name.split(".")[0] not in {part}))  # the same files, no stack
    assert whole.returncode == 0 or part != "vae"


def test_policy_findings(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    stack = RIGHT.replace('"vae.safetensors"', '{source = "vae.safetensors", license = "weird"}')
    write(
        tmp_path, stack + '[policy]\nquantization = ["Q4_K_M", "none"]\nsize = "20 GB"\nlicenses = ["mit", "weird*"]\n'
    )
    done = run("check", "stack.toml", "--format", "json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert {"policy/quantization", "policy/license", "policy/size"} <= set(report["checked"])
    assert any(n["rule"] == "policy/license" and "dit.gguf" in n["why"] for n in report["not_checked"])
    write(tmp_path, stack + '[policy]\nquantization = {diffusion = "Q5_K"}\nsize = "2 GB"\nlicenses = "mit"\n')
    done = run("check", "stack.toml", "--format", "json")
    assert done.returncode == 1
    found = rules(done)
    assert {"policy/quantization", "policy/license", "policy/size"} <= set(found)
    assert found["policy/quantization"]["components"] == [0]


def test_without_a_policy_nothing_is_said_of_it(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    write(tmp_path, RIGHT)
    assert "policy/" not in run("check", "stack.toml", "--format", "json").stdout


def test_the_policy_may_fail_on_warnings_and_on_unknown(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    from tests.support.files import write_safetensors

    write_safetensors(tmp_path / "x.safetensors", {"a.weight": ("BF16", (7, 7))})
    write(tmp_path, RIGHT + 'lora = "x.safetensors"\n'.replace("lora", "controlnet"))
    assert run("check", "stack.toml").returncode == 3
    write(tmp_path, RIGHT + 'controlnet = "x.safetensors"\n[policy]\nstrict = true\n')
    assert run("check", "stack.toml").returncode == 1


def test_settings_host_and_strength_that_no_check_reads_are_listed(
    run: Run, right_set: list[Path], tmp_path: Path
) -> None:
    write(tmp_path, 'host = "RTX 5090"\n' + RIGHT + '[settings]\nsteps = 9\nscheduler = "beta"\n')
    whys = json.dumps(json.loads(run("check", "stack.toml", "--format", "json").stdout)["not_checked"])
    assert "host=RTX 5090" in whys
    assert "scheduler=beta" in whys
    write(tmp_path, RIGHT + "[settings]\nstep = 9\n")
    refused = run("check", "stack.toml")
    assert refused.returncode == 2
    assert "'steps'" in refused.stderr


def test_annotations_stand_on_the_line_that_names_the_file(run: Run, wrong_set: list[Path], tmp_path: Path) -> None:
    write(tmp_path, RIGHT.replace("encoder.gguf", "encoder.safetensors"))
    summary = tmp_path / "summary.md"
    env = {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_WORKSPACE": str(tmp_path)}
    done = run("check", tmp_path / "stack.toml", "--format", "github", env=env)
    assert done.returncode == 1
    line = next(x for x in done.stdout.splitlines() if "title=encoder/width" in x)
    assert line.startswith("::error file=stack.toml,line=3,title=encoder/width (dit.gguf%2C encoder.safetensors)::")
    assert "2560" in line
    assert "%0AFix: " in line
    assert summary.read_text().startswith("**FAIL**")


def test_a_name_cannot_forge_an_annotation(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    evil = right_set[0].rename(tmp_path / "x\n::error::owned,%0A::.gguf")
    (tmp_path / "bad.safetensors").write_bytes(b"<html>")
    done = run("check", evil, "vae=bad.safetensors", "--format", "github")
    assert not [x for x in done.stdout.splitlines() if x.startswith("::error::owned")]
    assert done.returncode == 1


def test_the_schema_of_stack_files_is_printed(run: Run) -> None:
    assert "files" in json.loads(run("schema", "stack").stdout)["properties"]
    assert "check" in json.loads(run("schema").stdout)["$defs"]


def test_ci_formats_of_a_stack(run: Run, wrong_set: list[Path], tmp_path: Path) -> None:
    import jsonschema

    from tests.support.sarif import SCHEMA

    write(tmp_path, RIGHT.replace("encoder.gguf", "encoder.safetensors"))
    done = run("check", "stack.toml", "--format", "sarif", "-o", "out.xml", "-o", "again.sarif")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    result = next(r for r in document["runs"][0]["results"] if r["ruleId"] == "encoder/width")
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 3
    assert json.loads((tmp_path / "again.sarif").read_text()) == document
    assert 'failures="1"' in (tmp_path / "out.xml").read_text()
    refused = run("inspect", "dit.gguf", "--format", "sarif")
    assert refused.returncode == 2
    assert "no sarif report" in refused.stderr


def test_a_family_nobody_knows_cannot_be_assumed(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    write(tmp_path, RIGHT.replace('"vae.safetensors"', '{source = "vae.safetensors", assume = "flux1_va"}'))
    refused = run("check", "stack.toml")
    assert refused.returncode == 2
    assert "'flux1_vae'" in refused.stderr
