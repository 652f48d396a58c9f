"""Drafts: what a header's own draft says of it, what two sizes say better, and what is no family at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compatkit.identify.selftest import header_of
from compatkit.identify.shapes import expected_shapes
from compatkit.identify.solve import Match
from compatkit.knowledge.compile import compile_documents
from compatkit.knowledge.draft import common_prefix, draft
from compatkit.knowledge.store import Knowledge, load, rules_root
from compatkit.vocabulary import Header
from tests.support.rules import header, plain, solve

sizes = st.fixed_dictionaries(
    {"hidden": st.integers(10, 99).map(lambda n: 8 * n), "layers": st.integers(2, 9), "ffn": st.integers(11, 5000)}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rules folder with the parts every family may use, for one draft after another."""
    root = tmp_path_factory.mktemp("rules")
    (root / "families/diffusion").mkdir(parents=True)
    shutil.copy(rules_root() / "parts.yaml", root)
    return root


def read_by(folder: Path, text: str, head: Header) -> tuple[Match, list[str]]:
    """How a drafted family reads a header, and the names it leaves over."""
    (folder / "families/diffusion/drafted.yaml").write_text(text)
    prefix = common_prefix(head)
    match = solve(Knowledge(compile_documents([folder])), head, "drafted", prefix=prefix)
    return match, [n for n in head.tensors if n.startswith(prefix) and n[len(prefix) :] not in match.matched]


def assert_complete(folder: Path, text: str, head: Header) -> Match:
    match, left = read_by(folder, text, head)
    assert (match.refused, match.missing, match.mismatched, left) == ("", [], [], [])
    return match


def known_headers() -> list[tuple[str, str]]:
    """A sample over all families: (family, layout)."""
    knowledge = load()
    rows = []
    for family, member in sorted(knowledge.members().items()):
        if not member.get("abstract") and "sibling_of" not in member:
            rows += [(family, layout) for layout in knowledge.grammar(family)["layouts"]]
    return rows[::17]


@pytest.mark.parametrize(("family", "layout"), known_headers())
def test_a_draft_solves_the_header_it_was_drafted_from(folder: Path, family: str, layout: str) -> None:
    document = load().grammar(family)
    example = document["example"]
    shapes = expected_shapes(document, layout, example.get("symbols", {}), example.get("options", {}))
    blobs = {
        n for n, shape in shapes.items() if shape is None
    }  # a tokenizer in a tensor: of any size, and tells nothing
    head = header_of({n: s for n, s in shapes.items() if n not in blobs})
    assert_complete(folder, draft([head], "drafted"), head)


@settings(max_examples=15)
@given(sizes, sizes, sizes)
def test_a_draft_from_two_sizes_solves_a_third(
    folder: Path, a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
) -> None:
    assume(all(a[k] != b[k] for k in a))  # what both have in common may be taken for fixed
    text = draft([header(plain(**a)), header(plain(**b))], "drafted")
    for size in (a, b, c):
        match = assert_complete(folder, text, header(plain(**size)))
        assert {size["hidden"], size["ffn"], size["layers"]} <= set(match.symbols.values())


def test_a_coincidence_of_one_size_is_not_taken_for_a_law(folder: Path) -> None:
    a, b = header(plain(64, 3, 16, 4 * 64)), header(plain(96, 5, 16, 250))
    match, _ = read_by(folder, draft([a], "drafted"), b)
    assert match.mismatched or match.refused  # one header: 256 = 4*64
    for head in (a, b):
        assert_complete(folder, draft([a, b], "drafted"), head)


def test_a_draft_says_what_it_rests_on(folder: Path) -> None:
    data = yaml.safe_load(draft([header(plain(64)), header(plain(96, 4))], "drafted"))
    assert data["id"] == "drafted"
    assert [(e["tensors"], e["parameters"]) for e in data["examples"]] == [
        (len(plain(64)), sum(t.elements for t in header(plain(64)).tensors.values())),
        (len(plain(96, 4)), sum(t.elements for t in header(plain(96, 4)).tensors.values())),
    ]
    assert sorted(data["where"].values()) == [16, 160]  # what both sizes have in common


def test_runs_become_runs_and_equal_blocks_one_block(folder: Path) -> None:
    data = yaml.safe_load(draft([header(plain(layers=9)), header(plain(layers=7, hidden=96))], "drafted"))
    keys = " ".join(data["tensors"])
    assert "blocks.{blocks}" in keys
    assert "blocks.1" not in keys


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["a.w", "b.w"], ""),
        (["m.a.w", "m.b.w"], "m."),
        (["m.d.a.w", "m.d.b.w"], "m.d."),
        (["m.a.w", "m.b.w", "v_pred"], "m."),  # a marker of one value
        (["encoder.a.w", "encoder.b.w", "shared.w"], ""),  # a tensor of the model
        (["m.blocks.0.w", "m.blocks.1.w"], "m."),  # a run keeps its name
        (["0.w", "0.b"], ""),
        (["w"], ""),
    ],
)
def test_the_prefix_is_what_all_names_share(names: list[str], prefix: str) -> None:
    assert common_prefix(header({n: (1,) if n == "v_pred" else (8, 8) for n in names})) == prefix


def test_headers_with_and_without_a_prefix_are_drafted_together(folder: Path) -> None:
    bare, prefixed = header(plain(64)), header(plain(96, 5, prefix="model.diffusion_model."))
    text = draft([bare, prefixed], "drafted")
    for head in (bare, prefixed):
        assert_complete(folder, text, head)


def test_two_layouts_are_no_family() -> None:
    other = {n.replace("attn.qkv", "attention.to_qkv"): s for n, s in plain(96).items()}
    with pytest.raises(ValueError, match=r"is not in every header: draft from sizes of one family and layout"):
        draft([header(plain(64)), header(other)], "drafted")


def test_a_tensor_that_is_a_module_elsewhere_is_no_family() -> None:
    other = plain(96) | {"final.weight.inner": (1,)}
    del other["final.weight"]
    with pytest.raises(ValueError, match=r"are not sizes of one family|is not in every header"):
        draft([header(plain(64)), header(other)], "drafted")


def test_a_prefix_that_nothing_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no tensor starts with 'transformer\.'"):
        draft([header(plain())], "drafted", "transformer.")


def test_a_quantised_file_drafts_the_plain_model(tmp_path: Path) -> None:
    from compatkit.headers import open_header
    from compatkit.identify.logical import logical
    from tests.support.files import write_safetensors

    plain = {"stem.weight": ("BF16", (64, 128)), "norm.weight": ("BF16", (64,))}
    plain |= {f"blocks.{i}.lin.weight": ("BF16", (256, 64)) for i in range(4)}
    stored: dict[str, Any] = dict(plain)
    for name in [n for n in plain if "blocks" in n]:
        stored[name] = ("U8", (256, 32))
        stored[f"{name}_scale"] = ("F8_E4M3", (256, 4))
        stored[f"{name}_scale_2"] = ("F32", ())
    one, two = tmp_path / "plain.safetensors", tmp_path / "packed.safetensors"
    write_safetensors(one, plain)
    write_safetensors(two, stored)
    seen = logical(open_header(two), load())
    assert {n: t.shape for n, t in seen.tensors.items()} == {n: shape for n, (_, shape) in plain.items()}
    assert draft([seen], "x") == draft([open_header(one)], "x")
