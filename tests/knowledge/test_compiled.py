"""The compiled form: made when it is stale, whole or not at all, never written where it cannot or need not be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from compatkit.identify.identify import identify
from compatkit.knowledge import compile as compiler
from compatkit.knowledge import stamp, store
from compatkit.knowledge.compile import compile_documents, compile_tree
from compatkit.knowledge.yamlfile import RuleFileError
from tests.support.rules import PLAIN, header, plain, write_rules

OTHER = "id: other\nrole: vae\ntensors: {conv_in: 'conv(8, 3, 3)'}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A rules folder of two families."""
    files = {"families/diffusion/plain.yaml": PLAIN, "families/vae/other.yaml": OTHER}
    return write_rules(tmp_path / "rules", files)


def fresh(root: Path) -> store.Knowledge:
    return store.Knowledge(store._fresh(root, root / ".compiled"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def must_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_documents(roots: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiler, "compile_documents", compile_documents)


def touch(path: Path) -> None:
    """A new modification time, however coarse the clock of the file system."""
    info = path.stat()
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + 1_000_000_000))


def test_the_first_load_compiles_and_the_second_only_reads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(fresh(root).members()) == {"plain", "other"}
    before = bytes_of(root / ".compiled")
    assert {"index.json", "tables.json", "manifest.json", "families/plain.json"} <= set(before)
    must_not_compile(monkeypatch)
    assert set(fresh(root).members()) == {"plain", "other"}
    assert bytes_of(root / ".compiled") == before


def test_our_rules_name_their_file_from_the_rules_folder_and_those_of_users_by_their_path(
    root: Path, tmp_path: Path
) -> None:
    mine = write_rules(tmp_path / "mine", {"families/vae/mine.yaml": OTHER.replace("other", "mine")})
    both = store.Knowledge(compile_documents([root, mine]))
    assert both.family("other")["source_file"] == "rules/families/vae/other.yaml"
    assert both.family("mine")["source_file"] == str(mine / "families/vae/mine.yaml")


def test_what_is_read_back_is_what_was_compiled(root: Path) -> None:
    memory = store.Knowledge(compile_documents([root]))
    disk = fresh(root)
    head = header(plain())
    assert identify(head, disk) == identify(head, memory)
    assert json.loads(json.dumps(memory.grammar("plain"))) == disk.grammar("plain")


def test_an_edit_an_addition_and_a_removal_make_it_stale(root: Path) -> None:
    fresh(root)
    path = root / "families/diffusion/plain.yaml"
    path.write_text(PLAIN.replace("role: diffusion", "role: upscaler"))
    assert fresh(root).family("plain")["role"] == "upscaler"
    touch(path)  # the same size, another time: it may have another content
    assert store._fresh(root, root / ".compiled") == root / ".compiled"
    manifest = json.loads((root / ".compiled/manifest.json").read_bytes())
    assert manifest["stamp"] == [stamp.stamp(root)]
    (root / "families/vae/third.yaml").write_text(OTHER.replace("other", "third"))
    assert fresh(root).has_family("third")
    (root / "families/vae/third.yaml").unlink()
    assert not fresh(root).has_family("third")
    assert not (root / ".compiled/families/third.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 0, "stamp": []}', b"\xff"])
def test_a_manifest_that_is_not_ours_is_replaced(root: Path, content: bytes) -> None:
    fresh(root)
    (root / ".compiled/manifest.json").write_bytes(content)
    (root / ".compiled/families/plain.json").write_bytes(b"")
    assert fresh(root).family("plain")["role"] == "diffusion"


def test_another_format_of_the_compiled_form_is_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamp, "FORMAT", -1)
    monkeypatch.setattr(compiler, "FORMAT", -1)
    fresh(root)
    monkeypatch.undo()
    fresh(root)
    assert json.loads((root / ".compiled/manifest.json").read_bytes())["format"] == stamp.FORMAT


def test_where_it_cannot_be_written_it_is_held_in_memory(root: Path) -> None:
    (root / ".compiled").write_text("a file stands where the folder should be")
    knowledge = fresh(root)
    assert knowledge.family("plain")["role"] == "diffusion"
    assert (root / ".compiled").read_text().startswith("a file")


@pytest.mark.parametrize("after", range(4))
def test_a_write_that_fails_half_way_is_not_taken_for_the_whole(
    root: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    fresh(root)
    (root / "families/diffusion/plain.yaml").write_text(PLAIN.replace("role: diffusion", "role: upscaler"))
    replace, calls = os.replace, 0

    def full(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert fresh(root).family("plain")["role"] == "upscaler"  # from memory
    monkeypatch.undo()
    assert not [name for name in bytes_of(root / ".compiled") if not name.endswith(".json")], (
        "left-over temporary files"
    )
    assert fresh(root).family("plain")["role"] == "upscaler"


def test_a_bad_rule_file_leaves_the_compiled_form_as_it_was(root: Path) -> None:
    fresh(root)
    before = bytes_of(root / ".compiled")
    (root / "families/diffusion/bad.yaml").write_text("id: bad\nrole: nothing\n")
    with pytest.raises(RuleFileError, match=r"bad.yaml:2:1: unknown role 'nothing'"):
        fresh(root)
    assert bytes_of(root / ".compiled") == before


def test_users_folders_lie_on_top_and_are_compiled_in_memory(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = write_rules(tmp_path / "mine", {"families/vae/mine.yaml": OTHER.replace("other", "mine")})
    monkeypatch.setattr(store, "rules_root", lambda: root)
    knowledge = store.load.__wrapped__((extra,))
    assert set(knowledge.members()) == {"plain", "other", "mine"}
    assert not (root / ".compiled").exists()
    assert not (extra / ".compiled").exists()


def test_an_installed_form_is_not_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_rules(tmp_path / "_data" / "rules", {"families/diffusion/plain.yaml": PLAIN})
    compile_tree(root, root / ".compiled")
    (root / "families/diffusion/plain.yaml").write_text("changed: by nobody")
    monkeypatch.setattr(store, "_HERE", tmp_path)
    must_not_compile(monkeypatch)
    assert store.load.__wrapped__(()).has_family("plain")


def test_hidden_folders_and_other_files_are_no_rules(root: Path) -> None:
    before = stamp.stamp(root)
    (root / ".hidden").mkdir()
    (root / ".hidden/x.yaml").write_text("nonsense: [")
    (root / "families/README.md").write_text("text")
    assert stamp.stamp(root) == before
    tables = {"index.json", "tables.json", "targets.json", "classes.json", "nodes.json"} | {"errors.json"}
    assert set(compile_documents([root])) == tables | {"families/plain.json", "families/other.json"}


def test_the_stamp_sees_a_change_of_size_time_or_name(root: Path) -> None:
    path = root / "families/vae/other.yaml"
    seen = [stamp.stamp(root)]
    path.write_text(OTHER + "\n")
    seen.append(stamp.stamp(root))
    touch(path)
    seen.append(stamp.stamp(root))
    path.rename(path.with_name("another.yaml"))
    seen.append(stamp.stamp(root))
    assert len({json.dumps(s) for s in seen}) == len(seen)
