"""The caller's side of a run in a ComfyUI checkout: with a program in the checkout's place that answers as told."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from msgspec.structs import replace

from compatkit.checks import judge
from compatkit.dryrun import comfyui
from compatkit.dryrun.comfyui_parts import part
from compatkit.dryrun.comfyui_process import Checkout, CheckoutError
from compatkit.dryrun.comfyui_report import dry_run
from compatkit.dryrun.comfyui_worker import stand_ins
from compatkit.hosts.comfyui import Install
from compatkit.identify.identify import identify
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component, Header, Report, Stack, Tensor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is started by its first line")

NORM = "Given normalized_shape=[2560], expected input with shape [*2560], but got input of size[1, 18, 2304]"


def component(
    family: str, name: str, layout: str | None = None, format: str = "safetensors", **metadata: Any
) -> Component:
    """A family's example as a file."""
    shapes = example_shapes(load().grammar(family), layout)
    kind = "Q4_K" if format == "gguf" else "BF16"
    tensors = {n: Tensor(kind if len(s) > 1 else "F32", tuple(s), 2) for n, s in shapes.items()}
    return identify(Header(name, format, 1 << 30, 100, tensors, metadata), load())[0]


def program(folder: Path, body: str) -> str:
    """An executable that stands in for the checkout's Python. `body` answers one `request` per line."""
    path = folder / "python"
    path.write_text(
        f"#!{sys.executable}\n"
        + "import json, os, sys, time\n"
        + "log = open(os.path.join(os.path.dirname(sys.argv[0]), 'log'), 'a')\n"
        + "print(json.dumps(READY)) if (READY := {'ready': True, 'torch': '2.13.0'}) else None\n"
        + "sys.stdout.flush()\n"
        + "for line in sys.stdin:\n"
        + "    request = json.loads(line)\n"
        + "    log.write(json.dumps([request.get('do'), request.get('id')]) + '\\n'); log.flush()\n"
        + "    if request['do'] == 'part': continue\n"
        + "".join(f"    {row}\n" for row in dedent(body).strip().splitlines())
        + "    sys.stdout.flush()\n"
    )
    path.chmod(0o755)
    return str(path)


def checkout(folder: Path, body: str, **more: Any) -> Checkout:
    return Checkout(Install(folder, "0.33.0"), program(folder, body), **more)


def answers(*stages: Mapping[str, Any]) -> str:
    return f"print(json.dumps({{'stages': json.loads({json.dumps(json.dumps(list(stages)))}), 'seconds': 0.1}}))"


def ran(stage: str, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "state": "ran", "facts": {}, "logs": [], "seconds": 0.1, **more}


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack(
        (
            component("z_image_turbo", "dit.safetensors"),
            component("gemma2_2b", "gemma.safetensors"),
            component("flux1_vae", "ae.safetensors"),
        )
    )


def reported(stack: Stack, tmp_path: Path, stages: Sequence[Mapping[str, Any]]) -> Report:
    with checkout(tmp_path, answers(*stages)) as process:
        return dry_run(stack, load(), judge(stack, load()), str(tmp_path), process)


FAILED = {
    **ran("diffusion_forward"), "state": "failed", "type": "RuntimeError", "message": NORM, "op": "rms_norm",
    "shapes": [[1, 18, 2304], [2560]], "module": "cap_embedder.0", "file": "comfy/ops.py", "line": 694,
}  # fmt: skip


def test_the_error_is_comfyuis_own_with_its_line_and_both_files(stack: Stack, tmp_path: Path) -> None:
    loads = [ran("diffusion_load"), ran("text_encoder_load"), ran("text_encoder_forward")]
    report = reported(stack, tmp_path, [*loads, FAILED, ran("vae_load"), ran("vae_decode")])
    [found] = report.findings
    assert (report.verdict, found.rule, found.components) == ("fail", "dryrun/comfyui-run", (0, 1))
    assert found.predicts["comfyui"] == NORM
    assert found.evidence["line"] == "comfy/ops.py:694"
    assert found.evidence["module"] == "cap_embedder.0"
    assert found.evidence["confirms"].startswith("encoder/")
    assert "5 of 6 steps in ComfyUI 0.33.0 on torch 2.13.0" in report.headline


def test_a_set_that_runs_through_passes(stack: Stack, tmp_path: Path) -> None:
    report = reported(stack, tmp_path, [ran(s) for s in ("diffusion_load", "text_encoder_load", "vae_decode")])
    assert (report.verdict, report.findings) == ("pass", ())


def test_keys_that_comfyui_only_logs_are_an_error(stack: Stack, tmp_path: Path) -> None:
    lost = ran("text_encoder_load", logs=["clip missing: ['model.embed_tokens.weight']"])
    report = reported(stack, tmp_path, [lost])
    [found] = report.findings
    assert (found.rule, found.level, found.components) == ("dryrun/comfyui-keys", "error", (1,))
    assert "model.embed_tokens.weight" in found.message


def test_an_unexpected_key_is_no_finding(stack: Stack, tmp_path: Path) -> None:
    extra = ran("text_encoder_load", logs=["clip unexpected: ['lm_head.weight']"])
    assert reported(stack, tmp_path, [extra]).findings == ()


def test_a_gguf_encoder_without_its_vision_lost_nothing(stack: Stack, tmp_path: Path) -> None:
    qwen = component("qwen2.5_vl_7b", "q.gguf", "gguf", "gguf", **{"general.architecture": "qwen2vl"})
    with_it = replace(stack, components=(stack.components[0], qwen))
    lost = ran(
        "text_encoder_load", logs=["clip missing: ['visual.patch_embed.proj.weight', 'visual.merger.mlp.0.bias']"]
    )
    assert reported(with_it, tmp_path, [lost]).findings == ()
    lost["logs"] = ["clip missing: ['visual.patch_embed.proj.weight', 'model.norm.weight']"]
    assert [f.rule for f in reported(with_it, tmp_path, [lost]).findings] == ["dryrun/comfyui-keys"]


def test_a_lora_that_does_not_fit_its_weights_is_named(stack: Stack, tmp_path: Path) -> None:
    lora = replace(stack.components[0], source="style.safetensors", role="lora")
    with_it = replace(stack, components=(*stack.components, lora))
    said = ran("diffusion_forward", logs=["ERROR lora layers.0.weight shape '[2, 3]' is invalid for input of size 4"])
    [found] = reported(with_it, tmp_path, [said]).findings
    assert (found.rule, found.level, found.components) == ("dryrun/comfyui-lora", "error", (0, 1, 3))
    assert "style.safetensors only in part" in found.message
    some = ran("lora_load", facts={"patched": 3}, logs=["lora key not loaded: a", "lora key not loaded: b"])
    [found] = reported(with_it, tmp_path, [some]).findings
    assert (found.level, "style.safetensors" in found.message) == ("warning", True)
    none = {**some, "facts": {"patched": 0}}
    assert [f.rule for f in reported(with_it, tmp_path, [none]).findings] == ["dryrun/comfyui-load"]


def test_a_value_that_only_weights_have_leaves_the_verdict_open(stack: Stack, tmp_path: Path) -> None:
    asks = {**ran("diffusion_forward"), "state": "unknowable", "message": "item of a tensor", "file": "a.py", "line": 3}
    report = reported(stack, tmp_path, [ran("diffusion_load"), asks])
    assert report.verdict == "unknown"
    assert any("a.py:3" in n.why for n in report.not_checked if n.blocks)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("time.sleep(60)", "no answer within 1 seconds"),
        ("sys.exit(3)", "exit status 3"),
        ("os._exit(99)", "more than 6.4 GB of memory"),
        ("print('Traceback (most recent call last)')", "wrote over the channel"),
        ("print(json.dumps({'broken': 'KeyError: 1'}))", "own program in it failed: KeyError: 1"),
    ],
    ids=["hangs", "ends", "memory", "prints", "own-error"],
)
def test_a_process_that_does_not_answer_is_a_finding(stack: Stack, tmp_path: Path, body: str, says: str) -> None:
    with checkout(tmp_path, body, timeout=1.0 if "sleep" in body else 60.0) as process:
        report = dry_run(stack, load(), judge(stack, load()), str(tmp_path), process)
    [found] = report.findings
    assert (report.verdict, found.rule, found.level) == ("unknown", "dryrun/environment", "warning")
    assert says in found.message
    assert "ComfyUI 0.33.0 could not be run" in found.message


def test_one_process_serves_many_sets_and_is_told_of_a_file_once(stack: Stack, tmp_path: Path) -> None:
    with checkout(tmp_path, answers(ran("diffusion_load"))) as process:
        for _ in range(3):
            comfyui.run(stack, load(), tmp_path, process)
    log = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [k for k, _ in log].count("set") == 3
    assert [i for k, i in log if k == "part"] == ["dit.safetensors", "ae.safetensors", "gemma.safetensors"]


def test_a_process_that_ended_is_started_again_for_the_next_set(stack: Stack, tmp_path: Path) -> None:
    with checkout(tmp_path, "sys.exit(1)") as process:
        with pytest.raises(CheckoutError):
            comfyui.run(stack, load(), tmp_path, process)
        program(tmp_path, answers(ran("diffusion_load")))
        assert comfyui.run(stack, load(), tmp_path, process)[0].state == "ran"


def test_a_gguf_that_the_loader_refuses_is_not_handed_over(stack: Stack, tmp_path: Path) -> None:
    gemma = component("gemma2_2b", "gemma.gguf", "gguf", "gguf", **{"general.architecture": "gemma2"})
    with checkout(tmp_path, answers(ran("diffusion_load"))) as process:
        stages = comfyui.run(replace(stack, components=(stack.components[0], gemma)), load(), tmp_path, process)
    refused = next(s for s in stages if s.state == "refused")
    assert refused.components == (1,)
    assert "'gemma2'" in refused.message
    assert "gemma.gguf" not in (tmp_path / "log").read_text()


def test_a_gguf_encoder_has_comfyuis_names_and_true_shapes() -> None:
    qwen = component("qwen3_4b", "q.gguf", "gguf", "gguf", **{"general.architecture": "qwen3"})
    tensors = part([qwen], load())["tensors"]
    assert tensors["model.layers.0.self_attn.q_proj.weight"] == ["F16", [4096, 2560]]
    assert not any(name.startswith("blk.") for name in tensors)


def test_packed_weights_stand_in_with_their_true_shapes() -> None:
    shapes = example_shapes(load().grammar("z_image_turbo"), None)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        tensors[name] = Tensor("BF16", tuple(shape), 2)
        if name.endswith("attention.qkv.weight"):
            tensors[name] = Tensor("F8_E4M3", tuple(shape), 1)
            tensors[name.replace(".weight", ".weight_scale")] = Tensor("F32", (), 4)
            tensors[name.replace(".weight", ".comfy_quant")] = Tensor("U8", (30,), 30)
    packed = identify(Header("q.safetensors", "safetensors", 1, 1, tensors), load())[0]
    given = part([packed], load())["tensors"]
    assert given["layers.0.attention.qkv.weight"][1] == [11520, 3840]
    assert not any(n.endswith(("weight_scale", "comfy_quant")) for n in given)


def test_the_usual_clip_type_is_the_models_and_a_setting_wins(stack: Stack) -> None:
    request, names = comfyui._request(stack, load())
    assert request["clip_type"] == "lumina2"
    assert set(names) == {"dit.safetensors", "gemma.safetensors", "ae.safetensors"}
    request, _ = comfyui._request(replace(stack, settings={"clip_type": "flux2"}), load())
    assert request["clip_type"] == "flux2"


def test_kernels_that_are_not_installed_give_back_what_they_are_given() -> None:
    kernels = stand_ins.create("comfy_kitchen")
    assert kernels.apply_rope("query", "key", "positions") == ("query", "key")
    assert kernels.rms_rope_split_half("query", "key", "positions", 1, 1) == ("query", "key")
    assert kernels.apply_rope_split_half1("query", "positions") == "query"
    assert kernels.rms_adaln("x", "scale", "shift") == "x"
