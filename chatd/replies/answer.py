"""The final reply without a language model: the facts in sentences, each cited, and nothing else.

Pure: the same facts, layers and ids give the same bytes. Every number of a reply stands in the record, in a quoted
protocol, in a score or in a date; a protocol speaks in quotation marks and is never turned into an order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final
from typing import Protocol as Shape

import msgspec

from chatd.actions.catalogue import rank
from chatd.actions.rules import PROPOSAL_TTL, Proposal, needs_patient, propose, proposed_action
from chatd.replies.facts import FactsResult
from chatd.replies.values import stamp
from chatd.replies.wording import say
from context.layers import Layers
from protocols.frames import (
    AiResponse,
    Check,
    Citation,
    Content,
    Fact,
    ProtocolQuote,
    Score,
    Status,
    StructuredData,
)

#: The wire's bound of a headline, in characters.
MAX_HEADLINE: Final = 140
#: A name longer than this would leave no room for the finding.
MAX_NAME: Final = 40
#: Lines of protocols under one answer; the ``facts`` frame has all of them.
MAX_RECOMMENDATIONS: Final = 16


class Citations:
    """Numbers from 1 in the order of first use; the same source has one number."""

    def __init__(self, rows: Iterable[Citation] = ()) -> None:
        self.rows: list[Citation] = list(rows)
        self._numbers: dict[str, int] = {row.ref: row.n for row in self.rows}

    def chart(self, fact: Fact) -> int | None:
        """The number of a fact's chart item; None for a fact without one."""
        return None if fact.ref is None else self.item(fact.ref, fact.name, fact.as_of)

    def item(self, ref: str, name: str, as_of: str | None) -> int:
        """The number of a chart item by its reference."""
        if ref not in self._numbers:
            self._numbers[ref] = len(self.rows) + 1
            self.rows.append(Citation(n=len(self.rows) + 1, kind="chart", ref=ref, as_of=as_of, title=name))
        return self._numbers[ref]

    def protocol(self, quote: ProtocolQuote) -> int:
        """The number of a protocol's section."""
        ref = f"{quote.id}#{quote.section}"
        if ref not in self._numbers:
            self._numbers[ref] = len(self.rows) + 1
            self.rows.append(
                Citation(
                    n=len(self.rows) + 1,
                    kind="protocol",
                    ref=ref,
                    title=quote.title,
                    quote=quote.quote,
                    source=quote.source,
                    year=quote.year,
                )
            )
        return self._numbers[ref]


def cut(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` characters, cut between words and marked with "…"; never inside a number."""
    if len(text) <= limit:
        return text
    kept = text[: limit - 1]
    if not text[limit - 1].isspace():
        before, space, _ = kept.rpartition(" ")
        kept = before if space else re.sub(r"[\d.,]+$", "", kept)
    return kept.rstrip(" ,;:.") + "…"


#: Where a source's first part ends: a semicolon outside of brackets; and what may be left out at its end.
_PART_END = re.compile(r";(?![^()]*\))")
_LAST_BRACKETS = re.compile(r"\s*\([^()]*\)$")


def short_source(quote: ProtocolQuote) -> str:
    """A source for a sentence: "ACC/AHA ACS guideline 2025" of "ACC/AHA ACS guideline 2025 (Circulation ...); ..."."""
    name = _LAST_BRACKETS.sub("", _PART_END.split(quote.source)[0].strip())
    if quote.year is not None and str(quote.year) not in name:
        name = f"{name} {quote.year}"
    return cut(name, 90)


def marks(numbers: Iterable[int | None]) -> str:
    """Citation marks for the end of a line: " [1] [3]", each once."""
    return "".join(f" [{n}]" for n in dict.fromkeys(numbers) if n is not None)


def findings_of(facts: FactsResult, citations: Citations) -> tuple[str, ...]:
    """Critical results, what was asked, the rest; all allergies in one line of their own, before the rest."""
    lines: list[str] = []
    rows = facts.facts
    first = [n for n, fact in enumerate(rows) if fact.kind == "demographic" and n not in facts.asked]
    lead = [n for n in first if n == 0] if facts.deceased else []
    order = [*lead, *facts.critical, *(n for n in facts.asked if n not in facts.critical)]
    order += [n for n in range(len(rows)) if n not in order]
    allergies = [n for n in order if rows[n].kind == "allergy"]
    plain = [n for n in order if rows[n].kind != "allergy"]
    ahead = sum(1 for n in plain if n in lead or n in facts.critical or n in facts.asked)
    asked_allergies = any(n in facts.asked for n in allergies)

    def allergy_lines() -> list[str]:
        if not allergies:
            return []
        if asked_allergies or len(allergies) == 1:
            return [rows[n].text + marks([citations.chart(rows[n])]) for n in allergies]
        names = ", ".join(rows[n].name for n in allergies)
        return [say("allergies.line", facts.lang, names=names) + marks(citations.chart(rows[n]) for n in allergies)]

    for place, n in enumerate(plain):
        if place == ahead:
            lines += allergy_lines()
        lines.append(rows[n].text + marks([citations.chart(rows[n])]))
    if ahead >= len(plain):
        lines += allergy_lines()
    return tuple(lines)


def recommendations_of(facts: FactsResult, citations: Citations) -> tuple[str, ...]:
    """Lines of the fitting protocols in quotation marks; none that names a drug this patient must not get."""
    held = {(row.protocol, row.section, row.line) for row in facts.held}
    lines: list[str] = []
    for quote in facts.protocols:
        for line in quote.quote.splitlines():
            if (quote.id, quote.section, line) in held or len(lines) >= MAX_RECOMMENDATIONS:
                continue
            text = say("answer.quote", facts.lang, title=quote.title, source=short_source(quote), quote=line)
            if quote.superseded_by is not None:
                text += f" ({say('answer.superseded', facts.lang)})"
            lines.append(text + marks([citations.protocol(quote)]))
    return tuple(lines)


def score_line(score: Score) -> str:
    """A score's own sentence; without one its name, value and band."""
    if score.text or score.value is None:
        return score.text or score.name
    return f"{score.name} {score.value:g}" + (f" ({score.band})" if score.band else "")


def headline_of(facts: FactsResult, name: str) -> str:
    """At most ``MAX_HEADLINE`` characters: whose, then what matters first."""
    rows = facts.facts
    leads: list[str] = []
    if facts.deceased:
        leads += [fact.text for fact in rows[:1]]
    grave = [check for check in facts.checks if check.level == "critical"]
    # A drug that must not be given answers the question before anything that is known already.
    leads += [check.text for check in grave if check.id.startswith("allergy")][:1]
    leads += [flag.text for flag in facts.red_flags[:2]]
    leads += [check.text for check in grave if not check.id.startswith("allergy")][:1]
    asked = [rows[n] for n in facts.asked]
    if len(asked) > 3:
        leads.append(", ".join(dict.fromkeys(fact.name for fact in asked)))
    else:
        leads += [fact.text for fact in asked]
    leads += [rows[n].text for n in facts.critical[:1]]
    if not leads and facts.protocols:
        titles = ", ".join(dict.fromkeys(quote.title for quote in facts.protocols))
        leads.append(say("answer.headline.protocol", facts.lang, titles=titles))
    if not leads:
        leads += [fact.text for fact in rows if fact.kind == "value" and fact.flag][:2]
    if not leads and any(fact.kind == "condition" for fact in rows):
        leads.append(", ".join(dict.fromkeys(fact.name for fact in rows if fact.kind == "condition")))
    if not leads:
        leads += [m for m in facts.missing if m != say("missing.patient", facts.lang)][:1]
    if not leads:
        leads.append(say("answer.headline.nothing", facts.lang))
    prefix = f"{cut(name, MAX_NAME)}: " if name else ""
    headline = cut(prefix + leads[0], MAX_HEADLINE)
    for lead in dict.fromkeys(leads[1:]):
        if lead in headline or len(headline) + len(lead) + 3 > MAX_HEADLINE:
            break
        headline += f" · {lead}"
    return headline


def section(title: str, lines: Iterable[str]) -> list[str]:
    """A titled list for the text of an answer, with a blank line before it; nothing without lines."""
    rows = [f"- {line}" for line in lines]
    return ["", f"{title}:", *rows] if rows else []


def proposals(
    facts: FactsResult,
    layers: Layers,
    *,
    response_id: str,
    now: datetime,
    session_key: str = "",
    ttl: timedelta = PROPOSAL_TTL,
) -> tuple[Proposal, ...]:
    """The quick actions that fit the question, best first, each bound to this patient, context and user.

    Made again from the same facts they are the same, ids included. None where the question is out of scope; without
    a patient none that is done to one.
    """
    if not facts.question.in_scope:
        return ()
    ranked = rank(layers.department.actions, facts.question, facts)
    return tuple(
        propose(
            action,
            response_id=response_id,
            session_id=session_key,
            department=layers.department.department_id,
            user_id=layers.doctor.user_id,
            patient=layers.patient,
            context_hash=facts.context.hash,
            now=now,
            lang=facts.lang,
            ttl=ttl,
        )
        for action in ranked
        if layers.patient is not None or not needs_patient(action)
    )


def response_type(facts: FactsResult) -> str:
    """The wire's ``response_type`` of an answer that rests on ``facts``."""
    if not facts.question.in_scope:
        return "out_of_scope"
    if facts.patient_id is None:
        return "protocol"
    if facts.protocols or facts.red_flags or facts.question.wants("summary", "next", "dose", "protocol"):
        return "medical_analysis"
    return "record_lookup"


class Asked(Shape):
    """What an answer echoes of the accepted question; ``sessions.Request`` is one."""

    @property
    def client_msg_id(self) -> str | None: ...
    @property
    def session_id(self) -> str: ...
    @property
    def department(self) -> str: ...
    @property
    def patient_id(self) -> str | None: ...


def respond(
    facts: FactsResult,
    layers: Layers,
    asked: Asked | None = None,
    *,
    response_id: str,
    now: datetime,
    client_msg_id: str | None = None,
    session_id: str | None = None,
    proposed: Sequence[Proposal] | None = None,
    processing_time_ms: int = 0,
    model_configured: bool = False,
    attempt: int = 1,
) -> AiResponse:
    """The one ``ai_response`` to a question, made of ``facts`` alone.

    Args:
        asked: the accepted question; ``client_msg_id`` and ``session_id`` may be given instead of it.
        now: when the question came in or is answered.
        proposed: the quick actions to offer; None: ``proposals`` of the same facts.
        model_configured: an engine is configured and could not answer: the status is ``degraded``, else ``completed``.
    ``epoch`` and ``seq`` stay empty: they are the session log's to set.
    """
    language = facts.lang
    notice = say("answer.notice", language)
    if model_configured:
        notice = f"{say('answer.degraded', language)} {notice}"
    if facts.question.in_scope:
        if proposed is None:
            proposed = proposals(facts, layers, response_id=response_id, now=now)
        content = _content(facts, layers, notice, proposed)
    else:
        text = say("answer.greeting" if facts.question.greeting else "answer.out_of_scope", language)
        data = StructuredData(headline=cut(text, MAX_HEADLINE), scores=facts.scores, red_flags=facts.red_flags)
        escalations = (say("answer.red_flag", language, text=flag.text) for flag in facts.red_flags)
        content = Content(text="\n".join([text, *escalations]), structured_data=data)
    if asked is not None:
        client_msg_id, session_id = asked.client_msg_id, asked.session_id
    return AiResponse(
        response_id=response_id,
        content=content,
        processing_time_ms=processing_time_ms,
        confidence=None,
        confidence_basis="none",
        status="degraded" if model_configured else "completed",
        finish_reason="stop",
        client_msg_id=client_msg_id,
        session_id=layers.session.session_id if session_id is None else session_id,
        department=layers.department.department_id,
        patient_id=facts.patient_id,
        response_type=response_type(facts),
        timestamp=stamp(now, milliseconds=True) or "",
        model=None,
        attempt=attempt,
        mode="facts_only",
        notice=notice,
    )


def failed(asked: Asked, *, response_id: str, text: str, now: datetime, status: Status = "failed") -> AiResponse:
    """The one ``ai_response`` to a question that could not be answered: ``text`` says why, nothing of a record."""
    return AiResponse(
        response_id=response_id,
        content=Content(text=text, structured_data=StructuredData(headline=cut(text, MAX_HEADLINE))),
        processing_time_ms=0,
        status=status,
        finish_reason=status,
        client_msg_id=asked.client_msg_id,
        session_id=asked.session_id,
        department=asked.department,
        patient_id=asked.patient_id,
        response_type=status,
        timestamp=stamp(now, milliseconds=True) or "",
    )


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """The lines of one answer as they are shown, citation marks and all; titles are keys of ``wording``.

    ``citations``: what the marks point at, in the order of their numbers.
    """

    headline: str
    findings: Sequence[str]
    interpretation: Sequence[str]
    recommendations: Sequence[str]
    missing: Sequence[str]
    checks: Sequence[Check]
    citations: Sequence[Citation]
    findings_title: str = "answer.findings"
    interpretation_title: str = "answer.interpretation"
    recommendations_title: str = "answer.protocols"


def content_of(parts: Parts, facts: FactsResult, *, proposed: Sequence[Proposal], notice: str) -> Content:
    """The same answer twice, as a text and as data; whoever wrote the parts, no line stands in one of them alone.

    Whom it is about, red flags, scores and the protocols' notices are the facts' in every answer.
    """
    lang = facts.lang
    actions = tuple(proposed_action(proposal) for proposal in proposed)
    labels = tuple(action.label for action in actions)
    escalations = (say("answer.red_flag", lang, text=flag.text) for flag in facts.red_flags)
    notices = dict.fromkeys(f"{quote.title}: {quote.notice}" for quote in facts.protocols if quote.notice)
    text = [
        parts.headline,
        facts.who,
        *section(say("answer.red_flags", lang), escalations),
        *section(say("answer.checks", lang), (check.text for check in parts.checks)),
        *section(say(parts.findings_title, lang), parts.findings),
        *section(say("answer.scores", lang), (score_line(score) for score in facts.scores)),
        *section(say(parts.interpretation_title, lang), parts.interpretation),
        *section(say(parts.recommendations_title, lang), parts.recommendations),
        *(f"  {line}" for line in notices),
        *section(say("answer.missing", lang), parts.missing),
        *section(say("answer.actions", lang), labels),
        "",
        notice,
    ]
    data = StructuredData(
        findings=tuple(parts.findings),
        recommendations=tuple(parts.recommendations),
        quick_actions=labels,
        headline=parts.headline,
        interpretation=tuple(parts.interpretation),
        missing=tuple(parts.missing),
        scores=facts.scores,
        red_flags=facts.red_flags,
        checks=tuple(parts.checks),
        citations=tuple(parts.citations),
        actions=actions,
    )
    return Content(text="\n".join(text), structured_data=data)


def _content(facts: FactsResult, layers: Layers, notice: str, proposed: Sequence[Proposal]) -> Content:
    citations = Citations()
    findings = findings_of(facts, citations)
    recommendations = recommendations_of(facts, citations)
    parts = Parts(
        headline=headline_of(facts, layers.patient.name if layers.patient else ""),
        findings=findings,
        interpretation=facts.trends,
        recommendations=recommendations,
        missing=facts.missing,
        checks=facts.checks,
        citations=citations.rows,
    )
    return content_of(parts, facts, proposed=proposed, notice=notice)
