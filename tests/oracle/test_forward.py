"""Classes without weights: built from a header, equal to the grammar name for name, and run on the meta device."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from compatkit.identify.identify import identify
from compatkit.identify.selftest import header_of
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.vocabulary import Component
from tests.oracle import models

torch = pytest.importorskip("torch", reason="torch builds the classes: `make oracle` installs it")
for library in models.LIBRARIES:
    pytest.importorskip(library, reason=f"{library} holds the classes: `make oracle` installs it")

from compatkit.dryrun.build import Built, EnvironmentProblem, build, build_spec  # noqa: E402
from compatkit.dryrun.classes import NoClass, Spec, spec_of  # noqa: E402
from compatkit.dryrun.forward import forward  # noqa: E402

KNOWLEDGE = load()
CLASSES = KNOWLEDGE.classes()["classes"]
#: Every class once, with the first family that it is named for.
ONE_EACH = sorted({name: next(iter(entry["families"])) for name, entry in CLASSES.items()}.items())
#: Names of tensors that a class has and its file may lack: counters, positions that it computes, what it never uses.
MADE_UP = (
    "num_batches_tracked",
    "pos_embedding",
    "position_ids",
    "lm_head.weight",
    "pooler.dense.weight",
    "pooler.dense.bias",
)
#: Families whose published file has less than the class: part of a model, or biases that its makers left out.
LESS = {"stable_audio_open", "stable_audio_3", "mistral3_24b_pruned", "svd_vae", "lumina_next", "gpt_oss_20b"}


def is_fallback(family: str) -> bool:
    """Whether a family is only a kind of model, of any size: its example has no class of its own."""
    return bool(KNOWLEDGE.family(family).get("fallback"))


@cache
def component(family: str, layout: str | None = None) -> Component:
    return identify(header_of(example_shapes(KNOWLEDGE.grammar(family), layout)), KNOWLEDGE)[0]


@cache
def built(family: str) -> Built:
    return build(component(family), KNOWLEDGE)


@pytest.mark.parametrize("entry", list(models.entries()), ids=lambda e: f"{e.class_name.rpartition('.')[2]}-{e.id}")
def test_the_derived_configuration_gives_the_published_class(entry: models.Entry) -> None:
    """Header of the published class -> symbols -> configuration -> class: the same tensors come out."""
    keys = KNOWLEDGE.classes()["families"].get(entry.family, [])
    names = {CLASSES[k]["class"] for k in keys}
    if entry.class_name.rpartition(".")[2] not in names:
        pytest.skip("the dry run uses another class for this family, or none")
    shapes = models.state_dict(entry)
    spec = spec_of(identify(header_of(shapes), KNOWLEDGE)[0], KNOWLEDGE, family=entry.family)
    if spec.name != entry.class_name.rpartition(".")[2]:
        pytest.skip(f"these tensors are {spec.name}'s for the dry run")
    made = build_spec(spec, KNOWLEDGE)
    assert {n: tuple(t.shape) for n, t in made.module.state_dict().items() if n not in made.tied} == shapes


@pytest.mark.parametrize("family", [f for f in sorted(KNOWLEDGE.classes()["families"]) if not is_fallback(f)])
def test_every_tensor_of_the_class_has_a_recipe_and_the_right_size(family: str) -> None:
    made = build(component(family), KNOWLEDGE, family=family)
    assert made.wrong == ()
    assert made.ignored == ()
    if family not in LESS:
        assert [n for n in made.missing if not n.endswith(MADE_UP)] == []


@pytest.mark.parametrize(("name", "family"), ONE_EACH)
def test_the_whole_model_runs_without_weights(name: str, family: str) -> None:
    made = build(component(family), KNOWLEDGE, family=family)
    for call in made.spec.calls:
        ran = forward(made, call=call)
        assert ran.ok, f"{name}.{call}: {ran.message} (in {ran.module}, {ran.line})"
        assert ran.shape


BROADCAST = "The size of tensor a ({}) must match the size of tensor b ({}) at non-singleton dimension {}"
CHANNELS = (
    "Given groups=1, weight of size [4, 4, 1, 1], expected input[1, 16, 8, 8] to have 4 channels, "
    "but got 16 channels instead"
)
WRONG = [
    ("z_image_turbo", {"context_dim": 2304}, "mul", "cap_embedder.0", BROADCAST.format(2304, 2560, 1)),
    (
        *("lumina2", {"context_dim": 2560}, "mul", "time_caption_embed.caption_embedder.0"),
        BROADCAST.format(2560, 2304, 2),
    ),
    (
        *("sdxl", {"context_dim": 768}, "linear", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"),
        "mat1 and mat2 shapes cannot be multiplied (77x768 and 2048x640)",
    ),
    ("sd15_vae", {"z": 16}, "conv2d", "post_quant_conv", CHANNELS),
]


@pytest.mark.parametrize(("family", "replace", "op", "module", "message"), WRONG)
def test_a_wrong_width_fails_with_the_words_of_the_cpu(
    family: str, replace: dict[str, int], op: str, module: str, message: str
) -> None:
    ran = forward(built(family), replace=replace)
    assert (ran.ok, ran.op, ran.module, ran.message) == (False, op, module, message)
    weight = next(o for o in ran.operands if o.name)
    assert weight.name == f"{module}.weight"


RANK = "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [1, 4, 1, 8, 8]"
DTYPE = "Input type (c10::Half) and bias type (c10::BFloat16) should be the same"


@pytest.mark.parametrize(
    ("shape", "dtype", "message"), [((1, 4, 1, 8, 8), "bfloat16", RANK), ((1, 4, 8, 8), "float16", DTYPE)]
)
def test_a_latent_of_another_rank_or_dtype_fails_with_the_words_of_the_cpu(
    shape: tuple[int, ...], dtype: str, message: str
) -> None:
    latent = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
    ran = forward(built("sd15_vae"), given={"z": latent})
    assert (ran.ok, ran.message) == (False, message)


def test_tables_are_real_where_they_are_asked_for_and_parameters_never_are() -> None:
    made = build(component("qwen3_4b"), KNOWLEDGE, tables="cpu")
    assert {p.device.type for p in made.module.parameters()} == {"meta"}
    table = dict(made.module.named_buffers())["rotary_emb.inv_freq"]
    assert table.device.type == "cpu"
    assert float(table[0]) == 1.0


def test_a_shallow_model_runs_for_real_with_the_inputs_of_the_rules() -> None:
    """One block of each kind on the CPU: what the meta device let pass is right about dtypes, too."""
    made = build(component("sd35_medium"), KNOWLEDGE, depth=1, tables="cpu")
    for module in made.module.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                real = torch.full(parameter.shape, 0.01, dtype=parameter.dtype)
                module._parameters[name] = torch.nn.Parameter(real, requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.device.type == "meta":
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
    with torch.no_grad():
        result = made.output(made.method()(**made.inputs(device="cpu")))
    assert tuple(result.shape) == forward(built("sd35_medium")).shape


def test_sizes_that_the_class_refuses_are_one_sentence() -> None:
    known = spec_of(component("sd15_vae"), KNOWLEDGE)
    fields: dict[str, Any] = {f: getattr(known, f) for f in known.__struct_fields__}
    odd = Spec(**{**fields, "config": {**known.config, "block_out_channels": [100, 200, 400, 400]}})
    with pytest.raises(NoClass, match=r"AutoencoderKL cannot be made with the sizes of this header: num_channels"):
        build_spec(odd, KNOWLEDGE)


def test_a_class_that_the_installed_library_has_not_is_an_environment_s_fault() -> None:
    known = spec_of(component("sd15_vae"), KNOWLEDGE)
    fields: dict[str, Any] = {f: getattr(known, f) for f in known.__struct_fields__}
    with pytest.raises(EnvironmentProblem, match=r"diffusers [\d.]+ has no AutoencoderOfTomorrow"):
        build_spec(Spec(**{**fields, "name": "AutoencoderOfTomorrow"}), KNOWLEDGE)
    with pytest.raises(EnvironmentProblem, match="no_such_library cannot be loaded here: No module named"):
        build_spec(Spec(**{**fields, "module": "no_such_library"}), KNOWLEDGE)
