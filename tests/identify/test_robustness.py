"""A header that is damaged, padded, renamed or converted is still its family's, or nobody's, never another's.

Over every family in `rules/`, every example and every layout, sampled. There is one exception: where the dropped tensor
is all that tells two families apart, what is left is exactly the other one's header.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from compatkit.identify.identify import identify
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component, Header, Tensor
from tests.support.rules import Example, examples

MANY = settings(max_examples=5 * settings().max_examples)
cases = st.sampled_from([(e, layout) for e in examples() for layout in e.layouts])
Case = tuple[Example, str]


def with_tensors(head: Header, tensors: Mapping[str, Tensor]) -> Header:
    return replace(head, tensors=tensors)


def assert_same_or_unknown(head: Header, changed: Header, what: object) -> Component:
    """The first component of the changed header, which must not be another family's. No other may appear beside it."""
    before = identify(head, load())[0]
    first, *rest = identify(changed, load())
    if first.family is not None and not set(first.families) & set(before.families):
        exact = not (first.missing or first.foreign or first.mismatched)
        fewer = len(changed.tensors) < len(head.tensors)
        assert exact, f"{before.family} without {what} is taken for {first.family}"
        assert fewer, f"{before.family} with {what} is taken for {first.family}"
    assert [c.family for c in rest if c.family] == [], what
    return first


@MANY
@given(cases, st.data())
def test_dropping_any_one_tensor(case: Case, data: st.DataObject) -> None:
    head = case[0].header(case[1])
    name = data.draw(st.sampled_from(sorted(head.tensors)))
    assert_same_or_unknown(head, with_tensors(head, {n: t for n, t in head.tensors.items() if n != name}), name)


@given(cases, st.randoms(use_true_random=False))
def test_any_order_gives_the_same_answer(case: Case, random: Random) -> None:
    head = case[0].header(case[1])
    names = sorted(head.tensors)
    random.shuffle(names)
    before, after = identify(head, load()), identify(with_tensors(head, {n: head.tensors[n] for n in names}), load())
    assert [(c.families, c.layout, c.prefix, c.facts, c.loads_as) for c in after] == [
        (c.families, c.layout, c.prefix, c.facts, c.loads_as) for c in before
    ]


segments = st.sampled_from(
    ["extra", "adapter", "head", "net", "foreign_blocks", "3", "lora_A", "scale", "weight", "bias"]
)
foreign_names = st.lists(segments, min_size=2, max_size=4).map(lambda s: "odd_" + ".".join(s))


@given(
    cases,
    st.lists(st.tuples(foreign_names, st.lists(st.integers(1, 63), max_size=3)), min_size=10, max_size=10),
    st.sampled_from(["F32", "BF16"]),
)
def test_ten_foreign_tensors(case: Case, foreign: list[tuple[str, list[int]]], dtype: str) -> None:
    head = case[0].header(case[1])
    added = {f"{name}.{i}": Tensor(dtype, tuple(shape), 4) for i, (name, shape) in enumerate(foreign)}
    found = assert_same_or_unknown(head, with_tensors(head, {**head.tensors, **added}), sorted(added))
    if found.family:
        assert set(found.foreign) >= set(added), "a foreign tensor that is not named"


@given(cases, st.data())
def test_swapped_dtypes_change_nothing(case: Case, data: st.DataObject) -> None:
    head = case[0].header(case[1])
    dtypes = data.draw(st.lists(st.sampled_from(["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"]), min_size=7, max_size=7))
    changed = {n: t._replace(dtype=dtypes[i % 7]) for i, (n, t) in enumerate(head.tensors.items())}
    found = assert_same_or_unknown(head, with_tensors(head, changed), dtypes)
    assert found.families == identify(head, load())[0].families


prefixes = st.one_of(
    st.sampled_from(["model.diffusion_model.", "model.", "module.", "net.", "first_stage_model.", "_orig_mod."]),
    st.lists(st.text("abcxyz_", min_size=1, max_size=8), min_size=1, max_size=4).map(lambda s: ".".join(s) + "."),
)


@given(cases, prefixes)
def test_any_prefix_is_found(case: Case, prefix: str) -> None:
    head = case[0].header(case[1])
    markers = {n for names in load().grammar(case[0].family)["markers"].values() for n in names}  # outside any prefix
    changed = with_tensors(head, {n if n in markers else prefix + n: t for n, t in head.tensors.items()})
    before, found = identify(head, load())[0], assert_same_or_unknown(head, changed, prefix)
    if found.family is None and load().members()[case[0].family].get("fallback"):
        return  # one layout with a prefix is nearly another one's spelling: a mere kind of model gives way
    assert found.families == before.families
    if found.layout == before.layout:  # one layout with a prefix may be another one's spelling
        assert found.prefix == prefix + before.prefix
    elif load().members()[case[0].family].get("fallback"):
        return  # a kind of model read in another spelling may see its head as something beside it
    assert found.facts == before.facts
