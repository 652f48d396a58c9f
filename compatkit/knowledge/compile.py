"""Compiles a rules folder into JSON that an ordinary run reads: one file a family, one signature index, one table of
the rest.

index.json            names -> grammars to try, and the quick gates that refuse most of them
families/ID.json      card, and lines per layout
tables.json           checks, runtimes, packings
adapters-ID.json      how adapters are spelled; what a runtime reads of them
models-ID.json        what a runtime makes of each family
targets.json          which families have a module of some name and size
classes.json          which library's class holds which family, how it is configured and called: for dry runs alone
errors.json           what messages of runtimes mean, and the numbers they are compared with
nodes.json            what the nodes of a graph editor load and want
manifest.json         what it was made from
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compatkit.knowledge import adapterfile, checkfile, classfile, nodefile, runtimefile
from compatkit.knowledge.errorfile import known_names, known_numbers, parse_errors
from compatkit.knowledge.expr import symbols
from compatkit.knowledge.family import Family, Layout, check_keys, compile_family
from compatkit.knowledge.lines import Line, Part, parse_parts
from compatkit.knowledge.packingfile import parse_packings
from compatkit.knowledge.patterns import Pattern, first_name
from compatkit.knowledge.stamp import FORMAT, stamp
from compatkit.knowledge.targetindex import target_index
from compatkit.knowledge.yamlfile import RuleFile, load

_SIGNATURES = 8
_BINDERS = 5
_FEW = 3


def rule_files(root: Path) -> list[Path]:
    """Every YAML file under a rules folder, sorted."""
    return sorted(p for p in root.rglob("*.yaml") if not any(x.startswith(".") for x in p.relative_to(root).parts))


class Sources:
    """The rule files of one folder (and, for users' own rules, of further folders on top), sorted by what they are."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self.families: dict[str, RuleFile] = {}
        self.keymaps: dict[str, RuleFile] = {}
        self.checks: list[RuleFile] = []
        self.runtimes: list[RuleFile] = []
        self.adapters: list[RuleFile] = []
        self.classes: list[RuleFile] = []
        self.nodes: list[RuleFile] = []
        self.tables: dict[str, RuleFile] = {}
        self.parts: dict[str, Part] = {}
        for number, root in enumerate(roots):
            for path in rule_files(root):
                self._add(root, path, own=number == 0)

    def _add(self, root: Path, path: Path, *, own: bool) -> None:
        file = load(path)
        if own:  # an installed compatkit names the file in its own rules, not where it lay on the machine that built it
            file.shown = f"rules/{path.relative_to(root).as_posix()}"
        kind = path.relative_to(root).parts[0]
        if not own and path.parent == root and path.stem not in self.tables and path.stem != "parts":
            if not (isinstance(file.data, dict) and set(file.data) == {"checks"}):
                raise file.error(
                    (), f"a rule file lies in a folder that says what it is, such as {_folder(file)}/{path.name}"
                )
            kind = "checks"  # what it is can be told without a folder
        if kind == "families":
            check_keys(file)
            other = self.families.get(file.data["id"])
            if other is not None:
                raise file.error(("id",), f"{file.data['id']!r} is already the id of {other.path}")
            self.families[file.data["id"]] = file
        elif kind == "keymaps":
            self.keymaps[path.stem] = file
        elif kind == "checks":
            self.checks.append(file)
        elif kind == "runtimes":
            self.runtimes.append(file)
        elif path.stem == "parts":
            self.parts |= parse_parts(file.data, file.error, ())
        elif kind == "adapters":
            self.adapters.append(file)
        elif kind == "classes":
            self.classes.append(file)
        elif kind == "nodes":
            self.nodes.append(file)
        elif len(path.relative_to(root).parts) == 1 or kind == "errors":
            self.tables[path.relative_to(root).with_suffix("").as_posix()] = file
        else:
            raise file.error(
                (),
                f"{kind!r} is not a folder of rules "
                "(families, checks, runtimes, adapters, classes, nodes, keymaps, errors)",
            )

    def compiled_families(self) -> list[Family]:
        """Every family, compiled, in order of id."""
        files = self.families
        return [compile_family(files[i], files, self.parts, self.keymaps) for i in sorted(files)]


def _folder(file: RuleFile) -> str:
    """The folder that a file of rules at the top of a user's folder looks to belong in."""
    data = file.data if isinstance(file.data, dict) else {}
    for folder, keys in (("families", ("role", "tensors", "like")), ("nodes", ("nodes",)), ("runtimes", ("engine",))):
        if any(key in data for key in keys):
            return folder
    return "errors" if isinstance(file.data, list) else "checks"


def compile_tree(rules_dir: Path, out_dir: Path, extra: Iterable[Path] = ()) -> None:
    """Compile `rules_dir` (and folders of users' rules on top) into `out_dir`; the last file written is the manifest.

    Raises:
        RuleFileError: a rule file is refused; nothing of the old compiled form is touched before all files are read.
    """
    roots = [rules_dir, *extra]
    documents = compile_documents(roots)
    (out_dir / "families").mkdir(parents=True, exist_ok=True)
    for old in (out_dir / "families").glob("*.json"):
        if f"families/{old.name}" not in documents:
            old.unlink()
    for name, document in documents.items():
        write(out_dir / name, document)
    write(out_dir / "manifest.json", {"format": FORMAT, "stamp": [stamp(r) for r in roots]})


def write(path: Path, document: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(document, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def compile_documents(roots: Iterable[Path]) -> dict[str, Any]:
    """All compiled files, by name."""
    sources = Sources(roots)
    families = sources.compiled_families()
    documents: dict[str, Any] = {}
    members: dict[str, Any] = {}
    for family in families:
        documents[f"families/{family.id}.json"] = family_document(family)
        members[family.id] = {"role": family.card["role"], "abstract": bool(family.card.get("abstract"))}
        if family.card.get("fallback"):
            members[family.id]["fallback"] = True
        for sibling in family.card.get("siblings") or {}:
            shared = {"role": family.card["role"], "sibling_of": family.id}
            members[sibling] = members.get(sibling, shared)  # one with a file of its own keeps it
    packings = sources.tables.get("packings")
    documents["index.json"] = {"families": members, **signature_index(families)}
    documents["targets.json"] = target_index(families)
    for file in sources.adapters:
        for name, table in adapterfile.parse(file).items():
            documents[f"adapters-{name}.json"] = table
    for file in sources.runtimes:
        if isinstance(file.data, dict) and file.data.get("models"):
            documents[f"models-{file.data.get('id')}.json"] = _models(file, members)
    documents["classes.json"] = classfile.parse_classes(sources.classes, members)
    documents["nodes.json"] = nodefile.parse(sources.nodes)
    documents["errors.json"] = {
        "errors": [
            e for name, file in sorted(sources.tables.items()) if name.startswith("errors/") for e in parse_errors(file)
        ],
        "known": {**known_numbers(documents), **known_names(documents)},
    }
    documents["tables.json"] = {
        "checks": [rule for file in sources.checks for rule in checkfile.parse(file)],
        "runtimes": {name: table for file in sources.runtimes for name, table in runtimefile.parse(file).items()},
        "packings": parse_packings(packings) if packings else [],
        **{n: f.data for n, f in sources.tables.items() if n != "packings" and not n.startswith("errors/")},
    }
    return documents


def _models(file: RuleFile, members: dict[str, Any]) -> dict[str, Any]:
    """A runtime's table of models; the families that it names are known."""
    runtimefile.parse(file)
    for i, entry in enumerate(file.data["models"]):
        for j, family in enumerate(entry["families"]):
            if family not in members:
                raise file.error(("models", i, "families", j), f"no family is called {family!r}")
    return runtimefile.models(file)


def family_document(family: Family) -> dict[str, Any]:
    """A family as compiled JSON."""
    return {
        "id": family.id,
        "card": family.card,
        "facts": family.facts,
        "where": family.where,
        "require": family.require,
        "forbid": family.forbid,
        "tolerate": family.tolerate,
        "metadata": family.metadata,
        "example": {
            k: v
            for k, v in (family.examples[0] if family.examples else {}).items()
            if k in ("symbols", "options", "metadata")
        },
        "markers": family.markers,
        "groups": [[g.fact, g.parent, g.choice, g.value] for g in family.groups],
        "values": family.values,
        "depths": _depths(family),
        "layouts": {layout.name: _layout_document(layout) for layout in family.layouts},
    }


def _depths(family: Family) -> dict[str, int]:
    """The shortest run of each kind of block among the family's examples: what the smallest release has."""
    ranges = [r for layout in family.layouts for line in layout.lines for r in line.pattern.ranges]
    runs = {stop for _, stop, _ in ranges if isinstance(stop, str)}
    sizes = [e.get("symbols") or {} for e in family.examples]
    out = {}
    for symbol in sorted(runs):
        values = [size[symbol] for size in sizes if size.get(symbol)]
        if values:
            out[symbol] = min(values)
    return out


def _layout_document(layout: Layout) -> dict[str, Any]:
    direct, derived, runs = binders(layout.lines)
    return {
        "lines": [[x.pattern.format, x.pattern.ranges, x.shapes, x.group, x.when] for x in layout.lines],
        "origins": [[list(o.sources), o.how, o.start, o.size] for o in layout.origins],
        "bind": direct,
        "derive": derived,
        "runs": runs,
    }


def binders(lines: list[Line]) -> tuple[dict[str, list[Any]], list[Any], dict[str, list[Any]]]:
    """Where each symbol's value can be read.

    Returns `{symbol: [[name, axis, rank], …]}` for sides that are a bare symbol, `[[symbol, name, axis, rank, expr],
    …]` for symbols that only stand inside expressions, and `{symbol: [[format, other indexes, position, start], …]}`
    for runs.
    """
    direct: dict[str, list[Any]] = {}
    derived: list[Any] = []
    runs: dict[str, list[Any]] = {}
    places = Counter[tuple[str, int]]()  # by symbol and group: an optional half of a model must bind without the other
    for line in sorted(lines, key=lambda x: (x.group != -1, x.when != 1)):
        _run_probes(line.pattern, runs)
        name: Any = first_name(line.pattern)
        if name is None:  # an index is an expression (`body.{last+0}`): the name is known once the runs are
            name = [line.pattern.format, [start for start, _, _ in line.pattern.ranges]]
        for shape in line.shapes or ():
            for axis, side in enumerate(shape):
                if isinstance(name, list) and side is not None:
                    derived.append((line.group, name, axis, len(shape), side))
                elif isinstance(side, str):
                    known = direct.setdefault(side, [])
                    if places[side, line.group] < _BINDERS and [name, axis, len(shape)] not in known:
                        known.append([name, axis, len(shape)])
                        places[side, line.group] += 1
                elif isinstance(side, list):
                    derived.append((line.group, name, axis, len(shape), side))
    kept, seen = [], Counter[tuple[str, int]]()
    for group, name, axis, rank, side in derived:
        for symbol in sorted(symbols(side) - set(runs)):
            # a symbol that few sides show must still be found where one of those tensors is lost
            if max(places[symbol, -1], places[symbol, group]) < _FEW and seen[symbol, group] < _BINDERS:
                kept.append([symbol, name, axis, rank, side])
                seen[symbol, group] += 1
    return direct, kept, runs


def _run_probes(pattern: Pattern, runs: dict[str, list[Any]]) -> None:
    starts = [a for a, _, _ in pattern.ranges]
    if not all(isinstance(a, int) for a in starts):
        return
    for position, (start, stop, step) in enumerate(pattern.ranges):
        if isinstance(stop, str):
            probes = runs.setdefault(stop, [])
            probe = [pattern.format, starts, position, start, step]
            if step == 1 and probes and probes[0][4] != 1:
                probes.clear()
            same_start = sum(p[3] == start for p in probes)  # interleaved runs end with the one that starts last
            room = len(probes) < _BINDERS or (step > 1 and same_start < 2)
            if room and (step == 1 or not probes or probes[0][4] != 1):
                probes.append(probe)


def signature_index(families: list[Family]) -> dict[str, Any]:
    """Which grammars to try for a header: a few telling names of each, and gates on `where`."""
    grammars = [(f, layout) for f in families if not f.card.get("abstract") for layout in f.layouts]
    own_names = [_plain_names(layout.lines) for _, layout in grammars]
    seen = Counter(name for names in own_names for name in names)
    names: dict[str, list[int]] = {}
    entries = []
    for number, ((family, layout), plain) in enumerate(zip(grammars, own_names, strict=True)):
        chosen = _choose(plain, seen, family.signature if layout is family.layouts[0] else [])
        for name in chosen:
            names.setdefault(name, []).append(number)
        # where every tensor is optional (a VAE's two halves), a quarter of the names is enough to try
        wanted = len(chosen) if any(line.group == -1 for line in layout.lines) else -(-len(chosen) // 2)
        entries.append([family.id, layout.name, wanted, _gates(family, layout)])
    return {"grammars": entries, "names": names, "heads": _heads(names)}


def _heads(names: Iterable[str]) -> dict[str, list[str]]:
    """First segment -> second segments of the telling names ("" for a name of one): what a prefix may be followed
    by."""
    heads: dict[str, set[str]] = {}
    for name in names:
        first, _, rest = name.partition(".")
        heads.setdefault(first, set()).add(rest.partition(".")[0])
    return {first: sorted(seconds) for first, seconds in heads.items()}


def _plain_names(lines: list[Line]) -> dict[str, int]:
    """First names of the lines that are always there -> rank of their shape; of all lines where every one is
    optional."""
    out: dict[str, int] = {}
    always = any(line.group == -1 and line.when == 1 for line in lines)
    for line in lines:
        if (line.group == -1 or not always) and line.when == 1:
            name = first_name(line.pattern)
            if name:
                out.setdefault(name, len(line.shapes[0]) if line.shapes else 0)
    return out


def _choose(plain: Mapping[str, int], seen: Counter[str], given: list[str]) -> list[str]:
    """The rarest names, spread over the top level of the tree; one-dimensional ones first, since packing leaves them
    be."""
    if given:
        return given
    per_top: Counter[str] = Counter()
    order = sorted(plain, key=lambda n: (seen[n], plain[n] != 1, n))
    ranked = []
    for name in order:
        top = name.split(".", 1)[0]
        ranked.append((seen[name] + 3 * per_top[top], name))
        per_top[top] += 1
    return [name for _, name in sorted(ranked)[:_SIGNATURES]]


def _gates(family: Family, layout: Layout) -> list[Any]:
    """Quick refusals: `[name, axis, rank, allowed]` reads one side, `[format, indexes, position, allowed]` counts a
    run."""
    direct, _, runs = binders(layout.lines) if family.where else ({}, [], {})
    gates: list[Any] = []
    for symbol, allowed in family.where.items():
        if symbol in direct:
            gates.append([symbol, allowed, direct[symbol][:3], []])
        elif symbol in runs:
            gates.append([symbol, allowed, [], runs[symbol][:3]])
    return gates
