"""Two texts of one error are equal whatever torch wrote them, and two errors never are."""

from __future__ import annotations

import re

import pytest

from compatkit.dryrun.wording import pattern, read, telling

NORM = "Given normalized_shape=[2560], expected input with shape [*2560], but got input of size[1, 18, 2304]"
PRODUCT = "mat1 and mat2 shapes cannot be multiplied (18x2304 and 2560x3840)"
CHANNELS = (
    "Given groups=1, weight of size [4, 4, 1, 1], expected input[1, 16, 128, 128] to have 4 channels, but got 16"
    " channels instead"
)
RANK = "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [1, 16, 1, 128, 128]"
SIZES = "The size of tensor a (16) must match the size of tensor b (128) at non-singleton dimension 1"
META = (
    "Attempting to broadcast a dimension of length 128 at -3! Mismatching argument at index 1 had torch.Size([1, 128,"
    " 1, 1]); but expected shape should be broadcastable to [1, 16, 16, 16]"
)
LOAD = (
    "Error(s) in loading state_dict for T5:\n\tsize mismatch for shared.weight: copying a param with shape"
    " torch.Size([256384, 4096]) from checkpoint, the shape in current model is torch.Size([32128, 4096])."
)
ALL = [NORM, PRODUCT, CHANNELS, RANK, SIZES, LOAD]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (NORM, NORM.replace("[*2560]", "[*, 2560]")),
        (NORM, NORM.replace("1, 18, 2304", "2, 77, 2304")),
        (NORM, "Given normalized_shape=[2560], expected input with shape [*, 2560], but got input of size[1, N, 2304]"),
        (PRODUCT, PRODUCT.replace("18x", "512x")),
        (PRODUCT, PRODUCT.replace("18x", "Nx")),
        (CHANNELS, CHANNELS.replace("128, 128]", "16, 16]")),
        (SIZES, META),
        (SIZES, "The size of tensor a (128) must match the size of tensor b (16) at non-singleton dimension 1"),
        (LOAD, "RuntimeError: " + LOAD.split("\t")[1]),
    ],
)
def test_one_error_in_other_words(one: str, other: str) -> None:
    assert read(one) == read(other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (NORM, NORM.replace("2304]", "3584]")),
        (NORM, NORM.replace("=[2560]", "=[2048]")),
        (PRODUCT, PRODUCT.replace("x2304", "x2560")),
        (PRODUCT, PRODUCT.replace("3840", "3072")),
        (CHANNELS, CHANNELS.replace("[4, 4, 1, 1]", "[512, 4, 3, 3]")),
        (CHANNELS, CHANNELS.replace("[1, 16, 128, 128]", "[1, 16, 1, 128, 128]")),
        (SIZES, SIZES.replace("128", "48")),
        (LOAD, LOAD.replace("256384", "250112")),
    ],
)
def test_another_error_is_another(one: str, other: str) -> None:
    assert read(one) != read(other)


def test_a_text_that_is_no_shape_error_says_nothing() -> None:
    assert read("IndexError: tuple index out of range") is None
    assert read("") is None


@pytest.mark.parametrize("text", ALL)
def test_the_pattern_finds_its_own_text_and_no_other(text: str) -> None:
    found = [other for other in ALL if re.search(pattern(text), other)]
    assert found == [text]


def test_the_pattern_finds_other_versions_and_other_free_sizes() -> None:
    assert re.search(pattern(NORM), NORM.replace("[*2560]", "[*, 2560]").replace("1, 18,", "2, 333,"))
    assert re.search(pattern(PRODUCT), PRODUCT.replace("18x", "1024x"))
    assert re.search(pattern(CHANNELS), CHANNELS.replace("128, 128]", "64, 96]"))
    assert not re.search(pattern(PRODUCT), PRODUCT.replace("2304", "2305"))


def test_of_many_lines_the_one_that_says_what_is_wrong() -> None:
    assert telling(LOAD).startswith("size mismatch for shared.weight")
    assert telling("first\nsecond") == "first"
    assert telling("") == ""
