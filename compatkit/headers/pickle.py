"""torch checkpoints (.ckpt, .pt, .pth, .bin) and plain pickles: names and shapes from the opcodes, nothing unpickled.

A torch checkpoint since 1.6 is a zip: a pickle names the tensors, every storage is a member. Before, it was a row of
pickles with the storages after them. Either way only the pickle and the zip's list of contents are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from compatkit.headers import torchzip
from compatkit.headers.picklecalls import LegacyFile, Noted, Storage, TorchMachine
from compatkit.headers.picklesymbols import Broken, Ended
from compatkit.headers.problems import corrupt, problem, refused, truncated
from compatkit.headers.statedict import StateDict, TooMuch
from compatkit.headers.suffixes import OPENED_AS, suffix
from compatkit.sources.naming import counted, shown
from compatkit.vocabulary import FileProblem, Header, HeaderError, Tensor

if TYPE_CHECKING:
    from compatkit.sources import Source

#: Bytes of a pickle; one of ten thousand tensors has 2,500,000.
MAX_PICKLE = 1 << 26

_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P"  # torch's mark, as LONG1
_FIX_CODE = (
    "Do not load it with torch.load(weights_only=False) or old programs. Delete it, or get the model as safetensors."
)
_FIX_CONVERT = "Get the model as safetensors, or convert it on a machine that trusts the file."
_KEEP = 20


def read(source: Source) -> Header:
    """The header of a torch checkpoint or a pickle of tensors.

    `Tensor.offset` is 0 where the bytes cannot be read as one run: packed, of the other byte order, or with strides.
    Raises `HeaderError`: `file/pickle`, `file/pickle-code`, `file/truncated`, `file/corrupt`, `file/not-a-model`.
    """
    head = source.read(0, 32)
    if head[:4] == torchzip.START:
        return _Zip(source).read()
    return _Row(source, head).read()


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.name, self.size = source.name, source.size
        self.noted = Noted()
        self.refusals: list[str] = []  # why torch.load(weights_only=True) will not have it
        self.metadata: dict[str, Any] = {}
        self.problems: list[FileProblem] = []

    def guarded(self, run: Callable[[], Any], where: str, base: int = 0) -> Any:
        """What `run` gives; a pickle that breaks is an error, and one that would have run code first is that error."""
        try:
            return run()
        except Broken as broken:
            what = f"{where} {broken} (byte {base + max(0, broken.at):,})"
            error = corrupt(self.name, what, offset=base + broken.at)
        except TooMuch as much:
            error = corrupt(self.name, f"{where} {much}")
        raise HeaderError(self._code(str(error.problem.message))) if self.noted.codes else error

    def _code(self, also: str = "") -> FileProblem:
        names, calls = list(self.noted.codes), self.noted.calls
        does, all_of_it = ("call", calls) if calls else ("import", names)
        rest = f", and {len(all_of_it) - 2:,} more" if len(all_of_it) > 2 else ""
        message = (
            f"{shown(self.name)} runs code when it is unpickled: it would {does} {' and '.join(all_of_it[:2])}{rest}"
        )
        message += f"; besides, {also}" if also else "; torch.load(weights_only=True) refuses it"
        return problem("file/pickle-code", message, _FIX_CODE, calls=calls[:_KEEP], names=names[:_KEEP])

    def header(self, machine: TorchMachine, content: Any, place: Callable[[Storage], int], data: int) -> Header:
        """The header of what a pickle built. `place` says where a storage lies (-1: nowhere), `data` its bytes."""
        state: StateDict = self.guarded(lambda: StateDict(machine, content), "its pickle")
        if not state.tensors:
            if self.noted.codes:
                raise HeaderError(self._code())
            what = f"a Python pickle (protocol {machine.protocol}) that holds no tensors: settings or other data"
            raise refused("file/pickle", f"{shown(self.name)} is {what}", "Get the file that holds the weights.")
        tensors: dict[str, Tensor] = {}
        strided = []
        for name, (dtype, shape, nbytes, storage, skip, is_strided) in state.tensors.items():
            try:
                name.encode()
            except UnicodeEncodeError:
                raise corrupt(self.name, f"its pickle holds {shown(name)}, which is half a character") from None
            start = place(storage)
            if is_strided:
                strided.append(name)
            tensors[name] = Tensor(dtype, shape, nbytes, 0 if is_strided or start < 0 else start + skip)
        self.metadata = {**state.scalars, **self.metadata, "pickle.protocol": machine.protocol}
        if state.container:
            self.metadata["pickle.container"] = state.container
        if strided:
            self.metadata["pickle.strided"] = strided[:_KEEP]
        self._judge(machine)
        problems = tuple(self.problems)
        return Header(self.name, "pickle", self.size, self.size - data, tensors, self.metadata, (self.name,), problems)

    def _judge(self, machine: TorchMachine) -> None:
        if self.noted.codes:
            self.problems.append(self._code())
            return
        if self.noted.refused:
            names = list(self.noted.refused)
            more = f" and {len(names) - 1:,} more that are" if len(names) > 1 else ", which is"
            self.refusals.append(f"it holds {names[0]}{more} no part of a plain state dict")
        elif machine.odd_opcode is not None:
            self.refusals.append(f"its pickle of protocol {machine.protocol} holds opcode {machine.odd_opcode:#04x}")
        if self.refusals:
            message = f"{shown(self.name)}: torch.load(weights_only=True), as ComfyUI loads it, refuses this file: "
            names = [*self.noted.refused][:_KEEP]
            self.problems.append(
                problem("file/pickle", message + self.refusals[0], _FIX_CONVERT, "warning", names=names)
            )


class _Zip(_Reader):
    """A checkpoint of torch since 1.6."""

    def read(self) -> Header:
        try:
            listing = torchzip.Listing(self.source)
        except torchzip.NoEnd:
            raise self._cut() from None
        pickles = [m for low, m in listing.members.items() if low.endswith("/data.pkl") and low.count("/") == 1]
        if len(pickles) != 1:
            if pickles:
                raise corrupt(
                    self.name, f"as a torch checkpoint, it holds {len(pickles):,} pickles of tensors, not one"
                )
            from compatkit.headers import sniff

            raise sniff.explain(self.source, self.source.read(0, sniff.HEAD))
        raw, base = listing.content(pickles[0], MAX_PICKLE)
        top = pickles[0].name[: -len("/data.pkl")]
        order = listing.members.get(f"{top}/byteorder".lower())
        swapped = order is not None and order.size == len("big")
        self.metadata["pickle.kind"] = "torch zip"
        if swapped:
            self.metadata["pickle.byteorder"] = "big"
        if f"{top}/constants.pkl".lower() in listing.members:
            self.metadata["pickle.kind"] = "TorchScript"
            self.refusals.append("it is a TorchScript archive, a program with its weights")
        machine = TorchMachine(raw, 0, self.noted)
        content = self.guarded(lambda: _whole(machine), "its data.pkl", max(0, base))
        places: dict[str, int] = {}
        data = 0
        for key, storage in machine.storages.items():
            member = listing.members.get(f"{top}/data/{key}".lower())
            if member is None:
                raise self._or_code(
                    corrupt(self.name, f"its pickle needs {shown(f'{top}/data/{key}')}, which is not in it")
                )
            if member.size < storage.nbytes:
                what = f"its {shown(member.name)} has {member.size:,} bytes, but {storage.nbytes:,} are needed"
                raise self._or_code(corrupt(self.name, what))
            data += member.packed
            places[key] = -1 if swapped else listing.place(member)
        inside = base if base >= 0 else -(1 << 62)
        return self.header(machine, content, lambda s: places.get(s.key, inside + s.at if s.at >= 0 else -1), data)

    def _or_code(self, error: HeaderError) -> HeaderError:
        return HeaderError(self._code(error.problem.message)) if self.noted.codes else error

    def _cut(self) -> HeaderError:
        """A zip without its list of contents. The pickle, which torch writes first, says how much is missing."""
        head = self.source.read(0, 1 << 16)
        name, start = torchzip.first_name(head)
        least = self.size + 22
        if name.lower().endswith("/data.pkl"):
            machine = TorchMachine(self.source.read(start, MAX_PICKLE), 0, self.noted)
            try:
                machine.run()
            except (Broken, Ended):
                pass
            else:
                least = max(least, start + machine.at + sum(s.nbytes for s in machine.storages.values()))
            if self.noted.codes:
                return HeaderError(self._code())
        elif OPENED_AS.get(suffix(self.name)) != "pickle" and b"data.pkl" not in head:
            from compatkit.headers import sniff

            return sniff.explain(self.source, head[: sniff.HEAD])
        what = "the list of contents, which a torch checkpoint has at its end, is not there"
        return truncated(self.name, self.size, least, what, exact=False)


class _Row(_Reader):
    """A checkpoint of torch before 1.6, or a pickle by itself."""

    def __init__(self, source: Source, head: bytes) -> None:
        super().__init__(source)
        self.legacy = _LEGACY in head

    def read(self) -> Header:
        limit = min(self.size, MAX_PICKLE)
        length = min(limit, self.source.chunk)
        while True:
            buffer = self.source.read(0, length)
            self.noted = Noted()
            try:
                return self._legacy(buffer) if self.legacy else self._plain(buffer)
            except Ended as ended:
                if length == limit:
                    raise self._endless(ended) from None
                length = min(limit, 4 * length)

    def _endless(self, ended: Ended) -> HeaderError:
        if self.noted.codes:
            return HeaderError(self._code())
        if self.size > MAX_PICKLE:
            what = f"{shown(self.name)} is a pickle that does not end within {MAX_PICKLE:,} bytes"
            return refused("file/pickle", f"{what}: its tensors are inside of it", _FIX_CONVERT)
        what = "its pickle has no end"
        return truncated(self.name, self.size, self.size + 1, what, exact=False, offset=ended.at)

    def _legacy(self, buffer: bytes) -> Header:
        def run() -> tuple[LegacyFile, dict[str, int]]:
            file = LegacyFile(buffer, self.noted)
            return file, file.places()

        file, places = self.guarded(run, "its row of pickles")
        end = places.pop("")
        self.metadata["pickle.kind"] = "torch legacy"
        if file.big_endian:
            self.metadata["pickle.byteorder"] = "big"
            places.clear()
        if end > self.size:
            if self.noted.codes:
                raise HeaderError(self._code())
            cut = f"its last storage ends at byte {end:,}"
            raise truncated(self.name, self.size, end, cut)
        if end < self.size:
            message = (
                f"{shown(self.name)}: {counted(self.size - end, 'byte')} follow its last tensor; loaders ignore them"
            )
            self.problems.append(problem("file/trailing-data", message, "", "info", data_end=end, size=self.size))
        return self.header(file.machine, file.content, lambda s: places.get(s.key, s.at), end - file.end)

    def _plain(self, buffer: bytes) -> Header:
        machine = TorchMachine(buffer, 0, self.noted)
        content = self.guarded(machine.run, "its pickle")
        self.metadata["pickle.kind"] = "pickle"
        header = self.header(machine, content, lambda s: s.at, 0)
        if self.noted.codes:
            return header
        others = tuple(p for p in header.problems if p.rule != "file/pickle")
        certain = OPENED_AS.get(suffix(self.name)) == "pickle" and suffix(self.name) != ".pkl"
        message = f"{shown(self.name)} is a plain Python pickle, not a file of torch.save: torch.load refuses it"
        mine = problem("file/pickle", message, _FIX_CONVERT, "error" if certain else "warning")
        return replace(header, problems=(*others, mine))


def _whole(machine: TorchMachine) -> Any:
    try:
        return machine.run()
    except Ended as ended:
        raise Broken(ended.at, "ends in the middle") from None
