"""Files whose names, tensors and metadata are meant to break a report, and places that are nobody's business.

Through the commands, in every format and language.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from compatkit.cli import cli
from compatkit.headers.sparse import write_gguf, write_safetensors
from tests.render.reports import HOSTILE
from tests.render.test_incident import harmless

CHECKS = ("text", "json", "markdown", "html", "sarif", "junit", "github")
REPORTS = ("markdown", "html", "json")
#: What a terminal, a viewer or a browser would act on.
FORBIDDEN = {"\x1b", "\u202e", "\u2066", "\x00", "\x07", "\r"}


def run(*arguments: str) -> Result:
    ran = CliRunner().invoke(cli, list(arguments))
    assert ran.exit_code in (0, 1, 3), ran.output[:2000]
    assert ran.exception is None or isinstance(ran.exception, SystemExit)
    return ran


def inert(kind: str, text: str) -> None:
    assert not FORBIDDEN & set(text)
    if kind == "html":
        harmless(text)
    elif kind in ("json", "sarif"):
        json.loads(text)
    elif kind == "junit":
        ET.fromstring(text.encode("utf-8"))
    elif kind == "github":
        commands = [line for line in text.split("\n") if line.startswith("::")]
        assert all(re.match(r"::(error|warning|notice) ", c) for c in commands)
    elif kind == "markdown":
        text = re.sub(r"(?m)^    .*$", "", text)  # the command to repeat it, as it would be typed
        plain = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
        assert not re.search(r"(?<!\\)\]\(|(?<!\\)<\w", plain)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A safetensors file and a GGUF that hold every hostile text wherever a file can hold one."""
    folder = tmp_path_factory.mktemp("hostile")
    texts = [t.encode("utf-8", "replace").decode().replace("\x00", "\u2400") for t in HOSTILE]
    shapes = {f"{t} {i}": (4, 4) for i, t in enumerate(texts)}
    metadata = {f"k{i} {t}": t for i, t in enumerate(texts)} | {"modelspec.title": "](javascript:alert(1))<script>"}
    name = "a ](javascript:alert(1)) <img src=x onerror=alert(1)> \u202egnp.\x1b[31m.safetensors"
    write_safetensors(folder / name, shapes, "F16", metadata)
    write_gguf(folder / "b`|`.gguf", shapes, "F16", {"general.architecture": texts[3], "general.name": texts[4]})
    return [str(folder / name), str(folder / "b`|`.gguf")]


@pytest.mark.parametrize("kind", CHECKS)
def test_check_stays_inert_in_every_format(hostile: list[str], kind: str) -> None:
    inert(kind, run("check", *hostile, "--format", kind, "--color", "never").stdout)


@pytest.mark.parametrize("language", ["en", "fr"])
@pytest.mark.parametrize("kind", REPORTS)
def test_reports_stay_inert_in_every_format_and_language(
    hostile: list[str], kind: str, language: str, tmp_path: Path
) -> None:
    log = tmp_path / "x.log"
    lines = [f"lora key not loaded: {t}" for t in HOSTILE] + [f"KeyError: '{t}.weight'" for t in HOSTILE]
    lines += [f"Device: cuda:0 {t}" for t in HOSTILE] + [f"ComfyUI version: {t}" for t in HOSTILE]
    log.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    ran = run("report", *hostile, "--log", str(log), "--lang", language, "--format", kind)
    inert(kind, ran.stdout)


@pytest.mark.parametrize("kind", ["text", "json"])
@pytest.mark.parametrize("text", HOSTILE)
def test_explain_stays_inert(kind: str, text: str) -> None:
    ran = run("explain", f"RuntimeError: VAE {text} CUDA out of memory {text}", "--format", kind, "--color", "never")
    assert not (FORBIDDEN - {"\r"} if kind == "json" else FORBIDDEN) & set(ran.stdout)


def test_names_of_ten_megabytes_stay_bounded(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    write_safetensors(path, {"x" * 10_000_000: (2, 2), "y": (2, 2)}, "F16", {"note": "z" * 10_000_000})
    for kind in CHECKS:
        assert len(run("check", str(path), "--format", kind, "--color", "never").stdout) < 2_000_000, kind
    for kind in REPORTS:
        assert len(run("report", str(path), "--format", kind).stdout) < 2_000_000, kind


# -- what a report must not tell --------------------------------------------------------------------------------------


def test_no_report_tells_who_or_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home" / "ada.lovelace"
    models, smoke, rules = home / "my secret models", home / "smoke results", home / "own rules"
    for folder in (models, smoke, rules):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "ada.lovelace")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwx")
    write_safetensors(models / "x.safetensors", {"a.weight": (2, 2)}, "F16")
    (models / "cut.safetensors").write_bytes(b"\x80\x01\x00\x00\x00\x00\x00\x00{")
    (smoke / "report.json").write_text(
        json.dumps({
            "tool": "compatkit", "verdict": "fail", "components": [{"source": f"{models}/x.safetensors"}],
            "findings": [{"rule": "smoke/nan", "level": "error", "components": [0], "message": f"{models}/x has NaN",
                          "fix": f"look at {home}", "evidence": {"file": f"{models}/x.safetensors"}}],
            "smoke": {"run": {"places": [{"module": f"{home}/m{i}", "max_abs": i + 1.0} for i in range(3)]}},
        })
    )  # fmt: skip
    log = home / "comfyui.log"
    log.write_text(
        f'  File "{home}/ComfyUI/execution.py", line 5, in execute\n'
        f"FileNotFoundError: [Errno 2] No such file or directory: '{models}/y.safetensors'\n"
        "OSError: 401 Client Error for url: https://ada:pw@example.org/x?token=hf_abcdefghijklmnopqrstuvwx\n"
        f"Device: cuda:0 {home}\nComfyUI version: 1 Authorization: Bearer abcdef0123456789abcdef\n"
    )
    monkeypatch.chdir(models)
    for sources in (
        ["x.safetensors", "cut.safetensors"],
        [str(models / "x.safetensors"), str(models / "cut.safetensors")],
    ):
        for kind in REPORTS:
            for language in ("en", "fr"):
                ran = run(
                    "report", *sources, "--log", str(log), "--smoke", str(smoke), "--rules", str(rules),
                    "--lang", language, "--format", kind,
                )  # fmt: skip
                for secret in ("lovelace", "secret", "hf_abc", "abcdef0123456789", str(tmp_path)):
                    assert secret not in ran.stdout, (kind, secret)
                assert "x.safetensors" in ran.stdout
                assert os.sep + "home" not in ran.stdout
