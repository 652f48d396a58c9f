"""Coverage for diffusers against its own loaders, and conversions against its own converters."""

from __future__ import annotations

import gzip
import json
from math import prod
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from compatkit.adapters.coverage import coverage  # noqa: E402
from compatkit.adapters.keys import spellings  # noqa: E402
from compatkit.convert.run import convert  # noqa: E402
from compatkit.knowledge.store import Knowledge, load  # noqa: E402
from compatkit.sources.network import Network  # noqa: E402
from tests.convert.making import save  # noqa: E402
from tests.oracle.loras import WAYS, Oracle  # noqa: E402

FAMILIES = [
    "sdxl", "flux_dev", "chroma", "flux2_klein_4b", "z_image_turbo", "wan21_t2v_14b", "wan21_i2v_14b", "qwen_image",
    "hunyuan_video", "sd35_medium", "lumina2", "ltxv_2b", "ltx2", "krea2", "auraflow", "hidream_i1", "mochi",
    "cogview4", "cogvideox_t2v", "ernie_image", "ideogram4", "minimax_h3", "sana", "kandinsky5_video_lite",
    "ace_step15",
]  # fmt: skip
_LARGE = 4 << 20
#: A loader's slips, too odd to be written down: (family, way).
ODD = {
    ("chroma", "OneTrainer"),  # refused for a layer that no LoRA trains
    ("flux2_klein_4b", "native LoKr"),  # two fused modules that its model fuses later
}


@pytest.fixture(scope="module")
def known() -> Knowledge:
    return load()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_loader_reads_of_a_file(known: Knowledge, family: str) -> None:
    oracle = Oracle(family, known)
    spelled, table = spellings(known.adapters("spellings")), known.adapters("diffusers")
    wrong = []
    for title, way in WAYS.items():
        file, numbers = oracle.file(way)
        seen = oracle.load(file, numbers)
        found = coverage({n: tuple(t.shape) for n, t in file.items()}, spelled, oracle.base, table, known)
        if (family, title) in ODD:
            continue
        if bool(found.refused) != bool(seen.refused) or found.modules_matched != seen.reached:
            wrong.append(
                f"{title}: loads {seen.reached} of {len(numbers)} {seen.refused[:60]!r}, "
                f"computed {found.modules_matched} {found.refused[:60]!r}"
            )
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "family", ["flux_dev", "z_image_turbo", "wan21_t2v_1_3b", "qwen_image", "sd15", "flux2_klein_4b"]
)
def test_a_conversion_is_the_loaders_own(known: Knowledge, family: str, tmp_path: Path) -> None:
    """kohya's names through `convert --to diffusers` and through diffusers' converter: the same changes."""
    oracle = Oracle(family, known)
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    style = oracle.speller.style("kohya")
    for module in oracle.speller.written(style):
        if (
            module.weight is None
            or not any(f"{x}_0_" in module.name for x in ("blocks", "layers"))
            or "te" in module.name[:8]
        ):
            continue
        shape = oracle.base.shapes.get(module.weight[0].tensor, ())
        if len(shape) != 2 or "refiner" in module.name:
            continue
        rows = sum(s.size for s in module.weight)
        arrays[f"{module.name}.lora_up.weight"] = rng.standard_normal((rows, 3)).astype(np.float32)
        arrays[f"{module.name}.lora_down.weight"] = rng.standard_normal((3, shape[1] or 1)).astype(np.float32)
        arrays[f"{module.name}.alpha"] = np.float32(2)
    assert arrays
    source, out = save(tmp_path / "in.safetensors", arrays), tmp_path / "out.safetensors"
    convert(str(source), to="diffusers", output=str(out), base=family, knowledge=known, network=Network())
    from safetensors.numpy import load_file

    ours = load_file(out)
    theirs = oracle.load({n: torch.from_numpy(np.array(a)) for n, a in arrays.items()}, {})
    assert not theirs.refused
    compared = 0
    for key, value in ours.items():
        if not key.endswith(".lora_A.weight"):
            continue
        stem = key.removesuffix(".lora_A.weight")
        down, up = theirs.keys.get(key), theirs.keys.get(f"{stem}.lora_B.weight")
        if down is None or up is None:
            assert oracle.name == "unet", key  # the UNet's converter keeps alphas apart and older names
            continue
        mine = ours[f"{stem}.lora_B.weight"] @ value
        assert np.allclose(mine, (up @ down).numpy(), atol=1e-4), key
        compared += 1
    assert compared or oracle.name == "unet"


def test_files_of_the_reference_data(known: Knowledge, shared: Path) -> None:
    """Real files on bases that they reach: whether diffusers' loader refuses them."""
    folder = shared / "lora"
    index = {row["file"].removesuffix(".json"): row for row in json.loads((folder / "index.json").read_text())}
    spelled, table = spellings(known.adapters("spellings")), known.adapters("diffusers")
    oracles = [Oracle(f, known) for f in ("sdxl", "flux_dev", "z_image_turbo", "wan21_i2v_14b", "qwen_image", "krea2")]
    wrong, pairs = [], 0
    for name, row in index.items():
        if not row["shapes_known"]:
            continue
        told = json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))["tensors"]
        tensors = {n: tuple(s) for n, s in told.items()}
        # full differences have no values: nothing that a loader decides hangs on them
        file = {n: torch.zeros(s, device="cpu" if prod(s) < _LARGE else "meta") for n, s in tensors.items()}
        for oracle in oracles:
            found = coverage(tensors, spelled, oracle.base, table, known)
            if found.verdict == "shape_mismatch" or (found.verdict == "none" and not found.refused):
                continue
            pairs += 1
            seen = oracle.load(file, {})
            if bool(seen.refused) != bool(found.refused):
                said = f"{seen.refused[:90]!r}, computed {found.verdict} {found.refused[:90]!r}"
                wrong.append(f"{name} on {oracle.base.family}: {said}")
    assert pairs
    assert not wrong, "\n".join(wrong)
