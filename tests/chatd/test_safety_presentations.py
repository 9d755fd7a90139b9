"""Recognised emergencies: what is one, in English and Portuguese and with typing errors, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.safety.presentation_table import CORRECT, REPAIRABLE, RULES
from chatd.safety.presentations import (
    MAX_SENTENCE_CHARS,
    ecg_emergencies,
    emergencies,
    has_two_contiguous,
    leads_in,
    normalise,
    sentences,
    vital_numbers,
)

EMERGENCIES = (
    ("stemi", "Crushing chest pain with ST elevation in II, III, aVF"),
    ("stemi", "Anterior STEMI, door time 07:10"),
    ("stemi", "67 year old stemi"),
    ("stemi", "EAM com supra de ST anterior"),
    ("stemi", "ECG com supradesnivelamento de ST em V2-V4"),
    ("stemi", "Is this a STEMI?"),
    ("stemi", "STEMI now in ED, activate cath lab"),
    ("stemi", "stmei in bed 4, cath lab?"),
    ("acs", "58M central chest pain since 1 h"),
    ("acs", "dor torácica há 2 horas"),
    ("acs", "dor no peito desde as 6h, sudorese"),
    ("acs", "No fever, severe chest pain since this morning"),
    ("acs", "chset pain radiating to arm"),
    ("acs", "NSTEMI, troponin rising"),
    ("acs", "aperto no peito com irradiação ao braço"),
    ("acs", "chest pain not relieved by GTN"),
    ("acs", "chest pain, known angina"),
    ("acs", "Dor torácica tipo aperto em doente com EAM prévio"),
    ("acs", "He has crushing chest pain"),
    ("acs", "any change in his chest pain?"),
    ("acs", "Unstable angina overnight"),
    ("stroke", "Sudden left-sided weakness and slurred speech, onset 80 min ago"),
    ("stroke", "AVC agudo, défice há 1h"),
    ("stroke", "boca ao lado e fala arrastada desde as 9h"),
    ("stroke", "right arm weakness, cannot speak, last seen well 08:10"),
    ("stroke", "Suspected stroke, thrombolysis candidate?"),
    ("stroke", "afasia súbita e hemiparesia direita"),
    ("stroke", "Stroke 70 min ago, INR?"),
    ("stroke", "slured speech and facial droop"),
    ("stroke", "storke symptoms, 1 hour"),
    ("stroke", "Code stroke: NIHSS 12"),
    ("stroke", "On aspirin for stroke prevention, now sudden slurred speech"),
    ("stroke", "NIHSS 9, onset 07:00, alteplase dose? left hemiparesis"),
    ("stroke", "Rui Ferreira, AF, sudden aphasia and right hemiparesis 70 min ago, NEWS2 0"),
    ("stroke", "Weakness of the left arm since 08:00"),
    ("stroke", "can't speak since 1 h, AF"),
    ("stroke", "Perda de força no braço direito desde as 8h"),
    ("stroke", "doente com disartria e assimetria facial"),
    ("stroke", "Left facial droop 45 minutes ago. Thrombolysis?"),
    ("stroke", "Patient can't move her left arm, started at 10:15"),
    ("stroke", "dificuldade em falar e hemiparesia esquerda há 50 min"),
    ("stroke", "New onset right sided weakness in a patient with previous stroke"),
    ("stroke", "Previous stroke, now new slurred speech"),
    ("stroke", "wake-up stroke"),
    ("sepsis", "Suspected urosepsis, 81F"),
    ("sepsis", "septic shock on noradrenaline"),
    ("sepsis", "Sépsis com foco urinário"),
    ("sepsis", "urossépsis, qual o antibiótico para esta doente?"),
    ("sepsis", "82F fever 39.1, confused, BP 92/50, UTI"),
    ("sepsis", "Infeção urinária, prostrada, TA 95/50, FR 26"),
    ("sepsis", "sespis, start bundle"),
    ("sepsis", "Start the sepsis bundle"),
    ("sepsis", "choque séptico"),
    ("sepsis", "Maria, 81, UTI, temp 38.9, HR 124, BP 94/50, confused"),
    ("sepsis", "Is she septic?"),
    ("sepsis", "possível sépsis, lactato 4.2"),
    ("sepsis", "Febrile neutropenia day 10 chemo"),
    ("sepsis", "sepsis from urinary source, cefuroxime anaphylaxis, which antibiotic?"),
    ("sepsis", "septic, cefuroxime allergy, what antibiotic?"),
    ("anaphylaxis", "Ate prawns 10 min ago, hives and wheeze, BP 78/40"),
    ("anaphylaxis", "anaphylaxis after peanuts"),
    ("anaphylaxis", "Anafilaxia a marisco, adrenalina quanto?"),
    ("anaphylaxis", "generalised urticaria, stridor and hypotension after amoxicillin"),
    ("anaphylaxis", "anaphilaxis, second dose of adrenaline?"),
    ("anaphylaxis", "urticária e pieira depois de comer camarão"),
    ("anaphylaxis", "tongue swelling and stridor"),
    ("anaphylaxis", "Anaphylaxis to amoxicillin just now, adrenaline given"),
    ("anaphylaxis", "hives, wheeze after shellfish, BP 82/40"),
    ("anaphylaxis", "26F ate shrimp: urticaria, stridor, hypotensive"),
    ("anaphylaxis", "Anaphylactic shock"),
    ("anaphylaxis", "lip swelling and wheeze 5 minutes after ceftriaxone"),
    ("anaphylaxis", "choque anafilático após contraste"),
    ("cardiac_arrest", "VF arrest, third shock given, next drug?"),
    ("cardiac_arrest", "Cardiac arrest bed 3"),
    ("cardiac_arrest", "PCR em assistolia há 5 min"),
    ("cardiac_arrest", "paragem cardiorrespiratória presenciada"),
    ("cardiac_arrest", "No pulse, CPR in progress"),
    ("cardiac_arrest", "patient arrested 2 min ago"),
    ("cardiac_arrest", "doente sem pulso"),
    ("cardiac_arrest", "PEA arrest"),
    ("cardiac_arrest", "ROSC after 20 min, what temperature target?"),
    ("cardiac_arrest", "fibrilhação ventricular, 2 choques"),
    ("cardiac_arrest", "asystole, 2nd adrenaline given"),
    ("cardiac_arrest", "PEA, hyperkalaemia?"),
    ("cardiac_arrest", "Doente em FV, 3º choque, qual o fármaco?"),
    ("cardiac_arrest", "VF after second shock"),
    ("cardiac_arrest", "he is pulseless"),
    ("trauma", "Motorbike crash, GCS 7, BP 84"),
    ("trauma", "Politraumatizado, acidente de viação"),
    ("trauma", "fell from 6 m scaffolding"),
    ("trauma", "GSW to abdomen"),
    ("trauma", "atropelamento, TA 80/40"),
    ("trauma", "queda de 5 metros"),
    ("trauma", "hit by a car, hypotensive"),
    ("trauma", "Stab wound left chest"),
    ("hyperkalaemia", "K 6.9 with peaked T waves, dialysis missed"),
    ("hyperkalaemia", "potássio 7,1"),
    ("hyperkalaemia", "K+ of 6.8 mmol/L"),
    ("hyperkalaemia", "potassium came back at 6.6"),
    ("hyperkalaemia", "hipercaliemia grave com ondas T apiculadas"),
    ("hyperkalaemia", "K 6.1 with wide QRS"),
    ("hyperkalaemia", "potassium 5.2 -> 6.7"),
    ("hyperkalaemia", "K+ 7.2"),
    ("hyperkalaemia", "K=6.9"),
    ("hyperkalaemia", "potassium is now 6.8 mEq/L"),
    ("hyperkalaemia", "K: 6,7 mmol/L"),
    ("glucose", "Glucose 42, drowsy"),
    ("glucose", "glicemia capilar 38"),
    ("glucose", "glucose 2.1 mmol/L"),
    ("glucose", "hipoglicemia com convulsão"),
    ("glucose", "DKA, pH 7.05"),
    ("glucose", "BM 1.9"),
    ("glucose", "glicose 620 mg/dL"),
    ("glucose", "severe hypoglycemia in bed 3"),
    ("glucose", "cetoacidose diabética"),
    ("glucose", "glucose is 38 mg/dL"),
    ("glucose", "BG 45"),
    ("glucose", "glicemia 1,8 mmol/L"),
    ("glucose", "glicemia de 40"),
    ("glucose", "hypo, glucose 40"),
    ("heart_failure", "Acute pulmonary oedema on furosemide 40 mg at home, dose?"),
    ("heart_failure", "edema agudo do pulmão"),
    ("heart_failure", "flash pulmonary edema"),
    ("heart_failure", "IC descompensada, dispneia em repouso"),
    ("heart_failure", "EAP com SpO2 84%"),
    ("heart_failure", "acute decompensated heart failure"),
    ("heart_failure", "Flash pulmonary oedema, BP 210/110"),
    ("shock", "MAP 55 on noradrenaline 0.3 mcg/kg/min, next step?"),
    ("shock", "PAM 52 com noradrenalina"),
    ("shock", "BP 84"),
    ("shock", "TA 78/40 após cirurgia"),
    ("shock", "systolic 82 and falling"),
    ("shock", "MAP is 58 despite fluids"),
    ("shock", "TA 82/45"),
    ("shock", "PA 70x40"),
    ("shock", "BP is 80 over 40"),
    ("shock", "BP 85/40 on norad"),
    ("shock", "tensão 80/40"),
    ("bleeding", "Postop day 0, dressing soaked, Hb 6.8"),
    ("bleeding", "hematemeses há 1 hora"),
    ("bleeding", "active GI bleed"),
    ("bleeding", "hemorragia digestiva alta"),
    ("bleeding", "patient is bleeding heavily from the wound"),
    ("bleeding", "postoperative bleeding, drain 600 mL, Hb 6.8"),
    ("bleeding", "hemorragia pós-operatória"),
    ("bleeding", "Post-op day 1, bleeding through the dressing"),
    ("bleeding", "drain full of blood and BP 88"),
    ("severe_anaemia", "Hb 6.8"),
    ("severe_anaemia", "hemoglobina 6,5 g/dL"),
    ("severe_anaemia", "Hgb 65 g/L"),
    ("respiratory_failure", "SpO2 80"),
    ("respiratory_failure", "sats 82% on 15 L"),
    ("respiratory_failure", "satura a 79%"),
    ("respiratory_failure", "FR 36"),
    ("respiratory_failure", "stridor"),
    ("respiratory_failure", "RR 6 after morphine"),
    ("reduced_consciousness", "GCS 7"),
    ("reduced_consciousness", "Glasgow 6"),
    ("reduced_consciousness", "E1V2M4"),
    ("reduced_consciousness", "unresponsive patient"),
    ("reduced_consciousness", "doente inconsciente"),
    ("seizure", "status epilepticus 10 min"),
    ("seizure", "ainda em convulsão"),
    ("arrhythmia", "HR 180"),
    ("arrhythmia", "ventricular tachycardia with pulse"),
    ("arrhythmia", "torsades"),
    ("arrhythmia", "FC 35"),
)

#: Negated, past, somebody else's, hypothetical, a general question, or nothing of the kind.
NO_EMERGENCIES = (
    "no chest pain",
    "sem dor torácica",
    "nega dor torácica",
    "denies chest pain, dyspnoea or syncope",
    "no chest pain, dyspnoea or syncope",
    "No signs of sepsis",
    "without stroke symptoms",
    "stroke ruled out",
    "STEMI was excluded",
    "AVC excluído",
    "sem sinais de sépsis",
    "não tem dor no peito",
    "chest pain: no",
    "What is the STEMI door-to-balloon time?",
    "what are the criteria for septic shock?",
    "Qual o protocolo de AVC?",
    "How do I treat anaphylaxis?",
    "Dose of adrenaline in anaphylaxis?",
    "previous stroke",
    "AVC prévio",
    "AVC em 2019",
    "stroke 3 years ago",
    "enfarte há 5 anos",
    "history of cardiac arrest",
    "Pre-op antibiotic for hip surgery, penicillin anaphylaxis in 2019",
    "penicillin anaphylaxis, which prophylaxis?",
    "alergia à penicilina (anafilaxia)",
    "If the patient develops sepsis, who do I call?",
    "stroke prevention in AF",
    "CHA2DS2-VASc and anticoagulant dose, previous stroke",
    "risk of stroke",
    "sepsis protocol?",
    "mother had a stroke at 60",
    "Hi, what is the cafeteria menu?",
    "Give the heparin dose for his HIT",
    "QTc 512 on haloperidol and ondansetron, K 3.1",
    "RASS is -4, what is the target?",
    "MAP target 65",
    "keep SpO2 > 88",
    "K 4.1, glucose 110",
    "BP 128/78 HR 80",
    "hypokalaemia 3.2",
    "SpO2 target 88-92%",
    "Can we start sacubitril/valsartan? lisinopril angioedema",
    "troponin trend?",
    "creatinine 1.6, apixaban dose?",
    "vitamin K 10 mg",
    "PCR 120 mg/L",
    "heat stroke volume",
    "no ST elevation",
    "hypertension",
    "Rule out sepsis?",
    "how many beds in the trauma unit",
    "shock team meeting at 3",
    "stroke volume 60 mL",
    "GCS 15",
    "KCl 40 mEq",
    "K 40 mmol in 1 L",
    "glucose 5.6 mmol/L",
    "insulin 10 U",
    "ECG 12 leads",
    "SpO2 97 on 4 L, COPD, ok?",
    "SpO2 90% on 2 L, COPD hypercapnia, should I increase?",
    "Is it ok to give potassium when K is 3.1",
    "mild hyperkalaemia 5.6",
    "sem história de AVC",
    "Does aspirin prevent stroke?",
    "em caso de choque séptico, que vasopressor?",
    "trombolise criterios",
    "post stroke rehab plan",
    "pós-AVC há 2 meses",
    "What dose of noradrenaline in septic shock?",
    "tia Maria veio visitar",
    "door-to-needle time for stroke",
    "he was in shock last week",
    "list patients with sepsis",
    "recovered from septic shock",
    "FA, CHA2DS2-VASc?",
    "not hypotensive, no bleeding",
    "no active bleeding",
    "sem hemorragia ativa",
    "Rash but no wheeze or hypotension",
    "MAP > 65 on noradrenaline",
    "VTE prophylaxis after stroke",
    "Any signs of stroke?",
    "AF anticoagulation: CHA2DS2-VASc and which DOAC dose? creatinine 1.6",
    "Luis, 76, AF, HTN, DM, previous stroke: score and anticoagulant?",
    "fibrilhação auricular, score e anticoagulação, AVC prévio",
    "Can I switch lisinopril to sacubitril/valsartan? angioedema 2 years ago",
    "COPD post-op, SpO2 91 on 2 L, target?",
    "DPOC com hipercapnia, pós-operatório, SpO2 90%, aumento o oxigénio?",
    "HFrEF, start sacubitril",
    "When should we give antibiotics in sepsis?",
    "Summarise the anaphylaxis protocol",
    "what is the stroke thrombolysis window",
    "What does the sepsis bundle include?",
    "Quais os critérios de AVC para trombólise?",
    "Explain hyperkalaemia treatment",
    "Explica o tratamento da hipercaliemia",
    "list the STEMI criteria",
    "hypoglycaemia protocol",
    "Is there a protocol for massive transfusion?",
    "ACLS algorithm for VF",
    "RASS target",
    "what's the target MAP in septic shock?",
    "Aspirin allergy alternatives after STEMI",
    "She denies any chest pain or dyspnoea",
    "Negative for sepsis",
    "Sem AVC, sem EAM",
    "não há evidência de AVC",
    "nunca teve AVC",
    "ECG: no ST elevation, no peaked T waves",
    "no evidence of STEMI on ECG",
    "Past medical history: stroke, MI, DKA",
    "antecedentes de EAM e AVC",
    "Antecedentes: AVC 2015, EAM 2018",
    "PMH stroke and sepsis",
    "pai com AVC",
    "family history of sudden cardiac arrest",
    "vaccination after sepsis?",
    "trauma checklist",
    "bleeding risk with apixaban?",
    "HAS-BLED score",
    "risco de hemorragia com varfarina",
    "any bleeding?",
    "sem melenas ou hematemeses",
    "no melaena",
    "no haematemesis or melaena",
    "BP 118/70, HR 76, SpO2 97%",
    "Last Hb 11.2",
    "Hb 9.8 stable",
    "lactate 1.2",
    "Na 138 K 4.5",
    "glucose 180",
    "what if K 6.9?",
    "if BP 84 what then",
    "hold metoprolol if HR < 50",
    "hold if SBP < 90",
    "titrate noradrenaline to MAP 65",
    "DNR, cardiac arrest plan?",
    "in case of anaphylaxis give adrenaline",
    "who is on the stroke team today?",
    "GCS 15, orientado",
    "glasgow 15",
    "troponin 0.02",
    "Show the last ECG",
    "Qual é a última troponina?",
    "When was the last potassium?",
    "medicação atual?",
    "alergias?",
    "O que é o NEWS2?",
    "temperatura 37.2",
    "PCR negativa para COVID",
    "PCR elevada",
    "heparin dose for stroke prevention in AF",
    "dose de enoxaparina profilática",
    "patient recovering after STEMI day 3, mobilise?",
    "STEMI day 2, when to start ACE inhibitor?",
    "discharge after sepsis",
    "his father died of a stroke",
    "shocked by the news",
    "arrest warrant",
    "chest x-ray",
    "RX tórax",
    "chest tube output 50 ml",
    "breast pain",
    "a dor passou, sem dor no peito",
)

#: Ways to say that something is not there, with "{}" for the thing.
NEGATIONS_EN = (
    "no {}",
    "There is no {}.",
    "denies {}",
    "Patient denies fever, cough and {}",
    "without {}",
    "negative for {}",
    "{} ruled out",
    "{} was excluded",
    "no evidence of {}",
    "no fever, cough or {}",
    "{}: no",
    "not {}",
)
NEGATIONS_PT = (
    "sem {}",
    "nega {}",
    "O doente nega febre, tosse e {}",
    "{} excluído",
    "não tem {}",
    "sem sinais de {}",
    "sem evidência de {}",
    "sem febre, tosse ou {}",
    "{}: não",
    "ausência de {}",
)
PLAIN_EN = (
    "chest pain",
    "stroke",
    "sepsis",
    "septic shock",
    "anaphylaxis",
    "cardiac arrest",
    "ST elevation",
    "slurred speech",
    "left-sided weakness",
    "pulmonary oedema",
    "hyperkalaemia",
    "GI bleed",
    "haematemesis",
    "stridor",
    "ventricular tachycardia",
    "DKA",
)
PLAIN_PT = (
    "dor torácica",
    "dor no peito",
    "AVC",
    "sépsis",
    "choque séptico",
    "anafilaxia",
    "paragem cardiorrespiratória",
    "edema agudo do pulmão",
    "hipercaliemia",
    "hematemeses",
    "melenas",
    "estridor",
    "hemiparesia direita",
    "cetoacidose",
)


@pytest.mark.parametrize(("expected", "text"), EMERGENCIES)
def test_emergencies_recognised(expected: str, text: str) -> None:
    """An emergency is recognised in either language, abbreviated, as a number, or with a typing error."""
    assert expected in {one.id for one in emergencies(text)}


@pytest.mark.parametrize("text", NO_EMERGENCIES)
def test_emergencies_none(text: str) -> None:
    """What is denied, past, somebody else's, supposed or asked in general is no emergency of this patient."""
    assert [one.id for one in emergencies(text)] == []


@pytest.mark.parametrize("phrase", PLAIN_EN + PLAIN_PT)
def test_emergencies_plain_phrase_counts(phrase: str) -> None:
    """The phrases of the negation table are emergencies when nobody negates them."""
    assert emergencies(phrase) != ()


@settings(deadline=None)
@given(
    case=st.one_of(
        st.tuples(st.sampled_from(NEGATIONS_EN), st.sampled_from(PLAIN_EN)),
        st.tuples(st.sampled_from(NEGATIONS_PT), st.sampled_from(PLAIN_PT)),
    ),
    upper=st.booleans(),
)
def test_emergencies_negated_never_triggers(case: tuple[str, str], upper: bool) -> None:
    """No negated phrase of either language is an emergency, in any case of letters."""
    template, phrase = case
    text = template.format(phrase)
    assert emergencies(text.upper() if upper else text) == ()


@settings(deadline=None)
@given(
    negation=st.sampled_from(["no fever, but {}", "denies cough, but {}", "no fever. {}", "afebrile; {} now"]),
    phrase=st.sampled_from(PLAIN_EN),
)
def test_emergencies_negation_ends(negation: str, phrase: str) -> None:
    """A negation of something else does not hide the emergency that follows it."""
    assert emergencies(negation.format(phrase)) != ()


@settings(deadline=None)
@given(st.text(max_size=300))
def test_emergencies_never_raise(text: str) -> None:
    """Any text is read without an error, the same way each time, and each id comes once."""
    found = emergencies(text)
    assert found == emergencies(text)
    assert len({one.id for one in found}) == len(found)
    ecg_emergencies(text)
    vital_numbers(text)


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "no",
                "sem",
                "K",
                "6.9",
                "stroke",
                "AVC",
                ",",
                ".",
                "if",
                "BP",
                "84",
                "há",
                "anos",
                "?",
                "->",
                "GCS",
                "7",
                "or",
                "nega",
                "STEMI",
                "in 2019",
                ":",
                "(",
                "é",
                "hives",
                "wheeze",
            ]
        ),
        max_size=25,
    )
)
def test_emergencies_any_word_order(words: list[str]) -> None:
    """Any order of the words that the rules look for is read without an error and quotes the text it came from."""
    text = " ".join(words)
    for one in emergencies(text):
        assert one.phrase
        assert one.phrase in " ".join(text.split())


def test_emergencies_long_text_bounded() -> None:
    """A text beyond the bound is cut and not read on."""
    assert emergencies("a " * 200_000 + "cardiac arrest") == ()
    assert emergencies("cardiac arrest " + "a " * 200_000) != ()


def test_emergencies_several_at_once() -> None:
    """A crash with Glasgow 7 and a pressure of 84 is trauma, shock and a threatened airway."""
    ids = {one.id for one in emergencies("Motorbike crash, GCS 7, BP 84")}
    assert {"trauma", "shock", "reduced_consciousness"} <= ids


def test_emergencies_phrase_as_written() -> None:
    """The phrase shown is the doctor's own, accents, capitals and typing errors included."""
    (one,) = emergencies("Doente com DOR TORÁCICA desde as 7h")
    assert one.phrase == "DOR TORÁCICA"
    (mistyped,) = emergencies("Anaphilaxis in bay 2")
    assert mistyped.phrase == "Anaphilaxis"
    assert "possível anafilaxia" in mistyped.text("pt-PT")


def test_emergencies_hospital_limits_decide() -> None:
    """A laboratory number of the question is judged by the hospital's own limits."""
    assert emergencies("K 5.9") == ()
    assert [one.id for one in emergencies("K 5.9", {"potassium": (3.0, 5.8)})] == ["hyperkalaemia"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("K was 6.9 yesterday, now 4.8", False),
        ("potassium 6.9 -> 4.8 after insulin", False),
        ("potassium 4.8 -> 6.9", True),
        ("K 4.2 yesterday, 6.9 now", True),
        ("K de 6,9 ontem, agora 4,8", False),
        ("K 6.9 today, was 4.2 yesterday", True),
    ],
)
def test_emergencies_latest_number_counts(text: str, expected: bool) -> None:
    """Of several values of one analyte the one that holds now decides."""
    assert ("hyperkalaemia" in {one.id for one in emergencies(text)}) == expected


def test_vital_numbers_both_languages() -> None:
    """Vital signs are read from English and Portuguese shorthand, targets and doses left out."""
    assert vital_numbers("TA 84/50, FC 132, FR 28, SpO2 90%, Glasgow 7") == {
        "sbp": 84,
        "hr": 132,
        "rr": 28,
        "spo2": 90,
        "gcs": 7,
    }
    assert vital_numbers("keep MAP target 65, noradrenaline 0.3 mcg/kg/min") == {}


@pytest.mark.parametrize(
    "word", ["hypokalaemia", "hypertension", "hypotensive", "strike", "hipocaliemia", "septum", "choke"]
)
def test_normalise_correct_words_stay(word: str) -> None:
    """A correct word is never repaired into its opposite or its neighbour."""
    assert normalise(word).text == word


def test_tables_consistent() -> None:
    """Ids are unique, every rule has both languages, and no word is both repairable and listed as right by mistake."""
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert all(rule.en and rule.pt and rule.words for rule in RULES)
    assert all(word == word.lower() and word.isascii() for word in REPAIRABLE | CORRECT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sinus rhythm 88/min. ST elevation V2-V6, anterior Q waves, poor R-wave progression.", ["stemi"]),
        ("Supradesnivelamento de ST em V2-V4, com ondas Q.", ["stemi"]),
        ("ST elevation in II, III and aVF with reciprocal depression in I and aVL", ["stemi"]),
        ("Inferior ST elevation", ["stemi"]),
        ("Elevação do segmento ST em DII, DIII e aVF", ["stemi"]),
        ("No ST elevation. Normal sinus rhythm.", []),
        ("Sem supradesnivelamento de ST.", []),
        ("Non-ST elevation changes, ST depression V4-V6", []),
        ("ST elevation in V2 only", []),
        ("Diffuse ST elevation, likely pericarditis", []),
        ("ST elevation V2-V4, early repolarisation", []),
        ("Atrial fibrillation, rate 96", []),
        ("Complete heart block, escape rhythm 34/min", ["arrhythmia"]),
        ("Ventricular fibrillation", ["cardiac_arrest"]),
        ("Peaked T waves, wide QRS", ["hyperkalaemia"]),
        ("", []),
    ],
)
def test_ecg_emergencies(text: str, expected: list[str]) -> None:
    """An ECG report counts by its words: ST elevation in two contiguous leads or a territory, not when denied."""
    assert [one.id for one in ecg_emergencies(text)] == expected


def test_leads_ranges_and_neighbours() -> None:
    """Ranges of leads are filled, Portuguese names understood, and neighbours known."""
    assert leads_in("V2-V4, DII e aVF") == {"v2", "v3", "v4", "ii", "avf"}
    assert has_two_contiguous(leads_in("II and aVF"))
    assert not has_two_contiguous(leads_in("V1 and III"))


def test_sentences_cover_and_bounded() -> None:
    """A text without any full stop is cut into pieces of bounded length that miss nothing."""
    text = "word " * 1000
    pieces = sentences(text)
    assert all(end - start <= MAX_SENTENCE_CHARS for start, end in pieces)
    assert "".join(text[start:end] for start, end in pieces).strip() == text.strip()
