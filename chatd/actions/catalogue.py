"""Which quick actions a department has, and which of them fit an answer.

The rows are data (``catalogue.json``): label, risk, FHIR draft, protocols, words, signals. A hospital changes the file,
not this code. Ranking is by rules, deterministic, and only ever orders rows of the department's own catalogue; a model
may later put them in another order, never add one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib import resources
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from context.layers import Action

#: Chips under an answer: more than this is a menu, which the department's own list already is.
MAX_ACTIONS: Final = 5
#: Points under which an action is not offered: a protocol that it serves, a signal, or two of its words.
ENOUGH: Final = 4
#: The best fitting protocol gives the most, each one after it one less.
FIRST_PROTOCOL, LEAST_PROTOCOL = 7, 4
#: The first word of an action in the question, each further one (up to three in all), and one in a problem.
FIRST_WORD, NEXT_WORD, PROBLEM_WORD = 3, 2, 1
#: A signal of triage (a recognised emergency, a critical result, NEWS2) that calls for the action.
SIGNAL: Final = 6
#: The question asks for the act itself ("order a lactate", "avisar o cirurgião").
EXPLICIT: Final = 3

#: What may not wait goes before what fits as well; it makes nothing fit.
STAT: Final = 1
#: Taken from a test whose result is hours old, unless the question asks for the act.
FRESH_RESULT: Final = 4

_ASKS_TO_ACT = re.compile(
    r"\b(?:order|request|send|repeat|recheck|check|call|notify|activate|schedule|book|arrange|open|calculate|consult|"
    r"draft|record|get|ask|inform|alert|pedir|pede|peca|solicitar|repetir|chamar|chama|avisar|avisa|ativar|ativa|activar|"
    r"marcar|marca|agendar|abrir|abre|calcular|calcula|consultar|contactar|registar|informar)\b"
)


class Cue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Points for what is neither word, protocol nor signal: an intent of the question, or a safety check of a level.

    about: words of which one must stand in the check's id or text; empty: any check of that level.
    """

    points: Annotated[int, Meta(ge=1, le=9)]
    intent: str = ""
    check: Literal["", "info", "warning", "critical"] = ""
    about: tuple[str, ...] = ()


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The alert that confirming an action raises.

    department: whose; empty, or one that this hospital has not: the action's own. role: only who holds it there.
    policy: an escalation policy; empty: by department and priority.
    """

    priority: Literal["low", "normal", "high", "critical"]
    department: str = ""
    role: str = ""
    policy: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One action as the file has it; see ``context.layers.Action`` for the fields that go into the layer.

    signals: ids of red flags that call for it. cues: other points. gives: the value or kind of report that it orders.
    alert: whom it calls when it is confirmed; None: nobody.
    """

    label: Annotated[str, Meta(min_length=1, max_length=60)]
    label_pt: Annotated[str, Meta(min_length=1, max_length=60)]
    risk: Literal["none", "confirm", "confirm_id"]
    fhir: Literal[
        "ServiceRequest", "CommunicationRequest", "Task", "Appointment", "MedicationRequest", "AllergyIntolerance"
    ]
    priority: Literal["routine", "urgent", "asap", "stat"]
    protocols: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    cues: tuple[Cue, ...] = ()
    gives: str = ""
    alert: Call | None = None


class Catalogue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file: which department has which actions, in the order of the department's own list, and the actions."""

    departments: dict[str, tuple[str, ...]]
    actions: dict[str, Row]


@functools.lru_cache(maxsize=1)
def _catalogue() -> Catalogue:
    raw = resources.files("chatd.actions").joinpath("catalogue.json").read_bytes()
    return msgspec.json.decode(raw, type=Catalogue)


def departments() -> tuple[str, ...]:
    """Ids of the departments that have a catalogue."""
    return tuple(_catalogue().departments)


def catalogue_of(department_id: str) -> tuple[Action, ...]:
    """The actions of a department in its own order; () for an unknown one."""
    catalogue = _catalogue()
    actions = []
    for id_ in catalogue.departments.get(department_id, ()):
        row = catalogue.actions[id_]
        actions.append(
            Action(
                id=id_,
                label=row.label,
                label_pt=row.label_pt,
                risk=row.risk,
                fhir=row.fhir,
                protocols=row.protocols,
                priority=row.priority,
                terms=row.terms,
            )
        )
    return tuple(actions)


def alert_of(action_id: str) -> Call | None:
    """The alert that confirming an action raises; None for one that calls nobody, and for one that is not there."""
    row = _catalogue().actions.get(action_id)
    return None if row is None else row.alert


class AskedQuestion(Protocol):
    """What ranking reads of a question: ``affirmed`` is folded and without what is denied in it."""

    @property
    def affirmed(self) -> str: ...
    @property
    def in_scope(self) -> bool: ...
    @property
    def intents(self) -> tuple[str, ...]: ...


class _Named(Protocol):
    @property
    def id(self) -> str: ...


class _Finding(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def text(self) -> str: ...


class KnownFacts(Protocol):
    """What ranking reads of the facts: protocols in their order, signals, checks, problems, fresh results."""

    @property
    def protocols(self) -> Sequence[_Named]: ...
    @property
    def signals(self) -> Sequence[str]: ...
    @property
    def checks(self) -> Sequence[_Finding]: ...
    @property
    def problems_folded(self) -> str: ...
    @property
    def fresh(self) -> Sequence[str]: ...
    @property
    def deceased(self) -> bool: ...


@functools.lru_cache(maxsize=4096)
def _word(term: str) -> re.Pattern[str]:
    """A term as a whole word; one of five letters or more also as the beginning of a longer word."""
    tail = "" if len(term) >= 5 else r"(?![a-z0-9])"
    return re.compile(rf"(?<![a-z0-9]){re.escape(term)}{tail}")


def _words_in(terms: Sequence[str], text: str) -> int:
    """How many different places of ``text`` the terms name; overlapping terms ("ecg", "order ecg") count once."""
    taken: list[tuple[int, int]] = []
    # Most terms are not in the text at all, which a plain search tells much sooner than an expression.
    for term in sorted((term for term in terms if term in text), key=lambda term: (-len(term), term)):
        for match in _word(term).finditer(text):
            if all(match.end() <= start or match.start() >= end for start, end in taken):
                taken.append(match.span())
    return len(taken)


def points(action: Action, question: AskedQuestion, facts: KnownFacts) -> int:
    """How well an action fits; ``ENOUGH`` or more is offered. An action that the file does not know has no signals."""
    row = _catalogue().actions.get(action.id)
    asked = _ASKS_TO_ACT.search(question.affirmed) is not None
    total = 0
    ranked = list(dict.fromkeys(quote.id for quote in facts.protocols))
    served = [place for place, id_ in enumerate(ranked) if id_ in action.protocols]
    if served:
        total += max(FIRST_PROTOCOL - served[0], LEAST_PROTOCOL)
    words = min(_words_in(action.terms, question.affirmed), 3)
    if words:
        total += FIRST_WORD + NEXT_WORD * (words - 1)
        total += EXPLICIT if asked else 0
    total += PROBLEM_WORD * min(_words_in(action.terms, facts.problems_folded), 2)
    if row is None:
        return total
    if _signalled(row.signals, facts.signals):
        total += SIGNAL
    for cue in row.cues:
        if cue.intent and cue.intent in question.intents and (words or served):
            total += cue.points
        if cue.check and any(
            check.level == cue.check
            and (not cue.about or any(word in f"{check.id} {check.text}".lower() for word in cue.about))
            for check in facts.checks
            if not check.id.startswith(("identity.", "patient.", "held."))
        ):
            total += cue.points
    if row.gives and row.gives in facts.fresh and not (asked and words):
        total -= FRESH_RESULT
    return total


def _signalled(wanted: Sequence[str], signals: Sequence[str]) -> bool:
    """Whether a signal is wanted; a wanted "critical.potassium" also takes "critical.potassium.high"."""
    return any(signal == want or signal.startswith(want + ".") for want in wanted for signal in signals)


def rank(
    actions: Sequence[Action], question: AskedQuestion, facts: KnownFacts, *, limit: int = MAX_ACTIONS
) -> tuple[Action, ...]:
    """The actions of ``actions`` that fit, best first, at most ``limit``; ties keep the catalogue's order.

    None for a question out of scope, and none for a patient who has died. Same input, same order.
    """
    if not question.in_scope or facts.deceased:
        return ()
    scored = [(points(action, question, facts), place, action) for place, action in enumerate(actions)]
    fitting = sorted(
        (entry for entry in scored if entry[0] >= ENOUGH),
        key=lambda entry: (-entry[0] - STAT * (entry[2].priority == "stat"), entry[1]),
    )
    return tuple(action for _, _, action in fitting[:limit])
