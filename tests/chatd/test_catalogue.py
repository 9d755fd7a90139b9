"""The catalogue of quick actions: what each department has, and how actions are ranked."""

from __future__ import annotations

import json
from importlib import resources

import msgspec
import pytest

from chatd.actions.catalogue import MAX_ACTIONS, catalogue_of, departments, rank
from chatd.actions.drafts import DRAFTABLE
from chatd.replies.facts import FactsResult
from chatd.replies.question import understand
from chatd.safety.analytes import ANALYTES
from chatd.safety.presentation_table import RULES
from context.layers import Action
from context.library.library import Library
from protocols.frames import Check, ContextInfo, ProtocolQuote
from tests.vignettes import NOW

#: What each department starts with.
EXPECTED = {
    "cardiology": "schedule_cath_lab order_ecg order_troponin order_echo order_electrolytes calculate_renal_dose "
    "order_chest_xray notify_icu consult_pharmacy",
    "emergency": "activate_stemi activate_stroke_team activate_sepsis_bundle activate_trauma_team "
    "activate_massive_transfusion call_resus_team order_ct_head order_blood_cultures order_lactate order_abg "
    "notify_icu consult_nephrology record_allergy_draft",
    "surgery": "open_sign_in_checklist order_crossmatch notify_surgeon vte_risk_form consult_pharmacy notify_icu",
    "icu": "adjust_sedation_target spontaneous_awakening_trial spontaneous_breathing_trial order_abg order_lactate "
    "order_vasopressin order_glucose_recheck consult_haematology call_resus_team",
}


def _facts(question: str, **known: object) -> FactsResult:
    read = understand(question, lang_hint="en")
    empty = FactsResult(question=read, lang="en", now=NOW, patient_id="1", context=ContextInfo(hash="h-1"))
    return msgspec.structs.replace(empty, **known)


def _quote(id_: str) -> ProtocolQuote:
    return ProtocolQuote(id=id_, title=id_, section="s", quote="q", source="s")


def _ranked(department: str, question: str, **known: object) -> list[str]:
    facts = _facts(question, **known)
    return [action.id for action in rank(catalogue_of(department), facts.question, facts)]


@pytest.mark.parametrize("department", sorted(EXPECTED))
def test_catalogue_has_the_departments_actions(department: str) -> None:
    """Each department has its actions, in their order, with labels in both languages."""
    actions = catalogue_of(department)
    assert [action.id for action in actions] == EXPECTED[department].split()
    assert all(action.label and action.label_pt for action in actions)


def test_catalogue_of_unknown_department_is_empty() -> None:
    """An unknown department has no actions rather than another one's."""
    assert catalogue_of("dermatology") == ()
    assert sorted(departments()) == sorted(EXPECTED)


def test_catalogue_names_only_what_exists() -> None:
    """Protocols, signals and drafts of the file exist, and every action belongs to a department."""
    raw = json.loads(resources.files("chatd.actions").joinpath("catalogue.json").read_text(encoding="utf-8"))
    protocols = set(Library.load().ids())
    signals = {f"critical.{analyte.id}" for analyte in ANALYTES} | {f"emergency.{rule.id}" for rule in RULES}
    signals |= {"news2.high", "news2.medium", "news2.single"}
    used = {id_ for ids in raw["departments"].values() for id_ in ids}
    assert used == set(raw["actions"])
    for id_, row in raw["actions"].items():
        assert set(row["protocols"]) <= protocols, id_
        assert set(row["signals"]) <= signals, id_
        assert row["fhir"] in DRAFTABLE, id_
        assert len(row["label"]) <= 60


def test_catalogue_risk_of_what_moves_people_or_drugs_is_not_none() -> None:
    """Team calls, bookings and medicines need a confirmation; opening a form does not."""
    for department in EXPECTED:
        for action in catalogue_of(department):
            if action.fhir in (
                "CommunicationRequest",
                "Appointment",
                "MedicationRequest",
                "ServiceRequest",
                "AllergyIntolerance",
            ):
                assert action.risk != "none", action.id
    risks = {action.id: action.risk for department in EXPECTED for action in catalogue_of(department)}
    assert risks["open_sign_in_checklist"] == risks["vte_risk_form"] == "none"
    assert risks["order_crossmatch"] == "confirm_id"


def test_rank_offers_nothing_out_of_scope_or_for_the_dead() -> None:
    """Neither the cafeteria nor a deceased patient gets actions."""
    assert _ranked("emergency", "What is the cafeteria menu?") == []
    assert _ranked("emergency", "stroke, CT head?", protocols=(_quote("stroke"),), deceased=True) == []


def test_rank_a_lookup_offers_nothing() -> None:
    """Asking for a value does not propose to order it."""
    assert _ranked("cardiology", "What was the last potassium?") == []
    assert _ranked("surgery", "Que medicação toma?") == []


def test_rank_an_explicit_wish_offers_it() -> None:
    """Asking for the act itself offers it, in both languages."""
    assert _ranked("icu", "Order a lactate")[0] == "order_lactate"
    assert _ranked("cardiology", "Pedir ECG")[0] == "order_ecg"
    assert _ranked("surgery", "avisar o cirurgião")[0] == "notify_surgeon"


def test_rank_a_fresh_result_lowers_its_order() -> None:
    """An ECG of this hour puts another ECG behind what the protocol needs next."""
    known = {"protocols": (_quote("stemi"),), "signals": ("emergency.stemi",)}
    assert _ranked("cardiology", "Analyze the ECG", **known, fresh=("ecg",))[0] == "schedule_cath_lab"


def test_rank_a_denied_word_counts_for_nothing() -> None:
    """ "No bleeding" does not offer a crossmatch."""
    assert "order_crossmatch" not in _ranked("surgery", "No bleeding, drain dry?")


def test_rank_a_blocked_heparin_asks_haematology() -> None:
    """A critical check about heparin offers the haematologist in intensive care."""
    check = Check(id="allergy.heparin", level="critical", text="Allergy: heparin (HIT)")
    assert "consult_haematology" in _ranked("icu", "Give the dose", checks=(check,))


def test_rank_is_a_subset_in_stable_order() -> None:
    """At most five of the given rows, the same ones twice, whatever fits."""
    question = "shock sepsis fever stroke trauma bleeding arrest anaphylaxis potassium order ct head lactate"
    first = _ranked("emergency", question, signals=("news2.high", "emergency.sepsis"))
    assert first == _ranked("emergency", question, signals=("news2.high", "emergency.sepsis"))
    assert len(first) == MAX_ACTIONS
    assert set(first) <= {action.id for action in catalogue_of("emergency")}


def test_rank_takes_a_hospitals_own_row() -> None:
    """A row that the file does not know is ranked by its own protocols and words."""
    own = Action(
        id="call_porter",
        label="Call porter",
        label_pt="Chamar maqueiro",
        risk="confirm",
        fhir="Task",
        terms=("porter",),
    )
    facts = _facts("Call the porter")
    assert rank((own,), facts.question, facts) == (own,)
