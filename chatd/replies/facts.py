"""What the server knows by itself about a question: facts of the record, scores, red flags, protocols, checks, gaps.

Deterministic and pure: layers, question and ``now`` in, the same ``FactsResult`` out. ``docs/answers.md`` tells the
order and the caps. Three rules stand above the rest: every allergy is in every answer about a patient, every critical
result is in front, and a value is never shown without its time nor compared across units.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import msgspec

from chatd.replies.chart import WITHDRAWN, Writer, age_text
from chatd.replies.choose import RECENT, VITALS, Chooser, alike
from chatd.replies.cues import CLINICAL, EN_WORDS, INTENTS, PT_WORDS, STOPWORDS
from chatd.replies.question import Question, understand
from chatd.replies.values import Times, stamp
from chatd.replies.wording import Lang, say
from chatd.safety import medication as medicines
from chatd.safety.triage import triage
from context.layers import Layers, PatientLayer, versioned
from context.library.library import Library, Query
from context.text import fold_line
from protocols.frames import Check, ContextInfo, Fact, Facts, LayerInfo, ProtocolQuote, RedFlag, Score

MAX_MISSING: Final = 14
#: Protocols looked for; each gives one or two sections.
MAX_PROTOCOLS: Final = 4


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a protocol that names a drug which the patient must not get; it is never a recommendation."""

    protocol: str
    section: str
    line: str
    drug: str


class FactsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Everything known before any model word; ``frame`` gives the ``facts`` frame of it.

    asked: how many of ``facts`` (by index) answer the question itself. critical: indexes of critical results.
    held: protocol lines that may not be recommended to this patient. signals: ids of the red flags.
    problems: names of active problems. fresh: concepts and kinds of report with a result of the last hours.
    trends: statements about the course of critical and asked-for values.
    """

    question: Question
    lang: Lang
    now: datetime
    patient_id: str | None
    who: str = ""
    facts: tuple[Fact, ...] = ()
    asked: tuple[int, ...] = ()
    critical: tuple[int, ...] = ()
    trends: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    red_flags: tuple[RedFlag, ...] = ()
    protocols: tuple[ProtocolQuote, ...] = ()
    held: tuple[Held, ...] = ()
    checks: tuple[Check, ...] = ()
    missing: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    deceased: bool = False
    context: ContextInfo

    @property
    def problems_folded(self) -> str:
        """Names of active problems, folded, one per line."""
        return "\n".join(fold_line(name) for name in self.problems)

    def frame(self, *, response_id: str, client_msg_id: str | None, epoch: str = "", seq: int = 0) -> Facts:
        """The frame of these facts; the same result gives the same bytes."""
        return Facts(
            response_id=response_id,
            client_msg_id=client_msg_id,
            patient_id=self.patient_id,
            facts=self.facts,
            scores=self.scores,
            red_flags=self.red_flags,
            protocols=self.protocols,
            checks=self.checks,
            missing=self.missing,
            context=self.context,
            epoch=epoch,
            seq=seq,
        )


def _versions(layers: Layers) -> list[LayerInfo]:
    """Version and time of each layer; one that was made without a version gets its digest here."""
    hospital, department, doctor, session = layers.hospital, layers.department, layers.doctor, layers.session
    rows = [
        ("hospital", hospital.version or versioned(hospital).version, hospital.as_of),
        ("department", department.version or versioned(department).version, department.as_of),
        ("doctor", doctor.version or versioned(doctor).version, doctor.as_of),
    ]
    if layers.patient is not None:
        rows.append(("patient", layers.patient.version or versioned(layers.patient).version, layers.patient.as_of))
    rows.append(("session", session.version or versioned(session).version, session.as_of))
    return [LayerInfo(name=name, version=version, as_of=stamp(as_of) or "") for name, version, as_of in rows]


def context_hash(layers: Layers) -> str:
    """ "h-" and a digest of the versions of hospital, department, doctor and patient layer.

    The session is left out: it changes with every message, and a proposal is stale when the record or the rules it
    rests on have changed, not because somebody asked one more question.
    """
    return _hash(layers, _versions(layers))


def _hash(layers: Layers, versions: Sequence[LayerInfo]) -> str:
    parts = [f"{row.name}={row.version}" for row in versions if row.name != "session"]
    parts.append(f"id={layers.patient.patient_id if layers.patient else ''}")
    return "h-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def context_info(layers: Layers) -> ContextInfo:
    """The hash, and version and time of each layer, as the wire tells them."""
    versions = _versions(layers)
    return ContextInfo(hash=_hash(layers, versions), layers=tuple(versions))


# --- who the answer is about --------------------------------------------------------------------------------

_NAME_RUN = re.compile(r"(?:(?<=\s)|^)[A-ZÀ-Þ][a-zà-ÿ]+(?:\s+(?:(?:de|da|do|dos|das|e)\s+)?[A-ZÀ-Þ][a-zà-ÿ]+)+")
_TITLE_BEFORE = re.compile(r"(?:\b(?:dra?|drs|prof|profa|enf|eng|doctor|nurse)\b\.?\s*)$", re.IGNORECASE)
_INTENT = tuple(re.compile(pattern) for _, pattern in INTENTS)


def names_somebody_else(text: str, patient: PatientLayer) -> bool:
    """Whether ``text`` names a person other than ``patient``: two capitalised words, neither theirs nor clinical.

    Made to warn, not to refuse: names have no grammar, so it errs to both sides, rarely.
    """
    own = {word for word in re.findall(r"[a-z]+", fold_line(patient.name))}
    for match in _NAME_RUN.finditer(text):
        if _TITLE_BEFORE.search(text[: match.start()]):
            continue
        words = [word for word in fold_line(match.group()).split() if word not in ("de", "da", "do", "dos", "das", "e")]
        while words and _is_ordinary(words[0]):
            words.pop(0)
        if len(words) < 2 or any(_is_ordinary(word) for word in words):
            continue
        if not any(alike(words[0], name) for name in own):
            return True
    return False


def _is_ordinary(word: str) -> bool:
    return (
        word in EN_WORDS
        or word in PT_WORDS
        or word in STOPWORDS
        or CLINICAL.search(word) is not None
        or any(pattern.search(word) for pattern in _INTENT)
        or bool(medicines.drugs_in(word))
        or word
        in ("acute", "syndrome", "hospital", "via", "verde", "day", "early", "warning", "disease", "good", "morning")
    )


def patient_line(patient: PatientLayer, now: datetime, lang: Lang) -> str:
    """Whom the answer is about: "João Silva (record 7823), 67 years, male"."""
    years = patient.age_years(now.astimezone(UTC).date())
    about = f", {age_text(years, lang)}" if years is not None else ""
    if patient.sex != "unknown":
        about += f", {say(f'sex.{patient.sex}', lang)}"
    return say("patient.line", lang, name=patient.name, id=patient.patient_id, about=about)


# --- the whole ----------------------------------------------------------------------------------------------

_LEVELS = {"critical": 0, "warning": 1, "info": 2}


def _ordered_checks(checks: Iterable[Check]) -> tuple[Check, ...]:
    unique: dict[str, Check] = {}
    for check in checks:
        unique.setdefault(check.id, check)
    return tuple(sorted(unique.values(), key=lambda check: _LEVELS[check.level]))


@lru_cache(maxsize=2048)
def _drugs_of(line: str) -> tuple[medicines.Drug, ...]:
    """The medicines that a line of a protocol names; for the library's lines only, never for a record's text."""
    return medicines.drugs_in(line)


def _forbidden(
    patient: PatientLayer, question: str, drug: medicines.Drug, lang: Lang, standing: frozenset[str]
) -> Check | None:
    """The critical check that speaks against giving ``drug``, or None.

    Allergies count always, also those that only the question states; of the interactions those that the drug would
    add: what is wrong among the record's own medicines is told anyway.
    """
    named = {fold_line(drug.text), fold_line(drug.id)}
    for check in medicines.check(patient, question, lang, proposed=(drug.text if drug.is_class else drug.id,)):
        if check.level != "critical" or not any(name in fold_line(check.text) for name in named):
            continue
        if check.id.startswith("allergy") or check.id not in standing:
            return check
    return None


def held_lines(
    patient: PatientLayer, question: str, protocols: Sequence[ProtocolQuote], lang: Lang
) -> tuple[tuple[Held, ...], tuple[Check, ...]]:
    """Protocol lines that name a drug which a critical check forbids this patient, and why.

    Such a line stays in the quoted section, byte for byte, but is never put forward.
    """
    standing = frozenset(check.id for check in medicines.check(patient, "", lang))
    reasons: dict[str, Check | None] = {}
    held: list[Held] = []
    checks: list[Check] = []
    for quote in protocols:
        for line in quote.quote.splitlines():
            for drug in _drugs_of(line):
                if drug.id not in reasons:
                    reasons[drug.id] = _forbidden(patient, question, drug, lang, standing)
                reason = reasons[drug.id]
                if reason is None:
                    continue
                held.append(Held(protocol=quote.id, section=quote.section, line=line, drug=drug.text))
                text = say("check.held", lang, title=quote.title, drug=drug.text)
                id_ = f"held.{quote.id}.{drug.id}".replace(" ", "_")
                checks.append(Check(id=id_, level="info", text=text, ref=reason.ref))
                break
    return tuple(held), tuple(checks)


def _fitting(
    layers: Layers, question: Question, library: Library, now: datetime, signals: tuple[str, ...], lang: Lang
) -> tuple[ProtocolQuote, ...]:
    patient = layers.patient
    query = Query(
        question=question.text,
        department=layers.department.department_id,
        problems=tuple(c.name for c in patient.conditions if c.active) if patient else (),
        medicines=tuple(m.name for m in patient.medications if m.active) if patient else (),
        reports=tuple(
            f"{r.title}\n{r.text}"
            for r in patient.reports
            if r.as_of is not None and now - r.as_of <= RECENT and r.status not in WITHDRAWN
        )
        if patient
        else (),
        signals=signals,
    )
    today = now.astimezone(UTC).date()
    return tuple(library.quote(hit, today=today, lang=lang) for hit in library.search(query, limit=MAX_PROTOCOLS))


def build(
    layers: Layers,
    question: Question | str,
    *,
    library: Library,
    now: datetime,
    lang: str = "",
) -> FactsResult:
    """All that rules can say about ``question``, in under 100 ms for a long record.

    Args:
        layers: the five layers; without a patient only protocols are looked for.
        question: as text, or already understood; ``lang`` ("pt-PT", "en", "") is the client's hint for a text.
        now: aware; the same layers, question and ``now`` give the same result.
    """
    if isinstance(question, str):
        default: Lang = "pt" if layers.hospital.language.lower().startswith("pt") else "en"
        question = understand(question, lang_hint=lang, default_lang=default)
    language = question.lang
    context = context_info(layers)
    patient = layers.patient
    patient_id = None if patient is None else patient.patient_id
    found = triage(patient, question.text, layers.hospital, layers.department.department_id, now, lang=language)
    if not question.in_scope:
        # What must be escalated is told whatever was asked; nothing else of the record is.
        return FactsResult(
            question=question,
            lang=language,
            now=now,
            patient_id=patient_id,
            scores=found.scores,
            red_flags=found.red_flags,
            context=context,
        )
    # Red flags' ids are what protocols and actions listen to: "emergency.stemi", "critical.potassium", "news2.high".
    signals = tuple(dict.fromkeys(flag.id for flag in found.red_flags))
    protocols = _fitting(layers, question, library, now, signals, language)
    if patient is None:
        missing = [say("missing.patient", language)]
        if not protocols:
            missing.append(say("missing.protocol", language))
        return FactsResult(
            question=question,
            lang=language,
            now=now,
            patient_id=None,
            who=say("patient.none", language),
            red_flags=found.red_flags,
            protocols=protocols,
            signals=signals,
            missing=tuple(missing),
            context=context,
        )
    checks = list(medicines.check(patient, question.text, language))
    held, held_checks = held_lines(patient, question.text, protocols, language)
    checks += held_checks
    if names_somebody_else(question.text, patient):
        checks.append(Check(id="identity.name", level="warning", text=say("check.identity", language)))
    if patient.deceased:
        checks.append(Check(id="patient.deceased", level="warning", text=say("check.deceased", language)))
    critical = frozenset(
        flag.ref for flag in found.red_flags if flag.trigger == "critical_result" and flag.ref is not None
    )
    times = Times(now, layers.hospital.timezone, language)
    chooser = Chooser(patient, question, Writer(times, language, critical), protocols)
    chooser.run()
    # A question about one entry of the record is not answered with what a score would need.
    told = chooser.deciding or any(concept in VITALS for concept in question.concepts)
    missing = list(dict.fromkeys([*chooser.missing, *(found.missing if told else ())]))
    if len(missing) > MAX_MISSING:
        rest = len(missing) - MAX_MISSING + 1
        missing = [*missing[: MAX_MISSING - 1], say("missing.more", language, n=rest)]
    picked = chooser.picked
    return FactsResult(
        question=question,
        lang=language,
        now=now,
        patient_id=patient_id,
        who=patient_line(patient, now, language),
        facts=tuple(picked.facts),
        asked=tuple(sorted(picked.asked)),
        critical=tuple(sorted(picked.critical)),
        trends=tuple(chooser.trends),
        scores=tuple(score for score in found.scores if told or score.value is not None),
        red_flags=found.red_flags,
        protocols=protocols,
        held=held,
        checks=_ordered_checks(checks),
        missing=tuple(missing),
        signals=signals,
        problems=tuple(c.name for c in patient.conditions if c.active),
        fresh=chooser.fresh(),
        deceased=bool(patient.deceased),
        context=context,
    )
