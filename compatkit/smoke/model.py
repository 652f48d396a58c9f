"""A component that can be run: its class without weights, the weights of its file, and the way between the two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from compatkit.dryrun.build import Built, build
from compatkit.dryrun.forward import forward
from compatkit.knowledge.store import Knowledge
from compatkit.smoke.fetch import Fetcher, Patch
from compatkit.smoke.ggufvalues import undone
from compatkit.smoke.record import Recorder
from compatkit.smoke.stream import FromFile, Result, Streamed, Supply, dtypes_of, order_of
from compatkit.smoke.weights import Weights
from compatkit.vocabulary import Component

if TYPE_CHECKING:
    import torch

#: What the CUDA context and its libraries take beside what torch allocates, with room for what differs by driver.
CONTEXT = 900 << 20
#: What activations and weights being unpacked take, beside the ring.
WORK = 900 << 20


class Unrunnable(Exception):
    """A component that cannot be run here although its class is known; the text says why, in one sentence."""


class Model(Struct):
    """A component ready to run. Close it after use; one run at a time."""

    built: Built
    weights: Weights
    streamed: Streamed
    supply: Supply
    dtype: torch.dtype
    learn: Callable[[str], list[str]]
    learned: set[str] = field(default_factory=set)

    def inputs(self, **sizes: Any) -> dict[str, Any]:
        """The smallest valid inputs of the class, or those asked for, on the device of the run (`Built.inputs`)."""
        return self.built.inputs(device=str(self.supply.device), **sizes)

    def run(self, inputs: Mapping[str, Any], call: str | None = None, *, record: bool = True) -> Result:
        """Call the class. `Result.output` is the tensor that matters."""
        built = self.built
        name = call or built.usual_call
        if self.supply.device.type != "cpu" and name not in self.learned:
            self.learned.add(name)
            self.streamed.order = self.learn(name) or self.streamed.order
        recorder = Recorder(self.dtype) if record else None
        return self.streamed.run(lambda: built.output(built.method(name)(**inputs), name), recorder)

    def close(self) -> None:
        """Give the file and the device's memory back."""
        getattr(self.supply, "close", lambda: None)()
        self.weights.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_model(
    component: Component,
    knowledge: Knowledge,
    *,
    source: str | None = None,
    dtype: Any = None,
    device: str = "cpu",
    vram: int | None = None,
    patches: Mapping[str, list[Patch]] | None = None,
    family: str | None = None,
) -> Model:
    """A component made ready to run with the weights of its file.

    Args:
        source: where its file is, if the component's own name leaves something out.
        dtype: what is computed with, a torch dtype or its name; bfloat16 if none is given.
        device: "cpu" or a CUDA device.
        vram: bytes of GPU memory that the process may take in all.
        patches: changes to stored weights (LoRAs), by the name in the file.
        family: one of header-identical families.

    Raises:
        NoClass, EnvironmentProblem: as `build`.
        Unrunnable: the file lacks weights the class needs, or the device cannot be used.
        Undecodable: a packing that is not known here.
    """
    import torch

    built = build(component, knowledge, dtype=dtype, tables="cpu", family=family)
    weights = Weights.open(source or component.source)
    try:
        where = torch.device(device)
        if where.type == "cuda":
            _usable(where)
            where = torch.device("cuda", where.index or 0)  # parts of torch take no device without its number
            _bounded(where, vram)
            _tables_to(built.module, where)
        fetcher = Fetcher(weights, _together(undone(weights.header, knowledge.table("gguf_values")), patches or {}))
        dtypes = dtypes_of(built.module)
        plan = {n: r for n, r in built.plan.items() if all(p.source in weights.header.tensors for p in r.pieces)}
        supply: Supply
        if where.type == "cuda":
            from compatkit.smoke.lane import Lane

            known = {n: d for n, d in dtypes.items() if n in plan}
            most = None if vram is None else max(64 << 20, vram - CONTEXT - WORK)
            supply = Lane(fetcher, plan, known, where, most=most)
        else:
            supply = FromFile(fetcher, plan, dtypes)
        try:
            streamed = Streamed(built.module, plan, supply, built.tied)
        except KeyError as e:
            raise Unrunnable(f"{e.args[0]}{_packing(component)}") from None
    except BaseException:
        weights.close()
        raise

    def learn(call: str) -> list[str]:
        on_meta = build(component, knowledge, dtype=dtype, tables="meta", family=family)
        order = order_of(on_meta.module, lambda: forward(on_meta, call=call), on_meta.tied)
        return [name for name in order if name in plan]

    return Model(built, weights, streamed, supply, built.dtype, learn)


def _together(*sets: Mapping[str, list[Patch]]) -> dict[str, list[Patch]]:
    """All changes, in the order given."""
    out: dict[str, list[Patch]] = {}
    for some in sets:
        for name, made in some.items():
            out.setdefault(name, []).extend(made)
    return out


def _packing(component: Component) -> str:
    """What a missing weight may be due to."""
    scheme = component.quantization.scheme
    return "" if scheme in ("none", "mixed") else f": weights packed as {scheme} may have it under other names"


def _usable(device: torch.device) -> None:
    import torch

    if not torch.cuda.is_available():
        raise Unrunnable(f"torch {torch.__version__} sees no CUDA device here")
    if (device.index or 0) >= torch.cuda.device_count():
        raise Unrunnable(f"there is no {device}: this machine has {torch.cuda.device_count()} CUDA device(s)")


def _bounded(device: torch.device, vram: int | None) -> None:
    """Let torch allocate no more than what is left of `vram` beside the context."""
    import torch

    if vram is None:
        return
    total = torch.cuda.get_device_properties(device).total_memory
    if vram <= CONTEXT:
        raise Unrunnable(f"--vram must be more than the {CONTEXT / 1e9:.1f} GB that CUDA itself takes")
    torch.cuda.set_per_process_memory_fraction(min(1.0, (vram - CONTEXT) / total), device)


def _tables_to(module: torch.nn.Module, device: torch.device) -> None:
    """Bring what the class computed when it was made (rotary tables) to the device."""
    for inner in module.modules():
        for name, buffer in inner._buffers.items():
            if buffer is not None and buffer.device.type == "cpu":
                inner._buffers[name] = buffer.to(device)
