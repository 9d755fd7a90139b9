# ruff: noqa: E501 - the rows of a table are read across
"""What a good answer needs from the record, by protocol and by report, as data.

A protocol's row names the values that a doctor reads beside it, and what must be said when it is not there. The rows
follow the protocols' own lines ("measure lactate", "only glucose must precede thrombolysis"); ids are those of the
protocol library and of ``concepts``. A protocol without a row needs nothing in particular.
"""

from __future__ import annotations

from typing import Final

import msgspec


class Need(msgspec.Struct, frozen=True):
    """show: concepts whose latest value is shown. must: concepts whose absence is said. reports: kinds shown and missed.

    say: keys of ``wording`` for what no record of this kind holds.
    """

    show: tuple[str, ...] = ()
    must: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()
    say: tuple[str, ...] = ()


def _need(show: str, must: str = "", reports: str = "", say: str = "") -> Need:
    return Need(tuple(show.split()), tuple(must.split()), tuple(reports.split()), tuple(say.split()))


BY_PROTOCOL: Final[dict[str, Need]] = {
    "stemi": _need("troponin ckmb hemoglobin platelets creatinine egfr potassium", "troponin", "ecg", "missing.onset"),
    "nste_acs": _need("troponin ckmb hemoglobin platelets creatinine egfr potassium", "troponin", "ecg", "missing.onset"),
    "sepsis": _need("lactate wbc crp procalcitonin creatinine bilirubin platelets map", "lactate"),
    "stroke": _need("glucose inr platelets sbp dbp", "glucose inr", "ct", "missing.last_well"),
    "trauma": _need("gcs hemoglobin lactate base_excess inr fibrinogen ionised_calcium temperature", "hemoglobin"),
    "cardiac_arrest": _need("potassium ph lactate glucose hemoglobin"),
    "heart_failure": _need("nt_probnp bnp lvef creatinine egfr potassium sodium weight", "creatinine potassium", "echo"),
    "af": _need("creatinine egfr weight potassium magnesium lvef tsh hemoglobin inr", "creatinine", "ecg"),
    "preop": _need("hemoglobin platelets inr creatinine potassium glucose", "hemoglobin"),
    "vte": _need("weight bmi creatinine egfr platelets hemoglobin d_dimer", "creatinine platelets"),
    "vent": _need("ph pco2 po2 pf_ratio oxygen spo2 height", "ph height"),
    "sedation": _need("rass", "rass"),
    "vasopressors": _need("map sbp lactate", "lactate"),
    "qtc": _need("qtc potassium magnesium calcium ionised_calcium", "potassium magnesium", "ecg"),
    "hyperkalaemia": _need("potassium creatinine egfr urea glucose bicarbonate", "potassium glucose", "ecg"),
    "glucose": _need("glucose ketones ph bicarbonate potassium", "glucose"),
}  # fmt: skip

#: Values that a kind of report is read with.
BY_REPORT: Final[dict[str, tuple[str, ...]]] = {
    "ecg": ("troponin", "potassium", "magnesium", "qtc"),
    "echo": ("lvef", "nt_probnp", "bnp"),
    "ct": ("creatinine", "egfr"),
    "angiography": ("troponin", "creatinine", "egfr"),
    "culture": ("crp", "procalcitonin", "wbc", "lactate"),
}

#: Problems whose recorded onset answers the question for its time; patterns on the folded name.
ONSET_OF: Final[dict[str, str]] = {
    "stemi": r"stemi|infarct|enfarte|coronar",
    "nste_acs": r"stemi|infarct|enfarte|coronar|angina",
    "stroke": r"stroke|avc|cerebral",
}

#: What a dose is calculated from.
FOR_DOSE: Final[tuple[str, ...]] = ("weight", "creatinine", "egfr", "crcl")

#: Names of the same disease in the record's and in the question's language; a row is one meaning, folded.
SAME_DISEASE: Final[tuple[tuple[str, ...], ...]] = (
    ("diabetes", "diabetic", "diabetico", "diabetica"),
    ("prediabetes", "pre-diabetes"),
    ("hypertension", "hypertensive", "hipertensao", "hipertenso", "hipertensa"),
    ("myocardial infarction", "heart attack", "enfarte", "infarto", "enfarte do miocardio", "eam"),
    ("stroke", "avc", "acidente vascular cerebral", "cva"),
    ("heart failure", "insuficiencia cardiaca", "hfref", "hfpef"),
    ("atrial fibrillation", "fibrilhacao auricular", "fibrilacao atrial"),
    ("cardiac arrest", "paragem cardiaca", "paragem cardiorrespiratoria"),
    ("coronary", "coronaria", "coronario"),
    ("pneumonia",),
    ("copd", "chronic obstructive", "dpoc", "doenca pulmonar obstrutiva"),
    ("asthma", "asma", "asthmatic"),
    ("emphysema", "enfisema"),
    ("bronchitis", "bronquite"),
    ("sinusitis", "sinusite"),
    ("pharyngitis", "faringite"),
    ("kidney disease", "renal disease", "doenca renal", "ckd", "drc", "insuficiencia renal"),
    ("nephropathy", "nefropatia"),
    ("neuropathy", "neuropatia"),
    ("retinopathy", "retinopatia"),
    ("appendicitis", "apendicite", "appendectomy", "apendicectomia"),
    ("cancer", "carcinoma", "neoplasm", "malignant", "neoplasia", "cancro", "tumor"),
    ("anemia", "anaemia"),
    ("obesity", "obese", "obesidade", "body mass index 30"),
    ("osteoporosis", "osteoporose"),
    ("osteoarthritis", "osteoartrose", "artrose"),
    ("arthritis", "artrite"),
    ("epilepsy", "epilepsia", "seizure", "convulsao"),
    ("dementia", "alzheimer", "demencia"),
    ("depression", "depressao", "depressive"),
    ("anxiety", "ansiedade"),
    ("hyperlipidemia", "hypercholesterolemia", "dislipidemia", "hiperlipidemia", "dyslipidaemia", "hipercolesterolemia"),
    ("hypertriglyceridemia", "hipertrigliceridemia"),
    ("metabolic syndrome", "sindrome metabolica"),
    ("sepsis", "septic", "sepsia", "septico", "sepse"),
    ("embolism", "embolia", "tep"),
    ("thrombosis", "trombose", "dvt", "tvp"),
    ("hepatitis", "hepatite"),
    ("cirrhosis", "cirrose"),
    ("fracture", "fratura"),
    ("concussion", "concussao"),
    ("burn", "queimadura"),
    ("pregnancy", "gravidez", "pregnant", "gravida"),
    ("migraine", "enxaqueca"),
    ("gout", "gota"),
    ("hypothyroidism", "hipotiroidismo", "hypothyroid"),
    ("alcohol", "alcohol dependence", "alcoolismo", "alcoholism"),
    ("dialysis", "hemodialise", "dialise", "haemodialysis"),
    ("polyp", "polipo"),
    ("pneumothorax", "pneumotorax"),
    ("aortic stenosis", "estenose aortica"),
    ("bypass", "cabg", "coronary artery bypass"),
    ("stent", "pci", "percutaneous coronary", "angioplasty", "angioplastia"),
    ("defibrillator", "desfibrilhador", "cdi", "icd"),
    ("pacemaker", "pace-maker"),
    ("influenza", "gripe", "flu"),
    ("tetanus", "tetano", "td (adult)"),
    ("pneumococcal", "pneumococica"),
    ("zoster", "herpes zoster", "shingles", "zona"),
)  # fmt: skip
