"""The code tables of the FHIR import: which resources and fields are read, and what each code means here.

Sources of the codes: HL7 FHIR R4 (4.0.1) code systems and value sets, LOINC, SNOMED CT, HL7 v2 table 0078 and
v3 ObservationInterpretation.
"""

from __future__ import annotations

import re

from context.layers import Flag

LOINC = ("http://loinc.org", "https://loinc.org", "urn:oid:2.16.840.1.113883.6.1")
SNOMED = ("http://snomed.info/sct", "https://snomed.info/sct", "urn:oid:2.16.840.1.113883.6.96")
RXNORM = ("http://www.nlm.nih.gov/research/umls/rxnorm", "urn:oid:2.16.840.1.113883.6.88")
ATC = ("http://www.whocc.no/atc", "urn:oid:2.16.840.1.113883.6.73")
ICD10 = (
    "http://hl7.org/fhir/sid/icd-10",
    "http://hl7.org/fhir/sid/icd-10-cm",
    "urn:oid:2.16.840.1.113883.6.3",
    "urn:oid:2.16.840.1.113883.6.90",
)

_COMMON = ("resourceType", "id", "meta", "identifier", "modifierExtension", "implicitRules")

#: What is read of each type. Everything else is neither validated nor kept, so that an odd photo or an odd
#: performer cannot cost a result.
FIELDS: dict[str, tuple[str, ...]] = {
    "Patient": (*_COMMON, "name", "gender", "birthDate", "deceasedBoolean", "deceasedDateTime", "link", "extension"),
    "Condition": (
        *(*_COMMON, "clinicalStatus", "verificationStatus", "code", "subject", "onsetDateTime", "onsetPeriod"),
        *("abatementDateTime", "abatementPeriod", "abatementString", "abatementAge", "recordedDate"),
    ),
    "Observation": (
        *(*_COMMON, "status", "category", "code", "subject", "focus", "effectiveDateTime", "effectivePeriod"),
        *("effectiveInstant", "issued", "valueQuantity", "valueCodeableConcept", "valueString", "valueBoolean"),
        *("valueInteger", "valueRange", "valueRatio", "valueSampledData", "valueTime", "valueDateTime"),
        *("valuePeriod", "dataAbsentReason", "interpretation", "referenceRange", "hasMember", "component"),
        *("note", "text", "extension"),
    ),
    "DiagnosticReport": (
        *(*_COMMON, "status", "category", "code", "subject", "effectiveDateTime", "effectivePeriod", "issued"),
        *("conclusion", "conclusionCode", "presentedForm", "result", "text", "extension"),
    ),
    "DocumentReference": (
        *(*_COMMON, "status", "docStatus", "type", "category", "subject", "date", "description", "content"),
        "relatesTo",
    ),
    "Medication": (*_COMMON, "code", "status", "ingredient"),
    "MedicationRequest": (
        *(*_COMMON, "status", "intent", "doNotPerform", "medicationCodeableConcept", "medicationReference"),
        *("subject", "authoredOn", "dosageInstruction", "contained"),
    ),
    "MedicationStatement": (
        *(*_COMMON, "status", "medicationCodeableConcept", "medicationReference", "subject", "effectiveDateTime"),
        *("effectivePeriod", "dateAsserted", "dosage", "contained"),
    ),
    "MedicationAdministration": (
        *(*_COMMON, "status", "medicationCodeableConcept", "medicationReference", "subject", "effectiveDateTime"),
        *("effectivePeriod", "dosage", "contained"),
    ),
    "AllergyIntolerance": (
        *(*_COMMON, "clinicalStatus", "verificationStatus", "category", "criticality", "code", "patient"),
        *("onsetDateTime", "recordedDate", "lastOccurrence", "reaction"),
    ),
    "Encounter": (*_COMMON, "status", "class", "type", "subject", "period"),
    "Procedure": (*_COMMON, "status", "code", "subject", "performedDateTime", "performedPeriod"),
    "Immunization": (*_COMMON, "status", "vaccineCode", "patient", "occurrenceDateTime", "occurrenceString"),
    "CarePlan": (
        *(*_COMMON, "status", "intent", "title", "category", "description", "subject", "period", "created"),
        "activity",
    ),
}

#: Types whose results may stand inside them instead of beside them.
HOLD_RESULTS = frozenset(("DiagnosticReport", "Observation"))

#: Where a mistake costs the resource. A mistake in any other field costs that field alone, and is counted.
CORE: dict[str, frozenset[str]] = {
    "Patient": frozenset(("id", "identifier", "name")),
    "Condition": frozenset(("clinicalStatus", "verificationStatus", "code", "subject")),
    "Observation": frozenset(
        (
            "status",
            "code",
            "subject",
            "focus",
            "component",
            "dataAbsentReason",
            "valueQuantity",
            "valueCodeableConcept",
            "valueString",
            "valueBoolean",
            "valueInteger",
            "valueRange",
            "valueRatio",
            "valueSampledData",
            "valueTime",
            "valueDateTime",
            "valuePeriod",
        )
    ),
    "DiagnosticReport": frozenset(("status", "code", "subject", "conclusion")),
    "DocumentReference": frozenset(("status", "subject", "content")),
    "Medication": frozenset(("code",)),
    "MedicationRequest": frozenset(
        ("status", "intent", "doNotPerform", "medicationCodeableConcept", "medicationReference", "subject", "contained")
    ),
    "MedicationStatement": frozenset(
        ("status", "medicationCodeableConcept", "medicationReference", "subject", "contained")
    ),
    "MedicationAdministration": frozenset(
        ("status", "medicationCodeableConcept", "medicationReference", "subject", "contained")
    ),
    "AllergyIntolerance": frozenset(("clinicalStatus", "verificationStatus", "code", "patient")),
    "Encounter": frozenset(("status", "subject")),
    "Procedure": frozenset(("status", "code", "subject")),
    "Immunization": frozenset(("status", "vaccineCode", "patient")),
    "CarePlan": frozenset(("status", "intent", "subject")),
}

#: The statuses of each type that are taken. "entered-in-error" is handled before: it retracts.
#: A status in neither table is skipped as "status not understood".
TAKEN: dict[str, frozenset[str]] = {
    "Observation": frozenset(("registered", "preliminary", "final", "amended", "corrected")),
    "DiagnosticReport": frozenset(
        ("registered", "partial", "preliminary", "final", "amended", "corrected", "appended")
    ),
    "DocumentReference": frozenset(("current",)),
    "MedicationRequest": frozenset(("active", "on-hold", "completed", "stopped", "cancelled", "unknown")),
    "MedicationStatement": frozenset(("active", "on-hold", "completed", "stopped", "intended", "not-taken", "unknown")),
    "MedicationAdministration": frozenset(("in-progress", "on-hold", "completed", "stopped", "unknown")),
    "Encounter": frozenset(("planned", "arrived", "triaged", "in-progress", "onleave", "finished", "unknown")),
    "Procedure": frozenset(("preparation", "in-progress", "on-hold", "stopped", "completed", "unknown")),
    "Immunization": frozenset(("completed",)),
    "CarePlan": frozenset(("draft", "active", "on-hold", "revoked", "completed", "unknown")),
}
LEFT_OUT: dict[str, frozenset[str]] = {
    "Observation": frozenset(("cancelled", "unknown")),
    "DiagnosticReport": frozenset(("cancelled", "unknown")),
    "DocumentReference": frozenset(("superseded",)),
    "MedicationRequest": frozenset(("draft",)),
    "MedicationAdministration": frozenset(("not-done",)),
    "Encounter": frozenset(("cancelled",)),
    "Procedure": frozenset(("not-done",)),
    "Immunization": frozenset(("not-done",)),
}

#: Medicines that the patient takes or may take: "unknown" is among them, as a check too many harms less than
#: one too few.
MEDICATION_ACTIVE = frozenset(("active", "in-progress", "unknown"))
#: Ideas, not prescriptions.
INTENT_LEFT_OUT = frozenset(("proposal", "option"))

CONDITION_ACTIVE = frozenset(("active", "recurrence", "relapse"))
CONDITION_INACTIVE = frozenset(("inactive", "remission", "resolved"))

#: Interpretation codes to the layer's flags, from v3 ObservationInterpretation and HL7 v2 table 0078. "HU" and
#: "LU" are "significantly" high and low, below the critical codes. A positive or resistant finding is abnormal.
FLAGS: dict[str, Flag] = {
    "H": "H",
    "HU": "H",
    "H>": "H",
    "HX": "H",
    ">": "H",
    "L": "L",
    "LU": "L",
    "L<": "L",
    "LX": "L",
    "<": "L",
    "HH": "HH",
    "LL": "LL",
    "A": "A",
    "AA": "A",
    "POS": "A",
    "DET": "A",
    "RR": "A",
    "WR": "A",
    "R": "A",
}
#: The same from text, where there is no code.
FLAG_TEXTS: dict[str, Flag] = {
    "high": "H",
    "low": "L",
    "critical high": "HH",
    "critically high": "HH",
    "panic high": "HH",
    "critical low": "LL",
    "critically low": "LL",
    "panic low": "LL",
    "abnormal": "A",
    "critical abnormal": "A",
    "critically abnormal": "A",
    "positive": "A",
    "elevado": "H",
    "alto": "H",
    "baixo": "L",
    "crítico alto": "HH",
    "crítico baixo": "LL",
    "anormal": "A",
    "positivo": "A",
}
#: Of several interpretations the gravest stands.
FLAG_RANK: dict[str, int] = {"": 0, "A": 1, "L": 2, "H": 2, "LL": 3, "HH": 3}

#: LOINC codes of the vital signs profile and its usual companions: preferred where an observation has several.
VITALS = frozenset(
    (
        "8867-4",
        "9279-1",
        "2708-6",
        "59408-5",
        "8310-5",
        "8480-6",
        "8462-4",
        "8302-2",
        "29463-7",
        "39156-5",
        "85354-9",
        "80288-4",
        "9269-2",
        "3150-6",
        "3151-8",
    )
)

#: LOINC codes of ECG reports: study, impression (code and narrative), 12-lead panel.
ECG_CODES = frozenset(("11524-6", "8601-7", "18844-1", "34534-8"))
ECG_TITLE = re.compile(r"\b(?:ecg|ekg|electro\s?cardiogra\w*|eletro\s?cardiogra\w*)\b", re.IGNORECASE)
IMAGING_CATEGORIES = frozenset(
    ("RAD", "RX", "CT", "NMR", "NMS", "CUS", "VUS", "RUS", "OUS", "XRC", "LP29684-5", "imaging", "394914008")
)
IMAGING_TITLE = re.compile(
    r"\b(?:x-?ray|radiogra\w*|ultraso\w*|echocardiogra\w*|ecocardiogra\w*|ecografia|tomogra\w*|mri|ct|angiogra\w*"
    r"|resson[âa]ncia|mammogra\w*|mamografia|scintigra\w*|cintigrafia)\b",
    re.IGNORECASE,
)
LAB_CATEGORIES = frozenset(
    ("LAB", "HM", "CH", "MB", "BLB", "SR", "TX", "VR", "IMM", "LP29693-6", "laboratory", "15220000")
)

#: "No known ..." by SNOMED CT, the International Patient Summary's absent-unknown codes and v2. The value says
#: what it covers. Only "allergy" and "drug allergy" set ``allergy_status``: drugs are what is checked against it.
NO_KNOWN: dict[str, str] = {
    "716186003": "allergy",
    "160244002": "allergy",
    "no-known-allergies": "allergy",
    "409137002": "drug allergy",
    "no-known-medication-allergies": "drug allergy",
    "429625007": "food allergy",
    "no-known-food-allergies": "food allergy",
    "428607008": "environmental allergy",
    "no-known-environmental-allergies": "environmental allergy",
    "428197003": "insect allergy",
    "716184000": "latex allergy",
    "1003774007": "latex allergy",
    "716220001": "animal allergy",
}
#: The same where the source gives only text, compared without case and final stop.
NO_KNOWN_TEXTS: dict[str, str] = {
    "no known allergies": "allergy",
    "no known allergy": "allergy",
    "no allergies known": "allergy",
    "nka": "allergy",
    "sem alergias conhecidas": "allergy",
    "sem alergias": "allergy",
    "nega alergias": "allergy",
    "desconhece alergias": "allergy",
    "nkda": "drug allergy",
    "no known drug allergies": "drug allergy",
    "no known drug allergy": "drug allergy",
    "no known medication allergies": "drug allergy",
    "sem alergias medicamentosas conhecidas": "drug allergy",
    "nega alergias medicamentosas": "drug allergy",
}
NO_KNOWN_SETS_STATUS = frozenset(("allergy", "drug allergy"))
NO_ALLERGY_INFO = frozenset(("no-allergy-info", "1631000175102"))

PREGNANCY_STATUS = "82810-3"
PREGNANT_ANSWERS = frozenset(("77386006", "LA15173-0"))
NOT_PREGNANT_ANSWERS = frozenset(("60001007", "LA26683-5"))
PREGNANCY_CONDITIONS = frozenset(
    ("77386006", "72892002", "47200007", "58532003", "16356006", "65147003", "34801009", "237238006", "83074005")
)
#: ICD-10 and ICD-10-CM: supervision and weeks of pregnancy, and obstetric chapters before delivery.
PREGNANCY_ICD10 = re.compile(r"(?:Z33(?!\.?2)|Z34|Z35|Z3A|O09|O[1-4]\d)(?:\.|\Z|\w)")
#: 42 weeks and a few days of doubt: after that, an entry that nobody closed proves no present pregnancy.
PREGNANCY_DAYS = 300

ENCOUNTER_CLASSES: dict[str, str] = {
    "AMB": "ambulatory",
    "EMER": "emergency",
    "FLD": "field",
    "HH": "home health",
    "IMP": "inpatient",
    "ACUTE": "inpatient acute",
    "NONAC": "inpatient non-acute",
    "OBSENC": "observation",
    "PRENC": "pre-admission",
    "SS": "short stay",
    "VR": "virtual",
}

MR_SYSTEMS = ("http://terminology.hl7.org/CodeSystem/v2-0203", "http://hl7.org/fhir/v2/0203")

#: HL7 v3 TimingEvent codes in words.
TIMING_EVENTS: dict[str, str] = {
    "MORN": "in the morning",
    "NOON": "at noon",
    "AFT": "in the afternoon",
    "EVE": "in the evening",
    "NIGHT": "at night",
    "HS": "before sleep",
    "WAKE": "after waking",
    "C": "at meals",
    "CM": "at breakfast",
    "CD": "at lunch",
    "CV": "at dinner",
    "AC": "before meals",
    "ACM": "before breakfast",
    "ACD": "before lunch",
    "ACV": "before dinner",
    "PC": "after meals",
    "PCM": "after breakfast",
    "PCD": "after lunch",
    "PCV": "after dinner",
}
PERIOD_UNITS: dict[str, str] = {
    "s": "second",
    "min": "minute",
    "h": "hour",
    "d": "day",
    "wk": "week",
    "mo": "month",
    "a": "year",
}
