"""The demo hospital's first story, João Silva's ECG in English and Portuguese, and the rules of its other patients."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import msgspec
import pytest

from chatd.actions.catalogue import catalogue_of
from chatd.demo import load
from chatd.replies.answer import respond
from chatd.replies.facts import FactsResult, build
from context.fhir import import_files
from context.layers import Layers, SessionLayer
from context.library.library import Library
from protocols.frames import AiResponse

NOW = datetime(2026, 1, 15, 7, 45, 20, 114000, tzinfo=UTC)


@cache
def _library() -> Library:
    return Library.load()


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Layers]:
    """The layers of every demo patient by record number, as a doctor of the patient's department sees them."""
    demo = load(NOW)
    folder = tmp_path_factory.mktemp("demo")
    found = {}
    for number, (department, bundle) in enumerate(demo.bundles):
        path = Path(folder) / f"{number}.json"
        path.write_text(json.dumps(bundle), encoding="utf-8")
        (imported,) = import_files([path], department=department, now=NOW)
        found[imported.layer.patient_id] = Layers(
            hospital=demo.hospital,
            department=next(row for row in demo.departments if row.department_id == department),
            doctor=demo.doctors[0],
            patient=imported.layer,
            session=SessionLayer(session_id="sess_1", as_of=NOW),
        )
    return found


def _ask(layers: Layers, question: str, lang: str = "") -> tuple[FactsResult, AiResponse]:
    facts = build(layers, question, library=_library(), now=NOW, lang=lang)
    return facts, respond(facts, layers, response_id="resp_xyz789", now=NOW, client_msg_id="c-1")


@pytest.mark.parametrize(
    ("question", "lang", "tracing"),
    [
        ("Analyze João Silva's ECG results", "", "the ECG tracing itself is not available"),
        ("Analyze João Silva's ECG results", "en", "the ECG tracing itself is not available"),
        ("Analisa o ECG do João Silva", "", "o traçado de ECG em si não está disponível"),
        ("Analise os resultados do ECG do João Silva", "pt-PT", "o traçado de ECG em si não está disponível"),
    ],
)
def test_joao_silva_ecg_question(hospital: dict[str, Layers], question: str, lang: str, tracing: str) -> None:
    """Troponin with its time, the report's findings, the allergy, the quoted protocol, the gap, cardiology's chips."""
    layers = hospital["7823"]
    facts, answer = _ask(layers, question, lang)
    data = answer.content.structured_data
    text = answer.content.text
    assert "45 ng/mL" in text
    assert "06:10" in text
    for finding in ("ST elevation V2-V6", "nterior Q waves", "oor R-wave progression"):
        assert any(finding in line for line in data.findings)
    assert any(fact.kind == "allergy" and "enicillin" in fact.text for fact in facts.facts)
    stemi = [quote for quote in facts.protocols if quote.id == "stemi"]
    assert stemi
    assert stemi[0].year == 2025
    assert any("2025" in line and "PCI" in line for line in data.recommendations)
    assert tracing in facts.missing
    assert tracing in data.missing
    assert data.actions[0].catalog_id == "schedule_cath_lab"
    assert {a.catalog_id for a in data.actions} <= {a.id for a in catalogue_of("cardiology")}
    assert data.quick_actions == tuple(action.label for action in data.actions)
    assert len(data.headline) <= 140
    assert data.headline.startswith("João Silva: ")
    assert (answer.status, answer.model, answer.confidence, answer.confidence_basis) == (
        "completed",
        None,
        None,
        "none",
    )


def test_joao_silva_citations_resolve(hospital: dict[str, Layers]) -> None:
    """Every mark has a citation, every chart citation is in the record, every protocol citation quotes the library."""
    layers = hospital["7823"]
    assert layers.patient is not None
    _, answer = _ask(layers, "Analyze João Silva's ECG results", "en")
    data = answer.content.structured_data
    record = msgspec.json.encode(layers.patient).decode()
    assert [row.n for row in data.citations] == list(range(1, len(data.citations) + 1))
    lines = (*data.findings, *data.recommendations)
    marks = {int(number) for line in lines for number in re.findall(r" \[(\d+)\]", line)}
    assert marks == {row.n for row in data.citations}
    for row in data.citations:
        if row.kind == "chart":
            assert f'"{row.ref}"' in record or row.ref == f"Patient/{layers.patient.patient_id}"
        else:
            id_, _, section = row.ref.partition("#")
            assert row.quote == _library().get(id_).section(section).text


def test_joao_silva_actions_are_bound_and_expire(hospital: dict[str, Layers]) -> None:
    """Each proposal has an id of its own, this patient, the context's hash and 15 minutes; made again it is equal."""
    facts, answer = _ask(hospital["7823"], "Analyze João Silva's ECG results")
    actions = answer.content.structured_data.actions
    assert len({action.action_id for action in actions}) == len(actions)
    _, again = _ask(hospital["7823"], "Analyze João Silva's ECG results")
    assert again.content.structured_data.actions == actions
    for action in actions:
        assert action.bound.patient_id == "7823"
        assert action.bound.context == facts.context.hash
        assert action.expires_at == "2026-01-15T08:00:20.114Z"
        assert action.intent == "proposal"


def test_same_name_other_patient_is_not_mixed(hospital: dict[str, Layers]) -> None:
    """The other João Silva's answer has nothing of the first one's record."""
    other = hospital["1044"]
    _, answer = _ask(other, "Analyze João Silva's ECG results", "en")
    assert "7823" not in answer.content.text
    assert "45 ng/mL" not in answer.content.text


def test_degraded_when_an_engine_is_configured(hospital: dict[str, Layers]) -> None:
    """With an engine that could not answer the status is degraded and the notice says so; the content is the same."""
    layers = hospital["7823"]
    facts = build(layers, "Last potassium?", library=_library(), now=NOW)
    plain = respond(facts, layers, response_id="resp_1", now=NOW)
    degraded = respond(facts, layers, response_id="resp_1", now=NOW, model_configured=True)
    assert (plain.status, degraded.status) == ("completed", "degraded")
    assert degraded.content.structured_data == plain.content.structured_data
    assert degraded.notice != plain.notice


def test_every_demo_patient_keeps_the_promises(hospital: dict[str, Layers]) -> None:
    """For every demo patient: all allergies, valid frames, the same bytes twice, nobody else in the answer."""
    names = {id_: layers.patient.name for id_, layers in hospital.items() if layers.patient is not None}
    for id_, layers in hospital.items():
        assert layers.patient is not None
        for question in ("Summary", "O que devo fazer?", "Alergias?", "Que medicação toma?", "ECG", "NEWS2?"):
            facts, answer = _ask(layers, question)
            again, answered_again = _ask(layers, question)
            frame = facts.frame(response_id="r", client_msg_id="c")
            assert msgspec.json.encode(frame) == msgspec.json.encode(again.frame(response_id="r", client_msg_id="c"))
            assert msgspec.json.encode(answer) == msgspec.json.encode(answered_again)
            told = {fact.name for fact in facts.facts if fact.kind == "allergy"}
            assert {allergy.name for allergy in layers.patient.allergies} <= told
            others = {name for other, name in names.items() if other != id_ and name != layers.patient.name}
            text = msgspec.json.encode(answer).decode()
            assert not [name for name in others if name in text]
            if layers.patient.deceased:
                assert "DECEASED" in facts.facts[0].text or "FALECIDO" in facts.facts[0].text
                assert answer.content.structured_data.actions == ()
