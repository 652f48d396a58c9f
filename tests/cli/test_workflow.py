"""`check`, `inspect` and `init` on workflows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from tests.cli.conftest import Run
from tests.support import graphs
from tests.support.files import write_safetensors

Model = Callable[..., Path]


def write(folder: Path, graph: dict[str, Any], name: str = "workflow.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(graph, indent=1))
    return path


def report(run: Run, *arguments: str) -> dict[str, Any]:
    out = run("check", *arguments, "--format", "json")
    assert out.stdout, out.stderr
    found: dict[str, Any] = json.loads(out.stdout)
    return found


def rules(found: dict[str, Any], *levels: str) -> list[str]:
    return [f["rule"] for f in found["findings"] if not levels or f["level"] in levels]


def test_the_files_beside_a_workflow_are_found_and_pass(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    write(tmp_path, graphs.api())
    found = report(run, "workflow.json")
    assert found["verdict"] == "pass"
    assert rules(found, "error", "warning") == []
    assert {"encoder/width", "vae/latent-space", "workflow/latent", "workflow/steps"} <= set(found["checked"])
    (tmp_path / "out.png").write_bytes(graphs.png("prompt", graphs.api()))
    assert report(run, "out.png")["verdict"] == "pass"


def test_a_wrong_encoder_in_a_workflow_fails_with_the_line_that_names_it(
    run: Run, wrong_set: list[Path], tmp_path: Path
) -> None:
    write(tmp_path, graphs.api(clip="encoder.safetensors"))
    found = report(run, "workflow.json")
    assert rules(found, "error") == ["encoder/width"]
    lines = (tmp_path / "workflow.json").read_text().splitlines()
    annotated = run("check", "workflow.json", "--format", "github").stdout
    assert "file=workflow.json" in annotated
    named = [i for i, line in enumerate(lines, 1) if "dit.gguf" in line or "encoder.safetensors" in line]
    assert any(f"line={i}" in annotated for i in named)


def test_files_lie_in_a_models_folder(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    flows = tmp_path / "flows"
    flows.mkdir()
    write(flows, graphs.api())
    refused = run("check", "flows/workflow.json")
    assert refused.returncode == 2
    assert "none of its files is here" in refused.stderr
    install = tmp_path / "ComfyUI"
    for file, folder in zip(right_set, ("unet", "text_encoders", "vae"), strict=True):
        (install / "models" / folder).mkdir(parents=True)
        file.rename(install / "models" / folder / file.name)
    (install / "comfyui_version.py").write_text('__version__ = "0.3.60"\n')
    assert report(run, "flows/workflow.json", "--models", "ComfyUI/models")["verdict"] == "pass"
    old = report(run, "flows/workflow.json", "--comfyui", "ComfyUI")
    assert "loader/too-old" in rules(old, "error")
    (install / "models/vae/vae.safetensors").unlink()
    gone = report(run, "flows/workflow.json", "--models", "ComfyUI/models")
    assert rules(gone, "error") == ["workflow/file-missing"]
    assert "vae.safetensors" in gone["findings"][0]["message"]


def test_a_file_that_is_not_here_leaves_the_verdict_open(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    right_set[1].unlink()
    write(tmp_path, graphs.api())
    found = report(run, "workflow.json")
    assert found["verdict"] == "unknown"
    assert rules(found, "warning") == ["workflow/file-missing"]
    assert "encoder/missing" not in rules(found)


@pytest.mark.parametrize(
    ("change", "rule", "level"),
    [
        ({"clip": "dit.gguf"}, "workflow/loader-role", "error"),
        ({"latent": "EmptyHunyuanLatentVideo"}, "workflow/latent", "error"),
        ({"latent": "EmptyLatentImage"}, "workflow/latent-repaired", "info"),
        ({"clip_type": "flux2"}, "encoder/clip-type", "error"),
        ({"cfg": 0.0}, "workflow/cfg-zero", "warning"),
    ],
)
def test_what_a_workflow_gets_wrong(
    run: Run, right_set: list[Path], tmp_path: Path, change: dict[str, Any], rule: str, level: str
) -> None:
    write(tmp_path, graphs.api(**change))
    found = report(run, "workflow.json")
    assert rule in rules(found, level)
    assert found["verdict"] == ("fail" if level == "error" else "pass")
    if rule == "workflow/loader-role":
        assert "encoder/missing" not in rules(found)


def test_a_gguf_in_a_loader_of_the_core(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    graph = graphs.api()
    graph["2"]["class_type"] = "CLIPLoader"
    write(tmp_path, graph)
    found = report(run, "workflow.json")
    assert rules(found, "error") == ["workflow/loader-format"]
    assert "GGUF" in found["findings"][0]["message"]


def test_a_diffusion_model_in_the_checkpoint_loader(run: Run, model: Model, tmp_path: Path) -> None:
    model("dit.safetensors", "z_image_turbo")
    graph = graphs.api(unet="dit.safetensors")
    graph["1"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dit.safetensors"}}
    graph["4"]["inputs"]["clip"] = ["1", 1]
    graph["7"]["inputs"]["vae"] = ["1", 2]
    write(tmp_path, graph)
    found = report(run, "workflow.json")
    assert rules(found, "error") == ["workflow/empty-output"]
    message = found["findings"][0]["message"]
    assert "CLIP" in message
    assert "VAE" in message


def test_the_vae_of_a_checkpoint_whose_model_is_not_used(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    """The checkpoint's loader strips the prefix of a part, whatever else of the file the workflow uses."""
    dit = {f"model.diffusion_model.{n}": ("BF16", s) for n, s in example_shapes(load().grammar("flux_dev")).items()}
    vae = {f"first_stage_model.{n}": ("BF16", s) for n, s in example_shapes(load().grammar("flux1_vae")).items()}
    write_safetensors(tmp_path / "whole.safetensors", {**dit, **vae})
    graph = graphs.api(vae="whole.safetensors")
    graph["3"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "whole.safetensors"}}
    graph["7"]["inputs"]["vae"] = ["3", 2]
    write(tmp_path, graph)
    found = report(run, "workflow.json")
    assert rules(found, "error", "warning") == []
    assert found["verdict"] == "pass"


def test_nodes_that_nobody_described_leave_loading_and_wiring_open(run: Run, model: Model, tmp_path: Path) -> None:
    """Their values have no names in old files; what they open, and what goes with what, is not known."""
    model("dit.safetensors", "wan21_t2v_14b")
    model("encoder.safetensors", "umt5_xxl", layout="wan")
    model("vae.safetensors", "wan21_vae")
    nodes = [
        graphs.node(1, "StrangeModelLoader", ("folder\\dit.safetensors", "fp16")),
        graphs.node(2, "StrangeEncoderLoader", ("encoder.safetensors", "bf16")),
        graphs.node(3, "StrangeVaeLoader", ("vae.safetensors",)),
    ]
    write(tmp_path, graphs.editor(nodes, []))
    found = report(run, "workflow.json")
    assert [c["family"] for c in found["components"]] == ["wan21_t2v_14b", "umt5_xxl", "wan21_vae"]
    assert rules(found, "error", "warning") == []
    assert found["verdict"] == "unknown"
    assert "loader/layout" in [n["rule"] for n in found["not_checked"]]
    model("other.safetensors", "z_image_turbo")
    nodes.append(graphs.node(4, "StrangeModelLoader", ("other.safetensors", "fp16")))
    write(tmp_path, graphs.editor(nodes, []))
    both = report(run, "workflow.json")
    assert rules(both, "error") == []
    assert both["verdict"] == "unknown"


def test_loaders_of_a_package_that_read_files_by_themselves(run: Run, model: Model, tmp_path: Path) -> None:
    """ComfyUI-WanVideoWrapper reads the makers' names, which ComfyUI does not; widths count all the same."""
    model("dit.safetensors", "wan21_t2v_14b")
    model("encoder.safetensors", "umt5_xxl", layout="wan")
    model("vae.safetensors", "wan21_vae")
    nodes = [
        graphs.node(1, "WanVideoModelLoader", ("dit.safetensors", "bf16"), outputs=("WANVIDEOMODEL",)),
        graphs.node(2, "LoadWanVideoT5TextEncoder", ("encoder.safetensors", "bf16"), outputs=("WANTEXTENCODER",)),
        graphs.node(3, "WanVideoVAELoader", ("vae.safetensors", "bf16"), outputs=("WANVAE",)),
        graphs.node(
            4, "WanVideoTextEncode", ("a", "b", True), wires={"t5": ("WANTEXTENCODER", 1)}, outputs=("EMBEDS",)
        ),
        graphs.node(
            5,
            "WanVideoSampler",
            (30, 6.0, 5.0, 1, "fixed", True, "unipc"),
            wires={"model": ("WANVIDEOMODEL", 2), "text_embeds": ("EMBEDS", 3)},
            outputs=("LATENT",),
        ),
        graphs.node(6, "WanVideoDecode", (), wires={"vae": ("WANVAE", 4), "samples": ("LATENT", 5)}),
    ]
    links = [[1, 2, 0, 4, 0, ""], [2, 1, 0, 5, 0, ""], [3, 4, 0, 5, 1, ""], [4, 3, 0, 6, 0, ""], [5, 5, 0, 6, 1, ""]]
    write(tmp_path, graphs.editor(nodes, links))
    found = report(run, "workflow.json")
    assert found["verdict"] == "pass"
    assert {"encoder/width", "vae/latent-space"} <= set(found["checked"])
    model("encoder.safetensors", "umt5_base")
    assert "encoder/width" in rules(report(run, "workflow.json"), "error")


def test_a_workflow_that_samples_nothing_is_judged_by_its_files(run: Run, model: Model, tmp_path: Path) -> None:
    """Unless a node that nobody described may be the sampler: it is given the model."""
    model("film.safetensors", "film")
    loader = graphs.node(1, "FrameInterpolationModelLoader", ("film.safetensors",), outputs=("INTERP_MODEL",))
    use = graphs.node(2, "FrameInterpolate", (2,), wires={"interp_model": ("INTERP_MODEL", 1)})
    write(tmp_path, graphs.editor([loader, use], [[1, 1, 0, 2, 0, "INTERP_MODEL"]]))
    found = report(run, "workflow.json")
    assert found["verdict"] == "pass"
    assert [c["family"] for c in found["components"]] == ["film"]
    model("dit.safetensors", "z_image_turbo")
    dit = graphs.node(3, "UNETLoader", ("dit.safetensors", "default"), outputs=("MODEL",))
    strange = graphs.node(4, "StrangeSampler", (), wires={"model": ("MODEL", 2)})
    write(tmp_path, graphs.editor([dit, strange], [[2, 3, 0, 4, 0, "MODEL"]]))
    assert report(run, "workflow.json")["verdict"] == "unknown"


def test_two_sets_in_one_workflow_are_judged_apart(
    run: Run, model: Model, right_set: list[Path], tmp_path: Path
) -> None:
    for name, family in (("u.safetensors", "sd15"), ("c.safetensors", "clip_l"), ("v.safetensors", "sd15_vae")):
        model(name, family)
    graph = graphs.api()
    other = graphs.api("u.safetensors", "c.safetensors", "v.safetensors", clip_type="stable_diffusion", cfg=7.0)
    for number, node in other.items():
        inputs = {
            k: [f"1{v[0]}", v[1]] if isinstance(v, list) and len(v) == 2 else v for k, v in node["inputs"].items()
        }
        graph[f"1{number}"] = {**node, "inputs": inputs}
    write(tmp_path, graph)
    assert report(run, "workflow.json")["verdict"] == "pass"
    graph["14"]["inputs"]["clip"] = ["2", 0]
    write(tmp_path, graph)
    found = report(run, "workflow.json")
    assert found["verdict"] == "fail"
    [error] = [f for f in found["findings"] if f["rule"] == "encoder/width"]
    assert "node 16" in error["message"]


def test_a_sampler_nobody_described_leaves_it_open(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    graph = graphs.api()
    graph["6"]["class_type"] = "SamplerOfMine"
    write(tmp_path, graph)
    found = report(run, "workflow.json")
    assert found["verdict"] == "unknown"
    assert any(n["rule"] == "workflow/wiring" for n in found["not_checked"])


def test_inspect_and_init_take_a_workflow(run: Run, model: Model, right_set: list[Path], tmp_path: Path) -> None:
    write(tmp_path, graphs.api())
    seen = json.loads(run("inspect", "workflow.json", "--format", "json").stdout)
    assert {c["role"] for c in seen["components"]} == {"diffusion", "text_encoder", "vae"}
    made = run("init", "workflow.json")
    assert made.returncode == 0, made.stderr
    text = (tmp_path / "stack.toml").read_text()
    assert 'diffusion = "dit.gguf"' in text
    assert 'clip_type = "lumina2"' in text
    assert "steps = 9" in text
    assert report(run, "stack.toml")["verdict"] == "pass"


def test_one_workflow_at_a_time_and_models_only_with_one(run: Run, right_set: list[Path], tmp_path: Path) -> None:
    write(tmp_path, graphs.api())
    write(tmp_path, graphs.api(), "other.json")
    two = run("check", "workflow.json", "other.json")
    assert (two.returncode, "one workflow or stack at a time" in two.stderr) == (2, True)
    alone = run("check", "dit.gguf", "--models", ".")
    assert (alone.returncode, "no workflow" in alone.stderr) == (2, True)


def test_an_image_encoder_that_is_not_here_is_no_wrong_one(run: Run, model: Model, tmp_path: Path) -> None:
    for name, family in (("u.safetensors", "flux_dev"), ("c.safetensors", "clip_l"), ("t.safetensors", "t5xxl")):
        model(name, family)
    model("v.safetensors", "flux1_vae")
    model("s.safetensors", "flux_redux")
    graph = graphs.api("u.safetensors", "c.safetensors", "v.safetensors")
    names = {"clip_name1": "c.safetensors", "clip_name2": "t.safetensors", "type": "flux"}
    graph["2"] = {"class_type": "DualCLIPLoader", "inputs": names}
    graph["20"] = {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": "eye.safetensors"}}
    graph["21"] = {"class_type": "CLIPVisionEncode", "inputs": {"clip_vision": ["20", 0], "crop": "center"}}
    graph["22"] = {"class_type": "StyleModelLoader", "inputs": {"style_model_name": "s.safetensors"}}
    wires = {"conditioning": ["4", 0], "style_model": ["22", 0], "clip_vision_output": ["21", 0]}
    graph["23"] = {"class_type": "StyleModelApply", "inputs": wires}
    graph["6"]["inputs"]["positive"] = ["23", 0]
    write(tmp_path, graph)
    found = report(run, "workflow.json")
    assert found["verdict"] == "unknown"
    assert rules(found, "error") == []
    model("eye.safetensors", "clip_vision_l")
    assert rules(report(run, "workflow.json"), "error") == ["adapter/image-encoder"]
