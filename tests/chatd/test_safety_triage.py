"""What is escalated: the vignettes, their siblings in both languages, critical results, near misses."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.safety.analytes import ANALYTES, BY_ID, analyte_named, from_canonical, to_canonical
from chatd.safety.triage import Triage, critical_results, is_intensive_care, triage, upper_reference
from chatd.safety.words import moment
from context.layers import Allergy, Condition, HospitalLayer, Medication, Observation, PatientLayer, Report
from tests.clinical_data import clinical_path

NOW = datetime(2026, 1, 15, 8, 0, tzinfo=UTC)
RECENT = NOW - timedelta(minutes=30)
HOSPITAL = HospitalLayer(name="Test Hospital", as_of=NOW)
CODED = {
    "rr": ("Respiratory rate", "9279-1", "/min"),
    "spo2": ("SpO2", "59408-5", "%"),
    "sbp": ("Systolic blood pressure", "8480-6", "mm[Hg]"),
    "dbp": ("Diastolic blood pressure", "8462-4", "mm[Hg]"),
    "hr": ("Heart rate", "8867-4", "/min"),
    "temp": ("Body temperature", "8310-5", "Cel"),
}


def vital_signs(**given_: Any) -> tuple[Observation, ...]:
    """A whole set of vital signs, normal but for what is given (rr, spo2, o2, sbp, hr, acvpu, temp, scale)."""
    signs: dict[str, Any] = {
        "rr": 16, "spo2": 98, "o2": False, "sbp": 124, "dbp": 74, "hr": 76, "acvpu": "A", "temp": 36.8, "scale": 1,
    } | given_  # fmt: skip
    out = [
        Observation(ref=f"Observation/{k}", name=n, code=c, value=float(signs[k]), unit=u, as_of=RECENT)
        for k, (n, c, u) in CODED.items()
    ]
    flow = 2.0 if signs["o2"] else 0.0
    out.append(
        Observation(ref="Observation/o2", name="Oxygen flow", code="3151-8", value=flow, unit="L/min", as_of=RECENT)
    )
    out.append(Observation(ref="Observation/avpu", name="ACVPU", text=str(signs["acvpu"]), as_of=RECENT))
    if signs["scale"] == 2:
        out.append(Observation(ref="Observation/scale", name="NEWS2 SpO2 scale", value=2, unit="1", as_of=RECENT))
    return tuple(out)


def lab(name: str, value: float | None, unit: str | None, flag: Any = "", **more: Any) -> Observation:
    more.setdefault("as_of", RECENT)
    ref = more.pop("ref", f"Observation/{name}")
    return Observation(ref=ref, name=name, value=value, unit=unit, flag=flag, **more)


def patient(*observations: Observation, **more: Any) -> PatientLayer:
    more.setdefault("birth_date", date(1960, 1, 1))
    return PatientLayer(patient_id="p", name="P", as_of=NOW, observations=observations, **more)


def names(kind: str, texts: list[str]) -> tuple[Any, ...]:
    if kind == "medications":
        return tuple(Medication(ref=f"MedicationRequest/{i}", name=t) for i, t in enumerate(texts))
    if kind == "allergies":
        return tuple(Allergy(ref=f"AllergyIntolerance/{i}", name=t) for i, t in enumerate(texts))
    return tuple(Condition(ref=f"Condition/{i}", name=t, onset=NOW) for i, t in enumerate(texts))


def of_vignette(row: dict[str, Any]) -> PatientLayer:
    labs = [lab(one["name"], one["value"], one["unit"] or None, one["flag"]) for one in row["labs"]]
    born = date(NOW.year - row["patient"]["age"], 1, 1)
    listed = {
        kind: names(kind, row[source]) for kind, source in (("medications", "medications"), ("allergies", "allergies"))
    }
    return patient(
        *vital_signs(**row["vitals"]), *labs, birth_date=born, conditions=names("conditions", row["problems"]), **listed
    )


def run(question: str, layer: PatientLayer | None = None, department: str = "emergency", **more: Any) -> Triage:
    return triage(layer, question, more.pop("hospital", HOSPITAL), department, more.pop("now", NOW), **more)


def ids(result: Triage) -> set[str]:
    return {flag.id for flag in result.red_flags}


def test_triage_vignettes_exact() -> None:
    """For every vignette NEWS2 and its band are exact, escalation is raised exactly where expected, and the signals
    of an escalated one include a protocol that is expected."""
    lines = clinical_path("vignettes", "acute_vignettes.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows
    wrong = []
    for row in rows:
        expected = row["expected"]
        result = run(row["question"], of_vignette(row), row["department"])
        score = result.scores[0]
        escalates = bool(result.red_flags)
        fits = not escalates or bool(set(result.signals) & set(expected["protocols"]))
        labs = {f"critical.{BY_ID[a.id].id}" for n in expected.get("critical_labs", []) if (a := analyte_named(n))}
        if (score.value, score.band, escalates) != (
            expected["news2"], expected["news2_risk"], expected.get("escalate", False),
        ) or not fits or not labs <= ids(result):  # fmt: skip
            wrong.append((row["id"], score.value, score.band, ids(result), result.signals))
    assert wrong == []


SEDATED = names("medications", ["propofol", "fentanyl"])

#: (department, question, vital signs, results, more of the record, flags that must be there; empty: none at all)
CASES: tuple[tuple[str, str, dict[str, Any], tuple[Observation, ...], dict[str, Any], set[str]], ...] = (
    ("cardiology", "Analyze João Silva's ECG results", {"spo2": 95},
     (lab("Troponin I", 45, "ng/mL", "HH", range_text="< 0.04", high=0.04),), {}, {"critical.troponin"}),
    ("cardiology", "Analise os resultados do ECG", {"spo2": 95},
     (lab("Troponina I", 45, "ng/mL", range_text="< 0.04"),), {}, {"critical.troponin"}),
    ("emergency", "Suspected urosepsis, confused since last night, which antibiotic?",
     {"rr": 26, "sbp": 94, "hr": 124, "acvpu": "C", "temp": 38.9}, (), {}, {"news2.high", "emergency.sepsis"}),
    ("emergency", "Urossépsis, prostrada, que antibiótico para esta doente?",
     {"rr": 26, "sbp": 94, "hr": 124, "acvpu": "C", "temp": 38.9}, (), {}, {"news2.high", "emergency.sepsis"}),
    ("emergency", "Sudden aphasia and right hemiparesis 70 min ago", {}, (), {}, {"emergency.stroke"}),
    ("emergency", "Afasia súbita e hemiparesia direita há 70 min", {}, (), {}, {"emergency.stroke"}),
    ("surgery", "Dressing soaked, what now?", {"hr": 108, "sbp": 104},
     (lab("Hemoglobin", 6.8, "g/dL", "LL"),), {}, {"critical.haemoglobin", "emergency.bleeding"}),
    ("surgery", "Penso repassado de sangue, e agora?", {}, (lab("Hemoglobina", 68, "g/L"),), {},
     {"critical.haemoglobin", "emergency.bleeding"}),
    ("cardiology", "CHA2DS2-VASc and anticoagulant?", {}, (lab("Creatinine", 1.6, "mg/dL", "H"),),
     {"conditions": names("conditions", ["AF", "hypertension", "diabetes", "previous stroke"])}, set()),
    ("cardiology", "Score e anticoagulação? AVC prévio", {}, (lab("Creatinina", 141, "umol/L", "H"),), {}, set()),
    ("emergency", "Ate prawns, hives and wheeze, BP 82/44", {"rr": 26, "sbp": 82, "hr": 128}, (), {},
     {"news2.high", "emergency.anaphylaxis", "emergency.shock"}),
    ("emergency", "Comeu marisco, urticária e pieira", {}, (), {}, {"emergency.anaphylaxis"}),
    ("icu", "VF arrest, third shock given, which drug next?", {"acvpu": "U"}, (), {"medications": SEDATED},
     {"emergency.cardiac_arrest"}),
    ("icu", "PCR em FV, terceiro choque dado, qual o fármaco?", {}, (), {}, {"emergency.cardiac_arrest"}),
    ("icu", "Spontaneous breathing trial today?", {"acvpu": "U", "o2": True, "rr": 24, "spo2": 93}, (),
     {"medications": SEDATED}, set()),
    ("icu", "Doente ventilado, RASS -4, qual o alvo?", {"acvpu": "U", "o2": True, "rr": 24, "spo2": 93}, (), {}, set()),
    ("icu", "Sedation target?", {"acvpu": "U", "o2": True},
     (lab("Potassium", 7.0, "mmol/L"),), {"medications": SEDATED}, {"critical.potassium"}),
    ("cardiology", "Start sacubitril/valsartan? Angioedema on lisinopril", {"sbp": 112}, (),
     {"allergies": names("allergies", ["lisinopril (angioedema)"])}, set()),
    ("cardiology", "Iniciar sacubitril/valsartan? Angioedema com lisinopril", {"sbp": 112}, (), {}, set()),
    ("surgery", "SpO2 90 on 2 L, COPD, more oxygen?", {"spo2": 90, "o2": True, "scale": 2}, (),
     {"conditions": names("conditions", ["COPD with hypercapnia"])}, set()),
    ("surgery", "DPOC com hipercapnia, mais oxigénio?", {"spo2": 90, "o2": True, "scale": 2}, (), {}, set()),
    ("surgery", "SpO2 98 on 4 L, COPD", {"spo2": 98, "o2": True, "scale": 2, "rr": 22}, (), {}, {"news2.high"}),
    ("emergency", "What is on the cafeteria menu?", {}, (), {}, set()),
    ("emergency", "O que há hoje na cantina?", {}, (), {}, set()),
    ("emergency", "What is the STEMI door-to-balloon time?", {}, (), {}, set()),
    ("cardiology", "QTc 512 com haloperidol e ondansetrom, K 3,1", {"hr": 58},
     (lab("Potássio", 3.1, "mmol/L", "L"),), {}, set()),
    ("cardiology", "Sem dor torácica, pode ter alta?", {}, (), {}, set()),
)  # fmt: skip


@pytest.mark.parametrize(("department", "question", "signs", "labs", "more", "expected"), CASES)
def test_triage_cases(
    department: str,
    question: str,
    signs: dict[str, Any],
    labs: tuple[Observation, ...],
    more: dict[str, Any],
    expected: set[str],
) -> None:
    """Each case raises what it must; one that must raise nothing raises nothing."""
    found = ids(run(question, patient(*vital_signs(**signs), *labs, **more), department))
    assert expected <= found
    assert bool(expected) == bool(found)


def test_triage_news2_thresholds() -> None:
    """5-6 is medium, 7 high, 3 in one parameter single; 4 without a 3 is not escalated."""
    assert ids(run("plan?", patient(*vital_signs(spo2=94, o2=True, hr=95)))) == set()
    assert ids(run("plan?", patient(*vital_signs(rr=22, hr=115, temp=38.5)))) == {"news2.medium"}
    assert ids(run("plan?", patient(*vital_signs(rr=22, hr=115, sbp=98, temp=38.5)))) == {"news2.high"}
    assert ids(run("plan?", patient(*vital_signs(rr=26)))) == {"news2.single"}


def test_triage_incomplete_news2_escalates_when_certain() -> None:
    """With a parameter missing, what is there escalates when it already suffices, and says so."""
    signs = [o for o in vital_signs(rr=28, sbp=88, hr=134) if o.name != "Body temperature"]
    result = run("plan?", patient(*signs))
    assert result.scores[0].value is None
    assert ids(result) == {"news2.high"}
    assert "at least 9" in result.red_flags[0].text
    assert any("temperature: not recorded" in text for text in result.missing)


def test_triage_icu_without_sedation_escalates() -> None:
    """Intensive care alone does not silence NEWS2; sedation elsewhere does not either."""
    signs = vital_signs(rr=24, spo2=93, o2=True, acvpu="U", hr=96)
    assert "news2.high" in ids(run("plan?", patient(*signs), "icu"))
    assert "news2.high" in ids(run("plan?", patient(*signs, medications=SEDATED), "surgery"))
    silenced = run("plan?", patient(*signs, medications=SEDATED), "icu")
    assert ids(silenced) == set()
    assert silenced.scores[0].value is not None
    assert silenced.scores[0].band == "high"
    assert "does not escalate by itself" in silenced.scores[0].text


def test_triage_icu_circulation_still_counts() -> None:
    """Under sedation a systolic of 78 is escalated; fentanyl alone is no sedation."""
    low = vital_signs(rr=24, acvpu="U", sbp=78)
    assert ids(run("plan?", patient(*low, medications=SEDATED), "icu")) == {"news2.circulation"}
    awake = patient(*vital_signs(rr=24, spo2=93, o2=True, hr=96), medications=names("medications", ["fentanyl"]))
    assert ids(run("plan?", awake, "icu")) == {"news2.high"}


@pytest.mark.parametrize(
    ("department", "expected"),
    [
        ("icu", True),
        ("ICU-2", True),
        ("uci_polivalente", True),
        ("cuidados intensivos", True),
        ("surgery", False),
        ("circuit", False),
    ],
)
def test_is_intensive_care(department: str, expected: bool) -> None:
    """Intensive care is known by its id in either language, as a whole word."""
    assert is_intensive_care(department) is expected


@pytest.mark.parametrize("more", [{"birth_date": date(2015, 1, 1)}, {"pregnant": True}])
def test_triage_not_validated(more: dict[str, Any]) -> None:
    """A child and a pregnant patient get no NEWS2 and no NEWS2 flag; the other triggers stay."""
    layer = patient(*vital_signs(rr=40, hr=150), lab("Potassium", 7.1, "mmol/L"), **more)
    result = run("plan?", layer)
    assert result.scores[0].value is None
    assert ids(result) == {"critical.potassium"}


def test_triage_deceased() -> None:
    """A deceased patient raises no score and no critical result."""
    layer = patient(*vital_signs(rr=40), lab("Potassium", 7.1, "mmol/L"), deceased=True)
    result = run("time of death?", layer)
    assert result.scores == ()
    assert result.red_flags == ()
    assert result.missing != ()


def test_triage_without_patient() -> None:
    """Without a patient only what the question says counts."""
    assert ids(run("Cardiac arrest in the corridor")) == {"emergency.cardiac_arrest"}
    assert run("hello").red_flags == ()


def test_triage_ecg_report_recent() -> None:
    """A recent ECG report with ST elevation escalates with its ref; an old or overtaken one does not."""
    text = "ST elevation V2-V6, anterior Q waves, poor R-wave progression"
    old = Report(ref="DiagnosticReport/1", title="ECG", text=text, kind="ecg", as_of=NOW - timedelta(hours=3))
    result = run("ECG?", patient(*vital_signs(), reports=(old,)))
    assert ids(result) == {"emergency.stemi"}
    assert result.red_flags[0].ref == "DiagnosticReport/1"
    assert result.signals == ("stemi",)
    assert run("ECG?", patient(reports=(old,)), now=NOW + timedelta(days=3)).red_flags == ()
    newer = Report(ref="DiagnosticReport/2", title="ECG", text="Normal ECG", kind="ecg", as_of=NOW - timedelta(hours=1))
    assert run("ECG?", patient(*vital_signs(), reports=(newer, old))).red_flags == ()


def test_triage_new_diagnosis() -> None:
    """A diagnosis of the last day that names an emergency escalates; the same one of years ago does not."""
    new = Condition(ref="Condition/1", name="Septic shock", onset=NOW - timedelta(hours=2))
    old = Condition(ref="Condition/1", name="Septic shock", onset=NOW - timedelta(days=800))
    assert {"emergency.sepsis", "emergency.shock"} <= ids(run("plan?", patient(*vital_signs(), conditions=(new,))))
    assert run("plan?", patient(*vital_signs(), conditions=(old,))).red_flags == ()


def test_triage_portuguese_texts() -> None:
    """In Portuguese every text of the result is Portuguese."""
    layer = patient(*vital_signs(rr=30)[:-2], lab("Potássio", 7.0, "mmol/L"))
    result = run("hipercaliemia grave", layer, lang="pt-PT")
    assert {flag.text.split(":")[0] for flag in result.red_flags} == {
        "NEWS2 não calculado, falta", "Resultado crítico", "Emergência reconhecida",
    }  # fmt: skip
    assert any("sem registo" in text for text in result.missing)


# --- critical results ---------------------------------------------------------------------------------------

#: (name, value, unit, flagged id or None)
VALUES: tuple[tuple[str, float, str | None, str | None], ...] = (
    ("Potassium", 6.9, "mmol/L", "potassium"),
    ("Potássio sérico", 6.9, "mEq/L", "potassium"),
    ("Potassium", 6.2, "mmol/L", None),
    ("Potassium", 2.7, "mmol/L", "potassium"),
    ("Potassium", 2.8, "mmol/L", None),
    ("Sodium", 119, "mmol/L", "sodium"),
    ("Sódio", 140, "mmol/L", None),
    ("Glucose", 42, "mg/dL", "glucose"),
    ("Glicose", 2.3, "mmol/L", "glucose"),
    ("Glucose", 5.6, "mmol/L", None),
    ("Glucose", 25.0, "mmol/L", "glucose"),
    ("Glucose", 96, "mg/dL", None),
    ("Calcium", 1.5, "mmol/L", "calcium"),
    ("Cálcio", 9.4, "mg/dL", None),
    ("Ionised calcium", 0.7, "mmol/L", "ionised_calcium"),
    ("Magnesium", 0.38, "mmol/L", "magnesium"),
    ("Magnesium", 1.4, "mg/dL", None),
    ("Bicarbonate", 9, "mmol/L", "bicarbonate"),
    ("Hemoglobin", 7.0, "g/dL", "haemoglobin"),
    ("Hemoglobina", 68, "g/L", "haemoglobin"),
    ("Hemoglobin", 7.1, "g/dL", None),
    ("Platelets", 18, "10*9/L", "platelets"),
    ("Plaquetas", 18, "10*3/uL", "platelets"),
    ("Platelets", 18000, "/uL", "platelets"),
    ("Platelets", 38, "10*9/L", None),
    ("Leukocytes", 0.8, "10*9/L", "wbc"),
    ("INR", 6.1, None, "inr"),
    ("INR", 2.5, "{INR}", None),
    ("Lactate", 3.5, "mmol/L", "lactate"),
    ("Lactato", 36, "mg/dL", "lactate"),
    ("Lactate", 1.9, "mmol/L", None),
    ("pH", 7.12, None, "ph"),
    ("pH", 7.31, "", None),
    ("pCO2", 8.5, "kPa", "pco2"),
    ("PaO2", 45, "mmHg", "po2"),
    ("pO2 venous", 38, "mmHg", None),
    ("Fibrinogen", 0.9, "g/L", "fibrinogen"),
    ("Digoxin", 3.4, "ng/mL", "digoxin"),
    ("Creatinine", 1.6, "mg/dL", None),
    ("Potassium", 6.9, None, None),
    ("Potassium", 6.9, "mg/dL", None),
    ("Potassium", 69, "mmol/L", None),
    ("Potassium urine", 12, "mmol/L", None),
    ("Hemoglobin A1c", 6.5, "%", None),
)


@pytest.mark.parametrize(("name", "value", "unit", "expected"), VALUES)
def test_critical_values(name: str, value: float, unit: str | None, expected: str | None) -> None:
    """A value is critical by its limit in its own unit; without a sure unit it is never compared."""
    found = [flag.id for flag in critical_results(patient(lab(name, value, unit)), HOSPITAL, NOW)]
    assert found == ([] if expected is None else [f"critical.{expected}"])


def test_critical_by_flag() -> None:
    """The laboratory's HH and LL always count, also without a unit and for an analyte the table does not know."""
    layer = patient(
        lab("Potassium", 6.9, None, "HH"), lab("Ammonia", 310, "umol/L", "HH"), lab("NT-proBNP", 8900, "pg/mL", "H")
    )
    found = {flag.id: flag.text for flag in critical_results(layer, HOSPITAL, NOW)}
    assert set(found) == {"critical.potassium", "critical.ammonia"}
    assert "unit missing" in found["critical.potassium"]
    assert "flagged HH by the laboratory" in found["critical.ammonia"]


def test_critical_text_complete() -> None:
    """A critical result says value, unit, limit with its source, reference range and time."""
    (flag,) = critical_results(patient(lab("Potassium", 6.9, "mmol/L", "HH", low=3.5, high=5.1)), HOSPITAL, NOW)
    for part in ("Potassium 6.9 mmol/L", "> 6.2 mmol/L", "Iowa", "3.5-5.1", "2026-01-15 07:30"):
        assert part in flag.text
    assert flag.ref == "Observation/Potassium"


def test_critical_latest_only() -> None:
    """Only the newest value of an analyte counts, across its codes and names."""
    newer = lab("Potássio", 4.4, "mmol/L", ref="Observation/b", as_of=NOW - timedelta(hours=1))
    older = lab("Potassium", 6.9, "mmol/L", "HH", ref="Observation/a", as_of=NOW - timedelta(hours=5))
    assert critical_results(patient(older, newer), HOSPITAL, NOW) == ()


def test_critical_old_value_told_not_raised() -> None:
    """A critical value over 48 hours old raises nothing and is told as old for two weeks; after years it is silent."""
    three_days = lab("Potassium", 6.9, "mmol/L", as_of=NOW - timedelta(days=3))
    result = run("plan?", patient(*vital_signs(), three_days))
    assert result.red_flags == ()
    assert any("older than 48 h" in text for text in result.missing)
    years = lab("Potassium", 6.9, "mmol/L", "HH", as_of=NOW - timedelta(days=3000))
    result = run("plan?", patient(*vital_signs(), years))
    assert (result.red_flags, result.missing) == ((), ())


def test_critical_time_unknown_counts() -> None:
    """A critical value without a time is raised, and its missing time said."""
    (flag,) = critical_results(patient(lab("Potassium", 6.9, "mmol/L", as_of=None)), HOSPITAL, NOW)
    assert "time not recorded" in flag.text


@pytest.mark.parametrize(
    ("comparator", "value", "expected"),
    [(">", 600, True), (">", 100, False), ("<", 20, True), ("<", 600, False), (">=", 500, True), ("<", 100, False)],
)
def test_critical_comparator(comparator: str, value: float, expected: bool) -> None:
    """Behind a comparator a value is critical only where that side is certain."""
    layer = patient(lab("Glucose", value, "mg/dL", comparator=comparator))
    assert bool(critical_results(layer, HOSPITAL, NOW)) is expected


def test_critical_hospital_limits_first() -> None:
    """The hospital's own limits replace the defaults on both sides, and include the limit itself."""
    own = HospitalLayer(name="Own", as_of=NOW, critical_limits={"potassium": (None, 6.0), "creatinine": (None, 4.0)})
    assert [f.id for f in critical_results(patient(lab("Potassium", 6.0, "mmol/L")), own, NOW)] == [
        "critical.potassium"
    ]
    assert critical_results(patient(lab("Potassium", 2.0, "mmol/L")), own, NOW) == ()
    assert [f.id for f in critical_results(patient(lab("Creatinine", 400, "umol/L")), own, NOW)] == [
        "critical.creatinine"
    ]


@pytest.mark.parametrize(
    ("value", "more", "question", "expected"),
    [
        (45, {"high": 0.04}, "ECG?", True),
        (45, {"range_text": "< 0.04"}, "ECG?", True),
        (45, {"range_text": "0,00 - 0,04"}, "ECG?", True),
        (0.02, {"high": 0.04}, "chest pain since 1 h", False),
        (0.08, {"high": 0.04}, "when to mobilise?", False),
        (0.08, {"high": 0.04}, "chest pain since 1 h", True),
        (0.08, {"high": 0.04}, "no chest pain", False),
        (45, {}, "ECG?", False),
        (45, {"flag": "HH"}, "ECG?", True),
        (0.01, {"high": 0.04, "comparator": "<"}, "chest pain since 1 h", False),
    ],
)
def test_critical_troponin(value: float, more: dict[str, Any], question: str, expected: bool) -> None:
    """Troponin counts against its own range: over five times, or over it with an acute presentation; else by flag."""
    result = run(question, patient(*vital_signs(), lab("Troponin I", value, "ng/mL", **more)))
    assert ("critical.troponin" in ids(result)) is expected
    if not more:
        assert any("no reference range" in text for text in result.missing)


def test_upper_reference_texts() -> None:
    """The upper reference limit is read from a number or from the range as written."""
    for text, expected in (
        ("< 0.04", 0.04),
        ("0-14", 14),
        ("3,5 - 5,1", 5.1),
        ("up to 14 ng/L", 14),
        ("negative", None),
    ):
        assert upper_reference(lab("T", 1, "x", range_text=text)) == expected


def test_unjudged_values_named() -> None:
    """A value that could not be compared is named in what is missing."""
    result = run("plan?", patient(*vital_signs(), lab("Potassium", 6.9, None)))
    assert result.red_flags == ()
    assert any("Potassium 6.9 (unit missing)" in text and "not compared" in text for text in result.missing)


@settings(deadline=None)
@given(data=st.data())
def test_units_round_trip(data: st.DataObject) -> None:
    """A value told in any unit of its analyte comes back as the same canonical value."""
    analyte = data.draw(st.sampled_from(ANALYTES))
    unit = data.draw(st.sampled_from(sorted(analyte.units)))
    low, high = analyte.plausible
    value = data.draw(st.floats(low + (high - low) * 0.001, high * 0.999))
    told = from_canonical(analyte, value, unit)
    assert told is not None
    assert to_canonical(analyte, told, unit) == pytest.approx(value, rel=1e-6)


def test_analytes_consistent() -> None:
    """Ids, LOINC codes and names each belong to one analyte, and each limit is a possible result."""
    codes = [code for analyte in ANALYTES for code in analyte.loinc]
    assert len(codes) == len(set(codes))
    for analyte in ANALYTES:
        for name in (analyte.en, analyte.pt):
            found = analyte_named(name)
            assert found is not None
            assert found.id == analyte.id
        for limit in (analyte.low, analyte.high):
            assert limit is None or analyte.plausible[0] < limit < analyte.plausible[1]
        assert analyte.source


observations = st.builds(
    Observation,
    ref=st.sampled_from(["Observation/1", "Observation/2", "Observation/3"]),
    name=st.sampled_from(["Potassium", "Heart rate", "SpO2", "Glucose", "Troponin", "ACVPU", "FiO2", "Temp", "?", ""]),
    code=st.sampled_from([None, "2823-3", "8867-4", "8310-5", "3150-6", "80288-4", "x"]),
    value=st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)),
    text=st.one_of(st.none(), st.text(max_size=12)),
    unit=st.sampled_from([None, "", "mmol/L", "%", "Cel", "ng/mL", "\u0000"]),
    comparator=st.sampled_from(["", "<", ">"]),
    high=st.one_of(st.none(), st.floats(allow_nan=True)),
    range_text=st.sampled_from(["", "< 0.04", "abc", "1-2"]),
    flag=st.sampled_from(["", "H", "HH", "LL", "A"]),
    as_of=st.one_of(st.none(), st.datetimes(datetime(1990, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))),  # noqa: DTZ001
)


@settings(deadline=None)
@given(st.lists(observations, max_size=8), st.text(max_size=40), st.sampled_from(["en", "pt-PT", ""]))
def test_triage_any_record(items: list[Observation], question: str, lang: str) -> None:
    """No record and no question raises; the same input gives the same result, each flag once."""
    layer = patient(*items)
    result = run(question, layer, lang=lang)
    assert result == run(question, layer, lang=lang)
    assert len({(flag.id, flag.ref) for flag in result.red_flags}) == len(result.red_flags)


def test_moment_in_the_hospitals_zone() -> None:
    """Times of red flags are the hospital's local ones, in summer too; where the zone is not known, UTC says so."""
    at = datetime(2026, 7, 15, 7, 30, tzinfo=UTC)
    assert moment(at, "en", "Europe/Lisbon") == "2026-07-15 08:30"
    assert moment(at, "en", "Nowhere/Else") == "2026-07-15 07:30 UTC"
    assert moment(at, "en") == "2026-07-15 07:30 UTC"
