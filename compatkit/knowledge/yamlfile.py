"""Reading YAML rule files so that every complaint names file, line and column.

PyYAML is imported here only, and this module only when rules are compiled or checked: an ordinary run reads compiled
JSON.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from compatkit.sources.naming import closest
from compatkit.vocabulary import RulesError

#: Where a value stands: the keys and list indexes that lead to it -> (line, column), both from 1.
Positions = dict[tuple[Hashable, ...], tuple[int, int]]


class RuleFileError(RulesError):
    """A rule file that is refused. The text is one line: `file:line:column: what is wrong`."""

    def __init__(self, path: Path | str, line: int, column: int, message: str) -> None:
        self.path, self.line, self.column, self.message = str(path), line, column, message
        super().__init__(f"{path}:{line}:{column}: {message}")


class RuleFile:
    """One YAML document with the position of every value.

    `data` is plain dicts, lists and scalars. Duplicate keys are refused.
    """

    def __init__(self, path: Path, data: Any, positions: Positions) -> None:
        self.path, self.data, self.positions = path, data, positions
        self.shown = ""

    @property
    def told(self) -> str:
        """How people are told of it: `shown`, or the path where nothing else is given."""
        return self.shown or str(self.path)

    def error(self, where: tuple[Hashable, ...], message: str) -> RuleFileError:
        """An error at `where`, or at the closest enclosing value whose position is known."""
        while where and where not in self.positions:
            where = where[:-1]
        line, column = self.positions.get(where, (1, 1))
        return RuleFileError(self.path, line, column, message)


def load(path: Path) -> RuleFile:
    """Read one rule file.

    Raises:
        RuleFileError: not UTF-8, not YAML, a duplicate key, or a tag that builds objects.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise RuleFileError(path, 1, 1, f"not UTF-8 text (byte {e.start})") from None
    positions: Positions = {}
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = _build(node, (), positions, path) if node is not None else {}
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise RuleFileError(path, line, column, e.problem or "not YAML") from None
    return RuleFile(path, data, positions)


_scalars = yaml.SafeLoader("")
#: libyaml's parser where PyYAML was built with it: six times as fast, the same documents.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


#: No rule file nests deeper or holds more values; aliases that hold themselves or multiply do.
_DEEPEST, _MOST = 40, 200_000


def _build(node: yaml.Node, where: tuple[Hashable, ...], positions: Positions, path: Path) -> Any:
    if len(where) > _DEEPEST or len(positions) > _MOST:
        what = "values are nested too deeply" if len(where) > _DEEPEST else "there are too many values"
        raise RuleFileError(path, node.start_mark.line + 1, node.start_mark.column + 1, f"{what} (an alias?)")
    positions[where] = (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.MappingNode):
        out: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            key = _build(key_node, (*where, "<key>"), {}, path) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, (str, int, float, bool)):
                raise RuleFileError(path, mark.line + 1, mark.column + 1, "a key must be a plain scalar")
            if key in out:
                raise RuleFileError(path, mark.line + 1, mark.column + 1, f"key {key!r} stands here twice")
            out[key] = _build(value_node, (*where, key), positions, path)
            positions[(*where, key)] = (mark.line + 1, mark.column + 1)
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, (*where, i), positions, path) for i, child in enumerate(node.value)]
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
        raise RuleFileError(
            path, node.start_mark.line + 1, node.start_mark.column + 1, f"tag {node.tag} is not allowed"
        )
    if node.tag == "tag:yaml.org,2002:timestamp":  # dates stay text: 2024-08-01
        return str(node.value)
    return _scalars.construct_object(node, deep=True)


def nearest(word: str, known: Any) -> str:
    """`; did you mean …?` or nothing."""
    close = closest(word, known)
    return f"; did you mean {close!r}?" if close else ""
