"""`compatkit check` and `inspect` of files that lie elsewhere, and `compatkit cache`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compatkit.headers.sparse import write_gguf, write_safetensors
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from tests.cli.conftest import Run
from tests.cli.test_check import validate
from tests.support.servers import Repo, Server, hub_server, range_server

QWEN = {
    "general.architecture": "qwen3",
    "qwen3.block_count": 36,
    "qwen3.embedding_length": 2560,
    "qwen3.feed_forward_length": 9728,
    "qwen3.attention.head_count": 32,
    "qwen3.attention.head_count_kv": 8,
    "qwen3.attention.key_length": 128,
}
SECRET = "hf_SECRETsecretSECRETsecret"


@pytest.fixture
def server(tmp_path: Path, model: Callable[..., Path]) -> Iterator[Server]:
    """A right set and a wrong encoder, served by range."""
    model("dit.safetensors", "z_image_turbo")
    model("vae.safetensors", "flux1_vae")
    model("wrong.safetensors", "gemma2_2b")
    shapes = example_shapes(load().grammar("qwen3_4b"), "gguf")
    write_gguf(tmp_path / "encoder.gguf", shapes, "Q4_K", QWEN, 151_936)
    with range_server(tmp_path) as made:
        yield made


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"COMPATKIT_CACHE": str(tmp_path / "cache"), "COMPATKIT_TIMEOUT": "5"}


def test_a_whole_set_costs_kilobytes_and_then_nothing(run: Run, server: Server, env: dict[str, str]) -> None:
    urls = [server.url(n) for n in ("dit.safetensors", "encoder.gguf", "vae.safetensors")]
    first = run("check", *urls, "--format", "json", env=env)
    assert first.returncode == 0, first.stdout + first.stderr
    report = json.loads(first.stdout)
    validate(report, "check")
    assert [c["family"] for c in report["components"]] == ["z_image_turbo", "qwen3_4b", "flux1_vae"] or [
        c["role"] for c in report["components"]
    ] == ["diffusion", "text_encoder", "vae"]
    assert report["cost"]["requests"] == len(server.log) == 3
    assert report["cost"]["bytes"] == server.sent < 500_000
    assert "file/truncated" in {n["rule"] for n in report["not_checked"]}
    before = server.sent
    again = run("check", *urls, env=env)
    assert again.returncode == 0
    assert server.sent == before
    assert "3 requests" in again.stdout
    offline = run("check", *urls, "--offline", env=env)
    assert offline.returncode == 0
    assert len(server.log) == 6


def test_a_wrong_set_fails_as_it_does_on_disk(run: Run, server: Server, tmp_path: Path, env: dict[str, str]) -> None:
    names = ("dit.safetensors", "wrong.safetensors", "vae.safetensors")
    far = json.loads(run("check", *(server.url(n) for n in names), "--format", "json", env=env).stdout)
    near = json.loads(run("check", *(tmp_path / n for n in names), "--format", "json", env=env).stdout)
    assert far["verdict"] == near["verdict"] == "fail"
    assert [(f["rule"], f["message"]) for f in far["findings"]] == [(f["rule"], f["message"]) for f in near["findings"]]
    facts = [(c["role"], c["family"], c["facts"], c["quantization"]) for c in far["components"]]
    assert facts == [(c["role"], c["family"], c["facts"], c["quantization"]) for c in near["components"]]


def test_full_reads_the_tensors_behind_the_vocabulary(run: Run, server: Server, env: dict[str, str]) -> None:
    brief = json.loads(run("inspect", server.url("encoder.gguf"), "--format", "json", env=env).stdout)["components"][0]
    assert server.sent < 128 * 1024
    assert len(server.log) == 1
    full = json.loads(run("inspect", server.url("encoder.gguf"), "--full", "--format", "json", env=env).stdout)
    component = full["components"][0]
    assert server.sent < 1.1 * component["header_bytes"]
    assert component["quantization"]["scheme"] == "Q4_K"
    assert "not_checked" not in component
    assert (component["family"], component["facts"]) == (brief["family"], brief["facts"])
    assert brief["not_checked"]


def test_what_cannot_be_had_leaves_the_verdict_open(run: Run, server: Server, env: dict[str, str]) -> None:
    with Server(lambda h, r: h.reply(r, 403)) as gated:
        done = run("check", server.url("dit.safetensors"), gated.url("vae.safetensors"), "--format", "json", env=env)
        assert run("check", gated.url("vae.safetensors"), env=env).returncode == 2
    report = json.loads(done.stdout)
    validate(report, "check")
    assert (done.returncode, report["verdict"]) == (3, "unknown")
    assert [f["rule"] for f in report["findings"]] == ["file/gated"]


def test_a_file_that_is_not_there_is_an_error(run: Run, server: Server, env: dict[str, str]) -> None:
    done = run("check", server.url("dit.safetensors"), server.url("no.safetensors"), "--format", "json", env=env)
    assert done.returncode == 1
    assert "file/not-found" in {f["rule"] for f in json.loads(done.stdout)["findings"]}
    assert run("check", server.url("no.safetensors"), env=env).returncode == 2


def test_a_page_in_place_of_the_file_is_a_finding(run: Run, env: dict[str, str]) -> None:
    with Server(lambda h, r: h.reply(r, 200, {}, b"<!DOCTYPE html><title>Log in</title>")) as server:
        done = run("check", server.url("x.safetensors"), env=env)
    assert done.returncode == 1
    assert "file/web-page" in done.stdout


def test_no_output_holds_a_secret(run: Run, tmp_path: Path, server: Server, env: dict[str, str]) -> None:
    repos = {"org/repo": Repo(tmp_path, token=SECRET)}
    with hub_server(repos) as hub:
        env = {**env, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": SECRET}
        for arguments in (
            ("check", "hf://org/repo/dit.safetensors"),
            ("check", "hf://org/repo/nothing.safetensors"),
            ("inspect", server.url("dit.safetensors") + f"?token={SECRET}", "-v"),
            ("inspect", server.url("none.safetensors") + f"?sig={SECRET}"),
            ("check", f"https://user:{SECRET}@example.org/x.safetensors"),
        ):
            for format_ in ("text", "json", "markdown"):
                done = run(*arguments, "--format", format_, env=env)
                assert "Traceback" not in done.stderr
                assert SECRET not in done.stdout + done.stderr
    assert any(r.headers.get("Authorization") == f"Bearer {SECRET}" for r in hub.log)
    assert not any(SECRET.encode() in p.read_bytes() for p in (tmp_path / "cache").iterdir())


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A diffusers folder whose two large parts are split into 59 shards."""
    root = tmp_path / "repo"
    index = {"_class_name": "ZImagePipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    for name, cls, family, layout, stem, shards in (
        ("transformer", "ZImageTransformer2DModel", "z_image_turbo", "diffusers", "diffusion_pytorch_model", 48),
        ("text_encoder", "Qwen3Model", "qwen3_4b", "hf", "model", 11),
        ("vae", "AutoencoderKL", "flux1_vae", "diffusers", "diffusion_pytorch_model", 1),
    ):
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps({"_class_name": cls}))
        index[name] = ["diffusers", cls]
        shapes = list(example_shapes(load().grammar(family), layout).items())
        weight_map = {}
        for number in range(shards):
            file = f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors" if shards > 1 else f"{stem}.safetensors"
            part = dict(shapes[number::shards])
            write_safetensors(root / name / file, part)
            weight_map |= dict.fromkeys(part, file)
        if shards > 1:
            (root / name / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (root / "model_index.json").write_text(json.dumps(index))
    return root


def test_a_repository_of_sixty_shards(run: Run, repository: Path, env: dict[str, str]) -> None:
    with hub_server({"org/repo": Repo(repository)}, latency=0.05) as hub:
        env = {**env, "HF_ENDPOINT": hub.endpoint}
        done = run("check", "hf://org/repo", "--format", "json", "--runtime", "diffusers", env=env)
        report = json.loads(done.stdout)
        assert (done.returncode, report["verdict"]) == (0, "pass"), report["findings"]
        assert [c["role"] for c in report["components"]] == ["diffusion", "text_encoder", "vae"]
        assert report["cost"]["requests"] == len(hub.log) <= 64
        assert hub.sent < 1_000_000
        assert hub.at_once > 4
        assert "loader/pipeline-class" in {n["rule"] for n in report["not_checked"]}  # configs were not read
        before = len(hub.log)
        full = json.loads(run("check", "hf://org/repo", "--full", "--format", "json", env=env).stdout)
        assert "loader/pipeline-class" not in {n["rule"] for n in full["not_checked"]}
        # all but the configs, and one value that --full reads, came from the cache under the commit of the listing
        assert len(hub.log) - before == 5
        near = json.loads(run("check", repository, "--format", "json", "--runtime", "diffusers", env=env).stdout)
    assert [c["facts"] for c in near["components"]] == [c["facts"] for c in report["components"]]


def test_a_part_of_a_repository(run: Run, repository: Path, env: dict[str, str]) -> None:
    shutil.copy(
        repository / "vae" / "diffusion_pytorch_model.safetensors",
        repository / "vae" / "diffusion_pytorch_model.fp16.safetensors",
    )
    with hub_server({"org/repo": Repo(repository)}) as hub:
        env = {**env, "HF_ENDPOINT": hub.endpoint}
        done = run("inspect", "hf://org/repo/vae", "--format", "json", env=env)
        document = json.loads(done.stdout)
        validate(document, "inspect")
        assert document["components"][0]["role"] == "vae"
        assert [f["rule"] for f in document["findings"]] == ["file/variants"]
        single = run("inspect", hub.url("org/repo/blob/main/vae/diffusion_pytorch_model.fp16.safetensors"), env=env)
        assert single.returncode == 0


def test_cache_info_and_clear(run: Run, server: Server, env: dict[str, str]) -> None:
    run("inspect", server.url("dit.safetensors"), env=env)
    assert json.loads(run("cache", "info", "--format", "json", env=env).stdout)["files"] == 1
    assert "1 file" in run("cache", "info", env=env).stdout
    assert "Forgot 1 file" in run("cache", "clear", env=env).stdout
    assert json.loads(run("cache", "info", "--format", "json", env=env).stdout)["files"] == 0
    assert "switched off" in run("cache", "info", env={**env, "COMPATKIT_CACHE": "off"}).stdout
