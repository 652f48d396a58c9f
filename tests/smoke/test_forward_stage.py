"""The stage that runs a set, without torch: what it says where nothing can be run, and what is asked of the worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec.structs import replace

from benchmarks import weights as made
from compatkit import api
from compatkit.cli.smoke_command import command
from compatkit.knowledge.store import load
from compatkit.smoke import ran, session, supervise
from compatkit.vocabulary import Report

TINY = "tae_flux2"
PLACE = {"module": "up.1", "op": "mm", "max_abs": 150000.0, "count": 0}


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae") / "tiny.safetensors"
    made.write(path, TINY, "bf16", scale=False)
    return path


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch, vae: Path) -> Callable[..., tuple[Report, dict[str, Any]]]:
    """(report, the job the worker was given) of a run in which these events came."""

    def run(*events: Mapping[str, Any], why: str = "", **how: Any) -> tuple[Report, dict[str, Any]]:
        jobs: list[dict[str, Any]] = []

        def do(job: Any, on_event: Callable[[Any], None], **_: Any) -> supervise.Outcome:
            jobs.append(job)
            for event in events:
                on_event(event)
            return supervise.Outcome(why, 1.0, 5)

        monkeypatch.setattr(supervise, "run", do)
        report = session.weights_only(api.check([str(vae)], full=True))
        return ran.ran(report, [str(vae)], load(), session.Limits(), ran.Run(**how)), jobs[0]

    return run


def call(**more: Any) -> dict[str, Any]:
    base = {
        "event": "run", "component": 0, "call": "decode", "step": 1, "given": "a made-up latent", "dtype": "bfloat16",
        "device": "cpu", "seconds": 1.0, "largest": {**PLACE, "max_abs": 12.0}, "broken": None, "runaway": None,
        "above": [], "above_count": 0, "near": [], "modules": [["up.1", 12.0]], "output": {"std": 1.0},
    }  # fmt: skip
    return {**base, **more}


def found(report: Report) -> dict[str, str]:
    return {f.rule: f.level for f in report.findings}


def test_a_clean_run_passes(judged: Any) -> None:
    report, job = judged(call())
    assert (report.verdict, found(report)) == ("pass", {})
    assert job["members"][0]["family"] == TINY
    assert {"smoke/nan-activation", "smoke/fp16-overflow"} <= set(report.checked)


def test_the_first_broken_operation_is_an_error(judged: Any) -> None:
    report, _ = judged(call(), call(broken={**PLACE, "count": 7}))
    (finding,) = report.findings
    assert (finding.rule, finding.level, finding.evidence["module"]) == ("smoke/nan-activation", "error", "up.1")
    assert "7 NaN" in finding.message
    assert report.verdict == "fail"


@pytest.mark.parametrize(("settings", "rule"), [({}, "smoke/fp16-overflow"), ({"dtype": "fp16"}, "smoke/fp16-asked")])
def test_what_would_overflow_fp16_is_said_as_loudly_as_fp16_is_meant(judged: Any, settings: Any, rule: str) -> None:
    wide = call(largest=PLACE, above=[PLACE], above_count=1, near=[PLACE])
    report, job = judged(wide, settings=settings)
    assert list(found(report)) == [rule]
    assert job["dtype"] == ("float16" if settings else None)


def test_what_was_not_run_is_no_pass(judged: Any) -> None:
    skipped = {"event": "skipped", "component": 0, "why": "no class is known"}
    report, _ = judged(skipped)
    assert report.verdict == "unknown"
    assert any("no class is known" in n.why and n.blocks for n in report.not_checked)
    report, _ = judged(call(), why="it took longer than the 5 seconds it had")
    assert report.verdict == "unknown"


def test_noise_of_a_vae_alone_says_nothing_and_a_black_picture_does(judged: Any) -> None:
    def picture(verdict: str) -> dict[str, Any]:
        fields = {"verdict": verdict, "why": "so it is", "path": ""}
        return {"event": "picture", "component": 0, "given": "the latent of the model", "fields": fields}

    assert found(judged(call(), picture("noise"))[0]) == {}
    assert found(judged(call(), picture("black"))[0]) == {"smoke/picture": "error"}


def test_a_bisection_names_the_file(judged: Any) -> None:
    event = {
        "event": "bisect", "component": 0, "swap": "dtype", "why": "in a wider dtype it runs", "broken": "up.1 (mm)",
        "where": 0, "tried": [{"swap": "dtype", "broken": ""}],
    }  # fmt: skip
    report, _ = judged(call(broken=PLACE), event)
    (finding,) = [f for f in report.findings if f.rule == "smoke/bisect"]
    assert finding.components == (0,)
    assert finding.evidence["tried"] == ["dtype: runs"]


def test_a_file_elsewhere_is_not_run(monkeypatch: pytest.MonkeyPatch, vae: Path) -> None:
    monkeypatch.setattr(ran, "is_remote", lambda _: True)
    report = session.weights_only(api.check([str(vae)], full=True))
    done = ran.ran(report, [str(vae)], load(), session.Limits(), ran.Run())
    assert done.verdict == "unknown"
    assert any("is not on this machine" in n.why for n in done.not_checked)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "CUDA", ""])
def test_a_device_that_is_none_is_refused_with_a_sentence(vae: Path, device: str) -> None:
    done = CliRunner().invoke(command, [str(vae), "--device", device])
    assert done.exit_code == 2
    assert "is no device: write cpu, cuda or cuda:N" in done.output


def test_a_set_of_which_nothing_could_be_run_is_no_pass(vae: Path) -> None:
    report = api.check([str(vae)], full=True)
    (component,) = report.components
    alone = replace(report, components=(replace(component, role="lora", family=None),))
    assert alone.verdict == "pass"
    told = ran.ran(alone, [str(vae)], load(), session.Limits(), ran.Run())
    assert told.verdict == "unknown"
    assert any(n.why.startswith("nothing was run") for n in told.not_checked)
    assert "; nothing was run: " in told.headline
