"""The lane of weights to a GPU, with a pretended one: order, room in the ring, weights out of turn, no standstill."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from compatkit.dryrun.plan import Piece, Recipe  # noqa: E402
from compatkit.smoke import lane  # noqa: E402
from compatkit.smoke.fetch import Fetcher  # noqa: E402
from compatkit.smoke.weights import Weights  # noqa: E402
from tests.support.files import safetensors_bytes, safetensors_header  # noqa: E402

SIDE = 256
COUNT = 24


class Event:
    """An event of a device that is always done."""

    def __init__(self, **_: Any) -> None:
        self.recorded = False

    def record(self, _stream: Any = None) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded


class Stream:
    """A stream on which everything happens at once; it insists that events were recorded before they are waited for."""

    def __init__(self, *_: Any) -> None: ...

    def wait_event(self, event: Event) -> None:
        assert event.recorded

    def wait_stream(self, _: Any) -> None: ...


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The CPU, called a GPU."""
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: real(*a, **k))
    for name, value in {"Event": Event, "Stream": Stream}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(lane, "SLOT", 40_000)  # several slots for each weight, none of them whole
    monkeypatch.setattr(lane, "SLOTS", 4)
    monkeypatch.setattr(lane, "KEEP", 1000)
    return torch.device("cpu")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Fetcher, dict[str, Recipe], dict[str, Any]]:
    """A file of float32 matrices, its recipes, and what they hold."""
    values = {f"w{i}": np.full((SIDE, SIDE), i, np.float32) + np.arange(SIDE, dtype=np.float32) for i in range(COUNT)}
    values["small"] = np.arange(8, dtype=np.float32)
    header, _ = safetensors_header({n: ("F32", v.shape) for n, v in values.items()})
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(header, b"".join(v.tobytes() for v in values.values())))
    plan = {n: Recipe((Piece(n, v.shape),), v.shape) for n, v in values.items()}
    return Fetcher(Weights.open(str(path))), plan, values


def make(made: tuple[Any, Any, Any], device: Any, ring: int, **more: Any) -> lane.Lane:
    fetcher, plan, _ = made
    return lane.Lane(fetcher, plan, dict.fromkeys(plan, torch.float32), device, ring, **more)


@pytest.mark.parametrize("ring", [2 * SIDE * SIDE * 4, 5 * SIDE * SIDE * 4 + 1000, 1 << 24])
@pytest.mark.parametrize("asked", ["in order", "another order", "two at a time", "twice"])
def test_every_weight_arrives_whole_in_whatever_order(made: Any, device: Any, ring: int, asked: str) -> None:
    _, plan, values = made
    order = list(plan)
    wanted = {"another order": order[::-1], "twice": [n for n in order for _ in range(2)]}.get(asked, order)
    told = wanted if asked == "twice" else order
    road = make(made, device, ring)
    started = time.monotonic()
    road.start(told)
    if asked == "two at a time":
        for one, other in zip(wanted[::2], wanted[1::2], strict=False):
            taken = [(n, road.take(n)) for n in (one, other)]
            for n, tensor in taken:
                assert np.array_equal(tensor.numpy(), values[n]), n
                road.give(n)
    else:
        for n in wanted:
            assert np.array_equal(road.take(n).numpy(), values[n]), n
            road.give(n)
    road.end()
    road.close()
    assert time.monotonic() - started < 20, "the lane stood still"
    if asked in ("in order", "two at a time", "twice"):
        assert road.traffic.out_of_turn == 0


def test_a_run_that_ends_early_leaves_no_thread(made: Any, device: Any) -> None:
    road = make(made, device, 2 * SIDE * SIDE * 4)
    road.start(list(made[1]))
    road.take("w0")
    road.end()
    assert road._loader is None


def test_a_ring_without_room_for_the_largest_weight_is_refused(made: Any, device: Any) -> None:
    with pytest.raises(lane.TooSmall, match="one weight takes"):
        make(made, device, 1000, most=SIDE * SIDE * 4 - 1)
