"""Expressions over the symbols of a shape grammar: `3*hidden`, `hidden // heads`, `o != i`, `a if big else b`.

Rule authors write them as text. `parse` turns text into plain JSON (an int, a symbol's name, or a list `[operator,
operand…]`), which is what compiled rules hold; `evaluate` computes it. Nothing is ever given to Python's own `eval`.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

#: A compiled expression: int | symbol name | [operator, operand, …].
Expr = Any


class ExprError(ValueError):
    """Text that is not an expression of this little language."""


_BINARY: dict[type, str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Div: "/",
    ast.Mod: "%",
}
_COMPARE: dict[type, str] = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_FUNCTIONS = {"ceil_to": 2, "max": 2, "min": 2, "sqrt": 1}
_LONGEST = 400


def parse(text: str | int, substitute: Mapping[str, Expr] | None = None) -> Expr:
    """Compile one expression; names found in `substitute` are replaced (the parameters of a part).

    Raises:
        ExprError: with a sentence saying what is not understood.
    """
    if isinstance(text, bool):
        return int(text)
    if isinstance(text, int):
        return text
    return _compile(_tree(str(text).strip()), substitute or {}, str(text))


@lru_cache(maxsize=4096)
def _tree(text: str) -> ast.expr:
    if len(text) > _LONGEST:  # Python's parser recurses
        raise ExprError(f"{text[:40]!r}… is too long for an expression")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        raise ExprError(f"{text!r} is not an expression") from None


def _compile(node: ast.expr, sub: Mapping[str, Expr], text: str) -> Expr:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return int(node.value)
    if isinstance(node, ast.Name):
        return sub.get(node.id, node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return fold(["-", 0, _compile(node.operand, sub, text)])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return fold(["not", _compile(node.operand, sub, text)])
    if isinstance(node, ast.IfExp):
        parts = [_compile(n, sub, text) for n in (node.test, node.body, node.orelse)]
        return parts[1 if parts[0] else 2] if isinstance(parts[0], int) else ["if", *parts]
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return fold([_BINARY[type(node.op)], _compile(node.left, sub, text), _compile(node.right, sub, text)])
    if isinstance(node, ast.BoolOp):
        op = "and" if isinstance(node.op, ast.And) else "or"
        return fold([op, *(_compile(v, sub, text) for v in node.values)])
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
        left, right = _compile(node.left, sub, text), _compile(node.comparators[0], sub, text)
        return fold([_COMPARE[type(node.ops[0])], left, right])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        name, arguments = node.func.id, [_compile(a, sub, text) for a in node.args]
        if len(arguments) == _FUNCTIONS.get(name):
            return fold([name, *arguments])
    raise ExprError(f"{text!r}: {ast.unparse(node)!r} is not understood here")


def fold(expr: Expr) -> Expr:
    """Compute what holds no symbol; settle `x == x` and `x != x` for equal operands."""
    if not isinstance(expr, list):
        return expr
    if all(isinstance(e, int) for e in expr[1:]):
        return evaluate(expr, {})
    if expr[0] == "==" and expr[1] == expr[2]:
        return 1
    if expr[0] == "!=" and expr[1] == expr[2]:
        return 0
    if expr[0] == "*" and 1 in expr[1:]:
        return expr[2] if expr[1] == 1 else expr[1]
    return expr


def symbols(expr: Expr) -> set[str]:
    """Names of the symbols an expression depends on."""
    if isinstance(expr, str):
        return {expr}
    if isinstance(expr, list):
        return set().union(*(symbols(e) for e in expr[1:]))
    return set()


def evaluate(expr: Expr, env: Mapping[str, int]) -> int:
    """The value under `env`.

    Division is exact: `hidden / heads` where it does not divide is -1, which no shape equals; so is `sqrt`.

    Raises:
        KeyError: a symbol is not bound.
    """
    if type(expr) is int:
        return expr
    if type(expr) is str:
        return env[expr]
    op = expr[0]
    if op == "and":
        return int(all(evaluate(e, env) for e in expr[1:]))
    if op == "or":
        return int(any(evaluate(e, env) for e in expr[1:]))
    if op == "if":
        return evaluate(expr[2] if evaluate(expr[1], env) else expr[3], env)
    a = evaluate(expr[1], env)
    if op == "not":
        return int(not a)
    if op == "sqrt":
        root = math.isqrt(a) if a >= 0 else -1
        return root if root * root == a else -1
    b = evaluate(expr[2], env)
    if op == "*":
        return a * b
    if op == "+":
        return a + b
    if op == "-":
        return a - b
    if op == "/":
        return a // b if b and a % b == 0 else -1
    if op == "//":
        return a // b if b else -1
    if op == "%":
        return a % b if b else -1
    if op == "==":
        return int(a == b)
    if op == "!=":
        return int(a != b)
    if op == "<":
        return int(a < b)
    if op == "<=":
        return int(a <= b)
    if op == ">":
        return int(a > b)
    if op == ">=":
        return int(a >= b)
    if op == "ceil_to":
        return -(-a // b) * b if b else -1
    return max(a, b) if op == "max" else min(a, b)


def solve_for(expr: Expr, symbol: str, value: int, env: Mapping[str, int]) -> int | None:
    """The integer that `symbol` must have for a linear `expr` to equal `value`, or None.

    Works for expressions linear in the symbol (`3*hidden`, `emb + 6*256`); all other symbols must be in `env`.
    """
    try:
        at = [evaluate(expr, {**env, symbol: x}) for x in (0, 840, 1680)]
    except KeyError:
        return None
    step = at[1] - at[0]
    if step == 0 or at[2] - at[1] != step:
        return None
    scaled = (value - at[0]) * 840
    if scaled % step:
        return None
    found = scaled // step
    return found if found >= 0 and evaluate(expr, {**env, symbol: found}) == value else None


def text(expr: Expr) -> str:
    """The expression as a reader would write it."""
    if not isinstance(expr, list):
        return str(expr)
    if expr[0] in _FUNCTIONS:
        return f"{expr[0]}({', '.join(text(e) for e in expr[1:])})"
    if expr[0] == "if":
        return f"{text(expr[2])} if {text(expr[1])} else {text(expr[3])}"
    if expr[0] == "not":
        return f"not ({text(expr[1])})" if isinstance(expr[1], list) else f"not {expr[1]}"
    return f" {expr[0]} ".join(f"({text(e)})" if isinstance(e, list) else str(e) for e in expr[1:]).replace(" * ", "*")
