"""The parts of the page that are drawn: coverage maps, bars of memory, and what a smoke test left."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from compatkit.adapters.blocks import block_of, blocks
from compatkit.cli import cli
from compatkit.render.blockmap import block_map
from compatkit.render.diagram import diagram
from compatkit.render.incident import Incident, incident_html, incident_markdown
from compatkit.render.memory import GIB, memory
from compatkit.render.smokedir import Smoke, joined, read
from compatkit.vocabulary import Finding, Report, SourceError, Tensor
from tests.render.reports import HOSTILE, component, report
from tests.render.test_incident import harmless

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 40
ENTRY = {"component": 1, "base": 0, "runtime": "r", "keys": 480, "keys_matched": 470, "modules": 240}
ENTRY |= {"modules_matched": 235, "modules_shape_mismatch": 1, "verdict": "shape_mismatch"}


def test_a_weight_belongs_to_its_block() -> None:
    assert block_of("diffusion_model.layers.3.attention.qkv.weight") == ("layers", 3)
    assert block_of("diffusion_model.input_blocks.4.1.transformer_blocks.0.to_k.weight") == ("input_blocks", 4)
    assert block_of("text_encoders.qwen3.embed.weight") == ("text_encoders", None)
    assert block_of("x_embedder.weight") == ("x_embedder", None)


def test_blocks_count_matrices_those_changed_and_those_that_do_not_fit() -> None:
    weights = {f"layers.{i}.{m}.weight": (8, 8) for i in range(2) for m in ("q", "k")} | {"layers.0.norm.weight": (8,)}
    found = blocks(weights, {"layers.0.q.weight", "layers.1.q.weight", "layers.1.k.weight"}, ["layers.0.q.weight"])
    assert found == [
        {"run": "layers", "index": 0, "weights": 2, "changed": 0, "failed": 1},
        {"run": "layers", "index": 1, "weights": 2, "changed": 2, "failed": 0},
    ]


def cell(index: int | None, changed: int, failed: int = 0, run: str = "layers") -> dict[str, object]:
    return {"run": run, "index": index, "weights": 4, "changed": changed, "failed": failed}


def test_the_map_has_a_cell_for_each_block_and_says_its_state_without_colour() -> None:
    cells = [cell(0, 4), cell(1, 2), cell(2, 0), cell(3, 3, 1), cell(None, 0, 0, "x_embedder")]
    drawn = block_map(ENTRY | {"blocks": cells})
    assert drawn is not None
    assert [(r.name, [c.state for c in r.cells]) for r in drawn.rows] == [
        ("layers", ["all", "some", "none", "failed"]),
        ("", ["none"]),
    ]
    assert len({c.glyph for c in drawn.rows[0].cells}) == 4
    assert (drawn.touched, drawn.blocks) == (2, 5)
    text = incident_html(Incident(replace(report(), adapters=(ENTRY | {"blocks": cells},)), {}))
    harmless(text)
    assert '<li class="failed">' in text
    assert ": 3 / 4 matrices changed, 1 do not fit" in text
    assert block_map(ENTRY) is None


def test_an_adapter_is_drawn_onto_its_base_with_its_counts() -> None:
    lora = component("style.safetensors", "lora", family=None, title="A LoRA of some kind")
    given = replace(report(), findings=(), components=(component(), lora), adapters=(ENTRY,))
    drawn = diagram(given, {}, str)
    assert drawn is not None
    assert [a.labels for a in drawn.arrows] == [("470/480 keys", "1 do not fit")]
    assert "A LoRA of some kind" in [b.title for b in drawn.boxes]


def sized(*sizes: int) -> Report:
    parts = [component(f"{i}.gguf", tensors={"a": Tensor("F16", (1,), n)}) for i, n in enumerate(sizes)]
    return replace(report(), components=tuple(parts))


CARDS = [{"memory": m} for m in (8, 12, 16, 24)]


def test_bars_stand_beside_the_cards_that_matter() -> None:
    drawn = memory(sized(10 * GIB, 3 * GIB), CARDS, {})
    assert drawn is not None
    assert [b.percent < 100 for b in drawn.bars] == [True, True]
    assert drawn.total == 13 * GIB
    assert [(m.title, m.fits, m.all_fits) for m in drawn.marks] == [
        ("8 GiB", False, False),
        ("12 GiB", True, False),
        ("16 GiB", True, True),
    ]
    assert memory(sized(0), CARDS, {}) is None


def test_the_card_of_the_log_is_the_one_that_counts() -> None:
    said = {"GPU": "cuda:0 NVIDIA Some Card", "memory": "Total VRAM 8192 MB, total RAM 999 MB"}
    drawn = memory(sized(10 * GIB), CARDS, said)
    assert drawn is not None
    assert [(m.title, m.size, m.fits) for m in drawn.marks] == [("NVIDIA Some Card", 8 * GIB, False)]


# -- what a smoke test left -------------------------------------------------------------------------------------------


def left(folder: Path, **changes: object) -> Path:
    document: dict[str, object] = {
        "tool": "compatkit",
        "verdict": "fail",
        "components": [{"source": "/elsewhere/plain.gguf"}],
        "findings": [
            {
                "rule": "smoke/nan",
                "level": "error",
                "components": [0],
                "message": "NaN in it",
                "evidence": {"count": 3},
            },
            {"rule": "encoder/width", "level": "error", "components": [0], "message": "of headers"},
        ],
        "smoke": {"run": {"places": [{"module": f"m.{i}", "max_abs": 10.0**i} for i in range(6)]}},
    }
    (folder / "report.json").write_text(json.dumps(document | changes))
    return folder


def test_findings_pictures_and_plots_join_the_report(tmp_path: Path) -> None:
    (tmp_path / "step-1.png").write_bytes(PNG)
    (tmp_path / "plot.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    (tmp_path / "no.png").write_bytes(b"<html>")
    found = read(left(tmp_path), ["plain.safetensors", "plain.gguf"])
    assert [(f.rule, f.components) for f in found.findings] == [("smoke/nan", (1,))]
    assert [p.title for p in found.pictures] == ["plot", "step 1"]
    assert found.left_out == 1
    assert [name for name, _, _ in found.plots[0].bars] == [f"m.{i}" for i in range(6)]
    shares = [share for _, _, share in found.plots[0].bars]
    assert shares == sorted(shares)
    assert shares[4] < found.plots[0].limit < shares[5]
    passed = replace(report(verdict="pass"), findings=(), headline="pass (diffusion, text encoder)")
    shown = joined(passed, found)
    assert (shown.verdict, shown.headline) == ("fail", "fail (diffusion, text encoder)")
    text = incident_html(Incident(shown, {}, smoke=found))
    harmless(text)
    assert text.count("data:image/") == 2
    assert "img-src data:" in text
    assert "NaN in it" in text
    assert "smoke test" in incident_markdown(Incident(shown, {}, smoke=found))


def test_measured_tensors_by_name_are_a_plot(tmp_path: Path) -> None:
    measured = {f"layers.{i}.weight": {"dtype": "F16", "max_abs": 1.0 + i} for i in range(5)}
    found = read(left(tmp_path, smoke={"scan": {"files": [{"source": "x", "measured": measured}]}}), [])
    assert [(p.title, [name for name, _, _ in p.bars]) for p in found.plots] == [("scan", list(measured))]


def test_without_pictures_the_page_may_show_none() -> None:
    assert "img-src" not in incident_html(Incident(report(), {}))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tool": "other"}', "[" * 100_000, '{"tool": "compatkit"}'])
def test_a_folder_that_no_smoke_test_wrote_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(SourceError):
        read(tmp_path, [])
    with pytest.raises(SourceError, match="compatkit smoke"):
        read(tmp_path / "nothing", [])


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20) | st.sampled_from(HOSTILE),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["module", "max_abs", "rule", "level", "components", "message"]), inner)
    ),
    max_leaves=20,
)


@given(JSON, JSON, JSON)
def test_no_report_of_a_smoke_test_breaks_or_enters_the_page(findings: object, numbers: object, parts: object) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        found = read(left(Path(folder), findings=findings, smoke={"x": numbers}, components=parts), ["plain.gguf"])
    harmless(incident_html(Incident(joined(report(), found), {}, smoke=found)))


def test_a_huge_number_of_places_stays_bounded(tmp_path: Path) -> None:
    places = [{"module": "x" * 500, "max_abs": float(i)} for i in range(20_000)]
    found = read(left(tmp_path, smoke={"run": places}), [])
    assert len(incident_html(Incident(report(), {}, smoke=found))) < 300_000


def test_a_finding_that_headers_tell_already_stands_once() -> None:
    finding = Finding("smoke/nan", "error", (0,), "NaN")
    given = replace(report(), findings=(finding,))
    assert joined(given, Smoke("fail", (finding,), [], [], 0)).findings == (finding,)


def test_report_takes_the_folder_and_says_how_to_make_it(tmp_path: Path) -> None:
    from click.testing import CliRunner

    ran = CliRunner().invoke(cli, ["report", "x.gguf", "--smoke", str(tmp_path / "none")])
    assert ran.exit_code == 2
    assert re.search(r"none'? does not exist", ran.output)
