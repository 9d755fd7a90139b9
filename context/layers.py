"""The five layers of what chatd knows when it answers: hospital, department, doctor, patient, session.

Each layer is a frozen Struct with a ``version`` (a digest of its content: equal content, equal version)
and an ``as_of`` (UTC: the moment its source was read). Nothing here awaits, reads a clock or knows Redis.
"""

from __future__ import annotations

import hashlib
from datetime import date, datetime
from typing import Literal, TypeVar

import msgspec

#: A reference to an item of the chart, as FHIR writes it: "Observation/trop-1".
ChartRef = str

Flag = Literal["", "L", "H", "LL", "HH", "A"]
"""Interpretation of a value: low, high, critically low, critically high, abnormal (text results)."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a department's catalogue of quick actions.

    id: the catalogue id on the wire (``catalog_id``), e.g. "schedule_cath_lab".
    label, label_pt: what people read, e.g. "Schedule Cath Lab".
    risk: "none" is done at once, "confirm" needs a second tap, "confirm_id" a second identifier of the patient too.
    fhir: the FHIR R4 draft it becomes: "ServiceRequest", "CommunicationRequest", "Task", "Appointment",
        "MedicationRequest" or "AllergyIntolerance".
    protocols: ids of the protocols that this action serves; facts-only answers rank by them.
    priority: FHIR request priority: routine, urgent, asap or stat.
    """

    id: str
    label: str
    label_pt: str
    risk: Literal["none", "confirm", "confirm_id"]
    fhir: str
    protocols: tuple[str, ...] = ()
    priority: Literal["routine", "urgent", "asap", "stat"] = "routine"
    terms: tuple[str, ...] = ()


class HospitalLayer(msgspec.Struct, frozen=True, kw_only=True):
    """What is true in the whole hospital. ``critical_limits`` is the laboratory's own table of call limits,
    by analyte id (see chatd.safety), as (low, high) in the analyte's canonical unit; None: no limit on that side."""

    name: str
    as_of: datetime
    version: str = ""
    language: str = "pt-PT"
    timezone: str = "Europe/Lisbon"
    policies: tuple[str, ...] = ()
    critical_limits: dict[str, tuple[float | None, float | None]] = {}


class DepartmentLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One department: its focus, its standing instructions and its catalogue of quick actions."""

    department_id: str
    name: str
    name_pt: str
    as_of: datetime
    version: str = ""
    focus: str = ""
    instructions: tuple[str, ...] = ()
    actions: tuple[Action, ...] = ()


class DoctorLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One member of staff: role, specialty and the preferences that shape an answer (never its facts)."""

    user_id: str
    name: str
    as_of: datetime
    version: str = ""
    role: str = "physician"
    specialty: str = ""
    departments: tuple[str, ...] = ()
    preferences: tuple[str, ...] = ()
    rounds: str = ""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One result of the record: a vital sign, a laboratory value or a coded or text result.

    Exactly one of ``value`` (a finite number) and ``text`` is set. ``unit`` None with a number means that the
    source gave none: such a value is shown with "unit missing" and is never scored, compared or checked.
    ``comparator``: "<" or ">" before the number ("< 0.01"); such a value is shown and not scored.
    ``code``: LOINC if the source had one; panels arrive as one Observation per component, ``ref`` of the panel
    with "#" and the component's code.
    ``as_of``: when it was measured, UTC; None if the source does not say.
    """

    ref: ChartRef
    name: str
    code: str | None = None
    value: float | None = None
    text: str | None = None
    unit: str | None = None
    comparator: str = ""
    low: float | None = None
    high: float | None = None
    range_text: str = ""
    flag: Flag = ""
    category: str = ""
    status: str = "final"
    as_of: datetime | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A written report: ECG, imaging, laboratory. ``text`` is what a person wrote; no waveform or image is read."""

    ref: ChartRef
    title: str
    text: str
    code: str | None = None
    kind: Literal["ecg", "imaging", "lab", "other"] = "other"
    status: str = "final"
    as_of: datetime | None = None


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A problem or diagnosis. ``active`` is False for resolved, inactive, remission and refuted ones."""

    ref: ChartRef
    name: str
    code: str | None = None
    active: bool = True
    verification: str = ""
    onset: datetime | None = None
    end: datetime | None = None


class Medication(msgspec.Struct, frozen=True, kw_only=True):
    """A medicine the patient takes, is prescribed or has stopped; ``dose`` is text as the source gives it."""

    ref: ChartRef
    name: str
    code: str | None = None
    dose: str = ""
    active: bool = True
    status: str = "active"
    since: datetime | None = None


class Allergy(msgspec.Struct, frozen=True, kw_only=True):
    """An allergy or intolerance. Refuted and entered-in-error ones are not in the layer."""

    ref: ChartRef
    name: str
    code: str | None = None
    category: str = ""
    criticality: str = ""
    reaction: str = ""
    active: bool = True
    verification: str = ""
    recorded: datetime | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A procedure, encounter, immunization or care plan."""

    ref: ChartRef
    kind: Literal["procedure", "encounter", "immunization", "care_plan"]
    name: str
    code: str | None = None
    status: str = ""
    start: datetime | None = None
    end: datetime | None = None


class PatientLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One patient's record as chatd knows it.

    ``departments``: who may ask about this patient; a principal of no such department is refused.
    ``allergy_status``: "known" (see ``allergies``), "none_known" (somebody asked and recorded none) or
    "not_recorded" (nobody recorded anything: never shown as "no allergies").
    ``deceased``: None if alive as far as the record says; a datetime, or True without a time.
    ``pregnant``: None when unknown. Tuples are ordered newest first, unknown times last, ties by ``ref``.
    """

    patient_id: str
    name: str
    as_of: datetime
    version: str = ""
    departments: tuple[str, ...] = ()
    identifiers: tuple[str, ...] = ()
    birth_date: date | None = None
    sex: Literal["male", "female", "other", "unknown"] = "unknown"
    deceased: datetime | bool | None = None
    pregnant: bool | None = None
    summary: str = ""
    conditions: tuple[Condition, ...] = ()
    medications: tuple[Medication, ...] = ()
    allergies: tuple[Allergy, ...] = ()
    allergy_status: Literal["known", "none_known", "not_recorded"] = "not_recorded"
    observations: tuple[Observation, ...] = ()
    reports: tuple[Report, ...] = ()
    events: tuple[Event, ...] = ()

    def age_years(self, today: date) -> int | None:
        """Age in completed years on ``today``; see ``age_years``."""
        return age_years(self.birth_date, today)


def age_years(birth_date: date | None, today: date) -> int | None:
    """Completed years between the two dates; None without a birth date or with one in the future."""
    if birth_date is None or birth_date > today:
        return None
    had_birthday = (today.month, today.day) >= (birth_date.month, birth_date.day)
    return today.year - birth_date.year - (not had_birthday)


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the session's memory; ``patient_id`` says whom it was about, so that a question about
    one patient never carries history of another."""

    role: Literal["doctor", "chatd"]
    text: str
    at: datetime
    patient_id: str | None = None
    response_id: str | None = None


class PendingAction(msgspec.Struct, frozen=True, kw_only=True):
    """A proposed quick action that nobody has confirmed or dismissed yet."""

    action_id: str
    catalog_id: str
    label: str
    patient_id: str | None
    expires_at: datetime


class SessionLayer(msgspec.Struct, frozen=True, kw_only=True):
    """Short memory of one session: at most the last 10 messages, 30 minutes of life since the last one."""

    session_id: str
    as_of: datetime
    version: str = ""
    patient_id: str | None = None
    topic: str = ""
    messages: tuple[Message, ...] = ()
    pending_actions: tuple[PendingAction, ...] = ()


Layer = HospitalLayer | DepartmentLayer | DoctorLayer | PatientLayer | SessionLayer
L = TypeVar("L", HospitalLayer, DepartmentLayer, DoctorLayer, PatientLayer, SessionLayer)


class Layers(msgspec.Struct, frozen=True, kw_only=True):
    """The five layers of one question. ``doctor`` falls back to the department's defaults for an unknown
    user; ``patient`` is None when the question names no patient."""

    hospital: HospitalLayer
    department: DepartmentLayer
    doctor: DoctorLayer
    patient: PatientLayer | None
    session: SessionLayer


def versioned(layer: L) -> L:
    """Return ``layer`` with ``version`` set to a digest of everything but ``version`` and ``as_of``.

    Equal content gives an equal version on every machine; called twice it changes nothing.
    """
    bare = msgspec.structs.replace(layer, version="", as_of=datetime.min)  # noqa: DTZ901
    digest = hashlib.sha256(msgspec.json.encode(bare, order="deterministic")).hexdigest()[:12]
    return msgspec.structs.replace(layer, version=digest)
