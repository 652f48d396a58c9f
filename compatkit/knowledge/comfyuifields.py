"""Fields of subjects that come from a ComfyUI: a running server, and a checkout whose code was run without weights."""

from __future__ import annotations

from compatkit.knowledge.subjectfields import fields

#: What became of a graph on a running server.
SERVER = fields(
    state=(
        "done",
        "done, error, rejected, interrupted, timeout, lost, unreachable, foreign (no ComfyUI), missing (it lacks a file"
        " or a node), incomplete (the set does)",
    ),
    address=("", "the server's address"),
    version=("", "its version, empty if it does not tell"),
    message=("", "its own text, or what is missing"),
    first=("", "the first line of it: what follows are hints"),
    error=("", "type of the exception"),
    node=("", "class of the node"),
    file=("", "file that the node loads"),
    line=("", "where in its code the exception was raised"),
    rejected=([], "what it did not like about the graph, one text each"),
    rule=("", "the rule that explains the text"),
    cause=("", "what the text means, by that rule"),
    cause_fix=("", "what to do about it"),
    pictures=(0, "number of pictures it made"),
    dropped=(False, "whether the websocket ended early"),
    seconds=(0.0, "how long it took"),
)

#: One step of a run without weights.
STAGE = fields(
    stage=("", "diffusion_load, text_encoder_load, vae_load, checkpoint_load, lora_load, text_encoder_forward,"
               " diffusion_forward, vae_decode"),
    state=("ran", "ran, failed, half (tensors that nothing was loaded into), refused (by the GGUF loader), unknowable"),
    doing=("", "the step in words"),
    message=("", "ComfyUI's or torch's own text"),
    first=("", "its first line, shortened"),
    error=("", "type of the exception"),
    op=("", "operation that failed"),
    shapes=("", "shapes of its operands"),
    module=("", "module of the model, by its path"),
    model_class=("", "class of the model"),
    file=("", "file in ComfyUI"),
    line=(0, "line in it"),
    files=([], "model files it is about"),
    regex=("", "expression that matches the text in any version of torch"),
    comfyui=("", "the checkout, with its version"),
    torch=("", "version of its torch"),
    confirms=(None, "rule of the header checks that says the same"),
    predicted=(None, "what that rule said the user would see"),
    fix=("", "its fix"),
)  # fmt: skip
