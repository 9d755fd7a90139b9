"""HL7 v2 messages: read, answered, and turned into the FHIR resources of which the one import makes layers.

Pure: bytes in, ``Message`` or ``Refused`` out. A message says what is wrong with it by segment and field and never
by its content. Codes are those of HL7 v2 tables 0008 (answers), 0085 (result status) and 0357 (errors).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, Final, Literal

import hl7  # type: ignore[import-untyped]
import msgspec

from context.fhir_people import is_wire_id
from context.fhir_text import REPORT_CHARS, clean_text, one_line

Json = dict[str, Any]
Verdict = Literal["AA", "AE", "AR"]

#: Table 0357, as far as it is used.
ERRORS: Final = {
    0: "Message accepted",
    100: "Segment sequence error",
    101: "Required field missing",
    102: "Data type error",
    103: "Table value not found",
    200: "Unsupported message type",
    201: "Unsupported event code",
    202: "Unsupported processing id",
    203: "Unsupported version id",
    204: "Unknown key identifier",
    207: "Application internal error",
}
VERSIONS: Final = frozenset(["2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6", "2.7", "2.7.1", "2.8", "2.8.1", "2.8.2"])
#: Admission, transfer, discharge, registration, their changes and cancellations. A merge of two records (A40 and
#: the like) is not among them: it must be seen and refused, not half done.
ADT_EVENTS: Final = frozenset(
    ["A01", "A02", "A03", "A04", "A05", "A06", "A07", "A08", "A11", "A12", "A13", "A28", "A31"]
)
#: MSH-18 (table 0211) to Python's name.
CHARSETS: Final = {"ASCII": "ascii", "8859/1": "latin-1", "UNICODE UTF-8": "utf-8"}

#: OBX-11: FHIR status and rank. A lower rank never replaces a higher one: a preliminary result that arrives late
#: stays behind the final one.
STATUSES: Final[dict[str, tuple[str, int]]] = {
    "I": ("registered", 0),
    "P": ("preliminary", 1),
    "R": ("preliminary", 1),
    "S": ("preliminary", 1),
    "F": ("final", 2),
    "U": ("final", 2),
    "V": ("final", 2),
    "A": ("amended", 3),
    "B": ("appended", 3),
    "C": ("corrected", 3),
}
#: Wrong, deleted, or "cannot be obtained": what was said before is taken back.
TAKEN_BACK: Final = frozenset("WDX")
#: An order without a result.
NO_RESULT: Final = frozenset("ON")
CRITICAL_FLAGS: Final = frozenset(("HH", "LL", "AA"))
NUMERIC_TYPES: Final = frozenset(("NM", "SN"))
TEXT_TYPES: Final = frozenset(("ST", "TX", "FT"))
CODED_TYPES: Final = frozenset(("CE", "CWE", "CNE", "IS", "ID", "CF"))
TIME_TYPES: Final = frozenset(("DT", "TM", "TS", "DTM"))

_SYSTEMS: Final = {
    "LN": "http://loinc.org",
    "SCT": "http://snomed.info/sct",
    "SNM": "http://snomed.info/sct",
    "RXNORM": "http://www.nlm.nih.gov/research/umls/rxnorm",
    "I10": "http://hl7.org/fhir/sid/icd-10",
    "I10C": "http://hl7.org/fhir/sid/icd-10-cm",
    "I9": "http://hl7.org/fhir/sid/icd-9-cm",
    "I9C": "http://hl7.org/fhir/sid/icd-9-cm",
    "ATC": "http://www.whocc.no/atc",
}
_FLAG_SYSTEM: Final = "http://terminology.hl7.org/CodeSystem/v2-0078"
_MR_SYSTEM: Final = "http://terminology.hl7.org/CodeSystem/v2-0203"
_UCUM: Final = "http://unitsofmeasure.org"
_STATUS_SYSTEM: Final = "http://terminology.hl7.org/CodeSystem/condition-clinical"
_VERIFICATION_SYSTEM: Final = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
_ALLERGY_SYSTEM: Final = "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical"
_SEXES: Final = {"M": "male", "F": "female", "O": "other", "A": "other", "N": "other"}
_CLASSES: Final = {"I": "IMP", "E": "EMER", "O": "AMB", "R": "AMB", "P": "PRENC", "B": "IMP"}
_ENCOUNTER: Final = {"A03": "finished", "A05": "planned"}
_CANCELS_VISIT: Final = frozenset(("A11",))
_ALLERGY_KINDS: Final = {
    "DA": "medication",
    "DRUG": "medication",
    "FA": "food",
    "EA": "environment",
    "PA": "environment",
    "AA": "environment",
}
_SEVERITY: Final = {"SV": "severe", "MO": "moderate", "MI": "mild"}

#: A clock of a sender that is ahead must not make its results immune against later corrections.
_AHEAD: Final = timedelta(minutes=10)
MAX_SEGMENTS: Final = 20_000
#: Problems that one answer names.
MAX_PROBLEMS: Final = 10
_MAX_ESCAPE: Final = 2_000
_NUMBER = re.compile(r"(?P<comparator><=|>=|<|>)?\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))")
_RANGE = re.compile(r"\s*(?P<low>[+-]?\d+(?:\.\d+)?)\s*(?:-|to|–)\s*(?P<high>[+-]?\d+(?:\.\d+)?)\s*")
_BOUND = re.compile(r"\s*(?P<side><=?|>=?)\s*(?P<bound>[+-]?\d+(?:\.\d+)?)\s*")
_TIME = re.compile(
    r"(?P<day>\d{8})(?:(?P<hour>\d{2})(?:(?P<minute>\d{2})(?:(?P<second>\d{2})(?:\.\d{1,6})?)?)?)?"
    r"(?P<zone>[+-]\d{4})?"
)
_PARTIAL_TIME = re.compile(r"(\d{4})(\d{2})?")
_ZONE = re.compile(r"[+-]\d{4}$")
_SEGMENT = re.compile(r"[A-Z][A-Z0-9]{2}")
NULL: Final = '""'


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong with a message, or (``W``) that was not taken though the message was.

    ``text`` is one of this module's own sentences and holds nothing of the message.
    """

    code: int
    segment: str
    sequence: int = 1
    field: int = 0
    text: str = ""
    severity: Literal["E", "W"] = "E"

    def place(self) -> str:
        """ "OBX[3]-5", for people and logs."""
        return f"{self.segment}[{self.sequence}]" + (f"-{self.field}" if self.field else "")


class Refused(Exception):
    """A message that is not applied at all."""

    def __init__(self, verdict: Literal["AE", "AR"], problem: Problem) -> None:
        super().__init__(f"{verdict} {problem.code} {problem.place()}")
        self.verdict: Literal["AE", "AR"] = verdict
        self.problem = problem


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What an installation says about its messages (``hl7.json``).

    locations: PV1-3.1, as the sender writes it, to the department id. charset: where MSH-18 is empty.
    processing: the ids of MSH-11 that are real: tests and trainings have no place in a record.
    assigning_authority: of several record numbers in PID-3, the one that counts (PID-3.4).
    default_department: of a patient whose place is not in the table; None: the message is refused then.
    """

    locations: dict[str, str] = {}
    charset: Literal["ASCII", "8859/1", "UNICODE UTF-8"] = "ASCII"
    processing: tuple[str, ...] = ("P",)
    assigning_authority: str = ""
    default_department: str | None = None


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """MSH, as far as it could be read: an answer is owed to every message that has one."""

    application: str = ""
    facility: str = ""
    to_application: str = ""
    to_facility: str = ""
    kind: str = ""
    event: str = ""
    control_id: str = ""
    processing: str = "P"
    version: str = "2.5.1"
    charset: str = ""
    encoding: str = "ascii"
    sent_at: datetime | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One resource of a message, before it has an id.

    base: what it is (order, code, sub-id), whatever its time; ``has_order``: an order number is part of it.
    at: when it was measured. status: OBX-11, empty for what is not a result. taken_back: it says that what was told
    of it before is not so. fingerprint: of the value alone. flags: OBX-8 as sent.
    """

    kind: str
    base: str
    fingerprint: str
    place: Problem
    resource: Json
    at: datetime | None = None
    status: str = ""
    rank: int = 2
    has_order: bool = False
    taken_back: bool = False
    flags: tuple[str, ...] = ()
    name: str = ""
    code: str = ""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message about one patient. ``location``: PV1-3.1, "" without one. ``problems``: what of it could not be read;
    those of severity ``E`` make the answer AE, though the rest is applied."""

    header: Header
    patient_id: str
    patient: Json
    sent_at: datetime
    location: str = ""
    is_admission: bool = False
    rows: tuple[Row, ...] = ()
    problems: tuple[Problem, ...] = ()


# --- from bytes to fields -----------------------------------------------------------------------------------


class _Fields:
    """The segments of a message and their fields, by number; escapes are undone last."""

    def __init__(self, text: str, encoding: str) -> None:
        self._encoding = encoding
        self.separators = text[3:8]
        self._parsed = hl7.parse(text)
        self._escape = re.compile(
            rf"{re.escape(self.separators[3])}([^{re.escape(self.separators[3])}]{{0,{_MAX_ESCAPE}}})"
            rf"{re.escape(self.separators[3])}"
        )
        self._replace = dict(zip("FSRET", self.separators, strict=True))

    def segments(self) -> Iterator[tuple[str, hl7.Segment]]:
        for segment in self._parsed:
            yield str(segment[0]).strip(), segment

    def raw(self, segment: hl7.Segment, number: int) -> str:
        """The field as sent, "" where there is none."""
        return str(segment[number]).strip("\n") if number < len(segment) else ""

    def repetitions(self, segment: hl7.Segment, number: int) -> list[str]:
        """The field's repetitions as sent, empty ones left out."""
        raw = self.raw(segment, number)
        return [part for part in raw.split(self.separators[2]) if part.strip()]

    def components(self, raw: str) -> list[str]:
        """The components of one repetition; of subcomponents the first."""
        return [
            self.text(part.split(self.separators[4])[0] if self.separators[4] else part)
            for part in raw.split(self.separators[1])
        ]

    def first(self, segment: hl7.Segment, number: int, component: int = 1) -> str:
        """One component of the field's first repetition; "" where there is none, and for HL7's null."""
        rows = self.repetitions(segment, number)
        parts = self.components(rows[0]) if rows else []
        found = parts[component - 1].strip() if len(parts) >= component else ""
        return "" if found == NULL else found

    def text(self, raw: str) -> str:
        """``raw`` with its escapes undone. One that is not known stays as it was sent: nothing is lost unseen."""
        if self.separators[3] not in raw:
            return clean_text(raw, Counter())
        return clean_text(self._escape.sub(self._unescaped, raw), Counter())

    def _unescaped(self, found: re.Match[str]) -> str:
        sequence = found[1]
        if sequence in self._replace:
            return self._replace[sequence]
        if sequence in ("H", "N"):
            return ""
        if sequence[:3] in (".br", ".sp", ".ce"):
            return "\n"
        if sequence[:3] in (".fi", ".nf", ".in", ".ti", ".sk"):
            return " "
        if sequence[:1] == "X":
            try:
                return bytes.fromhex(sequence[1:]).decode(self._encoding)
            except ValueError:
                return "\ufffd"
        return found[0]


def header_of(block: bytes, rules: Rules) -> Header:
    """What can be read of MSH, whatever else the message is; an empty header where even that is no message."""
    try:
        first = re.split(rb"[\r\n]", block.removeprefix(b"\xef\xbb\xbf").lstrip(), maxsplit=1)[0][:4096]
        text = first.decode("latin-1")
        if not text.startswith("MSH") or len(text) < 9:
            return Header()
        fields = text.split(text[3])
        component = text[4]

        def field(number: int) -> str:
            # MSH-1 is the separator itself, so the field n stands at n - 1.
            return fields[number - 1].strip() if len(fields) >= number else ""

        kind = field(9).split(component)
        return Header(
            application=field(3),
            facility=field(4),
            to_application=field(5),
            to_facility=field(6),
            kind=kind[0],
            event=kind[1] if len(kind) > 1 else "",
            control_id=field(10),
            processing=field(11).split(component)[0],
            version=field(12).split(component)[0],
            charset=field(18).split(text[5])[0],
            encoding=CHARSETS.get(field(18).split(text[5])[0] or rules.charset, "ascii"),
        )
    except (IndexError, ValueError):
        return Header()


def read(block: bytes, rules: Rules, *, now: datetime, zone: tzinfo | None) -> Message:
    """Read one message.

    Args:
        block: what stood between the MLLP marks.
        now: the time of its arrival, aware.
        zone: the hospital's, for times that name none.
    Raises:
        Refused: nothing of it may be applied.
    """
    header = header_of(block, rules)
    if not header.control_id and not header.kind:
        raise Refused("AR", Problem(100, "MSH", 1, 0, "the message does not begin with a readable MSH segment"))
    text = _decoded(block, header, rules)
    separators = text[4 : text.find(text[3], 4)]
    if (
        len(separators) not in (4, 5)
        or len({*separators, text[3]}) != len(separators) + 1
        or any(sign.isalnum() or sign <= " " for sign in separators)
    ):
        raise Refused("AE", Problem(102, "MSH", 1, 2, "the encoding characters cannot be used"))
    if not header.control_id:
        raise Refused("AE", Problem(101, "MSH", 1, 10, "a message needs a control id"))
    if header.version not in VERSIONS:
        raise Refused("AR", Problem(203, "MSH", 1, 12, "this version is not understood"))
    if header.processing not in rules.processing:
        raise Refused("AR", Problem(202, "MSH", 1, 11, "only messages of real care are taken here"))
    if header.kind not in ("ORU", "ADT"):
        raise Refused("AR", Problem(200, "MSH", 1, 9, "only ORU^R01 and ADT are understood"))
    if header.event not in (ADT_EVENTS if header.kind == "ADT" else ("R01",)):
        raise Refused("AR", Problem(201, "MSH", 1, 9, "this event is not understood"))
    try:
        fields = _Fields(text, header.encoding)
    except (hl7.HL7Exception, ValueError, IndexError, AssertionError):
        raise Refused("AE", Problem(102, "MSH", 1, 2, "the message cannot be taken apart")) from None
    return _Reading(fields, header, rules, now, zone).message()


def _decoded(block: bytes, header: Header, rules: Rules) -> str:
    encoding = header.encoding
    if header.charset and header.charset not in CHARSETS:
        raise Refused("AE", Problem(103, "MSH", 1, 18, "this character set is not understood"))
    if block.startswith(b"\xef\xbb\xbf"):
        if encoding == "latin-1":
            raise Refused("AE", Problem(102, "MSH", 1, 18, "the message is marked as UTF-8 and as another set"))
        encoding = "utf-8"
    try:
        text = block.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError:
        place = Problem(102, "MSH", 1, 18, "the message is not in the character set that it names")
        raise Refused("AE", place) from None
    # Segments end with a carriage return; some senders write lines as their system has them.
    text = text.replace("\r\n", "\r").strip()
    if "\r" not in text:
        text = text.replace("\n", "\r")
    if text.count("\r") > MAX_SEGMENTS:
        raise Refused("AE", Problem(100, "MSH", 1, 0, f"more than {MAX_SEGMENTS} segments"))
    return text


# --- from fields to resources -------------------------------------------------------------------------------


class _NotTaken(Exception):
    """One row of a message that cannot be read."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.place())
        self.problem = problem


class _Order(msgspec.Struct, frozen=True):
    """The OBR above an OBX: which order, of what, when its specimen was taken, and how it stands."""

    number: str = ""
    code: str = ""
    concept: Json = {}
    at: str = ""
    status: str = ""
    section: str = ""


class _Reading:
    """One message on its way; ``message`` is called once."""

    def __init__(self, fields: _Fields, header: Header, rules: Rules, now: datetime, zone: tzinfo | None) -> None:
        self._fields = fields
        self._header = header
        self._rules = rules
        self._now = now
        self._zone = zone
        self._problems: list[Problem] = []
        self._rows: list[Row] = []
        self._seen: Counter[str] = Counter()

    def message(self) -> Message:
        fields = self._fields
        by_name: dict[str, list[hl7.Segment]] = {}
        for name, segment in fields.segments():
            if not _SEGMENT.fullmatch(name):
                raise Refused("AE", Problem(100, "MSH", 1, 0, "something stands in the message that is no segment"))
            by_name.setdefault(name, []).append(segment)
        if len(by_name.get("MSH", ())) != 1:
            raise Refused("AE", Problem(100, "MSH", 2, 0, "several messages in one"))
        if not by_name.get("PID"):
            raise Refused("AE", Problem(100, "PID", 1, 0, "a message needs a patient"))
        if len(by_name["PID"]) > 1:
            raise Refused("AE", Problem(100, "PID", 2, 0, "one message is about one patient"))
        sent_at = self._sent_at(by_name["MSH"][0])
        patient_id, patient = self._patient(by_name["PID"][0])
        visits = by_name.get("PV1", [])
        location = fields.first(visits[0], 3) if visits else ""
        is_admission = self._header.kind == "ADT"
        if is_admission:
            if visits:
                self._visit(visits[0])
            for sequence, segment in enumerate(by_name.get("AL1", ()), 1):
                self._guarded(self._allergy, segment, sequence)
            for sequence, segment in enumerate(by_name.get("DG1", ()), 1):
                self._guarded(self._diagnosis, segment, sequence)
        elif not by_name.get("OBX") and not by_name.get("OBR"):
            raise Refused("AE", Problem(100, "OBR", 1, 0, "a result message needs results"))
        self._results()
        return Message(
            header=msgspec.structs.replace(self._header, sent_at=sent_at),
            patient_id=patient_id,
            patient=patient,
            sent_at=min(sent_at or self._now, self._now + _AHEAD),
            location=location,
            is_admission=is_admission,
            rows=tuple(self._rows),
            problems=tuple(self._problems),
        )

    def _guarded(self, convert: Any, *arguments: Any) -> None:
        try:
            convert(*arguments)
        except _NotTaken as error:
            self._problems.append(error.problem)

    def _note(self, problem: Problem) -> None:
        self._problems.append(msgspec.structs.replace(problem, severity="W"))

    # --- MSH, PID, PV1 ---

    def _sent_at(self, msh: hl7.Segment) -> datetime | None:
        raw = self._fields.first(msh, 7)
        if not raw:
            return None
        if zone := _ZONE.search(raw):
            # A zone that MSH-7 names is that of all times of the message that name none.
            self._zone = _offset(zone[0])
        found = self._time(raw, Problem(102, "MSH", 1, 7, "not a time"), Refused)
        return found[1]

    def _patient(self, pid: hl7.Segment) -> tuple[str, Json]:
        fields = self._fields
        numbers: list[tuple[str, str, str]] = []
        for raw in fields.repetitions(pid, 3):
            parts = [*fields.components(raw), "", "", "", "", ""]
            if parts[0].strip() and parts[0].strip() != NULL:
                numbers.append((parts[0].strip(), parts[3].strip(), parts[4].strip()))
        wanted = self._rules.assigning_authority
        records = [row for row in numbers if row[2] == "MR" and (not wanted or row[1] == wanted)]
        if not records and len(numbers) == 1 and not numbers[0][2] and (not wanted or numbers[0][1] == wanted):
            records = numbers  # a single number without a type is the record number, as before v2.3.1
        if not records:
            raise Refused("AE", Problem(101, "PID", 1, 3, "no medical record number (type MR)"))
        if len({number for number, _, _ in records}) > 1:
            raise Refused("AE", Problem(204, "PID", 1, 3, "several medical record numbers"))
        patient_id = records[0][0]
        if not is_wire_id(patient_id):
            raise Refused("AE", Problem(102, "PID", 1, 3, "the record number has signs that an id cannot have"))
        patient: Json = {
            "resourceType": "Patient",
            "id": "p",
            "identifier": [
                {
                    "value": number,
                    "type": {"coding": [{"system": _MR_SYSTEM, "code": kind or "MR"}]},
                }
                for number, _, kind in numbers
                if (number == patient_id) or kind != "MR"
            ],
        }
        names = [[*fields.components(raw), "", "", "", "", "", "", ""] for raw in fields.repetitions(pid, 5)]
        names = [parts for parts in names if parts[6] in ("", "L", "D", "U")] or names
        if names:
            given = [part for part in (names[0][1], names[0][2]) if part and part != NULL]
            family = "" if names[0][0] == NULL else names[0][0]
            if family or given:
                patient["name"] = [{"family": family, "given": given} if family else {"given": given}]
        if birth := fields.first(pid, 7):
            patient["birthDate"] = self._birth(birth)
        if sex := _SEXES.get(fields.first(pid, 8).upper()):
            patient["gender"] = sex
        died = fields.first(pid, 29)
        if died and self._header.kind == "ADT":
            at, moment = self._time(died, Problem(102, "PID", 1, 29, "not a time"), Refused)
            patient["deceasedDateTime"] = moment.isoformat() if moment and len(at) > 10 else at
        elif fields.first(pid, 30) == "Y" and self._header.kind == "ADT":
            patient["deceasedBoolean"] = True
        return patient_id, patient

    def _birth(self, raw: str) -> str:
        """The day as it is written: a zone behind it must not make it the day before."""
        place = Problem(102, "PID", 1, 7, "not a date")
        self._time(raw, place, Refused)
        return self._time(raw[:8], place, Refused)[0]

    def _visit(self, pv1: hl7.Segment) -> None:
        """A stay, where it has a number; without one a change could not be told from another stay."""
        fields = self._fields
        number = fields.first(pv1, 19)
        if not number:
            return
        event = self._header.event
        if event in ("A28", "A31"):
            return
        code = _CLASSES.get(fields.first(pv1, 2).upper(), "")
        period: Json = {}
        for key, field in (("start", 44), ("end", 45)):
            if raw := fields.first(pv1, field):
                try:
                    _, moment = self._time(raw, Problem(102, "PV1", 1, field, "not a time"), _NotTaken)
                except _NotTaken as error:
                    self._note(error.problem)
                    continue
                if moment is not None:
                    period[key] = moment.isoformat()
        is_over = "end" in period and event != "A13"
        status = "finished" if is_over else _ENCOUNTER.get(event, "in-progress")
        resource: Json = {"resourceType": "Encounter", "status": status, "subject": {"reference": "Patient/p"}}
        resource["class"] = {"code": code or "IMP"}
        if period:
            resource["period"] = period
        self._rows.append(
            Row(
                kind="Encounter",
                base=_digest("visit", self._facility(), number),
                fingerprint=_digest(status, str(period)),
                place=Problem(0, "PV1"),
                resource=resource,
                taken_back=event in _CANCELS_VISIT,
            )
        )

    def _facility(self) -> str:
        return self._header.facility or self._header.application

    # --- AL1, DG1 ---

    def _allergy(self, al1: hl7.Segment, sequence: int) -> None:
        fields = self._fields
        concept, code, name = self._concept(al1, 3)
        if not name:
            raise _NotTaken(Problem(101, "AL1", sequence, 3, "an allergy needs a substance"))
        resource: Json = {
            "resourceType": "AllergyIntolerance",
            "clinicalStatus": {"coding": [{"system": _ALLERGY_SYSTEM, "code": "active"}]},
            "code": concept,
            "patient": {"reference": "Patient/p"},
        }
        if kind := _ALLERGY_KINDS.get(fields.first(al1, 2).upper()):
            resource["category"] = [kind]
        severity = _SEVERITY.get(fields.first(al1, 4).upper())
        if severity == "severe":
            resource["criticality"] = "high"
        signs = [text for raw in fields.repetitions(al1, 5) if (text := _label(fields.components(raw)))]
        if signs or severity:
            reaction: Json = {"manifestation": [{"text": sign} for sign in signs]} if signs else {}
            if severity:
                reaction["severity"] = severity
            resource["reaction"] = [reaction]
        if raw := fields.first(al1, 6):
            resource["recordedDate"] = self._time(raw, Problem(102, "AL1", sequence, 6, "not a date"), _NotTaken)[0]
        self._rows.append(
            Row(
                kind="AllergyIntolerance",
                base=_digest("allergy", code or name.casefold()),
                fingerprint=_digest(msgspec.json.encode(resource).decode()),
                place=Problem(102, "AL1", sequence, 3, "not understood"),
                resource=resource,
            )
        )

    def _diagnosis(self, dg1: hl7.Segment, sequence: int) -> None:
        fields = self._fields
        concept, code, name = self._concept(dg1, 3)
        if not name:
            name = one_line(fields.first(dg1, 4))
            concept = concept | {"text": name}
        if not name:
            raise _NotTaken(Problem(101, "DG1", sequence, 3, "a diagnosis needs a code or a text"))
        is_final = fields.first(dg1, 6).upper() == "F"
        verification = "confirmed" if is_final else "provisional"
        resource: Json = {
            "resourceType": "Condition",
            "clinicalStatus": {"coding": [{"system": _STATUS_SYSTEM, "code": "active"}]},
            "verificationStatus": {"coding": [{"system": _VERIFICATION_SYSTEM, "code": verification}]},
            "code": concept,
            "subject": {"reference": "Patient/p"},
        }
        if raw := fields.first(dg1, 5):
            resource["recordedDate"] = self._time(raw, Problem(102, "DG1", sequence, 5, "not a time"), _NotTaken)[0]
        self._rows.append(
            Row(
                kind="Condition",
                base=_digest("diagnosis", code or name.casefold()),
                fingerprint=_digest(msgspec.json.encode(resource).decode()),
                place=Problem(102, "DG1", sequence, 3, "not understood"),
                resource=resource,
                taken_back=fields.first(dg1, 21).upper() == "D",
            )
        )

    # --- OBR, OBX ---

    def _results(self) -> None:
        order = _Order()
        group: list[tuple[int, hl7.Segment]] = []
        sequence = 0
        for name, segment in self._fields.segments():
            if name == "OBX":
                sequence += 1
                # Lines of one text come as one OBX each.
                if group and not self._continues(group[-1][1], segment):
                    self._guarded(self._result, group, order)
                    group = []
                group.append((sequence, segment))
                continue
            if group:
                self._guarded(self._result, group, order)
                group = []
            if name == "OBR":
                order = self._order(segment)
        if group:
            self._guarded(self._result, group, order)

    def _continues(self, before: hl7.Segment, segment: hl7.Segment) -> bool:
        fields = self._fields
        kinds = {fields.first(before, 2), fields.first(segment, 2)}
        return kinds <= TEXT_TYPES and all(
            fields.raw(before, number) == fields.raw(segment, number) for number in (3, 4, 11, 14)
        )

    def _order(self, obr: hl7.Segment) -> _Order:
        fields = self._fields
        concept, code, name = self._concept(obr, 4)
        return _Order(
            number=fields.first(obr, 3) or fields.first(obr, 2),
            code=code or name,
            concept=concept,
            at=fields.first(obr, 7),
            status=fields.first(obr, 25).upper(),
            section=fields.first(obr, 24).upper(),
        )

    def _result(self, group: list[tuple[int, hl7.Segment]], order: _Order) -> None:
        fields = self._fields
        sequence, obx = group[0]
        kind = fields.first(obx, 2).upper()
        status = (fields.first(obx, 11) or order.status).upper()
        raws = [raw for _, each in group for raw in fields.repetitions(each, 5)]
        is_null = any(raw.strip() == NULL for raw in raws)
        raws = [raw for raw in raws if raw.strip() != NULL]
        if not status and raws:
            raise _NotTaken(Problem(101, "OBX", sequence, 11, "a result needs a status"))
        if status in NO_RESULT or (not raws and not is_null and status not in TAKEN_BACK):
            return
        if status and status not in STATUSES and status not in TAKEN_BACK:
            raise _NotTaken(Problem(103, "OBX", sequence, 11, "this result status is not understood"))
        concept, code, name = self._concept(obx, 3)
        if not name and kind in TEXT_TYPES:
            # Lines of a report are what was ordered.
            concept, name = order.concept, _concept_name(order.concept)
        if not name:
            raise _NotTaken(Problem(101, "OBX", sequence, 3, "a result needs a name or a code"))
        at = fields.first(obx, 14) or order.at
        moment = None
        if at:
            field = 14 if fields.first(obx, 14) else 7
            place = Problem(102, "OBX" if field == 14 else "OBR", sequence if field == 14 else 1, field, "not a time")
            moment = self._time(at, place, _NotTaken)[1]
        fhir_status, rank = STATUSES.get(status, ("entered-in-error", 3))
        taken_back = status in TAKEN_BACK or (is_null and not raws)
        resource: Json = {
            "resourceType": "Observation",
            "status": fhir_status,
            "code": concept,
            "subject": {"reference": "Patient/p"},
            "category": [{"coding": [{"code": "imaging" if order.section in ("RAD", "CT", "NMR") else "laboratory"}]}],
        }
        if moment is not None:
            resource["effectiveDateTime"] = moment.isoformat()
        value: Json = {}
        if not taken_back:
            value = self._value(kind, raws, obx, sequence)
            if not value:
                return
            resource |= value
        flags = tuple(flag for raw in fields.repetitions(obx, 8) if (flag := fields.components(raw)[0].strip().upper()))
        if flags:
            resource["interpretation"] = [{"coding": [{"system": _FLAG_SYSTEM, "code": flag}]} for flag in flags]
        if bounds := self._bounds(obx, value):
            resource["referenceRange"] = [bounds]
        number = order.number
        base = _digest("result", self._facility(), number, order.code, code or name, fields.first(obx, 4))
        self._seen[base] += 1
        self._rows.append(
            Row(
                kind="Observation",
                base=base,
                fingerprint=_digest(msgspec.json.encode(value).decode()),
                place=Problem(102, "OBX", sequence, 5, "the value is not understood"),
                resource=resource,
                at=moment,
                status=status,
                rank=rank,
                has_order=bool(number),
                taken_back=taken_back,
                flags=flags,
                name=name,
                code=code,
            )
        )

    def _value(self, kind: str, raws: list[str], obx: hl7.Segment, sequence: int) -> Json:
        """The FHIR value of an OBX; {} where its type is none that is read, which is noted."""
        fields = self._fields
        unit = self._unit(obx)
        if kind == "SN" and len(raws) == 1:
            return self._structured(raws[0], unit)
        if kind in NUMERIC_TYPES or kind in ("ST", ""):
            text = fields.text(raws[0]).strip()
            found = _NUMBER.fullmatch(text) if len(raws) == 1 else None
            # A number that is sent as a text is a number if it has a unit: else it may be a code or a grade.
            if found and (kind == "NM" or unit):
                return _quantity(found["number"], found["comparator"] or "", unit)
        if kind in TEXT_TYPES or kind in NUMERIC_TYPES or kind == "" or kind in TIME_TYPES:
            glue = "\n" if kind in ("TX", "FT") or (len(raws) > 1 and kind == "ST") else "; "
            text = glue.join(fields.text(raw).strip("\r\n") for raw in raws)
            if unit and text[:1] in "0123456789<>+-.":
                text = f"{text} {unit.get('unit') or unit.get('code')}"
            return {"valueString": text[: 2 * REPORT_CHARS]} if text.strip() else {}
        if kind in CODED_TYPES:
            concepts = [self._coded(raw) for raw in raws]
            if len(concepts) == 1:
                return {"valueCodeableConcept": concepts[0]} if concepts[0] else {}
            labels = "; ".join(name for each in concepts if (name := _concept_name(each)))
            return {"valueString": labels} if labels else {}
        self._note(Problem(102, "OBX", sequence, 2, "values of this type are not read"))
        return {}

    def _structured(self, raw: str, unit: Json) -> Json:
        parts = [*(part.strip() for part in self._fields.components(raw)), "", "", "", ""]
        comparator, first, separator, second = parts[:4]
        number = _NUMBER.fullmatch(first)
        is_plain = number is not None and not number["comparator"] and not separator and not second
        if number is not None and is_plain and comparator in ("", "=", "<", "<=", ">", ">="):
            return _quantity(number["number"], "" if comparator == "=" else comparator, unit)
        text = f"{comparator}{first}{separator}{second}".strip()
        shown = unit.get("unit") or unit.get("code") or ""
        return {"valueString": f"{text} {shown}".strip()} if text else {}

    def _unit(self, obx: hl7.Segment) -> Json:
        rows = self._fields.repetitions(obx, 6)
        if not rows:
            return {}
        parts = [*(part.strip() for part in self._fields.components(rows[0])), "", "", ""]
        code, text, system = parts[:3]
        if code in ("", NULL) and not text:
            return {}
        unit: Json = {"unit": text or code}
        if system.upper() == "UCUM" and code:
            unit |= {"code": code, "system": _UCUM}
        return unit

    def _bounds(self, obx: hl7.Segment, value: Json) -> Json:
        text = one_line(self._fields.text(self._fields.raw(obx, 7)))
        if not text or text == NULL:
            return {}
        bounds: Json = {"text": text}
        quantity = value.get("valueQuantity")
        if quantity is not None:
            unit = {key: quantity[key] for key in ("unit", "code", "system") if key in quantity}
            if found := _RANGE.fullmatch(text):
                bounds["low"] = {"value": float(found["low"]), **unit}
                bounds["high"] = {"value": float(found["high"]), **unit}
            elif found := _BOUND.fullmatch(text):
                side = "high" if found["side"].startswith("<") else "low"
                bounds[side] = {"value": float(found["bound"]), **unit}
        return bounds

    # --- codes and times ---

    def _concept(self, segment: hl7.Segment, number: int) -> tuple[Json, str, str]:
        """The concept of a coded field, its first code and its name; ({}, "", "") without one."""
        rows = self._fields.repetitions(segment, number)
        concept = self._coded(rows[0]) if rows else {}
        first = next((row["code"] for row in concept.get("coding", ()) if "code" in row), "")
        return concept, first, _concept_name(concept)

    def _coded(self, raw: str) -> Json:
        parts = [*(one_line(part) for part in self._fields.components(raw)), *[""] * 9]
        parts = ["" if part == NULL else part for part in parts]
        concept: Json = {}
        coding = []
        for code, text, system in (parts[0:3], parts[3:6]):
            row = {}
            is_code = bool(code) and not re.search(r"\s", code)
            if is_code:
                row["code"] = code
            if display := text or ("" if is_code else code):
                row["display"] = display
            if system in _SYSTEMS:
                row["system"] = _SYSTEMS[system]
            if "code" in row or "display" in row:
                coding.append(row)
        if coding:
            concept["coding"] = coding
        # What the sender's people wrote themselves (CWE.9) goes before a table's wording, for values and names alike.
        if text := parts[8] or parts[1] or parts[4]:
            concept["text"] = text
        return concept

    def _time(
        self, raw: str, problem: Problem, refusal: type[Refused] | type[_NotTaken]
    ) -> tuple[str, datetime | None]:
        """An HL7 time as a FHIR date or dateTime, and the moment where it is known to the day.

        A time without a zone is the message's, else the hospital's; without either the moment is None.
        """
        text = raw.strip()
        found = _TIME.fullmatch(text)
        try:
            if found is None:
                partial = _PARTIAL_TIME.fullmatch(text)
                if partial is None:
                    raise ValueError
                year, month = partial.groups()
                datetime(int(year), int(month or 1), 1, tzinfo=UTC)
                return (f"{year}-{month}" if month else year), None
            day = found["day"]
            date = f"{day[:4]}-{day[4:6]}-{day[6:]}"
            moment = datetime.fromisoformat(date)
            if found["hour"] is None:
                return date, moment.replace(tzinfo=UTC)
            moment = moment.replace(
                hour=int(found["hour"]),
                minute=int(found["minute"] or 0),
                second=min(int(found["second"] or 0), 59),
            )
            zone = _offset(found["zone"]) if found["zone"] else self._zone
            if zone is None:
                return moment.isoformat(), None
            moment = moment.replace(tzinfo=zone).astimezone(UTC)
            return moment.isoformat(), moment
        except (ValueError, OverflowError):
            if refusal is Refused:
                raise Refused("AE", problem) from None
            raise _NotTaken(problem) from None


def _offset(text: str) -> tzinfo:
    """The zone "+0100"; ValueError beyond a day."""
    minutes = int(text[1:3]) * 60 + int(text[3:5])
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))


def _quantity(number: str, comparator: str, unit: Json) -> Json:
    quantity: Json = {"value": float(number), **unit}
    if comparator:
        quantity["comparator"] = comparator
    return {"valueQuantity": quantity}


def _label(parts: list[str]) -> str:
    padded = [*parts, "", ""]
    return one_line(padded[1] or padded[0])


def _concept_name(concept: Json) -> str:
    coding = concept.get("coding") or [{}]
    return str(concept.get("text") or coding[0].get("display") or coding[0].get("code") or "")


def _digest(*parts: str) -> str:
    """24 hex digits that name what the parts name."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:24]


# --- answers ------------------------------------------------------------------------------------------------


def verdict_of(problems: Iterable[Problem]) -> Verdict:
    """AE where something was not taken that should have been, else AA."""
    return "AE" if any(problem.severity == "E" for problem in problems) else "AA"


def answer(header: Header, verdict: Verdict, problems: Iterable[Problem], *, now: datetime, control_id: str) -> bytes:
    """The acknowledgement of a message: MSH, MSA with the message's control id, one ERR per problem (at most 10).

    The header's fields go back as they came, in the default separators; nothing else of the message does.
    """

    def back(text: str) -> str:
        return re.sub(r"[\r\n|\x00-\x1f]", " ", text)[:227]

    version = header.version if header.version in VERSIONS else "2.5.1"
    event = back(header.event)[:3]
    kind = f"ACK^{event}^ACK" if event else "ACK"
    stamp = now.astimezone(UTC).strftime("%Y%m%d%H%M%S+0000")
    charset = header.charset if header.charset in CHARSETS else ""
    fields = [
        *("MSH", "^~\\&", back(header.to_application), back(header.to_facility)),
        *(back(header.application), back(header.facility), stamp, "", kind, control_id),
        *(back(header.processing)[:3] or "P", version, "", "", "", "", "", charset),
    ]
    segments = ["|".join(fields).rstrip("|"), f"MSA|{verdict}|{back(header.control_id)}"]
    for problem in list(problems)[:MAX_PROBLEMS]:
        place = f"{problem.segment}^{problem.sequence}" + (f"^{problem.field}" if problem.field else "")
        name = ERRORS.get(problem.code, ERRORS[207])
        segments.append(f"ERR||{place}|{problem.code}^{name}^HL70357|{problem.severity}|||{problem.text}")
    return ("\r".join(segments) + "\r").encode(header.encoding if charset else "latin-1", "replace")
