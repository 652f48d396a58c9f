"""The dry run against torch itself: the errors of its origin to the letter, and every family with what it asks for."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest

from compatkit.checks import judge
from compatkit.dryrun.dry import dry_run
from compatkit.dryrun.run import Worker
from compatkit.dryrun.wording import read
from compatkit.knowledge import junctionfile
from compatkit.knowledge.store import load
from compatkit.vocabulary import Finding, Report, Stack
from tests.support.sets import lora, stack

torch = pytest.importorskip("torch")

FAMILIES = Path(__file__).resolve().parents[2] / "rules" / "families"
#: Sets whose own card gives them a part of another width than their example has.
ODD = {("nucleus_moe_image", "diffusers")}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as running:
        yield running


def run(worker: Worker, made: Stack, **more: Any) -> Report:
    return dry_run(made, load(), judge(made, load()), worker, **more)


def first(report: Report) -> Finding:
    """The first error of a run."""
    return next(f for f in report.findings if f.level == "error")


def test_features_of_2304_into_z_image(worker: Worker) -> None:
    found = first(run(worker, stack("z_image_turbo", "gemma2_2b")))
    assert found.evidence["op"] == "rms_norm"
    assert found.evidence["module"] == "cap_embedder.0"
    said = "Given normalized_shape=[2560], expected input with shape [*2560], but got input of size[1, 18, 2304]"
    assert read(found.evidence["message"]) == read(said)
    assert found.evidence["confirms"] == "encoder/width"


@pytest.mark.parametrize("asked", [{"runtime": "diffusers"}, {"version": "0.3.70"}])
def test_a_video_latent_into_a_vae_of_pictures(worker: Worker, asked: dict[str, str]) -> None:
    found = first(run(worker, stack("qwen_image", "flux1_vae", **asked)))
    said = "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [1, 16, 1, 128, 128]"
    assert found.evidence["message"] == said
    assert found.evidence["confirms"] in ("vae/latent-rank", "vae/latent-space")


def test_sixteen_channels_into_a_vae_of_four(worker: Worker) -> None:
    found = first(run(worker, stack("z_image_turbo", "sdxl_vae")))
    said = (
        "Given groups=1, weight of size [4, 4, 1, 1], expected input[1, 16, 128, 128] to have 4 channels, but got 16"
        " channels instead"
    )
    assert found.evidence["message"] == said
    assert found.evidence["confirms"] == "vae/latent-channels"


def families(runtime: str) -> list[str]:
    names = sorted(p.stem for p in (FAMILIES / "diffusion").glob("*.yaml"))
    known = [n for n in names if load().grammar(n).get("example")]
    return [n for n in known if (load().family(n).get("runtimes") or {}).get(runtime)]


def parts(family: str) -> list[str]:
    """What a family's card asks for: encoders, image encoders, the VAE of its latent space."""
    card = load().family(family)
    kinds = [str(e["kind"]) for key in ("text_encoders", "image_encoders") for e in card.get(key) or ()]
    return [n for n in (*kinds, f"{(card.get('latent') or {}).get('space')}_vae") if load().has_family(n)]


@pytest.mark.parametrize(
    ("family", "runtime"), [(f, r) for r in ("comfyui", "diffusers") for f in families(r) if (f, r) not in ODD]
)
def test_every_family_runs_with_what_its_card_asks_for(worker: Worker, family: str, runtime: str) -> None:
    report = run(worker, stack(family, *parts(family), runtime=runtime))
    assert [f"{f.rule}: {f.message}" for f in report.findings] == []


@pytest.mark.parametrize("family", [f for f in families("comfyui") if load().family(f).get("text_encoders")])
def test_no_family_runs_with_an_encoder_of_another_width(worker: Worker, family: str) -> None:
    junctions = load().family(family).get("junctions") or {}
    slots = [e.get("into", "context_dim") for e in load().family(family)["text_encoders"]]
    if not any(junctions.get(s) for s in slots):
        pytest.skip("its text goes in through another file")
    if any(load().family(f).get("text_encoders") == [] for c in stack(family).components for f in c.also):
        pytest.skip("its header may be that of a model without text")
    kinds = {k for e in load().family(family)["text_encoders"] for k in (e["kind"], *(e.get("alternatives") or ()))}
    stranger = "gemma2_2b" if "mistral3_24b" in kinds else "mistral3_24b"
    assert run(worker, stack(family, stranger)).verdict == "fail"


@pytest.mark.parametrize(
    ("adapter", "right", "wrong"),
    [
        ("controlnet_sd15", "sd15", "sdxl"),
        ("controlnet_sdxl", "sdxl", "sd15"),
        ("controlnet_flux", "flux_dev", "sd35_large"),
        ("controlnet_sd3", "sd3_medium", "flux_dev"),
        ("controlnet_qwen_image", "qwen_image", "flux_dev"),
        ("ip_adapter_sd15", "sd15", "sdxl"),
        ("ip_adapter_sdxl", "sdxl", "sd15"),
        ("flux_redux", "flux_dev", "sdxl"),
        ("z_image_control", "z_image_turbo", "qwen_image"),
    ],
)
def test_an_adapter_goes_into_its_own_base_and_into_no_other(
    worker: Worker, adapter: str, right: str, wrong: str
) -> None:
    def errors(base: str) -> list[str]:
        return [f.rule for f in run(worker, stack(base, adapter)).findings if f.level == "error"]

    assert errors(right) == []
    assert "dryrun/adapter" in errors(wrong)


def test_a_lora_of_other_widths(worker: Worker) -> None:
    wrong = lora("diffusion_model.layers.{i}.attention.out", (2304, 16), (16, 2304))
    found = first(run(worker, stack("z_image_turbo", wrong)))
    assert found.rule == "dryrun/lora"
    assert found.evidence["message"] == f"shape '[3840, 3840]' is invalid for input of size {2304 * 2304}"
    right = lora("diffusion_model.layers.{i}.attention.out", (3840, 16), (16, 3840))
    assert run(worker, stack("z_image_turbo", right)).verdict == "pass"


def test_a_lora_of_other_widths_where_modules_are_made_for_its_halves(worker: Worker) -> None:
    wrong = lora("transformer.layers.{i}.attention.to_out.0", (2304, 16), (16, 2304))
    found = first(run(worker, stack("z_image_turbo", wrong, runtime="diffusers")))
    assert found.evidence["message"] == (
        "Error(s) in loading state_dict for ZImageTransformer2DModel:\n\tsize mismatch for"
        " layers.0.attention.to_out.0.lora_A.default_0.weight: copying a param with shape torch.Size([16, 2304]) from"
        " checkpoint, the shape in current model is torch.Size([16, 3840])."
    )


def test_a_token_embedding_of_another_vocabulary(worker: Worker) -> None:
    found = first(run(worker, stack("z_image_turbo", "umt5_xxl", clip_type="lumina2")))
    assert found.rule == "dryrun/load"
    assert found.evidence["message"].startswith(
        "Error(s) in loading state_dict for T5:\n\tsize mismatch for shared.weight"
    )


def test_a_whole_model_stops_where_its_probe_does_and_is_told_once(worker: Worker) -> None:
    pytest.importorskip("diffusers")
    report = run(worker, stack("z_image_turbo", "gemma2_2b", runtime="diffusers"), forward=True)
    assert [f.rule for f in report.findings] == ["dryrun/context"]
    assert "stops there too" in report.findings[0].message
    assert "normalization" in report.findings[0].evidence["line"]
    assert {"dryrun/forward", "dryrun/state-dict"} <= set(report.checked)
    right = run(worker, stack("z_image_turbo", "qwen3_4b", "flux1_vae", runtime="diffusers"), forward=True)
    assert (right.verdict, right.findings) == ("pass", ())


#: Chains that work and that fail, one of each operation.
CHAINS: list[dict[str, Any]] = [
    {"input": [1, 7, width], "steps": [step]}
    for width in (8, 6)
    for step in (
        {"op": "linear", "weight": [4, 8]},
        {"op": "rms_norm", "weight": [8]},
        {"op": "layer_norm", "weight": [8]},
        {"op": "mul", "weight": [8]},
        {"op": "add", "weight": [1, 7, 8]},
        {"op": "matmul", "weight": [8, 3]},
        {"op": "cat", "weight": [1, 2, 8]},
        {"op": "attention", "weight": [1, 9, 8], "heads": 2},
        {"op": "reshape", "shape": [1, 7, 2, 4], "weight": [1, 7, 2, 4]},
    )
] + [
    {"input": [1, channels, *sides], "steps": [step]}
    for channels in (4, 3)
    for sides, step in (
        ([8], {"op": "conv1d", "weight": [2, 4, 3]}),
        ([8, 8], {"op": "conv2d", "weight": [2, 4, 3, 3]}),
        ([1, 8, 8], {"op": "conv2d", "weight": [2, 4, 3, 3]}),
        ([2, 8, 8], {"op": "conv3d", "weight": [2, 4, 3, 3, 3]}),
        ([8, 8], {"op": "conv3d", "weight": [2, 4, 3, 3, 3]}),
        ([8, 8], {"op": "group_norm", "weight": [4], "groups": 2}),
        ([8, 8], {"op": "stats", "weight": [1, 4, 1, 1]}),
        ([2, 8, 8], {"op": "side", "axis": 4}),
        ([8, 8], {"op": "side", "axis": 4}),
    )
]


@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: f"{c['steps'][0]['op']}{c['input']}")
def test_a_chain_ends_as_the_cpu_ends_it(chain: dict[str, Any]) -> None:
    """The meta device decides first what works; here the same operation runs on real numbers instead."""
    from compatkit.dryrun import ops

    def make(shape: Any, dtype: str = "") -> Any:
        return torch.rand([int(s) for s in shape], dtype=torch.float32)

    step = chain["steps"][0]
    try:
        ops.OPS[step["op"]](make(chain["input"]), step, make)
        said = ""
    except Exception as e:
        said = str(e)
    got = ops.run_chain({**chain, "dtype": "float32"})
    assert got.get("message", "") == said


def test_a_weight_of_another_dtype_is_refused_as_the_cpu_refuses_it() -> None:
    from compatkit.dryrun import ops

    chain = {"input": [1, 7, 8], "dtype": "bfloat16", "steps": [{"op": "linear", "weight": [4, 8], "dtype": "float16"}]}
    assert "same dtype" in ops.run_chain(chain)["message"]


def test_every_operation_that_rules_may_name_is_there() -> None:
    from compatkit.dryrun import ops

    assert {*junctionfile.OPS, *junctionfile.ARRANGING} <= set(ops.OPS)


def test_sizes_that_a_file_makes_up_take_no_memory(worker: Worker) -> None:
    huge = 1 << 30
    steps = [{"op": "linear", "weight": [huge, huge]}]
    [good] = worker.ask({"do": "chains", "chains": [{"input": [1, 18, huge], "steps": steps}]})["results"]
    [bad] = worker.ask({"do": "chains", "chains": [{"input": [1, 18, 7], "steps": steps}]})["results"]
    assert good["ok"] or good["error"] in ("RuntimeError", "OverflowError")
    assert bad["message"] == f"mat1 and mat2 shapes cannot be multiplied (18x7 and {huge}x{huge})"
    assert worker.ask({"do": "memory"})["peak"] < 700_000_000
    assert prod(good.get("output") or [0]) >= 0
