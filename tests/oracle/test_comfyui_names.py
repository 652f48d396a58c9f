"""The names that a ComfyUI checkout maps for LoRAs, against ours: every one of every family below, and its weight.

COMPATKIT_COMFYUI_CHECKOUT names the checkout (783545f is the one that the rules describe). Its model classes are built
on the meta device in a process of their own; of the packages that it needs psutil, einops and torchsde must be there,
what else is missing is a dummy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

pytest.importorskip("torch")

from compatkit.adapters.base import of_family
from compatkit.adapters.names import held_names, held_weights, key_map
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load

CHECKOUT = os.environ.get("COMPATKIT_COMFYUI_CHECKOUT", "")
KNOWN = load()
FAMILIES = [
    "sd15",
    "sd20",
    "sd21_unclip",
    "sdxl",
    "sdxl_refiner",
    "segmind_vega",
    "playground25",
    "svd",
    "cascade_b",
    "cascade_c",
    "sd3_medium",
    "sd35_large",
    "auraflow",
    "hunyuandit",
    "pixart_sigma",
    "flux_dev",
    "flux_schnell",
    "flux_fill",
    "flux2_dev",
    "flux2_klein_4b",
    "chroma",
    "chroma_radiance",
    "longcat_image",
    "mochi",
    "hunyuan_video",
    "hunyuan_video15",
    "hidream_i1",
    "qwen_image",
    "lumina2",
    "z_image_turbo",
    "krea2",
    "anima",
    "ltxv_2b",
    "ltx2",
    "wan21_t2v_14b",
    "wan21_i2v_14b",
    "wan22_ti2v_5b",
    "ace_step",
    "omnigen2",
    "kandinsky5_video_lite",
    "ernie_image",
    "ideogram4",
    "minimax_h3",
]

PROGRAM = """
import importlib.abc, importlib.machinery, json, sys
from unittest.mock import MagicMock

MISSING = (
    "aiohttp alembic av comfy_aimdo comfy_kitchen kornia pydantic_settings scipy soundfile spandrel sqlalchemy "
    "torchaudio torchvision yarl"
).split()

class Dummies(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        lacks = name.split(".")[0] in MISSING
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if lacks else None
    def create_module(self, spec):
        made = MagicMock(name=spec.name)
        made.__path__, made.__spec__, made.__name__, made.__version__ = [], spec, spec.name, "0.0.0"
        return made
    def exec_module(self, module):
        pass

import torch
sys.meta_path.append(Dummies())  # asked last: what is there is taken as it is
sys.path.insert(0, sys.argv.pop(1))
import comfy.options, comfy.cli_args
comfy.cli_args.args.cpu = True
import comfy.lora, comfy.model_detection

found = {}
for family, shapes in json.load(sys.stdin).items():
    tensors = {n: torch.zeros((), dtype=torch.bfloat16).expand(s) for n, s in shapes.items()}
    config = comfy.model_detection.model_config_from_unet(dict(tensors), "")
    config.set_inference_dtype(torch.bfloat16, None)
    try:
        with torch.device("meta"):
            model = config.get_model(dict(tensors), "", device="meta")
    except RuntimeError:  # some look at a number while they are made
        model = config.get_model(dict(tensors), "", device="meta")
    names = comfy.lora.model_lora_keys_unet(model, {})
    found[family] = {
        "names": {k: [v, None] if isinstance(v, str) else [v[0], v[1] and list(v[1][1:])] for k, v in names.items()},
        "weights": {n: list(w.shape) for n, w in model.state_dict().items() if n.startswith("diffusion_model.")},
    }
json.dump(found, sys.stdout)
"""

pytestmark = pytest.mark.skipif(not CHECKOUT, reason="COMPATKIT_COMFYUI_CHECKOUT names no checkout of ComfyUI")


@cache
def seen() -> dict[str, Any]:
    """What the checkout maps, by family."""
    shapes = {f: example_shapes(KNOWN.grammar(f)) for f in FAMILIES}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, CHECKOUT], input=json.dumps(shapes), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_stands_for_the_weight_it_stands_for_there(family: str) -> None:
    base, table = of_family(family, KNOWN), KNOWN.adapters("comfyui")
    assert base is not None
    held = held_names(base, table)
    weights = held_weights(base, table, KNOWN, held)
    theirs = seen()[family]
    ours = {
        module: [f"diffusion_model.{target.weight}", list(target.rows) if target.rows else None]
        for module, target in key_map(base, table, KNOWN, lambda _: True, held, None, list(weights)).items()
    }
    real = theirs["weights"]
    assert set(ours) - _buffers(base.shapes) == set(theirs["names"])
    different = {
        m for m, target in theirs["names"].items() if ours[m] != target and {ours[m][0], target[0]} & set(real)
    }
    assert different == set()
    known = {f"diffusion_model.{n}": list(s) for n, s in weights.items() if None not in s}
    assert {n: s for n, s in known.items() if n in real and real[n] != s} == {}


def _buffers(shapes: Any) -> set[str]:
    """Numbers that a file holds beside the model's own tensors."""
    return {f"diffusion_model.{n}" for n in shapes if n.startswith("edm_")}
