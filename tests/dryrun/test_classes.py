"""Configurations from headers: every class of the rules for every family it is named for, without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from compatkit.dryrun.classes import NoClass, arguments, run_lengths, spec_for, spec_of, value
from compatkit.identify.identify import identify
from compatkit.identify.selftest import header_of
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.classfile import SIZES
from compatkit.knowledge.compile import compile_documents
from compatkit.knowledge.store import Knowledge, load
from compatkit.vocabulary import Component
from tests.support.rules import PLAIN, write_rules

KNOWLEDGE = load()
#: A fallback is of any size, and only some of its sizes have a class.
FAMILIES = sorted(f for f in KNOWLEDGE.classes()["families"] if not KNOWLEDGE.family(f).get("fallback"))
CLASS = """\
class: PlainModel
library: diffusers
layout: native
config:
  {width: hidden, depth: layers, skips: {range: [layers]}, wide: hidden > 32,
  gate: {choose: [hidden > 99, no_such, ffn]}}
constants: {eps: 0.5, nested: {a: 1}}
families:
  plain: {when: layers > 1, constants: {nested: {b: 2}}}
inputs:
  x: {shape: [1, patch, latent_side], is: latent}
  y: {shape: [prompt_tokens], when: layers > 2, dtype: int64, fill: zeros}
  sizes: {value: [latent_side, 2]}
output: [0]
sizes: {latent_side: 4}
"""


def component(family: str, layout: str | None = None) -> Component:
    return identify(header_of(example_shapes(KNOWLEDGE.grammar(family), layout)), KNOWLEDGE)[0]


@pytest.fixture
def plain(tmp_path: Path) -> Knowledge:
    files = {"families/diffusion/plain.yaml": PLAIN, "classes/diffusers-PlainModel.yaml": CLASS}
    return Knowledge(compile_documents([write_rules(tmp_path, files)]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_header_of_the_family_configures_its_class_and_its_inputs(family: str) -> None:
    spec = spec_of(component(family), KNOWLEDGE, family=family)
    assert all(isinstance(size, int) for size in spec.sizes.values())
    for call in spec.calls.values():
        given = list(arguments(call["inputs"], {**spec.env, **spec.sizes}))
        assert given
        for path, described in given:
            assert "value" in described or all(side > 0 for side in described["shape"]), path


def test_no_symbol_of_a_grammar_has_the_name_of_a_size() -> None:
    named = {s for f in FAMILIES for s in KNOWLEDGE.grammar(f)["example"].get("symbols", {})}
    assert named.isdisjoint(SIZES)


def test_a_family_s_own_part_is_laid_over_what_its_class_says(plain: Knowledge) -> None:
    symbols = {"hidden": 64, "patch": 3, "layers": 3, "ffn": 256}
    spec = spec_for("plain", symbols, {}, {}, plain)
    assert spec.config == {
        "width": 64, "depth": 3, "skips": [0, 1, 2], "wide": True, "gate": 256, "eps": 0.5, "nested": {"a": 1, "b": 2},
    }  # fmt: skip
    described = dict(arguments(spec.calls["forward"]["inputs"], {**spec.env, **spec.sizes}))
    assert described[("x",)]["shape"] == (1, 3, 4)
    assert described[("y",)]["shape"] == (32,)
    assert described[("sizes",)]["value"] == [4, 2]


def test_an_input_that_does_not_apply_is_not_given(plain: Knowledge) -> None:
    spec = spec_for("plain", {"hidden": 64, "patch": 3, "layers": 2, "ffn": 256}, {}, {}, plain)
    assert ("y",) not in dict(arguments(spec.calls["forward"]["inputs"], {**spec.env, **spec.sizes}))


def test_depth_caps_the_runs_and_nothing_else(plain: Knowledge) -> None:
    assert run_lengths(plain.grammar("plain")) == {"layers"}
    spec = spec_for("plain", {"hidden": 64, "patch": 3, "layers": 9, "ffn": 256}, {}, {}, plain, depth=2)
    assert (spec.config["depth"], spec.config["width"]) == (2, 64)


def test_why_there_is_no_class_is_one_sentence(plain: Knowledge) -> None:
    with pytest.raises(NoClass, match="as this file has it"):
        spec_for("plain", {"hidden": 64, "patch": 3, "layers": 1, "ffn": 256}, {}, {}, plain)
    with pytest.raises(NoClass, match="does not tell hidden"):
        spec_for("plain", {"patch": 3, "layers": 2, "ffn": 256}, {}, {}, plain)
    nothing = identify(header_of({"some.weight": (3, 3)}), KNOWLEDGE)[0]
    with pytest.raises(NoClass, match="the model is unknown"):
        spec_of(nothing, KNOWLEDGE)
    with pytest.raises(NoClass, match="no class of diffusers or transformers is written down"):
        spec_of(component("hunyuan3d_v2"), KNOWLEDGE)


def test_operators_of_a_configuration() -> None:
    env = {"n": 3}
    assert value(["join", [["range", [["=", "n"]]], ["repeat", [["value", 9], ["value", 2]]]]], env) == [0, 1, 2, 9, 9]
    assert value(["choose", [["=", ["==", "n", 3]], ["value", "yes"], ["=", "unbound"]]], env) == "yes"
    assert value(["=", [">", "n", 2]], env) is True


def test_a_check_does_not_read_the_classes() -> None:
    knowledge = Knowledge(compile_documents([]) | {"classes.json": None})
    assert knowledge.has_family("nothing") is False  # reading the index is all that is needed
