"""The public records: everything in them is taken or has its reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from context import fhir_codes
from context.fhir import Import, import_files
from context.fhir_convert import any_code
from tests.clinical_data import clinical_path
from tests.context.fhir_builders import NOW, run

SYNTHEA = ("fhir", "synthea_r4_2021")


def counted(path: Path) -> Counter[str]:
    return Counter(entry["resource"]["resourceType"] for entry in json.loads(path.read_bytes())["entry"])


@pytest.fixture(scope="module")
def synthea() -> Import:
    """All Synthea bundles in one import."""
    return import_files([clinical_path(*SYNTHEA)], department="cardiology", now=NOW)


def test_synthea_bundle_counts_equal_a_plain_count(synthea: Import) -> None:
    """Of each type that is read, taken and skipped together are what stands in the file; nothing gets lost."""
    assert synthea.files
    for report in synthea.files:
        plain = counted(Path(report.path))
        assert report.error is None
        without_text = report.skipped.get("report without text: its results are taken", 0)
        taken = Counter(report.taken) + Counter({"DiagnosticReport": without_text})
        assert taken == Counter({kind: count for kind, count in plain.items() if kind in fhir_codes.FIELDS})
        unused = {f"not used: {kind}": count for kind, count in plain.items() if kind not in fhir_codes.FIELDS}
        assert {reason: n for reason, n in report.skipped.items() if reason.startswith("not used")} == unused


def test_synthea_patient_has_every_number_and_medicine_of_the_file(synthea: Import) -> None:
    """Each layer holds exactly the problems, medicines, allergies and values of its own bundle."""
    by_id = {imported.layer.patient_id: imported.layer for imported in synthea}
    paths = [Path(report.path) for report in synthea.files]
    assert len(by_id) == len(paths)
    for path in paths:
        rows = [entry["resource"] for entry in json.loads(path.read_bytes())["entry"]]
        (who,) = (row for row in rows if row["resourceType"] == "Patient")
        (number,) = (row["value"] for row in who["identifier"] if any_code(row.get("type")) == "MR")
        layer = by_id[number]
        assert who["id"] in layer.identifiers
        assert layer.sex == who["gender"]
        assert str(layer.birth_date) == who["birthDate"]
        assert bool(layer.deceased) == ("deceasedDateTime" in who)
        assert Counter(item.name for item in layer.conditions) == names(rows, "Condition", "code")
        assert Counter(item.name for item in layer.medications) == names(
            rows, "MedicationRequest", "medicationCodeableConcept"
        )
        assert Counter(item.name for item in layer.allergies) == names(rows, "AllergyIntolerance", "code")
        # Taken apart by the test itself: one value per observation, or per component of a panel.
        values = Counter(
            (part["code"]["coding"][0]["code"], part["valueQuantity"]["value"])
            for row in rows
            if row["resourceType"] == "Observation"
            for part in row.get("component", [row])
            if "valueQuantity" in part
        )
        kept = Counter((item.code, item.value) for item in layer.observations if item.value is not None)
        assert kept == values
        assert list(layer.observations) == sorted(layer.observations, key=lambda o: (-o.as_of.timestamp(), o.ref))  # type: ignore[union-attr]


def names(rows: list[dict[str, Any]], kind: str, field: str) -> Counter[str]:
    return Counter(row[field]["text"] for row in rows if row["resourceType"] == kind)


def test_synthea_bundle_alone_gives_the_same_layer_as_among_the_others(synthea: Import) -> None:
    """What else is in an import changes nothing about a patient."""
    for report in synthea.files[:3]:
        (alone,) = import_files([report.path], department="cardiology", now=NOW)
        assert alone.layer in [imported.layer for imported in synthea]


def test_official_examples_are_taken_or_have_a_reason() -> None:
    """Each official R4 example alone and all together: no exception, no error, each counted once."""
    paths = sorted(clinical_path("fhir", "hl7_r4_examples_cc0").glob("*.json"))
    together = run(*(path.read_bytes() for path in paths))
    assert len(together.files) == len(paths)
    for path, report in zip(paths, together.files, strict=True):
        assert report.error is None, path.name
        assert sum(report.taken.values()) + sum(report.skipped.values()) == 1, path.name
        alone = run(path.read_bytes()).files[0]
        assert sum(alone.taken.values()) + sum(alone.skipped.values()) == 1, path.name
    taken = sum(sum(report.taken.values()) for report in together.files)
    assert taken > len(paths) // 3


def test_official_waveform_is_never_read() -> None:
    """The example of sampled ECG data gives no value and no report."""
    example = clinical_path("fhir", "hl7_r4_examples_cc0", "Observation-ekg.json")
    result = run(example.read_bytes())
    assert result.files[0].skipped in ({"a waveform is not read": 1}, {"patient not in the import": 1})
    assert result.files[0].taken == {}


def test_bulk_allergies_without_patients_are_skipped_and_said() -> None:
    """Allergies whose patients are not in the import belong to nobody: each is counted, none is shown."""
    (path,) = clinical_path("fhir", "synthea_bulk_2023_allergies").glob("*.ndjson")
    lines = path.read_bytes().splitlines()
    result = run(path.read_bytes())
    assert result.patients == ()
    assert result.files[0].skipped == {"patient not in the import": len(lines)}


def test_bulk_allergies_find_their_patients_in_another_file() -> None:
    """With the patients in a file of their own, every allergy lands with the patient that its line names."""
    (path,) = clinical_path("fhir", "synthea_bulk_2023_allergies").glob("*.ndjson")
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    people = sorted({row["patient"]["reference"].partition("/")[2] for row in rows})
    patients = b"\n".join(json.dumps({"resourceType": "Patient", "id": identity}).encode() for identity in people)
    result = run(path.read_bytes(), patients)
    found = Counter((imported.layer.patient_id, item.name) for imported in result for item in imported.layer.allergies)
    assert found == Counter((row["patient"]["reference"].partition("/")[2], row["code"]["text"]) for row in rows)
    assert {imported.layer.allergy_status for imported in result} == {"known"}
