"""What rules about weights, runs, pictures and latents see: a part of `subjects.SUBJECTS`, for `compatkit smoke`."""

from __future__ import annotations

from compatkit.knowledge.subjectfields import fields

#: One tensor as the weight scan measured it (`compatkit smoke`).
MEASURED = fields(
    name=("", "name in the file"),
    module=("", "the module it belongs to"),
    file=("", "the file that holds it, of several shards"),
    dtype=("", "dtype or block type"),
    shape=([], "shape in torch order"),
    values=(0, "number of values"),
    elements=("", "the same in words"),
    dims=(0, "sides longer than one; a packed weight has two"),
    kind=("float", "float, blocks (quantised GGUF), scale (powers of two), integer"),
    owner=(None, "the packed weight that this tensor is a scale of, null for any other"),
    packed=(False, "whether other tensors hold its scales"),
    nan=(0, "NaN values, of blocks their scales"),
    inf=(0, "infinite values, of blocks their scales"),
    nan_words=("", "how many, in words"),
    inf_words=("", "how many, in words"),
    bad_at=("", "where the first of them stands"),
    max_abs=(0.0, "largest finite magnitude; of blocks: about, from those with the largest scales"),
    max_words=("", "the same in words"),
    max_at=("", "where it stands, empty if it was not looked up"),
    scaled_max=(0.0, "what it comes to with the scale that stands beside it"),
    beyond=(0, "values beyond 65504"),
    lowest=(None, "the least value of a small tensor, null for others"),
    rms=(0.0, "root mean square, of a sample"),
    peak=(0.0, "max_abs / what its values usually are (their root mean square without the largest hundredth)"),
    peers=(0, "tensors of the same name and shape in other blocks of the model"),
    peer_max=(0.0, "the median of their max_abs"),
    peer_ratio=(1.0, "max_abs / peer_max"),
    zero=(False, "whether all of it is zero"),
    constant=(False, "whether all of it is one value (of two values at least)"),
    value=(None, "that value"),
    zeros=(0.0, "share of zeros in a sample"),
    denormals=(0.0, "share of denormal numbers among the values of a sample that are not zero"),
    blocks=(0, "blocks of a quantised tensor"),
    zero_blocks=(0, "blocks whose scales are zero, in rows that are not all zero"),
    zero_block_share=(0.0, "their share"),
    hole=(0, "bytes of whole pages of the file that hold nothing but zeros and are no rows of the tensor"),
    hole_at=("", "where they begin in the file"),
)

#: The weights of one model as a whole, as the scan measured them.
WEIGHTS = fields(
    tensors=(0, "tensors measured"),
    matrices=(0, "those with two sides or more"),
    zero_matrices=(0, "those of them that are all zero"),
    all_zero=(False, "whether all of them are"),
    unwritten=(0, "bytes of the file for which no disk space was ever taken"),
    unwritten_words=("", "the same in words"),
    size_words=("", "bytes measured, in words"),
    same_blocks=([], "blocks that equal an earlier one byte for byte: 'layers.3 = layers.2'"),
    same_tensors=([], "single tensors that equal the one of another block"),
)

#: What a LoRA makes of one module.
CHANGE = fields(
    name=("", "the module as the file spells it"),
    rank=(0, "its rank"),
    alpha=(None, "its alpha, null if the file has none"),
    factor=(1.0, "alpha / rank: what the product is multiplied with"),
    change=(0.0, "about the root mean square of the change at strength 1"),
    change_words=("", "the same in words"),
    usual=(0.02, "root mean square of a usual weight of the base, where it is in the set"),
)

#: A picture, by its pixels alone.
PICTURE = fields(
    verdict=("ok", "ok, black, constant, noise, grid, saturated, nan"),
    path=("", "where it was written"),
    nan=(0.0, "share of pixels that are not finite"),
    mean=(0.0, "mean of luminance, 0 … 1"),
    std=(0.0, "standard deviation of luminance"),
    clipped=(0.0, "share of values at either end"),
    flatness=(0.0, "how much its spectrum is like that of white noise, 0 … 1"),
    neighbours=(0.0, "correlation of neighbouring pixels"),
    period=(0, "pixels after which a grid repeats"),
    why=("", "what gave it away, in words"),
)

#: A latent's channels against what the VAE was trained on.
LATENT = fields(
    verdict=("ok", "ok, nan, scale, shift, permuted"),
    channels=(0, "number of channels"),
    std_ratio=(1.0, "median over channels of its standard deviation / the expected one"),
    shift=(0.0, "largest distance of a channel's mean from the expected one, in expected standard deviations"),
    why=("", "what gave it away, in words"),
)

#: A test card encoded and decoded again.
ROUND_TRIP = fields(
    psnr=(0.0, "peak signal-to-noise ratio in dB; not finite values count as 0"),
    nan=(0.0, "share of pixels that are not finite"),
    verdict=("ok", "the picture's own verdict"),
)

#: All runs of one component with its real weights; the place is the first that made a NaN or Inf, else the first beyond
#: float16, else the one with the largest values.
RUN = fields(
    broken=(False, "whether an operation made a NaN or an Inf"),
    where=("", "module and operation, in words"),
    module=("", "the module"),
    op=("", "torch's operation"),
    count=(0, "values there that are not finite"),
    max_abs=(0.0, "largest finite magnitude there"),
    max_words=("", "the same in words"),
    largest=(0.0, "largest finite magnitude of the whole run"),
    above=(0, "places beyond float16's range"),
    over=(False, "whether any is beyond 65504"),
    near=(False, "whether any is beyond a quarter of that"),
    runaway=(False, "whether any is beyond a thousand million"),
    fp16=("open", "what float16 is to it: asked, meant, open, avoided"),
    call=("", "forward, encode, decode"),
    step=(1, "of the sampler"),
    given=("", "what it was given, in words"),
    dtype=("", "what was computed with, as torch names it"),
    std=(0.0, "standard deviation of the output"),
)

#: The part whose swap for a known-good stand-in made a set work.
GUILT = fields(
    swap=("", "what was swapped: lora, encoder, latent, dtype; empty: nothing helped"),
    why=("", "why that tells, in words"),
    broken=("", "what was broken"),
    where=("", "the file in which it broke"),
    tried=([], "every swap and what came of it"),
)
