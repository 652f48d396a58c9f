"""What a check may look at: the kinds of subject a rule can bind, and every field of each.

This table is the contract between rules and the Python that computes facts. An expression that names a field which is
not here is refused when the rule is read; `blank` fills the fields an example leaves out.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from compatkit.knowledge.comfyuifields import SERVER, STAGE
from compatkit.knowledge.runfields import AGREEMENT, ENVIRONMENT, PROBE
from compatkit.knowledge.smokesubjects import CHANGE, GUILT, LATENT, MEASURED, PICTURE, ROUND_TRIP, RUN, WEIGHTS
from compatkit.knowledge.subjectfields import LOADER, PART, Field
from compatkit.knowledge.subjectfields import fields as _fields
from compatkit.knowledge.workflowsubjects import WORKFLOW

#: What a diffusers folder's configs say of one of its parts.
DECLARED = _fields(
    part=("", "the part: transformer, unet, vae"),
    pipeline=("", "pipeline class that model_index.json names"),
    cls=("", "class that model_index.json or config.json names"),
    config=("", "class that config.json names, where model_index.json names another"),
    takes=([], "classes the pipeline takes for this part; empty: not known"),
    tensors=(None, "the class these tensors are of, null if it is not known"),
)


LOADING = _fields(
    supported=("yes", "whether it has this model at all: yes, no, unknown"),
    format=("yes", "whether it opens files of this format for this role: yes, no, unknown"),
    layout=("yes", "whether it reads this layout of this family: yes, no, unknown"),
    prefix=("yes", "whether it strips this prefix: yes, no, unknown"),
    prefixes=([], "the prefixes it strips for this role"),
    architecture=("none", "whether it accepts the GGUF architecture: yes, no, later, unknown, missing, none (no GGUF)"),
    accepted=([], "architectures it accepts for this role"),
    architecture_since=(None, "the version that accepts it first"),
    scheme=("yes", "whether it reads the quantisation: yes, no, later, unknown"),
    scheme_title=("", "the quantisation's name"),
    scheme_since=(None, "since which version"),
    scheme_formats=([], "the packings of its weights: several for a mix"),
    scheme_effect=("", "what a loader does that does not know it"),
    scheme_error=("", "the error this loader raises"),
    scheme_loaders=([], "what reads it"),
    scheme_fix=("", "what to do about it"),
    full_size=("", "what the same model takes in bf16"),
    slow_types=([], "GGUF types that it decodes on the CPU"),
    failing_types=([], "GGUF types that it cannot decode"),
    failing_numbers=([], "their numbers in ggml"),
    family=("yes", "whether this version knows the family: yes, no, unknown"),
    family_since=(None, "since which version"),
    becomes=(None, "what it makes of the file: its class"),
    misread=("", "the class of another model that it takes the file for"),
    helper=("", "the package that opens the file for it, where the user named the runtime without that package"),
    tokenizer=("none", "whether the tokenizer it wants in the file is there: yes, no, unknown, none (it wants none)"),
    tokenizer_tensor=(None, "the tensor that would hold it"),
    metadata_missing=("", "the metadata it builds the model by, which the file has not"),
    error=("", "the error it raises"),
    apart=(False, "whether it finds the model only in one file or folder with its text encoders, and they are apart"),
    options=("", "the options with which it takes the other files of the set"),
)

ENCODER = {
    **PART,
    **_fields(
        width=(None, "hidden size"),
        vocab=(None, "rows of its token embedding"),
        loaded_as=(None, "what the runtime takes it for"),
        taps=(1, "hidden layers its class concatenates"),
        output_width=(None, "width that reaches the model: hidden size x taps"),
        stands=("fills", "fills (the right kind), stands_in (a wrong one for an open slot), surplus"),
        embedding=(None, "name of its token embedding as the runtime spells it"),
    ),
}

SLOT = _fields(
    kind=("", "encoder id the model was trained with"),
    kinds=([], "every encoder id that is right"),
    title=("", "its name in words"),
    titles=([], "names of every encoder that is right"),
    to_get=([], "the same, with the file and the place where it is published"),
    width=(None, "width this slot takes, null if the model does not tell"),
    into=(None, "the model's fact that must equal the width"),
    join=("none", "none, concat (with the other slots), pad (narrower is right)"),
    total=(None, "for a joined input: width of all parts together"),
    vocab=(None, "rows of the token embedding it must have"),
    optional=(False, "whether the model runs without"),
    right_width=(None, "hidden size of the encoder it was trained with"),
    right_vocab=(None, "rows of that encoder's token embedding"),
)

ROUTE = _fields(
    known=(False, "whether the runtime's routing of this encoder is known"),
    given=(None, "the clip_type the user gave"),
    usual=(None, "the clip_type usual for this model"),
    recognised=(True, "whether the runtime has a clip_type of that name"),
    fallback=(None, "the clip_type used for an unknown name"),
    cls=(None, "class built for the type in force"),
    usual_class=(None, "class built for the usual type"),
    usual_width=(None, "width with the usual type"),
    vocab=(None, "token rows that class expects"),
    usual_vocab=(None, "token rows the usual class expects"),
    parts=([], "encoders the class is made of, where several files are loaded together"),
    together=(False, "whether several files are loaded together"),
    gives=(None, "what that class gives this input, whatever files it is made of; null if that is not known"),
    leads=(True, "of encoders loaded together, the one that what is wrong with their class is said of"),
    beside=([], "names of the files loaded together with this one"),
    checked=(True, "whether shapes are compared while loading"),
)

JUNCTION = _fields(
    op=(None, "the operation that meets the other side first: rms_norm, layer_norm, linear, conv2d, conv3d, stats, …"),
    module=(None, "its module"),
    rows=(None, "rows of its weight (output features)"),
    weight=([], "shape of its weight"),
)

LATENT_SIDE = {
    **PART,
    **_fields(
        spaces=([], "names of the latent space it may have"),
        channels=(None, "latent channels"),
        ndim=(None, "rank of the latent, batch and channels counted"),
        latent=("", "size of the latent of a 1024 x 1024 picture"),
        frame=("", "the same without the time axis"),
        stretched=("", "the same with a time axis of one"),
    ),
}

DIFFUSION = {
    **PART,
    **_fields(
        reading=(None, "the family this was judged as"),
        holds_for=([], "the families it holds for"),
        other_readings=([], "families of the same header it does not hold for"),
        needed=([], "names of every encoder it needs"),
        reads=([], "names of every encoder it reads, also of those it runs without"),
        clip_type=(None, "ComfyUI's usual CLIP type for it"),
    ),
}

ADAPTER = {
    **PART,
    **_fields(
        targets=([], "names of the models it was made for, by its tensors"),
        sure=("nothing", "what says so: structure, names, metadata, or nothing"),
        claim=(None, "what its metadata says of the base although the tensors refute it"),
        alpha_factor=(None, "alpha / rank by the metadata, where no tensor holds the alpha"),
        modules=(0, "modules that it changes"),
        halves=(0, "modules with only one half of a pair"),
        first_half=("", "the tensor that the first of these lacks"),
        torn=(0, "modules whose own tensors do not go together"),
        first_torn=("", "the first of these, and what is wrong with it"),
        empty=(0, "modules with a tensor of no elements"),
        trained_on=("", "the file that it was trained on, by its metadata"),
        convention=("", "how its names are written, in words"),
        conventions=([], "all of them, the most used first"),
        rank_claim=(None, "the rank that its metadata says where no module has it"),
        ranks=([], "the ranks its modules have"),
        alpha_broken=(0, "modules whose alpha is no number"),
        alpha_zero=(0, "modules whose alpha is 0"),
        alpha_far=(0, "modules whose alpha is far from their rank"),
        first_alpha=("", "the first of these"),
        scales=([], "alpha / rank, the least and the most"),
    ),
}

ADAPTED = {
    **PART,
    **_fields(
        fits=("unknown", "whether the adapter was made for it: yes, kin, possible (has all its modules), no, unknown"),
        siblings=([], "names of every model that this header may be"),
    ),
}

FIT = _fields(
    verdict=("full", "full, partial, shape_mismatch, none"),
    keys=(0, "tensors of the adapter, after the runtime's own conversion"),
    matched=(0, "tensors that it reads"),
    unmatched=(0, "tensors that it does not"),
    modules=(0, "modules that the adapter changes"),
    modules_matched=(0, "modules that are found in the base"),
    modules_lost=(0, "modules that are not, those of absent text encoders left out"),
    mismatches=(0, "weights that cannot be changed because of their shape"),
    problem=("", "what does not go together in one of them"),
    module=("", "the adapter's module"),
    weight=("", "its weight in the base"),
    expected=([], "the shape that weight has"),
    made=([], "rows and columns that the adapter makes"),
    algorithm=("", "the algorithm of that module"),
    absent=(0, "weights that it maps but the base has not"),
    first_absent=([], "the first of them"),
    names_lost=(0, "tensors whose module the runtime does not find"),
    first_lost=([], "the first of them"),
    endings_lost=(0, "tensors of modules it finds, with an ending that it does not read"),
    first_ending=([], "the first of them"),
    junk=(0, "tensors that are of no adapter"),
    first_junk=([], "the first of them"),
    encoder_keys=(0, "tensors for text encoders that it does not find"),
    encoders=(False, "whether the set has a text encoder"),
    model_only=(False, "whether a workflow applies it to the model and to no text encoder"),
    magnitudes=(0, "magnitudes of a DoRA that are left out"),
    twice=(0, "weights that two modules of the file change: the last one counts"),
    later=(None, "the first version that reads more of it"),
    conversion=("", "the conversion that the runtime makes of the file"),
    refused=("", "the error with which the runtime refuses the whole file"),
    loads_as=("", "the runtime's class of the base"),
    touched=(0, "weights of the base that it changes, where another LoRA of the set changes some of them too"),
    shared=(0, "how many of them that one changes"),
    shared_with=("", "the other LoRA"),
    convert=("", "the `compatkit convert` that writes it as the runtime reads it, where only names stand in the way"),
)

_TAKER = {
    **PART,
    **_fields(
        width=(None, "width of the features it takes"),
        kind=("", "the encoder it was made with"),
        adapts=("", "of an image-prompt adapter, whose class is built for the encoder at hand, the first layer"),
    ),
}
_GIVER = {
    **PART,
    **_fields(
        width=(None, "width it gives"),
        output=("hidden", "hidden or width (projected)"),
        tokens=(None, "how many vectors it gives"),
    ),
}

#: What a rule may bind -> the variables its expressions see, and their fields.
SUBJECTS: dict[str, dict[str, dict[str, Field]]] = {
    "file": {
        "file": _fields(name=("", "file name"), problem=("", "rule id of the problem"), message=("", "what is wrong")),
    },
    "component": {"component": PART},
    "server": {"server": SERVER, "loader": LOADER},
    "stage": {"stage": STAGE, "loader": LOADER},
    "declared": {"component": PART, "declared": DECLARED},
    "loading": {"component": PART, "loader": LOADER, "opens": LOADING},
    "encoder": {
        "encoder": ENCODER,
        "diffusion": DIFFUSION,
        "slot": SLOT,
        "route": ROUTE,
        "junction": JUNCTION,
        "loader": LOADER,
    },
    "vae": {
        "vae": LATENT_SIDE,
        "diffusion": LATENT_SIDE,
        "pair": _fields(
            common=([], "latent spaces both may have"),
            readings=([], "every latent space either may have"),
            right=([], "names of the VAEs that fit"),
            to_get=([], "the same, with the files and the places where they are published"),
        ),
        "junction": JUNCTION,
        "loader": LOADER,
    },
    "lora": {"adapter": ADAPTER, "loader": LOADER},
    "adapter": {"adapter": ADAPTER, "base": ADAPTED, "fit": FIT, "loader": LOADER},
    "attachment": {
        "adapter": {
            **PART,
            **_fields(kind=("", "its role, in words"), targets=([], "names of the models it is made for")),
        },
        "base": PART,
        "pair": _fields(
            fits=("unknown", "whether it is made for this base: yes, kin, no"),
            shared=("", "a width that both know and that differs: context_dim, hidden_size, …"),
            adapter_width=(None, "the adapter's"),
            base_width=(None, "the base's"),
        ),
        "loader": LOADER,
    },
    "eye": {"taker": _TAKER, "eye": _GIVER, "junction": JUNCTION, "loader": LOADER},
    "ear": {"taker": _TAKER, "ear": _GIVER, "junction": JUNCTION, "loader": LOADER},
    "set": {
        "diffusion": DIFFUSION,
        "junction": JUNCTION,
        "set": _fields(
            encoders=(0, "encoders given for this model"),
            alone=(None, "width of the one encoder given, where the model's text input is another's"),
            takes=(None, "width of that text input"),
            missing=([], "names of the required encoders that are not there"),
            missing_kinds=([], "their ids"),
            to_get=([], "their names, with the files and the places where they are published"),
            given=([], "names of the encoder files given"),
            required=(False, "whether the user or a workflow asks for encoders"),
            any_of=(False, "whether one of the missing ones is enough"),
        ),
    },
    "storage": {
        "component": PART,
        "storage": _fields(
            name=("none", "how the weights are stored: a packing, a GGUF type, or the dtype of unquantised ones"),
            allowed=([], "what the policy allows for this role"),
            matches=(True, "whether it is one of those"),
        ),
    },
    "license": {
        "component": PART,
        "license": _fields(
            name=("", "the licence that the stack file names for this file"),
            allowed=([], "what the policy allows"),
            matches=(True, "whether it is one of those"),
        ),
    },
    "budget": {
        "budget": _fields(
            total=(0, "bytes of all files"),
            allowed=(0, "bytes the policy allows"),
            total_words=("", "the first in words"),
            allowed_words=("", "the second in words"),
            largest=("", "name of the largest file"),
            largest_words=("", "its size in words"),
        ),
    },
    "measured": {"component": PART, "tensor": MEASURED, "weights": WEIGHTS},
    "weights": {"component": PART, "weights": WEIGHTS},
    "change": {"component": PART, "module": CHANGE},
    "picture": {"picture": PICTURE},
    "latent": {"latent": LATENT},
    "roundtrip": {"component": PART, "trip": ROUND_TRIP},
    "forward": {"component": PART, "run": RUN},
    "guilt": {"component": PART, "guilt": GUILT},
    "probe": {"probe": PROBE, "giver": PART, "taker": PART, "loader": LOADER},
    "agreement": {"agreement": AGREEMENT, "giver": PART, "taker": PART, "loader": LOADER},
    "environment": {"environment": ENVIRONMENT},
    **WORKFLOW,
    "role": {
        "role": _fields(
            name=("", "a role the user requires"),
            label=("", "in words"),
            present=(True, "whether the set has it"),
            to_get=(
                [],
                "what the models of the set want there, with the files and the places where they are published",
            ),
        ),
    },
}

_CHAIN = re.compile(r"(?<![\w.\"'])([a-z_]\w*)((?:\s*\.\s*[a-z_]\w*\b(?!\s*\())+)", re.I)
_STRINGS = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")


def unknown_field(kind: str, expression: str) -> tuple[str, str, int, dict[str, Field]] | None:
    """The first `variable.field` of an expression that its subject does not have.

    Returns (variable, field, offset in the expression, the fields there are), or None.
    """
    variables = SUBJECTS[kind]
    text = _STRINGS.sub(lambda m: " " * len(m[0]), expression)
    for match in _CHAIN.finditer(text):
        fields = variables.get(match[1])
        if fields is None:
            continue
        name = match[2].strip().removeprefix(".").strip().split(".")[0].strip()
        if name not in fields:
            return match[1], name, match.start(2) + match[2].index(name), fields
    return None


def blank(kind: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A subject of this kind with every field, as `given` sets them (unknown names raise KeyError)."""
    subject: dict[str, Any] = {}
    for variable, fields in SUBJECTS[kind].items():
        subject[variable] = {name: copy.copy(field.default) for name, field in fields.items()}
    for variable, values in (given or {}).items():
        for name, value in values.items():
            if name not in subject[variable]:
                raise KeyError(f"{variable}.{name}")
            subject[variable][name] = value
    return subject
