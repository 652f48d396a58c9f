"""Logs as people paste them: time stamps, containers, colours, narrow terminals; and logs in which nothing is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from compatkit import api
from compatkit.checks.loglines import read

FINE = sorted((Path(__file__).parent / "logs").glob("*.log"))
MESSAGE = (
    "RuntimeError: Given groups=1, weight of size [4, 4, 1, 1], expected input[1, 16, 8, 8] to have 4 channels, "
    "but got 16 channels instead"
)
BAR = "".join(f" {i}%|█   | {i}/20 [00:0{i}<00:09, 1.1it/s]\n" for i in range(8))
NOISE = f"got prompt\nRequested to load SomeModel\n{BAR}"


@pytest.mark.parametrize("path", FINE, ids=lambda p: p.stem)
def test_a_run_in_which_all_went_well_has_no_cause(path: Path) -> None:
    assert api.diagnose(path.read_text(encoding="utf-8")) == []


def test_there_are_such_logs() -> None:
    assert len(FINE) >= 5


@pytest.mark.parametrize("path", FINE, ids=lambda p: p.stem)
def test_an_error_in_such_a_log_is_found(path: Path) -> None:
    log = path.read_text(encoding="utf-8").splitlines()
    middle = len(log) // 2
    causes = api.diagnose("\n".join([*log[:middle], "Traceback (most recent call last):", MESSAGE, *log[middle:]]))
    assert causes[0].rule == "vae/latent-channels", [(c.rule, c.matched) for c in causes]


@pytest.mark.parametrize(
    "prefix",
    [
        "2026-06-05T15:04:50.383696 - [ERROR] ",
        "2024-11-15 11:44:51,300 - root - ERROR - ",
        "comfyui-1  | ",
        "12:22:40.510 [Warning] [ComfyUI-0/STDERR] ",
        "[2026-02-01 15:04:30,216]::[InvokeAI]::ERROR --> ",
        "\x1b[31m[ERROR]\x1b[0m ",
        "> ",
        "E       ",
        "2026-01-01 10:00:00.000 [Debug] ComfyUI-0 on port 7821 stderr: ",
    ],
)
def test_what_stands_before_a_message_is_taken_off(prefix: str) -> None:
    log = NOISE + prefix + MESSAGE
    assert read(log)[-1].text == MESSAGE
    assert read(log)[-1].raised
    assert api.diagnose(log)[0].matched == MESSAGE


def test_what_a_narrow_terminal_broke_is_one_line() -> None:
    log = (
        "00:35:31-791891 ERROR    VAE decode: Given groups=1, weight of size [3, 4, 1, 1], expected input[1,\n"
        "                         32, 128, 128] to have 4 channels, but got 32 channels instead\n"
    )
    assert len(read(log)) == 1
    assert api.diagnose(NOISE + log)[0].captured["given"] == 32


def test_frames_of_a_traceback_stay_lines_of_their_own() -> None:
    frame = '  File "/a/very/long/path/to/some/module.py", line 3, in forward\n            x = self.proj(x)\n'
    log = f"Traceback (most recent call last):\n{frame}"
    assert len(read(log)) == 3


def test_the_message_in_a_server_s_answer() -> None:
    answer = '["execution_error", {"node_id": "9", "executed": [' + '"1", ' * 300
    answer += (
        r'], "exception_message": "Unexpected text model architecture type in GGUF file: \'gemma9\'\n", "traceback": ['
    )
    answer += '"  File x", ' * 300 + "]}]"
    assert api.diagnose(NOISE + answer)[0].rule == "loader/arch-unsupported"


def test_a_bar_that_wrote_over_itself() -> None:
    lines = read("  5%|#  | 1/20\r 10%|## | 2/20\rValueError: GGUF magic invalid")
    assert lines[-1].text == "ValueError: GGUF magic invalid"


def test_a_known_kind_of_chatter_counts_where_it_is_asked_about() -> None:
    line = "clip missing: ['text_projection.weight']"
    assert api.diagnose(line)[0].rule == "encoder/reading"
    assert api.diagnose(NOISE + line) == []


def test_what_happens_silently_counts_after_a_run_that_ended() -> None:
    log = (
        NOISE + "lora key not loaded: a.b.lora_A.weight\nfailed to import some package\nPrompt executed in 3.1 seconds"
    )
    assert {c.rule.partition("/")[0] for c in api.diagnose(log)} == {"lora"}


def test_a_package_that_was_passed_over_is_not_why_a_run_ended() -> None:
    noise = (
        "Traceback (most recent call last):\n"
        "FileNotFoundError: [Errno 2] No such file or directory: 'x/__init__.py'\n"
        "Cannot import /x module for custom nodes: [Errno 2] No such file or directory\n"
    )
    assert api.diagnose(f"{noise}{NOISE}KeyError: 'some.weight'")[0].rule == "loader/layout"
    assert api.diagnose(noise + NOISE)[0].rule.partition("/")[0] == "file"


def test_the_traceback_tells_which_part_ran_and_the_start_of_the_log_does_not() -> None:
    start = "ControlNet preprocessor location: /x, unknown models are ignored\nLoRA manager: no errors\n"
    message = "mat1 and mat2 shapes cannot be multiplied (77x768 and 4096x3072)"
    frame = 'Traceback (most recent call last):\n  File "/x/{}.py", line 1, in f\n    x = f(x)\nRuntimeError: '
    assert api.diagnose(start + NOISE + frame.format("model") + message)[0].rule == "encoder/width"
    assert api.diagnose(start + NOISE + frame.format("controlnet") + message)[0].rule == "adapter/base"


def test_what_torch_says_ended_the_run_also_without_the_name_of_an_exception() -> None:
    warning = "WARNING: no CLIP/text encoder weights in checkpoint, the text encoder model will not be loaded.\n"
    assert api.diagnose(NOISE + warning + MESSAGE.partition(": ")[2])[0].rule == "vae/latent-channels"


def test_an_exception_without_words_is_told_by_its_traceback() -> None:
    frames = "".join(f'  File "/x/a{i}.py", line {i}, in f\n    return f(x)\n' for i in range(9))
    last = '  File "/x/insightface/app/face_analysis.py", line 43, in __init__\n    assert "detection" in self.models\n'
    assert (
        api.diagnose(f"Traceback (most recent call last):\n{frames}{last}AssertionError")[0].rule
        == "adapter/image-encoder"
    )
