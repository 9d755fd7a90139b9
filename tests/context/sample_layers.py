"""Layers of one small hospital for the tests of ``context``; every person in it is invented."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from context.layers import (
    Action,
    Allergy,
    Condition,
    DepartmentLayer,
    DoctorLayer,
    Event,
    HospitalLayer,
    Layers,
    Medication,
    Message,
    Observation,
    PatientLayer,
    PendingAction,
    Report,
    SessionLayer,
    versioned,
)

NOW = datetime(2026, 1, 15, 7, 45, 20, tzinfo=UTC)

HOSPITAL = versioned(
    HospitalLayer(
        name="Hospital of the Tests",
        as_of=NOW,
        policies=("Two identifiers before any procedure.",),
        critical_limits={"potassium": (2.5, 6.5)},
    )
)
CARDIOLOGY = versioned(
    DepartmentLayer(
        department_id="cardiology",
        name="Cardiology",
        name_pt="Cardiologia",
        as_of=NOW,
        focus="Acute coronary syndromes.",
        instructions=("Name the time of every troponin.",),
        actions=(
            Action(
                id="order_ecg",
                label="Order ECG",
                label_pt="Pedir ECG",
                risk="confirm",
                fhir="ServiceRequest",
            ),
        ),
    )
)
ICU = versioned(DepartmentLayer(department_id="icu", name="ICU", name_pt="Cuidados Intensivos", as_of=NOW))
DOCTOR = versioned(
    DoctorLayer(
        user_id="dr.teste",
        name="Dr. Teste",
        as_of=NOW,
        specialty="interventional cardiology",
        departments=("cardiology",),
        preferences=("Short answers first.",),
        rounds="07:00-09:00",
    )
)
PATIENT = versioned(
    PatientLayer(
        patient_id="p-100",
        name="Maria Exemplo",
        as_of=NOW,
        departments=("cardiology",),
        identifiers=("u-555",),
        birth_date=date(1958, 3, 2),
        sex="female",
        conditions=(
            Condition(ref="Condition/c1", name="Hypertension"),
            Condition(ref="Condition/c2", name="Appendicitis", active=False),
        ),
        medications=(
            Medication(ref="MedicationRequest/m1", name="Aspirin", dose="100 mg once a day"),
            Medication(ref="MedicationRequest/m2", name="Ibuprofen", active=False, status="stopped"),
        ),
        allergies=(Allergy(ref="AllergyIntolerance/a1", name="Penicillin", reaction="rash", criticality="high"),),
        allergy_status="known",
        observations=(
            Observation(
                ref="Observation/k2",
                name="Potassium",
                code="2823-3",
                value=6.9,
                unit="mmol/L",
                low=3.5,
                high=5.1,
                flag="HH",
                as_of=NOW - timedelta(hours=1),
            ),
            Observation(
                ref="Observation/na1",
                name="Sodium",
                code="2951-2",
                value=140.0,
                unit="mmol/L",
                as_of=NOW - timedelta(hours=2),
            ),
            Observation(
                ref="Observation/k1",
                name="Potassium",
                code="2823-3",
                value=4.4,
                unit="mmol/L",
                as_of=NOW - timedelta(days=2),
            ),
        ),
        reports=(
            Report(
                ref="DiagnosticReport/ecg1",
                title="12-lead ECG",
                text="ST elevation V2-V6.\nAnterior Q waves.",
                kind="ecg",
                as_of=NOW - timedelta(hours=2),
            ),
        ),
        events=(Event(ref="Encounter/e1", kind="encounter", name="Emergency visit", start=NOW - timedelta(days=1)),),
    )
)
SESSION = versioned(
    SessionLayer(
        session_id="dr.teste:s1",
        as_of=NOW,
        patient_id="p-100",
        topic="hyperkalaemia",
        messages=(
            Message(role="doctor", text="What is the potassium?", at=NOW, patient_id="p-100"),
            Message(role="chatd", text="Potassium 6.9 mmol/L.", at=NOW, patient_id="p-100"),
        ),
        pending_actions=(
            PendingAction(
                action_id="act-1",
                catalog_id="order_ecg",
                label="Order ECG",
                patient_id="p-100",
                expires_at=NOW + timedelta(minutes=10),
            ),
        ),
    )
)
LAYERS = Layers(hospital=HOSPITAL, department=CARDIOLOGY, doctor=DOCTOR, patient=PATIENT, session=SESSION)
