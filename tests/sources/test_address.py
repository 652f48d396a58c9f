"""What a source's text means."""

from __future__ import annotations

import pytest

from compatkit.sources.address import Address, parse
from compatkit.vocabulary import SourceError


def said(text: str) -> tuple[str, str, str, str, bool | None]:
    a = parse(text)
    return a.kind, a.repo, a.revision, a.path, a.folder


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("hf://org/repo/x.gguf", ("hub", "org/repo", "main", "x.gguf", False)),
        ("hf://org/repo@abc/sub/x.safetensors", ("hub", "org/repo", "abc", "sub/x.safetensors", False)),
        ("hf://org/repo@refs/pr/3/x.gguf", ("hub", "org/repo", "refs/pr/3", "x.gguf", False)),
        ("hf://org/repo@refs%2Fpr%2F3/x.gguf", ("hub", "org/repo", "refs/pr/3", "x.gguf", False)),
        ("hf://org/repo", ("hub", "org/repo", "main", "", True)),
        ("hf://org/repo/vae", ("hub", "org/repo", "main", "vae", None)),
        ("hf://org/repo/a@b.gguf", ("hub", "org/repo", "main", "a@b.gguf", False)),
        ("https://huggingface.co/org/repo", ("hub", "org/repo", "main", "", True)),
        ("https://hf.co/org/repo/blob/main/a%20b.gguf", ("hub", "org/repo", "main", "a b.gguf", False)),
        ("https://huggingface.co/org/repo/resolve/v1/x.gguf?download=true", ("hub", "org/repo", "v1", "x.gguf", False)),
        ("https://huggingface.co/org/repo/tree/main/vae", ("hub", "org/repo", "main", "vae", True)),
        ("https://example.org/a/b/resolve/main/x.gguf", ("http", "", "main", "", False)),
        ("C:\\models\\x.gguf", ("local", "", "main", "", None)),
        ("file:///models/x%20y.gguf", ("local", "", "main", "", None)),
        ("s3://bucket/x.gguf", ("fsspec", "", "main", "", None)),
    ],
)
def test_every_kind_of_source_is_told(text: str, means: tuple[str, str, str, str, bool | None]) -> None:
    assert said(text) == means


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hf://org", "ORG/REPO"),
        ("hf://org/repo/../x.gguf", "dots"),
        ("https://huggingface.co/org/repo/discussions/3", "page"),
        ("https://huggingface.co/org/repo/blob/main", "REVISION"),
        ("https:///x.gguf", "no host"),
        ("https://example.org:notaport/x", "not a URL"),
        ("file://server/share/x.gguf", "another machine"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_the_endpoint_of_the_environment_is_the_hub_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hub/")
    assert said("https://mirror.example/hub/org/repo/blob/main/x.gguf") == ("hub", "org/repo", "main", "x.gguf", False)
    assert said("https://mirror.example/files/x.gguf")[0] == "http"


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/x.gguf?token=SECRET",
        "https://example.org/x.gguf?X-Amz-Signature=SECRET&X-Amz-Credential=SECRET&n=1",
        "https://example.org/x.gguf?a=SECRETSECRETSECRETSECRETSECRETSECRETSECRETSECRET",
        "s3://SECRET:SECRET@bucket/x.gguf",
    ],
)
def test_secrets_in_a_link_are_not_shown(text: str) -> None:
    address: Address = parse(text)
    assert "SECRET" not in address.name
    assert "x.gguf" in address.name


def test_a_password_in_a_link_is_refused_without_being_said() -> None:
    with pytest.raises(SourceError) as error:
        parse("https://user:SECRET@example.org/x.gguf")
    assert "SECRET" not in str(error.value)
