"""What a terminal shows. The first line is the verdict; the next say what to do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from compatkit.render.style import (
    LEVEL_COLOUR,
    TERMINAL,
    VERDICT_COLOUR,
    Paint,
    basename,
    dtypes,
    line,
    parameters,
    safe,
    shortened,
    size,
    sizes,
    text_width,
)
from compatkit.vocabulary import Component, Finding, NotChecked, Report

#: Shorter than that a file's name is never cut.
_SHORTEST = 16
#: So many rules of a group are named, more are counted.
_FEW = 2
_FACTS_FIRST = (
    "hidden_size",
    "width",
    "context_dim",
    "layers",
    "vocab",
    "latent_space",
    "latent_channels",
    "latent_ndim",
)


def check_text(report: Report, paint: Paint, titles: Mapping[str, str], verbose: bool = False) -> str:
    """The report of `check`. `titles` gives the names people know families by."""
    out = [_verdict(report, paint), ""]
    out += _set_table(report.components, titles)
    for finding in report.findings:
        out += ["", *_finding(finding, report.components, paint)]
    if report.smoke:
        from compatkit.render.smoke import smoke_lines

        out += ["", *smoke_lines(report, verbose)]
    out += ["", *_scope(report, paint, verbose)]
    return "\n".join(out) + "\n"


def _verdict(report: Report, paint: Paint) -> str:
    head = report.headline or f"{report.verdict} ({', '.join(report.judged) or 'nothing judged'})"
    word, _, rest = head.partition(" ")
    return paint(word.upper(), VERDICT_COLOUR[report.verdict], "bold") + (f" {rest}" if rest else "")


def _set_table(components: Sequence[Component], titles: Mapping[str, str]) -> list[str]:
    rows = [
        [f"[{number}]", basename(c.source), c.role.replace("_", " "), _names(c, titles), _storage(c), told]
        for number, (c, told) in enumerate(zip(components, sizes(components), strict=True), 1)
    ]
    lines, most = columns(rows), TERMINAL.get()
    if not most or max(map(len, lines), default=0) <= most:
        return lines
    # On a narrow terminal what the model is stands on a line of its own, and long file names are cut in the middle.
    narrow = [[row[0], row[1], row[2], row[5]] for row in rows]
    over = max(map(len, columns(narrow))) - max(most, 40)
    if over > 0:
        longest = max(_SHORTEST, max(len(row[1]) for row in rows) - over)
        narrow = [[n, shortened(name, longest), *rest] for n, name, *rest in narrow]
    indent = " " * (len(str(len(rows))) + 4)
    out = []
    for first, (_, _, _, model, storage, _) in zip(columns(narrow), rows, strict=True):
        out += [first, *_wrapped(f"{model}, {storage}" if storage else model, indent=len(indent))]
    return out


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns. (tabulate, which makes the other tables, takes 40 ms to import: too much here.)"""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _names(c: Component, titles: Mapping[str, str]) -> str:
    if c.family is None:
        return c.title or "not recognised"  # a LoRA is of no family: its title says what it is
    names = [titles.get(f, f) for f in c.families]
    shown = names[0] if len(names) == 1 else f"{names[0]} (or {', '.join(names[1:3])}{', …' if len(names) > 3 else ''})"
    return f"{shown} (as you say)" if c.assumed else shown


def _storage(c: Component) -> str:
    scheme = c.quantization.scheme
    main = max(c.quantization.dtypes, key=lambda d: c.quantization.dtypes[d], default="")
    return (main if scheme == "none" else scheme).lower() if c.format != "gguf" else scheme.replace("none", main)


def _finding(finding: Finding, components: Sequence[Component], paint: Paint) -> Iterator[str]:
    where = " ".join(f"[{i + 1}]" for i in finding.components if i < len(components))
    yield f"{paint(finding.level, LEVEL_COLOUR[finding.level], 'bold')}  {finding.rule}  {where}".rstrip()
    yield from _wrapped(finding.message)
    for runtime, message in finding.predicts.items():
        whom = "" if runtime == "any" else f" ({runtime})"
        yield from _wrapped(f"You would see{whom}: {message}", hang=4)
    if finding.fix:
        yield from _led("Fix:", paint("Fix:", "bold"), finding.fix)


def _wrapped(text: str, indent: int = 2, hang: int = 0) -> list[str]:
    out = []
    for paragraph in safe(text).split("\n"):
        out += textwrap.wrap(
            paragraph,
            text_width(),
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + hang),
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return out


def _led(word: str, painted: str, text: str, hang: int = 4) -> list[str]:
    """`word text` wrapped, its first word as `painted`: colours are put in last, since text is made safe of them."""
    first, *rest = _wrapped(f"{word} {text}", hang=hang)
    return [first.replace(word, painted, 1), *rest]


def _scope(report: Report, paint: Paint, verbose: bool) -> Iterator[str]:
    told = _grouped if verbose else _counted
    if report.checked:
        rules = f"{len(report.checked)} rules (-v names them): " if not verbose else ""
        yield from _wrapped(f"Checked: {rules}{told(report.checked)}.", indent=0, hang=2)
    groups: dict[str, list[NotChecked]] = {}
    for item in report.not_checked:
        groups.setdefault(item.why, []).append(item)
    if groups:
        yield "Not checked:"
        for why, items in groups.items():
            yield from _wrapped(f"{why}: {told([i.rule for i in items])}", hang=2)
    cost = report.cost
    if verbose or cost.requests:
        asked = "1 request" if cost.requests == 1 else f"{cost.requests} requests"
        yield paint(f"{asked}, {size(cost.bytes)} read from the network, {cost.seconds:.2f} s", "dim")


def _grouped(rules: Iterable[str]) -> str:
    """`encoder/width, encoder/kind, file/empty` -> `encoder/{width, kind}, file/empty`."""
    groups = _groups(rules)
    return ", ".join(f"{g}/{n[0]}" if len(n) == 1 else f"{g}/{{{', '.join(n)}}}" for g, n in groups.items())


def _counted(rules: Iterable[str]) -> str:
    """The same, where a group has more than two rules their number: `encoder (9), file/empty`."""
    groups = _groups(rules).items()
    return ", ".join(f"{g} ({len(n)})" if len(n) > _FEW else _grouped(f"{g}/{x}" for x in n) for g, n in groups)


def _groups(rules: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for rule in rules:
        group, _, name = rule.partition("/")
        groups.setdefault(group, []).append(name)
    return groups


def inspect_text(
    components: Iterable[Component], paint: Paint, titles: Mapping[str, str], verbose: bool = False
) -> str:
    """The report of `inspect`: what it is, its facts, the evidence, and the runner-up."""
    return "\n".join("\n".join(_component(c, paint, titles, verbose)) + "\n" for c in components)


def _component(c: Component, paint: Paint, titles: Mapping[str, str], verbose: bool) -> Iterator[str]:
    yield paint(line(c.source), "bold")
    if c.format == "unreadable":
        for problem in c.problems:
            told = f"{problem.rule}: {problem.message}"
            yield from _led(problem.level, paint(problem.level, LEVEL_COLOUR[problem.level]), told, hang=0)
            yield from _led("Fix:", paint("Fix:", "bold"), problem.fix) if problem.fix else [""]
        return
    what = f"{c.role.replace('_', ' ')}, {_names(c, titles)}" if c.family or c.title else f"{c.role}: not recognised"
    yield f"  {what}" + (f"  [{', '.join(c.families)}]" if c.family else "")
    if c.reason:
        yield from _wrapped(f"why: {c.reason}", indent=4)
    rows = {
        "format": f"{c.format}, {c.layout} layout" + (f", prefix {line(c.prefix)}" if c.prefix else ""),
        "size": size(c.size) + (f", {size(c.header_bytes)} of it header" if c.header_bytes else ""),
        "parameters": f"{parameters(c.parameters)} ({c.parameters:,})",
        "stored as": _quantisation(c),
        "groups": ", ".join(f"{line(k, 60)} {v}" for k, v in list(c.key_groups.items())[:8]),
        "loads as": ", ".join(f"{r}: {v or 'no'}" for r, v in c.loads_as.items()),
        "facts": _facts(c, verbose),
        "evidence": "; ".join(line(e) for e in c.evidence[: 6 if verbose else 3]),
        "values read": _values_read(c, verbose),
        "not checked": "; ".join(dict.fromkeys(n.why for n in c.not_checked)),
    }
    for name in ("missing", "mismatched", "foreign"):
        names: tuple[str, ...] = getattr(c, name)
        if names:
            rows[name] = f"{len(names)}: {', '.join(line(n) for n in names[: 20 if verbose else 3])}" + (
                ", …" if len(names) > 3 and not verbose else ""
            )
    rows["runner-up"] = _runner_up(c)
    for key, value in rows.items():
        if value:
            yield from textwrap.wrap(
                value,
                text_width(),
                initial_indent=f"  {key:<11} ",
                subsequent_indent=" " * 14,
                break_long_words=False,
                break_on_hyphens=False,
            )
    for problem in c.problems:
        told = f"{problem.rule}: {problem.message}"
        yield from _led(problem.level, paint(problem.level, LEVEL_COLOUR[problem.level]), told, hang=0)


def _quantisation(c: Component) -> str:
    q = c.quantization
    formats = " and ".join(f"{n} {name}" for name, n in q.formats.items()) if q.scheme == "mixed" else ""
    scheme = "" if q.scheme == "none" else f"{q.scheme}{f' ({formats})' if formats else ''}; "
    bits = f"; {q.bits:g} bits a parameter" if q.bits and q.scheme != "none" else ""
    notes = "".join(f"; {n}" for n in q.notes)
    return f"{scheme if q.dtypes else scheme.removesuffix('; ')}{dtypes(q.dtypes)}{bits}{notes}"


def _values_read(c: Component, verbose: bool) -> str:
    if not c.values_read:
        return ""
    total = sum(r.bytes for r in c.values_read)
    said = [f"{line(r.tensor)} {r.says}" for r in c.values_read if r.says and (verbose or "names a" not in r.says)]
    return f"{len(c.values_read)} small tensors, {size(total)}" + (f": {'; '.join(said[:20])}" if said else "")


def _facts(c: Component, verbose: bool) -> str:
    names = [f for f in _FACTS_FIRST if f in c.facts]
    if verbose:
        names += [f for f in c.facts if f not in names]
    return ", ".join(f"{n} {_value(c.facts[n])}" for n in names)


def _value(value: object) -> str:
    return " or ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _runner_up(c: Component) -> str:
    r = c.runner_up
    if r is None:
        return ""
    if r.reason:
        return f"{r.family}, refused: {r.reason}"
    counts = [
        f"{len(n)} {word}"
        for n, word in ((r.missing, "missing"), (r.mismatched, "mismatched"), (r.foreign, "foreign"))
        if n
    ]
    return f"{r.family} ({', '.join(counts) or 'as good'})"
