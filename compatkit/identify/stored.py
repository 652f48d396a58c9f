"""How a component's weights are stored: logical parameters, the packing's name, effective bits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from compatkit.headers.ggml import FILE_TYPES
from compatkit.identify.packing import Unpacked
from compatkit.identify.schemes import suits
from compatkit.identify.solve import Match
from compatkit.knowledge.store import Knowledge
from compatkit.vocabulary import Header, Quantization, Tensor

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def elements(tensors: Iterable[Tensor]) -> int:
    """All elements of these tensors, as stored."""
    return sum(map(prod, [t.shape for t in tensors]))


def hidden_elements(unpacked: Unpacked, names: Iterable[str], match: Match, knowledge: Knowledge) -> dict[str, int]:
    """Logical name -> elements by the grammar, for every matched tensor whose stored shape does not say."""
    tensors, loose = unpacked.tensors, unpacked.loose
    hidden = [n for n in names if n in loose or n not in tensors] if loose or unpacked.covers else []
    if not hidden:
        return {}
    from compatkit.identify.shapes import expected_shapes

    # a symbol whose only tensor is missing from the file counts as 0: its side is unknown, not an error
    symbols = defaultdict(int, match.symbols)
    shapes = expected_shapes(knowledge.grammar(match.family), match.layout, symbols, match.options)
    at = len(match.prefix)
    return {n: prod(side or 1 for side in shapes.get(n[at:]) or ()) for n in hidden}


def parameters(unpacked: Unpacked, names: Iterable[str], hidden: Mapping[str, int], prefix: str = "") -> int:
    """Logical parameters: a packed tensor counts with its true shape, a covered module with the number it states."""
    tensors = unpacked.tensors
    total = elements([tensors[n] for n in names if n in tensors and n not in hidden])
    stated = [m for m in unpacked.covers if m.startswith(prefix) and m in unpacked.counts]
    below = tuple(f"{m}." for m in stated)
    total += sum(n for name, n in hidden.items() if name in tensors or not name.startswith(below))
    return total + sum(unpacked.counts[m] for m in stated)


def unmatched_parameters(unpacked: Unpacked, names: Iterable[str]) -> int:
    """The same for tensors no grammar explains: a packed one counts with as many values as its packing holds."""
    here = [n for n in names if n in unpacked.tensors]
    total = sum(unpacked.counts.get(n) or unpacked.tensors[n].elements for n in here)
    return total + sum(unpacked.counts.get(m, 0) for m in unpacked.covers)


def quantization(
    header: Header,
    unpacked: Unpacked,
    tensors: Mapping[str, Tensor],
    count: int,
    hidden: Mapping[str, int],
    prefix: str = "",
) -> Quantization:
    """How these tensors are stored. `count` is their logical parameters, `hidden` what `hidden_elements` gives."""
    dtypes = Counter([t.dtype for t in tensors.values()])
    nbytes = sum([t.nbytes for t in tensors.values()])
    names: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    minor: set[str] = set()
    here = {p for p in unpacked.beside if p in tensors or (p.startswith(prefix) and _covers(unpacked, p))}
    for packed in here:
        entry = _entry(unpacked, packed, header, hidden)
        if entry:
            names[entry["id"]] += 1
            if entry.get("minor"):
                minor.add(entry["id"])
        notes.update(unpacked.notes.get(packed, ()))
    nbytes += sum(header.tensors[c].nbytes for c, packed in unpacked.companions.items() if packed in here)
    scheme = _scheme(names, minor) or str(unpacked.schemes.plain(dtypes).get("id", "none"))
    if scheme == "none" and header.format == "gguf":
        scheme = _dominant(tensors) or scheme
        kind = FILE_TYPES.get(header.metadata.get("general.file_type", -1)) if scheme != "none" else None
        if kind and kind != scheme:
            notes[f"file type {kind}"] += 1
    bits = round(8 * nbytes / count, 2) if count and nbytes else None
    return Quantization(
        scheme, dict(dtypes.most_common()), bits, tuple(n for n, _ in notes.most_common()), dict(names.most_common())
    )


def only_readable(
    classes: Mapping[str, str | None], quantization: Quantization, unpacked: Unpacked
) -> dict[str, str | None]:
    """What each runtime makes of a file, None for one of which nobody wrote down that it reads these packings."""
    names = {quantization.scheme, *quantization.formats}
    loaders = [e.get("loaders", {}) for e in unpacked.schemes.entries if e["id"] in names]
    return {
        runtime: name if all((known.get(runtime) or {"known": False}).get("known", True) for known in loaders) else None
        for runtime, name in classes.items()
    }


def _covers(unpacked: Unpacked, packed: str) -> bool:
    return packed not in unpacked.renamed and packed.rpartition(".")[0] in unpacked.covers


def _entry(unpacked: Unpacked, packed: str, header: Header, hidden: Mapping[str, int]) -> Mapping[str, Any]:
    """The entry a packed weight is an instance of; where several are left, the one that gives its true size."""
    entries = unpacked.candidates.get(packed, ())
    if len(entries) > 1:
        stored, total = header.tensors[packed], hidden.get(unpacked.logical(packed))
        if total is not None:
            return next((e for e in entries if suits(e, stored.dtype, stored.elements, total)), entries[0])
    return entries[0] if entries else {}


def _scheme(names: Mapping[str, int], minor: set[str]) -> str:
    """One name for all: minor schemes only help others out; several others are a mix."""
    major = [n for n in names if n not in minor] or list(names)
    return major[0] if len(major) == 1 else "mixed" if major else ""


def _dominant(tensors: Mapping[str, Tensor]) -> str:
    """The packed type that most parameters have, or ''."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        if tensor.dtype not in _FLOATS:
            sizes[tensor.dtype] += tensor.elements
    return max(sizes, key=lambda d: sizes[d], default="")
