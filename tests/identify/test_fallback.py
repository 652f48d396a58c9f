"""Families that only say what kind of model a file holds: they answer where no exact family does, and nowhere else."""

from __future__ import annotations

from pathlib import Path

from compatkit.identify.identify import identify
from tests.support.rules import PLAIN, families, header, only, plain

EXACT = PLAIN + "where: {hidden: 64}\nruntimes: {comfyui: {class: Plain}}\n"
#: The same names at any size …
KIND = """\
id: kind
like: plain
role: llm
fallback: true
architecture: plain-like
where: null
runtimes: null
"""
#: … and one that looks at nothing but the ends.
LOOSE = """\
id: loose
role: llm
fallback: true
architecture: any
tensors:
  img_in: lin(hidden, patch)
  final: lin(patch, hidden)
tolerate: ["blocks.*"]
"""


def test_an_exact_family_comes_first_and_a_kind_answers_for_other_sizes(tmp_path: Path) -> None:
    knowledge = families(tmp_path, EXACT, KIND)
    assert only(knowledge, header(plain(hidden=64))).families == ("plain",)
    component = only(knowledge, header(plain(hidden=32)))
    assert (component.role, component.families) == ("llm", ("kind",))
    assert component.facts["architecture"] == "plain-like"
    assert component.loads_as == {}


def test_a_damaged_file_of_an_exact_family_is_not_taken_for_a_kind(tmp_path: Path) -> None:
    knowledge = families(tmp_path, EXACT, KIND, LOOSE)
    names = plain(hidden=64, layers=8)
    one_gone = {n: s for n, s in names.items() if n != "blocks.3.mlp.weight"}
    assert only(knowledge, header(one_gone)).family == "plain"
    many_gone = {n: s for n, s in names.items() if not n.endswith("qkv.bias")}
    assert only(knowledge, header(many_gone)).family is None


def test_a_kind_that_tolerates_the_rest_counts_it(tmp_path: Path) -> None:
    knowledge = families(tmp_path, EXACT, LOOSE)
    component = only(knowledge, header(plain(hidden=32)))
    assert component.family == "loose"
    assert len(component.tensors) == len(plain(hidden=32))
    assert component.foreign == ()


def test_a_kind_carves_nothing_out_of_an_unknown_model(tmp_path: Path) -> None:
    knowledge = families(tmp_path, EXACT, KIND)
    more = {f"head.{i}.weight": (48, 48) for i in range(20)}
    assert [c.family for c in identify(header(plain(hidden=32) | more), knowledge)] == [None]
    inside = plain(hidden=32, prefix="encoder.")
    assert [c.family for c in identify(header(inside | more), knowledge)] == [None]


def test_the_architecture_is_the_one_that_gguf_metadata_names(tmp_path: Path) -> None:
    knowledge = families(
        tmp_path,
        KIND.replace("like: plain\n", "").replace("where: null\nruntimes: null\n", PLAIN.partition("diffusion\n")[2]),
    )
    named = header(plain(), format_="gguf", metadata={"general.architecture": "thing"})
    assert only(knowledge, named).facts["architecture"] == "thing"
