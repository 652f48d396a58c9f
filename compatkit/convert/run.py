"""One conversion from beginning to end: read, plan, write beside, verify, put in place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from compatkit import __version__, adapters
from compatkit.adapters.base import Base, of_component, of_family
from compatkit.adapters.coverage import coverage
from compatkit.adapters.keys import Spellings, spellings
from compatkit.adapters.speller import Speller, Unspellable
from compatkit.convert import record as records
from compatkit.convert import write
from compatkit.convert.build import Builder
from compatkit.convert.changes import OUTER_INNER, Adapter, Change, read_changes
from compatkit.convert.cut import Refused
from compatkit.convert.plan import Target, plan
from compatkit.convert.record import Record
from compatkit.convert.values import Unreadable, Value, raw
from compatkit.convert.verify import differences
from compatkit.fetch.written import Exists, beside
from compatkit.headers import open_header
from compatkit.knowledge.store import Knowledge
from compatkit.sources.local import LocalSource
from compatkit.sources.naming import base_name, closest, shown
from compatkit.sources.network import Network
from compatkit.sources.open import is_remote, open_source, shown_name
from compatkit.stacks.files import opened, parse_request
from compatkit.vocabulary import Component, Header, HeaderError, SourceError, Tensor

if TYPE_CHECKING:
    from compatkit.sources import Source

_PEFT_FILE, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_LARGEST_CONFIG = 1 << 20


class Result(Struct):
    """What was written: counts of tensors and modules, and what had to be done to them."""

    output: str
    source: str
    to: str
    style: str
    base: str
    keys_before: int
    keys_after: int = 0
    modules: int = 0
    joined: int = 0
    divided: int = 0
    wider: int = 0
    verified: int = 0
    notes: list[str] = field(default_factory=list)
    read: dict[str, tuple[int, int]] = field(default_factory=dict)


def convert(
    lora: str,
    *,
    to: str,
    output: str,
    base: str | Base | None,
    knowledge: Knowledge,
    force: bool = False,
    network: Network,
) -> Result:
    """Write an adapter in another convention's names.

    Args:
        lora: a safetensors file, on disk or elsewhere, or a folder of PEFT's.
        to: `id` of an entry of `writes` in `rules/adapters/spellings.yaml`.
        output: where; its folder must be there.
        base: a file, a family's id or title, or the base itself; None: what the adapter's own tensors say.
        knowledge: the rules.
        force: replace a file that is there.
        network: through which sources elsewhere are read.

    Raises:
        SourceError: a file is not there, is no model, or an argument is not understood.
        Refused: it cannot be converted without losing something; the sentence names the module.
        Exists: the output is there.
        OSError: it cannot be written.
    """
    if not force and os.path.lexists(output):
        raise Exists(output)
    spelled = spellings(knowledge.adapters("spellings"))
    source, config = _open(lora, network)
    with source:
        try:
            header = open_header(source)
        except HeaderError as e:
            raise SourceError(e.problem.message) from None
        if header.format != "safetensors":
            raise SourceError(f"{shown(source.name)}: only safetensors files are converted, this is {header.format}")
        component = adapters.recognise(header, knowledge)
        if component is None:
            raise SourceError(f"{shown(source.name)}: none of its tensors is an adapter's")
        held = base if isinstance(base, Base) else _base(base, component, knowledge, network)
        if not is_remote(lora):
            return _converted(source, header, component, config, held, to, output, force, knowledge, spelled)
        with write.spooled(source, output) as path, LocalSource(path) as copy:
            header = open_header(copy)
            return _converted(copy, header, component, config, held, to, output, force, knowledge, spelled)


def _open(lora: str, network: Network) -> tuple[Source, Mapping[str, Any] | None]:
    """The file, and the `adapter_config.json` beside one of PEFT's."""
    if not is_remote(lora) and Path(lora).is_dir():
        lora = str(Path(lora) / _PEFT_FILE)
    source = open_source(parse_request(lora).source, network=network)
    if base_name(source.name.replace("\\", "/")) != _PEFT_FILE:
        return source, None
    beside = source.sibling(_PEFT_CONFIG, _LARGEST_CONFIG)
    if beside is None:
        return source, None
    with beside:
        text = beside.read(0, min(beside.size, _LARGEST_CONFIG))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise SourceError(f"{_PEFT_CONFIG} beside {shown(source.name)} is not JSON: its alpha is needed") from None
    return source, found if isinstance(found, dict) else None


def _base(text: str | None, lora: Component, knowledge: Knowledge, network: Network) -> Base:
    """The base that the names and rows are those of."""
    if text is None:
        targets = [str(f) for f in lora.facts.get("targets") or ()]
        owners = list(dict.fromkeys(knowledge.owner(f) for f in targets))
        told = records.base(lora.metadata)
        if told and knowledge.has_family(told):
            owners = [told]
        elif len(owners) > 1 and any(set(owners) <= set(kin) for kin in knowledge.adapters("spellings")["kin"]):
            owners = owners[:1]  # relatives: what has the same modules has the same names
        if len(owners) != 1 or lora.facts.get("targets_sure") == "metadata":
            some = ", ".join(owners[:4]) + (", …" if len(owners) > 4 else "")
            why = f"it may be for {some}" if owners else "what it was made for is not known"
            raise SourceError(f"give the base model, a file or a family, with --base: {why}")
        text = owners[0]
    family = _family(text, knowledge)
    if family is not None:
        base = of_family(knowledge.owner(family), knowledge)
        if base is None or base.card.get("role") != "diffusion":
            raise SourceError(f"--base {text}: {family} is not a diffusion model whose sizes are known")
        return base
    if not is_remote(text) and not Path(text).exists():
        close = closest(text, knowledge.members())
        hint = f"; did you mean the family {close!r}?" if close else "; `compatkit rules list` names the families"
        raise SourceError(f"--base {text}: there is no such file and no such family{hint}")
    found = [c for c in opened(parse_request(text), knowledge, network=network) if c.role == "diffusion"]
    known = [base for c in found if (base := of_component(c, knowledge)) is not None]
    if not known:
        raise SourceError(f"--base {shown_name(text)}: no diffusion model is recognised in it")
    return known[0]


def _family(text: str, knowledge: Knowledge) -> str | None:
    """A family by its id, or by its title in any case."""
    if knowledge.has_family(text):
        return text
    word = text.strip().lower()
    return next((f for f in knowledge.members() if str(knowledge.family(f).get("title") or "").lower() == word), None)


def _converted(
    source: Source,
    header: Header,
    component: Component,
    config: Mapping[str, Any] | None,
    base: Base,
    to: str,
    output: str,
    force: bool,
    knowledge: Knowledge,
    spelled: Spellings,
) -> Result:
    speller = Speller(base, knowledge, spelled)
    style = speller.style(to)
    metadata = {str(k): str(v) for k, v in header.metadata.items()}
    back = records.load(metadata)
    result = Result(
        output,
        component.source,
        to,
        str(style["title"]),
        str(base.card.get("title") or base.family),
        len(header.tensors),
    )
    job = _Job(source, header, component, config, speller, style, metadata, result)
    if back is not None and back.style == to:
        try:
            return job.run(back, force)
        except (_Differs, Refused, Unspellable):
            pass  # the file is not what it was when the record was made: it is converted as any other
    try:
        return job.run(None, force)
    except Unspellable as e:
        raise Refused(str(e)) from None
    except _Differs as e:
        said = "what was written does not change the base as the original does, and was thrown away"
        raise Refused(f"{said}: {e}") from None


class _Differs(ValueError):
    """The file that was written is another change."""


class _Job(Struct):
    source: Source
    header: Header
    component: Component
    config: Mapping[str, Any] | None
    speller: Speller
    style: Mapping[str, Any]
    metadata: Mapping[str, str]
    result: Result

    def run(self, back: Record | None, force: bool) -> Result:
        adapter = self._read(self.header, self.source, self.metadata, self.config)
        style = {**self.style, "names": back.layout} if back and back.layout else self.style
        modules = list(self.speller.written(style, back.prefix if back else None))
        if back:
            modules = [m._replace(name=back.renamed.get(m.name, m.name)) for m in modules]
        targets = plan(adapter.changes, modules)
        spelled = self.speller.spelled
        builder = Builder(style, targets, back, _magnitudes(spelled))
        entries: dict[str, write.Entry] = {}
        for target in targets:
            for name, value in self._tensors(builder, target).items():
                if name in entries:
                    raise Refused(f"two tensors would be called {name}")
                entries[name] = write.entry(value)
        for name in adapter.junk:
            if name in entries:
                raise Refused(f"two tensors would be called {name}")
            entries[name] = write.entry(_value(self.header, self.source, name))
        result = self.result
        result.modules, result.keys_after = len({t.module for t in targets}), len(entries)
        result.joined, result.divided, result.wider = builder.joined, builder.divided, builder.wider
        written = {t.module for t in targets}
        touched = {s.tensor for m in modules if m.name in written for s in (*(m.weight or ()), *(m.bias or ()))}
        metadata = self._metadata(adapter, back, touched)
        with beside(result.output, force) as stream:
            writer = write.Writer(stream, entries, metadata)
            again = Builder(style, targets, back, _magnitudes(spelled))
            for target in targets:
                for name, value in self._tensors(again, target).items():
                    writer.put(name, value, self.source)
            for name in adapter.junk:
                writer.put(name, _value(self.header, self.source, name), self.source)
            stream.flush()
            self._verify(stream.name, adapter)
        self._notes(adapter, entries)
        return result

    def _tensors(self, builder: Builder, target: Target) -> dict[str, Value]:
        try:
            return builder.tensors(target)
        except Unreadable as e:
            raise Refused(f"{target.module}: {e}") from None

    def _read(
        self, header: Header, source: Source, metadata: Mapping[str, str], config: Mapping[str, Any] | None
    ) -> Adapter:
        shapes = {n: t.shape for n, t in header.tensors.items()}
        try:
            return read_changes(
                shapes, partial(_value, header, source), self.speller.spelled, self.speller, metadata, config
            )
        except Unreadable as e:
            raise Refused(str(e)) from None

    def _verify(self, path: str, adapter: Adapter) -> None:
        """Read what was written as any reader would, and compare what it does."""
        with LocalSource(path) as copy:
            header = open_header(copy)
            metadata = {str(k): str(v) for k, v in header.metadata.items()}
            after = self._read(header, copy, metadata, None)
            wrong = differences(adapter.changes, after.changes, self.speller.shapes)
        if wrong:
            raise _Differs(wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
        self.result.verified = len({s.tensor for c in adapter.changes for s in c.place})

    def _metadata(self, adapter: Adapter, back: Record | None, touched: set[str]) -> dict[str, str]:
        metadata = dict(self.metadata)
        metadata.pop(records.KEY, None)
        record = self._record(adapter, touched)
        if adapter.alphas_from == "its metadata":
            record.metadata[_METADATA_ALPHA] = metadata.pop(_METADATA_ALPHA)
        if back is not None:
            metadata.update(back.metadata)
        name = base_name(self.component.source.replace("\\", "/"))
        tool = f"compatkit {__version__}"
        metadata[records.KEY] = records.dump(record, tool, self.speller.base.family, str(self.style["id"]), name)
        return metadata

    def _record(self, adapter: Adapter, touched: set[str]) -> Record:
        """What the way back will need."""
        spelled, changes = self.speller.spelled, adapter.changes
        conventions = {spelled.convention(c.module) for c in changes}
        model = {c for c in conventions if c.part == "model"}
        first = next(iter(model)) if len(model) == 1 else None
        layout = self.speller.common_layout(c.module for c in changes)
        record = Record(self.component.layout, layout, first.prefix if first else "")
        products = [c for c in changes if c.math == "product"]
        pairs = [{p: e for p, e in c.endings.items() if p in ("up", "down", "mid")} for c in products]
        merged: dict[str, str] = {}
        if all(merged.setdefault(p, e) == e for pair in pairs for p, e in pair.items()):
            record.pair = merged
        record.magnitude = next((c.endings[p] for c in products for p in ("dora", "dora_peft") if p in c.endings), "")
        record.rows = {c.module: _row(c) for c in changes if c.rank is not None}
        known = {w["id"] for w in spelled.table["writes"]}
        if record.style in known and layout:
            self._names(record, changes, touched)
        else:
            record.style = self.component.layout if layout else "mixed"
        return record

    def _names(self, record: Record, changes: Sequence[Change], touched: set[str]) -> None:
        style = {**self.speller.style(record.style), "names": record.layout}
        here = {c.module for c in changes}
        by_place = {c.place: c.module for c in changes if c.kind == "weight"}
        for module in self.speller.written(style, record.prefix):
            if module.weight is None or not any(s.tensor in touched for s in module.weight):
                continue
            own = by_place.get(module.weight)
            if own is not None and own != module.name:
                record.renamed[module.name] = own
            elif own is None and module.name not in here:
                record.absent.add(module.name)

    def _notes(self, adapter: Adapter, entries: Mapping[str, write.Entry]) -> None:
        """What the user should know of the file, and what runtimes read of it."""
        result, style = self.result, self.style
        if adapter.alphas_from:
            result.notes.append(f"its alphas were taken from {adapter.alphas_from}")
        if result.wider:
            result.notes.append(
                f"alpha / rank went into {result.wider} matrices, which became wider (float32 or float64) to hold it"
            )
        elif any(c.folded for c in adapter.changes):
            result.notes.append("alpha / rank went into the matrices, without rounding")
        if adapter.junk:
            result.notes.append(f"{len(adapter.junk)} tensors that are of no adapter were kept as they are")
        algorithms = {c.algorithm for c in adapter.changes}
        others = algorithms - set(style.get("reads") or algorithms)
        if others:
            titles = ", ".join(sorted(self.speller.spelled.title(a) for a in others))
            result.notes.append(f"{style['others']} ({titles})")
        shapes = {n: e.shape for n, e in entries.items()}
        for runtime in ("comfyui", "diffusers"):
            table = self.speller.knowledge.adapters(runtime)
            if table and self.speller.base.runtime_class(runtime) is not None:
                found = coverage(shapes, self.speller.spelled, self.speller.base, table, self.speller.knowledge)
                result.read[runtime] = (found.matched, found.keys)


_METADATA_ALPHA = "lora_adapter_metadata"


def _row(change: Change) -> records.Row:
    alpha = change.alpha
    return records.Row(
        alpha.number if alpha else None,
        alpha.dtype if alpha else None,
        alpha.shape if alpha else (),
        change.rank or 0,
        change.parts[OUTER_INNER[change.math][0][0]].dtype,
        change.folded,
    )


def _magnitudes(spelled: Spellings) -> dict[str, str]:
    """Ending of a magnitude -> which kind it is."""
    companions = spelled.table["companions"]
    return {e: name for name in ("dora", "dora_peft") for e in companions[name]["endings"]}


def _value(header: Header, source: Source, name: str) -> Value:
    tensor = header.tensors[name]
    return Value(tensor.dtype, tensor.shape, _loader(source, tensor), tensor)


def _loader(source: Source, tensor: Tensor) -> Callable[[], Any]:
    return lambda: raw(source.read(tensor.offset, tensor.nbytes), tensor.dtype, tensor.shape)
