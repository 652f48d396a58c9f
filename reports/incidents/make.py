"""Writes the worked incident reports: `make incidents`, or `python -m reports.incidents.make`.

Each set of `incidents.yaml` is made from the families' own grammars (headers at full size, the data a hole), checked,
and reported as `compatkit report` does. Nothing in the result depends on the day, the machine or the version.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import yaml
from msgspec.structs import replace

from compatkit import api
from compatkit.headers.sparse import write_gguf, write_safetensors
from compatkit.identify.shapes import example_shapes
from compatkit.knowledge.store import load
from compatkit.render.incident import Incident, incident_markdown
from compatkit.render.markdown import code, escaped
from compatkit.render.redact import Redactor
from compatkit.vocabulary import Report

HERE = Path(__file__).resolve().parent


def incidents() -> list[dict[str, Any]]:
    """The entries of `incidents.yaml`."""
    document: list[dict[str, Any]] = yaml.safe_load((HERE / "incidents.yaml").read_text(encoding="utf-8"))
    return document


def write_file(folder: Path, entry: Mapping[str, Any]) -> Path:
    """One file of a set, or a diffusers folder (`parts`).

    `packed` puts tensors of a share of their bytes in the place of each module's matrices; `lora` makes an adapter of
    the family's matrices that it matches.
    """
    path = folder / str(entry["name"])
    if "parts" in entry:
        return write_folder(path, entry)
    shapes = dict(example_shapes(load().grammar(entry["family"]), entry.get("layout")))
    if "lora" in entry:
        shapes = lora_shapes(shapes, entry["lora"])
    dtypes: dict[str, str] = {}
    if "packed" in entry:
        packed = entry["packed"]
        counts: dict[str, int] = {}
        for name, shape in list(shapes.items()):
            module = re.match(packed["modules"], name)
            if module and len(shape) == 2:
                counts[module[0]] = counts.get(module[0], 0) + prod(shape)
                del shapes[name]
        for module_name, count in counts.items():
            for leaf, share in packed["tensors"].items():
                shapes[f"{module_name}.{leaf}"] = (int(count * share),)
                dtypes[f"{module_name}.{leaf}"] = packed["dtype"]
    if path.suffix == ".gguf":
        write_gguf(path, shapes, entry["type"], entry["metadata"])
    else:
        write_safetensors(path, shapes, entry["dtype"], dtypes=dtypes)
    return path


def write_folder(path: Path, entry: Mapping[str, Any]) -> Path:
    """A diffusers folder: its index, and each part with its config and weights."""
    index: dict[str, Any] = {"_class_name": entry["pipeline"]}
    for name, part in entry["parts"].items():
        (path / name).mkdir(parents=True)
        (path / name / "config.json").write_text(json.dumps({"_class_name": part["class"]}), encoding="utf-8")
        shapes = example_shapes(load().grammar(part["family"]), part.get("layout"))
        write_safetensors(path / name / part["file"], shapes, part["dtype"])
        index[name] = [part["library"], part["class"]]
    (path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return path


def lora_shapes(base: Mapping[str, tuple[int, ...]], lora: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The pair of matrices for each of the base's matrices that `modules` matches, named as `names` says."""
    out: dict[str, tuple[int, ...]] = {}
    for name, shape in base.items():
        module = name.removesuffix(".weight")
        if len(shape) == 2 and re.fullmatch(lora["modules"], module):
            down, up = (n.format(module=module, joined=module.replace(".", "_")) for n in lora["names"])
            out[down], out[up] = (lora["rank"], shape[1]), (shape[0], lora["rank"])
            if lora.get("alpha"):
                out[f"{up.partition('.')[0]}.alpha"] = ()
    return out


def checked(entry: Mapping[str, Any], folder: Path) -> tuple[Report, str]:
    """The report on one set, and its text."""
    report, incident = reported(entry, folder)
    text = incident_markdown(incident)
    text += f"\n## What was tried\n\n{escaped(' '.join(entry['story'].split()))}\n"
    if entry.get("open"):
        text += "\n## What a header cannot decide\n\n" + "".join(f"- {escaped(o)}\n" for o in entry["open"])
    return report, text


def reported(entry: Mapping[str, Any], folder: Path) -> tuple[Report, Incident]:
    """The report on one set, and what is shown of it."""
    paths = [write_file(folder, f) for f in entry["files"]]
    settings = {k: str(v) for k, v in (entry.get("settings") or {}).items()}
    runtimes = entry.get("runtimes") or []
    run: dict[str, Any] = dict(settings)
    report = api.check([str(p) for p in paths], runtime=runtimes, **run)
    words = (
        [p.name for p in paths] + [f"--runtime {r}" for r in runtimes] + [f"--set {k}={v}" for k, v in settings.items()]
    )
    log = entry.get("log")
    incident = Incident(
        Redactor(map(str, paths)).report(_of_interest(report)),
        api.titles(report.components),
        api.causes(log, report.findings) if log else None,
        " ".join(["compatkit report", *words, *(["--log run.log"] if log else [])]),
    )
    return report, incident


def _of_interest(report: Report) -> Report:
    """Without the list of all checks, and without those of parts that the set does not hold: a new rule about adapters
    or workflows changes nothing here."""
    left = tuple(n for n in report.not_checked if n.blocks or n.rule in _TOLD)
    return replace(report, checked=(), not_checked=left)


#: What a reader of these reports needs to know was not looked at, beside what keeps a verdict open.
_TOLD = ("host/disk", "host/memory", "encoder/tokenizer-version")


def made() -> Iterator[tuple[dict[str, Any], Report, str]]:
    """Every incident with its report and text."""
    for entry in incidents():
        with tempfile.TemporaryDirectory(prefix="compatkit-incident-") as folder:
            yield entry, *checked(entry, Path(folder))


def overview(rows: list[tuple[dict[str, Any], Report]]) -> str:
    """The list of all incidents."""
    out = [
        "# Worked incident reports",
        "",
        "Sets that failed real users, and the sets that work. `make incidents` writes these files.",
        "",
    ]
    out += ["| report | what was tried | verdict | errors |", "|-|-|-|-|"]
    for entry, report in rows:
        errors = list(dict.fromkeys(f.rule for f in report.findings if f.level == "error"))
        shown = ", ".join(map(code, errors)) or "-"
        out.append(f"| [{entry['id']}]({entry['id']}.md) | {escaped(entry['title'])} | {report.verdict} | {shown} |")
    return "\n".join(out) + "\n"


def files() -> dict[str, str]:
    """File name -> content, of all that this module writes."""
    out, rows = {}, []
    for entry, report, text in made():
        out[f"{entry['id']}.md"] = text
        rows.append((entry, report))
    return out | {"README.md": overview(rows)}


if __name__ == "__main__":
    for file_name, content in files().items():
        (HERE / file_name).write_text(content, encoding="utf-8")
