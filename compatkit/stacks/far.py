"""What is different about a file that is not on this machine: what of it is worth a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from compatkit.headers.small import read_small, small_runs
from compatkit.sources.naming import base_name, counted
from compatkit.vocabulary import Component, Header, NotChecked, Tensor

if TYPE_CHECKING:
    from compatkit.sources import Source

#: Markers are a few words of JSON. Larger tensors only tell relatives apart that the header leaves open, and it may.
MARKER_BYTES = 1 << 10
#: So many requests for markers at most; a mix of packings may have them spread over the whole file.
MARKER_REQUESTS = 8

#: So many for the alphas of a LoRA: writers that sort by dtype keep them together, others beside every module.
ALPHA_REQUESTS = 2


class FarScalars:
    """Reads the single numbers of one far file, if a request or two bring all of them; else gives no bytes."""

    def __init__(self, header: Header, source: Source) -> None:
        self.header = header
        self.source = source
        self.near: bool | None = None

    def __call__(self, tensor: Tensor) -> bytes:
        if self.near is None:
            self.near = self._fetched()
        return self.source.read(tensor.offset, tensor.nbytes) if self.near else b""

    def _fetched(self) -> bool:
        numbers = [n for n, t in self.header.tensors.items() if t.elements == 1]
        runs = small_runs(self.header, numbers)
        if len(runs) > ALPHA_REQUESTS or any(t.shard for run in runs for _, t in run):
            return False
        for run in runs:  # all at once: after this no number needs a request of its own
            first, last = run[0][1], run[-1][1]
            self.source.read(first.offset, last.offset + last.nbytes - first.offset)
        return True


class FarReader:
    """Reads the small tensors of one far file, as far as they are worth it; notes what it left."""

    def __init__(self, header: Header, source: Source) -> None:
        self.header = header
        self.source = source
        self.read = self.left = 0

    def __call__(self, names: Iterable[str]) -> Mapping[str, bytes]:
        tensors = self.header.tensors
        marks = [n for n in names if n in tensors and tensors[n].nbytes <= MARKER_BYTES]
        runs = small_runs(self.header, marks)
        near = [name for run in runs[:MARKER_REQUESTS] for name, _ in run]
        self.read += len(near)
        self.left += sum(len(run) for run in runs[MARKER_REQUESTS:])
        return read_small(self.header, near, self.source)

    def noted(self, components: list[Component]) -> list[Component]:
        """The components, with what was left unread among what was not checked."""
        if not self.left:
            return components
        why = (
            f"{base_name(self.header.source)}: {self.read:,} of {counted(self.read + self.left, 'packing marker')} "
            "were read, the others are spread over the file (--full reads them)"
        )
        note = NotChecked("quant/needs-loader", why)
        return [replace(c, not_checked=(*c.not_checked, note)) for c in components]
