"""The fields of what was run: a probe of the dry run, its agreement with the header checks, the torch that ran it."""

from __future__ import annotations

from compatkit.knowledge.subjectfields import fields

PROBE = fields(
    about=("", "load, context, pooled, image, unfed, latent, vae, lora, adapter, forward, state-dict"),
    ok=(True, "whether it ran"),
    backend=("probe", "what ran it: probe, diffusers, transformers, comfyui"),
    op=("", "the operation that stopped it"),
    module=("", "its module, as the runtime names it"),
    junction=("", "the junction of the model's card"),
    what=("", "what came in, in words"),
    when=("", "the circumstances, where it stops only in some"),
    input=(None, "shape of the tensor that came in, null if none did"),
    weight=(None, "shape of the weight that it met"),
    message=("", "the exact text of the installed torch"),
    telling=("", "the one line of it that says what is wrong"),
    error=("", "class of the exception"),
    regex=("", "matches the text of other torch versions"),
    tensors=([], "both sides: file, tensor, shape, dtype"),
    line=("", "file and line that raised it, where a class ran"),
    notes=([], "what was assumed"),
    after=("", "the module at which the run stops before this one is reached"),
    order=(0, "its place in the run"),
    confirms=(None, "the header rule that says the same, null if none does"),
    predicted=(None, "the text that rule predicts"),
    fix=("", "what that rule says to do"),
    torch=("", "version of torch"),
)

AGREEMENT = fields(
    agrees=(False, "whether both say the same"),
    about=("", "what the probe is about"),
    rule=("", "the header rule that claims an error; empty: the run met one that no rule names"),
    claims=("", "the error it claims"),
    message=("", "the error the run met; empty: it met none"),
    what=("", "what came in, in words"),
    module=("", "the module that it met"),
)

ENVIRONMENT = fields(
    ok=(True, "whether torch can be used"),
    missing=(False, "whether it is not installed"),
    module=("", "the package that is not there"),
    message=("", "what importing it said"),
    comfyui=("", "the ComfyUI whose code was to run, empty without one"),
)
