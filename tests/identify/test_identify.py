"""From readings to components: which one is believed, what is said of the others, and what an unknown file is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from compatkit.identify import identify as identify_module
from compatkit.identify.identify import identify
from compatkit.identify.solve import Match, Solver
from tests.support.rules import PLAIN, Shapes, families, header, only, plain

OLD = PLAIN.replace("id: plain", "id: old").replace("role:", "released: 2024-05\nrole:")
YOUNG = PLAIN.replace("id: plain", "id: young").replace("role:", "released: 2025-01\nrole:")
GUIDED = """\
id: guided
like: plain
released: 2025-06
add: {guidance: {in: "lin(hidden, 16)", out: "lin(hidden, hidden)"}}
"""
VAE = """\
id: small_vae
role: vae
tensors:
  "encoder.down.{n}": conv(c, c, 3)
  "decoder.up.{n}": conv(c, c, 3)
  decoder.conv_out: conv(3, c, 3)
"""


def vae(prefix: str = "", n: int = 4, c: int = 24) -> Shapes:
    modules = [f"{side}.{i}" for side in ("encoder.down", "decoder.up") for i in range(n)]
    out: Shapes = {f"{prefix}{m}.weight": (c, c, 3, 3) for m in modules}
    out |= {f"{prefix}{m}.bias": (c,) for m in modules}
    return out | {f"{prefix}decoder.conv_out.weight": (3, c, 3, 3), f"{prefix}decoder.conv_out.bias": (3,)}


def guided(**size: int) -> Shapes:
    hidden = size.get("hidden", 64)
    extra = {"guidance.in.weight": (hidden, 16), "guidance.in.bias": (hidden,)}
    extra |= {"guidance.out.weight": (hidden, hidden), "guidance.out.bias": (hidden,)}
    return plain(**size) | extra  # type: ignore[arg-type]


# Header-identical families


@pytest.mark.parametrize("texts", [(OLD, YOUNG), (YOUNG, OLD)])
def test_of_equal_headers_the_oldest_release_is_the_family_and_others_stand_in_also(
    tmp_path: Path, texts: tuple[str, str]
) -> None:
    component = only(families(tmp_path, *texts), header(plain()))
    assert (component.family, component.also) == ("old", ("young",))
    assert component.families == ("old", "young")


def test_siblings_stand_in_also_by_release_wherever_they_are_declared(tmp_path: Path) -> None:
    siblings = "siblings: {later: {released: 2026-01}, first: {released: 2023-01}, undated: same header}\n"
    component = only(families(tmp_path, OLD, YOUNG + siblings), header(plain()))
    assert component.families == ("first", "old", "young", "later", "undated")
    assert component.title == "first"


def test_a_sibling_brings_its_own_card(tmp_path: Path) -> None:
    text = OLD + (
        "title: Old\nlatent: {space: a, channels: 4, ndim: 4}\nruntimes: {comfyui: {class: Old}}\nsiblings:\n"
        "  elder: {title: Elder, released: 2020-01, latent: {space: b, channels: 4, ndim: 4}}\n"
    )
    component = only(families(tmp_path, text), header(plain()))
    assert (component.family, component.title) == ("elder", "Elder")
    assert component.facts["latent_space"] == ["b", "a"]
    assert component.loads_as == {"comfyui": "Old"}


# Which reading is believed


def test_a_relative_with_more_parts_is_told_by_them(tmp_path: Path) -> None:
    knowledge = families(tmp_path, PLAIN, GUIDED)
    assert only(knowledge, header(plain())).families == ("plain",)
    assert only(knowledge, header(guided())).families == ("guided",)


@pytest.mark.parametrize("lost", ["guidance.in.weight", "guidance.out.bias", "blocks.1.mlp.weight", "img_in.bias"])
def test_a_relative_that_lost_a_tensor_is_not_the_smaller_family(tmp_path: Path, lost: str) -> None:
    """Also where a third family's names stand below one of its modules, which hid them from the count once."""
    inner = "id: inner\nrole: other\ntensors: {in: 'lin(a, b)', out: 'lin(a, b)', extra: 'lin(a, b)'}\n"
    shapes = guided()
    del shapes[lost]
    component = only(families(tmp_path, PLAIN, GUIDED, inner), header(shapes))
    assert (component.family, component.missing) == ("guided", (lost,))


def test_tensors_of_the_model_s_own_width_that_no_family_has_make_it_unknown(tmp_path: Path) -> None:
    [component] = identify(header(plain() | {"new_module.weight": (64, 64)}), families(tmp_path, PLAIN))
    assert component.family is None
    assert component.reason == ("nearest is plain, but it has new_module.weight [64, 64], which that family has not")


def test_a_few_small_foreign_tensors_are_named_and_change_nothing(tmp_path: Path) -> None:
    component = only(families(tmp_path, PLAIN), header(plain() | {"note": (3,), "x.y": ()}))
    assert component.family == "plain"
    assert set(component.foreign) == {"note", "x.y"}


def test_tolerated_tensors_are_not_foreign(tmp_path: Path) -> None:
    knowledge = families(tmp_path, PLAIN + 'tolerate: ["lm_head.*", step]\n')
    component = only(knowledge, header(plain() | {"lm_head.weight": (999, 64), "step": ()}))
    assert (component.family, component.foreign) == ("plain", ())


def test_metadata_breaks_a_tie_and_is_no_condition(tmp_path: Path) -> None:
    a, b = (PLAIN.replace("plain", i) + f"metadata: {{general.architecture: [{i}]}}\n" for i in "ab")
    knowledge = families(tmp_path, a, b)
    for named in "ab":
        assert only(knowledge, header(plain(), metadata={"general.architecture": named})).families == (named,)
    assert only(knowledge, header(plain())).families == ("a", "b")
    assert only(knowledge, header(plain(), metadata={"general.architecture": "c"})).family is None


def test_the_runner_up_is_shown_with_what_speaks_against_it(tmp_path: Path) -> None:
    component = only(families(tmp_path, PLAIN, GUIDED), header(guided()))
    assert component.runner_up is not None
    assert component.runner_up.family == "plain"
    assert component.runner_up.reason.startswith("it has guidance.")


def test_evidence_names_tensors_that_decided(tmp_path: Path) -> None:
    text = PLAIN + "where: {patch: 16}\ntext_encoders: [{kind: clip_l, taps: 1, into: ffn}]\n"
    component = only(families(tmp_path, text), header(plain(layers=5)))
    assert component.evidence[0] == "blocks.0.mlp.weight [160, 64]"
    assert component.evidence[1] in ("img_in.weight [64, 16]", "final.weight [16, 64]")
    assert component.evidence == only(families(tmp_path / "b", text), header(plain(layers=5))).evidence


# Several models in a file


def test_a_checkpoint_is_its_parts_the_diffusion_model_first(tmp_path: Path) -> None:
    shapes = vae("first_stage_model.", 40) | plain(prefix="model.diffusion_model.")
    diffusion, decoder = identify(header(shapes), families(tmp_path, PLAIN, VAE))
    assert (diffusion.family, diffusion.prefix, diffusion.foreign) == ("plain", "model.diffusion_model.", ())
    assert (decoder.family, decoder.prefix, decoder.foreign) == ("small_vae", "first_stage_model.", ())
    assert len(decoder.tensors) > len(diffusion.tensors)
    assert set(diffusion.tensors) | set(decoder.tensors) == set(shapes)
    assert diffusion.key_groups == {"blocks": 21, "final": 2, "img_in": 2}


def test_a_model_at_the_root_may_have_another_behind_a_prefix(tmp_path: Path) -> None:
    components = identify(header(plain() | vae("vae.")), families(tmp_path, PLAIN, VAE))
    assert [(c.family, c.prefix, c.foreign) for c in components] == [("plain", "", ()), ("small_vae", "vae.", ())]


def test_what_no_part_explains_is_a_component_of_its_own(tmp_path: Path) -> None:
    odd: Shapes = {f"mystery.{i}.weight": (5, 5) for i in range(40)}
    shapes = plain(prefix="model.diffusion_model.") | odd
    known, unknown = identify(header(shapes), families(tmp_path, PLAIN))
    assert known.family == "plain"
    assert (unknown.role, unknown.family, set(unknown.tensors)) == ("unknown", None, set(odd))


def test_a_handful_of_names_deep_inside_is_no_model(tmp_path: Path) -> None:
    tiny = "id: tiny\nrole: other\ntensors: {0: 'lin(a, b)', 2: 'lin(a, b)'}\n"
    shapes = {
        f"deep.{i}.{n}.{leaf}": (7,) * r for i in range(99) for n in (0, 2) for leaf, r in (("weight", 2), ("bias", 1))
    }
    [component] = identify(header(shapes), families(tmp_path, tiny))
    assert component.family is None
    assert component.reason == "no known family shares its tensor names"


# What is not known


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"a.weight": (1, 2)}, "no known family shares its tensor names"),
        (plain(hidden=32), "nearest is plain, but hidden is 32, not 64"),
        (
            {n: s for n, s in plain(layers=9).items() if "norm" not in n},
            "nearest is plain, but 36 tensors are missing, 0 have other shapes and 0 do not belong to it",
        ),
        (
            plain() | {n: (63,) for n in plain() if n.endswith("norm1.weight")},
            "nearest is plain, but 0 tensors are missing, 3 have other shapes and 0 do not belong to it",
        ),
        ({"odd.weight": (3,)}, "no known family shares its tensor names"),
        ({}, "the file holds no tensors"),
    ],
)
def test_an_unknown_file_is_told_why(tmp_path: Path, shapes: Shapes, reason: str) -> None:
    component = only(families(tmp_path, PLAIN + "where: {hidden: 64}\n"), header(shapes))
    assert (component.role, component.family, component.layout) == ("unknown", None, "unknown")
    assert component.reason == reason
    assert set(component.tensors) == set(shapes)
    assert component.parameters == sum(t.elements for t in header(shapes).tensors.values())


def test_a_role_may_be_forced_and_then_only_it_is_looked_for(tmp_path: Path) -> None:
    knowledge = families(tmp_path, PLAIN, VAE)
    head = header(plain())
    [component] = identify(head, knowledge, force_role="vae")
    assert (component.role, component.family) == ("vae", None)
    [component] = identify(head, knowledge, force_role="diffusion")
    assert component.family == "plain"


def test_a_family_may_be_assumed_whatever_the_file_looks_like(tmp_path: Path) -> None:
    knowledge = families(tmp_path, PLAIN + "where: {hidden: 64}\n", VAE)
    [component] = identify(header(plain(hidden=32, prefix="net.")), knowledge, assume="plain")
    assert (component.family, component.assumed, component.prefix) == ("plain", True, "net.")
    [component] = identify(header({"a": (1,)}), knowledge, assume="small_vae")
    assert (component.family, component.role, component.assumed) == ("small_vae", "vae", True)


# What it costs


def solved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(family, prefix) of every grammar that is tried from here on."""
    tried: list[tuple[str, str]] = []
    solve = Solver.solve

    def counted(self: Solver) -> Match:
        tried.append((self.document["id"], self.view.prefix))
        return solve(self)

    monkeypatch.setattr(Solver, "solve", counted)
    return tried


def test_a_file_that_a_grammar_explains_as_it_stands_is_searched_for_no_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knowledge = families(tmp_path, PLAIN, GUIDED, VAE)

    def under_prefixes(*_: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(identify_module, "under_prefixes", under_prefixes)
    assert only(knowledge, header(guided())).family == "guided"
    with pytest.raises(AssertionError, match="searched"):
        identify(header(plain(prefix="model.")), knowledge)


def test_grammars_that_share_no_names_with_a_header_are_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [
        PLAIN.replace("plain", f"f{i}").replace("blocks", f"blocks{i}").replace("img_in", f"in{i}") for i in range(9)
    ]
    sized = [PLAIN.replace("plain", f"s{i}") + f"where: {{hidden: {i + 1}}}\n" for i in range(9)]
    knowledge = families(tmp_path, PLAIN, VAE, *others, *sized)
    tried = solved(monkeypatch)
    assert only(knowledge, header(plain())).family == "plain"
    assert tried == [("plain", "")]
    tried.clear()
    assert only(knowledge, header(plain(prefix="a.b."))).family == "plain"
    assert tried == [("plain", "a.b.")]


def test_the_answer_does_not_depend_on_how_many_families_are_known(tmp_path: Path) -> None:
    few = families(tmp_path / "few", PLAIN)
    many = families(
        tmp_path / "many",
        PLAIN,
        VAE,
        GUIDED,
        *(PLAIN.replace("plain", f"x{i}") + f"where: {{patch: {i}}}\n" for i in range(9)),
    )
    for head in (header(plain()), header(plain(prefix="p."))):
        a, b = only(few, head), only(many, head)
        assert (a.family, a.facts, a.prefix, a.parameters) == (b.family, b.facts, b.prefix, b.parameters)
