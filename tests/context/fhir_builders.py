"""FHIR resources as the tests write them: small, valid, and changed by keyword."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import settings

from context.fhir import FileReport, Import, Importer, PatientImport

#: No time limit per example: the first one imports the FHIR models, and machines differ.
untimed = settings(deadline=None)

NOW = datetime(2026, 1, 15, 7, 45, tzinfo=UTC)
LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"


def coded(code: str, system: str = LOINC, text: str = "") -> dict[str, Any]:
    concept: dict[str, Any] = {"coding": [{"system": system, "code": code, "display": text or code}]}
    return concept | ({"text": text} if text else {})


def patient(identity: str = "p1", **fields: Any) -> dict[str, Any]:
    base = {
        "resourceType": "Patient",
        "id": identity,
        "name": [{"use": "official", "family": "Silva", "given": ["João"]}],
        "gender": "male",
        "birthDate": "1958-03-02",
    }
    return base | fields


def observation(identity: str = "o1", of: str = "p1", **fields: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "resourceType": "Observation",
        "id": identity,
        "status": "final",
        "code": coded("2823-3", text="Potassium"),
        "subject": {"reference": f"Patient/{of}"},
        "effectiveDateTime": "2026-01-15T06:10:00Z",
    }
    if not any(key.startswith("value") or key in ("component", "hasMember", "dataAbsentReason") for key in fields):
        base["valueQuantity"] = {
            "value": 4.1,
            "unit": "mmol/L",
            "system": "http://unitsofmeasure.org",
            "code": "mmol/L",
        }
    return base | fields


def allergy(identity: str = "a1", of: str = "p1", **fields: Any) -> dict[str, Any]:
    base = {
        "resourceType": "AllergyIntolerance",
        "id": identity,
        "clinicalStatus": coded("active", "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical"),
        "verificationStatus": coded(
            "confirmed", "http://terminology.hl7.org/CodeSystem/allergyintolerance-verification"
        ),
        "code": coded("91936005", SNOMED, "Penicillin"),
        "patient": {"reference": f"Patient/{of}"},
        "recordedDate": "2019-05-01",
    }
    return base | fields


def condition(identity: str = "c1", of: str = "p1", **fields: Any) -> dict[str, Any]:
    base = {
        "resourceType": "Condition",
        "id": identity,
        "clinicalStatus": coded("active", "http://terminology.hl7.org/CodeSystem/condition-clinical"),
        "code": coded("44054006", SNOMED, "Type 2 diabetes"),
        "subject": {"reference": f"Patient/{of}"},
        "onsetDateTime": "2010-04-01",
    }
    return base | fields


def prescription(identity: str = "m1", of: str = "p1", **fields: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "resourceType": "MedicationRequest",
        "id": identity,
        "status": "active",
        "intent": "order",
        "subject": {"reference": f"Patient/{of}"},
        "authoredOn": "2025-11-03",
    }
    if "medicationReference" not in fields:
        base["medicationCodeableConcept"] = coded("1191", "http://www.nlm.nih.gov/research/umls/rxnorm", "Aspirin")
    return base | fields


def bundle(*resources: dict[str, Any], kind: str = "collection") -> bytes:
    return dumps({"resourceType": "Bundle", "type": kind, "entry": [{"resource": row} for row in resources]})


def ndjson(*resources: dict[str, Any]) -> bytes:
    return b"\n".join(dumps(row) for row in resources) + b"\n"


def dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def run(*files: bytes, department: str = "cardiology", now: datetime = NOW) -> Import:
    importer = Importer(departments=(department,), now=now)
    for number, data in enumerate(files):
        importer.add_file(f"file-{number}.json", data)
    return importer.finish()


def only(result: Import) -> PatientImport:
    (imported,) = result.patients
    return imported


def one(*resources: dict[str, Any], now: datetime = NOW) -> PatientImport:
    """The import of a patient p1 with these resources beside."""
    return only(run(bundle(patient(), *resources), now=now))


def report(result: Import) -> FileReport:
    (found,) = result.files
    return found
