"""What the workflow checks may look at: how a set is sampled, what its nodes load and want, whose prompt meets whom."""

from __future__ import annotations

from compatkit.knowledge.subjectfields import LOADER, PART, Field, fields

WORKFLOW: dict[str, dict[str, dict[str, Field]]] = {
    "run": {
        "run": fields(
            node=("", "the sampler, in words; empty without a workflow"),
            steps=(None, "steps"),
            cfg=(None, "CFG scale"),
            shift=(None, "shift of the timesteps"),
            dtype=(None, "the compute dtype asked for: fp16, bf16, fp32"),
            lora=(False, "whether the set has a LoRA: it may make other settings right"),
            leftover=(False, "whether the latent that leaves the sampler still holds noise"),
            decoded=(False, "whether that latent goes into a decoder"),
        ),
        "diffusion": {
            **PART,
            **fields(
                cfg_top=(None, "the highest CFG scale usual for any model with this header"),
                guidance=(None, "the strength of its embedded guidance, null if it has none"),
                fewest_steps=(None, "the fewest steps usual for any model with this header"),
                safe_dtypes=([], "compute dtypes it is known to run in"),
                usual_dtype=("", "the first of them"),
                dtype_note=("", "what is known of it in fp16"),
            ),
        },
        "latent": fields(
            node=("", "class of the node that makes the empty latent"),
            label=("", "that node in words"),
            channels=(None, "its channels"),
            ndim=(None, "its rank, batch and channels counted"),
            downscale=(None, "pixels per latent position"),
            wants_channels=(None, "channels the model works on; null for pixels"),
            wants_ndim=(None, "rank the model works on"),
            wants_downscale=(None, "pixels per latent position of the model"),
            fits=(True, "whether channels and rank are those of a latent that the model works on"),
        ),
        "loader": LOADER,
    },
    "load": {
        "component": PART,
        "load": fields(
            node=("", "the node, in words"),
            use=("", "what it loads the file as: a role, or checkpoint"),
            use_label=("", "the same in words"),
            holds=([], "what the file holds, in words"),
            titles=([], "the models in it"),
            whole=(False, "whether the node takes the file for a whole checkpoint"),
            known=(True, "whether it is known what the file is"),
            lacks=([], "what is used of the file and is not in it"),
            text=(False, "whether its text encoder is used and is not in it"),
            opens=(True, "whether the node opens files of this format"),
            formats=([], "the formats it opens; empty if that is not known"),
        ),
        "loader": LOADER,
    },
    "node": {
        "node": fields(
            label=("", "the node, in words"),
            fits=(True, "whether the model is one that the node is made for"),
            level=("error", "what it is if not: error, warning, info"),
            what=("", "what the node does that only some models can use"),
            effect=("", "what comes of it"),
            instead=("", "what to do"),
            families=([], "the models it is made for"),
        ),
        "diffusion": PART,
    },
    "vision": {
        "encoder": PART,
        "node": fields(label=("", "the node that shows the encoder a picture, in words; empty: none is known to")),
        "eye": fields(
            there=(True, "whether the second file is in the set"),
            name=("", "its name"),
            title=("", "what it is"),
            fits=(True, "whether it is the second half of this encoder"),
            kind=("", "its general.type"),
            accepted=("yes", "whether the loader takes a file of that type: yes, no, later, unknown"),
            since=(None, "since which version"),
        ),
        "loader": LOADER,
    },
    "prompt": {
        "encoder": PART,
        "diffusion": PART,
        "prompt": fields(
            gives=(None, "width of the text features that the other checkpoint's encoder gives"),
            takes=(None, "width that the model sampled with takes"),
            of=("", "the model of the checkpoint that the encoder is from"),
            kinds=([], "ids of the encoders"),
        ),
    },
}
