"""Sets run for real, small: the steps, adapters as weights pass, who is at fault, and what a report says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from benchmarks import weights as made  # noqa: E402
from compatkit import api  # noqa: E402
from compatkit.knowledge.store import load  # noqa: E402
from compatkit.smoke import bisect, ran, session, supervise, worker  # noqa: E402
from compatkit.smoke.member import Gave, Member  # noqa: E402
from compatkit.smoke.sampler import euler, schedule  # noqa: E402
from compatkit.vocabulary import Component, Quantization, Report  # noqa: E402

TINY = "tae_flux2"  # a VAE of 5 MB with a class of its own


# the sampler


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("back", [False, True])
def test_euler_follows_a_straight_flow_exactly(shift: float, back: bool) -> None:
    noise, picture = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    plan = schedule({"prediction": "flow", "shift": shift, "reversed": back}, 3, 0.5)
    sign = -1.0 if back else 1.0
    found = euler(noise, plan, lambda x, t: sign * (noise - picture))
    assert torch.allclose(found, picture, atol=1e-5)
    assert plan.times[0] == (0.0 if back else 1.0)


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_euler_finds_the_picture_that_a_perfect_denoiser_knows(kind: str) -> None:
    picture = torch.randn(1, 4, 8, 8)
    plan = schedule({"prediction": kind}, 4, 500)
    sigmas = dict(zip(plan.times, plan.sigmas, strict=False))

    def model(x: Any, t: float) -> Any:
        sigma = sigmas[t]
        noisy = x.float() * (sigma**2 + 1) ** 0.5
        eps = (noisy - picture) / sigma
        scale = (sigma**2 + 1) ** -0.5
        return eps if kind == "eps" else eps * scale - picture * sigma * scale

    assert torch.allclose(euler(torch.randn(1, 4, 8, 8), plan, model), picture, atol=1e-3)
    assert plan.times[0] == 999


def test_a_time_that_is_whole_thousands_is_told_so() -> None:
    assert schedule({"prediction": "flow"}, 2, 500).times == (1000.0, 500.0)
    assert schedule({"prediction": "flow"}, 2, 0.5).times == (1.0, 0.5)


def test_variances_beside_a_prediction_are_left_out_and_another_shape_is_refused() -> None:
    plan = schedule({"prediction": "flow"}, 1, 0.5)
    x = torch.zeros(1, 4, 2, 2)
    assert euler(x, plan, lambda x, t: torch.ones(1, 8, 2, 2)).shape == x.shape
    with pytest.raises(ValueError, match="is no step of a latent"):
        euler(x, plan, lambda x, t: torch.ones(1, 5, 2, 2))


# who is at fault


def member(index: int, role: str) -> Member:
    component = Component(
        f"{index}.safetensors", "safetensors", 1, 1, role, role, (), "native", "", Quantization("none", {}), 1, {}, {},
        {}, (),
    )  # fmt: skip
    return Member(index, component, component.source)


SET = [member(0, "diffusion"), member(1, "text_encoder"), member(2, "vae"), member(3, "lora"), member(4, "lora")]


@pytest.mark.parametrize(
    ("cause", "where", "guilty", "swap"),
    [
        ("lora:4", 0, 4, "lora:4"),
        ("encoder", 0, 1, "encoder"),
        ("latent", 2, 0, "latent"),
        ("dtype", 0, 0, "dtype"),
        ("dtype", 2, 2, "dtype"),
        ("", 0, 0, ""),
        ("", 2, 2, ""),
        ("", 1, 1, ""),
    ],
)
def test_the_file_whose_swap_heals_is_at_fault(cause: str, where: int, guilty: int, swap: str) -> None:
    tried: list[frozenset[str]] = []

    def attempt(members: Sequence[Member], swaps: frozenset[str]) -> Gave:
        tried.append(swaps)
        assert where == 2 or all(m.component.role != "vae" for m in members), "a later stage was run for nothing"
        return Gave(ran=1) if cause in swaps else Gave(ran=1, broken="layer (mm)", where=where)

    found = bisect.bisect(SET, Gave(ran=1, broken="layer (mm)", where=where), attempt)
    assert (found.component, found.swap) == (guilty, swap)
    assert len(tried) == len(found.tried)


# whole runs

Smoke = Callable[..., Report]


@pytest.fixture
def smoke(monkeypatch: pytest.MonkeyPatch) -> Smoke:
    """`smoke(path, …, bisect=True)` -> the report, the worker's work done in this process."""

    def run(job: Mapping[str, Any], on_event: Callable[[Any], None], **_: Any) -> supervise.Outcome:
        worker.work(job, on_event)  # type: ignore[arg-type]
        return supervise.Outcome("", 0.1, 0)

    monkeypatch.setattr(supervise, "run", run)

    def smoked(*paths: Path, **how: Any) -> Report:
        sources = [str(p) for p in paths]
        report = session.weights_only(api.check(sources, full=True))
        return ran.ran(report, sources, load(), session.Limits(), ran.Run(**how))

    return smoked


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae") / "tiny.safetensors"
    made.write(path, TINY, "bf16", scale=False)
    return path


def scaled(path: Path, name: str, factor: float, to: Path) -> Path:
    """The same file with one bf16 tensor multiplied."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors[name] = (tensors[name].float() * factor).bfloat16()
    save_file(tensors, to)
    return to


def rules(report: Report) -> dict[str, str]:
    return {f.rule: f.level for f in report.findings if f.rule.startswith("smoke/")}


def test_a_clean_vae_runs_and_its_numbers_stand_in_the_report(smoke: Smoke, vae: Path, tmp_path: Path) -> None:
    report = smoke(vae, save=str(tmp_path / "out"))
    assert not [n for n in report.not_checked if n.blocks], report.not_checked
    assert set(rules(report)) <= {"smoke/round-trip"}, "random weights give no picture back, and nothing else is wrong"
    runs = [r for r in report.smoke["forward"]["runs"] if r["event"] == "run"]
    assert [r["call"] for r in runs] == ["decode", "encode", "decode"]
    assert all(r["output"]["nonfinite"] == 0 and r["operations"] > 10 for r in runs)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"picture.png", "round-trip.png", "activations-0-vae.svg"}


def test_an_overflow_of_fp16_is_predicted_with_module_and_size(smoke: Smoke, vae: Path, tmp_path: Path) -> None:
    bad = scaled(vae, "taesd_decoder.8.conv.2.weight", 1e6, tmp_path / "bad.safetensors")
    (found,) = [f for f in smoke(bad).findings if f.rule == "smoke/fp16-overflow"]
    assert found.level == "warning"
    assert found.evidence["module"] == "taesd_decoder.8.conv.2"
    assert found.evidence["max_abs"] > 65504
    assert "would overflow fp16 at taesd_decoder.8.conv.2" in found.message


def test_asked_to_run_in_fp16_it_is_an_error(smoke: Smoke, vae: Path, tmp_path: Path) -> None:
    bad = scaled(vae, "taesd_decoder.8.conv.2.weight", 1e6, tmp_path / "bad.safetensors")
    assert rules(smoke(bad, settings={"dtype": "fp16"}))["smoke/fp16-asked"] == "error"


def test_the_first_nan_is_named_and_bisected(smoke: Smoke, vae: Path, tmp_path: Path) -> None:
    bad = scaled(vae, "taesd_decoder.10.conv.4.weight", float("nan"), tmp_path / "bad.safetensors")
    report = smoke(bad, bisect=True)
    found = {f.rule: f for f in report.findings}
    assert found["smoke/nan-activation"].evidence["module"] == "taesd_decoder.10.conv.4"
    assert found["smoke/bisect"].components == (0,)
    assert report.verdict == "fail"


def test_activations_that_run_away_are_an_error(smoke: Smoke, vae: Path, tmp_path: Path) -> None:
    bad = scaled(vae, "taesd_decoder.3.pool.3.weight", 1e12, tmp_path / "bad.safetensors")
    assert rules(smoke(bad))["smoke/runaway"] == "error"


def test_zeroed_weights_decode_to_one_colour(smoke: Smoke, vae: Path, tmp_path: Path) -> None:
    bad = scaled(vae, "taesd_decoder.19.weight", 0.0, tmp_path / "bad.safetensors")
    report = smoke(bad)
    (picture,) = [r for r in report.smoke["forward"]["runs"] if r["event"] == "picture"]
    assert picture["statistics"]["verdict"] in ("constant", "black")


def test_without_a_class_the_verdict_is_unknown_and_says_why(
    smoke: Smoke, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compatkit.dryrun.classes import NoClass
    from compatkit.smoke import trial

    def refuse(*_: Any, **__: Any) -> None:
        raise NoClass("no class of any library is known for it")

    monkeypatch.setattr(trial, "open_model", refuse)
    report = smoke(vae)
    assert report.verdict == "unknown"
    assert any("no class of any library" in n.why for n in report.not_checked)


def test_an_error_of_torch_in_a_run_is_no_pass(smoke: Smoke, vae: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compatkit.smoke.model import Model

    def raises(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (18x2304 and 2560x3840)")

    monkeypatch.setattr(Model, "run", raises)
    report = smoke(vae)
    assert report.verdict == "unknown"
    assert any("mat1 and mat2" in n.why for n in report.not_checked)


def test_gguf_values_are_changed_back() -> None:
    from compatkit.smoke.ggufvalues import undone
    from compatkit.vocabulary import Header, Tensor

    tensors = {
        "blk.0.attn_norm.weight": Tensor("F32", (4,), 16),
        "blk.0.attn_q.weight": Tensor("F32", (8, 4), 128),
        "blk.0.ffn_up.weight": Tensor("F32", (8, 4), 128),
    }
    entries = load().table("gguf_values")
    gemma = undone(Header("f", "gguf", 1, 1, tensors, {"general.architecture": "gemma3"}), entries)
    assert set(gemma) == {"blk.0.attn_norm.weight"}
    values = torch.full((4, 1), 1.5)
    gemma["blk.0.attn_norm.weight"][0].add(values, 0)
    assert values.flatten().tolist() == [0.5] * 4
    heads = {"general.architecture": "llama", "llama.attention.head_count": 2}
    llama = undone(Header("f", "gguf", 1, 1, tensors, heads), entries)
    rows = torch.arange(8.0)[:, None].expand(8, 4).clone()
    # as llama.cpp's converter writes them: first and second half of each head in turn
    written = rows.view(2, 2, 2, 4).transpose(1, 2).reshape(8, 4).contiguous()
    llama["blk.0.attn_q.weight"][0].add(written, 0)
    assert torch.equal(written, rows)
    assert not undone(Header("f", "safetensors", 1, 1, tensors, heads), entries)


# adapters


def test_a_lora_changes_the_weights_as_they_pass(tmp_path: Path) -> None:
    """Against the definition: W + strength * alpha / rank * up @ down, on the rows of the fused weight it is for."""
    from safetensors.torch import save_file

    from compatkit.smoke.fetch import Fetcher
    from compatkit.smoke.patches import patches
    from compatkit.smoke.weights import Weights

    family, hidden = "lumina2", 2304
    base_path, lora_path = tmp_path / "base.safetensors", tmp_path / "lora.safetensors"
    made.write(base_path, family, "bf16", depth=1)
    up, down = torch.randn(hidden, 4), torch.randn(4, hidden)
    module = "diffusion_model.layers.0.attention.out"
    save_file(
        {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up, f"{module}.alpha": torch.tensor(2.0)},
        lora_path,
    )
    (base,), (lora,) = api.inspect(str(base_path)), api.inspect(str(lora_path))
    with Weights.open(str(lora_path)) as adapter, Weights.open(str(base_path)) as weights:
        found = patches(base, lora, adapter, 0.5, load())
        assert not found.left_out
        assert set(found.patches) == {"layers.0.attention.out.weight"}
        from compatkit.dryrun.plan import Piece, Recipe

        shape = (hidden, hidden)
        recipe = Recipe((Piece("layers.0.attention.out.weight", shape),), shape)
        plain = Fetcher(weights).tensor(recipe, torch.bfloat16).float()
        changed = Fetcher(weights, found.patches).tensor(recipe, torch.bfloat16).float()
        wanted = (plain + 0.5 * 2.0 / 4 * (up @ down)).bfloat16().float()
        assert np.abs((changed - wanted).numpy()).max() <= np.abs(wanted.numpy()).max() * 2**-8
        assert not torch.equal(changed, plain)
