"""The demo hospital: synthetic, valid FHIR, always today, and with a patient for every rule."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest
from fhir.resources.R4B import get_fhir_model_class
from fhir.resources.R4B.bundle import Bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd import demo
from chatd.safety import triage, vitals
from chatd.safety.analytes import ANALYTES
from context.fhir import Importer
from context.layers import PatientLayer, versioned

NOW = datetime(2026, 1, 15, 7, 45, 20, 114000, tzinfo=UTC)
DEPARTMENTS = ("cardiology", "emergency", "surgery", "icu")
BUNDLES = dict(
    (bundle["entry"][0]["resource"]["id"], (department, bundle)) for department, bundle in demo.load(NOW).bundles
)


def imported(patient_id: str, now: datetime = NOW) -> PatientLayer:
    """The layer of one of the demo's patients, read by the product's own import."""
    bundles = {bundle["entry"][0]["resource"]["id"]: (name, bundle) for name, bundle in demo.load(now).bundles}
    department, bundle = bundles[patient_id]
    importer = Importer(departments=[department], now=now)
    importer.add_file("demo", msgspec.json.encode(bundle))
    (patient,) = importer.finish().patients
    return patient.layer


def strings(node: object) -> list[str]:
    if isinstance(node, dict):
        return [text for value in node.values() for text in strings(value)]
    if isinstance(node, list):
        return [text for value in node for text in strings(value)]
    return [node] if isinstance(node, str) else []


@pytest.mark.parametrize("patient_id", BUNDLES)
def test_bundle_is_valid_fhir(patient_id: str) -> None:
    """Each bundle is a valid FHIR R4 transaction of one patient, whose every entry is about that patient."""
    department, bundle = BUNDLES[patient_id]
    assert department in DEPARTMENTS
    Bundle.model_validate_json(msgspec.json.encode(bundle))
    assert bundle["type"] == "transaction"
    for entry in bundle["entry"]:
        resource = entry["resource"]
        get_fhir_model_class(resource["resourceType"]).model_validate_json(msgspec.json.encode(resource))
        assert entry["request"] == {"method": "PUT", "url": f"{resource['resourceType']}/{resource['id']}"}
        if resource["resourceType"] != "Patient":
            subject: dict[str, Any] = resource.get("subject") or resource["patient"]
            assert subject["reference"] == f"Patient/{patient_id}"


@pytest.mark.parametrize("patient_id", BUNDLES)
def test_bundle_is_imported_whole(patient_id: str) -> None:
    """The product's import takes every resource, except the one result that its laboratory took back."""
    department, bundle = BUNDLES[patient_id]
    importer = Importer(departments=[department], now=NOW)
    importer.add_file("demo", msgspec.json.encode(bundle))
    (patient,) = importer.finish().patients
    assert patient.layer.patient_id == patient_id
    assert patient.layer.departments == (department,)
    assert patient.resources == len(bundle["entry"]) - patient.skipped
    assert patient.reasons == ({"entered in error": 1} if patient_id == "1072" else {})


def test_references_are_unique_in_the_hospital() -> None:
    """No two resources share a reference, so that one citation means one thing."""
    counted = Counter(entry["request"]["url"] for _, bundle in BUNDLES.values() for entry in bundle["entry"])
    assert [url for url, count in counted.items() if count > 1] == []


@settings(max_examples=25)
@given(st.datetimes(min_value=datetime(2024, 1, 1), max_value=datetime(2060, 1, 1)))  # noqa: DTZ001
def test_load_is_today_whenever(naive: datetime) -> None:
    """At any moment no placeholder is left, every time lies before the moment, and the newest in the last two hours."""
    now = naive.replace(tzinfo=UTC)
    for _, bundle in demo.load(now).bundles:
        texts = strings(bundle)
        assert not any("{{" in text for text in texts)
        times = [datetime.fromisoformat(text) for text in texts if re.fullmatch(r"[\d-]+T[\d:]+Z", text)]
        assert max(times) <= now
        if "deceasedDateTime" not in bundle["entry"][0]["resource"]:
            assert now - max(times) < timedelta(hours=2)


def test_load_same_minute_is_the_same_hospital() -> None:
    """The same minute gives the same hospital, and a zone makes no difference."""
    first = demo.load(NOW)
    assert demo.load(NOW + timedelta(seconds=30)) == first
    lisbon = datetime.fromisoformat("2026-01-15T08:45:20+01:00")
    assert demo.load(lisbon) == first
    assert demo.load(NOW + timedelta(minutes=1)) != first


def test_load_ages_stay() -> None:
    """The child stays nine and the expectant mother thirty-one, also from a 29 February on."""
    for year, month, day in ((2026, 1, 15), (2028, 2, 29), (2040, 12, 31)):
        now = datetime(year, month, day, 12, tzinfo=UTC)
        assert imported("1083", now).age_years(now.date()) == 9
        assert imported("1095", now).age_years(now.date()) == 31


def test_load_layers_are_versioned_and_complete() -> None:
    """Four departments with their catalogues, at least ten staff, every layer with the version of its content."""
    hospital = demo.load(NOW)
    assert hospital.hospital.name == demo.hospital_name() == "Real Portuguese Hospital"
    assert tuple(department.department_id for department in hospital.departments) == DEPARTMENTS
    for department in hospital.departments:
        assert department.actions
        assert department.focus
        assert department.name != department.name_pt
    layers: list[Any] = [hospital.hospital, *hospital.departments, *hospital.doctors]
    assert all(versioned(layer) == layer for layer in layers)
    assert {layer.as_of for layer in layers} == {NOW.replace(second=0, microsecond=0)}


def test_critical_limits_are_of_known_analytes_and_in_order() -> None:
    """Each limit belongs to an analyte of the safety table and lies on its side."""
    limits = demo.load(NOW).hospital.critical_limits
    assert set(limits) <= {analyte.id for analyte in ANALYTES}
    for low, high in limits.values():
        assert low is not None or high is not None
        assert low is None or high is None or low < high


def test_staff_covers_departments_and_roles() -> None:
    """Every department has a physician, a nurse and a charge nurse; ids are unique; Dr. Santos is as described."""
    people = demo.staff()
    assert len({person.user_id for person in people}) == len(people) >= 10
    for department in DEPARTMENTS:
        roles = {person.role for person in people if department in person.departments}
        assert {"physician", "nurse", "charge_nurse"} <= roles
    assert {department for person in people for department in person.departments} == set(DEPARTMENTS)
    santos = next(person for person in people if person.user_id == "dr.santos.cardio")
    assert (santos.name, santos.specialty, santos.rounds) == ("Dr. Santos", "Interventional cardiology", "07:00-09:00")
    assert santos.preferences == ("Prefers aggressive antiplatelet therapy.",)
    doctors = {doctor.user_id: doctor for doctor in demo.load(NOW).doctors}
    assert set(doctors) == {person.user_id for person in people}
    assert doctors["dr.santos.cardio"].departments == ("cardiology",)


def test_joao_silva_is_as_described() -> None:
    """Record 7823: STEMI on day 2, penicillin, troponin 45 after a lower one, the ECG's report and no tracing."""
    joao = imported("7823")
    assert (joao.name, joao.birth_date, joao.sex, joao.deceased) == ("João Silva", date(1959, 1, 15), "male", None)
    assert joao.age_years(NOW.date()) == 67
    names = " / ".join(condition.name for condition in joao.conditions if condition.active)
    for wanted in ("Type 2 diabetes", "Hypertension", "Previous myocardial infarction", "STEMI"):
        assert wanted in names
    stemi = next(condition for condition in joao.conditions if "STEMI" in condition.name)
    assert stemi.onset is not None
    assert timedelta(days=1) < NOW - stemi.onset < timedelta(days=2)
    assert [(allergy.ref, allergy.name) for allergy in joao.allergies] == [("AllergyIntolerance/a1", "Penicillin")]
    assert sorted(medication.name for medication in joao.medications) == ["Aspirin", "Metformin"]
    troponins = [found for found in joao.observations if found.name == "Troponin I"]
    assert [(found.ref, found.value, found.unit, found.range_text, found.flag) for found in troponins] == [
        ("Observation/trop-1", 45.0, "ng/mL", "< 0.04", "HH"),
        ("Observation/trop-0", 12.6, "ng/mL", "< 0.04", "HH"),
    ]
    ecg = next(report for report in joao.reports if report.kind == "ecg")
    assert ecg.ref == "Observation/ecg-1"
    for finding in ("ST elevation V2-V6", "Anterior Q waves", "Poor R-wave progression"):
        assert finding in ecg.text
    assert not any("valueSampledData" in msgspec.json.encode(bundle).decode() for _, bundle in BUNDLES.values())


def test_patients_show_every_rule() -> None:
    """Same names within and across departments, a child, pregnancy, death, and all three states of allergies."""
    patients = [imported(patient_id) for patient_id in BUNDLES]
    by_name: dict[str, list[PatientLayer]] = {}
    for patient in patients:
        by_name.setdefault(patient.name, []).append(patient)
    first, second = sorted(by_name["João Silva"], key=lambda patient: patient.patient_id)
    assert first.birth_date != second.birth_date
    assert first.departments != second.departments
    one, other = by_name["Maria Fernandes"]
    assert one.departments == other.departments
    assert one.birth_date != other.birth_date
    assert {patient.allergy_status for patient in patients} == {"known", "none_known", "not_recorded"}
    assert [patient.patient_id for patient in patients if patient.pregnant] == ["1095"]
    assert [patient.patient_id for patient in patients if patient.deceased] == ["3327"]
    assert [p.patient_id for p in patients if (p.age_years(NOW.date()) or 0) < 16] == ["1083"]
    assert {department for patient in patients for department in patient.departments} == set(DEPARTMENTS)
    numbers = [number for patient in patients for number in (patient.patient_id, *patient.identifiers)]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize(
    ("patient_id", "news2", "critical"),
    [
        ("7823", 3, {"Observation/trop-1"}),
        ("1044", 0, set()),
        ("1060", 17, {"Observation/1060-lac-1"}),
        ("1072", 1, {"Observation/1072-k-2"}),
        ("1083", None, set()),
        ("1095", None, set()),
        ("3318", 3, set()),
        ("4188", 9, {"Observation/4188-hb-1"}),
        ("7910", 4, set()),
    ],
)
def test_patients_score_as_their_stories(patient_id: str, news2: int | None, critical: set[str]) -> None:
    """NEWS2 counted by hand, none for the child and the pregnant, and the results that somebody is called for."""
    patient, hospital = imported(patient_id), demo.load(NOW).hospital
    assert triage.news2(vitals.vitals_of(patient, NOW)).value == news2
    assert {flag.ref for flag in triage.critical_results(patient, hospital, NOW)} == critical
