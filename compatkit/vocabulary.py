"""The words every part of compatkit shares: header, component, stack, finding, report.

Nothing here imports anything of ours, reads a file or knows a model. All types are immutable; what exists in thousands
(`Tensor`) is a named tuple, the rest are frozen slotted classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, Literal, NamedTuple

from msgspec import Struct, field

Level = Literal["error", "warning", "info"]
Verdict = Literal["pass", "fail", "unknown"]

#: Levels from worst to mildest.
LEVELS: tuple[Level, ...] = ("error", "warning", "info")


class Tensor(NamedTuple):
    """One tensor as its file declares it.

    `dtype` is the format's own name ("BF16", "F8_E4M3", "Q4_K"). `shape` is in torch order for every format.
    `offset` counts bytes from the start of the file (of its shard), 0 if they do not stand there in one run; `shard`
    indexes `Header.shards`.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int = 0
    shard: int = 0

    @property
    def elements(self) -> int:
        """Number of elements the shape declares (1 for a scalar)."""
        return prod(self.shape)


class ValueRead(NamedTuple):
    """A small tensor whose bytes were read, beyond the header: which, how many bytes, and what they said."""

    tensor: str
    bytes: int
    says: str = ""


class FileProblem(NamedTuple):
    """Why a file cannot be believed: a `file/…` finding in the making.

    `rule` is the finding's id ("file/truncated"), `message` one sentence that says what, where and which bytes,
    `fix` what to do, `evidence` the numbers.
    """

    rule: str
    message: str
    fix: str = ""
    evidence: Mapping[str, Any] = {}
    level: Level = "error"


class Unread(NamedTuple):
    """What of a header was not read because it stands far behind the rest: `at` is how far the reader came, `tensors`
    how many tensors the file says it has, `before` what stands between."""

    at: int
    tensors: int
    before: str


class Header(Struct, frozen=True):
    """What a model file says about itself before its data.

    `metadata` maps keys to plain values: for safetensors the strings of `__metadata__`, for GGUF the typed values (an
    array longer than the reader keeps is an `ArraySummary`). `shards` names the files that make up the whole (one for
    a plain file). `header_bytes` counts all bytes before the data, over all shards. `problems` are findings that do not
    prevent reading (a missing shard, say); a file that cannot be read at all raises `HeaderError` instead. `unread`
    is set only where a part was asked for: then `tensors` is empty and `header_bytes` 0.
    """

    source: str
    format: str
    size: int
    header_bytes: int
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    shards: tuple[str, ...] = ()
    problems: tuple[FileProblem, ...] = ()
    unread: Unread | None = None


class ArraySummary(NamedTuple):
    """A GGUF array that was walked but not kept: element type and count (a vocabulary has 150,000 entries)."""

    type: str
    length: int


class HeaderError(Exception):
    """A source whose header cannot be read. Carries the `FileProblem` to report."""

    def __init__(self, problem: FileProblem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class SourceError(Exception):
    """A source that cannot be reached at all (no such file, not permitted). Exit code 2 if nothing was examined.

    `problem` is the finding it makes beside files that could be read, where it is known better than "unreadable".
    """

    def __init__(self, message: str, problem: FileProblem | None = None) -> None:
        super().__init__(message)
        self.problem = problem


class RulesError(Exception):
    """Rules that cannot be used: the text says which file, line and column, and what is wrong. Exit code 2."""


class Quantization(Struct, frozen=True):
    """How the weights are stored. `scheme` is "none", "mixed" or a packing's id; `dtypes` counts tensors by dtype name.

    `bits` is effective bits per logical parameter, scales and other companions counted, `None` if it cannot be told.
    `formats` counts packed weights by packing: what a mix is made of.
    """

    scheme: str
    dtypes: Mapping[str, int]
    bits: float | None = None
    notes: tuple[str, ...] = ()
    formats: Mapping[str, int] = field(default_factory=dict)


class Candidate(Struct, frozen=True):
    """One reading of a header that was tried: family, layout, and what did not fit."""

    family: str
    layout: str
    prefix: str
    matched: int
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    mismatched: tuple[str, ...]
    reason: str = ""


class Component(Struct, frozen=True):
    """One model found in a source.

    `family` is the oldest of header-identical families, the others stand in `also`; `None` means unknown.
    `tensors` are those of this component, under their names in the file. `declared` is what a config beside the file
    says of it: "class", and for a part of a diffusers folder "part", "pipeline". `values_read` are the small tensors
    that were looked into.
    """

    source: str
    format: str
    size: int
    header_bytes: int
    role: str
    family: str | None
    also: tuple[str, ...]
    layout: str
    prefix: str
    quantization: Quantization
    parameters: int
    key_groups: Mapping[str, int]
    loads_as: Mapping[str, str | None]
    facts: Mapping[str, Any]
    evidence: tuple[str, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    runner_up: Candidate | None = None
    missing: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    problems: tuple[FileProblem, ...] = ()
    title: str = ""
    reason: str = ""
    assumed: bool = False
    declared: Mapping[str, str] = field(default_factory=dict)
    values_read: tuple[ValueRead, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()

    @property
    def families(self) -> tuple[str, ...]:
        """Every family the header allows, oldest first."""
        return ((self.family,) if self.family else ()) + self.also


class Runtime(Struct, frozen=True):
    """A loader that would open the set, with its version or commit where the user gave one."""

    name: str
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name


class Place(NamedTuple):
    """Where a file that names sources names one: a path as the user gave it, and a line from 1."""

    file: str
    line: int


class Policy(Struct, frozen=True):
    """What the owner of a stack allows, whatever would run.

    `quantization` maps a role ("" for all others) to the packings it may have, `size` is a budget in bytes for all
    files, `licenses` are the licences a file may be under; empty or `None`: anything goes. `rules` are folders of
    further rules.
    """

    fail_on: str = "error"
    strict: bool = False
    quantization: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    size: int | None = None
    licenses: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


class NodeUse(Struct, frozen=True):
    """One node on the way to a sampler of a workflow: in words, what the rules say of its class, its wired inputs.

    `rule` is empty for a class that nobody described.
    """

    label: str
    cls: str
    rule: Mapping[str, Any]
    inputs: frozenset[str] = frozenset()


class LoadUse(Struct, frozen=True):
    """One file that a node loads: what for, what of it is used, and the components (by index) that it holds.

    `use` is the role the node loads it as ("checkpoint" for a whole one), `lacks` the wire types that are used of it
    and that it cannot give.
    """

    node: NodeUse
    components: tuple[int, ...]
    use: str
    lacks: tuple[str, ...] = ()


class Wiring(Struct, frozen=True):
    """How a workflow brings the components of a set together in one sampler.

    `index` is the place of each component in the whole report. `own` maps an encoder's index to the diffusion model of
    its own file, where another one is sampled with. `leftover`: the latent still holds noise; `decoded`: it goes
    straight into a decoder; `unclear`: nodes whose models could not be followed. `model_only`: LoRAs (by
    index) that no text encoder is loaded through.
    """

    sampler: NodeUse
    index: tuple[int, ...] = ()
    nodes: tuple[NodeUse, ...] = ()
    latents: tuple[NodeUse, ...] = ()
    loads: tuple[LoadUse, ...] = ()
    own: Mapping[int, Component] = field(default_factory=dict)
    leftover: bool = False
    decoded: bool = False
    unclear: tuple[str, ...] = ()
    model_only: frozenset[int] = frozenset()


class Stack(Struct, frozen=True):
    """A set of components to judge together, and how the user means to run them.

    `complete` says that the set is meant to be all there is: a part that its models need and that is absent is an
    error. `locked`: its files were compared with a lock. `licenses` maps sources to the licence their owner names.
    `wiring`: the set is what one sampler of a workflow is given.
    """

    components: tuple[Component, ...]
    runtimes: tuple[Runtime, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    required_roles: tuple[str, ...] = ()
    complete: bool = False
    locked: bool = False
    policy: Policy | None = None
    licenses: Mapping[str, str] = field(default_factory=dict)
    wiring: Wiring | None = None

    def by_role(self, role: str) -> Iterator[tuple[int, Component]]:
        """(index, component) of every component that plays `role`."""
        return ((i, c) for i, c in enumerate(self.components) if c.role == role)


class Finding(Struct, frozen=True):
    """One thing a check found. `components` are indexes into the report's components."""

    rule: str
    level: Level
    components: tuple[int, ...]
    message: str
    predicts: Mapping[str, str] = field(default_factory=dict)
    fix: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)


class NotChecked(NamedTuple):
    """A check that did not run, and why. `blocks`: both its sides are in the set, so the verdict is unknown."""

    rule: str
    why: str
    blocks: bool = False


class Cost(Struct, frozen=True):
    """What an answer cost: network requests, bytes read from the network, seconds of wall time."""

    requests: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Report(Struct, frozen=True):
    """The answer about a set.

    `places` says where a stack file names each source ("" stands for the set as a whole); `policy` is what it sets.
    `smoke` holds the numbers of a smoke test by stage, as JSON has them.
    """

    verdict: Verdict
    judged: tuple[str, ...]
    components: tuple[Component, ...]
    findings: tuple[Finding, ...]
    adapters: tuple[Mapping[str, Any], ...] = ()
    checked: tuple[str, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()
    cost: Cost = Cost()
    headline: str = ""
    places: Mapping[str, Place] = field(default_factory=dict)
    policy: Policy | None = None
    smoke: Mapping[str, Any] = field(default_factory=dict)

    def worst(self) -> Level | None:
        """The worst level among the findings, `None` if there are none."""
        for level in LEVELS:
            if any(f.level == level for f in self.findings):
                return level
        return None
