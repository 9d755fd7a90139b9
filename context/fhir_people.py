"""Who is who in an import: Patient resources to persons, and references to one of them or to none.

Two people are never made one by guessing, and a reference that could mean two people means nobody.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Any, Literal

import msgspec

from context import fhir_codes as codes
from context.fhir_convert import Env, Json, codings, moment, obj, objects, texts, whole_date
from context.fhir_text import one_line
from protocols.frames import Id

_MIN = datetime.min.replace(tzinfo=UTC)
_PATIENT_REFERENCE = re.compile(r"(?:(https?://[^?#]+)/)?Patient/([A-Za-z0-9\-.]{1,64})(?:/_history/[^/]+)?")
_PATIENT_SEARCH = re.compile(r"(?:https?://[^?#]+/)?Patient\?identifier=([^|&]*)\|([^&]+)")
_FULL_URL = re.compile(r"(https?://[^?#]+)/[A-Z][A-Za-z]+/[A-Za-z0-9\-.]{1,64}(?:/_history/[^/]+)?")
_NAME_USES = {"official": 0, "usual": 1, "": 2, "temp": 3, "anonymous": 4, "nickname": 5, "old": 6, "maiden": 7}
_IDENTIFIER_USES = {"official": 0, "usual": 1, "": 2, "secondary": 3, "temp": 4, "old": 5}
_ANIMAL = "http://hl7.org/fhir/StructureDefinition/patient-animal"
_SEXES = ("male", "female", "other", "unknown")


class Identifier(msgspec.Struct, frozen=True):
    system: str
    value: str
    is_record_number: bool = False


class PatientRecord(msgspec.Struct, kw_only=True):
    """What one Patient resource says. ``scope``: see ``scope_of``; ``links``: what it is replaced by."""

    scope: str
    id: str
    full_url: str
    file: int
    order: int
    updated: datetime | None
    name: str
    birth_date: date | None
    birth_text: str
    sex: Literal["male", "female", "other", "unknown"]
    deceased: datetime | bool | None
    identifiers: tuple[Identifier, ...]
    replaced_by: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    reason: str = ""


class Person(msgspec.Struct, kw_only=True):
    """One person: the Patient resources that are hers, the leading one first, and her id on the wire.

    ``reason``: why nothing of her can be taken; "" else.
    """

    records: list[PatientRecord]
    patient_id: str = ""
    reason: str = ""


class Subject(msgspec.Struct, frozen=True):
    """How a resource names its patient."""

    reference: str = ""
    system: str = ""
    value: str = ""


def scope_of(full_url: str, bundle: str) -> str:
    """Where an id is unique: a server's base address, one bundle ("bundle:..."), or "" outside bundles.

    Bulk exports and single resources have no address and refer to each other over files: they share "".
    """
    found = _FULL_URL.fullmatch(full_url)
    return found[1] if found else bundle


def subject_of(resource: Json) -> Subject:
    """The patient that a resource names, read before anything else of it is trusted."""
    node = resource.get("subject") or resource.get("patient") or resource.get("beneficiary")
    reference = obj(node)
    logical = obj(reference.get("identifier"))
    return Subject(
        texts(reference.get("reference")).strip(),
        texts(logical.get("system")).strip(),
        texts(logical.get("value")).strip(),
    )


# --- one Patient resource -----------------------------------------------------------------------------------


def patient_record(
    resource: Json, *, scope: str, full_url: str, file: int, order: int, now: datetime, env: Env
) -> PatientRecord:
    """Read a cleaned Patient resource."""
    identity = texts(resource.get("id")) or (full_url.removeprefix("urn:uuid:") if full_url.startswith("urn:") else "")
    birth_text = texts(resource.get("birthDate")).strip()
    birth_date = whole_date(birth_text)
    if birth_text and birth_date is None:
        env.noted["birth date not known to the day"] += 1
    sex = texts(resource.get("gender"))
    links = objects(resource.get("link"))
    targets = [(texts(link.get("type")), texts(obj(link.get("other")).get("reference"))) for link in links]
    is_animal = any(row.get("url") == _ANIMAL for row in objects(resource.get("extension")))
    return PatientRecord(
        scope=scope,
        id=identity,
        full_url=full_url,
        file=file,
        order=order,
        updated=moment(obj(resource.get("meta")).get("lastUpdated"), env),
        name=_name(resource.get("name"), now, env) or "(no name)",
        birth_date=birth_date,
        birth_text="" if birth_date else birth_text,
        sex=sex if sex in _SEXES else "unknown",  # type: ignore[arg-type]
        deceased=_deceased(resource, env),
        identifiers=_identifiers(resource.get("identifier"), now, env),
        replaced_by=tuple(target for kind, target in targets if kind == "replaced-by" and target),
        replaces=tuple(target for kind, target in targets if kind == "replaces" and target),
        reason="not a person" if is_animal else "",
    )


def _name(node: Any, now: datetime, env: Env) -> str:
    """The name in use: official before usual, names whose time is over last; the source's spelling is kept."""

    def rank(indexed: tuple[int, Json]) -> tuple[bool, int, int]:
        index, row = indexed
        end = moment(obj(row.get("period")).get("end"), env, partial=True)
        return (end is not None and end < now, _NAME_USES.get(texts(row.get("use")), 2), index)

    for _, row in sorted(enumerate(objects(node)), key=rank):
        given = row.get("given")
        parts = [part for part in given if isinstance(part, str)] if isinstance(given, list) else []
        family = texts(row.get("family"))
        if text := one_line(texts(row.get("text")) or " ".join([*parts, family])):
            return text
    return ""


def _deceased(resource: Json, env: Env) -> datetime | bool | None:
    """When she died; True without a time of day precision; None if alive as far as the record says."""
    if resource.get("deceasedDateTime"):
        return moment(resource["deceasedDateTime"], env) or True
    return True if resource.get("deceasedBoolean") is True else None


def _identifiers(node: Any, now: datetime, env: Env) -> tuple[Identifier, ...]:
    rows: list[tuple[tuple[int, int], Identifier]] = []
    for index, row in enumerate(objects(node)):
        value = one_line(texts(row.get("value")), 128)
        use = texts(row.get("use"))
        end = moment(obj(row.get("period")).get("end"), env, partial=True)
        if not value or use == "old" or (end is not None and end < now):
            continue
        kinds = codings(row.get("type"))
        is_number = any(
            coding.get("code") == "MR" and coding.get("system") in (None, *codes.MR_SYSTEMS) for coding in kinds
        )
        rank = (_IDENTIFIER_USES.get(use, 2), index)
        rows.append((rank, Identifier(texts(row.get("system")).strip(), value, is_number)))
    return tuple(identifier for _, identifier in sorted(rows, key=lambda row: row[0]))


# --- persons ------------------------------------------------------------------------------------------------


def is_other_person(one: PatientRecord, other: PatientRecord) -> bool:
    """Whether two Patient resources under one id are visibly two people.

    Born on different days, no word of the name in common and no identifier shared: a correction changes one of
    these, a mix-up all three.
    """
    if one.birth_date is None or other.birth_date is None or one.birth_date == other.birth_date:
        return False
    if _words(one.name) & _words(other.name):
        return False
    first = {(identifier.system, identifier.value) for identifier in one.identifiers}
    second = {(identifier.system, identifier.value) for identifier in other.identifiers}
    return not first & second


def is_same_person(one: PatientRecord, other: PatientRecord) -> bool:
    """Whether two Patient resources with one record number agree: same day of birth and a word of the name."""
    births_agree = one.birth_date is None or other.birth_date is None or one.birth_date == other.birth_date
    return births_agree and bool(_words(one.name) & _words(other.name))


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", name.casefold()))


def newest_first(records: Iterable[PatientRecord]) -> list[PatientRecord]:
    return sorted(records, key=lambda record: (record.updated or _MIN, record.order), reverse=True)


class People:
    """All persons of one import; built once, then asked.

    Args:
        records: every Patient resource that could be read.
    Attributes:
        persons: in the order in which their first resource came.
        older: Patient resources that a newer version replaced.
    """

    def __init__(self, records: list[PatientRecord]) -> None:
        self.older: list[PatientRecord] = []
        self._by_key: dict[tuple[str, str], int] = {}
        self._by_id: dict[str, set[int]] = defaultdict(set)
        self._by_url: dict[tuple[str, str], int] = {}
        self._urls: dict[str, set[int]] = defaultdict(set)
        self._by_identifier: dict[tuple[str, str], set[int]] = defaultdict(set)
        self._records = self._versions(records)
        self._parent = list(range(len(self._records)))
        self._index()
        self._join()
        self.persons: list[Person] = []
        self._person_of: list[Person] = []
        self._build()

    def _versions(self, records: list[PatientRecord]) -> list[PatientRecord]:
        """One record per scope and id: the newest; two people under one id are both marked."""
        groups: dict[tuple[str, str, int], list[PatientRecord]] = defaultdict(list)
        for record in records:
            # Resources without an id are no versions of each other.
            groups[record.scope, record.id, 0 if record.id else record.order].append(record)
        kept: list[PatientRecord] = []
        for group in groups.values():
            newest, *older = newest_first(group)
            if any(is_other_person(newest, record) for record in older):
                newest.reason = "one id, two different people"
            self.older += older
            kept.append(newest)
        return sorted(kept, key=lambda record: record.order)

    def _index(self) -> None:
        for index, record in enumerate(self._records):
            if record.id:
                self._by_key[record.scope, record.id] = index
                self._by_id[record.id].add(index)
            if record.full_url:
                self._by_url[record.scope, record.full_url] = index
                self._urls[record.full_url].add(index)
            for identifier in record.identifiers:
                self._by_identifier[identifier.system, identifier.value].add(index)

    def _root(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index

    def _union(self, one: int, other: int) -> None:
        first, second = self._root(one), self._root(other)
        if first != second:
            self._parent[max(first, second)] = min(first, second)

    def _join(self) -> None:
        """Make one person of what is one: same id outside known servers, same record number, declared links."""
        for indexes in self._by_id.values():
            loose = sorted(i for i in indexes if not self._records[i].scope.startswith("http"))
            for index in loose[1:]:
                if is_other_person(self._records[loose[0]], self._records[index]):
                    for i in loose:
                        self._records[i].reason = "one id, two different people"
                self._union(loose[0], index)
        numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index, record in enumerate(self._records):
            for identifier in record.identifiers:
                if identifier.is_record_number:
                    numbers[identifier.system, identifier.value].append(index)
        for indexes_of_number in numbers.values():
            for position, index in enumerate(indexes_of_number):
                for other in indexes_of_number[:position]:
                    if is_same_person(self._records[index], self._records[other]):
                        self._union(index, other)
        for index, record in enumerate(self._records):
            for target in (*record.replaced_by, *record.replaces):
                found = self._find(Subject(reference=target), record.scope)
                if isinstance(found, int):
                    self._union(index, found)

    def _build(self) -> None:
        groups: dict[int, list[int]] = defaultdict(list)
        for index in range(len(self._records)):
            groups[self._root(index)].append(index)
        self._person_of = [Person(records=[])] * len(self._records)
        for members in groups.values():
            replaced: set[int] = set()
            for index in members:
                record = self._records[index]
                if any(isinstance(self._find(Subject(target), record.scope), int) for target in record.replaced_by):
                    replaced.add(index)
                for target in record.replaces:
                    if isinstance(found := self._find(Subject(target), record.scope), int):
                        replaced.add(found)
            ordered = newest_first(self._records[index] for index in members)
            gone = {(self._records[index].scope, self._records[index].id) for index in replaced}
            # A stable sort: the newest that is not replaced leads; where each is replaced by the other, the newest.
            ordered.sort(key=lambda record: (record.scope, record.id) in gone)
            reason = next((record.reason for record in ordered if record.reason), "")
            person = Person(records=ordered, reason=reason)
            self.persons.append(person)
            for index in members:
                self._person_of[index] = person
        self._name_ids()

    def _name_ids(self) -> None:
        """Give each person the record number, else the resource id; an id wanted by two goes to neither."""
        wanted = {id(person): _candidates(person) for person in self.persons}
        for level in (0, 1):
            claims = Counter(
                ids[level] for person in self.persons if len(ids := wanted[id(person)]) > level and not person.reason
            )
            taken = {person.patient_id for person in self.persons if person.patient_id}
            for person in self.persons:
                ids = wanted[id(person)]
                if person.reason or person.patient_id or len(ids) <= level:
                    continue
                if claims[ids[level]] == 1 and ids[level] not in taken:
                    person.patient_id = ids[level]
        for person in self.persons:
            if not person.patient_id and not person.reason:
                person.reason = "one id, two different people" if wanted[id(person)] else "patient without a usable id"

    # --- references -----------------------------------------------------------------------------------------

    def resolve(self, subject: Subject, scope: str) -> Person | str:
        """The person that a resource of ``scope`` names, or the reason why there is none."""
        found = self._find(subject, scope)
        if isinstance(found, str):
            return found
        person = self._person_of[found]
        if subject.reference and subject.system and subject.value:
            # The reference and the identifier beside it must mean the same person, where both are known.
            others = {self._root(i) for i in self._by_identifier.get((subject.system, subject.value), ())}
            if others and self._root(found) not in others:
                return "patient's reference and identifier disagree"
        return person

    def _find(self, subject: Subject, scope: str) -> int | str:
        reference = subject.reference
        if not reference:
            if subject.system and subject.value:
                return self._only(self._by_identifier.get((subject.system, subject.value), set()))
            return "no patient named"
        if reference.startswith("#"):
            return "patient not in the import"
        if (found := self._by_url.get((scope, reference))) is not None:
            return found
        if (urls := self._urls.get(reference)) is not None:
            return self._only(urls)
        if search := _PATIENT_SEARCH.fullmatch(reference):
            return self._only(self._by_identifier.get((search[1], search[2]), set()))
        if reference.startswith("urn:"):
            identity = reference.rpartition(":")[2]
            return self._only(self._loose(identity))
        named = _PATIENT_REFERENCE.fullmatch(reference)
        if named is None:
            return "subject is not a patient"
        base, identity = named[1], named[2]
        own = base or scope
        if (found := self._by_key.get((own, identity))) is not None:
            return found
        if own.startswith("http"):
            # Another server's Patient/1 is another patient; a record without an address may be this one.
            return self._only(self._loose(identity))
        return self._only(self._by_id.get(identity, set()))

    def _loose(self, identity: str) -> set[int]:
        return {i for i in self._by_id.get(identity, ()) if not self._records[i].scope.startswith("http")}

    def _only(self, indexes: set[int]) -> int | str:
        roots = {self._root(index) for index in indexes}
        if not roots:
            return "patient not in the import"
        return roots.pop() if len(roots) == 1 else "patient reference is ambiguous"


def _candidates(person: Person) -> list[str]:
    """The ids that may name a person on the wire, best first: the record number, the resource id."""
    leading = person.records[0]
    numbers = [identifier.value for identifier in leading.identifiers if identifier.is_record_number]
    ids = [value for value in (*numbers[:1], leading.id) if is_wire_id(value)]
    return list(dict.fromkeys(ids))


def is_wire_id(value: str) -> bool:
    try:
        msgspec.convert(value, Id)
    except msgspec.ValidationError:
        return False
    return True
