"""What is different about a file that is not on this machine: what of it is worth a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from compatkit.headers.small import read_small, small_runs
from compatkit.sources.naming import base_name, counted
from compatkit.vocabulary import Component, Header, NotChecked

if TYPE_CHECKING:
    from compatkit.sources import Source

#: Markers are a few words of JSON. Larger tensors only tell relatives apart that the header leaves open, and it may.
MARKER_BYTES = 1 << 10
#: So many requests for markers at most; a mix of packings may have them spread over the whole file.
MARKER_REQUESTS = 8


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
