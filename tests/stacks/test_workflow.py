"""Workflows read, unfolded and wired."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from compatkit.knowledge.store import load
from compatkit.stacks import kinds
from compatkit.stacks.workflow import graph
from compatkit.stacks.workflow.node import Node, Wire
from compatkit.stacks.workflow.places import Finder, extra_paths
from compatkit.stacks.workflow.wiring import Run, runs
from compatkit.vocabulary import SourceError
from tests.support import graphs

RULES = load().nodes()


def parsed(data: Any) -> dict[str, Node]:
    return graph.parse(data, RULES)


def wired(data: Any) -> list[Run]:
    return runs(graph.Graph(parsed(data)), RULES)


def names(brought: Any) -> list[str]:
    return [b.load.name for b in brought]


def test_one_sampler_of_the_api_format() -> None:
    [run] = wired(graphs.api())
    assert names(run.model) == ["dit.gguf"]
    assert [names(g) for g in run.encoders.values()] == [["encoder.gguf"]]
    assert names(run.vaes) == ["vae.safetensors"]
    assert run.clip_types == {"2": "lumina2"}
    assert run.settings["steps"] == "9"
    assert run.settings["cfg"] == "1"
    assert run.latents == ["5"]
    assert run.decoded
    assert not run.follows


def test_a_prompt_in_an_envelope_and_values_from_other_nodes() -> None:
    data = graphs.api(steps=["20", 0])
    data["20"] = {"class_type": "PrimitiveInt", "inputs": {"value": 12}}
    [run] = wired({"prompt": data, "client_id": "x"})
    assert run.settings["steps"] == "12"


def chain(loras: list[dict[str, Any]], first: int) -> dict[str, Any]:
    """The editor's graph of a model through LoRA loaders (links 10, 11, …) into a sampler."""
    nodes = [
        graphs.node(1, "UNETLoader", ("dit.safetensors", "default"), outputs=("MODEL",)),
        *loras,
        graphs.node(
            9,
            "KSampler",
            (7, "randomize", 20, 3.5, "euler", "simple", 1.0),
            wires={"model": ("MODEL", 10 + len(loras))},
            outputs=("LATENT",),
        ),
    ]
    ends = [1, *(n["id"] for n in loras), 9]
    links = [[10 + i, a, 0, b, 0, "MODEL"] for i, (a, b) in enumerate(itertools.pairwise(ends))]
    return graphs.editor(nodes, links)


def lora(number: int, name: str, strength: float, link: int, mode: int = 0) -> dict[str, Any]:
    return graphs.node(
        number, "LoraLoaderModelOnly", (name, strength), wires={"model": ("MODEL", link)}, outputs=("MODEL",), mode=mode
    )


def test_loras_come_in_the_order_they_are_put_on_with_their_strengths() -> None:
    [run] = wired(chain([lora(2, "a.safetensors", 0.5, 10), lora(3, "b.safetensors", -1, 11)], 2))
    assert [(b.load.name, b.load.strength) for b in run.loras] == [("a.safetensors", 0.5), ("b.safetensors", -1.0)]
    assert names(run.model) == ["dit.safetensors"]


def test_the_value_after_a_seed_is_not_the_steps() -> None:
    [run] = wired(chain([], 9))
    assert run.settings == {"steps": "20", "cfg": "3.5", "sampler": "euler", "scheduler": "simple"}


def test_a_bypassed_node_hands_on_and_a_muted_one_ends_the_wire() -> None:
    [run] = wired(chain([lora(2, "a.safetensors", 1, 10, mode=4)], 2))
    assert names(run.model) == ["dit.safetensors"]
    assert run.loras == []
    muted = parsed(chain([lora(2, "a.safetensors", 1, 10, mode=2)], 2))
    assert "2" not in muted
    assert muted["9"].open_ == ("model",)


def test_reroutes_and_named_wires_are_followed() -> None:
    data = graphs.editor(
        [
            graphs.node(1, "UNETLoader", ("dit.safetensors", "default"), outputs=("MODEL",)),
            graphs.node(2, "Reroute", (), wires={"": ("*", 1)}, outputs=("*",)),
            graphs.node(3, "SetNode", ("m",), wires={"MODEL": ("MODEL", 2)}, outputs=("*",)),
            graphs.node(4, "GetNode", ("m",), outputs=("MODEL",)),
            graphs.node(5, "KSampler", (1, "fixed", 4, 1, "euler", "simple", 1), wires={"model": ("MODEL", 3)}),
        ],
        [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "MODEL"], [3, 4, 0, 5, 0, "MODEL"]],
    )
    assert parsed(data)["5"].inputs["model"] == Wire("1", 0)


def subgraph(values: list[Any], **properties: Any) -> dict[str, Any]:
    """A loader inside a subgraph whose name is a promoted value, its model going out to a sampler."""
    inner = {
        "id": "aaaa-bbbb",
        "inputs": [{"name": "unet_name", "type": "COMBO", "linkIds": [1]}],
        "outputs": [{"name": "MODEL", "type": "MODEL", "linkIds": [2]}],
        "nodes": [
            {
                **graphs.node(1, "UNETLoader", ("inside.safetensors", "default"), outputs=("MODEL",)),
                "inputs": [{"name": "unet_name", "type": "COMBO", "widget": {"name": "unet_name"}, "link": 1}],
            }
        ],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 0, "type": "COMBO"},
            {"id": 2, "origin_id": 1, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "MODEL"},
        ],
    }
    use = graphs.node(5, "aaaa-bbbb", outputs=("MODEL",), properties=properties)
    use["widgets_values"] = values
    sampler = graphs.node(6, "KSampler", (1, "fixed", 4, 1, "euler", "simple", 1), wires={"model": ("MODEL", 7)})
    return graphs.editor([use, sampler], [[7, 5, 0, 6, 0, "MODEL"]], definitions={"subgraphs": [inner]})


def test_a_subgraph_is_unfolded_and_its_promoted_values_count() -> None:
    [run] = wired(subgraph(["outside.safetensors"], proxyWidgets=[["-1", "unet_name"]]))
    assert names(run.model) == ["outside.safetensors"]
    assert run.model[0].load.node == "5:1"
    [run] = wired(subgraph([]))
    assert names(run.model) == ["inside.safetensors"]


def test_promoted_values_stand_in_the_order_of_the_definition() -> None:
    """The node that stands for a subgraph may list fewer inputs than it has values: one for each input typed in."""
    data = subgraph(["a prompt", "outside.safetensors"])
    inner = data["definitions"]["subgraphs"][0]
    inner["inputs"] = [{"name": "image", "type": "IMAGE"}, {"name": "text", "type": "STRING"}, *inner["inputs"]]
    inner["links"][0]["origin_slot"] = 2
    inner["links"] += [
        {"id": 3, "origin_id": -10, "origin_slot": 1, "target_id": 2, "target_slot": 1, "type": "STRING"},
        {"id": 4, "origin_id": -10, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "IMAGE"},
    ]
    prompt = {"name": "text", "type": "STRING", "widget": {"name": "text"}, "link": 3}
    picture = {"name": "image", "type": "IMAGE", "link": 4}
    inner["nodes"].append({**graphs.node(2, "Prompt", ("inside",)), "inputs": [picture, prompt]})
    data["nodes"][0]["inputs"] = [{"name": "unet_name", "type": "COMBO", "widget": {"name": "unet_name"}, "link": None}]
    [run] = wired(data)
    assert names(run.model) == ["outside.safetensors"]


def test_subgraphs_without_end_are_refused() -> None:
    data = subgraph([])
    data["definitions"]["subgraphs"][0]["nodes"].append(graphs.node(2, "aaaa-bbbb"))
    with pytest.raises(SourceError, match="deep in one another"):
        parsed(data)
    doubling = [
        {"id": f"s{i}", "nodes": [graphs.node(n, f"s{i + 1}") for n in range(4)], "links": []} for i in range(20)
    ]
    with pytest.raises(SourceError, match="nodes, subgraphs unfolded"):
        parsed(graphs.editor([graphs.node(1, "s0")], [], definitions={"subgraphs": doubling}))


def test_wires_in_a_circle_end() -> None:
    data = graphs.editor(
        [
            graphs.node(1, "Reroute", (), wires={"": ("*", 2)}, outputs=("*",)),
            graphs.node(2, "Reroute", (), wires={"": ("*", 1)}, outputs=("*",)),
            graphs.node(3, "KSampler", (1, "fixed", 4, 1, "euler", "simple", 1), wires={"model": ("MODEL", 3)}),
        ],
        [[1, 1, 0, 2, 0, "*"], [2, 2, 0, 1, 0, "*"], [3, 1, 0, 3, 0, "MODEL"]],
    )
    with pytest.raises(SourceError, match="circle"):
        parsed(data)
    api = graphs.api()
    api["1"] = {"class_type": "Strange", "inputs": {"model": ["6", 0]}}
    assert len(wired(api)) == 1


def test_a_switch_takes_the_branch_that_is_set() -> None:
    data = graphs.api()
    data["1b"] = {"class_type": "UNETLoader", "inputs": {"unet_name": "other.safetensors"}}
    data["10"] = {
        "class_type": "ComfySwitchNode",
        "inputs": {"switch": True, "on_true": ["1b", 0], "on_false": ["1", 0]},
    }
    data["6"]["inputs"]["model"] = ["10", 0]
    assert names(wired(data)[0].model) == ["other.safetensors"]


def test_a_node_nobody_described_hands_on_what_it_is_given_and_loads_what_it_names() -> None:
    data = graphs.api()
    data["10"] = {"class_type": "PatchOfMine", "inputs": {"model": ["1", 0], "strength": 0.4}}
    data["6"]["inputs"]["model"] = ["10", 0]
    [run] = wired(data)
    assert names(run.model) == ["dit.gguf"]
    data["1"] = {"class_type": "LoaderOfMine", "inputs": {"file": "mine.safetensors"}}
    [run] = wired(data)
    assert names(run.model) == ["mine.safetensors"]
    assert not run.model[0].load.known
    data["1"]["inputs"] = {"preset": "fast"}
    assert wired(data)[0].unclear == ["1"]


def test_two_samplers_in_a_row() -> None:
    data = graphs.api()
    data["16"] = {"class_type": "KSampler", "inputs": {**data["6"]["inputs"], "latent_image": ["6", 0]}}
    data["7"]["inputs"]["samples"] = ["16", 0]
    first, second = wired(data)
    assert first.follows
    assert not first.decoded
    assert second.decoded
    assert first.vaes == []


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_a_picture_carries_its_graph(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(graphs.png("prompt", graphs.api(), kind))
    assert kinds.is_workflow(str(path))
    assert len(graph.load(str(path), RULES).nodes) == 8
    path.write_bytes(graphs.png("parameters", {}, kind))
    with pytest.raises(SourceError, match="carries no workflow"):
        graph.load(str(path), RULES)


@pytest.mark.parametrize("text", ["{}", '{"a": 1}', "[1]", "{", '{"nodes": 5}', '{"1": {"inputs": {}}}', "null"])
def test_what_is_no_workflow_is_refused_with_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"no workflow|not JSON"):
        graph.load(str(path), RULES)


@pytest.mark.parametrize(
    "broken",
    [
        {"nodes": [{"id": 1}, 5, None, {"type": "KSampler"}], "links": [None, 1, [1], [1, 2, "x", 3, 4], {"id": 1}]},
        {"nodes": [{"id": [1], "type": {}, "inputs": 5, "outputs": "x", "widgets_values": 7, "mode": "z"}], "links": 3},
        {"nodes": [{"id": 1, "type": "KSampler", "inputs": [{"name": None, "link": "q"}]}], "definitions": 1},
        {"1": {"class_type": "KSampler", "inputs": {"model": [1, 0], "steps": {}, "positive": ["1", 0]}}},
        {"1": {"class_type": "KSampler", "inputs": 5}, "2": 7, "3": {"class_type": 4}},
    ],
)
def test_broken_graphs_break_nothing(broken: Any) -> None:
    wired(broken)


def test_names_are_looked_up_where_their_use_says(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for place in ("vae/ae.safetensors", "loras/style/a.safetensors", "vae_approx/tiny.pt", "elsewhere/x.gguf"):
        (models / place).parent.mkdir(parents=True, exist_ok=True)
        (models / place).write_bytes(b"")
    (tmp_path / "secret.safetensors").write_bytes(b"")
    finder = Finder(["given/b.safetensors"], [str(models)], str(tmp_path / "flows"), RULES["folders"])
    assert finder.find("ae.safetensors", "vae") == str(models / "vae/ae.safetensors")
    assert finder.find("style\\a.safetensors", "lora") == str(models / "loras/style/a.safetensors")
    assert finder.find("tiny.pt", "vae") == str(models / "vae_approx/tiny.pt")
    assert finder.find("x.gguf", "diffusion") == str(models / "elsewhere/x.gguf")
    assert finder.find("sub/b.safetensors", "vae") == "given/b.safetensors"
    for bad in (
        "../secret.safetensors",
        "vae/../../secret.safetensors",
        str(tmp_path / "secret.safetensors"),
        "..",
        "",
    ):
        assert finder.find(bad, "vae") is None, bad


def test_an_install_names_further_folders(tmp_path: Path) -> None:
    assert extra_paths(str(tmp_path)) == {}
    (tmp_path / "extra_model_paths.yaml").write_text(
        "mine:\n  base_path: /data\n  is_default: true\n  vae: models/VAE\n  loras: |\n    a\n    b\n"
    )
    assert extra_paths(str(tmp_path)) == {"vae": ["/data/models/VAE"], "loras": ["/data/a", "/data/b"]}
    (tmp_path / "extra_model_paths.yaml").write_text("a: [")
    with pytest.raises(SourceError, match="cannot be read"):
        extra_paths(str(tmp_path))


def test_a_file_is_found_on_its_line(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    path.write_text(json.dumps(graphs.api(vae="vä.safetensors"), indent=1))
    read = graph.load(str(path), RULES)
    line = path.read_text().splitlines()[read.line("vä.safetensors") - 1]
    assert "safetensors" in line
    assert read.line("nowhere") == 1


def test_a_lora_reaches_the_text_encoder_only_where_its_clip_goes_on() -> None:
    data = graphs.api()
    both = {
        "model": ["1", 0],
        "clip": ["2", 0],
        "lora_name": "l.safetensors",
        "strength_model": 1,
        "strength_clip": 0.5,
    }
    data["10"] = {"class_type": "LoraLoader", "inputs": both}
    data["6"]["inputs"]["model"] = ["10", 0]
    assert {b.kind for b in wired(data)[0].loras} == {"MODEL"}
    data["4"]["inputs"]["clip"] = ["10", 1]
    [run] = wired(data)
    assert {b.kind for b in run.loras} == {"MODEL", "CLIP"}
    assert run.loras[0].load.strength_clip == 0.5
