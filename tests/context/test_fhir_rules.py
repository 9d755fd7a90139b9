"""Each rule of the import, on the smallest record that shows it."""

from __future__ import annotations

import base64
import json
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context.fhir import import_files, patient_line
from context.fhir_layer import MAX_OBSERVATIONS
from context.layers import Observation, versioned
from tests.context.fhir_builders import (
    NOW,
    SNOMED,
    allergy,
    bundle,
    coded,
    condition,
    dumps,
    ndjson,
    observation,
    one,
    only,
    patient,
    prescription,
    report,
    run,
    untimed,
)

UCUM = "http://unitsofmeasure.org"


def quantity(value: Any, unit: str | None = "mmol/L", **fields: Any) -> dict[str, Any]:
    found = {"value": value} | ({"unit": unit, "code": unit, "system": UCUM} if unit else {})
    return found | fields


def value_of(**fields: Any) -> Observation:
    (found,) = one(observation(**fields)).layer.observations
    return found


# --- the patient --------------------------------------------------------------------------------------------


def test_patient_name_keeps_accents_and_prefers_the_official_one() -> None:
    """The official name stands before the usual one, and a name whose time is over comes last."""
    names = [
        {"use": "maiden", "family": "Antiga"},
        {"use": "usual", "given": ["Zé"]},
        {"use": "official", "family": "Conceição Araújo", "given": ["José", "Antão"]},
    ]
    assert only(run(dumps(patient(name=names)))).layer.name == "José Antão Conceição Araújo"
    over = [{"use": "official", "text": "Old Name", "period": {"end": "2001"}}, {"use": "usual", "text": "New Name"}]
    assert only(run(dumps(patient(name=over)))).layer.name == "New Name"


@pytest.mark.parametrize(("text", "born"), [("1958-03-02", date(1958, 3, 2)), ("1958", None), ("1958-03", None)])
def test_partial_birth_date_gives_no_age(text: str, born: date | None) -> None:
    """A birth date that is not known to the day is none, and the summary says what is known."""
    layer = only(run(dumps(patient(birthDate=text)))).layer
    assert layer.birth_date == born
    assert (text in layer.summary) == (born is None)


@pytest.mark.parametrize(
    ("fields", "deceased"),
    [
        ({}, None),
        ({"deceasedBoolean": False}, None),
        ({"deceasedBoolean": True}, True),
        ({"deceasedDateTime": "2025-12-24T23:10:00Z"}, datetime(2025, 12, 24, 23, 10, tzinfo=UTC)),
        ({"deceasedDateTime": "2025-12-24"}, datetime(2025, 12, 24, tzinfo=UTC)),
        ({"deceasedDateTime": "2025"}, True),
    ],
)
def test_deceased_patient_is_marked(fields: dict[str, Any], deceased: datetime | bool | None) -> None:
    """A death is never lost, also where its day is not known."""
    assert only(run(dumps(patient(**fields)))).layer.deceased == deceased


def _number(value: str, kind: str = "MR", **fields: Any) -> dict[str, Any]:
    system = "http://terminology.hl7.org/CodeSystem/v2-0203"
    return {"type": {"coding": [{"system": system, "code": kind}]}, "system": "urn:h", "value": value} | fields


def test_record_number_is_the_id_on_the_wire() -> None:
    """The MR identifier names the patient; every other number, the resource id among them, is kept beside."""
    numbers = [_number("123456789", "NH"), _number("1000", use="old"), _number("7823")]
    imported = only(run(bundle(patient(identifier=numbers), observation())))
    assert imported.layer.patient_id == "7823"
    assert imported.layer.identifiers == ("123456789", "p1")
    assert len(imported.layer.observations) == 1
    assert patient_line(imported) == {"patient_id": "7823", "name": "João Silva", "resources": 2, "skipped": 0}


@pytest.mark.parametrize("value", ["78 23", "../7823", "x" * 129, "é7"])
def test_record_number_that_cannot_stand_on_the_wire_gives_way_to_the_id(value: str) -> None:
    """A number with blanks, slashes or letters beyond ASCII would end in keys and paths: the id stands."""
    assert only(run(dumps(patient(identifier=[_number(value)])))).layer.patient_id == "p1"


def test_patient_without_any_usable_id_is_skipped() -> None:
    """A patient whom nothing can name is skipped with the reason, and what is hers too."""
    nameless = patient()
    del nameless["id"]
    result = run(dumps(nameless))
    assert result.patients == ()
    assert report(result).skipped == {"patient without a usable id": 1}


def test_patients_without_ids_are_no_versions_of_each_other() -> None:
    """Two patients whom only their record numbers name are two patients."""
    people = [patient(identifier=[_number(value)], name=[{"text": value}]) for value in ("7823", "7824")]
    for someone in people:
        del someone["id"]
    result = run(bundle(*people))
    assert [imported.layer.patient_id for imported in result] == ["7823", "7824"]


def test_transaction_patient_without_id_is_named_by_its_urn() -> None:
    """In a transaction a resource may have only a urn, and references use it."""
    urn = "urn:uuid:0b1f0f0a-3f3b-4d0b-9d0e-6f7f3c2d1a00"
    someone, result = patient(), observation(subject={"reference": urn})
    del someone["id"], result["id"]
    entries = [{"fullUrl": urn, "resource": someone}, {"fullUrl": "urn:uuid:9a", "resource": result}]
    imported = only(run(dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries})))
    assert imported.layer.patient_id == urn.removeprefix("urn:uuid:")
    assert imported.layer.observations[0].ref == "Observation/9a"


def test_same_patient_twice_the_later_update_wins() -> None:
    """Of two versions of a patient the later leads, whatever their order in the files."""
    old = patient(meta={"lastUpdated": "2020-01-01T00:00:00Z"}, name=[{"text": "João Sliva"}])
    new = patient(meta={"lastUpdated": "2024-01-01T00:00:00Z"})
    for files in ((dumps(old), dumps(new)), (dumps(new), dumps(old)), (bundle(new, old),)):
        result = run(*files)
        assert only(result).layer.name == "João Silva"
        assert sum(file.skipped.get("older version", 0) for file in result.files) == 1


def test_two_people_under_one_id_are_both_refused() -> None:
    """One id with another name, birth date and no common number is a mix-up: neither is taken, nor what is theirs."""
    other = patient(name=[{"text": "Maria Costa"}], birthDate="1990-12-12")
    result = run(bundle(patient(), observation()), bundle(other, observation("o2")))
    assert result.patients == ()
    assert sum(file.skipped["patient skipped: one id, two different people"] for file in result.files) == 2


def test_two_records_with_one_record_number_are_one_person() -> None:
    """Two Patient resources of one number, name and birth date are one patient with the resources of both."""
    first, second = (patient(i, identifier=[_number("7823")]) for i in ("p1", "p2"))
    imported = only(run(bundle(first, second, observation("o1"), observation("o2", "p2"))))
    assert imported.layer.patient_id == "7823"
    assert len(imported.layer.observations) == 2


def test_record_number_of_two_people_names_neither() -> None:
    """Where two people bear one record number, each goes by the resource id and keeps only what is hers."""
    first = patient("p1", identifier=[_number("7823")])
    second = patient("p2", identifier=[_number("7823")], name=[{"text": "Rui Melo"}], birthDate="1990-01-01")
    result = run(bundle(first, second, observation("o1"), observation("o2", "p2")))
    found = {imported.layer.patient_id: imported.layer.observations[0].ref for imported in result}
    assert found == {"p1": "Observation/o1", "p2": "Observation/o2"}


def test_replaced_patient_is_merged_into_the_other() -> None:
    """What names a patient that was replaced belongs to the one in its place."""
    old = patient("old", link=[{"other": {"reference": "Patient/p1"}, "type": "replaced-by"}])
    imported = only(run(bundle(old, patient(), allergy(of="old"), observation())))
    assert imported.layer.patient_id == "p1"
    assert imported.layer.allergies[0].name == "Penicillin"
    assert imported.resources == 3


def test_patients_that_replace_each_other_do_not_hang() -> None:
    """A circle of links is one patient, not an endless walk."""
    links = [
        patient(a, link=[{"other": {"reference": f"Patient/{b}"}, "type": "replaced-by"}]) for a, b in ("xy", "yx")
    ]
    assert only(run(bundle(*links))).resources == 1


# --- observations -------------------------------------------------------------------------------------------


def test_quantity_keeps_value_unit_range_and_time() -> None:
    """A result arrives with its number, unit, range, flag and time in UTC."""
    found = value_of(
        valueQuantity=quantity(6.9),
        referenceRange=[{"low": quantity(3.5), "high": quantity(5.1)}],
        interpretation=[coded("HH", "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation")],
        effectiveDateTime="2026-01-15T06:10:00+01:00",
        category=[coded("laboratory", "http://terminology.hl7.org/CodeSystem/observation-category")],
    )
    assert (found.value, found.unit, found.low, found.high, found.flag) == (6.9, "mmol/L", 3.5, 5.1, "HH")
    assert (found.code, found.name, found.category) == ("2823-3", "Potassium", "laboratory")
    assert found.as_of == datetime(2026, 1, 15, 5, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("code", "flag"),
    [
        ("H", "H"),
        ("HH", "HH"),
        ("L", "L"),
        ("LL", "LL"),
        ("A", "A"),
        ("AA", "A"),
        ("N", ""),
        ("HU", "H"),
        ("LU", "L"),
        (">", "H"),
    ],
)
def test_interpretation_codes_of_both_systems_become_flags(code: str, flag: str) -> None:
    """Codes of v3 and of v2 table 0078 give one flag."""
    for system in ("http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation", "http://hl7.org/fhir/v2/0078"):
        assert value_of(interpretation=[coded(code, system)]).flag == flag


def test_gravest_of_several_interpretations_stands() -> None:
    """Of "high" and "critically high" the critical one is the flag."""
    assert value_of(interpretation=[coded("H"), coded("HH"), coded("N")]).flag == "HH"
    assert value_of(interpretation=[{"text": "Critically high"}]).flag == "HH"


@pytest.mark.parametrize(
    ("value", "comparator", "flag"),
    [(6.9, "", "H"), (5.1, "", ""), (3.0, "", "L"), (5.1, ">", "H"), (4.0, ">", ""), (3.5, "<", "L"), (9.0, "<", "")],
)
def test_flag_comes_from_the_range_where_the_source_gives_none(value: float, comparator: str, flag: str) -> None:
    """Without an interpretation the report's own range says high or low, and a comparator only what it proves."""
    limits = [{"low": quantity(3.5), "high": quantity(5.1)}]
    extra = {"comparator": comparator} if comparator else {}
    found = value_of(valueQuantity=quantity(value, **extra), referenceRange=limits)
    assert (found.flag, found.comparator) == (flag, comparator)


def test_range_in_another_unit_or_of_another_kind_gives_no_bounds() -> None:
    """Bounds in another unit, several ranges or a critical range are text and never compared."""
    other = [{"low": quantity(3.5, "mg/dL"), "high": quantity(5.1, "mg/dL")}]
    critical = [{"low": quantity(2.5), "high": quantity(6.5), "type": {"text": "critical"}}]
    several = [{"low": quantity(1)}, {"low": quantity(2), "appliesTo": [{"text": "female"}]}]
    for ranges in (other, critical):
        found = value_of(valueQuantity=quantity(9), referenceRange=ranges)
        assert (found.low, found.high, found.flag) == (None, None, "")
        assert found.range_text
    assert value_of(referenceRange=several).range_text == "from 1 mmol/L; from 2 mmol/L (female)"


def test_number_without_unit_keeps_none_and_is_counted() -> None:
    """A number without a unit is kept as such; nothing is guessed."""
    result = run(bundle(patient(), observation(valueQuantity=quantity(4.1, None))))
    found = only(result).layer.observations[0]
    assert (found.value, found.unit) == (4.1, None)
    assert report(result).noted == {"number without a unit": 1}


def test_unit_that_contradicts_its_code_becomes_text() -> None:
    """A value with two different units is shown with both and never scored."""
    found = value_of(valueQuantity=quantity(5, "mg/dL", code="g/dL"))
    assert found.value is None
    assert found.text == "5 (unit unclear: mg/dL or g/dL)"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"valueString": "clear"}, "clear"),
        ({"valueCodeableConcept": coded("260385009", SNOMED, "Negative")}, "Negative"),
        ({"valueBoolean": True}, "yes"),
        ({"valueBoolean": False}, "no"),
        ({"valueRange": {"low": quantity(5, "mg"), "high": quantity(10, "mg")}}, "5 to 10 mg"),
        ({"valueRatio": {"numerator": {"value": 1}, "denominator": {"value": 128}}}, "1:128"),
        ({"valueDateTime": "2025-12-30"}, "2025-12-30"),
        ({"valueTime": "07:30:00"}, "07:30:00"),
    ],
)
def test_value_that_is_no_number_becomes_text(fields: dict[str, Any], text: str) -> None:
    """Coded, logical, range, ratio and time values are text; exactly one of value and text is set."""
    found = value_of(**fields)
    assert (found.value, found.text) == (None, text)


def test_integer_value_is_a_number_without_unit() -> None:
    """A plain integer is a number and has no unit."""
    found = value_of(valueInteger=15)
    assert (found.value, found.unit) == (15.0, None)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": "entered-in-error"}, "entered in error"),
        ({"status": "cancelled"}, "status cancelled"),
        ({"status": "unknown"}, "status unknown"),
        ({"status": "odd"}, "status not understood"),
        (
            {"valueSampledData": {"origin": {"value": 0}, "period": 10, "dimensions": 1, "data": "1 2"}},
            "a waveform is not read",
        ),
        ({"dataAbsentReason": coded("unknown")}, "no value (data absent)"),
        ({"dataAbsentReason": coded("error"), "valueString": "x"}, "a value beside a reason for its absence"),
        ({"hasMember": [{"reference": "Observation/o2"}]}, "panel: its members are taken"),
        ({"focus": [{"reference": "Patient/fetus"}]}, "about somebody or something else (focus)"),
        ({"subject": {"reference": "Group/g"}}, "subject is not a patient"),
        ({"subject": {"reference": "Patient/nobody"}}, "patient not in the import"),
        ({"subject": {"reference": "#pat"}}, "patient not in the import"),
        ({"subject": {}}, "no patient named"),
        ({"valueQuantity": quantity("4.1")}, "value is not a number"),
        ({"valueQuantity": quantity(1e400)}, "a number is not finite or too large"),
        ({"valueQuantity": quantity(10**400)}, "a number is not finite or too large"),
        ({"valueQuantity": quantity(float("nan"))}, "a number is not finite or too large"),
        ({"valueString": "a", "valueInteger": 1}, "invalid: more than one of a choice"),
        ({"modifierExtension": [{"url": "http://x", "valueBoolean": True}]}, "modifier extension not understood"),
        ({"implicitRules": "http://x"}, "implicit rules not understood"),
    ],
)
def test_observation_that_is_not_taken_has_its_reason(fields: dict[str, Any], reason: str) -> None:
    """What is retracted, unreadable or not the patient's own never becomes a value, and says why."""
    result = run(bundle(patient(), observation(**fields)))
    assert only(result).layer.observations == ()
    assert report(result).skipped == {reason: 1}


def test_deeply_nested_resource_is_refused_alone() -> None:
    """Nesting beyond any real resource costs that resource only."""
    nested: Any = "x"
    for _ in range(200):
        nested = [nested]
    result = run(bundle(patient(), observation("deep", note=nested), observation()))
    assert report(result).skipped == {"nested too deep": 1}
    assert only(result).resources == 2


def test_member_that_stands_twice_makes_a_resource_unreadable() -> None:
    """Two values under one key: nobody knows which is meant, so neither is shown."""
    twice = dumps(observation()).replace(b'"value": 4.1', b'"value": 4.1, "value": 41')
    result = run(b"\n".join((dumps(patient()), twice)))
    assert only(result).layer.observations == ()
    assert report(result).skipped == {"a member stands twice": 1}


def test_panel_components_arrive_one_by_one() -> None:
    """Each component is a value of its own with the panel's time, and one without a value is counted."""
    parts = [
        {"code": coded("8480-6", text="Systolic"), "valueQuantity": quantity(120, "mm[Hg]")},
        {"code": coded("8462-4", text="Diastolic"), "valueQuantity": quantity(80, "mm[Hg]")},
        {"code": coded("8478-0", text="Mean"), "dataAbsentReason": coded("unknown")},
    ]
    result = run(bundle(patient(), observation("bp", code=coded("85354-9"), component=parts)))
    found = only(result).layer.observations
    assert [(row.ref, row.value, row.unit) for row in found] == [
        ("Observation/bp#8462-4", 80.0, "mmHg"),
        ("Observation/bp#8480-6", 120.0, "mmHg"),
    ]
    assert report(result).noted == {"component: no value (data absent)": 1}


def test_components_of_one_code_keep_different_refs() -> None:
    """Two components of one code in one panel are two values."""
    part = {"code": coded("8480-6"), "valueQuantity": quantity(120, "mm[Hg]")}
    found = one(observation(component=[part, part])).layer.observations
    assert sorted(row.ref for row in found) == ["Observation/o1#8480-6", "Observation/o1#8480-6.2"]


def test_corrected_result_supersedes_the_first() -> None:
    """Of two versions of a result the newest is the value: by update time, else by status."""
    old, new = observation(valueQuantity=quantity(9)), observation(valueQuantity=quantity(4), status="corrected")
    for files in ((old, new), (new, old)):
        assert [row.value for row in one(*files).layer.observations] == [4.0]
    dated = [row | {"meta": {"lastUpdated": f"202{n}-01-01T00:00:00Z"}} for n, row in enumerate((new, old))]
    assert [row.value for row in one(*dated).layer.observations] == [9.0]


def test_retraction_of_a_result_leaves_nothing_and_is_told() -> None:
    """A version that is entered in error takes the value away, whatever the order, and the ref is reported."""
    wrong = {
        "resourceType": "Observation",
        "id": "o1",
        "status": "entered-in-error",
        "subject": {"reference": "Patient/p1"},
    }
    for files in ((observation(), wrong), (wrong, observation())):
        imported = one(*files)
        assert imported.layer.observations == ()
        assert imported.retracted == ("Observation/o1",)


def test_deleted_entry_takes_the_resource_away() -> None:
    """A history or transaction that deletes a resource retracts it."""
    entries = [{"resource": patient()}, {"resource": observation()}]
    entries.append({"request": {"method": "DELETE", "url": "Observation/o1"}})
    imported = only(run(dumps({"resourceType": "Bundle", "type": "history", "entry": entries})))
    assert imported.layer.observations == ()
    assert imported.retracted == ("Observation/o1",)


def test_result_moved_to_another_patient_stays_with_nobody_else() -> None:
    """A result that was filed under the wrong patient and moved is only with the right one."""
    wrong = observation(meta={"lastUpdated": "2026-01-15T06:20:00Z"})
    right = observation(of="p2", meta={"lastUpdated": "2026-01-15T06:50:00Z"})
    other = patient("p2", name=[{"text": "Ana Reis"}], birthDate="1970-01-01")
    result = run(ndjson(patient(), other), ndjson(right, wrong))
    found = {imported.layer.patient_id: len(imported.layer.observations) for imported in result}
    assert found == {"p1": 0, "p2": 1}


def test_one_id_of_two_patients_without_versions_is_nobodys() -> None:
    """One id that names two patients, and nothing says which is newer: it is taken for neither."""
    other = patient("p2", name=[{"text": "Ana Reis"}], birthDate="1970-01-01")
    result = run(ndjson(patient(), other, observation(), observation(of="p2")))
    assert all(imported.layer.observations == () for imported in result)
    assert report(result).skipped == {"one id, two patients": 2}


def test_duplicate_by_identifier_is_taken_once() -> None:
    """Two resources of one business identifier, code and time are one; other codes under it are not."""
    number = [{"system": "urn:lab", "value": "acc-1"}]
    first, second = observation("o1", identifier=number), observation("o2", identifier=number, status="corrected")
    sodium = observation("o3", identifier=number, code=coded("2951-2", text="Sodium"))
    later = observation("o4", identifier=number, effectiveDateTime="2026-01-15T07:00:00Z")
    refs = {row.ref for row in one(first, second, sodium, later).layer.observations}
    assert refs == {"Observation/o2", "Observation/o3", "Observation/o4"}


def test_result_that_replaces_another_takes_its_place() -> None:
    """The standard "replaces" extension retires the older resource."""
    url = "http://hl7.org/fhir/StructureDefinition/observation-replaces"
    new = observation("o2", extension=[{"url": url, "valueReference": {"reference": "Observation/o1"}}])
    assert [row.ref for row in one(observation(), new).layer.observations] == ["Observation/o2"]


def test_invalid_field_beside_the_value_costs_only_itself() -> None:
    """An impossible time or range is dropped and counted; the value stays, with an unknown time."""
    odd = observation(effectiveDateTime="2026-13-45", interpretation="high", photo=[1])
    result = run(bundle(patient(), odd))
    found = only(result).layer.observations[0]
    assert (found.value, found.as_of, found.flag) == (4.1, None, "")
    assert set(report(result).noted) == {
        "invalid field dropped: effectiveDateTime",
        "invalid field dropped: interpretation",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-15T06:10Z", datetime(2026, 1, 15, 6, 10, tzinfo=UTC)),
        ("2026-01-15T06:10:00+0100", datetime(2026, 1, 15, 5, 10, tzinfo=UTC)),
        ("2026-01-15", datetime(2026, 1, 15, tzinfo=UTC)),
        ("2026-01", None),
        ("2026", None),
        ("2026-01-15T06:10:00", None),
    ],
)
def test_time_is_read_only_as_exactly_as_it_is_given(text: str, expected: datetime | None) -> None:
    """Seconds may be missing; a measurement is never given a day or a zone that the source does not name."""
    assert value_of(effectiveDateTime=text).as_of == expected


def test_observations_are_ordered_newest_first_unknown_last() -> None:
    """Newest first, unknown times last, ties by ref, as the layers promise."""
    times = {"a": "2020-01-01", "b": "2024-01-01", "c": None, "d": "2024-01-01"}
    rows = [observation(i, effectiveDateTime=when) for i, when in times.items()]
    assert [row.ref[-1] for row in one(*rows).layer.observations] == ["b", "d", "a", "c"]


def test_limit_keeps_the_last_values_and_everything_abnormal() -> None:
    """However many values there are, the last two of each code and all abnormal ones stay, with their count."""
    many = [observation(f"n{n}", effectiveDateTime=f"2025-{n // 28 % 12 + 1:02}-{n % 28 + 1:02}") for n in range(900)]
    old = [
        observation("rare1", code=coded("1-1"), effectiveDateTime="1999-01-02"),
        observation("rare2", code=coded("1-1"), effectiveDateTime="1998-01-02"),
        observation("rare3", code=coded("1-1"), effectiveDateTime="1997-01-02"),
        observation("bad", effectiveDateTime="1990-01-01", interpretation=[coded("HH")]),
    ]
    imported = one(*many, *old)
    refs = {row.ref for row in imported.layer.observations}
    assert {"Observation/rare1", "Observation/rare2", "Observation/bad"} <= refs
    assert "Observation/rare3" not in refs
    assert len(refs) == MAX_OBSERVATIONS + 3
    assert imported.resources + imported.skipped == 905
    assert imported.reasons == {"older entry beyond the limit": 904 - len(refs)}


# --- text ---------------------------------------------------------------------------------------------------


def test_hidden_signs_never_reach_a_layer() -> None:
    """Controls and direction signs are removed, a forced direction leaves a visible mark, and all is counted."""
    dose = prescription(dosageInstruction=[{"text": "\u202e gm 01\u202c twice\u200b daily\x00"}])
    result = run(bundle(patient(name=[{"text": "Jo\u2066ão\x07 Silva"}]), dose))
    layer = only(result).layer
    assert layer.name == "João Silva"
    assert layer.medications[0].dose == "\ufffd gm 01 twice daily"
    assert report(result).noted == {"hidden characters removed": 2, "text direction override made visible": 1}


def test_lone_surrogate_is_replaced() -> None:
    """Half a character cannot be stored; in a text it becomes the sign for an unknown one, in an id it is no id."""
    half = chr(0xD800)
    rows = [patient(), observation(f"o{half}", valueString=f"a{half}")]
    imported = only(run(json.dumps({"resourceType": "Bundle", "entry": [{"resource": row} for row in rows]}).encode()))
    found = imported.layer.observations[0]
    assert found.text == "a\ufffd"
    found.ref.encode()


@untimed
@given(st.text(max_size=60))
def test_any_text_of_a_record_becomes_one_that_can_be_shown(text: str) -> None:
    """Whatever a record holds, a layer's text has no control, no direction sign, and can be encoded."""
    found = one(observation(code=coded("1-1", text=f"n {text}"), valueString=f"v {text}")).layer.observations
    for shown in (found[0].name, found[0].text or ""):
        shown.encode()
        assert not any(ord(sign) < 32 and sign not in "\n\t" for sign in shown)
        assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


# --- reports ------------------------------------------------------------------------------------------------


def _diagnostic(**fields: Any) -> dict[str, Any]:
    base = {
        "resourceType": "DiagnosticReport",
        "id": "r1",
        "status": "final",
        "code": coded("11524-6", text="EKG study"),
        "subject": {"reference": "Patient/p1"},
        "effectiveDateTime": "2026-01-15T06:10:00Z",
    }
    return base | fields


def _attached(text: str, kind: str = "text/plain", charset: str = "utf-8") -> dict[str, Any]:
    return {"contentType": kind, "data": base64.b64encode(text.encode(charset)).decode()}


@pytest.mark.parametrize(
    "fields",
    [
        {"conclusion": "ST elevation V2-V6."},
        {"presentedForm": [_attached("ST elevation V2-V6.")]},
        {"presentedForm": [_attached("<p>ST elevation <b>V2-V6.</b></p><script>x</script>", "text/html")]},
        {"text": {"status": "generated", "div": "<div xmlns='http://www.w3.org/1999/xhtml'>ST elevation V2-V6.</div>"}},
        {"conclusionCode": [coded("1", SNOMED, "ST elevation V2-V6.")]},
    ],
)
def test_ecg_report_text_is_found_wherever_it_stands(fields: dict[str, Any]) -> None:
    """Conclusion, attached text, attached HTML, narrative and coded conclusion all give the ECG's words."""
    (found,) = one(_diagnostic(**fields)).layer.reports
    assert (found.kind, found.text, found.code) == ("ecg", "ST elevation V2-V6.", "11524-6")


@pytest.mark.parametrize("code", ["11524-6", "8601-7", "34534-8"])
def test_ecg_observation_text_is_a_report(code: str) -> None:
    """A text result with an ECG code is a report, not a value."""
    layer = one(observation(code=coded(code, text="EKG impression"), valueString="Sinus rhythm")).layer
    assert layer.observations == ()
    assert (layer.reports[0].kind, layer.reports[0].text, layer.reports[0].ref) == (
        "ecg",
        "Sinus rhythm",
        "Observation/o1",
    )


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("ECG 12 leads", "ecg"),
        ("Eletrocardiograma", "ecg"),
        ("Echocardiogram", "imaging"),
        ("Chest X-ray", "imaging"),
        ("Discharge letter", "other"),
    ],
)
def test_report_kind_is_known_by_its_title(title: str, kind: str) -> None:
    """An ECG is known by its title in English and Portuguese, and an echocardiogram is none."""
    (found,) = one(_diagnostic(code={"text": title}, conclusion="Text.")).layer.reports
    assert found.kind == kind


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "report without text"),
        ({"result": [{"reference": "Observation/o1"}]}, "report without text: its results are taken"),
        ({"conclusion": "x", "status": "entered-in-error"}, "entered in error"),
        ({"conclusion": "x", "status": "cancelled"}, "status cancelled"),
        ({"presentedForm": [_attached("%PDF", "application/pdf")]}, "report without text"),
        ({"presentedForm": [{"contentType": "text/plain", "data": "not base64!"}]}, "report without text"),
    ],
)
def test_report_without_words_is_not_taken(fields: dict[str, Any], reason: str) -> None:
    """A report is what a person wrote: without words, or retracted, there is none."""
    imported = one(_diagnostic(**fields))
    assert imported.layer.reports == ()
    assert imported.reasons == {reason: 1}


def test_results_inside_a_report_are_values_of_its_patient() -> None:
    """Observations that a report contains are taken with its patient and time, and retracted with it."""
    inner = observation("k")
    del inner["effectiveDateTime"], inner["subject"]
    whole = _diagnostic(contained=[inner], result=[{"reference": "#k"}])
    (found,) = one(whole).layer.observations
    assert (found.ref, found.value, found.as_of) == ("Observation/r1.k", 4.1, datetime(2026, 1, 15, 6, 10, tzinfo=UTC))
    assert one(whole | {"status": "entered-in-error"}).layer.observations == ()
    for other in ("#donor", "Patient/child"):
        assert one(whole | {"contained": [inner | {"subject": {"reference": other}}]}).layer.observations == ()


def test_markup_in_a_narrative_is_only_text() -> None:
    """Character references that become direction signs or tags are text, cleaned once more."""
    div = "<div>a&#x202e;b &lt;script&gt;<style>p{}</style><td>1</td><td>2</td></div>"
    (found,) = one(_diagnostic(text={"status": "additional", "div": div})).layer.reports
    assert found.text == "a\ufffdb <script> 1 2"


# --- problems, medicines, allergies -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "active"),
    [
        ({}, True),
        ({"clinicalStatus": coded("relapse")}, True),
        ({"clinicalStatus": coded("resolved"), "abatementDateTime": "2020"}, False),
        ({"clinicalStatus": coded("remission")}, False),
        ({"clinicalStatus": None}, True),
        ({"clinicalStatus": None, "abatementString": "childhood"}, False),
    ],
)
def test_condition_is_active_by_its_status(fields: dict[str, Any], active: bool) -> None:
    """Active, recurrence and relapse are active; without a status an end decides."""
    (found,) = one(condition(**fields)).layer.conditions
    assert found.active is active


@pytest.mark.parametrize(("status", "reason"), [("refuted", "refuted"), ("entered-in-error", "entered in error")])
def test_condition_that_was_taken_back_is_out(status: str, reason: str) -> None:
    """A refuted or erroneous problem is none."""
    imported = one(condition(verificationStatus=coded(status)))
    assert imported.layer.conditions == ()
    assert imported.reasons == {reason: 1}


@pytest.mark.parametrize(
    ("fields", "active"),
    [
        ({"status": "active"}, True),
        ({"status": "on-hold"}, False),
        ({"status": "completed"}, False),
        ({"status": "stopped"}, False),
        ({"status": "cancelled"}, False),
        ({"status": "unknown"}, True),
    ],
)
def test_medicine_is_active_by_its_status(fields: dict[str, Any], active: bool) -> None:
    """Only what is or may be taken is active; the rest stays as history with its status."""
    (found,) = one(prescription(**fields)).layer.medications
    assert (found.active, found.status) == (active, fields["status"])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": "entered-in-error"}, "entered in error"),
        ({"status": "draft"}, "status draft"),
        ({"intent": "proposal"}, "a proposal, not a prescription"),
        ({"doNotPerform": True}, "an order not to give"),
        ({"medicationReference": {"reference": "Medication/none"}}, "medicine not in the import"),
        ({"medicationReference": {"reference": "#none"}}, "medicine not named"),
    ],
)
def test_medicine_that_is_not_prescribed_is_out(fields: dict[str, Any], reason: str) -> None:
    """A proposal, a prohibition or a nameless order is no medicine of the patient."""
    imported = one(prescription(**fields))
    assert imported.layer.medications == ()
    assert imported.reasons == {reason: 1}


def test_medicine_is_named_by_contained_bundled_or_later_file() -> None:
    """The Medication resource may be inside, beside or in another file, by id or urn."""
    drug = {
        "resourceType": "Medication",
        "id": "med",
        "code": coded("6809", "http://www.nlm.nih.gov/research/umls/rxnorm", "Metformin"),
    }
    inside = one(prescription(contained=[drug], medicationReference={"reference": "#med"}))
    by_id = prescription(medicationReference={"reference": "Medication/med"})
    beside = only(run(ndjson(patient()), ndjson(by_id), ndjson(drug)))
    entries = [{"fullUrl": "urn:uuid:7", "resource": drug}, {"resource": patient()}]
    entries.append({"resource": prescription(medicationReference={"reference": "urn:uuid:7"})})
    by_urn = only(run(dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries})))
    for imported in (inside, beside, by_urn):
        (found,) = imported.layer.medications
        assert (found.name, found.code) == ("Metformin", "6809")


@pytest.mark.parametrize(
    ("dosage", "text"),
    [
        ({"text": "1 tablet at night", "timing": {"repeat": {"frequency": 9}}}, "1 tablet at night"),
        (
            {
                "doseAndRate": [{"doseQuantity": quantity(500, "mg")}],
                "route": {"text": "oral"},
                "timing": {"repeat": {"frequency": 2, "period": 1, "periodUnit": "d"}},
            },
            "500 mg, oral, 2 times every day",
        ),
        (
            {
                "doseAndRate": [{"doseRange": {"low": quantity(2.5, "mg"), "high": quantity(5, "mg")}}],
                "timing": {"repeat": {"frequency": 1, "period": 4, "periodMax": 6, "periodUnit": "h"}},
                "asNeededCodeableConcept": {"text": "pain"},
                "maxDosePerPeriod": {"numerator": quantity(20, "mg"), "denominator": quantity(24, "h")},
            },
            "2.5 to 5 mg, every 4 to 6 hours, as needed for pain, at most 20 mg / 24 h",
        ),
        (
            {"doseAndRate": [{"rateRatio": {"numerator": quantity(0.00001, "g"), "denominator": quantity(1, "h")}}]},
            "at 0.00001 g / 1 h",
        ),
        ({"timing": {"code": {"text": "BID"}}}, "BID"),
    ],
)
def test_dose_is_the_sources_text_or_built_from_its_parts(dosage: dict[str, Any], text: str) -> None:
    """The source's own words stand; without them the parts are put together, never in exponents."""
    (found,) = one(prescription(dosageInstruction=[dosage])).layer.medications
    assert found.dose == text


def test_statement_and_administration_are_medicines() -> None:
    """What the patient reports and what was given count too; of doses given the last of each medicine stays."""
    drug = {"medicationCodeableConcept": coded("5224", "http://www.nlm.nih.gov/research/umls/rxnorm", "Heparin")}
    common = {"subject": {"reference": "Patient/p1"}} | drug
    taken = {"resourceType": "MedicationStatement", "id": "s1", "status": "not-taken"} | common
    given = [
        {"resourceType": "MedicationAdministration", "id": f"g{n}", "status": "completed"}
        | {"effectiveDateTime": f"2026-01-1{n}T08:00:00Z", "dosage": {"dose": quantity(5000, "U")}}
        | common
        for n in range(4)
    ]
    layer = one(taken, *given).layer
    assert [(row.ref, row.active, row.dose) for row in layer.medications] == [
        ("MedicationAdministration/g3", False, "5000 U"),
        ("MedicationStatement/s1", False, ""),
    ]


def test_allergy_keeps_reaction_and_criticality() -> None:
    """An allergy arrives with what it did and how grave that was."""
    reaction = [{"manifestation": [{"text": "Anaphylaxis"}], "severity": "severe"}]
    (found,) = one(allergy(reaction=reaction, criticality="high", category=["medication"])).layer.allergies
    assert (found.name, found.reaction, found.criticality, found.category) == (
        "Penicillin",
        "Anaphylaxis (severe)",
        "high",
        "medication",
    )
    assert found.active


@pytest.mark.parametrize(
    ("entries", "status", "names"),
    [
        ([], "not_recorded", []),
        ([allergy()], "known", ["Penicillin"]),
        ([allergy(code=coded("716186003", SNOMED, "No known allergy"))], "none_known", []),
        ([allergy(code=coded("409137002", SNOMED, "No known drug allergy"))], "none_known", []),
        ([allergy(code={"text": "NKDA."})], "none_known", []),
        ([allergy(code=coded("716184000", SNOMED, "No known latex allergy"))], "not_recorded", []),
        ([allergy(), allergy("a2", code=coded("716186003", SNOMED))], "known", ["Penicillin"]),
        ([allergy(clinicalStatus=coded("resolved"))], "known", ["Penicillin"]),
        ([allergy(verificationStatus=coded("refuted"))], "not_recorded", []),
        ([allergy(verificationStatus=coded("entered-in-error"))], "not_recorded", []),
        ([allergy(code=coded("716186003", SNOMED), verificationStatus=coded("refuted"))], "not_recorded", []),
        ([allergy(code=coded("716186003", SNOMED), clinicalStatus=coded("inactive"))], "not_recorded", []),
        ([allergy(code=None)], "known", ["substance not named"]),
        (
            [allergy(code=None, reaction=[{"substance": {"text": "Iodine"}, "manifestation": [{"text": "x"}]}])],
            "known",
            ["Iodine"],
        ),
    ],
)
def test_allergy_status_is_said_only_as_recorded(entries: list[dict[str, Any]], status: str, names: list[str]) -> None:
    """ "None known" needs somebody who wrote it; silence, a refuted entry or latex alone is "not recorded"."""
    layer = one(*entries).layer
    assert (layer.allergy_status, [row.name for row in layer.allergies]) == (status, names)


def test_unreadable_allergy_is_never_none_known() -> None:
    """An allergy entry that could not be read forbids "none known" and is said in the summary."""
    odd = allergy("a2", modifierExtension=[{"url": "http://x", "valueBoolean": True}])
    layer = one(allergy(code=coded("716186003", SNOMED)), odd).layer
    assert layer.allergy_status == "not_recorded"
    assert "1 allergy entry of the source could not be read." in layer.summary


@pytest.mark.parametrize(
    ("rows", "pregnant"),
    [
        ([], None),
        ([observation(code=coded("82810-3"), valueCodeableConcept=coded("77386006", SNOMED))], True),
        ([observation(code=coded("82810-3"), valueCodeableConcept=coded("60001007", SNOMED))], False),
        (
            [
                observation(
                    code=coded("82810-3"),
                    valueCodeableConcept=coded("77386006", SNOMED),
                    effectiveDateTime="2023-01-01",
                )
            ],
            None,
        ),
        ([condition(code=coded("77386006", SNOMED), onsetDateTime="2025-11-01")], True),
        ([condition(code=coded("Z34.0", "http://hl7.org/fhir/sid/icd-10-cm"), onsetDateTime="2025-11-01")], True),
        ([condition(code=coded("Z33.2", "http://hl7.org/fhir/sid/icd-10-cm"), onsetDateTime="2025-11-01")], None),
        ([condition(code=coded("77386006", SNOMED), onsetDateTime="2019-11-01")], None),
        ([condition(code=coded("77386006", SNOMED), onsetDateTime=None)], True),
        ([condition(code=coded("77386006", SNOMED), clinicalStatus=coded("resolved"))], None),
    ],
)
def test_pregnancy_is_of_today_or_unknown(rows: list[dict[str, Any]], pregnant: bool | None) -> None:
    """A status or problem counts while it can still be true; older ones prove nothing."""
    assert one(*rows).layer.pregnant is pregnant


# --- what happened ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (
            {
                "resourceType": "Encounter",
                "status": "finished",
                "class": {"code": "EMER"},
                "period": {"start": "2026-01-14"},
            },
            "Encounter (emergency)",
        ),
        (
            {
                "resourceType": "Procedure",
                "status": "completed",
                "code": {"text": "PCI"},
                "performedDateTime": "2026-01-14",
            },
            "PCI",
        ),
        (
            {
                "resourceType": "Immunization",
                "status": "completed",
                "vaccineCode": {"text": "Influenza"},
                "occurrenceDateTime": "2026-01-14",
            },
            "Influenza",
        ),
        (
            {
                "resourceType": "CarePlan",
                "status": "active",
                "intent": "plan",
                "title": "Diabetes",
                "period": {"start": "2026-01-14"},
            }
            | {"activity": [{"detail": {"status": "in-progress", "code": {"text": "Diet"}}}]},
            "Diabetes: Diet",
        ),
    ],
)
def test_event_has_name_status_and_start(fields: dict[str, Any], name: str) -> None:
    """Encounters, procedures, immunizations and care plans are events with their start."""
    whose = {"patient" if fields["resourceType"] == "Immunization" else "subject": {"reference": "Patient/p1"}}
    (found,) = one({"id": "e1"} | whose | fields).layer.events
    assert (found.name, found.status, found.start) == (name, fields["status"], datetime(2026, 1, 14, tzinfo=UTC))


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("Encounter", "cancelled"),
        ("Procedure", "not-done"),
        ("Immunization", "not-done"),
        ("Encounter", "entered-in-error"),
    ],
)
def test_event_that_did_not_happen_is_out(kind: str, status: str) -> None:
    """What was cancelled or not done is no event."""
    row = {"resourceType": kind, "id": "e1", "status": status, "class": {"code": "AMB"}, "code": {"text": "x"}}
    row |= {
        "vaccineCode": {"text": "x"},
        "subject": {"reference": "Patient/p1"},
        "patient": {"reference": "Patient/p1"},
    }
    imported = one(row)
    assert imported.layer.events == ()
    assert imported.skipped == 1


def test_types_that_are_not_used_are_counted_by_name() -> None:
    """Every other resource is counted, with the patient where it names one."""
    claim = {"resourceType": "Claim", "id": "x", "patient": {"reference": "Patient/p1"}}
    result = run(bundle(patient(), claim, {"resourceType": "Organization", "id": "o"}))
    assert report(result).skipped == {"not used: Claim": 1, "not used: Organization": 1}
    assert only(result).reasons == {"not used: Claim": 1}


def test_layer_is_versioned_and_dated_by_the_import() -> None:
    """Equal records give an equal version at any time; the time of the import is in ``as_of``."""
    first = one(observation(), allergy()).layer
    second = one(allergy(), observation(), now=datetime(2026, 2, 1, tzinfo=UTC)).layer
    assert first.version == second.version == versioned(first).version
    assert (first.as_of, first.departments) == (NOW, ("cardiology",))


def test_import_of_nothing_is_nothing() -> None:
    """No files give no patients and no reports."""
    result = import_files([], department=None, now=NOW)
    assert (result.patients, result.files) == ((), ())
