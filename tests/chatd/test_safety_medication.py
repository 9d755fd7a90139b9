"""Medicines in text, allergies against medicines, interactions, and what is deliberately not said."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.safety.medication import (
    TABLE,
    Checker,
    check,
    drugs_in,
    drugs_in_folded,
    relevant_allergies,
    relevant_medications,
    skeleton,
)
from context.layers import Allergy, Condition, Medication, Observation, PatientLayer
from context.text import fold
from tests.clinical_data import clinical_path

NOW = datetime(2026, 1, 15, 8, 0, tzinfo=UTC)
#: Names as people and records write them.
WRITTEN = ("Amoxicilina", "ácido acetilsalicílico", "co-trimoxazole", "Lasix 40mg", "a beta-lactam", "ASA III",
           "contrast", "amiodarone", "haloperidl", "ibuprofen", "K 6.9", "in", "to")  # fmt: skip


def patient(
    medications: tuple[str, ...] = (), allergies: tuple[str, ...] = (), problems: tuple[str, ...] = (), **more: Any
) -> PatientLayer:
    more.setdefault("birth_date", date(1960, 1, 1))
    return PatientLayer(
        patient_id="p",
        name="P",
        as_of=NOW,
        medications=tuple(Medication(ref=f"MedicationRequest/m{i}", name=n) for i, n in enumerate(medications)),
        allergies=tuple(Allergy(ref=f"AllergyIntolerance/a{i}", name=n) for i, n in enumerate(allergies)),
        conditions=tuple(Condition(ref=f"Condition/c{i}", name=n) for i, n in enumerate(problems)),
        **more,
    )


def found(layer: PatientLayer, question: str = "", proposed: tuple[str, ...] = ()) -> dict[str, str]:
    return {one.id: one.level for one in check(layer, question, "en", proposed)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Furosemide 40 MG Oral Tablet", ["furosemide"]),
        ("furosemida 40 mg", ["furosemide"]),
        ("frusemide", ["furosemide"]),
        ("Lasix 40mg", ["furosemide"]),
        ("amoxicilina", ["amoxicillin"]),
        ("amoxicilin", ["amoxicillin"]),
        ("Amoxicillin 250 MG / Clavulanate 125 MG Oral Tablet", ["amoxicillin", "clavulanate"]),
        ("Augmentin", ["amoxicillin", "clavulanate"]),
        ("amoxicilina + ácido clavulânico", ["amoxicillin", "clavulanate"]),
        ("Penicillin V Potassium 500 MG", ["phenoxymethylpenicillin"]),
        ("noradrenalina 0,3 mcg/kg/min", ["norepinephrine"]),
        ("adrenaline", ["epinephrine"]),
        ("paracetamol 1 g", ["paracetamol"]),
        ("Acetaminophen 325 MG / oxyCODONE Hydrochloride 5 MG", ["paracetamol", "oxycodone"]),
        ("enoxaparina 60 mg", ["enoxaparin"]),
        ("espironolactona", ["spironolactone"]),
        ("varfarina", ["warfarin"]),
        ("ácido acetilsalicílico 100 mg", ["aspirin"]),
        ("Simvistatin 10 MG", ["simvastatin"]),
        ("sinvastatina", ["simvastatin"]),
        ("24 HR metoprolol succinate 100 MG Extended Release Oral Tablet [Toprol]", ["metoprolol", "metoprolol"]),
        ("co-trimoxazole", ["sulfamethoxazole", "trimethoprim"]),
        ("Sulfamethoxazole / Trimethoprim", ["sulfamethoxazole", "trimethoprim"]),
        ("sacubitril/valsartan", ["sacubitril", "valsartan"]),
        ("pip/tazo", ["piperacillin", "tazobactam"]),
        ("haloperidl", ["haloperidol"]),
        ("cloreto de potássio", ["potassium chloride"]),
        ("losartan potassium", ["losartan"]),
        ("IECA e AINE", ["ace_inhibitor", "nsaid"]),
        ("lítio", ["lithium"]),
        ("K 6.9, glucose 42, Na 138, calcium 9", []),
        ("ASA III patient", []),
        ("in contrast to yesterday", []),
        ("What is on the cafeteria menu?", []),
        ("", []),
    ],
)
def test_drugs_in(text: str, expected: list[str]) -> None:
    """English, British, Portuguese and brand names, salts, doses and one typing error give the generic name."""
    assert [drug.id for drug in drugs_in(text)] == expected


@given(st.lists(st.one_of(st.text(max_size=12), st.sampled_from(WRITTEN)), max_size=8).map(" ".join))
def test_drugs_of_a_folded_text_are_those_of_the_text(text: str) -> None:
    """A text that is folded already names the same medicines at the same places."""
    assert drugs_in_folded(fold(text)) == drugs_in(text) == drugs_in(fold(text))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WRITTEN), max_size=3).map(tuple), min_size=1, max_size=4))
def test_checker_answers_each_time_as_if_asked_first(proposals: list[tuple[str, ...]]) -> None:
    """What is prepared for one patient and question gives the findings of a check by itself, however often asked."""
    layer = patient(
        ("warfarin 5 mg", "spironolactone 25 mg", "Augmentin"), ("penicillin", "shellfish"), ("Acute kidney injury",)
    )
    question = "Can he have trimethoprim? Allergic to codeine. Stop warfarin."
    checker = Checker(layer, question, "pt")
    for proposed in proposals:
        assert checker.check(proposed) == check(layer, question, "pt", proposed)
    assert checker.check() == check(layer, question, "pt")


@settings(deadline=None)
@given(st.text(max_size=200))
def test_drugs_never_raise(text: str) -> None:
    """Any text is read without an error, and any question checked the same way twice."""
    drugs_in(text)
    layer = patient(("haloperidol", text), ("penicillin", text), (text,))
    assert check(layer, text, "pt", (text,)) == check(layer, text, "pt", (text,))
    assert len(relevant_allergies(layer, text)) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [("furosemide", "furosemida"), ("methotrexate", "metotrexato"), ("warfarin", "varfarina"), ("phenytoin",
        "fenitoína"),
     ("spironolactone", "espironolactona"), ("ketoconazole", "cetoconazol"), ("morphine", "morfina"),
         ("captopril", "captopril")],
)  # fmt: skip
def test_skeleton_languages_meet(one: str, other: str) -> None:
    """The two languages' spellings of a medicine have one skeleton."""
    assert skeleton(one) == skeleton(other)


def test_skeletons_distinct() -> None:
    """No two medicines of the table share a skeleton."""
    seen: dict[str, str] = {}
    for drug_class in TABLE.classes.values():
        for member in drug_class.members:
            if " " not in member:
                assert seen.setdefault(skeleton(member), member) == member


#: (allergies, medicines, question, expected id to level); nothing else may be found.
ALLERGY_CASES: tuple[tuple[tuple[str, ...], tuple[str, ...], str, dict[str, str]], ...] = (
    (("penicillin",), (), "Start amoxicillin 1 g", {"allergy.penicillin": "critical"}),
    (("penicilina",), (), "Iniciar amoxicilina/ácido clavulânico", {"allergy.penicillin": "critical"}),
    (("Penicillin V",), ("piperacillin/tazobactam",), "plan?", {"allergy.penicillin": "critical"}),
    (("amoxicillin (anaphylaxis)",), (), "cefalexin?",
        {"allergy.aminopenicillin__aminocephalosporin_same_chain": "critical"}),
    (("amoxicillin (anaphylaxis)",), (), "cefazolin 2 g?", {"allergy.penicillin__cefazolin": "info"}),
    (("amoxicillin",), (), "ceftriaxone 2 g", {"allergy.penicillin__cephalosporin": "warning"}),
    (("penicillin",), (), "meropenem 1 g", {"allergy.penicillin__carbapenem": "info"}),
    (("penicillin",), (), "aztreonam", {"allergy.penicillin__monobactam": "info"}),
    (("ceftazidime",), (), "aztreonam", {"allergy.cephalosporin__same_side_chain": "critical"}),
    (("cefuroxime (anaphylaxis)",), (), "ceftriaxone for urosepsis?", {"allergy.cephalosporin": "critical"}),
    (("cefuroxime (anaphylaxis)",), (), "meropenem for urosepsis?", {"allergy.cephalosporin__carbapenem": "info"}),
    (("sulfonamide antibiotic (rash)",), ("furosemide 40 mg",), "dose?", {}),
    (("Sulfamethoxazole / Trimethoprim",), ("furosemide", "hydrochlorothiazide", "celecoxib"),
        "furosemide dose?", {}),
    (("sulfonamide antibiotic (rash)",), (), "co-trimoxazole?", {"allergy.sulfonamide_antibiotic": "critical"}),
    (("shellfish",), (), "CT with contrast?", {}),
    (("marisco",), (), "TC com contraste?", {}),
    (("iodinated contrast",), (), "CT with contrast?", {"allergy.contrast": "critical"}),
    (("aspirin",), (), "ibuprofen 400 mg?", {"allergy.cox1": "critical"}),
    (("aspirin",), (), "paracetamol 1 g?", {}),
    (("lisinopril (angioedema)",), (), "start sacubitril/valsartan", {"allergy.ace_inhibitor__arni": "critical"}),
    (("lisinopril (angioedema)",), (), "start losartan", {"allergy.ace_inhibitor__arb": "warning"}),
    (("lisinopril (cough)",), (), "start ramipril", {"allergy.ace_inhibitor": "warning"}),
    (("ramipril (tosse)",), (), "iniciar losartan", {}),
    (("heparin (HIT 2024)",), (), "Give the heparin dose for his HIT", {"allergy.heparin": "critical"}),
    (("heparin (HIT 2024)",), (), "enoxaparina 40 mg?", {"allergy.heparin": "critical"}),
    (("heparin (HIT 2024)",), ("argatroban",), "plan?", {}),
    (("egg",), ("propofol",), "plan?", {"allergy.egg_or_soya__propofol": "info"}),
    (("morphine",), (), "fentanyl?", {"allergy.opioid": "info"}),
    (("morphine",), (), "morphine 5 mg", {"allergy.morphine": "critical"}),
    (("codeine (nausea)",), (), "codeine 30 mg", {"allergy.codeine": "warning"}),
    (("vancomycin",), ("vancomycin",), "level?", {"allergy.vancomycin": "critical"}),
    (("procaine",), (), "lidocaine?", {}),
    (("No known allergies",), (), "amoxicillin?", {}),
    (("latex",), ("propofol",), "plan?", {}),
    (("penicillin",), ("aspirin", "metformin"), "Analyze ECG results", {}),
    (("penicillin",), (), "avoid amoxicillin; vancomycin instead of amoxicillin", {}),
    (("amoxicillin (anaphylaxis)",), (), "Pre-op antibiotic for hip surgery, penicillin anaphylaxis in 2019",
     {"allergy.penicillin__cefazolin": "info"}),
    (("amoxicilina",), (), "Profilaxia antibiótica para cirurgia da anca?",
        {"allergy.penicillin__cefazolin": "info"}),
    (("cefuroxime (anaphylaxis)",), (), "Which antibiotic for urosepsis?",
        {"allergy.cephalosporin__antibiotic": "info"}),
)  # fmt: skip


@pytest.mark.parametrize(("allergies", "medications", "question", "expected"), ALLERGY_CASES)
def test_check_allergies(
    allergies: tuple[str, ...], medications: tuple[str, ...], question: str, expected: dict[str, str]
) -> None:
    """Each allergy finds what it must at its level, and nothing else is said."""
    assert found(patient(medications, allergies), question) == expected


#: (medicines, question, expected id to level); nothing else may be found.
INTERACTION_CASES: tuple[tuple[tuple[str, ...], str, dict[str, str]], ...] = (
    (("haloperidol", "ondansetron", "furosemide"), "QTc 512", {"interaction.qt_qt": "critical"}),
    (("haloperidol",), "ondansetrom 4 mg?", {"interaction.qt_qt": "critical"}),
    (("haloperidol",), "paracetamol?", {}),
    (("spironolactone", "ramipril"), "K 6.9", {"interaction.ace_inhibitor__potassium_sparing": "warning"}),
    (("losartan",), "espironolactona 25 mg?", {"interaction.arb__potassium_sparing": "warning"}),
    (("furosemide 40 mg", "sacubitril/valsartan"), "dose?", {}),
    (("sildenafil",), "GTN for chest pain?", {"interaction.pde5_inhibitor__nitrate": "critical"}),
    (("ramipril",), "start sacubitril/valsartan", {"interaction.arni__ace_inhibitor": "critical"}),
    (("fluoxetine",), "phenelzine", {"interaction.ssri_snri__mao_inhibitor": "critical"}),
    (("selegiline",), "petidina 50 mg?", {"interaction.opioid__mao_inhibitor": "critical"}),
    (("amitriptyline", "tranylcypromine"), "", {"interaction.tricyclic__mao_inhibitor": "critical"}),
    (("simvastatin",), "claritromicina", {"interaction.statin__cyp3a4_strong_inhibitor": "critical"}),
    (("atorvastatin",), "clarithromycin", {"interaction.atorvastatin__cyp3a4_strong_inhibitor": "warning"}),
    (("pravastatin",), "clarithromycin", {}),
    (("tizanidine",), "ciprofloxacin", {"interaction.tizanidine__cyp1a2_inhibitor": "critical"}),
    (("azathioprine", "febuxostat"), "", {"interaction.febuxostat__thiopurine": "critical"}),
    (("azathioprine", "allopurinol"), "", {}),
    (("warfarin",), "ibuprofen?", {"interaction.warfarin__nsaid": "warning"}),
    (("varfarina",), "AINE?", {"interaction.warfarin__nsaid": "warning"}),
    (("apixaban",), "diclofenac", {"interaction.doac__nsaid": "warning"}),
    (("digoxin", "ciclosporin"), "", {"interaction.digoxin__ciclosporin": "warning"}),
    (("amiodarone", "simvastatin"), "", {"interaction.amiodarone__simvastatin": "warning"}),
    (("amiodarone",), "ciprofloxacin", {"interaction.qt_qt": "critical"}),
    (("bisoprolol",), "diltiazem", {"interaction.beta_blocker__non_dhp_ccb": "warning"}),
    (("sertraline",), "linezolida", {"interaction.linezolid__ssri_snri": "warning"}),
    (("morphine",), "midazolam", {"interaction.opioid__benzodiazepine": "warning"}),
    (("gentamicin", "furosemide"), "", {"interaction.gentamicin__loop_diuretic": "info"}),
    (("clopidogrel", "omeprazole"), "", {"interaction.clopidogrel__omeprazole": "info"}),
    (("clopidogrel", "pantoprazole"), "", {}),
    (("methotrexate",), "co-trimoxazole", {"interaction.methotrexate__trimethoprim": "critical"}),
    (("rivaroxaban",), "itraconazole", {"interaction.doac__dual_inhibitor": "warning"}),
    (("heparin",), "alteplase for stroke", {"interaction.heparin__thrombolytic": "critical"}),
    (("heparin",), "tenecteplase for STEMI", {}),
    (("ceftriaxone",), "calcium gluconate", {}),
    (("metformin",), "CT with contrast?", {"interaction.metformin__contrast": "info"}),
    (("Acetaminophen 325 MG / oxyCODONE 5 MG",), "", {}),
    ((), "haloperidol and ondansetron, QTc?", {"interaction.qt_qt": "critical"}),
    (("haloperidol",), "stop ondansetron", {}),
    (("propofol", "fentanyl"), "RASS?", {}),
)


@pytest.mark.parametrize(("medications", "question", "expected"), INTERACTION_CASES)
def test_check_interactions(medications: tuple[str, ...], question: str, expected: dict[str, str]) -> None:
    """Each pair is found at its level among current medicines and those asked about, and nothing else is said."""
    assert found(patient(medications), question) == expected


def test_check_contrast_by_kidney() -> None:
    """Metformin with contrast depends on a recent eGFR or an acute kidney injury."""

    def with_rate(value: float, days: int = 1) -> PatientLayer:
        rate = Observation(
            ref="Observation/g",
            name="eGFR",
            code="98979-8",
            value=value,
            unit="mL/min",
            as_of=NOW - timedelta(days=days),
        )
        return patient(("metformin",), observations=(rate,))

    key = "interaction.metformin__contrast"
    assert found(with_rate(25), "contrast CT") == {key: "warning"}
    assert found(with_rate(80), "contrast CT") == {}
    assert found(with_rate(80, days=200), "contrast CT") == {key: "info"}
    assert found(patient(("metformin",), problems=("Acute kidney injury",)), "contrast CT") == {key: "warning"}


def test_check_neonate_only() -> None:
    """Ceftriaxone with calcium is a finding in the first 28 days of life alone."""
    newborn = patient(("ceftriaxone",), birth_date=date(2026, 1, 5))
    assert found(newborn, "calcium gluconate") == {"interaction.ceftriaxone__calcium": "critical"}


def test_check_proposed_medicines() -> None:
    """A proposal is checked like a medicine of the question."""
    assert found(patient(allergies=("penicillin",)), "", ("Amoxicillin 500 mg",)) == {"allergy.penicillin": "critical"}
    assert found(patient(("haloperidol",)), "", ("ondansetron",)) == {"interaction.qt_qt": "critical"}


def test_check_inactive_left_out() -> None:
    """Stopped medicines, resolved and refuted allergies raise nothing."""
    layer = PatientLayer(
        patient_id="p",
        name="P",
        as_of=NOW,
        medications=(Medication(ref="m", name="haloperidol", active=False, status="stopped"),),
        allergies=(
            Allergy(ref="a", name="penicillin", active=False),
            Allergy(ref="b", name="heparin", verification="refuted"),
        ),
    )
    assert found(layer, "ondansetron, amoxicillin, heparin") == {}


def test_check_stated_allergy() -> None:
    """An allergy that only the question states counts, and its absence from the record is told."""
    levels = found(patient(), "Allergic to penicillin, can I give amoxicillin?")
    assert levels == {"allergy.penicillin": "critical", "allergy_unrecorded.penicillin": "warning"}
    assert found(patient(), "alérgico à penicilina, posso dar amoxicilina?") == levels
    assert found(patient(allergies=("penicillin",)), "penicillin allergy, amoxicillin?") == {
        "allergy.penicillin": "critical"
    }


def test_check_hit_among_problems() -> None:
    """Heparin-induced thrombocytopenia blocks heparin also where it stands among the problems."""
    assert found(patient(problems=("HIT",)), "heparin dose?") == {"allergy.heparin": "critical"}
    assert found(patient(problems=("hypertension",)), "heparin dose?") == {}


def test_check_text_and_order() -> None:
    """A finding says what was found, in which chart item and by which source; the gravest comes first."""
    layer = patient(("spironolactone", "ramipril"), ("penicillin",))
    first, second = check(layer, "amoxicillin 1 g", "en")
    assert (first.level, second.level) == ("critical", "warning")
    for part in ("penicillin (AllergyIntolerance/a0)", "amoxicillin (in the question)", "same class", "Romano"):
        assert part in first.text
    assert first.ref == "AllergyIntolerance/a0"
    for part in ("MedicationRequest/m0", "MedicationRequest/m1", "hyperkalaemia"):
        assert part in second.text
    portuguese = check(layer, "amoxicilina 1 g", "pt-PT")[0].text
    assert portuguese.startswith("Alergia: penicillin")
    assert "na pergunta" in portuguese
    assert "Fonte" in portuguese


def test_onc_pairs_all_present() -> None:
    """Each of the fifteen high-priority pairs is in the table at critical,
    and no other source interrupts often."""
    seen = json.loads(clinical_path("medication_safety", "onc_high_priority_ddi.json").read_text(encoding="utf-8"))
    onc = [rule for rule in TABLE.interactions if rule.source == "onc"]
    assert len(onc) == len(seen["pairs"])
    assert all(rule.level == "critical" for rule in onc)
    for name, class_id in (
        ("MAO inhibitors", "mao_inhibitor"),
        ("amphetamine and derivatives", "amphetamine"),
        ("proton pump inhibitors", "ppi"),
        ("SSRIs and related serotonergic antidepressants", "ssri_snri"),
    ):
        assert set(seen["members_seen"][name]) <= set(TABLE.classes[class_id].members)
    assert sum(rule.level == "critical" and rule.source != "onc" for rule in TABLE.interactions) <= 5


def test_acute_pairs_all_found() -> None:
    """Every pair of the acute-care list is found when both its sides are there."""
    rows = json.loads(clinical_path("medication_safety", "acute_care_ddi_starter.json").read_text(encoding="utf-8"))
    examples = {
        "NSAID": "ibuprofen", "sildenafil or other PDE5 inhibitor": "sildenafil", "nitrate": "glyceryl trinitrate",
        "ACE inhibitor": "ramipril", "ACE inhibitor or ARB": "losartan", "beta-blocker": "bisoprolol",
        "potassium-sparing diuretic or potassium": "spironolactone", "verapamil or diltiazem": "verapamil",
        "iodinated contrast with eGFR <30 or AKI": "iodinated contrast", "SSRI/SNRI": "sertraline",
        "ceftriaxone IV": "ceftriaxone", "calcium-containing IV solution (neonates)": "calcium gluconate",
        "fluoroquinolone": "levofloxacin", "amiodarone or sotalol": "sotalol", "DOAC": "apixaban",
        "strong dual CYP3A4/P-gp inhibitor": "ketoconazole", "unfractionated heparin or LMWH": "enoxaparin",
        "alteplase/tenecteplase (stroke) within 24 h": "alteplase", "opioid": "morphine",
            "benzodiazepine": "lorazepam",
        "loop diuretic": "furosemide", "trimethoprim/co-trimoxazole": "co-trimoxazole",
    }  # fmt: skip
    for row in rows:
        pair = (examples.get(row["a"], row["a"]), examples.get(row["b"], row["b"]))
        born = date(2026, 1, 5) if "neonates" in row["b"] else date(1960, 1, 1)
        problems = ("acute stroke", "acute kidney injury")
        ids = found(patient(pair, problems=problems, birth_date=born))
        assert any(id_.startswith("interaction.") for id_ in ids), row


def test_cross_reactivity_members_known() -> None:
    """Every member of the cross-reactivity table belongs to its class here."""
    table = json.loads(clinical_path("medication_safety", "allergy_cross_reactivity.json").read_text(encoding="utf-8"))
    here = {
        "penicillins": "penicillin", "cephalosporins": "cephalosporin", "carbapenems": "carbapenem",
        "monobactams": "monobactam", "sulfonamide_antibiotics": "sulfonamide_antibiotic", "nsaids_cox1": "cox1",
        "ace_inhibitors": "ace_inhibitor", "arni": "arni", "heparins": "heparin",
        "ester_anaesthetics": "ester_anaesthetic", "amide_anaesthetics": "amide_anaesthetic",
    }  # fmt: skip
    for name, members in table["classes"].items():
        for member in members:
            assert any(here[name] in drug.classes for drug in drugs_in(member)), member


def test_relevant_allergies_all_kept() -> None:
    """Every allergy is shown, the one that matters to the question first."""
    layer = patient(allergies=("latex", "shellfish", "heparin (HIT 2024)", "penicillin"))
    assert relevant_allergies(layer, "heparin dose?")[0].name == "heparin (HIT 2024)"
    assert relevant_allergies(layer, "amoxicillin?")[0].name == "penicillin"
    assert len(relevant_allergies(layer, "hello")) == 4


def test_relevant_medications_order() -> None:
    """Active medicines only: named in the question, then in a finding, then of its topic."""
    layer = patient(("paracetamol", "ramipril", "insulin glargine", "spironolactone", "aspirin"))
    assert [m.name for m in relevant_medications(layer, "K 6.9")][:2] == ["ramipril", "spironolactone"]
    assert relevant_medications(layer, "aspirin dose?")[0].name == "aspirin"
    ordered = [m.name for m in relevant_medications(layer, "Glucose 42, drowsy")]
    assert ordered.index("insulin glargine") < ordered.index("paracetamol")
    assert len(ordered) == 5


def test_table_consistent() -> None:
    """Every name, combination, brand, rule and pair of the table points at something that exists."""
    members = {m for c in TABLE.classes.values() for m in c.members}
    things = (
        members | set(TABLE.classes) | {"same_side_chain", "aminocephalosporin_same_chain", "egg_or_soya", "shellfish"}
    )
    assert set(TABLE.names) <= members
    for names in (TABLE.combinations, TABLE.brands):
        assert {part for parts in names.values() for part in parts} <= members
    for rule in TABLE.allergy_rules:
        assert {rule.allergy, rule.medicine} <= things
        assert rule.source in TABLE.sources
        assert rule.level == "none" or (rule.en and rule.pt)
    for pair in TABLE.interactions:
        assert {pair.a, pair.b} <= things
        assert pair.source in TABLE.sources
        assert pair.en
        assert pair.pt
    assert all(c.basis for c in TABLE.classes.values())
