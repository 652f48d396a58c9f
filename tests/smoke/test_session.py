"""The scan as a user runs it: a process of its own, its bounds, its report; files elsewhere, split and pickled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from compatkit.headers import read_one
from compatkit.render.schema import schema
from compatkit.smoke import supervise
from compatkit.smoke.weights import Weights
from compatkit.sources.local import LocalSource
from tests.smoke.models import lora, patch, stored, weights, write, write_gguf, write_model
from tests.support.files import Typed
from tests.support.files import write_gguf as gguf_file
from tests.support.files import write_safetensors as sparse_safetensors
from tests.support.servers import range_server
from tests.support.torchfiles import Fake, write_torch

ROOT = Path(__file__).resolve().parents[2]
W2 = "layers.2.feed_forward.w2.weight"


def compatkit(*arguments: str | Path, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "compatkit", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def children(parent: int | None = None) -> set[int]:
    """Processes of the worker that are there; of that process, if one is named."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                started_by = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if b"compatkit.smoke.worker" in (entry / "cmdline").read_bytes() and parent in (None, started_by):
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture
def no_worker_is_left() -> Iterator[None]:
    if not Path("/proc").is_dir():
        pytest.skip("there is no /proc to look for processes in")
    before = children()
    yield
    deadline = time.monotonic() + 10
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children() - before


def test_the_command_finds_and_names(tmp_path: Path, no_worker_is_left: None) -> None:
    values = weights()
    values[W2][3, 17] = np.nan
    write_model(tmp_path / "dit.safetensors", values)
    ran = compatkit("smoke", "--scan", "dit.safetensors", "-o", "report.json", cwd=tmp_path)
    assert ran.returncode == 1
    assert ran.stdout.startswith("FAIL (weights of ")
    for text in ("smoke/nan", "dit.safetensors", W2, "[3, 17]", "Weights: 23 tensors"):
        assert text in ran.stdout
    assert "Traceback" not in ran.stderr
    document = json.loads((tmp_path / "report.json").read_text())
    jsonschema.Draft202012Validator(schema()).validate(document)
    (finding,) = (f for f in document["findings"] if f["rule"] == "smoke/nan")
    assert finding["evidence"]["tensor"] == W2
    assert finding["evidence"]["module"] == "layers.2.feed_forward.w2"
    assert finding["evidence"]["count"] == 1
    measured = document["smoke"]["scan"]["files"][0]["measured"]
    assert measured[W2]["nan"] == 1
    assert measured[W2]["rms"] == pytest.approx(0.0201, rel=0.1)


def test_a_lora_is_known_and_passes(tmp_path: Path) -> None:
    write_model(tmp_path / "l.safetensors", lora(), "F16")
    ran = compatkit("smoke", "--scan", "l.safetensors", cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.startswith("PASS (weights of lora)")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--memory", "lots"], "'lots' is no size"),
        (["--timeout", "0"], "0"),
        (["--only", "nothing.*"], "no tensor of these files has a name like that"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(tmp_path: Path, arguments: list[str], said: str) -> None:
    write_model(tmp_path / "m.safetensors")
    ran = compatkit("smoke", "--scan", "m.safetensors", *arguments, cwd=tmp_path)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_only_some_tensors(scan: Any, tmp_path: Path) -> None:
    values = weights()
    values[W2][0, 0] = np.nan
    path = write_model(tmp_path / "m.safetensors", values)
    report = scan(path, only=["layers.1.*", "final.weight"])
    assert report.smoke["scan"]["files"][0]["tensors"] == 6
    assert not [f for f in report.findings if f.rule == "smoke/nan"]
    assert any("6 of 23 tensors were chosen" in n.why for n in report.not_checked)


# -- bounds ----------------------------------------------------------------------------------------------------------


def job(path: Path) -> dict[str, Any]:
    return {"do": "scan", "sources": [str(path)]}


def test_too_slow_is_ended_and_said(tmp_path: Path, no_worker_is_left: None) -> None:
    path = write_model(tmp_path / "m.safetensors")
    outcome = supervise.run(job(path), lambda event: None, timeout=0.001)
    assert "longer than the 0.001 seconds" in outcome.why


def test_too_much_memory_is_ended_and_said(tmp_path: Path, no_worker_is_left: None) -> None:
    path = write_model(tmp_path / "m.safetensors")
    outcome = supervise.run(job(path), lambda event: None, memory=100_000)
    if outcome.peak == 0 and not outcome.why:
        pytest.skip("the system does not tell a process's memory")
    assert "memory" in outcome.why


def test_a_scan_that_did_not_end_leaves_the_verdict_open(tmp_path: Path) -> None:
    write_model(tmp_path / "l.safetensors", lora(), "F16")
    ran = compatkit("smoke", "--scan", "l.safetensors", "--timeout", "0.01", "--format", "json", cwd=tmp_path)
    document = json.loads(ran.stdout)
    assert (ran.returncode, document["verdict"]) == (3, "unknown")
    assert any("longer than" in n["why"] for n in document["not_checked"])
    assert document["smoke"]["scan"]["complete"] is False


def test_a_worker_that_dies_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_worker_is_left: None) -> None:
    path = write_model(tmp_path / "m.safetensors")

    start = supervise._start
    process: list[subprocess.Popen[bytes]] = []

    def started(environment: Any) -> subprocess.Popen[bytes]:
        process.append(start(environment))
        os.kill(process[0].pid, signal.SIGBUS)
        return process[0]

    monkeypatch.setattr(supervise, "_start", started)
    assert "became shorter while it was read" in supervise.run(job(path), lambda event: None).why


def test_an_interrupt_ends_the_worker(tmp_path: Path, no_worker_is_left: None) -> None:
    path = write_model(tmp_path / "m.safetensors")

    def interrupt(event: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise.run(job(path), interrupt)


def test_a_worker_whose_master_is_gone_ends(tmp_path: Path, no_worker_is_left: None) -> None:
    process = supervise._start({})
    assert process.stdin is not None
    process.stdin.write(b'{"do": "scan", "sources": []}\n')
    process.stdin.close()  # as when the process that started it was killed
    assert process.wait(30) is not None
    for stream in (process.stdout, process.stderr):
        assert stream is not None
        stream.close()


# -- other kinds of source ---------------------------------------------------------------------------------------------


def test_shards_are_one_model(scan: Any, tmp_path: Path) -> None:
    values = {n: stored(v, "BF16") for n, v in weights().items()}
    names = list(values)
    parts = [names[:10], names[10:]]
    where = {}
    for i, part in enumerate(parts, 1):
        file = f"model-0000{i}-of-00002.safetensors"
        write(tmp_path / file, {n: values[n] for n in part})
        where |= dict.fromkeys(part, file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    patch(tmp_path / "model-00002-of-00002.safetensors", W2, b"\xc0\x7f", 10)
    report = scan(index)
    (finding,) = (f for f in report.findings if f.rule == "smoke/nan")
    assert finding.evidence["file"] == "model-00002-of-00002.safetensors"
    assert report.smoke["scan"]["files"][0]["tensors"] == len(values)


def test_a_torch_checkpoint_is_read_and_not_unpickled(scan: Any, tmp_path: Path) -> None:
    tensors = {n: ("F16", v.shape) for n, v in weights().items()}
    path = write_torch(tmp_path / "m.pth", {"state_dict": tensors})
    for name, value in weights().items():
        patch(path, name, value.astype("<f2").tobytes())
    assert not [f for f in scan(path).findings if f.rule.startswith("smoke/")]
    patch(path, W2, b"\x00\x7c", 20)
    (finding,) = (f for f in scan(path).findings if f.rule.startswith("smoke/"))
    assert (finding.rule, finding.evidence["tensor"], finding.evidence["at"]) == ("smoke/inf", W2, "[0, 10]")


def test_a_strided_tensor_is_said_to_be_left_out(scan: Any, tmp_path: Path) -> None:
    path = write_torch(
        tmp_path / "m.pth", {"a.weight": Fake("F32", (4, 6), stride=(1, 4)), "b.weight": ("F32", (4, 6))}
    )
    report = scan(path)
    assert any("a.weight not read: it is a strided view" in n.why for n in report.not_checked)
    assert report.smoke["scan"]["files"][0]["tensors"] == 1


def test_a_file_elsewhere_is_scanned_where_it_is_chosen(scan: Any, tmp_path: Path) -> None:
    values = weights()
    values[W2][1, 2] = np.inf
    path = write_model(tmp_path / "m.safetensors", values)
    with range_server(tmp_path) as server:
        report = scan(server.url("m.safetensors"), only=["layers.2.*"])
        (finding,) = (f for f in report.findings if f.rule == "smoke/inf")
        assert finding.evidence["tensor"] == W2
        assert sum(r.sent for r in server.log) < path.stat().st_size / 2
        before = len(server.log)
        scan(server.url("m.safetensors"), only=[W2])

        def again() -> bool:
            return any(r.sent > 60_000 and not r.range.startswith("bytes=0-") for r in server.log[before:])

        until = time.monotonic() + 10  # the server notes what it sent after the reader has it
        while not again() and time.monotonic() < until:
            time.sleep(0.05)
        assert again(), "weights are kept in the header cache"


def test_a_file_elsewhere_is_not_fetched_whole_by_accident(tmp_path: Path) -> None:
    write_model(tmp_path / "m.safetensors")
    with range_server(tmp_path) as server:
        ran = compatkit("smoke", "--scan", server.url("m.safetensors"), cwd=tmp_path)
        assert ran.returncode == 2
        assert "--only" in ran.stderr
        assert sum(r.sent for r in server.log) < 200_000


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4", "TQ2_0", "BF16"]
)
def test_gguf_weights_are_those_of_the_gguf_package(tmp_path: Path, type_name: str) -> None:
    gguf = pytest.importorskip("gguf")
    values = {n: np.tile(v, (1, 2)) for n, v in weights(layers=1).items() if v.ndim == 2}
    path = write_gguf(tmp_path / "m.gguf", type_name, values)
    reader = {t.name: t for t in gguf.GGUFReader(path).tensors}
    with Weights.open(str(path)) as opened:
        for name, value in values.items():
            theirs = gguf.dequantize(reader[name].data, reader[name].tensor_type).reshape(value.shape)
            np.testing.assert_array_equal(opened.float32(name), theirs)
            np.testing.assert_array_equal(opened.float32(name, 3, 9), theirs[3:9])
            assert opened.float32(name).shape == value.shape


def test_views_copy_nothing_and_end_with_their_holder(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors", dtype="F32")
    with Weights.open(str(path)) as opened:
        view = opened.float32(W2)
        assert not view.flags.owndata
        assert not view.flags.writeable
        np.testing.assert_array_equal(view, weights()[W2])
        opened.release(W2)
        np.testing.assert_array_equal(view, weights()[W2])


def test_a_split_gguf_is_one_model(scan: Any, tmp_path: Path) -> None:
    values = {n: v for n, v in weights().items() if v.ndim == 2}
    names = list(values)
    for number, part in enumerate((names[:8], names[8:])):
        split = {
            "general.architecture": "llama",
            "split.no": Typed("uint16", number),
            "split.count": Typed("uint16", 2),
            "split.tensors.count": Typed("int32", len(names)),
        }
        path = tmp_path / f"m-0000{number + 1}-of-00002.gguf"
        gguf_file(path, {n: ("F16", values[n].shape) for n in part}, split)
        at = read_one(LocalSource(path)).tensors
        with path.open("r+b") as f:
            for name in part:
                f.seek(at[name].offset)
                f.write(values[name].astype("<f2").tobytes())
            if W2 in part:
                f.seek(at[W2].offset + 2 * 300)
                f.write(b"\x00\xfc")
    report = scan(tmp_path / "m-00001-of-00002.gguf")
    (finding,) = (f for f in report.findings if f.rule.startswith("smoke/"))
    assert (finding.rule, finding.evidence["tensor"]) == ("smoke/inf", W2)
    assert finding.evidence["file"] == "m-00002-of-00002.gguf"
    assert report.smoke["scan"]["files"][0]["tensors"] == len(names)


def test_a_checkpoint_of_old_torch_is_read(scan: Any, tmp_path: Path) -> None:
    values = weights(layers=1)
    data = {n: Fake("F32", v.shape, data=v.astype("<f4").tobytes()) for n, v in values.items()}
    path = write_torch(tmp_path / "m.ckpt", {"state_dict": data}, legacy=True)
    assert not [f for f in scan(path).findings if f.rule.startswith("smoke/")]
    name = "layers.0.attention.out.weight"
    patch(path, name, np.array([np.nan], "<f4").tobytes(), 4 * 129)
    (finding,) = (f for f in scan(path).findings if f.rule.startswith("smoke/"))
    assert (finding.rule, finding.evidence["at"]) == ("smoke/nan", "[1, 1]")


HEEDING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from compatkit.cli import main
main()
"""


def test_ctrl_c(tmp_path: Path, no_worker_is_left: None) -> None:
    path = tmp_path / "m.safetensors"
    sparse_safetensors(path, {f"layers.{i}.weight": ("BF16", (10240, 10240)) for i in range(60)})  # 12 GB, no disk
    process = subprocess.Popen(
        # A test run in the background of a shell ignores the signal, and so would what it starts.
        [sys.executable, "-c", HEEDING, "smoke", "--scan", str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not children(process.pid) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Interrupted." in err
    assert "Traceback" not in err
    assert not out


def test_a_terminal_gets_a_bar_and_its_cursor_back(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="there are no terminals of this kind here")
    write_model(tmp_path / "m.safetensors", lora(), "F16")
    ours, theirs = pty.openpty()
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "compatkit", "smoke", "--scan", "m.safetensors"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=120,
            check=False,
        )
        os.set_blocking(ours, False)
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert ran.returncode == 0
    assert "m.safetensors" in shown
    assert "100%" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")  # shown again after it was hidden
    assert b"\x1b" not in ran.stdout


def test_a_place_is_named_only_where_it_is_known(scan: Any, tmp_path: Path) -> None:
    values = weights()
    values[W2][100, 33] = 50.0
    path = write_model(tmp_path / "m.safetensors", values)

    def place(report: Any) -> str:
        (finding,) = (f for f in report.findings if f.rule == "smoke/outlier")
        return str(finding.evidence["at"])

    assert place(scan(path)) == "[100, 33]"
    with range_server(tmp_path) as server:
        assert place(scan(server.url("m.safetensors"), only=["*"])) == ""
