"""How many of the reference cases (real incidents and their fixed twins) are answered right, and which are not.

A case is right if verdict, level, rule group and numbers are those of the case and no forbidden rule fires as an
error.

    python -m benchmarks.cases [--all] [--verbose] [NAME…]

Without names: the cases that need only headers, pairs and runtimes, less those that are only about LoRAs or adapters.
Reads the reference data in `../shared` (or $COMPATKIT_SHARED).
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from click.testing import CliRunner

from compatkit.cli import cli

NEEDS = {"header", "pair", "runtime", "workflow"}


def shared() -> Path:
    """The folder of reference data; exits with a sentence where there is none."""
    folder = Path(os.environ.get("COMPATKIT_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "cases").is_dir():
        sys.exit(f"no reference data at {folder}: set COMPATKIT_SHARED")
    return folder


def _builder(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("case_builder", folder / "cases" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wrong(case: dict[str, Any], code: int, output: str) -> list[str]:
    """What is not as the case says; empty if it is right."""
    expect = case["expect"]
    if code not in (0, 1, 3):
        return [f"exit code {code}: {output.strip()[-160:]}"]
    report = json.loads(output)
    findings = report["findings"]
    out = []
    wanted = "pass" if expect["verdict"] == "pass-with-warning" else expect["verdict"]
    if report["verdict"] != wanted:
        shown = [f"{f['level']} {f['rule']}" for f in findings if f["level"] != "info"]
        out.append(f"verdict {report['verdict']}, not {wanted} {shown}")
    hits = [f for f in findings if f["rule"].startswith(tuple(expect["rules_any"]))] if expect["rules_any"] else []
    if expect["rules_any"] and not hits:
        out.append(f"no finding of {expect['rules_any']} ({sorted({f['rule'] for f in findings})})")
    text = json.dumps(hits, ensure_ascii=False)
    out += [f"does not mention {m!r}" for m in expect["must_mention"] if hits and m not in text]
    level = expect["level"]
    if level in ("error", "warning") and hits and level not in {f["level"] for f in hits}:
        out.append(f"level {sorted({f['level'] for f in hits})}, not {level}")
    if level in ("info", "none") and any(f["level"] != "info" for f in findings):
        out.append(f"false alarm {sorted(f['rule'] for f in findings if f['level'] != 'info')}")
    out += [
        f"forbidden {f['rule']}"
        for f in findings
        if f["level"] == "error" and expect["must_not"] and f["rule"].startswith(tuple(expect["must_not"]))
    ]
    return out


def run(case: dict[str, Any], builder: ModuleType, skip: tuple[str, ...] = ()) -> list[str]:
    """Build one case's files, check them, compare."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = builder.build(case, folder)
        here = Path.cwd()
        os.chdir(folder)
        try:
            done = CliRunner().invoke(cli, [*arguments, "--format", "json"])
        finally:
            os.chdir(here)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return [f"{type(done.exception).__name__}: {done.exception}"]
    return wrong(case, done.exit_code, done.stdout)


def main() -> None:
    """Print the misses and the score."""
    names = [a for a in sys.argv[1:] if not a.startswith("-")]
    everything, verbose = "--all" in sys.argv, "--verbose" in sys.argv
    folder = shared()
    builder = _builder(folder)
    groups: dict[str, list[bool]] = {}
    for path in sorted((folder / "cases").glob("*.json")):
        case = json.loads(path.read_text())
        rules = case["expect"]["rules_any"]
        adapters = bool(rules) and all(r.startswith(("lora/", "adapter/")) for r in rules)
        if names:
            if not case["id"].startswith(tuple(names)):
                continue
        elif not everything and (not set(case["needs"]) <= NEEDS or adapters):
            continue
        misses = run(case, builder)
        groups.setdefault(case["id"][0], []).append(not misses)
        if misses or verbose:
            print(f"{case['id']:12} {case['confidence']:4} {case['title'][:70]}")
            for miss in misses:
                print(f"             {miss}")
    total = [ok for rows in groups.values() for ok in rows]
    for group, rows in sorted(groups.items()):
        print(f"{group}: {sum(rows)} of {len(rows)}")
    print(f"right: {sum(total)} of {len(total)} ({100 * sum(total) / max(1, len(total)):.1f} %)")


if __name__ == "__main__":
    main()
