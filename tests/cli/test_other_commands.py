"""inspect, explain, rules, schema, demo as a user runs them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from tests.cli.conftest import ROOT, Run
from tests.cli.test_check import validate
from tests.support.files import write_safetensors


def test_inspect_says_what_it_is_with_evidence(run: Run, model: Callable[..., Path]) -> None:
    done = run("inspect", model("x.safetensors", "z_image_turbo"))
    assert done.returncode == 0
    for word in ("Z-Image-Turbo", "6.15 B", "hidden_size 3840", "latent_space flux1", "[3840, 2560]"):
        assert word in done.stdout


def test_inspect_json_is_the_contract(run: Run, model: Callable[..., Path]) -> None:
    document = json.loads(run("inspect", model("x.safetensors", "z_image_turbo"), "--format", "json").stdout)
    validate(document, "inspect")
    component = document["components"][0]
    assert component["parameters"] == 6154908736
    assert component["also"] == ["z_image_base"]
    assert component["key_groups"]["layers"] == 390
    assert component["loads_as"]["comfyui"] == "ZImage"
    assert component["facts"]["latent_ndim"] == 4


def test_inspect_of_a_file_that_is_no_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><html><title>Sign in</title></html>")
    done = run("inspect", "page.safetensors")
    assert done.returncode == 1
    assert "file/web-page" in done.stdout
    assert run("inspect", "page.safetensors", "missing.gguf").returncode == 1
    assert run("inspect", "missing.gguf").returncode == 2


def test_inspect_markdown_escapes_names(run: Run, model: Callable[..., Path]) -> None:
    path = model("a|b](javascript:x)`.safetensors", "flux1_vae")
    text = run("inspect", path, "--format", "markdown").stdout
    assert "``a\\|b](javascript:x)`.safetensors``" in text


@pytest.mark.parametrize("name", ["encoder/width", "vae/latent-space", "z_image_turbo", "z_image_base", "qwen3_4b"])
def test_explain(run: Run, name: str) -> None:
    done = run("explain", name)
    assert done.returncode == 0
    assert done.stdout.startswith(name)


def test_explain_shows_a_failing_and_a_passing_example_and_the_fix(run: Run) -> None:
    text = run("explain", "encoder/width").stdout
    for heading in ("must hold", "it says (error)", "You would see (comfyui)", "Fix: Use", "It says nothing of"):
        assert heading in text
    assert "{{" not in text


def test_every_rule_can_be_explained() -> None:
    from compatkit.knowledge.store import load
    from compatkit.render.explain import rule_text
    from compatkit.render.style import Paint

    for rule in load().checks():
        text = rule_text(rule, Paint(False))
        assert "{{" not in text, rule["id"]
        assert " ()" not in text.split("How it decides")[0], rule["id"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("encoder/width", "rule"), ("file/truncated", "rule"), ("z_image_turbo", "family"), ("host/memory", "cause"),
     ("lora", "group"), ("host", "group")],
)  # fmt: skip
def test_explain_of_a_name_as_json(run: Run, name: str, kind: str) -> None:
    import jsonschema

    from compatkit.render.schema import schema

    done = run("explain", name, "--format", "json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    jsonschema.validate(told, schema())
    assert told[kind]["id"] == name


def test_every_cause_of_a_message_can_be_explained_in_its_own_words() -> None:
    from compatkit.knowledge.store import load
    from compatkit.render.described import cause_text, causes, look_up
    from compatkit.render.style import Paint

    knowledge = load()
    checks = [str(c["id"]) for c in knowledge.checks()]
    known = causes(knowledge)
    assert known["host/memory"]
    for rule, rows in known.items():
        found = look_up(rule, checks, knowledge.members(), known)
        assert found is not None
        assert found.kind == ("rule" if rule in checks else "cause")
        text = cause_text(rule, rows, Paint(False))
        assert rows[0]["fix"].split()[0] in text
        assert not re.search(r"\(\?|\\|\.\*", text), text  # no regular expressions


def test_explain_tells_what_is_known_of_a_cause_without_a_check(run: Run) -> None:
    done = run("explain", "host/memory")
    assert done.returncode == 0
    for said in ("no check finds it yet", "memory is not estimated yet", "smaller quantisation", "> out of memory"):
        assert said in done.stdout


def test_explain_of_a_group_lists_its_rules_and_causes(run: Run) -> None:
    text = run("explain", "workflow").stdout
    assert "workflow/latent " in text
    assert "workflow/size " in text


@pytest.mark.parametrize(
    ("name", "offered"), [("zimage", "z_image_turbo"), ("ZImage", "z_image_base"), ("wan", "wan21_vae")]
)
def test_explain_offers_names_that_hold_what_was_typed(run: Run, name: str, offered: str) -> None:
    done = run("explain", name)
    assert done.returncode == 2
    assert offered in done.stderr


def test_explain_takes_a_family_in_any_spelling_of_its_id(run: Run) -> None:
    assert run("explain", "Z-Image-Turbo").stdout.startswith("z_image_turbo")


def test_explain_of_an_unknown_name_offers_the_nearest(run: Run) -> None:
    done = run("explain", "encoder/widht")
    assert done.returncode == 2
    assert "encoder/width" in done.stderr


@pytest.mark.parametrize("command", ["check", "inspect", "report", "dryrun", "smoke"])
def test_help_lists_the_formats_that_a_command_has_and_no_other(
    run: Run, model: Callable[..., Path], command: str
) -> None:
    from compatkit.cli.options import FORMATS

    text = run(command, "--help").stdout
    listed = re.search(r"--format (\S+)", text)
    assert listed
    names = listed[1].split("|")
    assert f"[default: {names[0]}]" in " ".join(text.split())
    if command in ("dryrun", "smoke"):
        return
    for name in FORMATS:
        done = run(command, model("vae.safetensors", "flux1_vae"), "--format", name)
        assert (done.returncode == 2) == (name not in names), name


def test_a_file_of_no_tensors_is_called_that(run: Run, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "empty.safetensors", {})
    for command in ("inspect", "check"):
        text = run(command, "empty.safetensors").stdout
        assert "the file holds no tensors" in text
        assert "--assume" not in text


def test_schema_is_valid(run: Run) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(run("schema").stdout))


def test_demo_gives_both_answers_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    done = run("demo", env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL (" in done.stdout
    assert "PASS (" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_rules_list_and_stats(run: Run) -> None:
    assert "encoder/width" in run("rules", "list").stdout
    assert "median" in run("rules", "list", "--stats").stdout


def test_rules_test_of_one_family(run: Run) -> None:
    done = run("rules", "test", "z_image_turbo")
    assert done.returncode == 0
    assert "0 failures" in done.stdout


def test_a_users_rules_are_used_and_a_bad_one_is_refused_with_its_place(run: Run, tmp_path: Path) -> None:
    families = tmp_path / "mine" / "families"
    families.mkdir(parents=True)
    tensors = {f"stages.{i}.mix.weight": ("BF16", (96, 96)) for i in range(9)} | {"stem.weight": ("BF16", (96, 12))}
    path = tmp_path / "newcomer.safetensors"
    write_safetensors(path, tensors)
    assert run("inspect", path).returncode == 3
    drafted = run("rules", "draft", path, "--id", "newcomer").stdout
    (families / "newcomer.yaml").write_text(drafted)
    assert run("rules", "test", "newcomer", "--rules", "mine").returncode == 0
    document = json.loads(run("inspect", path, "--rules", "mine", "--format", "json").stdout)
    assert document["components"][0]["family"] == "newcomer"
    (families / "newcomer.yaml").write_text("id: newcomer\nrole: difusion\ntensors: {a: [1]}\n")
    done = run("check", path, "--rules", "mine")
    assert done.returncode == 2
    assert "newcomer.yaml:2:" in done.stderr
    assert "diffusion" in done.stderr


def test_a_users_rules_are_compiled_once_and_again_when_they_change(
    run: Run, model: Callable[..., Path], tmp_path: Path
) -> None:
    checks = tmp_path / "mine" / "checks"
    checks.mkdir(parents=True)
    (checks / "x.yaml").write_text("checks: []\n")
    model("x.safetensors", "clip_l")
    cache = {"COMPATKIT_CACHE": str(tmp_path / "cache")}
    arguments = ("check", "x.safetensors", "--rules", "mine")
    assert run(*arguments, env=cache).returncode == 0
    [made] = (tmp_path / "cache" / "rules").iterdir()
    before = (made / "manifest.json").stat().st_mtime_ns
    assert run(*arguments, env=cache).returncode == 0
    assert (made / "manifest.json").stat().st_mtime_ns == before
    (made / "manifest.json").write_text("{")  # cut off half way
    assert run(*arguments, env=cache).returncode == 0
    (checks / "x.yaml").write_text("checks: [{id: 5}]\n")
    assert run(*arguments, env=cache).returncode == 2
    run("cache", "clear", env=cache)
    assert not (tmp_path / "cache" / "rules").exists()


def test_a_rule_file_at_the_top_of_a_users_folder_is_used_or_refused(
    run: Run, model: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    model("x.safetensors", "clip_l")
    rule = (
        "{id: policy/none, level: error, title: t, binds: component, require: component.role == 'vae', message: m, "
        "why: w, examples: {fail: [{component: {role: lora}}], pass: [{component: {role: vae}}]}}"
    )
    (tmp_path / "mine" / "own.yaml").write_text(f"checks: [{rule}]\n")
    found = json.loads(run("check", "x.safetensors", "--rules", "mine", "--format", "json").stdout)
    assert "policy/none" in {f["rule"] for f in found["findings"]}
    (tmp_path / "mine" / "own.yaml").write_text("id: x\nrole: vae\ntensors: {a: [1]}\n")
    refused = run("check", "x.safetensors", "--rules", "mine")
    assert refused.returncode == 2
    assert "families/own.yaml" in refused.stderr


def test_version_and_help_are_quick_to_say(run: Run) -> None:
    assert run("--version").stdout.startswith("compatkit")
    assert "Exit codes" in run("--help").stdout
    done = run("chek")
    assert done.returncode == 2
    assert "check" in done.stderr


def test_the_python_functions(model: Callable[..., Path]) -> None:
    import compatkit

    path = model("x.safetensors", "z_image_turbo")
    assert compatkit.inspect(path)[0].family == "z_image_turbo"
    assert compatkit.check([path]).verdict == "pass"


def test_nothing_is_left_in_the_working_tree_by_a_run() -> None:
    done = subprocess.run(
        ["git", "status", "--porcelain", "--ignored", "rules"], cwd=ROOT, capture_output=True, text=True
    )
    assert all(".compiled" in line or not line.startswith("!!") for line in done.stdout.splitlines())
