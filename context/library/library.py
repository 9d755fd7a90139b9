"""The clinical protocols: loads them from data files, finds those that fit a question, quotes them byte for byte.

One JSON file per protocol in ``data/`` (or in a hospital's own folder), named by the protocol's id, beside
``terms.json``, the table of words. Everything is checked when it is loaded, and nothing changes after.
``docs/protocol-library.md`` tells how a hospital replaces, approves and dates a protocol.

Finding is deterministic: same query, same hits in the same order. A protocol is found when

1. the question asks for it: a strong term, a value past the protocol's limit, or two different weak terms;
2. a recognised emergency names it, whatever the question and the department are;
3. the question has one of its weak terms and the record supports it (signal, report, active problem);
4. the question is about the whole patient ("what should I do next") and names no protocol itself, and a report
   or an active problem names it;
5. it accompanies a protocol that the question asks for, and the record supports it;
6. a signal of the record is left that no protocol found so far covers (for critical results and scores: only
   where the question is about the whole patient or names the analyte).

A negated term ("no chest pain") counts for nothing, one of the past ("history of stroke") only as support.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from context.library.words import MAX_CHARS, PhraseSet, Reader, Terms, Token, plain, words
from context.memo import remembers
from protocols.frames import ProtocolQuote

Basis = Literal["S", "S2", "G"]
"""How well a line is founded: S seen in a primary page, S2 in a secondary one or partly, G general knowledge."""

#: A protocol file is a page or two; anything larger is not one.
MAX_FILE_BYTES = 256 * 1024
#: Sections quoted per protocol: the best two. More than that is the whole protocol, which a person opens.
SECTIONS_PER_PROTOCOL = 2
#: Reports, problems, medicines and signals beyond this many are not read; the newest come first.
MAX_ITEMS = 50

TERMS_FILE = "terms.json"

ProtocolId = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{1,39}\Z")]
Line = Annotated[str, Meta(min_length=1, max_length=1000, pattern=r"\A\S([^\r\n]*\S)?\Z")]
Year = Annotated[int, Meta(ge=1950, le=2100)]


class ProtocolFact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a protocol. ``text`` is quoted byte for byte; ``source`` is where it was seen."""

    kind: Annotated[str, Meta(pattern=r"^[a-z_]{2,20}\Z")]
    text: Line
    source: Line
    basis: Basis


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lines of a protocol that belong together. ``terms``: words that choose this section; ``lead``: shown when
    no section is asked for in particular."""

    id: ProtocolId
    title: Line
    title_pt: Line
    facts: Annotated[tuple[ProtocolFact, ...], Meta(min_length=1)]
    terms: tuple[str, ...] = ()
    lead: bool = False

    @property
    def text(self) -> str:
        """The section's lines, byte for byte, joined by newlines."""
        return "\n".join(fact.text for fact in self.facts)


class Number(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A number of the protocol in a form that machines read; ``text`` is how its section writes it."""

    name: Line
    section: str
    text: Line
    unit: str
    low: float | None = None
    high: float | None = None


class Range(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Values from ``low`` to ``high``, both included; ``unit`` "" is for a value that is written without one."""

    low: float
    high: float
    unit: str = ""


class ValueTrigger(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value in the question that asks for the protocol: "K 6.9". ``names`` are matched as whole words."""

    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    ranges: Annotated[tuple[Range, ...], Meta(min_length=1)]
    section: str | None = None
    weak: bool = False


class TermLists(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Search terms of one language: a ``strong`` one finds the protocol alone, of the ``weak`` ones it takes two."""

    strong: tuple[str, ...] = ()
    weak: tuple[str, ...] = ()


class Signals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What triage found and this protocol answers.

    raises: finds the protocol whatever the question is (recognised emergencies).
    supports: speaks for the protocol; it is also the page to show when no other covers the signal.
    covers: answered by this protocol where it is found for another reason.
    """

    raises: tuple[str, ...] = ()
    supports: tuple[str, ...] = ()
    covers: tuple[str, ...] = ()


class Triggers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that finds a protocol.

    cased: strong abbreviations that count only in capitals ("HIT"). values: numbers past a limit.
    reports, problems, medicines: more terms for those places only, beside the strong ones.
    without: phrases that take their words out of this protocol's search.
    """

    en: TermLists
    pt: TermLists
    cased: tuple[str, ...] = ()
    values: tuple[ValueTrigger, ...] = ()
    signals: Signals = Signals()
    reports: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    medicines: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


class Protocol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One clinical protocol.

    year: of the primary ``source``. review_date: the last day it may be shown without a banner.
    superseded_by: the newer edition, None while there is none. currency: what is known about editions.
    approver, approved_on: who approved it in this hospital and when; None means not clinically approved.
    status: "draft" or "approved" (which needs both).
    related: ids to read on. companions: ids that are shown with it when the record supports them.
    general: a page about every patient; shown only when it is asked for or nothing else fits.
    """

    id: ProtocolId
    title: Line
    title_pt: Line
    departments: Annotated[tuple[str, ...], Meta(min_length=1)]
    trigger: Line
    source: Line
    year: Year
    review_date: date
    superseded_by: Line | None
    currency: str
    approver: Line | None
    approved_on: date | None
    status: Literal["draft", "approved"]
    related: tuple[str, ...]
    companions: tuple[str, ...] = ()
    general: bool = False
    triggers: Triggers
    sections: Annotated[tuple[Section, ...], Meta(min_length=1)]
    numbers: tuple[Number, ...] = ()

    def section(self, section_id: str) -> Section:
        """The section of that id; KeyError if there is none."""
        for section in self.sections:
            if section.id == section_id:
                return section
        raise KeyError(section_id)


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """What is searched for, and the record it is asked about.

    problems: names of active conditions only. medicines: names of active ones. reports: texts, newest first.
    signals: ids from triage: "news2.high", "critical.potassium" (or, where triage knows the side,
    "critical.potassium.high"), "emergency.stemi".
    """

    question: str
    department: str = ""
    problems: tuple[str, ...] = ()
    medicines: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A section that fits. ``why`` names the library's own terms that matched, never the question's text."""

    protocol: Protocol
    section: Section
    score: int
    why: tuple[str, ...]


class LibraryError(ValueError):
    """A protocol file is not usable; ``file`` and ``field`` say where, ``problem`` says what."""

    def __init__(self, file: str, field: str, problem: str) -> None:
        super().__init__(f"{file}: {field}: {problem}")
        self.file = file
        self.field = field
        self.problem = problem


#: Points by where a term was found. A question's own words outweigh everything else in the record together,
#: in the order question, signals, reports, problems, medicines.
QUESTION_STRONG, QUESTION_WEAK = 40, 12
SIGNAL_RAISES, SIGNAL_SUPPORTS = 36, 10
REPORT, PROBLEM, MEDICINE = 8, 4, 1

_BANNERS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "superseded": "SUPERSEDED by {by}: check the current edition before use.",
        "overdue": "REVIEW OVERDUE since {day}.",
        "draft": "Not clinically approved.",
        "approved": "Approved by {who} on {day}.",
        "general": "General knowledge, no source seen: {what}.",
        "all": "all lines",
        "lines": "line {n}",
    },
    "pt": {
        "superseded": "SUBSTITUÍDO por {by}: confirmar na edição em vigor antes de usar.",
        "overdue": "REVISÃO EM ATRASO desde {day}.",
        "draft": "Sem aprovação clínica.",
        "approved": "Aprovado por {who} em {day}.",
        "general": "Conhecimento geral, sem fonte consultada: {what}.",
        "all": "todas as linhas",
        "lines": "linha {n}",
    },
}


def _texts(lang: str) -> Mapping[str, str]:
    return _BANNERS["pt" if lang.lower().startswith("pt") else "en"]


class _Found(msgspec.Struct):
    """What speaks for one protocol, term by term, so that nothing counts twice."""

    strong: dict[str, None] = msgspec.field(default_factory=dict)
    weak: dict[str, None] = msgspec.field(default_factory=dict)
    raised: dict[str, None] = msgspec.field(default_factory=dict)
    signals: dict[str, None] = msgspec.field(default_factory=dict)
    reports: dict[str, None] = msgspec.field(default_factory=dict)
    problems: dict[str, None] = msgspec.field(default_factory=dict)
    medicines: dict[str, None] = msgspec.field(default_factory=dict)
    past: dict[str, None] = msgspec.field(default_factory=dict)
    sections: dict[str, None] = msgspec.field(default_factory=dict)
    reason: str = ""

    @property
    def asked(self) -> bool:
        return bool(self.strong) or len(self.weak) > 1

    @property
    def charted(self) -> bool:
        return bool(self.reports or self.problems)

    @property
    def supported(self) -> bool:
        return bool(self.signals or self.past) or self.charted

    @property
    def score(self) -> int:
        return (
            QUESTION_STRONG * len(self.strong)
            + QUESTION_WEAK * len(self.weak)
            + SIGNAL_RAISES * len(self.raised)
            + SIGNAL_SUPPORTS * len(self.signals)
            + REPORT * len(self.reports)
            + PROBLEM * len(self.problems)
            + MEDICINE * len(self.medicines)
        )

    @property
    def why(self) -> tuple[str, ...]:
        places = (
            ("question", self.strong),
            ("question~", self.weak),
            ("signal", self.raised),
            ("signal", self.signals),
            ("report", self.reports),
            ("problem", self.problems),
            ("medicine", self.medicines),
            ("past", self.past),
        )
        return (self.reason, *(f"{place}:{term}" for place, terms in places for term in terms))


class _Term(msgspec.Struct, frozen=True):
    protocol: str
    weak: bool = False
    cased: bool = False


class _Index:
    """Phrases to what they stand for; a longer phrase hides the shorter ones inside it."""

    def __init__(self) -> None:
        self._terms: dict[tuple[str, ...], list[_Term]] = {}
        self._phrases = PhraseSet(())

    def add(self, phrase: tuple[str, ...], term: _Term) -> None:
        self._terms.setdefault(phrase, []).append(term)

    def mask(self, phrase: tuple[str, ...]) -> None:
        self._terms.setdefault(phrase, [])

    def close(self) -> None:
        self._phrases = PhraseSet(self._terms)

    def find(self, tokens: tuple[Token, ...]) -> Iterator[tuple[str, _Term, tuple[Token, ...]]]:
        """Each phrase that occurs, as (phrase, term, its tokens); the phrases found do not overlap."""
        row = [t.word for t in tokens]
        i = 0
        while i < len(row):
            length = self._phrases.at(row, i)
            span = tokens[i : i + length]
            for term in self._terms.get(tuple(row[i : i + length]), ()):
                if not term.cased or all(t.capitals for t in span):
                    yield " ".join(row[i : i + length]), term, span
            i += max(length, 1)


class _Value(msgspec.Struct, frozen=True):
    protocol: str
    trigger: ValueTrigger
    pattern: re.Pattern[str]

    def match(self, text: str) -> str | None:
        """The range that a value in ``text`` (plain and casefolded) falls into, as the library writes it."""
        for found in self.pattern.finditer(text):
            value = float(found["value"].replace(",", "."))
            unit = (found["unit"] or "").replace(" ", "")
            for r in self.trigger.ranges:
                if r.unit.casefold() == unit and r.low <= value <= r.high:
                    return f"{self.trigger.names[0]} {r.low:g}-{r.high:g}{r.unit}"
        return None


#: Words that may stand between a value's name and its number: "K came back at 6.9", "potássio sérico de 6,9".
_FILLERS = (
    r"(?:level|value|result|serum|came|back|is|was|of|at|now|today|still|up|down|to|around|about|only|just|"
    r"esta|era|de|em|foi|subiu|desceu|para|agora|serico|serica|valor|com|com um|e|a|the|score|total)"
)
_UNITS = r"(?:mmol/l|meq/l|mg/dl|umol/l|µmol/l|μmol/l|g/dl|g/l|mmhg|cmh2o|kpa|ms|mseg|msec|%|x10|\*10)"


def _value_pattern(names: Iterable[str]) -> re.Pattern[str]:
    spelled = sorted({plain(n).casefold() for n in names}, key=lambda n: (-len(n), n))
    alternatives = "|".join(re.escape(n).replace(r"\ ", r"\s+") for n in spelled)
    return re.compile(
        rf"(?<![\w/])(?:{alternatives})\+?(?:[\s:=,<>~≥≤]+{_FILLERS}(?![\w])){{0,4}}[\s:=,<>~≥≤(]*"
        rf"(?P<value>\d{{1,5}}(?:[.,]\d{{1,3}})?)(?![\d:]|[.,/]\d)\s{{0,2}}(?P<unit>{_UNITS})?"
    )


class Library:
    """All protocols of a folder, checked, and the index over them; immutable after ``load``."""

    def __init__(self, protocols: tuple[Protocol, ...], terms: Terms) -> None:
        """Use ``load``; this takes protocols that are already checked."""
        self._protocols = {p.id: p for p in sorted(protocols, key=lambda p: p.id)}
        self._terms = terms
        self._reader = Reader(terms, _vocabulary(protocols))
        # A doctor asks several things about one patient; the record is read once. It stays in memory for as long as
        # 64 others have not been asked about, as the layers themselves do.
        self._in_record = remembers(64)(self._find_in_record)
        self._general = PhraseSet(self._reader.phrase(g) for g in terms.general)
        self._question = _Index()
        self._reports = _Index()
        self._problems = _Index()
        self._medicines = _Index()
        self._values: list[_Value] = []
        self._sections: dict[str, tuple[tuple[Section, PhraseSet], ...]] = {}
        self._signals: dict[str, list[tuple[str, str]]] = {}
        self._without: dict[str, PhraseSet] = {}
        for protocol in self._protocols.values():
            self._add(protocol)
        for index in (self._question, self._reports, self._problems, self._medicines):
            for phrase in terms.neutral:
                index.mask(self._reader.phrase(phrase))
            index.close()
        digest = hashlib.sha256(msgspec.json.encode(tuple(self._protocols.values()), order="deterministic"))
        self.version: str = digest.hexdigest()[:12]
        """Digest of all protocols: equal content, equal version, for the audit."""

    @classmethod
    def load(cls, path: Traversable | Path | None = None) -> Library:
        """Read and check every protocol of a folder; without ``path`` the ones that come with chatd.

        A folder without ``terms.json`` uses chatd's own table of words.
        Raises:
            LibraryError: naming the file and the field, for anything missing, unknown, doubled or contradictory.
        """
        own = resources.files("context.library.data")
        folder: Traversable | Path = own if path is None else path
        try:
            files = sorted((f for f in folder.iterdir() if f.name.endswith(".json")), key=lambda f: f.name)
        except OSError as error:
            raise LibraryError(str(path), "folder", "cannot be read") from error
        found: list[Protocol] = []
        seen: dict[str, str] = {}
        for file in files:
            if file.name == TERMS_FILE:
                continue
            protocol: Protocol = _decode(file, Protocol)
            if protocol.id in seen:
                raise LibraryError(file.name, "id", f"{protocol.id!r} is already in {seen[protocol.id]}")
            seen[protocol.id] = file.name
            if file.name != f"{protocol.id}.json":
                raise LibraryError(file.name, "id", f"{protocol.id!r} must be the file's name")
            _check(file.name, protocol)
            found.append(protocol)
        if not found:
            raise LibraryError(str(path), "folder", "holds no protocol")
        for protocol in found:
            for field in ("related", "companions"):
                for other in getattr(protocol, field):
                    if other not in seen or other == protocol.id:
                        raise LibraryError(f"{protocol.id}.json", field, f"no other protocol has the id {other!r}")
        has_terms = any(f.name == TERMS_FILE for f in files)
        terms: Terms = _decode((folder if has_terms else own).joinpath(TERMS_FILE), Terms)
        try:
            return cls(tuple(found), terms)
        except LibraryError:
            raise
        except ValueError as error:
            raise LibraryError(TERMS_FILE, "synonyms", str(error)) from error

    def get(self, protocol_id: str) -> Protocol:
        """The protocol of that id; KeyError if there is none."""
        return self._protocols[protocol_id]

    def ids(self) -> tuple[str, ...]:
        """All ids, sorted."""
        return tuple(self._protocols)

    def search(self, query: Query, *, limit: int = 4) -> tuple[Hit, ...]:
        """The sections that fit, best protocol first, its best section first.

        Args:
            limit: At most this many protocols, 1 or more, each with up to ``SECTIONS_PER_PROTOCOL`` hits.
                Recognised emergencies are never cut: more than ``limit`` of them are all returned.
        Never raises, whatever the texts are; same query, same hits. A few milliseconds for a ward's question.
        """
        question = self._reader.read(query.question, correct=True)
        found = {protocol_id: _Found() for protocol_id in self._protocols}
        self._read_question(query.question, question, found)
        self._read_record(query, found)
        accepted = self._accept(query, question, found)

        def order(protocol_id: str) -> tuple[int, bool, str]:
            departments = self._protocols[protocol_id].departments
            return (-found[protocol_id].score, query.department not in departments, protocol_id)

        ranked = sorted(accepted, key=order)
        kept = set(ranked[: max(limit, 1)])
        raised = [p for p in ranked if found[p].raised]
        if not kept.issuperset(raised):
            others = [p for p in ranked if not found[p].raised]
            kept = {*raised, *others[: max(max(limit, 1) - len(raised), 0)]}
        hits: list[Hit] = []
        for protocol_id in ranked:
            if protocol_id in kept:
                hits += self._hits(protocol_id, question, found[protocol_id])
        return tuple(hits)

    def quote(self, source: Hit | tuple[str, str], *, today: date, lang: str) -> ProtocolQuote:
        """A section's lines byte for byte, joined by newlines, with the notice that must stand beside them.

        Args:
            source: A hit, or (protocol id, section id); KeyError for an unknown one.
            lang: Language of title and notice: Portuguese where it begins with "pt", else English. The quote
                itself is never translated.
        """
        if isinstance(source, Hit):
            protocol, section = source.protocol, source.section
        else:
            protocol = self.get(source[0])
            section = protocol.section(source[1])
        notice = [self.banner(protocol, today=today, lang=lang), _basis_notice(section, lang)]
        return ProtocolQuote(
            id=protocol.id,
            title=protocol.title_pt if lang.lower().startswith("pt") else protocol.title,
            section=section.id,
            quote=section.text,
            source=protocol.source,
            year=protocol.year,
            superseded_by=protocol.superseded_by,
            review_due=protocol.review_date.isoformat(),
            approved_by=protocol.approver,
            notice=" ".join(n for n in notice if n),
        )

    def banner(self, protocol: Protocol, *, today: date, lang: str) -> str:
        """What a reader must know before the first line: superseded, review overdue, approved or not."""
        texts = _texts(lang)
        parts = []
        if protocol.superseded_by is not None:
            parts.append(texts["superseded"].format(by=protocol.superseded_by))
        if today > protocol.review_date:
            parts.append(texts["overdue"].format(day=protocol.review_date.isoformat()))
        if protocol.status == "approved" and protocol.approver and protocol.approved_on:
            parts.append(texts["approved"].format(who=protocol.approver, day=protocol.approved_on.isoformat()))
        else:
            parts.append(texts["draft"])
        return " ".join(parts)

    # --- building ---------------------------------------------------------------------------------------

    def _add(self, protocol: Protocol) -> None:
        triggers = protocol.triggers

        def phrase(term: str) -> tuple[str, ...]:
            found = self._reader.phrase(term)
            if not found:
                raise LibraryError(f"{protocol.id}.json", "triggers", f"{term!r} has no word to search for")
            return found

        strong = {phrase(t): None for lists in (triggers.en, triggers.pt) for t in lists.strong}
        weak = {phrase(t): None for lists in (triggers.en, triggers.pt) for t in lists.weak if phrase(t) not in strong}
        cased = {phrase(t): None for t in triggers.cased if phrase(t) not in strong}
        for term in strong:
            for index in (self._question, self._reports, self._problems):
                index.add(term, _Term(protocol.id))
        for term in cased:
            for index in (self._question, self._reports, self._problems):
                index.add(term, _Term(protocol.id, cased=True))
        for term in weak:
            self._question.add(term, _Term(protocol.id, weak=True))
        for index, more in ((self._reports, triggers.reports), (self._problems, triggers.problems)):
            for term in {phrase(t): None for t in more}:
                if term not in strong and term not in cased:
                    index.add(term, _Term(protocol.id))
        for term in {phrase(t): None for t in triggers.medicines}:
            self._medicines.add(term, _Term(protocol.id))
        self._values += [_Value(protocol.id, v, _value_pattern(v.names)) for v in triggers.values]
        self._sections[protocol.id] = tuple(
            (section, PhraseSet(phrase(t) for t in section.terms)) for section in protocol.sections
        )
        self._without[protocol.id] = PhraseSet(phrase(t) for t in triggers.without)
        for kind, signals in (
            ("raises", triggers.signals.raises),
            ("supports", triggers.signals.supports),
            ("covers", triggers.signals.covers),
        ):
            for signal in signals:
                self._signals.setdefault(signal, []).append((protocol.id, kind))

    # --- finding ----------------------------------------------------------------------------------------

    def _read_question(self, text: str, tokens: tuple[Token, ...], found: dict[str, _Found]) -> None:
        row = [t.word for t in tokens]
        silent = {p for p, phrases in self._without.items() if any(phrases.at(row, i) for i in range(len(row)))}
        for name, term, span in self._question.find(tokens):
            if span[0].negated or term.protocol in silent:
                continue
            place = found[term.protocol]
            if span[0].past:
                place.past[name] = None
            else:
                (place.weak if term.weak else place.strong)[name] = None
        folded = plain(text).casefold()
        for value in self._values:
            if (matched := value.match(folded)) is not None:
                place = found[value.protocol]
                if value.trigger.weak:
                    # Under the name's own key: "lactate 4.2" is one weak term, not "lactate" and a value.
                    place.weak[" ".join(self._reader.phrase(value.trigger.names[0]))] = None
                else:
                    place.strong[matched] = None
                if value.trigger.section is not None:
                    place.sections[value.trigger.section] = None

    def _read_record(self, query: Query, found: dict[str, _Found]) -> None:
        for signal in dict.fromkeys(query.signals[:MAX_ITEMS]):
            for protocol_id, kind in self._listeners(signal):
                if kind == "raises":
                    found[protocol_id].raised[signal] = None
                elif kind == "supports":
                    found[protocol_id].signals[signal] = None
        for protocol_id, place, name in self._in_record(
            query.reports[:MAX_ITEMS], query.problems[:MAX_ITEMS], query.medicines[:MAX_ITEMS]
        ):
            getattr(found[protocol_id], place)[name] = None

    def _find_in_record(
        self, reports: tuple[str, ...], problems: tuple[str, ...], medicines: tuple[str, ...]
    ) -> tuple[tuple[str, str, str], ...]:
        """What a record says for protocols, as (protocol, field of _Found, term): the same for every question."""
        hits: list[tuple[str, str, str]] = []
        left = MAX_CHARS
        for report in reports:
            text = report[:left]
            left -= len(text)
            for name, term, span in self._reports.find(self._reader.read(text)):
                if not (span[0].negated or span[0].past):
                    hits.append((term.protocol, "reports", name))
            folded = plain(text).casefold()
            hits += [
                (value.protocol, "reports", matched)
                for value in self._values
                if not value.trigger.weak and (matched := value.match(folded)) is not None
            ]
        for index, names, place in ((self._problems, problems, "problems"), (self._medicines, medicines, "medicines")):
            for item in names:
                for name, term, span in index.find(self._reader.read(item[:200])):
                    if not (span[0].negated or span[0].past):
                        hits.append((term.protocol, place, name))
        return tuple(hits)

    def _listeners(self, signal: str) -> list[tuple[str, str]]:
        """Who answers a signal; one with a side ("critical.potassium.high") also reaches those of the bare one."""
        listeners = list(self._signals.get(signal, ()))
        base, _, side = signal.rpartition(".")
        if side in ("high", "low") and base.startswith("critical."):
            known = {p for p, _ in listeners}
            listeners += [entry for entry in self._signals.get(base, ()) if entry[0] not in known]
        return listeners

    def _accept(self, query: Query, question: tuple[Token, ...], found: dict[str, _Found]) -> list[str]:
        accepted: list[str] = []

        def take(protocol_id: str, reason: str) -> None:
            if protocol_id not in accepted:
                accepted.append(protocol_id)
                found[protocol_id].reason = reason

        for protocol_id, place in found.items():
            if place.asked:
                take(protocol_id, "asked")
            elif place.raised:
                take(protocol_id, "emergency")
        asked = [p for p in accepted if found[p].reason != "emergency"]
        answered = {s for s in query.signals[:MAX_ITEMS] for p, _ in self._listeners(s) if p in accepted}
        for protocol_id, place in found.items():
            # A signal that an accepted page answers speaks for no second page.
            supported = place.charted or place.past or any(s not in answered for s in place.signals)
            if place.weak and supported and not (asked and self._protocols[protocol_id].general):
                take(protocol_id, "asked with support")
        row = [t.word for t in question]
        about_all = not asked and (not row or any(self._general.at(row, i) for i in range(len(row))))
        if about_all:
            for protocol_id, place in found.items():
                if place.charted and not self._protocols[protocol_id].general:
                    take(protocol_id, "whole patient")
        for protocol_id in asked:
            for companion in self._protocols[protocol_id].companions:
                if found[companion].supported:
                    take(companion, f"companion of {protocol_id}")
        for signal in dict.fromkeys(query.signals[:MAX_ITEMS]):
            self._cover(signal, about_all, row, found, accepted, take)
        return accepted

    def _cover(
        self,
        signal: str,
        about_all: bool,
        row: list[str],
        found: dict[str, _Found],
        accepted: list[str],
        take: Callable[[str, str], None],
    ) -> None:
        kind, _, rest = signal.partition(".")
        named = kind == "critical" and self._names(rest.partition(".")[0], row)
        if kind != "emergency" and not about_all and not named:
            return
        listeners = self._listeners(signal)
        if any(p in accepted and not self._protocols[p].general for p, _ in listeners):
            return
        pages = [p for p, how in listeners if how == "supports" and p not in accepted]
        own = [p for p in pages if not self._protocols[p].general]
        if not own and accepted and not named and kind != "emergency":
            return
        for page in sorted(own or pages, key=lambda p: -found[p].score)[:1]:
            take(page, f"covers {signal}")

    def _names(self, analyte: str, row: list[str]) -> bool:
        names = PhraseSet([self._reader.phrase(analyte.replace("_", " "))])
        return any(names.at(row, i) for i in range(len(row)))

    def _hits(self, protocol_id: str, question: tuple[Token, ...], found: _Found) -> list[Hit]:
        protocol = self._protocols[protocol_id]
        row = [t.word for t in question]
        fitting: list[tuple[int, int, Section]] = []
        for place, (section, phrases) in enumerate(self._sections[protocol_id]):
            lengths = {}
            for i in range(len(row)):
                if length := phrases.at(row, i):
                    lengths[tuple(row[i : i + length])] = length
            # A longer phrase says more than its words one by one.
            points = sum(2 * n - 1 for n in lengths.values()) + (3 if section.id in found.sections else 0)
            fitting.append((points, place, section))
        fitting.sort(key=lambda entry: (-entry[0], not entry[2].lead, entry[1]))
        chosen = [section for points, _, section in fitting if points > 0]
        # What to do first belongs to an emergency's page whatever detail was asked about; a value past its limit
        # has already chosen the section that answers it (low glucose: not the page on ketoacidosis).
        if not chosen or (found.raised and not found.sections):
            chosen += [s for _, _, s in fitting if s.lead and s not in chosen]
        chosen = chosen or [protocol.sections[0]]
        return [
            Hit(protocol=protocol, section=section, score=found.score, why=found.why)
            for section in chosen[:SECTIONS_PER_PROTOCOL]
        ]


def _vocabulary(protocols: Iterable[Protocol]) -> Iterator[str]:
    for protocol in protocols:
        triggers = protocol.triggers
        for lists in (triggers.en, triggers.pt):
            yield from lists.strong
            yield from lists.weak
        for value in triggers.values:
            yield from value.names
        for more in (triggers.cased, triggers.reports, triggers.problems, triggers.medicines, triggers.without):
            yield from more
        for section in protocol.sections:
            yield from section.terms


def _decode(file: Traversable | Path, kind: Any) -> Any:
    """Decode one file; the error names the file and the field, never the content."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise LibraryError(file.name, "file", "cannot be read") from error
    if len(raw) > MAX_FILE_BYTES:
        raise LibraryError(file.name, "file", f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `")
        missing = re.search(r"required field `(\w+)`", message)
        path = where.rstrip("`").removeprefix("$").removeprefix(".")
        field = ".".join(part for part in (path, missing.group(1) if missing else "") if part) or "file"
        raise LibraryError(file.name, field, message) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LibraryError(file.name, "file", "is not JSON in UTF-8") from error


def _check(file: str, protocol: Protocol) -> None:
    """What the types cannot say."""
    sections: dict[str, Section] = {}
    for section in protocol.sections:
        if section.id in sections:
            raise LibraryError(file, "sections", f"the id {section.id!r} occurs twice")
        sections[section.id] = section
    if not any(s.lead for s in protocol.sections):
        raise LibraryError(file, "sections", "no section is marked as lead")
    approved = protocol.status == "approved"
    if (protocol.approver is not None) != approved or (protocol.approved_on is not None) != approved:
        raise LibraryError(file, "status", 'is "approved" exactly when approver and approved_on are given')
    if protocol.approved_on is not None and protocol.review_date <= protocol.approved_on:
        raise LibraryError(file, "review_date", "must be after approved_on")
    for number in protocol.numbers:
        if number.section not in sections:
            raise LibraryError(file, "numbers", f"no section has the id {number.section!r}")
        if number.text not in sections[number.section].text:
            raise LibraryError(file, "numbers", f"{number.text!r} does not stand in section {number.section!r}")
        written = {float(w) for w in words(number.text) if w[0].isdigit()}
        if not {n for n in (number.low, number.high) if n is not None} <= written:
            raise LibraryError(file, "numbers", f"{number.name!r}: low or high is not in {number.text!r}")
    for value in protocol.triggers.values:
        if value.section is not None and value.section not in sections:
            raise LibraryError(file, "triggers.values", f"no section has the id {value.section!r}")
        if any(r.low > r.high for r in value.ranges):
            raise LibraryError(file, "triggers.values", "a range is upside down")


def _basis_notice(section: Section, lang: str) -> str:
    """Which lines rest on general knowledge only; "" when none does."""
    texts = _texts(lang)
    bare = [n for n, fact in enumerate(section.facts, start=1) if fact.basis == "G"]
    if not bare:
        return ""
    if len(bare) == len(section.facts):
        return texts["general"].format(what=texts["all"])
    return texts["general"].format(what=", ".join(texts["lines"].format(n=n) for n in bare))
