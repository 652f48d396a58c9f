"""The incident report as a document: what `compatkit report` (and the HTML of `check`) is made of.

Nothing is judged here: findings, causes and facts are put beside each other.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from compatkit import __version__
from compatkit.render.blockmap import Map, block_map
from compatkit.render.catalogue import Catalogue, catalogue
from compatkit.render.document import check_document
from compatkit.render.memory import Memory, memory
from compatkit.stacks.lockfile import header_digest
from compatkit.vocabulary import Component, Finding, NotChecked, Report

if TYPE_CHECKING:
    from compatkit.checks.diagnosis import Cause
    from compatkit.render.smokedir import Smoke

#: Maps of coverage on a page.
MAPS = 12

#: Evidence that is two facts to hold against each other: of the first file, its label, of the second, its label.
_PAIRS = (
    ("context_dim", "width of the text features it takes", "output_width", "width of the text features it gives"),
    ("model_channels", "latent channels it makes", "vae_channels", "latent channels it takes"),
    ("model_ndim", "dimensions of its latents", "vae_ndim", "dimensions of the latents it takes"),
    ("latent_space", "latent space it makes", "vae_space", "latent space it takes"),
    ("expected", "encoders it was trained with", "encoder", "encoder this is"),
    ("expected", "what it needs", "clip_type", "what is set"),
    ("expected", "vocabulary the loader builds", "vocab", "vocabulary in the file"),
    ("architecture", "architecture the file names", "accepted", "architectures the loader accepts"),
    ("scheme", "how its weights are packed", "loaders", "loaders that unpack them"),
    ("scheme", "how its weights are packed", "formats", "formats the loader knows"),
    ("pipeline", "pipeline the folder names", "tensors", "class its tensors make"),
    ("since", "version that is needed", "version", "version at hand"),
    ("missing", "parts that are missing", "given", "parts that are there"),
    ("right", "what is needed", "readings", "what its header allows"),
)


_NAME_IT = (
    "Look at the file with `compatkit inspect`; if you know what it is, say so with `--assume FILE=FAMILY`"
    " and check again."
)
_ASK_ANOTHER = "Check it for another runtime (`--runtime comfyui`), or settle what is named above in another way."
_RELY_ON_NOTHING = (
    "Until then this is no yes: nothing that was checked speaks against the set, and not all was checked."
)
_SEE_BELOW = "See the findings below."
_NOTHING = "Nothing needs to change in these files."
_NAME_THE_REST = "Name the other files of the set, too, to have them judged with these."


class Side(NamedTuple):
    """One of two facts that disagree: whose it is (a component's number, 0: the set's), its name, its value."""

    component: int
    label: str
    value: Any


class Incident(NamedTuple):
    """Everything a report shows. `causes` is None where no log was given."""

    report: Report
    titles: Mapping[str, str]
    causes: Sequence[Cause] | None = None
    command: str = ""
    environment: Mapping[str, str] = {}
    smoke: Smoke | None = None
    run: Mapping[str, str] = {}
    cards: Sequence[Mapping[str, Any]] = ()

    def digest(self, component: Component) -> str:
        """The header digest of the source that holds a component, as `stack.lock` has it."""
        return header_digest(c for c in self.report.components if c.source == component.source) or ""

    def names(self, component: Component) -> list[str]:
        """What its family may be called."""
        return [self.titles.get(f, f) for f in component.families]

    def observed(self, finding: Finding) -> list[Cause]:
        """What the log says that this finding explains."""
        return [c for c in self._explained() if c.rule == finding.rule]

    def _explained(self) -> list[Cause]:
        """Of each line of the log the best cause, where the files confirm it; best first."""
        best: dict[str, Cause] = {}
        for cause in self.causes or ():
            best.setdefault(cause.matched, cause)
        return [c for c in best.values() if c.confirmed]

    def said(self) -> list[Cause]:
        """What the log says, best first, without further guesses about lines that a finding explains."""
        from compatkit.checks.diagnosis import telling

        return telling(self.causes or ())

    def maps(self) -> list[Map]:
        """Which blocks of its base each adapter changes."""
        return [m for a in self.report.adapters[:MAPS] if (m := block_map(a)) is not None]

    def memory(self) -> Memory | None:
        """What the weights weigh beside the memory of cards."""
        return memory(self.report, self.cards, self.run)

    def other_causes(self) -> list[Cause]:
        """What the log says and no finding explains."""
        return [c for c in self.said() if not c.confirmed]

    def main(self) -> Finding | None:
        """The finding that the first lines speak of: one the log confirms, else the first of the worst."""
        worst = self.report.worst()
        rank = {c.rule: i for i, c in reversed(list(enumerate(self._explained())))}
        found = sorted(self.report.findings, key=lambda f: (f.level != worst, rank.get(f.rule, len(rank))))
        return found[0] if found and worst != "info" else None

    def fixes(self) -> list[str]:
        """What to do about the errors, else about the warnings: each once."""
        worst = self.report.worst()
        some = [f.fix for f in self.report.findings if f.level == worst and worst != "info" and f.fix]
        return [f for f in dict.fromkeys(some) if not any(f in other for other in some if f != other)]

    def todo(self) -> list[tuple[str, bool]]:
        """What to do, in the order of doing: (sentence, whether it is ours and not a rule's)."""
        fixes = self.fixes()
        if fixes:
            return [(f, False) for f in fixes[:3]]
        if self.report.verdict == "unknown":
            nameless = any(not c.family and c.role == "unknown" for c in self.report.components)
            return [(_NAME_IT if nameless else _ASK_ANOTHER, True), (_RELY_ON_NOTHING, True)]
        other = self.other_causes()
        if other and other[0].fix:
            return [(other[0].fix, False)]
        if self.report.verdict != "pass":
            return [(_SEE_BELOW, True)]
        absent = "; no " in self.report.headline or ", no " in self.report.headline
        return [(_NOTHING, True), *([(_NAME_THE_REST, True)] if absent else [])]

    def blocking(self) -> list[str]:
        """Why a verdict is unknown."""
        out = [f"{n.rule}: {n.why}" for n in self.report.not_checked if n.blocks]
        unknown = [f.message for f in self.report.findings if f.rule == "component/unknown"]
        return list(dict.fromkeys([*unknown, *out]))

    def open_questions(self) -> dict[str, list[NotChecked]]:
        """Reason -> the checks that did not run for it."""
        out: dict[str, list[NotChecked]] = {}
        for item in self.report.not_checked:
            out.setdefault(item.why, []).append(item)
        return out

    def sides(self, finding: Finding) -> tuple[Side, Side] | None:
        """The two facts that disagree, side by side, where the evidence holds such a pair."""
        for first, label, second, other in _PAIRS:
            if first in finding.evidence and second in finding.evidence:
                numbers = [i + 1 for i in finding.components]
                one, two = (numbers[0], numbers[1]) if len(numbers) > 1 else ((numbers or [0])[0],) * 2
                return Side(one, label, finding.evidence[first]), Side(two, other, finding.evidence[second])
        return None

    def evidence(self, finding: Finding) -> dict[str, Any]:
        """The facts of a finding beside the two sides."""
        shown = self.sides(finding)
        taken = next((p for p in _PAIRS if shown and p[1] == shown[0].label and p[3] == shown[1].label), ("",) * 4)
        return {k: v for k, v in finding.evidence.items() if k not in (taken[0], taken[2])}


def labels() -> list[str]:
    """Messages that stand in this module and not in a template."""
    ours = (_NAME_IT, _ASK_ANOTHER, _RELY_ON_NOTHING, _SEE_BELOW, _NOTHING, _NAME_THE_REST)
    return sorted({label for pair in _PAIRS for label in (pair[1], pair[3])} | set(ours))


def this_environment() -> dict[str, str]:
    """What a reader needs to know of the machine that made a report; nothing that names it or its user."""
    return {
        "compatkit": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}".strip(),
    }


def incident_document(incident: Incident) -> dict[str, Any]:
    """The JSON of `compatkit report`: the JSON of `check`, and what the report adds."""
    report, main = incident.report, incident.main()
    observed = incident.observed(main) if main else []
    return {
        "tool": "compatkit",
        "version": __version__,
        "verdict": report.verdict,
        "headline": report.headline,
        "summary": {
            "what": main.message if main else "; ".join(incident.blocking()),
            "predicts": dict(main.predicts) if main else {},
            "observed": observed[0].matched if observed else None,
            "fixes": incident.fixes(),
            "todo": [text for text, _ in incident.todo()],
            "not_checked": len({n.rule for n in report.not_checked}),
        },
        "headers": [
            {"source": source, "sha256": header_digest(c for c in report.components if c.source == source)}
            for source in dict.fromkeys(c.source for c in report.components)
        ],
        "check": check_document(report),
        "smoke": None
        if incident.smoke is None
        else {"verdict": incident.smoke.verdict, "pictures": [p.title for p in incident.smoke.pictures]},
        "log": dict(incident.run),
        "causes": None if incident.causes is None else _causes(incident.causes),
        "environment": dict(incident.environment),
        "reproduce": incident.command,
    }


def _causes(causes: Iterable[Cause]) -> list[dict[str, Any]]:
    from compatkit.render.document import causes_document

    out: list[dict[str, Any]] = causes_document(causes)["causes"]
    return out


def said_in(incident: Incident, language: str) -> Incident:
    """The incident with what rules say in another language."""
    if language == "en":
        return incident
    from compatkit.render.translate import CORE, Sayer, translated

    say = Sayer(language)
    causes = incident.causes and [
        c._replace(message=say.sentence(c.message), fix=say.sentence(c.fix))
        if c.confirmed and c.rule.partition("/")[0] in CORE
        else c._replace(message=say.whole(c.message), fix=say.whole(c.fix))
        for c in incident.causes
    ]
    return incident._replace(report=translated(incident.report, language), causes=causes)


def incident_markdown(incident: Incident, language: str = "en", overrides: Sequence[Any] = ()) -> str:
    """One document that a person would send."""
    from compatkit.render.templating import rendered

    incident = said_in(incident, language)
    return rendered("report.md.j2", False, language, overrides, i=incident, report=incident.report)


def incident_html(incident: Incident, language: str = "en", overrides: Sequence[Any] = ()) -> str:
    """One self-contained page: it loads nothing."""
    from compatkit.render.diagram import diagram
    from compatkit.render.templating import rendered

    incident = said_in(incident, language)
    words: Catalogue = catalogue(language)
    picture = diagram(incident.report, incident.titles, words.gettext)
    return rendered("report.html.j2", True, language, overrides, i=incident, report=incident.report, picture=picture)
