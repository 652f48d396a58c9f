"""Class files: what they say is compiled, and what is wrong with one is said with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from compatkit.knowledge.classfile import parse_classes
from compatkit.knowledge.store import load as load_rules
from compatkit.knowledge.yamlfile import RuleFileError, load

GOOD = """\
class: SomeModel
library: diffusers
config: {dim: hidden, heads: hidden // 64, layers: [a, 2], kinds: {repeat: [1, layers]}, nested: {width: 2*hidden}}
constants: {theta: 256.0, name: plain}
families: {plain: {config: {dim: null}, when: layers > 2}}
inputs:
  x: [1, hidden, latent_side, latent_side]
  mask: {shape: [1, prompt_tokens], dtype: bool, fill: ones, is: mask}
  more: {sizes: {value: [1, latent_side]}}
  two: {items: [{shape: [1]}, {shape: [2]}]}
output: [0, sample]
sizes: {latent_side: 8}
"""


def compiled(tmp_path: Path, text: str) -> dict[str, object]:
    path = tmp_path / "diffusers-SomeModel.yaml"
    path.write_text(text, encoding="utf-8")
    document = parse_classes([load(path)], {"plain": {}})
    assert document["families"] == {"plain": ["diffusers-SomeModel"]}
    found: dict[str, object] = document["classes"]["diffusers-SomeModel"]
    return found


def test_expressions_are_compiled_and_constants_stay(tmp_path: Path) -> None:
    entry = compiled(tmp_path, GOOD)
    assert entry["config"] == {
        "dim": ["=", "hidden"],
        "heads": ["=", ["//", "hidden", 64]],
        "layers": ["list", [["=", "a"], ["value", 2]]],
        "kinds": ["repeat", [["value", 1], ["=", "layers"]]],
        "nested": ["map", {"width": ["=", ["*", 2, "hidden"]]}],
    }
    assert entry["constants"] == {"theta": 256.0, "name": "plain"}
    assert (entry["module"], entry["sizes"]) == ("diffusers", {"latent_side": 8})


def test_inputs_and_outputs_of_one_call_or_of_several(tmp_path: Path) -> None:
    calls = compiled(tmp_path, GOOD)["calls"]
    assert isinstance(calls, dict)
    inputs = calls["forward"]["inputs"]
    assert inputs["x"] == {"shape": [1, "hidden", "latent_side", "latent_side"]}
    assert inputs["mask"]["is"] == "mask"
    assert inputs["more"]["nested"]["sizes"]["value"] == ["list", [["value", 1], ["=", "latent_side"]]]
    assert [i["shape"] for i in inputs["two"]["items"]] == [[1], [2]]
    assert calls["forward"]["output"] == [0, "sample"]
    several = (
        GOOD[: GOOD.index("inputs:")] + "calls: {decode: {inputs: {z: [1]}, output: 0}, encode: {inputs: {x: [2]}}}\n"
    )
    assert list(compiled(tmp_path, several)["calls"]) == ["decode", "encode"]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("library: diffusers", "library: paints"), r":2:1: a library is one of diffusers, transformers"),
        (("families: {plain:", "families: {plane:"), r":5:12: there is no family 'plane'; did you mean 'plain'\?"),
        (("hidden // 64", "hidden ++"), r":3:23: 'hidden \+\+' is not an expression"),
        (("repeat: [1, layers]", "repeat: [1]"), r"repeat takes 2 values"),
        (("dtype: bool", "dtype: int3"), r"a dtype is one of compute"),
        (("fill: ones", "fill: sixes"), r"fill is a number or one of normal"),
        (("constants:", "constant:"), r"unknown key 'constant'; did you mean 'constants'\?"),
        (("sizes: {latent_side: 8}", "sizes: {side: 8}"), r"unknown key 'side'"),
        (("class: SomeModel\n", ""), r":1:1: class is missing"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, change: tuple[str, str], complaint: str) -> None:
    assert change[0] in GOOD
    with pytest.raises(RuleFileError, match=complaint):
        compiled(tmp_path, GOOD.replace(*change))


def test_every_class_file_is_named_after_its_class_and_says_where_it_is_from() -> None:
    from compatkit.knowledge.store import rules_root

    files = sorted((rules_root() / "classes").glob("*.yaml"))
    assert len(files) > 90
    for path in files:
        data = load(path).data
        assert path.stem.startswith(f"{data['library']}-{data['class']}")
        assert data["sources"], path.name
    assert {p.stem for p in files} == set(load_rules().classes()["classes"])
