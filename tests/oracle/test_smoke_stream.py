"""The streamed forward on small modules: the numbers of a loaded model, whatever a module does with its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from compatkit.dryrun.plan import Piece, Recipe  # noqa: E402
from compatkit.smoke import stream  # noqa: E402
from compatkit.smoke.fetch import Fetcher, Patch  # noqa: E402
from compatkit.smoke.record import FP16_MAX, Recorder  # noqa: E402
from compatkit.smoke.stream import FromFile, Streamed, dtypes_of, order_of  # noqa: E402
from compatkit.smoke.weights import Weights  # noqa: E402
from tests.support.files import safetensors_bytes, safetensors_header  # noqa: E402

WIDTH = 32
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Block(torch.nn.Module):
    """What modules do with weights: call a layer, use another's weight, add a bare parameter, use one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(100, WIDTH)
        self.attention = torch.nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.gate, self.up = torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = torch.nn.Linear(2 * WIDTH, WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.pad = torch.nn.Parameter(torch.randn(1, WIDTH))
        self.register_buffer("table", torch.randn(WIDTH))
        self.register_buffer("made", torch.ones(WIDTH), persistent=False)

    def forward(self, tokens: Any) -> Any:
        x = self.embed(tokens).to(self.pad.device)
        x = torch.cat([x, self.pad[None].expand(len(x), 1, -1)], dim=1)
        x = x + self.attention(self.norm(x), self.norm(x), self.norm(x), need_weights=False)[0] * self.table * self.made
        h = torch.nn.functional.silu(self.gate(x)) * torch.nn.functional.linear(x, self.up.weight)
        x = x + self.down(h)
        return x @ self.embed.weight.t()


def write(path: Path, state: dict[str, Any]) -> Path:
    header, _ = safetensors_header({n: (NAMES[t.dtype], tuple(t.shape)) for n, t in state.items()})
    data = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in state.values())
    text = json.dumps(header).encode()
    path.write_bytes(safetensors_bytes(text + b" " * (-len(text) % 8), data))  # data that lie as writers lay them
    return path


def plan_of(state: dict[str, Any]) -> dict[str, Recipe]:
    return {n: Recipe((Piece(n, tuple(t.shape)),), tuple(t.shape)) for n, t in state.items()}


class Set:
    """A loaded model, and the same one streamed from a file."""

    def __init__(
        self, path: Path, kind: Any = Block, dtype: Any = torch.bfloat16, stored: Any = torch.bfloat16
    ) -> None:
        torch.manual_seed(0)
        self.loaded = kind().to(dtype).eval()
        state = {n: t.detach().to(stored) for n, t in self.loaded.state_dict().items()}
        self.loaded.load_state_dict({n: t.to(dtype) for n, t in state.items()})
        self.plan = plan_of(state)
        self.weights = Weights.open(str(write(path, state)))
        with torch.device("meta"):
            self.module = kind().to(dtype).eval().requires_grad_(False)
        for inner in self.module.modules():  # what a class computes when it is made is real
            for name in inner._non_persistent_buffers_set:
                inner._buffers[name] = torch.ones(WIDTH, dtype=dtype)

    def streamed(self, patches: Any = None) -> Streamed:
        fetcher = Fetcher(self.weights, patches)
        return Streamed(self.module, self.plan, FromFile(fetcher, self.plan, dtypes_of(self.module)))


@pytest.fixture
def tokens() -> Any:
    return torch.tensor([[1, 5, 99, 5]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("table", [1 << 24, 1])
def test_a_streamed_model_gives_what_a_loaded_one_gives(
    tmp_path: Path, tokens: Any, dtype: Any, stored: Any, table: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_TABLE", table)  # 1: every embedding is read by rows
    both = Set(tmp_path / "m.safetensors", dtype=dtype, stored=stored)
    with torch.no_grad():
        wanted = both.loaded(tokens)
    run = both.streamed()
    found = run.run(lambda: both.module(tokens))
    assert torch.equal(found.output, wanted)
    assert all(p.device.type == "meta" for p in both.module.parameters()), "weights were left in the module"
    assert "pad" in found.order
    assert found.order.index("gate.weight") < found.order.index("down.weight")


def test_weights_of_the_dtype_of_the_computation_are_views_of_the_file(tmp_path: Path) -> None:
    both = Set(tmp_path / "m.safetensors")
    fetcher = Fetcher(both.weights)
    taken = fetcher.tensor(both.plan["gate.weight"], torch.bfloat16)
    assert taken.data_ptr() == both.weights.raw("gate.weight").ctypes.data
    assert fetcher.tensor(both.plan["gate.weight"], torch.float32).data_ptr() != taken.data_ptr()


def test_the_order_of_weights_is_learned_without_any(tmp_path: Path, tokens: Any) -> None:
    both = Set(tmp_path / "m.safetensors")
    with torch.device("meta"):
        module = Block().eval()
    order = order_of(module, lambda: module(tokens.to("meta")))
    found = both.streamed().run(lambda: both.module(tokens))
    assert [n for n in order if n != "embed.weight"] == [n for n in found.order if n != "embed.weight"]


def test_a_parameter_without_values_in_the_file_is_named(tmp_path: Path) -> None:
    both = Set(tmp_path / "m.safetensors")
    del both.plan["down.bias"]
    with pytest.raises(KeyError, match=r"no values for down\.bias"):
        both.streamed()


def test_a_counter_of_training_need_not_be_in_the_file(tmp_path: Path) -> None:
    class Normed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = torch.nn.BatchNorm1d(4)

        def forward(self, x: Any) -> Any:
            return self.bn(x)

    module = Normed().eval()
    state = {n: t for n, t in module.state_dict().items() if t.is_floating_point()}
    weights = Weights.open(str(write(tmp_path / "f.safetensors", state)))
    with torch.device("meta"):
        bare = Normed().eval().requires_grad_(False)
    plan = plan_of(state)
    run = Streamed(bare, plan, FromFile(Fetcher(weights), plan, dtypes_of(bare)))
    x = torch.randn(3, 4)
    assert torch.equal(run.run(lambda: bare(x)).output, module(x).detach())


def test_rows_of_several_tensors_make_one(tmp_path: Path) -> None:
    q, kv = torch.randn(4, 8), torch.randn(6, 8)
    weights = Weights.open(str(write(tmp_path / "f.safetensors", {"q": q, "kv": kv})))
    recipe = Recipe((Piece("kv", (6, 8), 3, 3), Piece("q", (4, 8)), Piece("kv", (6, 8), 0, 3)), (10, 8))
    assert torch.equal(Fetcher(weights).tensor(recipe, torch.float32), torch.cat([kv[3:], q, kv[:3]]))


def test_a_patch_changes_only_its_rows_wherever_they_go(tmp_path: Path) -> None:
    whole = torch.zeros(12, 8)
    weights = Weights.open(str(write(tmp_path / "f.safetensors", {"qkv": whole})))

    def add(values: Any, first: int) -> None:
        values += torch.arange(first, first + len(values))[:, None] + 1

    fetcher = Fetcher(weights, {"qkv": [Patch(5, 4, add)]})  # rows 5 … 8 become 1 … 4
    expected = torch.zeros(12)
    expected[5:9] = torch.tensor([1.0, 2, 3, 4])
    for start, rows in ((0, 4), (4, 4), (8, 4), (0, 12), (6, 2)):
        made = fetcher.tensor(Recipe((Piece("qkv", (12, 8), start, rows),), (rows, 8)), torch.float32)
        assert torch.equal(made[:, 0], expected[start : start + rows]), (start, rows)


class Products(torch.nn.Module):
    """A gated product whose factors fit float16 and whose result does not; a norm that squares in float32."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(WIDTH, WIDTH, bias=False), torch.nn.Linear(WIDTH, WIDTH, bias=False)
        torch.nn.init.constant_(self.a.weight, factor)
        torch.nn.init.constant_(self.b.weight, factor)

    def forward(self, x: Any) -> Any:
        y = self.a(x) * self.b(x)
        squares = y.float().pow(2).mean()
        return (y.float() * torch.rsqrt(squares + 1e-6)).to(y.dtype)


@pytest.fixture
def recorded() -> Any:
    def run(module: Any, x: Any) -> Any:
        recorder = Recorder(x.dtype)
        with torch.no_grad(), recorder.watching(module) as record:
            module(x)
        return record

    return run


def test_an_overflow_in_a_product_between_layers_is_seen(recorded: Any) -> None:
    record = recorded(Products(10.0).bfloat16(), torch.ones(1, WIDTH, dtype=torch.bfloat16))
    (place,) = record.above(FP16_MAX)
    assert (place.module, place.op) == ("", "mul")
    assert place.max_abs == pytest.approx(102400, rel=0.01)
    assert record.broken is None


def test_what_stays_in_float32_is_no_alarm(recorded: Any) -> None:
    record = recorded(Products(1.0).bfloat16(), torch.full((1, WIDTH), 2.0, dtype=torch.bfloat16))
    assert not record.above(FP16_MAX), "squares of 4096 in float32 are larger and are not the dtype's"


def test_the_first_operation_that_makes_a_nan_is_named(recorded: Any) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).bfloat16()
    with torch.no_grad():
        module[1].weight[2, 3] = float("nan")
    record = recorded(module, torch.ones(2, 4, dtype=torch.bfloat16))
    assert record.broken is not None
    assert record.broken.module == "1"
    assert record.broken.nonfinite == 2


@pytest.mark.parametrize("lowest", [float("-inf"), torch.finfo(torch.bfloat16).min])
def test_a_mask_is_no_overflow(recorded: Any, lowest: float) -> None:
    class Masked(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            mask = torch.zeros(4, 4, dtype=x.dtype).masked_fill(torch.ones(4, 4).triu(1).bool(), lowest)
            return torch.softmax(x @ x.t() + mask, -1)

    record = recorded(Masked(), torch.randn(4, 4).bfloat16())
    assert record.broken is None
    assert not record.above(1000)


def test_memory_that_nothing_was_written_to_is_not_judged(recorded: Any) -> None:
    class Empty(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            out = torch.empty_like(x)
            out.view(torch.uint8).fill_(255)  # NaN, seen by nobody in this dtype
            return out.copy_(x)

    assert recorded(Empty(), torch.ones(4, dtype=torch.bfloat16)).broken is None


def test_unpacking_weights_is_not_recorded(tmp_path: Path, tokens: Any) -> None:
    both = Set(tmp_path / "m.safetensors", dtype=torch.float32, stored=torch.bfloat16)
    recorder = Recorder(torch.float32)
    both.streamed().run(lambda: both.module(tokens), recorder)
    weights = {tuple(p.shape) for p in both.module.parameters() if p.dim() == 2}
    assert recorder.record.operations > 5
    assert not any(place.op == "copy_" for place in recorder.record.places.values()), weights
    assert np.isfinite([p.max_abs for p in recorder.record.places.values()]).all()
