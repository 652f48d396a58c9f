"""Tensors that say something by standing at the top of a file, classes that depend on a size, interleaved runs."""

from __future__ import annotations

from pathlib import Path

from tests.support.rules import PLAIN, families, header, only, plain

MARKED = """\
id: marked
like: plain
released: 2024-02
markers: {edm: [edm_mean, edm_std]}
require: ["edm == 1"]
"""
UNMARKED = (
    PLAIN.replace("role:", 'released: 2023-07\nrequire: ["edm == 0"]\nrole:')
    + """\
markers: {edm: [edm_mean, edm_std], v_pred: v_pred, ema_copy: model_ema.*}
siblings: {marked: {released: 2024-02}}
runtimes: {comfyui: {class: Big, classes: {"hidden == 32": Small}}}
"""
)
INTERLEAVED = """\
id: interleaved
role: diffusion
tensors:
  head: lin(hidden, 4)
  "items.{0..count..2}.a": lin(hidden, hidden)
  "items.{1..count..2}.b": lin(2*hidden, hidden)
  "tail.{count+0}": lin(out, hidden)
"""


def test_a_marker_outside_the_prefix_sets_a_fact_and_is_not_foreign(tmp_path: Path) -> None:
    knowledge = families(tmp_path, UNMARKED, MARKED)
    component = only(knowledge, header({**plain(prefix="model.diffusion_model."), "v_pred": ()}))
    assert component.family == "plain"
    assert (component.facts["v_pred"], component.facts["edm"]) == (True, False)
    assert component.foreign == ()


def test_a_marker_tells_a_family_that_has_a_file_of_its_own_from_its_sibling(tmp_path: Path) -> None:
    knowledge = families(tmp_path, UNMARKED, MARKED)
    assert only(knowledge, header({**plain(), "edm_mean": (1, 4), "edm_std": (1, 4)})).families == ("marked",)
    assert only(knowledge, header(plain())).families == ("plain", "marked")


def test_a_marker_may_stand_for_all_names_that_begin_alike(tmp_path: Path) -> None:
    copies = {f"model_ema.{name.replace('.', '')}": shape for name, shape in plain().items()}
    component = only(families(tmp_path, UNMARKED, MARKED), header(plain() | copies))
    assert component.facts["ema_copy"] is True
    assert component.foreign == ()


def test_the_class_may_depend_on_a_size(tmp_path: Path) -> None:
    knowledge = families(tmp_path, UNMARKED, MARKED)
    assert only(knowledge, header(plain(hidden=32))).loads_as["comfyui"] == "Small"
    assert only(knowledge, header(plain(hidden=64))).loads_as["comfyui"] == "Big"


def test_interleaved_runs_end_with_the_one_that_starts_last_and_computed_names_bind(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {"head.weight": (8, 4), "head.bias": (8,)}
    for i in range(6):
        rows = 16 if i % 2 else 8
        shapes |= {f"items.{i}.{'ab'[i % 2]}.weight": (rows, 8), f"items.{i}.{'ab'[i % 2]}.bias": (rows,)}
    shapes |= {"tail.6.weight": (5, 8), "tail.6.bias": (5,)}
    component = only(families(tmp_path, INTERLEAVED), header(shapes))
    assert (component.family, component.facts["count"], component.facts["out"]) == ("interleaved", 6, 5)
    assert component.missing == component.foreign == ()
