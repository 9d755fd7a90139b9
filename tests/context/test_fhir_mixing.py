"""Two patients never mix, however their records are cut into files and however they refer to each other."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from context.fhir import Import
from tests.context.fhir_builders import (
    allergy,
    bundle,
    condition,
    dumps,
    ndjson,
    observation,
    patient,
    prescription,
    run,
    untimed,
)

OWNERS = ("p1", "p2", "p3")
MAKERS = (observation, allergy, condition, prescription)


def owner_of(ref: str) -> str:
    return ref.partition("/")[2].partition("-")[0]


def refs_of(result: Import) -> dict[str, set[str]]:
    found = {}
    for imported in result:
        layer = imported.layer
        items = (
            *layer.observations,
            *layer.allergies,
            *layer.conditions,
            *layer.medications,
            *layer.reports,
            *layer.events,
        )
        found[layer.patient_id] = {item.ref for item in items}
    return found


def person(identity: str, **fields: Any) -> dict[str, Any]:
    number = OWNERS.index(identity) + 1
    return patient(identity, name=[{"text": f"Name{number} Family{number}"}], birthDate=f"19{number}0-01-01", **fields)


@st.composite
def hospital(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, set[str]]]:
    """Patients and their resources in any order, with what each layer must then hold."""
    expected: dict[str, set[str]] = {owner: set() for owner in OWNERS}
    rows: list[dict[str, Any]] = [person(owner) for owner in OWNERS]
    for number in range(draw(st.integers(0, 12))):
        owner = draw(st.sampled_from(OWNERS))
        row = draw(st.sampled_from(MAKERS))(f"{owner}-{number}", owner)
        rows.append(row)
        expected[owner].add(f"{row['resourceType']}/{row['id']}")
    return draw(st.permutations(rows)), expected


@untimed
@given(hospital(), st.integers(1, 4), st.booleans())
def test_every_resource_lands_with_its_patient_and_no_other(
    made: tuple[list[dict[str, Any]], dict[str, set[str]]], files: int, is_bulk: bool
) -> None:
    """However the resources are spread over files, each is in its patient's layer, and in no other one."""
    rows, expected = made
    write = ndjson if is_bulk else bundle
    parts = [part for n in range(files) if (part := rows[n::files])]
    assert refs_of(run(*(write(*part) for part in parts))) == expected


@untimed
@given(hospital())
def test_urns_of_two_bundles_never_meet(made: tuple[list[dict[str, Any]], dict[str, set[str]]]) -> None:
    """Bundles that number their entries alike (urn:uuid:1, ...) stay apart: each patient has a bundle of her own."""
    rows, expected = made
    files = []
    for owner in OWNERS:
        entries = [{"fullUrl": "urn:uuid:1", "resource": person(owner)}]
        for number, row in enumerate((row for row in rows if row["resourceType"] != "Patient"), 2):
            key = "patient" if "patient" in row else "subject"
            if row[key]["reference"] == f"Patient/{owner}":
                moved = row | {key: {"reference": "urn:uuid:1"}}
                entries.append({"fullUrl": f"urn:uuid:{number}", "resource": moved})
        files.append(dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries}))
    assert refs_of(run(*files)) == expected


REFERENCES = st.sampled_from(
    (
        *("Patient/p1", "Patient/p2", "http://a.example/fhir/Patient/p1", "http://b.example/fhir/Patient/p1"),
        *("urn:uuid:p1", "Patient/p1/_history/3", "#p1", "Group/p1", "Patient?identifier=urn:h|1"),
        *("Patient?identifier=|1", "", "p1", "Patient/"),
    )
)
SERVERS = (("http://a.example/fhir", "100"), ("http://b.example/fhir", "200"))


def numbered(value: str) -> dict[str, Any]:
    """A Patient/p1 with a record number and a name of its own."""
    kind = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "MR"}]}
    return patient("p1", identifier=[{"type": kind, "value": value}], name=[{"text": f"Name{value}"}])


@untimed
@given(st.lists(st.tuples(REFERENCES, st.booleans()), min_size=1, max_size=8))
def test_reference_of_any_form_means_its_patient_or_nobody(rows: list[tuple[str, bool]]) -> None:
    """Two servers both have a Patient/p1: a reference reaches the one that it names, or nobody."""
    files = []
    expected: dict[str, set[str]] = {"100": set(), "200": set()}
    for base, value in SERVERS:
        entries = [{"fullUrl": f"{base}/Patient/p1", "resource": numbered(value)}]
        for number, (reference, has_address) in enumerate(rows):
            row = observation(f"{value}-{number}", subject={"reference": reference})
            entries.append({"resource": row} | ({"fullUrl": f"{base}/Observation/{row['id']}"} if has_address else {}))
            named = {"Patient/p1": value, "Patient/p1/_history/3": value} if has_address else {}
            named |= {f"{server}/Patient/p1": owner for server, owner in SERVERS}
            if reference in named:
                expected[named[reference]].add(f"Observation/{row['id']}")
        files.append(dumps({"resourceType": "Bundle", "type": "searchset", "entry": entries}))
    assert refs_of(run(*files)) == expected


def test_reference_is_resolved_against_its_own_server() -> None:
    """Patient/p1 of one server is not Patient/p1 of another, also where both are in the import."""
    files = []
    for base, number in SERVERS:
        someone = numbered(number)
        entries = [
            {"fullUrl": f"{base}/Patient/p1", "resource": someone},
            {"fullUrl": f"{base}/Observation/o{number}", "resource": observation(f"o{number}")},
            {"fullUrl": f"{base}/Observation/x{number}"}
            | {"resource": observation(f"x{number}", subject={"reference": f"{base}/Patient/p1"})},
        ]
        files.append(dumps({"resourceType": "Bundle", "type": "searchset", "entry": entries}))
    expected = {n: {f"Observation/o{n}", f"Observation/x{n}"} for n in ("100", "200")}
    assert refs_of(run(*files)) == expected


def test_reference_without_an_address_to_one_of_two_is_nobodys() -> None:
    """A loose file that says Patient/p1, where two servers have one, is ambiguous and not guessed."""
    files = []
    for base, number in SERVERS:
        someone = numbered(number)
        files.append(
            dumps({"resourceType": "Bundle", "entry": [{"fullUrl": f"{base}/Patient/p1", "resource": someone}]})
        )
    result = run(*files, ndjson(observation()))
    assert refs_of(result) == {"100": set(), "200": set()}
    assert result.files[2].skipped == {"patient reference is ambiguous": 1}


def test_reference_and_identifier_that_disagree_mean_nobody() -> None:
    """A resource that names one patient by reference and another by number belongs to neither."""
    people = [person(owner, identifier=[{"system": "urn:h", "value": owner}]) for owner in ("p1", "p2")]
    row = observation(subject={"reference": "Patient/p1", "identifier": {"system": "urn:h", "value": "p2"}})
    result = run(bundle(*people, row))
    assert refs_of(result) == {"p1": set(), "p2": set()}
    assert result.files[0].skipped == {"patient's reference and identifier disagree": 1}


def test_patient_is_found_by_identifier_alone() -> None:
    """A logical reference, or a conditional one of a transaction, finds the patient who has the number."""
    someone = patient(identifier=[{"system": "urn:h", "value": "42"}])
    by_number = observation("o1", subject={"identifier": {"system": "urn:h", "value": "42"}})
    by_search = observation("o2", subject={"reference": "Patient?identifier=urn:h|42"})
    unknown = observation("o3", subject={"identifier": {"system": "urn:other", "value": "42"}})
    result = run(bundle(someone, by_number, by_search, unknown))
    assert refs_of(result) == {"p1": {"Observation/o1", "Observation/o2"}}


def test_medicine_of_one_bundle_never_names_another_bundles_order() -> None:
    """Two bundles with a Medication/med of their own: each order gets its own medicine."""
    files = []
    for owner, drug in (("p1", "Warfarin"), ("p2", "Insulin")):
        medicine = {"resourceType": "Medication", "id": "med", "code": {"text": drug}}
        order = prescription(f"{owner}-m", owner, medicationReference={"reference": "Medication/med"})
        files.append(bundle(person(owner), medicine, order))
    result = run(*files)
    assert [imported.layer.medications[0].name for imported in result] == ["Warfarin", "Insulin"]
