"""Family files: `like`, `where`, and where a mistake is said to stand: file, line, column."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from compatkit.identify.shapes import expected_shapes
from compatkit.knowledge.compile import compile_documents
from compatkit.knowledge.yamlfile import RuleFileError
from tests.support.rules import PLAIN, families, write_rules

GOOD = """\
id: good
title: Good
role: diffusion
tensors:
  img_in: lin(hidden, 16)
  "blocks.{layers}": {attn: "lin(hidden, hidden)"}
where: {hidden: 64}
latent: {space: sd15, channels: 4, ndim: 4}
text_encoders:
  - {kind: clip_l, taps: 1}
layouts:
  diffusers:
    - rename: {img_in: x_embedder}
    - use: shared
    - drop: [final]
"""


def refused(folder: Path, text: str, **others: str) -> RuleFileError:
    with pytest.raises(RuleFileError) as error:
        families(folder, text, **others)
    return error.value


def test_a_good_file_is_not_refused(tmp_path: Path) -> None:
    assert families(tmp_path, GOOD, keymaps="operations: []").has_family("good")


@pytest.mark.parametrize(
    ("old", "new", "at", "says"),
    [
        ("title: Good", "tensor: {}", (2, 1), "unknown key 'tensor'; did you mean 'tensors'?"),
        ("title: Good", "role: vae", (3, 1), "key 'role' stands here twice"),
        ("role: diffusion", "role: difusion", (3, 1), "unknown role 'difusion'; did you mean 'diffusion'?"),
        ("role: diffusion", "released: 2024-01", (1, 1), "role is missing"),
        ("id: good", "released: 2024-01", (1, 1), "id is missing"),
        ("title: Good", "title: [Good]", (2, 1), "title has the wrong type: list"),
        ("title: Good", "forbid: dec_net", (2, 1), "forbid has the wrong type: str"),
        ("where: {hidden: 64}", "where: {hidden: {a: 1}}", (7, 9), "a value, a list of values, or a condition"),
        ("where: {hidden: 64}", "where: {layers: 2, hidden: '>>'}", (7, 20), "'hidden >>' is not an expression"),
        ("where: {hidden: 64}", "require: [hidden > 1, hidden >]", (7, 23), "'hidden >' is not an expression"),
        ("where: {hidden: 64}", "facts: {width: f(hidden)}", (7, 9), "'f(hidden)' is not understood"),
        ("where: {hidden: 64}", "one_of: {mlp: 5}", (7, 10), "mlp has the wrong type: int"),
        ("where: {hidden: 64}", "runtimes: {comfyui: Class}", (7, 12), "comfyui has the wrong type: str"),
        ("where: {hidden: 64}", "examples: [a file]", (7, 12), "an entry of examples has the wrong type: str"),
        ("where: {hidden: 64}", "markers: {v_pred: 5}", (7, 11), "v_pred has the wrong type: int"),
        ("where: {hidden: 64}", "optional: {tower: 5}", (7, 12), "expected a shape"),
        ("where: {hidden: 64}", "drop: [img_in]", (7, 1), "drops nothing"),
        ("channels: 4", "chanels: 4", (8, 23), "unknown key 'chanels'; did you mean 'channels'?"),
        ("channels: 4", "channels: 2*", (8, 23), "'2*' is not an expression"),
        ("taps: 1", "tap: 1", (10, 20), "unknown key 'tap'; did you mean 'taps'?"),
        ("lin(hidden, 16)", "lin(hidden)", (5, 3), "lin(o, i) takes 2 arguments, got 1"),
        ("lin(hidden, 16)", "linn(hidden, 16)", (5, 3), "there is no part 'linn'"),
        ("lin(hidden, 16)", "[hidden, 16/]", (5, 3), "'16/' is not an expression"),
        ("{layers}", "{1..layers..0}", (6, 29), "the step must be"),
        ("use: shared", "use: shard", (14, 7), "there is no key map 'shard'; did you mean 'shared'?"),
        ("- rename: {img_in: x_embedder}", "- move: {a: b}", (13, 7), "an operation is one of rename, split"),
        ("- drop: [final]", "- rename: [final]", (15, 7), "rename is not written as"),
        ("title: Good", "title: !!python/object:os.system Good", (2, 8), "tag tag:yaml.org,2002:python/object:os"),
        ("title: Good", "title: !mine Good", (2, 8), "tag !mine is not allowed"),
        ("title: Good", "? [a]\n: 1", (2, 3), "a key must be a plain scalar"),
        ("title: Good", "notes: &a [*a]", (2, 8), "nested too deeply"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_column(
    tmp_path: Path, old: str, new: str, at: tuple[int, int], says: str
) -> None:
    assert old in GOOD
    error = refused(tmp_path, GOOD.replace(old, new, 1), keymaps="operations: []")
    assert (error.line, error.column) == at, error
    assert says in error.message
    assert str(error).startswith(f"{tmp_path}/families/diffusion/f0.yaml:{at[0]}:{at[1]}: ")
    assert "\n" not in str(error)


@pytest.mark.parametrize("broken", ["title: 'Good", "title: {blocks.{i}: b}", "title: *nowhere", "title: \tx: y: z"])
def test_what_is_not_yaml_is_refused_at_a_line(tmp_path: Path, broken: str) -> None:
    error = refused(tmp_path, GOOD.replace("title: Good", broken), keymaps="operations: []")
    assert error.line >= 2  # YAML parsers differ in where they give up
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "at", "says"),
    [
        ("operations:\n  - rename: {img_in: x_embedder}\n  - rename: [a]\n", (3, 5), "rename is not written as"),
        ("operations:\n  - use: nowhere\n", (2, 5), "there is no key map 'nowhere'"),
        ("operations:\n  - use: shared\n", (2, 5), "use each other without end"),
        ("operation: []\n", (1, 1), "operations is missing"),
        ("- rename: {}\n", (1, 1), "operations is missing"),
    ],
)
def test_a_mistake_in_a_shared_key_map_is_named_in_its_own_file(
    tmp_path: Path, text: str, at: tuple[int, int], says: str
) -> None:
    error = refused(tmp_path, GOOD, keymaps=text)
    assert (error.path, error.line, error.column) == (str(tmp_path / "keymaps" / "shared.yaml"), *at), error
    assert says in error.message


def test_aliases_that_multiply_are_refused_before_they_do(tmp_path: Path) -> None:
    rows = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "too many values" in refused(tmp_path, "\n".join(rows)).message


def test_a_file_that_is_not_utf8_or_not_a_mapping_is_refused(tmp_path: Path) -> None:
    path = write_rules(tmp_path, {"families/vae/x.yaml": "- a list"}) / "families/vae/x.yaml"
    with pytest.raises(RuleFileError, match=r"x.yaml:1:1: a family file is a mapping"):
        compile_documents([tmp_path])
    path.write_bytes(b"id: \xff\n")
    with pytest.raises(RuleFileError, match=r"x.yaml:1:1: not UTF-8 text \(byte 4\)"):
        compile_documents([tmp_path])


def test_an_id_stands_in_one_file(tmp_path: Path) -> None:
    with pytest.raises(RuleFileError, match=r"f1.yaml:1:1: 'plain' is already the id of .*f0.yaml"):
        families(tmp_path, PLAIN, PLAIN)


def test_a_file_in_a_folder_that_holds_no_rules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuleFileError, match="'famillies' is not a folder of rules"):
        compile_documents([write_rules(tmp_path, {"famillies/diffusion/x.yaml": PLAIN})])


BASE = """\
id: base
title: Base
role: diffusion
released: 2024-01
notes: the first
tensors:
  img_in: lin(hidden, 16)
  time.mlp: {0: "scale(hidden)", 2: "scale(hidden)"}
  final: scale(hidden)
where: {hidden: 64, depth: 2}
require: [hidden > 1]
forbid: ["other.*"]
optional: {guidance: {guidance_in: scale(hidden)}}
latent: {space: sd15, channels: 4, ndim: 4}
siblings: {base_turbo: "same header"}
runtimes: {comfyui: {class: Base}, diffusers: {class: BaseModel}}
layouts:
  diffusers: [{rename: {img_in: x_embedder}}]
"""


def like(folder: Path, text: str) -> dict[str, Any]:
    return families(folder, BASE, f"id: child\nlike: base\n{dedent(text)}").grammar("child")


def names(document: dict[str, Any], layout: str = "native", **options: bool) -> set[str]:
    return set(expected_shapes(document, layout, {"hidden": 64}, options))


def test_like_hands_down_tensors_and_card_but_not_what_is_the_base_s_own(tmp_path: Path) -> None:
    child = like(tmp_path, "")
    base = families(tmp_path, BASE).grammar("base")
    assert names(child) == names(base)
    assert names(child, "diffusers", guidance=True) == names(base, "diffusers", guidance=True)
    assert child["card"]["role"] == "diffusion"
    assert child["where"] == {"hidden": [64], "depth": [2]}
    assert not {"title", "released", "notes", "siblings"} & set(child["card"])


def test_like_merges_key_by_key_what_is_a_table_and_null_removes(tmp_path: Path) -> None:
    child = like(
        tmp_path,
        """
        where: {hidden: 128, depth: null, extra: [1, 2]}
        latent: {channels: 16}
        runtimes: {comfyui: {class: Child}, diffusers: null}
        require: [hidden > 2, hidden < 999]
        forbid: []
        """,
    )
    assert child["where"] == {"hidden": [128], "extra": [1, 2]}
    assert child["card"]["latent"] == {"space": "sd15", "channels": 16, "ndim": 4}
    assert child["card"]["runtimes"]["comfyui"] == {"class": "Child"}
    assert child["card"]["runtimes"].get("diffusers") is None
    assert len(child["require"]) == 2
    assert child["forbid"] == []


def test_like_drops_whole_segments_then_adds(tmp_path: Path) -> None:
    child = like(tmp_path, 'drop: ["**.mlp", final]\nadd: {final: [hidden], final_norm: scale(hidden)}')
    assert names(child) == {"img_in.weight", "img_in.bias", "final", "final_norm.weight"}


def test_like_with_tensors_of_its_own_keeps_only_the_card(tmp_path: Path) -> None:
    child = like(tmp_path, "tensors: {only: scale(hidden)}")
    assert names(child) == {"only.weight"}
    assert child["card"]["latent"]["space"] == "sd15"


def test_a_chain_of_likes_adds_up(tmp_path: Path) -> None:
    knowledge = families(
        tmp_path, BASE, "id: a\nlike: base\nadd: {a: [1]}\nwhere: {hidden: 1}\n", "id: b\nlike: a\nadd: {b: [1]}\n"
    )
    assert {"a", "b", "final.weight"} <= names(knowledge.grammar("b"))
    assert knowledge.grammar("b")["where"]["hidden"] == [1]


def test_what_is_like_it_changes_nothing_about_the_base(tmp_path: Path) -> None:
    alone = families(tmp_path / "a", BASE).grammar("base")
    child = "id: child\nlike: base\nwhere: {hidden: 1}\nlatent: {space: sd3}\nadd: {x: [1]}\ndrop: [final]\n"
    both = families(tmp_path / "b", child, BASE).grammar("base")
    del alone["card"]["source_file"], both["card"]["source_file"]
    assert both == alone


@pytest.mark.parametrize(
    ("texts", "at", "says"),
    [
        (["id: b\nlike: a\n", "id: a\nlike: b\n"], (2, 1), "'a' is like itself"),
        (["id: a\nlike: a\n"], (2, 1), "'a' is like itself"),
        (["id: a\nlike: bas\n", BASE], (2, 1), "there is no family 'bas'; did you mean 'base'?"),
        (["id: a\nlike: base\ndrop: [nothing]\n", BASE], (3, 1), "drops nothing"),
        (["id: a\nlike: base\nadd: {x: nolin(1)}\n", BASE], (3, 7), "there is no part 'nolin'"),
    ],
)
def test_a_base_that_cannot_be_is_refused(tmp_path: Path, texts: list[str], at: tuple[int, int], says: str) -> None:
    with pytest.raises(RuleFileError) as error:
        families(tmp_path, *texts)
    assert (error.value.line, error.value.column) == at
    assert says in error.value.message
    assert Path(error.value.path).name == "f0.yaml"
