"""The lines of a log as they are compared with messages: without colours, time stamps and what a container puts first.

Logs are untrusted: lines are cut, and of a long log only both ends are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

#: Of a line, its beginning and its end are looked at; of a log, the same.
LINE_HEAD, LINE_TAIL = 600, 300
HEAD, TAIL = 4_000, 16_000
#: A line that begins so far to the right goes on with the one before it, if that one is so long: a narrow terminal.
INDENT, FULL = 12, 40
#: So many lines after an exception say that it was met, while a package was imported, and passed over.
PASSED_OVER = 6

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
#: What stands before a message: quotes, a container's or a server's name, a time, a level, a logger.
_PREFIX = re.compile(
    r"^(?:(?:[>|│┃]\s?)+|[\w.-]{1,40}\s{1,20}\| |E {3,}|[-*]\s+(?=\*\*)"
    r"|\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?Z?\]?:?(?: - )?\s*"
    r"|\[?\d\d:\d\d:\d\d(?:[.,-]\d+)?\]?\s+"
    r"|(?:[\w.]{1,40} - )?\[?(?i:error|warn(?:ing)?|info|debug|critical)\s?\]?(?: - |\s*-->\s*)"
    r"|(?:ERROR|WARNING|INFO|DEBUG|CRITICAL):[\w.]{1,60}:"
    r"|\[(?i:error|warn(?:ing)?|info|debug|critical)\s?\]\s*|:*\[[\w .-]{1,40}\]::(?:[A-Z]+ --> )?"
    r"|\[[\w-]{1,30}/STD(?:ERR|OUT)\]\s*|[\w-]{1,30} on port \d+ std(?:err|out): )"
)
_LEVEL = re.compile(r"\b(?:(?P<low>INFO|DEBUG|Info|Debug)|(?P<high>ERROR|CRITICAL|Error|FATAL))\b ?(?:\]|-|:| {2,}|$)")
#: The last line of a traceback, how runtimes announce one, and what torch only says in one.
_EXCEPTION = re.compile(
    r"^(?:\[[^\]]*\] )?(?:!!! Exception\b|\W{0,4}Exception Message\b|Assertion failed\b"
    r"|(?:[A-Z]\w+ )?(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Interrupt)\b ?[:(]"
    r"|mat1 and mat2 shapes|Given (?:groups|transposed|normalized_shape)=|The size of tensor a |Sizes of tensors must "
    r"|CUDA (?:error:|out of memory))"
)
_IMPORTED = re.compile(r"(?i)\bfor custom nodes\b|IMPORT FAILED|\bprestartup|failed to import module")
_ANNOUNCED = re.compile(r"^Error occurred when executing ")
_FRAME = re.compile(r'^(?:File "|[\^~]|Traceback|\[|INFO\b|WARNING\b|ERROR\b|DEBUG\b|[-*•└├] )')
#: A server's answer holds the message in JSON, between pages of graph.
_ANSWER = re.compile(r'"exception_message": ?"((?:[^"\\]|\\.){1,2000})"')
_TROUBLE = re.compile(
    r"(?i)error|exception|traceback|fail|invalid|unsupported|unknown|missing|mismatch|cannot|unable|unexpected|expected"
    r"|\bno[tn]?\b|n['’]t\b|\bmust\b|\bonly\b|\bout of\b|\boom\b|incompatib|wrong"
    r"|\btoo ?(?:large|small|old|few|many|long)|corrupt|truncat|incomplete|\bnan|black|\bnois|different|instead"
    r"|\bneeds?\b|require|ignor|skipp|unused|killed"
    r"|denied|refused|abort|assert|forbidden|unauthori|\b40[134]\b|unrecogni|outdated|blank|crash|broken|left ?over"
)
#: Said at a low level, only these words speak of more than progress.
_PLAIN = re.compile(r"(?i)error|exception|traceback|fail|cannot|invalid|unsupported|mismatch|not loaded|\bNaN")


class Line(NamedTuple):
    """A line: does it end a run with an exception, do its words or its level speak of trouble, is it of a traceback?"""

    text: str
    raised: bool
    trouble: bool
    frame: bool = False


def read(text: str) -> list[Line]:
    """The lines that are looked at, what a narrow terminal broke put together again."""
    lines = text.splitlines()
    if len(lines) > HEAD + TAIL:
        lines = lines[:HEAD] + lines[-TAIL:]
    out: list[Line] = []
    announced = frame = False
    for raw in _whole(lines):
        for line in _said(raw):
            here = line.text.startswith('File "')
            line = line._replace(frame=here or (frame and not line.raised))
            announces = bool(_ANNOUNCED.match(line.text))
            out.append(line._replace(raised=True, trouble=True) if announced or announces else line)
            announced, frame = announces, here
    return _without_imports(out)


def _without_imports(lines: list[Line]) -> list[Line]:
    """Exceptions of packages that were passed over at the start did not end the run, if another did."""
    passed = set()
    for i, line in enumerate(lines):
        if line.raised and any(_IMPORTED.search(x.text) for x in lines[i + 1 : i + 1 + PASSED_OVER]):
            passed.add(i)
    if not passed or not any(line.raised and i not in passed for i, line in enumerate(lines)):
        return lines
    return [line._replace(raised=False) if i in passed else line for i, line in enumerate(lines)]


def _whole(lines: list[str]) -> Iterator[str]:
    """Lines that are not empty, without colours; a line far to the right joins the one before it."""
    held = ""
    for raw in lines:
        line = _ANSI.sub("", _cut(raw.rstrip()))
        plain = line.strip()
        if not plain:
            continue
        goes_on = len(line) - len(line.lstrip(" ")) >= INDENT and len(held) >= FULL and len(held) < LINE_HEAD
        if goes_on and not held.startswith(" ") and not _FRAME.match(plain) and not _FRAME.match(held):
            held = f"{held} {plain}"
            continue
        if held:
            yield held
        held = line
    if held:
        yield held


def _said(raw: str) -> Iterator[Line]:
    level = _LEVEL.search(raw[:80])
    text = raw.strip()
    for _ in range(6):
        match = _PREFIX.match(text)
        if match is None or match.end() == len(text):
            break
        text = text[match.end() :]
    raised = bool(_EXCEPTION.match(text))
    if level and level["low"]:
        trouble = raised or bool(_PLAIN.search(text))
    else:
        trouble = raised or bool(level) or bool(_TROUBLE.search(text))
    yield Line(text, raised, trouble)
    answer = _ANSWER.search(raw)
    if answer:
        said = answer[1].replace("\\n", " ").replace('\\"', '"').replace("\\\\", "\\").strip()
        yield Line(said, raised=True, trouble=True)


def _cut(line: str) -> str:
    if len(line) <= LINE_HEAD + LINE_TAIL:
        return line
    answer = _ANSWER.search(line)
    middle = f" … {answer[0]} … " if answer else " … "
    return line[:LINE_HEAD] + middle + line[-LINE_TAIL:]
