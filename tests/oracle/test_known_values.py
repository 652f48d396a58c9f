"""Values beside meta tensors: what is known is answered, what follows from weights is not made up."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is what is being led past its questions: `make oracle` installs it")

from compatkit.dryrun.replay import OpFailed, exact_errors  # noqa: E402
from compatkit.dryrun.shims import known_values  # noqa: E402


def meta(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.fixture
def mask() -> tuple[Any, Any]:
    """A mask of five tokens, three of them there: on meta, and its values."""
    return meta(1, 5, dtype=torch.bool), torch.tensor([[True, True, True, False, False]])


def test_lengths_and_conditions_are_answered_from_the_values_of_a_mask(mask: tuple[Any, Any]) -> None:
    with known_values(torch, [mask]):
        assert mask[0].sum(dim=1).tolist() == [3]
        assert not bool(mask[0].all())
        assert int((~mask[0]).sum()) == 2


def test_a_mask_selects_as_many_rows_as_it_has_ones(mask: tuple[Any, Any]) -> None:
    with known_values(torch, [mask]):
        assert tuple(meta(1, 5, 7)[mask[0]].shape) == (3, 7)
        assert tuple(meta(4, 5, 7)[:, mask[0][0]].shape) == (4, 3, 7)


def test_whole_numbers_serve_as_sizes_and_ends_of_slices() -> None:
    sizes = (meta(2, dtype=torch.int64), torch.tensor([2, 3]))
    with known_values(torch, [sizes]):
        rows, columns = sizes[0].unbind()
        assert tuple(meta(9, 4)[: rows * columns].shape) == (6, 4)
        assert tuple(torch.repeat_interleave(meta(2, 4), sizes[0], dim=0).shape) == (5, 4)


def test_what_is_made_of_constants_is_known_and_what_is_written_over_is_not() -> None:
    with known_values(torch), torch.device("meta"):
        numbers = torch.arange(4)
        assert numbers.flip(0).tolist() == [3, 2, 1, 0]
        filled = torch.zeros_like(meta(3, dtype=torch.int64))
        assert filled.sum().item() == 0
        filled[1:] = 2
        filled += 1
        assert filled.tolist() == [1, 3, 3]
        filled += meta(3, dtype=torch.int64)
        with pytest.raises(RuntimeError):
            filled.sum().item()


def test_what_follows_from_noise_is_not_made_up() -> None:
    with known_values(torch), pytest.raises((RuntimeError, NotImplementedError)):
        meta(3).sum().item()


def test_routing_is_assumed_only_where_a_class_asks_for_it() -> None:
    scores = meta(6, 4)
    with known_values(torch, shims=["routing"]):
        chosen = torch.topk(scores, 2, dim=-1)[1]
        assert chosen.flatten().bincount().tolist() == [6, 6]
    with known_values(torch), pytest.raises((RuntimeError, NotImplementedError)):
        torch.topk(scores, 2, dim=-1)[1].flatten().bincount().tolist()


def test_a_tensor_on_the_cpu_may_meet_one_on_meta() -> None:
    with known_values(torch):
        assert tuple((meta(2, 3) + torch.ones(3)).shape) == (2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: torch.nn.functional.linear(meta(18, 2304), meta(3840, 2560)),
            "mat1 and mat2 shapes cannot be multiplied (18x2304 and 2560x3840)",
        ),
        (
            lambda: torch.cat([meta(1, 4), meta(1, 5)], dim=0),
            "Sizes of tensors must match except in dimension 0. Expected size 4 but got size 5 for tensor number 1 in "
            "the list.",
        ),
        (
            lambda: torch.nn.functional.layer_norm(meta(1, 18, 2304), (2560,), meta(2560)),
            "Given normalized_shape=[2560], expected input with shape [*, 2560], but got input of size[1, 18, 2304]",
        ),
    ],
)
def test_what_fails_says_what_the_cpu_says(call: Any, message: str) -> None:
    with exact_errors(torch), pytest.raises(OpFailed) as failed:
        call()
    assert failed.value.message == message


def test_dtypes_that_the_cpu_refuses_are_refused_and_others_are_tried_once() -> None:
    half, other = meta(2, 4, dtype=torch.float16), meta(3, 4, dtype=torch.bfloat16)
    with exact_errors(torch) as mode:
        with pytest.raises(OpFailed, match="to have the same dtype"):
            torch.nn.functional.linear(half, other)
        with pytest.raises(OpFailed, match="to have the same dtype"):
            torch.nn.functional.linear(meta(2, 4, dtype=torch.int64), other)
        torch.nn.functional.rms_norm(meta(2, 4), (4,), meta(4, dtype=torch.bfloat16))
        assert len(mode.mixed) == 1
