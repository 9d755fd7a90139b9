# ruff: noqa: E501 - a case stands on one line
"""More vignettes, English and Portuguese: siblings of the known ones, negations, children, pregnancy, death, doubt."""

from __future__ import annotations

from typing import Any

import pytest

from chatd.replies.answer import respond
from chatd.replies.facts import FactsResult, build
from context.library.library import Library
from protocols.frames import AiResponse
from tests.vignettes import NOW, layers_of, patient_of

LIBRARY = Library.load()


def _vitals(**changed: Any) -> dict[str, Any]:
    normal = {
        "rr": 16,
        "spo2": 97,
        "o2": False,
        "sbp": 124,
        "dbp": 76,
        "hr": 80,
        "acvpu": "A",
        "temp": 36.8,
        "scale": 1,
    }
    return {**normal, **changed}


def _lab(name: str, value: float, unit: str, flag: str = "") -> dict[str, Any]:
    return {"name": name, "value": value, "unit": unit, "flag": flag}


def _row(department: str, question: str, **more: Any) -> dict[str, Any]:
    person = {"name": "Rita Lopes", "age": more.pop("age", 60), "sex": more.pop("sex", "F"), "record": "9001"}
    return {
        "department": department,
        "question": question,
        "patient": person,
        "vitals": more.pop("vitals", _vitals()),
        **more,
    }


def _ask(row: dict[str, Any], lang: str = "") -> tuple[FactsResult, AiResponse]:
    layers = layers_of(patient_of(row), row["department"])
    facts = build(layers, row["question"], library=LIBRARY, now=NOW, lang=lang)
    return facts, respond(facts, layers, response_id="resp_case", now=NOW)


SHOCKED = _vitals(rr=28, spo2=89, sbp=78, dbp=40, hr=134)
SEPTIC = _vitals(rr=26, spo2=92, sbp=88, dbp=50, hr=122, acvpu="C", temp=39.2)

#: (row, protocols that must be quoted, actions that must be offered, whether it is escalated or None for either)
CASES: list[tuple[dict[str, Any], set[str], set[str], bool | None]] = [
    (_row("emergency", "Chest pain 40 min, ST elevation II III aVF"), {"stemi"}, {"activate_stemi"}, True),
    (_row("emergency", "Dor torácica há 1 hora, supra de ST V1-V4"), {"stemi"}, {"activate_stemi"}, True),
    (_row("cardiology", "Anterior STEMI, cath lab now?"), {"stemi"}, {"schedule_cath_lab"}, True),
    (_row("emergency", "Right arm weakness and speech difficulty since 07:10"), {"stroke"}, {"activate_stroke_team", "order_ct_head"}, True),
    (_row("emergency", "Boca ao lado e fraqueza do braço esquerdo desde as 7h"), {"stroke"}, {"activate_stroke_team", "order_ct_head"}, True),
    (_row("emergency", "Fever 39.2, confused, lactate 4.1, sepsis?", vitals=SEPTIC, labs=[_lab("Lactate", 4.1, "mmol/L", "HH")]),
     {"sepsis"}, {"activate_sepsis_bundle", "order_blood_cultures", "order_lactate"}, True),
    (_row("emergency", "Febre 39, hipotensa, sépsis urinária", vitals=SEPTIC), {"sepsis"}, {"activate_sepsis_bundle", "order_blood_cultures", "order_lactate"}, True),
    (_row("emergency", "Bee sting, hives, stridor, BP 78/40", vitals=SHOCKED), {"anaphylaxis"}, {"call_resus_team", "record_allergy_draft"}, True),
    (_row("emergency", "Anafilaxia após amoxicilina, estridor", vitals=SHOCKED), {"anaphylaxis"}, {"call_resus_team", "record_allergy_draft"}, True),
    (_row("surgery", "Post-op day 1, Hb 6.8, drain 600 mL", labs=[_lab("Hemoglobin", 6.8, "g/dL", "LL")]),
     set(), {"order_crossmatch", "notify_surgeon"}, True),
    (_row("surgery", "Pós-operatório, hemoglobina 6,5 e a sangrar pelo dreno", labs=[_lab("Hemoglobina", 6.5, "g/dL", "LL")]),
     set(), {"order_crossmatch", "notify_surgeon"}, True),
    (_row("cardiology", "AF, apixaban dose with creatinine 1.8?", age=82, problems=["Atrial fibrillation"], labs=[_lab("Creatinine", 1.8, "mg/dL", "H")]),
     {"af"}, {"calculate_renal_dose", "consult_pharmacy"}, False),
    (_row("cardiology", "Fibrilhação auricular: dose de apixabano com insuficiência renal?", age=82), {"af"}, {"calculate_renal_dose", "consult_pharmacy"}, None),
    (_row("icu", "Ready for weaning? FiO2 0.35, PEEP 5, RASS -1"), {"vent"}, {"spontaneous_breathing_trial", "order_abg"}, None),
    (_row("icu", "PAM 52 com noradrenalina 0.4"), {"vasopressors"}, {"order_vasopressin", "order_lactate"}, True),
    (_row("icu", "Hipoglicemia 38, sonolenta", labs=[_lab("Glucose", 38, "mg/dL", "LL")]), {"glucose"}, {"order_glucose_recheck"}, True),
    (_row("icu", "Platelets 38 falling on heparin day 7, HIT?", labs=[_lab("Platelets", 38, "10*9/L", "L")]), {"vte"}, {"consult_haematology"}, None),
    (_row("icu", "Agitated RASS +3, which sedation?"), {"sedation"}, {"adjust_sedation_target"}, None),
    (_row("surgery", "VTE prophylaxis after hip replacement?"), {"vte"}, {"vte_risk_form"}, False),
    (_row("surgery", "Risco de tromboembolismo venoso, que profilaxia?"), {"vte"}, {"vte_risk_form"}, None),
    (_row("surgery", "COPD post-op, SpO2 84, drowsy on 15 L oxygen", problems=["COPD"], vitals=_vitals(rr=30, spo2=84, o2=True, hr=118, acvpu="V", scale=2)),
     {"oxygen"}, {"notify_icu"}, True),
    (_row("surgery", "Sign in before appendicectomy"), {"preop"}, {"open_sign_in_checklist"}, False),
    (_row("surgery", "Antibiotic prophylaxis, allergic to penicillin, cefazolin ok?", allergies=["penicillin (rash)"]), {"preop"}, {"consult_pharmacy"}, None),
    (_row("emergency", "AKI, K 6.6, anuric, dialysis?", labs=[_lab("Potassium", 6.6, "mmol/L", "HH")]), {"hyperkalaemia"}, {"consult_nephrology"}, True),
    (_row("emergency", "Hipercaliemia 6,8 com alterações no ECG", labs=[_lab("Potássio", 6.8, "mmol/L", "HH")]), {"hyperkalaemia"}, {"consult_nephrology"}, True),
    (_row("emergency", "Paragem cardiorrespiratória, FV"), {"cardiac_arrest"}, {"call_resus_team"}, True),
    (_row("emergency", "DKA: glucose 480, ketones 5.2, pH 7.12", labs=[_lab("Glucose", 480, "mg/dL", "HH"), _lab("pH", 7.12, "", "LL")]), {"glucose"}, {"order_abg"}, True),
    (_row("emergency", "Hematemese, TA 82/40, FC 130", vitals=_vitals(rr=24, sbp=82, dbp=40, hr=130)), set(), {"activate_massive_transfusion"}, True),
    (_row("cardiology", "NSTEMI, troponin rising, when angiography?"), {"nste_acs"}, {"schedule_cath_lab", "order_troponin"}, None),
    (_row("cardiology", "Torsades, QTc 560, Mg 1.2", labs=[_lab("Magnesium", 1.2, "mg/dL", "L")]), {"qtc"}, {"order_ecg", "order_electrolytes"}, None),
    (_row("cardiology", "Edema agudo do pulmão, dose de furosemida?", vitals=_vitals(rr=30, spo2=86, o2=True, hr=120)), {"heart_failure"}, {"order_chest_xray", "notify_icu"}, True),
    (_row("cardiology", "New murmur day 3 after MI, pulmonary oedema"), set(), {"order_echo"}, None),
    (_row("emergency", "Atropelamento, GCS 6, TA 80/40", vitals=_vitals(rr=28, spo2=90, o2=True, sbp=80, dbp=40, hr=136, acvpu="P")),
     {"trauma"}, {"activate_trauma_team", "activate_massive_transfusion"}, True),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case[0]["question"][:40] for case in CASES])
def test_case_protocols_actions_and_escalation(case: tuple[dict[str, Any], set[str], set[str], bool | None]) -> None:
    """The case's protocols are quoted, its actions offered, and it is escalated as it should be."""
    row, protocols, actions, escalated = case
    facts, answer = _ask(row)
    assert protocols <= {quote.id for quote in facts.protocols}
    assert actions <= {action.catalog_id for action in answer.content.structured_data.actions}
    if escalated is not None:
        assert bool(facts.red_flags) == escalated


@pytest.mark.parametrize(
    "question",
    ["Onde fica a cantina?", "Hello!", "Where can I park?", "Obrigado", "What is the wifi password?", "Tell me a joke", "Quem ganhou o jogo de futebol?"],
)  # fmt: skip
def test_off_topic_gets_a_sentence_and_nothing_of_the_patient(question: str) -> None:
    """What no record answers is answered in one sentence, without facts, protocols or actions."""
    facts, answer = _ask(_row("emergency", question, allergies=["penicillin"]))
    assert answer.response_type == "out_of_scope"
    assert facts.facts == ()
    assert answer.content.structured_data.actions == ()
    assert "Rita" not in answer.content.text


@pytest.mark.parametrize(
    "question",
    ["No chest pain, no fever. What is the plan?", "Nega dor torácica, sem febre", "No fever, cough or chest pain"],
)
def test_denied_symptoms_raise_nothing(question: str) -> None:
    """What the question denies is neither escalated nor acted upon."""
    facts, answer = _ask(_row("emergency", question))
    assert facts.red_flags == ()
    offered = {action.catalog_id for action in answer.content.structured_data.actions}
    assert not offered & {"activate_stemi", "activate_sepsis_bundle"}


def test_child_scores_are_not_validated() -> None:
    """Under 16 no NEWS2 is calculated, and the answer says that it is not validated here."""
    facts, answer = _ask(_row("emergency", "Summary please", age=9))
    assert [score.value for score in facts.scores] == [None]
    assert "not validated here" in answer.content.text


def test_pregnancy_scores_are_not_validated_in_portuguese() -> None:
    """In pregnancy no NEWS2 is calculated, the pregnancy is told, and the answer says why."""
    facts, answer = _ask(_row("emergency", "Resumo do caso", age=29, pregnant=True))
    assert [score.value for score in facts.scores] == [None]
    assert "não validado aqui" in answer.content.text
    assert any("Gravidez registada" in fact.text for fact in facts.facts)


def test_unknown_allergies_are_never_no_allergies() -> None:
    """Not recorded and none known are two sentences, and the first asks to find out."""
    unknown, _ = _ask(_row("surgery", "Any allergies?", allergy_status="not_recorded"))
    none, _ = _ask(_row("surgery", "Any allergies?", allergy_status="none_known"))
    assert [fact.text for fact in none.facts if fact.kind == "allergy"] == ["No known allergies (recorded)"]
    (told,) = [fact.text for fact in unknown.facts if fact.kind == "allergy"]
    assert told.startswith("Allergies not recorded")
    assert "allergies are not recorded: ask before giving anything" in unknown.missing


def test_question_naming_another_patient_is_warned() -> None:
    """A question that names somebody else is answered about the open record, with a warning; the own name warns not."""
    other, _ = _ask(_row("cardiology", "What is Manuel Fonseca's potassium?"))
    own, _ = _ask(_row("cardiology", "What is Rita Lopes' potassium?"))
    assert "identity.name" in [check.id for check in other.checks]
    assert "identity.name" not in [check.id for check in own.checks]


def test_missing_says_what_a_dose_needs() -> None:
    """A dose by weight says that weight and kidney function are not in the record."""
    facts, _ = _ask(_row("icu", "Enoxaparin dose?"))
    assert any("no weight in the record" in text for text in facts.missing)
    assert any("kidney function is unknown" in text for text in facts.missing)


def test_value_of_the_question_is_never_taken_for_the_records() -> None:
    """A number that only the question has does not become a fact."""
    facts, answer = _ask(_row("emergency", "Potassium 7.3, what to do?", labs=[_lab("Potassium", 4.1, "mmol/L")]))
    values = [fact.value for fact in facts.facts if fact.name == "Potassium"]
    assert values == [4.1]
    assert "7.3" not in " ".join(answer.content.structured_data.findings)
