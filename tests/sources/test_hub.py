"""The Hub: files, repositories, folders, tokens, gates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from compatkit.headers import open_header
from compatkit.sources.address import parse
from compatkit.sources.hub import HubFolder, HubSource, token
from compatkit.sources.network import Network
from compatkit.sources.open import open_place, open_source
from compatkit.vocabulary import SourceError
from tests.support.files import write_safetensors, write_sharded
from tests.support.servers import Repo, Server, hub_server, range_server

SECRET = "hf_SECRETsecretSECRETsecret"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    root = tmp_path / "repo"
    (root / "sub").mkdir(parents=True)
    write_safetensors(root / "x.safetensors", {f"layers.{i}.weight": ("BF16", (640, 1280)) for i in range(1500)})
    write_sharded(root / "sub", [{f"m{i}.w": ("BF16", (64, 64))} for i in range(3)])
    return root


@pytest.fixture
def hub(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    repos = {"org/open": Repo(files), "org/private": Repo(files, token=SECRET), "org/gated": Repo(files, gated=True)}
    with hub_server(repos) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def test_a_file_by_every_spelling(hub: Server, network: Network) -> None:
    for text in (
        "hf://org/open/x.safetensors",
        "hf://org/open@main/x.safetensors",
        hub.url("org/open/blob/main/x.safetensors"),
        "https://huggingface.co/org/open/resolve/main/x.safetensors?download=true",
    ):
        with open_source(text, network=network) as source:
            assert len(open_header(source).tensors) == 1500
            assert source.name == text


def test_the_commit_is_learned_and_pins_the_siblings(hub: Server, network: Network) -> None:
    with open_source("hf://org/open/sub/model.safetensors.index.json", network=network) as source:
        assert isinstance(source, HubSource)
        assert len(source.commit) == 40
        header = open_header(source)
        assert source.commit in source.identity
    assert len(header.tensors) == 3
    assert sum(source.commit in r.path for r in hub.log) == 3


def test_a_folder_is_one_listing(hub: Server, network: Network) -> None:
    folder = open_place("hf://org/open", network=network)
    assert isinstance(folder, HubFolder)
    assert folder.names() == ["sub", "x.safetensors"]
    assert folder.has("sub/model.safetensors.index.json")
    assert folder.where("sub/x") == "hf://org/open/sub/x"
    assert len(hub.log) == 1
    inside = open_place("https://huggingface.co/org/open/tree/main/sub", network=network)
    assert isinstance(inside, HubFolder)
    assert "model.safetensors.index.json" in inside.names()


@pytest.mark.parametrize(
    ("text", "rule", "words"),
    [
        ("hf://org/gated/x.safetensors", "file/gated", "licence"),
        ("hf://org/private/x.safetensors", "file/gated", "private"),
        ("hf://org/nothing/x.safetensors", "file/gated", "private"),
        ("hf://org/open/y.safetensors", "file/not-found", "org/open"),
        ("hf://org/open@v9/x.safetensors", "file/not-found", "v9"),
        ("hf://org/gated", "file/gated", "licence"),
        ("hf://org/open/nowhere", "file/not-found", "nowhere"),
    ],
)
def test_what_the_hub_refuses_is_said(hub: Server, network: Network, text: str, rule: str, words: str) -> None:
    with pytest.raises(SourceError) as error:
        open_place(text, network=network)
    assert error.value.problem is not None
    assert error.value.problem.rule == rule
    assert words in str(error.value)


def test_the_token_opens_a_private_repository(hub: Server, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with open_source("hf://org/private/x.safetensors", network=network) as source:
        assert len(open_header(source).tensors) == 1500
        assert SECRET not in source.identity + source.name


def test_the_token_of_a_login_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    import subprocess
    import sys

    (tmp_path / "token").write_text(SECRET)
    code = "from compatkit.sources.hub import token; print(token())"
    env = {"HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == SECRET


def test_no_login_costs_no_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert token() == ""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert token() == ""


def test_the_token_does_not_follow_a_redirect(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with range_server(Path("/")) as cdn, hub_server({"org/private": Repo(files, token=SECRET)}, cdn=cdn) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        with open_source("hf://org/private/x.safetensors", network=network) as source:
            assert len(open_header(source).tensors) == 1500
    assert all(r.headers.get("Authorization") == f"Bearer {SECRET}" for r in server.log)
    assert len(cdn.log) == 2
    assert not any("Authorization" in r.headers for r in cdn.log)
    # the second read goes straight to where the first was sent
    assert len(server.log) == 1


def test_the_token_goes_to_no_other_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    write_safetensors(tmp_path / "x.safetensors", {"a.weight": ("BF16", (64, 64))})
    with range_server(tmp_path) as server, open_source(server.url("x.safetensors"), network=network) as source:
        open_header(source)
    assert not any(SECRET in str(r.headers) for r in server.log)


def test_a_token_is_not_sent_over_plain_http() -> None:
    from compatkit.sources.client import may_carry_token

    assert may_carry_token("https://huggingface.co/x")
    assert may_carry_token("http://127.0.0.1:8000/x")
    assert not may_carry_token("http://huggingface.co/x")
    assert not may_carry_token("http://127.example.org/x")


def test_a_commit_is_never_asked_for_twice(hub: Server, files: Path) -> None:
    commit = Repo(files).commit
    for run in range(2):
        with Network() as network, open_source(f"hf://org/open@{commit}/x.safetensors", network=network) as source:
            open_header(source)
        assert network.requests == (0 if run else 2)


def test_a_branch_is_asked_whether_it_moved(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with range_server(Path("/")) as cdn, hub_server({"org/open": Repo(files)}, cdn=cdn) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        for run in range(3):
            if run == 2:  # the file is replaced
                write_safetensors(files / "x.safetensors", {"other.weight": ("BF16", (640, 1280))})
            with Network() as network, open_source("hf://org/open/x.safetensors", network=network) as source:
                header = open_header(source)
            if run == 1:
                assert (network.requests, network.bytes) == (1, 0)
    assert list(header.tensors) == ["other.weight"]


def test_a_listing_that_is_none_is_said(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(lambda h, r: h.reply(r, 200, {}, b'{"siblings": 3}')) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        with pytest.raises(SourceError, match="no list of files"):
            HubFolder(network, parse("hf://org/repo"))
