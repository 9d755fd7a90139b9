"""The record's entries as sentences: results as series, reports as findings, everything with its time.

A value is compared only with an earlier one of the same code (or name) and the same unit; it is called high or low only
where the record says so or its own range does.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final, Literal, cast

import msgspec

from chatd.replies.concepts import Concept, concept_of
from chatd.replies.values import Times, exact, number, stamp, unit
from chatd.replies.wording import Lang, say
from context.layers import Allergy, Condition, Event, Medication, Observation, PatientLayer, Report
from context.text import fold_line
from protocols.frames import Fact

#: Findings of one report, and characters of one; the rest is counted.
MAX_FINDINGS: Final = 24
MAX_FINDING_CHARS: Final = 400

FactKind = Literal[
    "value", "report", "condition", "medication", "allergy", "procedure", "encounter", "demographic", "note"
]

#: Numbers that have no unit: their unit is not missing.
_UNITLESS: Final = frozenset({"ph", "inr", "gcs", "rass", "pain", "consciousness", "pf_ratio"})
_FLAGS: Final = frozenset({"H", "L", "HH", "LL", "A"})
_CRITICAL_FLAGS: Final = frozenset({"HH", "LL"})
#: Entries that do not stand any more.
WITHDRAWN: Final = frozenset({"entered-in-error", "cancelled"})


class Series(msgspec.Struct, frozen=True):
    """Results of one name or code in one unit, newest first (future-dated after past ones, undated last)."""

    key: str
    concept: Concept | None
    results: tuple[Observation, ...]

    @property
    def latest(self) -> Observation:
        """The newest result; of several at one time the first by reference."""
        return self.results[0]

    @property
    def newest(self) -> tuple[int, ...]:
        """Indexes of the newest results: more than one where the record holds different values of the same moment."""
        seen = {_said(self.results[0])}
        found = [0]
        for at, other in enumerate(self.results[1:], start=1):
            if other.as_of is None or other.as_of != self.latest.as_of:
                break
            if (said := _said(other)) not in seen:
                seen.add(said)
                found.append(at)
        return tuple(found)

    def is_contradicted(self, at: int) -> bool:
        """Whether another result of the same moment says something else."""
        this = self.results[at]
        return this.as_of is not None and any(
            other.as_of == this.as_of and _said(other) != _said(this) for other in self.results
        )


def _said(observation: Observation) -> tuple[float | None, str | None, str]:
    return (observation.value, observation.text, observation.comparator)


def arranged(patient: PatientLayer, times: Times) -> tuple[Series, ...]:
    """The record's results as series, the most recently measured first."""

    def order(observation: Observation) -> tuple[int, float, str]:
        if observation.as_of is None:
            return (2, 0.0, observation.ref)
        return (int(times.is_future(observation.as_of)), -observation.as_of.timestamp(), observation.ref)

    series: dict[str, list[Observation]] = {}
    for observation in patient.observations:
        if observation.status in WITHDRAWN or (observation.value is None and not observation.text):
            continue
        kind = "text" if observation.value is None else f"number:{observation.unit or ''}"
        key = f"{observation.code or fold_line(observation.name)}|{kind}"
        series.setdefault(key, []).append(observation)
    rows = [Series(key, concept_of(found[0]), tuple(sorted(found, key=order))) for key, found in series.items()]
    return tuple(sorted(rows, key=lambda row: (order(row.latest), row.key)))


def before_of(row: Series, at: int, times: Times) -> Observation | None:
    """The result that ``row.results[at]`` may be compared with: earlier, exact, final enough, and in a unit."""
    now = row.results[at]
    if now.value is None or now.unit is None or now.comparator or now.as_of is None or times.is_future(now.as_of):
        return None
    if row.is_contradicted(at):
        return None
    for place, earlier in enumerate(row.results[at + 1 :], start=at + 1):
        if earlier.as_of is None or earlier.as_of >= now.as_of or earlier.value is None:
            continue
        return None if earlier.comparator or row.is_contradicted(place) else earlier
    return None


def flag_of(observation: Observation) -> str:
    """The record's own flag; without one, by the result's own range. Nothing is concluded without either."""
    if observation.flag:
        return observation.flag
    value = observation.value
    if value is None or observation.comparator:
        return ""
    if observation.low is not None and value < observation.low:
        return "L"
    if observation.high is not None and value > observation.high:
        return "H"
    return ""


def range_of(observation: Observation) -> str:
    """The result's reference range in numbers: "3.5-5.1", "< 0.04"; the source's own words where it has no numbers."""
    low, high, written = observation.low, observation.high, observation.range_text
    if low is not None and high is not None:
        return f"{number(low)}-{number(high)}"
    if written and (written[0] in "<>≤≥" or (low is None and high is None)):
        return written
    if low is not None:
        return f">= {number(low)}"
    return f"<= {number(high)}" if high is not None else ""


def trend_of(now: Observation, before: Observation | None) -> str:
    """ "up", "down" or "stable"; stable means equal: from which difference on a change matters is for a doctor."""
    if before is None or before.value is None or now.value is None:
        return ""
    if now.value == before.value:
        return "stable"
    return "up" if now.value > before.value else "down"


# --- texts of facts -----------------------------------------------------------------------------------------


class Writer:
    """Writes the record's entries as facts in one language, at one time, with the hospital's clock."""

    def __init__(self, times: Times, lang: Lang, critical_refs: frozenset[str]) -> None:
        self.times = times
        self.lang = lang
        self.critical_refs = critical_refs

    def label(self, observation: Observation) -> str:
        """The record's name; in Portuguese the table's name before it, where the record's is another."""
        name = observation.name.strip()
        concept = concept_of(observation)
        if self.lang == "pt" and concept is not None and fold_line(concept.pt) not in fold_line(name):
            return f"{concept.pt} ({name})"
        return name

    def amount(self, observation: Observation) -> str:
        """The value with comparator and unit: "< 0.01 ng/mL"; a text result is its text."""
        if observation.value is None:
            return (observation.text or "").strip()
        shown = number(observation.value)
        if observation.comparator:
            shown = f"{observation.comparator} {shown}"
        if observation.unit is None:
            concept = concept_of(observation)
            if concept is not None and concept.id in _UNITLESS:
                return shown
            return f"{shown} ({say('value.unit_missing', self.lang)})"
        return f"{shown} {unit(observation.unit)}".strip()

    def is_critical(self, observation: Observation) -> bool:
        """Flagged so by the laboratory, or past the hospital's call limit according to triage."""
        return observation.flag in _CRITICAL_FLAGS or observation.ref in self.critical_refs

    def value(self, observation: Observation, before: Observation | None, *, contradicted: bool = False) -> Fact:
        """One result: "Troponin I 45 ng/mL (high), 06:10; critical result; reference < 0.04; up from 12 ng/mL"."""
        flag = flag_of(observation)
        text = f"{self.label(observation)} {self.amount(observation)}"
        if observation.value is None:
            text = f"{self.label(observation)}: {self.amount(observation)}"
        if flag in _FLAGS:
            text += f" ({say(f'flag.{flag}', self.lang)})"
        text += f", {self.times.text(observation.as_of)}"
        notes = []
        if self.times.is_future(observation.as_of):
            notes.append(say("value.future", self.lang))
        if contradicted:
            notes.append(say("value.contradicted", self.lang))
        if self.is_critical(observation):
            notes.append(say("value.critical", self.lang))
        if observation.status in ("preliminary", "registered", "partial", "corrected", "amended", "unknown"):
            notes.append(say(f"status.{observation.status}", self.lang))
        reference = range_of(observation)
        if reference:
            notes.append(say("value.range", self.lang, range=reference))
        trend = trend_of(observation, before)
        if trend and before is not None:
            notes.append(
                say(
                    f"value.{trend}",
                    self.lang,
                    value=self.amount(before),
                    time=self.times.text(before.as_of, ago=False),
                )
            )
        value = observation.text if observation.value is None else exact(observation.value)
        if observation.value is not None and observation.comparator:
            value = f"{observation.comparator} {number(observation.value)}"
        return Fact(
            kind="value",
            name=observation.name,
            value=value,
            unit=observation.unit,
            flag=flag,
            range=reference,
            trend=trend,
            as_of=stamp(observation.as_of),
            text="; ".join([text, *notes]),
            ref=observation.ref,
        )

    def report(self, report: Report) -> list[Fact]:
        """One fact per finding of a report's text; what a person wrote, split and never reworded."""
        findings = split_findings(report.text)
        status = ""
        if report.status in ("preliminary", "registered", "partial", "corrected", "amended", "unknown"):
            status = f" ({say(f'status.{report.status}', self.lang)})"
        facts = [
            Fact(
                kind="report",
                name=report.title,
                text=say(
                    "report.finding",
                    self.lang,
                    title=report.title,
                    time=self.times.text(report.as_of) + status,
                    finding=finding,
                ),
                value=finding,
                as_of=stamp(report.as_of),
                ref=report.ref,
            )
            for finding in findings[:MAX_FINDINGS]
        ]
        if len(findings) > MAX_FINDINGS:
            facts.append(self.more(len(findings) - MAX_FINDINGS, report.title))
        return facts

    def allergy(self, allergy: Allergy) -> Fact:
        """An allergy with reaction, criticality and doubt as far as they are recorded."""
        details = [allergy.reaction.strip()]
        if allergy.criticality == "high":
            details.append(say("allergy.high", self.lang))
        if allergy.verification in ("unconfirmed", "presumed"):
            details.append(say("allergy.unconfirmed", self.lang))
        shown = [part for part in details if part]
        return Fact(
            kind="allergy",
            name=allergy.name,
            text=say(
                "allergy" if allergy.active else "allergy.inactive",
                self.lang,
                name=allergy.name,
                detail=f" ({', '.join(shown)})" if shown else "",
            ),
            as_of=stamp(allergy.recorded),
            ref=allergy.ref,
        )

    def allergies(self, patient: PatientLayer) -> list[Fact]:
        """Every allergy; without one, what the record says about that."""
        facts = [self.allergy(allergy) for allergy in patient.allergies]
        if not patient.allergies or patient.allergy_status == "none_known":
            known = patient.allergy_status == "none_known" and not patient.allergies
            if not facts:
                key = "allergy.none_known" if known else "allergy.not_recorded"
                facts.append(Fact(kind="allergy", name=say("name.allergies", self.lang), text=say(key, self.lang)))
        return facts

    def condition(self, condition: Condition, times: int = 1) -> Fact:
        """A problem with its dates; an inactive or unconfirmed one says so."""
        detail = ""
        if condition.onset is not None:
            detail += say("condition.since", self.lang, time=self.times.text(condition.onset))
        if condition.end is not None:
            detail += say("condition.until", self.lang, time=self.times.text(condition.end))
        if times > 1:
            detail += say("event.times", self.lang, n=times)
        doubtful = condition.verification in ("unconfirmed", "provisional", "differential")
        key = "condition" if condition.active else "condition.inactive"
        return Fact(
            kind="condition",
            name=condition.name,
            text=say("condition.unconfirmed" if doubtful else key, self.lang, name=condition.name, detail=detail),
            as_of=stamp(condition.onset),
            ref=condition.ref,
        )

    def medication(self, medication: Medication, times: int = 1) -> Fact:
        """A medicine with its dose as the source gives it; one that was stopped says so.

        ``times`` is not written: "aspirin, 3 times" would read as a dose.
        """
        detail = ""
        if medication.since is not None:
            detail = say("medication.since", self.lang, time=self.times.text(medication.since))
        dose = f", {medication.dose}" if medication.dose and medication.dose not in medication.name else ""
        return Fact(
            kind="medication",
            name=medication.name,
            text=say(
                "medication" if medication.active else "medication.inactive",
                self.lang,
                name=medication.name,
                dose=dose,
                detail=detail,
                **({} if medication.active else {"status": medication.status}),
            ),
            value=medication.dose or None,
            as_of=stamp(medication.since),
            ref=medication.ref,
        )

    def event(self, event: Event, times: int = 1) -> Fact:
        """A procedure, encounter, immunisation or care plan with its days."""
        detail = f", {self.times.text(event.start)}"
        if event.end is not None and event.start is not None and event.end.date() != event.start.date():
            detail += say("event.to", self.lang, time=self.times.text(event.end))
        if times > 1:
            detail += say("event.times", self.lang, n=times)
        if event.status and event.status not in ("completed", "finished", "active"):
            detail += f" ({event.status})"
        kind: FactKind = cast("FactKind", event.kind) if event.kind in ("procedure", "encounter") else "note"
        return Fact(
            kind=kind,
            name=event.name,
            text=say("event", self.lang, kind=say(f"event.{event.kind}", self.lang), name=event.name, detail=detail),
            as_of=stamp(event.start),
            ref=event.ref,
        )

    def more(self, count: int, kind: str) -> Fact:
        """A note that the record holds ``count`` more of a kind than are shown."""
        return Fact(kind="note", name=say("name.more", self.lang), text=say("more", self.lang, n=count, kind=kind))

    def demographics(self, patient: PatientLayer) -> list[Fact]:
        """Age, sex, vital status and pregnancy as recorded."""
        facts = []
        today = self.times.now.astimezone(UTC).date()
        years = patient.age_years(today)
        if patient.birth_date is not None and years is not None:
            facts.append(
                Fact(
                    kind="demographic",
                    name=say("name.age", self.lang),
                    value=years,
                    text=say(
                        "demographic.age",
                        self.lang,
                        age=age_text(years, self.lang),
                        date=patient.birth_date.isoformat(),
                    ),
                    ref=f"Patient/{patient.patient_id}",
                )
            )
        sex = say(f"sex.{patient.sex}", self.lang)
        facts.append(
            Fact(
                kind="demographic",
                name=say("name.sex", self.lang),
                value=patient.sex,
                text=say("demographic.sex", self.lang, sex=sex),
                ref=f"Patient/{patient.patient_id}",
            )
        )
        return facts

    def deceased(self, patient: PatientLayer) -> list[Fact]:
        """That the record says the patient has died; nothing otherwise."""
        if not patient.deceased:
            return []
        at = patient.deceased if isinstance(patient.deceased, datetime) else None
        text = (
            say("demographic.deceased", self.lang)
            if at is None
            else say("demographic.deceased_at", self.lang, time=self.times.text(at))
        )
        return [
            Fact(
                kind="demographic",
                name=say("name.deceased", self.lang),
                text=text,
                as_of=stamp(at),
                ref=f"Patient/{patient.patient_id}",
            )
        ]


def age_text(years: int, lang: Lang) -> str:
    """ "67 years"; an infant is "under 1 year"."""
    return say("patient.years", lang, age=years) if years > 0 else say("patient.under_one", lang)


#: Ends of findings: line breaks, semicolons, and a full stop after a word and before a new sentence. Commas stay:
#: in "no ST elevation, Q waves" the "no" holds for both.
#: A title's full stop ends nothing.
_FINDING_END = re.compile(
    r"\s*(?:\r?\n)+\s*|;\s+"
    r"|(?:(?<=[^\W_]{2}[.!?])|(?<=[)%][.!?]))(?<!\bDr\.)(?<!\bDra\.)(?<!\bSr\.)(?<!\bProf\.)\s+(?=[^\W\d_a-zà-ÿ])"
)


def split_findings(text: str) -> list[str]:
    """The findings of a report's text, in order, as written; a very long one is cut and ends in "…".

    "ST elevation V2-V6. Anterior Q waves; poor R-wave progression" gives three. Splits at line breaks, semicolons
    and sentences only.
    """
    parts = []
    for part in _FINDING_END.split(text.strip()):
        finding = part.strip().strip(";").removesuffix(".").strip()
        if not finding or not re.search(r"\w", finding):
            continue
        if len(finding) > MAX_FINDING_CHARS:
            finding = finding[: MAX_FINDING_CHARS - 1].rstrip() + "…"
        parts.append(finding)
    return parts
