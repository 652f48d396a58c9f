"""The program that runs in a ComfyUI checkout, over a checkout of one's own: a few lines that have the entry points."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

pytest.importorskip("torch")

from compatkit.dryrun.comfyui_process import Checkout, CheckoutError
from compatkit.hosts.comfyui import read_install

SD = """
import enum, logging
import torch
import heavy_package_that_is_missing.inner
from transformers import Qwen2Tokenizer, CLIPTokenizer
import comfy.utils


class CLIPType(enum.Enum):
    STABLE_DIFFUSION = 1
    OTHER = 2


class Latent:
    latent_channels, latent_dimensions = 4, 2


class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table = torch.arange(8)  # real: its values are looked at below
        self.proj = torch.nn.Linear(width, 1 << 16)
        self.norm = torch.nn.RMSNorm(width)

    def forward(self, x, context):
        if int(self.table[3]) != 3 or context.device != x.device:
            raise AssertionError("known values were lost")
        context = self.norm(context)
        mask = torch.ones(x.shape[0], 1, 1, 1, device=context.device)
        return (self.proj(context).mean() + x) * mask


class Patcher:
    def __init__(self, model):
        self.model, self.load_device, self.patches = model, torch.device("cpu"), {}

    def get_model_object(self, name):
        return Latent()


def load_diffusion_model(path, model_options={}):
    sd = comfy.utils.load_torch_file(path)
    net = Net(sd["proj.weight"].shape[1])
    found = net.load_state_dict(sd, strict=False)
    if found.missing_keys:
        logging.warning("unet missing: {}".format(found.missing_keys))
    return Patcher(net)


class Clip:
    def __init__(self, width, vocabulary):
        if vocabulary is None:
            raise ValueError("invalid tokenizer")
        self.cond_stage_model, self.tokenizer = torch.nn.Embedding(64, width), Qwen2Tokenizer.from_pretrained("x")
        self.patcher = Patcher(self.cond_stage_model)

    def tokenize(self, text):
        return self.tokenizer(text)["input_ids"]

    def encode_from_tokens_scheduled(self, tokens):
        cond = self.cond_stage_model(torch.tensor([tokens]))
        return [[cond, {"pooled_output": None}]]


def load_clip(ckpt_paths, embedding_directory=None, clip_type=CLIPType.STABLE_DIFFUSION, model_options={}):
    if model_options:
        raise AssertionError("the options of another set")
    model_options["seen"] = True
    sd = comfy.utils.load_torch_file(ckpt_paths[0])
    return Clip(sd["embed.weight"].shape[1] * clip_type.value, sd.get("spiece_model"))


class VAE:
    latent_channels = 4

    def __init__(self, sd=None, metadata=None):
        self.first_stage_model = torch.nn.Conv2d(sd["conv.weight"].shape[1], 3, 1)

    def throw_exception_if_invalid(self):
        pass

    def decode(self, samples):
        out = torch.empty(1, 3, 16, 16)
        out[:] = self.first_stage_model(samples)
        return out.add_(1.0).movedim(1, -1)
"""
SAMPLE = """
import torch
import comfy.samplers


def fix_empty_latent_channels(model, latent):
    return latent if torch.count_nonzero(latent) == 0 else None


def prepare_noise(latent, seed):
    return torch.zeros(latent.shape)


def sample(model, noise, steps, cfg, sampler_name, scheduler, positive, negative, latent, disable_pbar=False):
    return model.model(noise, positive[0][0]).to("cpu")
"""
FILES = {
    "comfyui_version.py": '__version__ = "9.9.9"\n',
    "comfy/__init__.py": "",
    "comfy/options.py": "def enable_args_parsing():\n    pass\n",
    "comfy/utils.py": "def load_torch_file(path, **_):\n    raise AssertionError('a file was opened')\n",
    "comfy/samplers.py": "class KSampler:\n    SCHEDULERS = ['simple', 'normal']\n",
    "comfy/sample.py": SAMPLE,
    "comfy/sd.py": SD,
    "custom_nodes/bad/__init__.py": "raise SystemExit('a custom node was imported')\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "ComfyUI" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return tmp_path / "ComfyUI"


def model(width: int, **more: Any) -> dict[str, Any]:
    rows = {
        "proj.weight": ["BF16", [1 << 16, width]],
        "proj.bias": ["BF16", [1 << 16]],
        "norm.weight": ["BF16", [width]],
    }
    return {"tensors": {**rows, **more}, "metadata": {}}


def encoder(width: int, vocabulary: bool = True) -> dict[str, Any]:
    rows: dict[str, Any] = {"embed.weight": ["F16", [64, width]]}
    return {"tensors": {**rows, **({"spiece_model": ["U8", [5000]]} if vocabulary else {})}}


def vae(channels: int) -> dict[str, Any]:
    return {"tensors": {"conv.weight": ["F32", [3, channels, 1, 1]], "conv.bias": ["F32", [3]]}}


PARTS = {
    "m": model(32), "wide": model(48), "e": encoder(32), "plain": encoder(32, False), "v": vae(4), "v16": vae(16),
    "half": {"tensors": {"proj.weight": ["BF16", [1 << 16, 32]]}},
    "bad": {"tensors": {"proj.weight": ["BF16", [7, 32]]}},
}  # fmt: skip


@pytest.fixture
def process(folder: Path) -> Any:
    with Checkout(read_install(folder), sys.executable, timeout=120) as made:
        for name, part in PARTS.items():
            made.part(name, part)
        yield made


def run(
    process: Checkout, diffusion: str = "m", encoders: str = "e", decoder: str = "v", **more: Any
) -> dict[str, Any]:
    request = {"diffusion": diffusion, "encoders": [encoders], "vae": decoder, "clip_type": "stable_diffusion", **more}
    stages = process.run(request, list(PARTS))
    return {s["stage"]: s for s in stages}


def test_a_set_runs_through_on_shapes_and_nothing_is_left_in_the_folder(process: Checkout, folder: Path) -> None:
    stages = run(process)
    assert {s["state"] for s in stages.values()} == {"ran"}, stages
    assert stages["text_encoder_forward"]["facts"]["context"][2] == 32
    assert stages["vae_decode"]["facts"]["pixels"] == [1, 16, 16, 3]
    assert process.environment["torch"]
    written = {str(p.relative_to(folder)).replace("\\", "/") for p in folder.rglob("*") if p.is_file()}
    assert written == set(FILES)


def test_the_text_is_the_cpus_with_its_line_and_module(process: Checkout) -> None:
    found = run(process, clip_type="other")["diffusion_forward"]  # twice as wide
    assert (found["state"], found["type"]) == ("failed", "RuntimeError")
    assert "Given normalized_shape=[32], expected input with shape [*" in found["message"]
    assert found["message"].endswith(", 64]")
    assert (found["file"], found["module"], found["op"]) == ("comfy/sd.py", "norm", "rms_norm")
    assert "self.norm(context)" in SD.splitlines()[found["line"] - 1]
    assert found["shapes"][0][2] == 64


def test_a_line_is_found_in_a_folder_that_is_a_link(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "comfy").symlink_to(folder / "comfy")
    with Checkout(read_install(linked), sys.executable) as made:
        for name, part in PARTS.items():
            made.part(name, part)
        assert run(made, decoder="v16")["vae_decode"]["file"] == "comfy/sd.py"


def test_channels_are_worded_as_the_cpu_does_and_not_as_meta(process: Checkout) -> None:
    found = run(process, decoder="v16")["vae_decode"]
    assert "to have 16 channels, but got 4 channels instead" in found["message"]


def test_a_part_that_fails_leaves_the_others_running(process: Checkout) -> None:
    stages = run(process, diffusion="bad")
    assert "size mismatch for proj.weight" in stages["diffusion_load"]["message"]
    assert stages["text_encoder_forward"]["state"] == "ran"
    assert "diffusion_forward" not in stages
    assert stages["vae_load"]["state"] == "ran"


def test_what_the_loader_only_logs_is_told(process: Checkout) -> None:
    found = run(process, diffusion="half")["diffusion_load"]
    assert found["state"] == "ran"
    assert found["logs"] == ["unet missing: ['proj.bias', 'norm.weight']"]


def test_a_vocabulary_in_the_file_is_enough_and_its_absence_is_comfyuis_error(process: Checkout) -> None:
    assert run(process, encoders="plain")["text_encoder_load"]["message"] == "invalid tokenizer"


def test_a_loader_that_writes_into_its_defaults_does_not_reach_the_next_set(process: Checkout) -> None:
    assert run(process, encoders="e")["text_encoder_load"]["state"] == "ran"
    assert run(process, encoders="e", clip_type="other")["text_encoder_load"]["state"] == "ran"


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("comfy/sd.py", "import einops_of_another_world\nimport numpy.nothing_of_that_name\n", "numpy"),
        ("comfy/sd.py", "1 / 0\n", "cannot be imported: ZeroDivisionError"),
        ("comfy/options.py", "", "cannot be imported: AttributeError"),
        ("torch.py", "raise OSError('libcudart.so: no such file')\n", "torch cannot be imported: OSError: libcudart"),
    ],
    ids=["package", "broken", "old", "torch"],
)
def test_a_checkout_that_cannot_be_used_is_one_sentence(folder: Path, file: str, text: str, says: str) -> None:
    (folder / file).write_text(text)
    with Checkout(read_install(folder), sys.executable) as made, pytest.raises(CheckoutError) as found:
        made.run({"diffusion": "m"}, [])
    assert says in str(found.value)
    assert "\n" not in str(found.value)


def test_more_memory_than_allowed_ends_it(folder: Path) -> None:
    (folder / "comfy" / "sd.py").write_text("hold = bytearray(900_000_000)\nimport time; time.sleep(5)\n")
    said = pytest.raises(CheckoutError, match=r"more than 0\.8 GB of memory")
    with Checkout(read_install(folder), sys.executable, memory=800_000_000) as made, said:
        made.run({"diffusion": "m"}, [])
