"""Questions made from the raw bundles of generated patients; the answers must hold what the bundle says.

The expected values are read from the JSON itself, not from the importer's layers, so that importer, understanding and
choice of facts are tested as one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from chatd.replies.facts import FactsResult, build
from context.fhir import import_files
from context.layers import Layers
from context.library.library import Library
from context.text import fold_line
from tests.clinical_data import clinical_path
from tests.vignettes import layers_of

NOW = datetime(2026, 1, 15, 7, 45, tzinfo=UTC)

#: How doctors ask in Portuguese and in short, by LOINC code.
SHORT_NAMES: dict[str, tuple[str, ...]] = {
    "8302-2": ("Qual a altura?", "height?"),
    "29463-7": ("Qual o último peso?", "last weight"),
    "39156-5": ("IMC?", "What is the BMI?"),
    "718-7": ("Qual a última hemoglobina?", "last Hb?", "What was the most recent haemoglobin?"),
    "4548-4": ("HbA1c?", "última hemoglobina glicada", "What's the latest A1c?"),
    "2093-3": ("colesterol total?", "cholesterol?"),
    "18262-6": ("Qual o colesterol LDL?", "LDL?"),
    "2085-9": ("HDL?",),
    "2571-8": ("triglicéridos?", "latest triglycerides"),
    "6298-4": ("Qual o último potássio?", "K?", "potasium level", "last potassium"),
    "2947-0": ("sódio?", "Na?", "latest sodium"),
    "2069-3": ("cloro?", "chloride"),
    "20565-8": ("bicarbonate?",),
    "49765-1": ("cálcio?", "calcium?"),
    "38483-4": ("Qual a última creatinina?", "creatinine trend", "kidney function?", "função renal"),
    "6299-2": ("ureia?", "BUN?"),
    "33914-3": ("TFG?", "eGFR?", "What is the GFR?"),
    "2339-0": ("glicemia?", "last glucose", "blood sugar?"),
    "14959-1": ("microalbuminuria?", "ACR?"),
    "6690-2": ("leucócitos?", "white cell count?", "hemograma"),
    "777-3": ("plaquetas?", "platelets?"),
    "789-8": ("eritrócitos?", "red cell count"),
    "4544-3": ("hematócrito?", "Hct?"),
    "787-2": ("MCV?", "VGM?"),
    "1742-6": ("ALT?", "liver function", "provas hepáticas"),
    "1920-8": ("AST?",),
    "6768-6": ("fosfatase alcalina?", "alk phos?"),
    "1975-2": ("bilirrubina?", "bilirubin?"),
    "1751-7": ("albumina?", "albumin?"),
    "2857-1": ("PSA?",),
    "33762-6": ("NT-proBNP?",),
    "10230-1": ("fração de ejeção?", "ejection fraction?", "LVEF?"),
    "72514-3": ("pain score?", "escala de dor"),
    "8331-1": ("temperatura?", "last temperature"),
    "72166-2": ("É fumador?", "Does he smoke?", "smoking status"),
    "8480-6": ("tensão arterial?", "blood pressure?", "What's the last BP?", "pressão arterial sistólica"),
    "8462-4": ("tensão arterial?", "blood pressure", "diastolic pressure?"),
}


def _bundles() -> list[Path]:
    return sorted(clinical_path("fhir", "synthea_r4_2021").glob("*.json"))


@lru_cache(maxsize=1)
def _library() -> Library:
    return Library.load()


def _resources(path: Path, kind: str) -> list[dict[str, Any]]:
    bundle = json.loads(path.read_text(encoding="utf-8"))
    return [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == kind]


def _layers(path: Path) -> Layers:
    (imported,) = import_files([path], department="cardiology", now=NOW)
    return layers_of(imported.layer, "cardiology", now=NOW)


def _name(concept: dict[str, Any]) -> str:
    return str(concept.get("text") or concept["coding"][0]["display"])


def _plain(name: str) -> str:
    """A name without the invisible breaks that some of the bundles have in it."""
    return name.replace("\u200b", "")


def _ask(layers: Layers, question: str) -> FactsResult:
    return build(layers, question, library=_library(), now=NOW)


def _seen(facts: FactsResult) -> str:
    return "\n".join(fold_line(f"{fact.name} {fact.text}") for fact in facts.facts)


def _last_values(path: Path) -> Iterator[tuple[str, str, Any, str | None]]:
    """(name, code, value, unit) of the latest observation of each name; components count by themselves."""
    latest: dict[str, tuple[str, str, Any, str | None]] = {}

    def take(name: str, code: str, at: str, node: dict[str, Any]) -> None:
        value: Any = None
        unit = None
        if "valueQuantity" in node:
            value, unit = node["valueQuantity"]["value"], node["valueQuantity"].get("unit")
        elif "valueCodeableConcept" in node:
            value = _name(node["valueCodeableConcept"])
        if value is not None and (name not in latest or latest[name][0] < at):
            latest[name] = (at, code, value, unit)

    for resource in _resources(path, "Observation"):
        at = datetime.fromisoformat(resource["effectiveDateTime"]).astimezone(UTC).isoformat()
        take(_plain(_name(resource["code"])), resource["code"]["coding"][0]["code"], at, resource)
        for component in resource.get("component", ()):
            take(_plain(_name(component["code"])), component["code"]["coding"][0]["code"], at, component)
    for name, (_, code, value, unit) in sorted(latest.items()):
        yield name, code, value, unit


def _has_value(facts: FactsResult, value: Any) -> bool:
    if isinstance(value, str):
        return fold_line(value) in _seen(facts)
    return any(isinstance(f.value, int | float) and abs(float(f.value) - value) < 1e-9 for f in facts.facts)


@pytest.mark.parametrize("number", range(11))
def test_record_questions_every_bundle_is_answered_from_the_record(number: int) -> None:
    """Lists and the last value of every result of each bundle are found, asked in both languages."""
    path = _bundles()[number]
    layers = _layers(path)
    failed: list[str] = []
    asked = 0

    def expect(question: str, names: list[str]) -> None:
        nonlocal asked
        asked += 1
        seen = _seen(_ask(layers, question))
        failed.extend(f"{question} -> {name}" for name in names if fold_line(_plain(name)) not in seen)

    conditions = [_name(r["code"]) for r in _resources(path, "Condition")]
    medicines = [
        _name(r["medicationCodeableConcept"])
        for r in _resources(path, "MedicationRequest")
        if "medicationCodeableConcept" in r
    ]
    allergies = [_name(r["code"]) for r in _resources(path, "AllergyIntolerance")]
    for question in (
        "What conditions does the patient have?",
        "Que doenças tem este doente?",
        "Antecedentes pessoais?",
        "List all diagnoses",
    ):
        expect(question, conditions)
    for question in (
        "Which medicines does the patient take?",
        "Que medicação toma?",
        "current medications",
        "What is he on?",
    ):
        expect(question, medicines)
    for question in ("Any allergies?", "Alergias?", "What is the last potassium?", "ECG?", "Que medicação toma?"):
        expect(question, allergies)
    expect("Which procedures were done?", [_name(r["code"]) for r in _resources(path, "Procedure")])
    expect("Que vacinas tem?", [_name(r["vaccineCode"]) for r in _resources(path, "Immunization")])
    expect("What encounters were there?", [_name(r["type"][0]) for r in _resources(path, "Encounter")])
    expect("Any care plans?", [_name(r["category"][0]) for r in _resources(path, "CarePlan")])
    for name, code, value, _unit in _last_values(path):
        questions = [f"What is the last {name}?"]
        if number % 3 == 0:  # every form on a third of the bundles: the names are the same in all of them
            questions += [f"Qual foi o último valor de {name}?", *SHORT_NAMES.get(code, ())]
        for question in questions:
            asked += 1
            if not _has_value(_ask(layers, question), value):
                failed.append(f"{question} -> {value}")
    assert asked > 30
    assert failed == []


def test_last_value_is_newest_and_not_another_results() -> None:
    """The first fact that answers "last X" is X itself at its newest time, not a result with a similar name."""
    path = _bundles()[0]
    layers = _layers(path)
    wrong = []
    for name, code, value, _unit in _last_values(path):
        facts = _ask(layers, f"What is the last {name}?")
        answers = [facts.facts[n] for n in facts.asked if facts.facts[n].kind == "value"]
        first = answers[0] if answers else None
        if first is None or fold_line(_plain(first.name)) != fold_line(name):
            wrong.append((name, code, value, None if first is None else first.name))
    assert wrong == []
