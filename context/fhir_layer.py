"""From the items of one person to a patient layer: order, limits, allergy status, pregnancy; and two layers to one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeVar

import msgspec

from context import fhir_codes as codes
from context.fhir_convert import Item
from context.fhir_people import Person
from context.layers import (
    Allergy,
    ChartRef,
    Condition,
    Event,
    Medication,
    Observation,
    PatientLayer,
    Report,
    versioned,
)

#: A layer is read for every question, so the ordinary past has an end. Beyond these numbers are kept, whatever
#: their count: the newest two values of every code (the last and the one before, for the trend), everything
#: flagged abnormal, the newest report of every title, all that is active, every allergy.
MAX_OBSERVATIONS = 500
MAX_REPORTS = 100
MAX_EVENTS = 400
MAX_INACTIVE = 200
#: Values of one code that are kept at any age.
_ALWAYS_PER_CODE = 2

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
T = TypeVar("T", Allergy, Condition, Event, Medication, Observation, Report)

AllergyStatus = Literal["known", "none_known", "not_recorded"]


class PatientConflict(Exception):
    """Two layers under one patient id that are visibly two people; holds no text of them."""

    def __init__(self, patient_id: str) -> None:
        super().__init__("one patient id, two different people")
        self.patient_id = patient_id


class Findings(msgspec.Struct, kw_only=True):
    """All that an import found about one person, before order and limits."""

    items: list[Item]
    pregnancies: list[tuple[bool, datetime | None]]
    no_known: set[str]
    unreadable_allergies: int = 0


def when(item: Item) -> datetime | None:
    """The time by which an item is ordered."""
    if isinstance(item, (Observation, Report)):
        return item.as_of
    if isinstance(item, Condition):
        return item.onset
    if isinstance(item, Medication):
        return item.since
    return item.recorded if isinstance(item, Allergy) else item.start


def ordered(items: Iterable[T]) -> tuple[T, ...]:
    """Newest first, unknown times last, ties by ``ref``, as ``context.layers`` asks for."""

    def key(item: T) -> tuple[bool, float, str]:
        moment = when(item)
        return (moment is None, 0.0 if moment is None else -(moment - _EPOCH).total_seconds(), item.ref)

    return tuple(sorted(items, key=key))


def patient_layer(
    person: Person, found: Findings, *, departments: Sequence[str], now: datetime, left_out: Counter[str]
) -> tuple[PatientLayer, set[ChartRef]]:
    """Build the layer; second, the refs of items that the limits left out.

    left_out: remarks are counted here, such as how many older values the limits left out.
    """
    leading = person.records[0]
    dropped: set[ChartRef] = set()

    def kind(of: type[T], limit: int) -> tuple[T, ...]:
        items = ordered(item for item in found.items if isinstance(item, of))
        kept = _limited(items, limit)
        gone = {item.ref for item in items} - {item.ref for item in kept}
        dropped.update(gone)
        return kept

    allergies = kind(Allergy, 0)
    status = _allergy_status(allergies, found)
    layer = PatientLayer(
        patient_id=person.patient_id,
        name=leading.name,
        as_of=now,
        departments=tuple(sorted(set(departments))),
        identifiers=_identifiers(person),
        birth_date=next((record.birth_date for record in person.records if record.birth_date), None),
        sex=leading.sex,
        deceased=next((record.deceased for record in person.records if record.deceased), None),
        pregnant=_pregnant(found.pregnancies, now),
        summary=_summary(person, found, allergies),
        conditions=kind(Condition, MAX_INACTIVE),
        medications=kind(Medication, MAX_INACTIVE),
        allergies=allergies,
        allergy_status=status,
        observations=kind(Observation, MAX_OBSERVATIONS),
        reports=kind(Report, MAX_REPORTS),
        events=kind(Event, MAX_EVENTS),
    )
    if dropped:
        left_out["older entries beyond the limit"] += len(dropped)
    return versioned(layer), dropped


def within_limits(layer: PatientLayer) -> PatientLayer:
    """The layer with no more of each kind than an import would keep; its version is the caller's to set."""
    return msgspec.structs.replace(
        layer,
        conditions=_limited(layer.conditions, MAX_INACTIVE),
        medications=_limited(layer.medications, MAX_INACTIVE),
        observations=_limited(layer.observations, MAX_OBSERVATIONS),
        reports=_limited(layer.reports, MAX_REPORTS),
        events=_limited(layer.events, MAX_EVENTS),
    )


def _limited(items: tuple[T, ...], limit: int) -> tuple[T, ...]:
    """The newest ``limit`` of ordered items, and what no limit drops."""
    seen: Counter[str] = Counter()
    kept: list[T] = []
    room = limit
    for item in items:
        name = (item.code or (item.title if isinstance(item, Report) else item.name)).casefold()
        seen[name] += 1
        if _is_always_kept(item, seen[name]):
            kept.append(item)
        elif isinstance(item, Medication) and item.ref.startswith("MedicationAdministration/"):
            # Of the doses given, the last of each medicine is a fact; the rest is a chart of its own.
            continue
        elif room > 0:
            kept.append(item)
        room -= 1
    return tuple(kept)


def _is_always_kept(item: Item, nth_of_code: int) -> bool:
    if isinstance(item, Allergy):
        return True
    if isinstance(item, Observation):
        return bool(item.flag) or nth_of_code <= _ALWAYS_PER_CODE
    if isinstance(item, Report):
        return nth_of_code == 1
    if isinstance(item, Condition):
        return item.active
    if isinstance(item, Medication):
        return item.active or (nth_of_code == 1 and item.ref.startswith("MedicationAdministration/"))
    return item.status in ("in-progress", "active", "arrived", "triaged", "onleave")


def _identifiers(person: Person) -> tuple[str, ...]:
    """Every number that may name this person but her id on the wire; each once, in the source's order."""
    values = [identifier.value for record in person.records for identifier in record.identifiers]
    values += [record.id for record in person.records if record.id]
    return tuple(value for value in dict.fromkeys(values) if value != person.patient_id)


def _allergy_status(allergies: tuple[Allergy, ...], found: Findings) -> AllergyStatus:
    if any(allergy.active for allergy in allergies):
        return "known"
    # An allergy entry that could not be read may be the one that matters: "none known" would be a promise.
    if found.no_known & codes.NO_KNOWN_SETS_STATUS and not found.unreadable_allergies:
        return "none_known"
    return "known" if allergies else "not_recorded"


def _pregnant(signals: list[tuple[bool, datetime | None]], now: datetime) -> bool | None:
    """Pregnant by the newest entry that is young enough to speak of today; None where none is.

    An active problem without a date counts as pregnant: caution costs less than a missed pregnancy.
    """
    oldest = now - timedelta(days=codes.PREGNANCY_DAYS)
    dated = [(moment, is_pregnant) for is_pregnant, moment in signals if moment is not None and moment >= oldest]
    if any(is_pregnant and moment is None for is_pregnant, moment in signals):
        return True
    return max(dated)[1] if dated else None


def _summary(person: Person, found: Findings, allergies: tuple[Allergy, ...]) -> str:
    """What the fields of a layer have no place for: limits of what is known, in whole sentences."""
    sentences: list[str] = []
    leading = person.records[0]
    if leading.birth_text and leading.birth_date is None and re.fullmatch(r"\d{4}(-\d{2})?", leading.birth_text):
        sentences.append(f"Birth date known only as {leading.birth_text}.")
    if found.no_known:
        covered = ", ".join(f"no known {what}" for what in sorted(found.no_known))
        sentences.append(f"Recorded: {covered}.")
        if any(allergy.active for allergy in allergies) and found.no_known & codes.NO_KNOWN_SETS_STATUS:
            sentences.append("The record contradicts itself: allergies stand beside this entry.")
    if found.unreadable_allergies:
        count = found.unreadable_allergies
        sentences.append(f"{count} allergy {'entry' if count == 1 else 'entries'} of the source could not be read.")
    return " ".join(sentences)


def merge_patient(old: PatientLayer, new: PatientLayer, *, retracted: Collection[ChartRef] = ()) -> PatientLayer:
    """One layer of two of the same patient: departments and numbers together, items by ``ref``, ``new`` wins.

    Merging twice is merging once. What ``new``'s source has retracted (``PatientImport.retracted``) goes.

    Raises:
        ValueError: the two have different patient ids.
        PatientConflict: one id, but visibly two people (other birth date, no common name, no common number).
    """
    if old.patient_id != new.patient_id:
        raise ValueError("layers of different patients are never merged")
    if _is_other(old, new):
        raise PatientConflict(new.patient_id)
    gone = frozenset(retracted)

    def union(first: tuple[T, ...], second: tuple[T, ...]) -> tuple[T, ...]:
        items = {item.ref: item for item in first if not _is_retracted(item.ref, gone)}
        # A panel that comes again may have other components: those of the old version must not stay.
        again = {item.ref.partition("#")[0] for item in second}
        items = {ref: item for ref, item in items.items() if ref.partition("#")[0] not in again}
        items.update((item.ref, item) for item in second)
        return ordered(items.values())

    allergies = union(old.allergies, new.allergies)
    status = new.allergy_status if new.allergy_status != "not_recorded" else old.allergy_status
    if any(allergy.active for allergy in allergies):
        status = "known"
    elif status == "known" and not allergies:
        status = "not_recorded"
    numbers = dict.fromkeys((*new.identifiers, *old.identifiers))
    return versioned(
        msgspec.structs.replace(
            new,
            departments=tuple(sorted({*old.departments, *new.departments})),
            identifiers=tuple(number for number in numbers if number != new.patient_id),
            birth_date=new.birth_date or old.birth_date,
            sex=new.sex if new.sex != "unknown" else old.sex,
            deceased=new.deceased if new.deceased is not None else old.deceased,
            pregnant=new.pregnant if new.pregnant is not None else old.pregnant,
            summary=new.summary or old.summary,
            conditions=union(old.conditions, new.conditions),
            medications=union(old.medications, new.medications),
            allergies=allergies,
            allergy_status=status,
            observations=union(old.observations, new.observations),
            reports=union(old.reports, new.reports),
            events=union(old.events, new.events),
        )
    )


def _is_retracted(ref: ChartRef, gone: frozenset[ChartRef]) -> bool:
    return ref in gone or ref.partition("#")[0] in gone


def _is_other(one: PatientLayer, other: PatientLayer) -> bool:
    if one.birth_date is None or other.birth_date is None or one.birth_date == other.birth_date:
        return False
    words = [set(re.findall(r"\w+", layer.name.casefold())) for layer in (one, other)]
    return not words[0] & words[1] and not set(one.identifiers) & set(other.identifiers)
