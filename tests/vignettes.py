"""Builds layers out of a clinical vignette (one JSON object: patient, vitals, labs, problems, question) for tests."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from chatd.actions.catalogue import catalogue_of
from context.layers import (
    Allergy,
    Condition,
    DepartmentLayer,
    DoctorLayer,
    Flag,
    HospitalLayer,
    Layers,
    Medication,
    Observation,
    PatientLayer,
    Report,
    SessionLayer,
    versioned,
)

NOW = datetime(2026, 1, 15, 7, 45, 20, tzinfo=UTC)

DEPARTMENTS = {
    "cardiology": ("Cardiology", "Cardiologia"),
    "emergency": ("Emergency", "Urgência"),
    "surgery": ("Surgery", "Cirurgia"),
    "icu": ("Intensive Care", "Cuidados Intensivos"),
}

#: key of a vignette's vitals: name, LOINC code, unit.
VITALS = {
    "rr": ("Respiratory rate", "9279-1", "/min"),
    "spo2": ("Oxygen saturation", "59408-5", "%"),
    "sbp": ("Systolic blood pressure", "8480-6", "mm[Hg]"),
    "dbp": ("Diastolic blood pressure", "8462-4", "mm[Hg]"),
    "hr": ("Heart rate", "8867-4", "/min"),
    "temp": ("Body temperature", "8310-5", "Cel"),
}

#: What the laboratory of the vignettes codes.
LABS = {
    "potassium": "2823-3",
    "magnesium": "2601-3",
    "glucose": "2345-7",
    "lactate": "2524-7",
    "hemoglobin": "718-7",
    "haemoglobin": "718-7",
    "ph": "2744-1",
    "platelets": "777-3",
    "nt-probnp": "33762-6",
    "creatinine": "2160-0",
    "egfr": "33914-3",
    "sodium": "2951-2",
    "inr": "6301-6",
    "wbc": "6690-2",
    "crp": "1988-5",
}


def read_vignettes(path: Path) -> list[dict[str, Any]]:
    """The vignettes of a JSON Lines file, in order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def observation(
    name: str,
    value: float | None,
    unit: str | None,
    *,
    at: datetime,
    code: str | None = None,
    flag: Flag = "",
    text: str | None = None,
    **more: Any,
) -> Observation:
    """One result; ``ref`` is made of name and time."""
    ref = f"Observation/{name.lower().replace(' ', '-')}-{at:%Y%m%d%H%M}"
    return Observation(ref=ref, name=name, code=code, value=value, unit=unit, text=text, flag=flag, as_of=at, **more)


def vitals_of_vignette(vitals: dict[str, Any], at: datetime) -> list[Observation]:
    """A vignette's vital signs as LOINC observations."""
    rows = [
        observation(name, float(vitals[key]), unit, at=at, code=code, category="vital-signs")
        for key, (name, code, unit) in VITALS.items()
        if key in vitals
    ]
    if "acvpu" in vitals:
        state = observation("ACVPU", None, None, at=at, code="67775-7", text=vitals["acvpu"], category="vital-signs")
        rows.append(state)
    if "o2" in vitals:
        flow, unit = (4.0, "L/min") if vitals["o2"] else (0.0, "L/min")
        rows.append(observation("Inhaled oxygen flow rate", flow, unit, at=at, code="3151-8", category="vital-signs"))
    if vitals.get("scale") == 2:
        rows.append(observation("SpO2 target range", None, None, at=at, text="88-92%", category="vital-signs"))
    return rows


def patient_of(row: dict[str, Any], *, now: datetime = NOW, department: str | None = None) -> PatientLayer:
    """The record of a vignette's patient: vitals an hour old, laboratory half an hour, one month of problems."""
    person = row["patient"]
    observations = vitals_of_vignette(row.get("vitals", {}), now - timedelta(hours=1))
    for lab in row.get("labs", []):
        # An empty unit of the file is a number without one (pH), not a unit that was forgotten.
        unit = lab["unit"] or None
        observations.append(
            observation(
                lab["name"],
                float(lab["value"]),
                unit,
                at=now - timedelta(minutes=30),
                code=LABS.get(lab["name"].lower()),
                flag=lab.get("flag", ""),
                category="laboratory",
            )
        )
    allergies = []
    for n, text in enumerate(row.get("allergies", [])):
        name, _, rest = text.partition(" (")
        allergies.append(Allergy(ref=f"AllergyIntolerance/a{n}", name=name, reaction=rest.rstrip(")")))
    reports = tuple(
        Report(
            ref=f"DiagnosticReport/r{n}",
            title=report["title"],
            text=report["text"],
            kind=report.get("kind", "other"),
            as_of=now - timedelta(minutes=report.get("age_min", 90)),
        )
        for n, report in enumerate(row.get("reports", []))
    )
    return versioned(
        PatientLayer(
            patient_id=person["record"],
            name=person["name"],
            as_of=now,
            departments=(department or row["department"],),
            identifiers=(person["record"],),
            birth_date=date(now.year - person["age"], 1, 1),
            sex={"F": "female", "M": "male"}.get(person["sex"], "unknown"),  # type: ignore[arg-type]
            pregnant=row.get("pregnant"),
            conditions=tuple(
                Condition(ref=f"Condition/c{n}", name=name, onset=now - timedelta(days=30))
                for n, name in enumerate(row.get("problems", []))
            ),
            medications=tuple(
                Medication(ref=f"MedicationStatement/m{n}", name=name)
                for n, name in enumerate(row.get("medications", []))
            ),
            allergies=tuple(allergies),
            allergy_status="known" if allergies else row.get("allergy_status", "none_known"),
            observations=tuple(observations),
            reports=reports,
        )
    )


def layers_of(patient: PatientLayer | None, department: str, *, now: datetime = NOW, language: str = "pt-PT") -> Layers:
    """The five layers around a patient in one of the four departments."""
    name, name_pt = DEPARTMENTS.get(department, (department, department))
    return Layers(
        hospital=versioned(HospitalLayer(name="Real Portuguese Hospital", as_of=now, language=language)),
        department=versioned(
            DepartmentLayer(
                department_id=department, name=name, name_pt=name_pt, as_of=now, actions=catalogue_of(department)
            )
        ),
        doctor=versioned(DoctorLayer(user_id="dr.test", name="Dr. Test", as_of=now, departments=(department,))),
        patient=patient,
        session=SessionLayer(session_id="sess_test", as_of=now, patient_id=patient.patient_id if patient else None),
    )
