"""JUnit XML: one test case for each check; a finding that makes the run fail is a failure, what was not checked is
skipped with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from xml.etree import ElementTree as ET

from compatkit.render.places import finding_text
from compatkit.render.style import basename, safe
from compatkit.vocabulary import Finding, NotChecked, Report


def check_junit(
    report: Report, fail_on: str = "error", strict: bool = False, known: Callable[[Finding], bool] | None = None
) -> str:
    """The report of `check`. `fail_on` and `strict` as in the exit code; a finding that is `known` is no failure."""
    failing = {"error"} if fail_on == "error" else {"error", "warning"}
    cases = [_verdict(report, strict)]
    found = {f.rule: [g for g in report.findings if g.rule == f.rule] for f in report.findings}
    open_: dict[str, list[NotChecked]] = {}
    for item in report.not_checked:
        open_.setdefault(item.rule, []).append(item)
    for rule in dict.fromkeys([*report.checked, *found]):
        cases.append(_case(rule, found.get(rule, []), failing, report, known or (lambda f: False)))
    for rule, items in open_.items():
        both = rule in report.checked or rule in found
        case = ET.Element("testcase", classname=_group(rule), name=f"{rule} (in part)" if both else rule, time="0")
        ET.SubElement(case, "skipped", message=safe("; ".join(dict.fromkeys(i.why for i in items)), 4000))
        cases.append(case)
    counts = {
        "tests": len(cases),
        "failures": sum(c.find("failure") is not None for c in cases),
        "errors": sum(c.find("error") is not None for c in cases),
        "skipped": sum(c.find("skipped") is not None for c in cases),
    }
    texts = {k: str(v) for k, v in counts.items()} | {"time": f"{report.cost.seconds:.3f}"}
    whole = {k: v for k, v in texts.items() if k != "skipped"}  # that stands on suites alone
    root = ET.Element("testsuites", {"name": "compatkit", **whole})
    suite = ET.SubElement(root, "testsuite", {"name": "compatkit check", **texts})
    properties = ET.SubElement(suite, "properties")
    for name, value in (("verdict", report.verdict), ("headline", report.headline), *_files(report)):
        ET.SubElement(properties, "property", name=name, value=safe(value))
    suite.extend(cases)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _files(report: Report) -> list[tuple[str, str]]:
    return [
        (f"file {i}", f"{basename(c.source)}: {c.role}, {c.family or c.title or 'not recognised'}")
        for i, c in enumerate(report.components, 1)
    ]


def _group(rule: str) -> str:
    return f"compatkit.{rule.partition('/')[0]}"


def _verdict(report: Report, strict: bool) -> ET.Element:
    """The set as a whole: an unknown verdict is no failure of a check, and must be seen."""
    case = ET.Element("testcase", classname="compatkit.set", name="verdict", time="0")
    if report.verdict == "unknown":
        blocking = [f"{n.rule}: {n.why}" for n in report.not_checked if n.blocks]
        why = safe("; ".join(blocking) or report.headline or "a file was not recognised", 4000)
        ET.SubElement(case, "error" if strict else "skipped", message=f"the verdict is unknown - {why}")
    return case


def _case(
    rule: str, findings: Sequence[Finding], failing: set[str], report: Report, known: Callable[[Finding], bool]
) -> ET.Element:
    case = ET.Element("testcase", classname=_group(rule), name=rule, time="0")
    for failed, element in ((True, "failure"), (False, "system-out")):
        some = [f for f in findings if (f.level in failing and not known(f)) is failed]
        if not some:
            continue
        child = ET.SubElement(case, element)
        if failed:
            child.set("message", safe(" / ".join(f.message for f in some), 2000))
            child.set("type", some[0].level)
        child.text = safe("\n\n".join(_text(f, report) for f in some), 16_000)
    return case


def _text(finding: Finding, report: Report) -> str:
    names = [basename(report.components[i].source) for i in finding.components if i < len(report.components)]
    head = f"{finding.level}: {', '.join(dict.fromkeys(names))}" if names else finding.level
    return f"{head}\n{finding_text(finding)}"
