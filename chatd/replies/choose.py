"""Which of the record's entries an answer shows: a method per step, in the order that ``docs/answers.md`` tells.

Every allergy and every critical result is shown whatever was asked; what was asked for is shown whatever its age; the
rest is context, and capped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Final, cast

import msgspec
from rapidfuzz import fuzz

from chatd.replies.chart import MAX_FINDING_CHARS, WITHDRAWN, Series, Writer, arranged, before_of, flag_of, trend_of
from chatd.replies.concepts import BY_ID, GROUPS, KIND_BY_ID, report_kinds
from chatd.replies.cues import STOPWORDS
from chatd.replies.needs import BY_PROTOCOL, BY_REPORT, FOR_DOSE, ONSET_OF, SAME_DISEASE
from chatd.replies.question import Question, named_in
from chatd.replies.wording import say
from chatd.safety import medication as medicines
from context.layers import Condition, Event, Medication, PatientLayer
from context.text import fold_line
from protocols.frames import Fact, ProtocolQuote

#: Facts beside allergies, critical values and what was asked for: a phone's screen or two.
MAX_FACTS: Final = 40
#: Entries of one kind that were asked for by name ("which medicines"); the rest is counted in a note.
MAX_ASKED: Final = 120
#: Abnormal results are shown unasked for a week: a stay's length, and an older one is history.
RECENT: Final = timedelta(days=7)
#: Vital signs shown unasked; NEWS2 asks for observations at least every 12 hours.
RECENT_VITALS: Final = timedelta(hours=24)
#: A result that a protocol needs is called missing from this age on.
STALE: Final = timedelta(hours=24)
#: Reports quoted unasked.
RECENT_REPORTS: Final = timedelta(days=3)
#: A test with a result this young is not proposed first: serial troponins and ECGs are at most 6 hours apart.
FRESH: Final = timedelta(hours=6)
#: Values of a series when its course is asked for.
TREND_VALUES: Final = 6

#: Vital signs in the order of an observation chart.
VITALS: Final = next(group.members for group in GROUPS if group.id == "vitals")

_BRACKETED = re.compile(r"\[[^\]]*\]|\([^)]*\)")
_LOINC_TAIL = re.compile(
    r"\b(?:in|of|on) (?:serum|plasma|blood|urine|stool|arterial|venous|capillary|ser|bld)\b.*$"
    r"|\bby .*$| - reported.*$"
)
_PLAIN_WORDS = re.compile(r"[a-z0-9]{3,}")
#: Words in names of entries that say nothing about which entry is meant.
_GENERIC = frozenset(
    [
        "disorder",
        "disorders",
        "finding",
        "findings",
        "procedure",
        "assessment",
        "test",
        "tests",
        "mass",
        "volume",
        "serum",
        "plasma",
        "total",
        "patient",
        "patients",
        "medication",
        "medications",
        "disease",
        "diseases",
        "history",
        "acute",
        "chronic",
        "tablet",
        "tablets",
        "oral",
        "injection",
        "status",
        "score",
        "level",
        "value",
        "values",
        "count",
        "automated",
        "method",
        "reported",
        "using",
        "with",
        "from",
        "left",
        "right",
        "body",
        "general",
        "encounter",
        "problem",
        "symptom",
        "visit",
        "check",
        "examination",
        "situation",
        "severe",
        "mild",
        "moderate",
        "unspecified",
        "other",
        "primary",
        "secondary",
        "type",
        "medicine",
        "medicines",
        "drug",
        "drugs",
        "allergy",
        "allergies",
        "condition",
        "conditions",
        "doente",
        "paciente",
        "ultimo",
        "ultima",
        "valor",
        "resultado",
        "resultados",
        "result",
        "results",
        "current",
        "does",
        "have",
        "show",
        "what",
        "which",
        "when",
        "during",
        "into",
        "release",
        "hour",
        "hours",
        "presence",
        "substance",
        "number",
        "reported",
        "prior",
        "record",
        "records",
        "measurement",
        "first",
        "second",
        "third",
        "please",
        "there",
        "dose",
        "need",
        "needs",
        "give",
        "given",
        "should",
        "check",
        "next",
        "step",
        "urgent",
        "right",
    ]
)


def _core_words(name: str) -> frozenset[str]:
    """The words by which a result's name is known: without brackets, sample, method and generic words."""
    folded = _LOINC_TAIL.sub("", _BRACKETED.sub(" ", fold_line(name)))
    return frozenset(word for word in _PLAIN_WORDS.findall(folded) if word not in _GENERIC and word not in STOPWORDS)


def alike(word: str, other: str) -> bool:
    """Equal, or a misspelling: similarity of 90 or more for words of five letters or more."""
    return word == other or (len(word) >= 5 and len(other) >= 5 and fuzz.ratio(word, other) >= 90)


def _bounded_at(name: str, text: str) -> re.Match[str] | None:
    return re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", text)


class Asked(msgspec.Struct, frozen=True):
    """What of the record's results a question names: series, and concepts with none."""

    series: tuple[Series, ...] = ()
    absent: tuple[str, ...] = ()
    absent_groups: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()


def asked_values(question: Question, rows: Sequence[Series]) -> Asked:
    """The series that ``question`` names: by the record's full name, by the table's names, else by words of the name.

    A full name hides the table's shorter ones inside it: "Hemoglobin A1c/Hemoglobin.total in Blood" asks for one value.
    """
    masked = question.folded
    chosen: dict[str, Series] = {}
    names: dict[str, list[Series]] = {}
    for row in rows:
        for name in {fold_line(name) for name in {observation.name for observation in row.results}}:
            names.setdefault(name, []).append(row)
    for name in sorted(names, key=lambda name: (-len(name), name)):
        if len(name) < 3 or (match := _bounded_at(name, masked)) is None:
            continue
        # A one-word name that the table knows also has its table row's other series (older code, other unit).
        if len(name.split()) == 1 and any(row.concept is not None for row in names[name]):
            continue
        masked = masked[: match.start()] + " " * len(name) + masked[match.end() :]
        for row in names[name]:
            chosen.setdefault(row.key, row)
    named = named_in(question.text if len(question.text) == len(masked) else masked, masked)
    by_concept: dict[str, list[Series]] = {}
    for row in rows:
        if row.concept is not None:
            by_concept.setdefault(row.concept.id, []).append(row)
    grouped = {member for group in GROUPS if group.id in named.groups for member in group.members}
    for concept in named.concepts:
        for row in by_concept.get(concept, ()):
            chosen.setdefault(row.key, row)
    absent = tuple(c for c in named.concepts if c not in by_concept and c not in grouped)
    absent_groups = tuple(
        group.id
        for group in GROUPS
        if group.id in named.groups and not any(member in by_concept for member in group.members)
    )
    if not chosen and not named.concepts:
        words = {word for word in _PLAIN_WORDS.findall(masked) if word not in STOPWORDS and word not in _GENERIC}
        for row in rows:
            core = _core_words(row.latest.name)
            hits = [word for word in core if any(alike(word, term) for term in words)]
            if core and (len(hits) == len(core) or (len(hits) >= 2 and len(hits) * 3 >= len(core) * 2)):
                chosen.setdefault(row.key, row)
    return Asked(tuple(chosen.values()), absent, absent_groups, named.concepts)


_DISEASES = tuple(re.compile(rf"(?<![a-z0-9])(?:{'|'.join(re.escape(word) for word in row)})") for row in SAME_DISEASE)


def _diseases(folded: str) -> frozenset[int]:
    """Rows of ``SAME_DISEASE`` that a folded text speaks of."""
    return frozenset(row for row, pattern in enumerate(_DISEASES) if pattern.search(folded))


def _matches(question: Question, name: str, diseases: frozenset[int]) -> bool:
    """Whether an entry's name is spoken of in the question: the same disease, or a word of five letters or more."""
    folded = fold_line(name)
    if len(folded) >= 4 and _bounded_at(folded, question.folded):
        return True
    if diseases and diseases & _diseases(folded):
        return True
    words = [word for word in _PLAIN_WORDS.findall(folded) if len(word) >= 5 and word not in _GENERIC]
    return any(
        alike(word, term)
        for term in question.terms
        if len(term) >= 5 and term not in _GENERIC and term not in STOPWORDS
        for word in words
    )


Entry = Condition | Medication | Event


def _distinct(entries: Iterable[Entry]) -> list[tuple[Entry, int]]:
    """One entry per name (and dose), active ones first, then in the record's order, with how many there are."""
    first: dict[str, Entry] = {}
    count: dict[str, int] = {}
    for entry in sorted(entries, key=lambda entry: not getattr(entry, "active", True)):
        key = fold_line(entry.name) + "|" + (entry.dose if isinstance(entry, Medication) else "")
        first.setdefault(key, entry)
        count[key] = count.get(key, 0) + 1
    return [(entry, count[key]) for key, entry in first.items()]


def _within_sentence(name: str) -> str:
    """A name as it stands inside a sentence: "Potassium" as "potassium", "INR" and "HbA1c" as they are."""
    return name[0].lower() + name[1:] if name[1:2].islower() and name[1:].islower() else name


class Picked:
    """Facts in their order, each entry of the chart once, with what was asked and what is critical."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.asked: set[int] = set()
        self.critical: set[int] = set()
        self._at: dict[tuple[str, str | None, str], int] = {}
        self._unasked = 0

    def add(self, facts: Iterable[Fact], *, asked: bool = False, critical: bool = False, always: bool = False) -> int:
        """Append what is not there yet; what nobody asked for only up to ``MAX_FACTS``. Returns how many are new."""
        new = 0
        for fact in facts:
            key = (fact.kind, fact.ref, fact.text)
            at = self._at.get(key)
            if at is None:
                if not (asked or critical or always):
                    if self._unasked >= MAX_FACTS:
                        continue
                    self._unasked += 1
                at = self._at[key] = len(self.facts)
                self.facts.append(fact)
                new += 1
            if asked:
                self.asked.add(at)
            if critical:
                self.critical.add(at)
        return new


class Chooser:
    """One patient's facts for one question; a method per step of the order that ``docs/answers.md`` tells."""

    def __init__(
        self, patient: PatientLayer, question: Question, writer: Writer, protocols: Sequence[ProtocolQuote]
    ) -> None:
        self.patient = patient
        self.question = question
        self.writer = writer
        self.times = writer.times
        self.lang = writer.lang
        self.rows = arranged(patient, self.times)
        self.protocols = tuple(dict.fromkeys(quote.id for quote in protocols))
        self.picked = Picked()
        self.missing: list[str] = []
        self.trends: list[str] = []
        self.asked = asked_values(question, self.rows)
        self._whole = self._is_whole()

    def _is_whole(self) -> bool:
        """Whether the question is about the whole patient: nothing in particular was named."""
        question = self.question
        named = question.concepts or question.reports or self.asked.series
        listed = question.wants(
            "conditions",
            "medications",
            "allergies",
            "procedures",
            "encounters",
            "immunizations",
            "care_plan",
            "demographics",
        )
        return (question.wants("summary") and not named) or not (named or listed)

    @property
    def deciding(self) -> bool:
        """Whether the question is about what to do or about the whole patient, not about one entry of the record."""
        wants = self.question.wants("summary", "dose", "next", "protocol")
        return self._whole or bool(self.protocols) or wants

    def value_facts(self, row: Series, *, depth: int = 1) -> list[Fact]:
        """The facts of a series' newest results, or of its ``depth`` last ones where those are more."""
        shown = row.newest if len(row.newest) >= depth else range(min(depth, len(row.results)))
        return [
            self.writer.value(row.results[at], before_of(row, at, self.times), contradicted=row.is_contradicted(at))
            for at in shown
        ]

    def _is_within(self, row: Series, age: timedelta) -> bool:
        return row.latest.as_of is not None and self.times.now - row.latest.as_of <= age

    def fresh(self) -> tuple[str, ...]:
        """Concepts and kinds of report with a result of the last ``FRESH``, sorted."""
        found = {row.concept.id for row in self.rows if row.concept is not None and self._is_within(row, FRESH)}
        for report in self.patient.reports:
            if report.as_of is not None and self.times.now - report.as_of <= FRESH:
                found |= report_kinds(report.title, report.kind)
        return tuple(sorted(found))

    def run(self) -> None:
        """All steps, in order."""
        patient, picked = self.patient, self.picked
        picked.add(self.writer.deceased(patient), always=True)
        self._critical()
        picked.add(self.writer.allergies(patient), asked=self.question.wants("allergies"), always=True)
        if patient.allergy_status == "not_recorded" and not patient.allergies:
            self.missing.append(say("missing.allergies", self.lang))
        if patient.pregnant:
            text = say("demographic.pregnant", self.lang)
            name = say("name.pregnancy", self.lang)
            picked.add(
                [Fact(kind="demographic", name=name, text=text, ref=f"Patient/{patient.patient_id}")], always=True
            )
        self._asked_values()
        self._asked_reports()
        self._asked_lists()
        self._asked_by_name()
        self._abnormal()
        self._needed()
        self._recent_reports()
        self._background()

    def _critical(self) -> None:
        for row in self.rows:
            latest = row.latest
            recent = latest.as_of is not None and self.times.now - latest.as_of <= RECENT
            by_triage = latest.ref in self.writer.critical_refs
            if self.writer.is_critical(latest) and (recent or by_triage):
                self.picked.add(self.value_facts(row), critical=True)
                self._note_trend(row)

    def _note_trend(self, row: Series) -> None:
        before = before_of(row, 0, self.times)
        trend = trend_of(row.latest, before)
        if before is None or not trend:
            return
        text = say(
            f"answer.trend.{trend}",
            self.lang,
            name=self.writer.label(row.latest),
            old=self.writer.amount(before),
            old_time=self.times.text(before.as_of, ago=False),
            new=self.writer.amount(row.latest),
            new_time=self.times.text(row.latest.as_of, ago=False),
        )
        if text not in self.trends:
            self.trends.append(text)

    def _asked_values(self) -> None:
        asked = self.asked
        course = self.question.wants("trend")
        shown = 0
        for row in asked.series:
            if shown < MAX_ASKED:
                shown += self.picked.add(self.value_facts(row, depth=TREND_VALUES if course else 1), asked=True)
            self._note_trend(row)
        for concept in asked.absent:
            self.missing.append(say("missing.value", self.lang, name=self._concept_name(concept)))
        for group in GROUPS:
            if group.id in asked.absent_groups:
                self.missing.append(
                    say("missing.group", self.lang, name=_within_sentence(group.pt if self.lang == "pt" else group.en))
                )
        named = bool(asked.series or asked.concepts or self.question.reports)
        if self.question.wants("labs") and not named:
            self._all_values()

    def _all_values(self) -> None:
        """The latest of every series: results were asked for, and none by name."""
        if self.question.wants("conditions", "medications", "allergies", "procedures", "encounters", "immunizations"):
            return
        shown = 0
        for row in self.rows:
            if shown < MAX_ASKED:
                shown += self.picked.add(self.value_facts(row), asked=True)
        if len(self.rows) > shown:
            self.picked.add([self.writer.more(len(self.rows) - shown, say("kind.value", self.lang))], asked=True)
        if not self.rows:
            self.missing.append(say("missing.entries", self.lang, kind=say("kind.value", self.lang)))

    def _concept_name(self, concept: str) -> str:
        return _within_sentence(BY_ID[concept].pt if self.lang == "pt" else BY_ID[concept].en)

    def _asked_reports(self) -> None:
        for kind in self.question.reports:
            found = [
                r for r in self.patient.reports if kind in report_kinds(r.title, r.kind) and r.status not in WITHDRAWN
            ]
            depth = TREND_VALUES if self.question.wants("trend") else 1
            for report in found[:depth]:
                self.picked.add(self.writer.report(report), asked=True)
            row = KIND_BY_ID[kind]
            name = row.pt if self.lang == "pt" else row.en
            events = [e for e in self.patient.events if e.kind == "procedure" and kind in report_kinds(e.name, "")]
            if events:
                self.picked.add([self.writer.event(events[0])], asked=True)
            if not found and not self._report_values(kind):
                self.missing.append(say("missing.report", self.lang, kind=name))
            if kind == "ecg":
                self.missing.append(say("missing.tracing", self.lang))
            elif kind not in ("culture", "pathology") and found:
                self.missing.append(say("missing.image", self.lang, kind=name))

    def _report_values(self, kind: str) -> bool:
        """Results whose own name is of this kind of report (an ECG interpretation sent as an observation)."""
        found = [row for row in self.rows if kind in report_kinds(row.latest.name, "")]
        if kind == "echo":
            found += [row for row in self.rows if row.concept is not None and row.concept.id == "lvef"]
        for row in found:
            self.picked.add(self.value_facts(row), asked=True)
        return bool(found)

    def _asked_lists(self) -> None:
        question, patient = self.question, self.patient
        writer = self.writer
        if question.wants("demographics"):
            self.picked.add(writer.demographics(patient), asked=True)
            if patient.birth_date is None:
                self.missing.append(say("missing.value", self.lang, name=say("demographic.age_missing", self.lang)))
        if question.wants("conditions"):
            self._list(_distinct(patient.conditions), writer.condition, "condition")
        if question.wants("medications") or (question.wants("dose") and not self.protocols):
            self._list(_distinct(patient.medications), writer.medication, "medication")
        kinds = (
            ("procedures", "procedure"),
            ("encounters", "encounter"),
            ("immunizations", "immunization"),
            ("care_plan", "care_plan"),
        )
        for intent, kind in kinds:
            if question.wants(intent):
                events = [event for event in patient.events if event.kind == kind]
                self._list(_distinct(events), writer.event, f"event.{kind}s")

    def _list(self, entries: list[tuple[Entry, int]], write: Callable[..., Fact], kind: str) -> None:
        name = say(kind if kind.startswith("event.") else f"kind.{kind}", self.lang)
        for entry, times in entries[:MAX_ASKED]:
            self.picked.add([write(entry, times)], asked=True)
        if len(entries) > MAX_ASKED:
            self.picked.add([self.writer.more(len(entries) - MAX_ASKED, name)], asked=True)
        if not entries:
            self.missing.append(say("missing.entries", self.lang, kind=name))

    def _asked_by_name(self) -> None:
        """Entries that the question speaks of by name, and drugs that it names and the record does not have."""
        question, patient, writer = self.question, self.patient, self.writer
        diseases = _diseases(question.folded)
        for entry, times in _distinct([c for c in patient.conditions if _matches(question, c.name, diseases)]):
            self.picked.add([writer.condition(cast("Condition", entry), times)], asked=True)
        drugs = {drug.id: drug.text for drug in medicines.drugs_in(question.text)}
        taken = [
            m
            for m in patient.medications
            if _matches(question, m.name, diseases) or any(drug.id in drugs for drug in medicines.drugs_in(m.name))
        ]
        for entry, times in _distinct(taken):
            self.picked.add([writer.medication(cast("Medication", entry), times)], asked=True)
        for entry, times in _distinct([e for e in patient.events if _matches(question, e.name, diseases)])[:MAX_FACTS]:
            self.picked.add([writer.event(cast("Event", entry), times)], asked=True)
        for report in [r for r in patient.reports if _matches(question, r.title, diseases)][:2]:
            self.picked.add(writer.report(report), asked=True)
        if question.wants("medications"):
            known = {drug.id for m in patient.medications for drug in medicines.drugs_in(m.name)}
            for id_, text in drugs.items():
                if id_ not in known:
                    self.missing.append(say("missing.drug", self.lang, drug=text))

    def _abnormal(self) -> None:
        for row in self.rows:
            latest = row.latest
            if latest.as_of is None or self.times.now - latest.as_of > RECENT or not flag_of(latest):
                continue
            self.picked.add(self.value_facts(row))

    def _needed(self) -> None:
        """What the protocols, the reports and a dose are read with, and what of it is not there."""
        latest: dict[str, Series] = {}
        for row in self.rows:
            if row.concept is not None:
                latest.setdefault(row.concept.id, row)
        show: list[str] = []
        for protocol in self.protocols:
            need = BY_PROTOCOL.get(protocol)
            if need is None:
                continue
            show += need.show
            for concept in need.must:
                name = self._concept_name(concept)
                found = latest.get(concept)
                if found is None:
                    self.missing.append(say("missing.value", self.lang, name=name))
                elif found.latest.as_of is None or self.times.now - found.latest.as_of > STALE:
                    self.missing.append(say("missing.recent", self.lang, name=name))
            for kind in need.reports:
                self._needed_report(kind)
            if not self._has_onset(protocol):
                self.missing += [say(key, self.lang) for key in need.say]
        for kind in self.question.reports:
            show += BY_REPORT.get(kind, ())
        if self.question.wants("dose"):
            show += FOR_DOSE
            if "weight" not in latest:
                self.missing.append(say("missing.weight", self.lang))
            if not any(concept in latest for concept in ("creatinine", "egfr", "crcl")):
                self.missing.append(say("missing.renal", self.lang))
        for concept in dict.fromkeys(show):
            if concept in latest:
                self.picked.add(self.value_facts(latest[concept]))

    def _has_onset(self, protocol: str) -> bool:
        """Whether an active problem of this protocol has a time of onset within ``RECENT``."""
        names = ONSET_OF.get(protocol)
        return names is not None and any(
            problem.active
            and problem.onset is not None
            and self.times.now - problem.onset <= RECENT
            and re.search(names, fold_line(problem.name)) is not None
            for problem in self.patient.conditions
        )

    def _needed_report(self, kind: str) -> None:
        found = [r for r in self.patient.reports if kind in report_kinds(r.title, r.kind) and r.status not in WITHDRAWN]
        row = KIND_BY_ID[kind]
        if found:
            self.picked.add(self.writer.report(found[0]))
            if kind == "ecg":
                self.missing.append(say("missing.tracing", self.lang))
        else:
            self.missing.append(say("missing.report", self.lang, kind=row.pt if self.lang == "pt" else row.en))

    def _recent_reports(self) -> None:
        if self.question.reports or not (self._whole or self.question.wants("summary", "next")):
            return
        for report in self.patient.reports:
            recent = report.as_of is not None and self.times.now - report.as_of <= RECENT_REPORTS
            if recent and report.status not in WITHDRAWN and report.kind != "lab":
                self.picked.add(self.writer.report(report))
                if "ecg" in report_kinds(report.title, report.kind):
                    self.missing.append(say("missing.tracing", self.lang))

    def _background(self) -> None:
        """Medicines, problems and vital signs, where the question is about what to do or about the whole patient."""
        question, patient, writer = self.question, self.patient, self.writer
        if not self.deciding:
            return
        if self._whole:
            self.picked.add(writer.demographics(patient))
        signs = [row for row in self.rows if row.concept is not None and row.concept.id in VITALS]
        for row in sorted(signs, key=lambda row: VITALS.index(row.concept.id) if row.concept else 0):
            if self._is_within(row, RECENT_VITALS):
                self.picked.add(self.value_facts(row))
        for entry, times in _distinct([c for c in patient.conditions if c.active]):
            self.picked.add([writer.condition(cast("Condition", entry), times)])
        for entry, times in _distinct(medicines.relevant_medications(patient, question.text)):
            self.picked.add([writer.medication(cast("Medication", entry), times)])
        if self._whole and patient.summary.strip():
            note = " ".join(patient.summary.split())[:MAX_FINDING_CHARS]
            self.picked.add(
                [Fact(kind="note", name=say("name.summary", self.lang), text=note, ref=f"Patient/{patient.patient_id}")]
            )
