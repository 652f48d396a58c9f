"""`compatkit explain`: a rule, a family, or an error text in words."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compatkit.cli.options import coloured, fit_terminal, rules_option

if TYPE_CHECKING:
    from compatkit.knowledge.store import Knowledge

#: More of a log is not read: the error stands near its end, but whole sessions are pasted.
MAX_LOG = 16 << 20


@click.command("explain")
@click.argument("words", nargs=-1, metavar="[RULE|FAMILY|TEXT|SOURCE…]")
@click.option(
    "--log",
    "log",
    metavar="FILE|-",
    help="Diagnose this log (or - for standard input); further words are the set's files.",
)
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@rules_option
def command(words: tuple[str, ...], log: str | None, format_: str, color: str, rules: tuple[Path, ...]) -> None:
    """Explain a RULE (encoder/width), a group of them (lora), a model FAMILY, an error TEXT, or a log.

    \b
      compatkit explain encoder/width
      compatkit explain "mat1 and mat2 shapes cannot be multiplied (512x7680 and 12288x4096)"
      compatkit explain --log comfyui.log dit.gguf encoder.gguf vae.safetensors

    With files named beside a log, the set is checked and the finding that explains the message comes first.
    """
    fit_terminal()
    if log is not None:
        _diagnosed(read_log(log), words, format_, color, rules)
    elif len(words) == 1 and not any(c.isspace() for c in words[0]):
        _described(words[0], format_, color, rules)
    elif words:
        _diagnosed(" ".join(words), (), format_, color, rules)
    else:
        raise click.UsageError("Name a rule or a family, give an error text in quotes, or a log with --log.")


def _described(name: str, format_: str, color: str, rules: tuple[Path, ...]) -> None:
    from compatkit.knowledge.store import load
    from compatkit.render import described
    from compatkit.render.document import as_json
    from compatkit.render.explain import family_text, rule_text
    from compatkit.render.style import Paint

    knowledge = load(rules)
    paint = Paint(coloured(color))
    checks = {str(c["id"]): c for c in knowledge.checks()}
    causes = {rule: rows for rule, rows in described.causes(knowledge).items() if rule not in checks}
    found = described.look_up(name, checks, knowledge.members(), causes)
    if found is None:
        raise click.UsageError(f"There is no rule or family {name!r}.{_hint(name, checks, knowledge)}")
    document: dict[str, Any]
    if found.kind == "rule":
        document, text = described.rule_document(checks[found.id]), rule_text(checks[found.id], paint)
    elif found.kind == "family":
        card, grammar = knowledge.family(found.id), knowledge.grammar(found.id)
        document, text = described.family_document(card, grammar), family_text(card, grammar, paint)
    elif found.kind == "cause":
        document = described.cause_document(found.id, causes[found.id])
        text = described.cause_text(found.id, causes[found.id], paint)
    else:
        mine = [c for rule, c in checks.items() if rule.startswith(f"{found.id}/")]
        known = {rule: rows for rule, rows in causes.items() if rule.startswith(f"{found.id}/")}
        document = described.group_document(found.id, mine, known)
        text = described.group_text(found.id, mine, known, paint)
    click.echo(as_json(document) if format_ == "json" else text.rstrip("\n"), color=True)


def _hint(name: str, checks: Iterable[str], knowledge: Knowledge) -> str:
    """What a name that is not known may have been meant to be."""
    from compatkit.render.described import alike

    titles = {f: str(knowledge.family(f).get("title") or "") for f in knowledge.members()}
    close, more = alike(name, checks, titles)
    if not close:
        return " `compatkit rules list` names them all."
    shown = ", ".join(close[:-1]) + (" or " if len(close) > 1 else "") + close[-1]
    rest = f" (or one of {more} more: `compatkit rules list` names them all)" if more else ""
    return f" Did you mean {shown}?{rest}"


def read_log(log: str) -> str:
    """A log, or its end where it is long; `-` is standard input."""
    try:
        raw = sys.stdin.buffer.read(MAX_LOG) if log == "-" else _tail(Path(log))
    except OSError as e:
        raise click.UsageError(f"--log {log}: {e.strerror or e}.") from None
    return raw.decode("utf-8", "replace")


def _tail(path: Path) -> bytes:
    if not path.is_file():
        raise OSError(0, "not a file")
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - MAX_LOG))
        return f.read(MAX_LOG)


def _diagnosed(text: str, sources: tuple[str, ...], format_: str, color: str, rules: tuple[Path, ...]) -> None:
    from compatkit import api
    from compatkit.render import document
    from compatkit.render.explain import causes_text
    from compatkit.render.style import Paint

    causes = api.diagnose(text, sources, rules=rules)
    said = api.run_facts(text, rules)
    if format_ == "json":
        click.echo(document.as_json(document.causes_document(causes, said)))
    else:
        click.echo(causes_text(causes, Paint(coloured(color)), said, bool(sources)), nl=False, color=True)
    raise click.exceptions.Exit(0 if causes else 3)
