"""`stack.toml`: what it may say, and where it says it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compatkit.render.stackschema import schema
from compatkit.stacks.lockfile import is_inside
from compatkit.stacks.stackfile import load, parse
from compatkit.stacks.tomllines import lines
from compatkit.vocabulary import SourceError

WHOLE = """\
name = "poster"
runtime = "comfyui@0.33.0"
host = "RTX 5090"

[files]
diffusion = "models/dit.gguf"  # a note with "quotes" and [brackets]
text_encoder = [
  "hf://org/repo/a.safetensors",
  {source = "/abs/b.safetensors", license = "mit"},
]
vae = {source = "https://host/vae.safetensors", sha256 = "%s", assume = "a_vae"}

[[lora]]
source = "one.safetensors"
strength = 0.8

[[lora]]
strength = 1
source = "two.safetensors"

[settings]
steps = 9
clip_type = "x"

[policy]
fail_on = "warning"
size = "1.5 GB"
quantization = {diffusion = ["Q5_K", "Q6_K"]}
""" % ("ab" * 32)


def test_everything_it_may_say_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stack.toml"
    path.write_text(WHOLE)
    stack = load(str(path))
    assert [(e.role, e.source, e.line) for e in stack.entries] == [
        ("diffusion", str(tmp_path / "models/dit.gguf"), 6),
        ("text_encoder", "hf://org/repo/a.safetensors", 8),
        ("text_encoder", "/abs/b.safetensors", 9),
        ("vae", "https://host/vae.safetensors", 11),
        ("lora", str(tmp_path / "one.safetensors"), 14),
        ("lora", str(tmp_path / "two.safetensors"), 19),
    ]
    assert stack.runtimes == ("comfyui@0.33.0",)
    assert stack.settings == {"steps": "9", "clip_type": "x"}
    assert stack.licenses == {"/abs/b.safetensors": "mit"}
    assert stack.entries[4].strength == 0.8
    assert stack.policy is not None
    assert (stack.policy.fail_on, stack.policy.size) == ("warning", 1_500_000_000)
    assert stack.policy.quantization == {"diffusion": ("Q5_K", "Q6_K")}
    assert stack.places[""].line == 5


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[files]\ndifusion = "a"', 2, "did you mean 'diffusion'"),
        ('[files]\nvae = "a"\n[polcy]\nsize = 1', 3, "did you mean 'policy'"),
        ('[files]\nvae = {source = "a", shasum = "b"}', 2, "unknown key 'shasum'"),
        ('[files]\nvae = {sha256 = "b"}', 2, "'source' is missing"),
        ('[files]\nvae = "a"\n[[lora]]\nsource = "a"\nstrenght = 1', 5, "did you mean 'strength'"),
        ('[files]\nvae = "a"\n[policy]\nsize = "much"', 4, "'size' is a number of bytes"),
        ('[files]\nvae = "a"\n[policy]\nfail_on = "info"', 4, "'fail_on' is error or warning"),
        ('[files]\nvae = {source = "a", sha256 = "12"}', 2, "64 hexadecimal digits"),
        ('[files]\nvae = "a"\nlora = "b"', 3, "[[lora]]"),
        ('name = "x"', 1, "no file is named"),
        ("[files]\nvae = 3", 2, "a file is a text"),
    ],
)
def test_what_it_may_not_say_is_refused_with_the_line(text: str, line: int, says: str) -> None:
    with pytest.raises(SourceError, match=re.escape(f"s.toml:{line}: ")) as refused:
        parse(text.encode(), "s.toml")
    assert says in str(refused.value)


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"[files", b"a = " + b"[" * 100_000])
def test_what_is_no_toml_is_refused(raw: bytes) -> None:
    with pytest.raises(SourceError, match=r"s\.toml: not "):
        parse(raw, "s.toml")


def test_the_schema_takes_what_the_parser_takes_and_refuses_what_it_refuses() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    jsonschema.Draft202012Validator.check_schema(schema())
    assert not list(validator.iter_errors(tomllib.loads(WHOLE)))
    for wrong in ('[files]\nvea = "a"', '[files]\nvae = {sha256 = "ab"}', '[policy]\nfail_on = "info"'):
        assert list(validator.iter_errors(tomllib.loads(wrong))), wrong


def every_place(value: Any, where: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
    out = {where} if where else set()
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        out |= every_place(inner, (*where, key))
    return out


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        'a = """\nx\n[b]\n"""\n[c]\nd = 1',
        "a = '''\n'x'\n'''\nb = [[1, 2],\n[3]]\n",
        '"q # x" = 1\nx."y z" = {a = [{b = "}"}], c = 2020-01-01T00:00:00}\n',
        "[[a]]\n[[a.b]]\nc = 1\n[[a.b]]\nc = 2\n[[a]]\n[a.d]\ne = true\n",
        'a = "\\"]"\nb = ["#", ","]\n',
    ],
)
def test_every_value_has_its_line(text: str) -> None:
    found, wanted = lines(text), every_place(tomllib.loads(text))
    leaves = {w for w in wanted if not any(o[: len(w)] == w and o != w for o in wanted)}
    assert leaves <= set(found)
    for where, line in found.items():
        name = next(k for k in reversed(where) if isinstance(k, str))
        if not isinstance(where[-1], int):
            assert name in text.split("\n")[line - 1]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\..\\x", "C:x", "", "a//b", "a/\0"])
def test_a_locked_name_may_not_lead_elsewhere(name: str) -> None:
    assert not is_inside(name)
    assert is_inside("vae/model.safetensors")
