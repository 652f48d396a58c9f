"""Grammar against class: the same tensors, name for name and shape for shape. No download, no weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from compatkit.identify.identify import identify
from compatkit.identify.selftest import header_of
from compatkit.identify.shapes import expected_shapes
from compatkit.knowledge.store import load
from tests.oracle import models, table
from tests.oracle.models import Entry
from tests.support.rules import PLAIN, families

ENTRIES = list(models.entries())
KNOWLEDGE = load()


def _name(entry: Entry) -> str:
    return f"{entry.class_name.rpartition('.')[2]}-{entry.id}"


@pytest.fixture(scope="session")
def _libraries() -> None:
    pytest.importorskip("torch", reason="torch builds the classes: `make oracle` installs it")
    for library in models.LIBRARIES:
        pytest.importorskip(library, reason=f"{library} holds the classes: `make oracle` installs it")


@pytest.mark.usefixtures("_libraries")
@pytest.mark.parametrize("entry", ENTRIES, ids=_name)
def test_grammar_equals_class(entry: Entry) -> None:
    grammar = KNOWLEDGE.grammar(entry.family)
    shapes = models.state_dict(entry)
    assert not models.compare(shapes, grammar, models.layout_of(entry, grammar))
    component, *others = identify(header_of(shapes), KNOWLEDGE)
    assert entry.family in component.families
    assert [*others, *component.missing, *component.mismatched, *component.foreign] == []


def test_every_declared_class_is_compared_or_excepted() -> None:
    compared: dict[str, set[str]] = {}
    for entry in ENTRIES:
        owner = models.owner(KNOWLEDGE, entry.family)
        compared.setdefault(owner, set()).add(entry.class_name.rpartition(".")[2])
    excepted = models.exceptions()
    missing = [
        f"{family}: {name}"
        for family, names in models.declared(KNOWLEDGE).items()
        for name in names
        if family not in excepted and name not in compared.get(models.owner(KNOWLEDGE, family), ())
    ]
    assert not missing, "neither compared nor excepted in tests/oracle/classes.yaml"


def test_exceptions_are_families_that_name_a_class_and_are_not_compared() -> None:
    declared, compared = models.declared(KNOWLEDGE), {entry.family for entry in ENTRIES}
    assert [f for f in models.exceptions() if f not in declared or f in compared] == []


@pytest.mark.usefixtures("_libraries")
def test_every_model_class_of_diffusers_is_compared_or_listed_as_without_a_family() -> None:
    listed = {name for names in models.document()["without_family"].values() for name in names}
    compared = {entry.class_name for entry in ENTRIES}
    assert models.diffusers_classes() - compared == listed


@pytest.mark.parametrize(
    ("name", "shape", "complaint"),
    [
        ("img_in.weight", None, "missing: img_in.weight"),
        ("other.bias", (64,), "foreign: other.bias (64,)"),
        ("img_in.bias", (65,), "mismatched: img_in.bias (65,)"),
        ("img_in.bias", (64, 1), "mismatched: img_in.bias (64, 1)"),
    ],
)
def test_a_difference_is_found(tmp_path: Path, name: str, shape: tuple[int, ...] | None, complaint: str) -> None:
    grammar = families(tmp_path, PLAIN).grammar("plain")
    symbols = {"hidden": 64, "patch": 16, "layers": 3, "ffn": 256}
    shapes = {
        n: tuple(s or 1 for s in sides or ()) for n, sides in expected_shapes(grammar, "native", symbols, {}).items()
    }
    assert models.compare(shapes, grammar, "native") == []
    changed = {n: s for n, s in {**shapes, name: shape}.items() if s is not None}
    assert complaint in models.compare(changed, grammar, "native")


def test_the_page_holds_the_table_of_today() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "oracle.md").read_text(encoding="utf-8")
    assert table.text() in page, "run `python -m tests.oracle.table --write`"
