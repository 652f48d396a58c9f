"""What is said of what was run: confirmed by the header checks, against them, behind an earlier error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from compatkit.checks import judge
from compatkit.dryrun.dry import dry_run, joined
from compatkit.dryrun.run import WorkerError
from compatkit.knowledge.store import load
from compatkit.vocabulary import Finding, Report, Stack
from tests.support.sets import stack

NORM = "Given normalized_shape=[2560], expected input with shape [*2560], but got input of size[1, 18, 2304]"


class Fake:
    """A process with torch that says what a test wants."""

    environment: Mapping[str, Any] = {"torch": "2.99.0"}

    def __init__(self, says: Callable[[dict[str, Any]], str] = lambda chain: "", failure: str = "") -> None:
        self.says, self.failure = says, failure

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self.failure:
            self.environment = {}
            raise WorkerError(self.failure)
        return {"results": [self._result(c) for c in request["chains"]]}

    def _result(self, chain: dict[str, Any]) -> dict[str, Any]:
        text = self.says(chain)
        if not text:
            return {"ok": True}
        return {"ok": False, "step": 0, "error": "RuntimeError", "message": text, "input": chain["input"]}


def at(op: str, text: str = NORM) -> Callable[[dict[str, Any]], str]:
    """Fails where the first operation is this one."""
    return lambda chain: text if chain["steps"][0]["op"] == op else ""


def run(made: Stack, fake: Fake) -> Report:
    return dry_run(made, load(), judge(made, load()), fake)  # type: ignore[arg-type]


def one(report: Report, rule: str) -> Finding:
    [found] = [f for f in report.findings if f.rule == rule]
    return found


def test_a_finding_names_both_files_the_text_and_the_rule_it_confirms() -> None:
    report = run(stack("z_image_turbo", "gemma2_2b"), Fake(at("rms_norm")))
    found = one(report, "dryrun/context")
    assert report.verdict == "fail"
    assert "2.99.0" in report.headline
    assert found.predicts == {"comfyui": NORM}
    assert found.evidence["confirms"] == "encoder/width"
    assert found.evidence["message"] == NORM
    assert found.fix.startswith("Use Qwen3-4B")
    files = [(t["file"], t["shape"]) for t in found.evidence["tensors"]]
    assert files == [("gemma2_2b.safetensors", [1, 18, 2304]), ("z_image_turbo.safetensors", [2560])]
    assert "dryrun/disagrees" not in {f.rule for f in report.findings}


def test_the_verdict_is_that_of_the_run_alone() -> None:
    made = stack("z_image_turbo", "gemma3_4b")  # right width, wrong encoder: nothing stops it
    report = run(made, Fake())
    assert judge(made, load()).verdict == "fail"
    assert report.verdict == "pass"
    assert report.findings == ()
    assert joined(judge(made, load()), report).verdict == "fail"


def test_a_header_check_that_claims_an_error_which_does_not_happen_is_said_to_be_wrong() -> None:
    report = run(stack("z_image_turbo", "gemma2_2b"), Fake())
    found = one(report, "dryrun/disagrees")
    assert found.level == "warning"
    assert found.evidence["rule"] == "encoder/width"
    assert report.verdict == "pass"


def test_an_error_that_no_header_check_knows_is_said_too() -> None:
    report = run(stack("z_image_turbo", "qwen3_4b"), Fake(at("rms_norm")))
    assert one(report, "dryrun/disagrees").evidence["rule"] == ""
    assert report.verdict == "fail"


def test_what_comes_after_an_error_says_that_it_does() -> None:
    made = stack("z_image_turbo", "gemma2_2b", "sdxl_vae")
    report = run(made, Fake(lambda c: NORM if c["steps"][0]["op"] in ("rms_norm", "conv2d") else ""))
    assert [f.rule for f in report.findings][:2] == ["dryrun/context", "dryrun/vae"]
    assert "Reached only once the error at cap_embedder.0 is repaired" in one(report, "dryrun/vae").message


@pytest.mark.parametrize(
    ("failure", "fix"),
    [
        ("ModuleNotFoundError: No module named 'torch'", "pip install torch ("),
        ("RuntimeError: operator torchvision::nms does not exist", "torchvision"),
        ("no answer within 300 seconds", "torch"),
    ],
)
def test_torch_that_cannot_be_used_is_the_machines_fault_and_leaves_the_verdict_open(failure: str, fix: str) -> None:
    report = run(stack("z_image_turbo", "qwen3_4b"), Fake(failure=failure))
    assert report.verdict == "unknown"
    assert fix in one(report, "dryrun/environment").fix
    told = "torch is not installed" if failure.startswith("Module") else failure
    assert any(n.rule == "dryrun/context" and told in n.why for n in report.not_checked)
    assert "ModuleNotFoundError" not in one(report, "dryrun/environment").message


def test_a_set_with_nothing_to_meet_passes_and_says_what_was_not_there() -> None:
    report = run(stack("clip_l"), Fake(failure="must not be asked"))
    assert report.verdict == "pass"
    assert any(n.rule == "dryrun/context" for n in report.not_checked)
    assert "0 probes" in report.headline


def test_the_worse_verdict_counts_where_both_are_joined() -> None:
    made = stack("z_image_turbo", "qwen3_4b")
    header, dry = judge(made, load()), run(made, Fake(failure="RuntimeError: broken"))
    both = joined(header, dry)
    assert (header.verdict, dry.verdict, both.verdict) == ("pass", "unknown", "unknown")
    assert set(header.checked) | set(dry.checked) == set(both.checked)
    assert both.headline.startswith("unknown (")
    assert "dry run" in both.headline
