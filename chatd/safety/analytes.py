"""Laboratory values that call for somebody at once: names, units and limits as one table.

Default limits are adult call limits of two published laboratory handbooks (University of Iowa; Houston Methodist)
and, for platelets, white cells and INR, of other laboratories' pages. Where two disagree, the one that calls
earlier stands here. A hospital's own table (``HospitalLayer.critical_limits``) goes before all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import msgspec

from chatd.safety.words import key
from context.layers import Observation
from context.memo import remembers
from context.text import fold

#: A factor, or for troponin assays none at all: one analyte's units differ only by scale.
Units = Mapping[str, float]

_MMOL = {"mmol/l": 1.0, "meq/l": 1.0, "mmol": 1.0, "mval/l": 1.0}
_CELLS = {
    "10*9/l": 1.0, "10*3/ul": 1.0, "10e9/l": 1.0, "10e3/ul": 1.0, "x10*9/l": 1.0, "x10*3/ul": 1.0, "109/l": 1.0,
    "103/ul": 1.0, "x109/l": 1.0, "x103/ul": 1.0, "k/ul": 1.0, "k/mm3": 1.0, "g/l": 1.0, "giga/l": 1.0,
    "thou/ul": 1.0, "thousand/ul": 1.0, "10*3/mm3": 1.0, "1000/ul": 1.0, "10*3/mcl": 1.0, "k/mcl": 1.0,
    "/ul": 0.001, "/mm3": 0.001, "cells/ul": 0.001, "{cells}/ul": 0.001, "/mcl": 0.001, "cel/mm3": 0.001,
    "10*6/l": 0.001,
}  # fmt: skip
_PRESSURE = {"mm[hg]": 1.0, "mmhg": 1.0, "torr": 1.0, "kpa": 7.50062}


class Analyte(msgspec.Struct, frozen=True, kw_only=True):
    """One analyte of the table.

    unit: the canonical one; ``units``: factor from each accepted unit (folded, without spaces) to it.
    low, high: default call limits in ``unit``; ``low_at``/``high_at``: whether the limit itself is called.
    plausible: inclusive bounds of what can be a result; outside it the value or its unit is a mistake.
    unitless: a missing unit is no mistake (pH, INR).
    names: whole names, folded by ``words.key``. signals: protocols that fit a critical value.
    """

    id: str
    en: str
    pt: str
    loinc: tuple[str, ...]
    names: str
    unit: str
    units: dict[str, float]
    plausible: tuple[float, float]
    low: float | None = None
    high: float | None = None
    low_at: bool = False
    high_at: bool = False
    unitless: bool = False
    source: str = ""
    signals_low: tuple[str, ...] = ()
    signals_high: tuple[str, ...] = ()


_IOWA = "University of Iowa laboratory handbook"
_HOUSTON = "Houston Methodist critical values"

# In names, "(?: serum)?" and the like are taken away by ``_CORE`` first.
ANALYTES: tuple[Analyte, ...] = (
    Analyte(
        id="potassium", en="Potassium", pt="Potássio",
        loinc=("2823-3", "6298-4", "2824-1", "75940-7", "32713-0", "39789-3", "29349-4"),
        names=r"k|k\+|potassium|potassio|kaliemia|potassemia|caliemia",
        unit="mmol/L", units=_MMOL, plausible=(0.8, 15),
        low=2.8, high=6.2, source=_IOWA, signals_low=("qtc",), signals_high=("hyperkalaemia",),
    ),
    Analyte(
        id="sodium", en="Sodium", pt="Sódio",
        loinc=("2951-2", "2947-0", "32717-1", "39791-9"), names=r"na|na\+|sodium|sodio|natremia",
        unit="mmol/L", units=_MMOL, plausible=(80, 220), low=120, high=160, source=_IOWA,
    ),
    Analyte(
        id="glucose", en="Glucose", pt="Glicose",
        loinc=("2345-7", "2339-0", "2340-8", "41653-7", "15074-8", "14749-6", "74774-1", "14743-9", "32016-8",
               "2341-6", "1558-6", "5914-7", "41652-9", "39480-9", "39481-7"),
        names=r"glucose|glicose|glucosa|glicemia|glycaemia|glycemia|glucose (poc|bedside|fasting|random)|bm|bgl|dxt"
              r"|blood sugar|acucar no sangue|glicemia capilar|capillary glucose|fingerstick glucose|glu",
        unit="mg/dL", units={"mg/dl": 1.0, "mmol/l": 18.016, "mg/l": 0.1, "g/l": 100.0}, plausible=(5, 3000),
        low=50, high=400, low_at=True, high_at=True, source=f"{_HOUSTON} (<= 50, >= 400); {_IOWA} (< 50, > 450)",
        signals_low=("glucose",), signals_high=("glucose",),
    ),
    Analyte(
        id="calcium", en="Calcium", pt="Cálcio",
        loinc=("17861-6", "49765-1", "2000-8", "29265-6"),
        names=r"calcium|calcio|total calcium|calcium total|calcio total|calcemia"
              r"|(corrected|adjusted) calcium|calcio corrigido",
        unit="mg/dL", units={"mg/dl": 1.0, "mmol/l": 4.008, "meq/l": 2.004}, plausible=(2, 25),
        low=6.5, high=13, low_at=True, high_at=True, source=f"{_HOUSTON} (<= 6.5, >= 13); {_IOWA} (< 6.0, > 13.0)",
    ),
    Analyte(
        id="ionised_calcium", en="Ionised calcium", pt="Cálcio ionizado",
        loinc=("1995-0", "1994-3", "12180-6", "19072-8", "47596-2", "34581-9", "59471-3"),
        names=r"ionised calcium|ionized calcium|calcium ionised|calcium ionized|calcio ionizado|ica|free calcium"
              r"|calcium ionized adjusted to ph.*",
        unit="mmol/L", units={"mmol/l": 1.0, "mg/dl": 0.2495, "meq/l": 0.5}, plausible=(0.2, 4),
        low=0.75, high=1.5, low_at=True, high_at=True, source=_HOUSTON,
    ),
    Analyte(
        id="magnesium", en="Magnesium", pt="Magnésio",
        loinc=("19123-9", "2601-3", "21377-7"), names=r"mg|magnesium|magnesio|magnesemia",
        unit="mg/dL", units={"mg/dl": 1.0, "mmol/l": 2.4305, "meq/l": 1.21525}, plausible=(0.2, 20),
        low=1.0, high=4.7, source=_IOWA, signals_low=("qtc",),
    ),
    Analyte(
        id="bicarbonate", en="Bicarbonate", pt="Bicarbonato",
        loinc=("1963-8", "1960-4", "1959-6", "20565-8", "2028-9", "14627-4", "1961-2", "19223-7"),
        names=r"bicarbonate|bicarbonato|hco3|hco3-|hco 3|co2|tco2|total co2|co2 total|carbon dioxide"
              r"|carbon dioxide total|carbon dioxide content",
        unit="mmol/L", units=_MMOL, plausible=(1, 80), low=14, high=41, low_at=True, high_at=True,
        source=f"{_HOUSTON} (<= 14, >= 41); {_IOWA} (< 10, > 50)",
    ),
    Analyte(
        id="haemoglobin", en="Haemoglobin", pt="Hemoglobina",
        loinc=("718-7", "20509-6", "30313-1", "30350-3", "55782-7", "59260-0", "30352-9"),
        names=r"hb|hgb|haemoglobin|hemoglobin|hemoglobina|hb total|total haemoglobin|total hemoglobin",
        unit="g/dL", units={"g/dl": 1.0, "g/l": 0.1, "mmol/l": 1.6114, "g%": 1.0}, plausible=(1, 27),
        low=7.0, low_at=True, source=_HOUSTON,
    ),
    Analyte(
        id="platelets", en="Platelets", pt="Plaquetas",
        loinc=("777-3", "26515-7", "778-1", "49497-1", "13056-7", "74464-9"),
        names=r"plt|platelets?|platelet count|plaquetas|plaq|trombocitos|thrombocytes",
        unit="10*9/L", units=_CELLS, plausible=(0, 5000), low=20, low_at=True,
        source="Starling Physicians critical values",
    ),
    Analyte(
        id="wbc", en="White cells", pt="Leucócitos",
        loinc=("6690-2", "26464-8", "804-5", "49498-9", "12227-5"),
        names=r"wbc|wcc|white (blood )?cells?( count)?|leucocitos|leukocytes|leucocytes|leucograma|globulos brancos",
        unit="10*9/L", units=_CELLS, plausible=(0, 1000), low=1.0, high=25, low_at=True, high_at=True,
        source="Starling Physicians critical values", signals_high=("sepsis",),
    ),
    Analyte(
        id="inr", en="INR", pt="INR",
        loinc=("6301-6", "34714-6", "46418-0", "38875-1"), names=r"inr|international normalized ratio|pt inr|inr .*",
        unit="", units={"": 1.0, "1": 1.0, "{inr}": 1.0, "inr": 1.0, "ratio": 1.0, "{ratio}": 1.0},
        plausible=(0.5, 30), high=5.0, unitless=True, source="Citilab critical values",
    ),
    Analyte(
        id="lactate", en="Lactate", pt="Lactato",
        loinc=("2524-7", "2518-9", "32693-4", "2519-7", "14118-4", "32133-1", "30242-2", "59032-3", "19239-3",
               "51829-0"),
        names=r"lactate|lactato|lactic acid|acido lactico|lac|lact|lactatemia|lacticemia",
        unit="mmol/L", units={"mmol/l": 1.0, "meq/l": 1.0, "mg/dl": 1 / 9.008}, plausible=(0.1, 50),
        high=3.5, high_at=True, source=_HOUSTON, signals_high=("sepsis",),
    ),
    Analyte(
        id="ph", en="pH", pt="pH",
        loinc=("2744-1", "11558-4", "2746-6", "33254-4", "2745-8", "19213-8"),
        names=r"ph|ph (arterial|venous|venoso|blood|abg|vbg|sanguineo)|arterial ph|venous ph|blood ph",
        unit="", units={"": 1.0, "1": 1.0, "[ph]": 1.0, "ph": 1.0, "{ph}": 1.0}, plausible=(6.3, 8.0),
        low=7.20, high=7.60, low_at=True, high_at=True, unitless=True, source=_HOUSTON,
    ),
    Analyte(
        id="pco2", en="pCO2", pt="pCO2",
        loinc=("2019-8", "11557-6", "32771-8", "19217-9"),
        names=r"p ?a?co2|paco2|pco2 arterial|arterial pco2|carbon dioxide partial pressure",
        unit="mmHg", units=_PRESSURE, plausible=(5, 200), low=20, high=60, low_at=True, high_at=True, source=_HOUSTON,
    ),
    Analyte(
        # venous samples are normal at 40 mmHg: only arterial codes and names stand here
        id="po2", en="pO2 (arterial)", pt="pO2 (arterial)",
        loinc=("2703-7", "32770-0", "19255-9"), names=r"pao2|po2 arterial|arterial po2",
        unit="mmHg", units=_PRESSURE, plausible=(10, 700), low=50, low_at=True, source=_HOUSTON,
    ),
    Analyte(
        # no fixed limit: assays differ by a factor of 1000, see ``triage.troponin_is_critical``
        id="troponin", en="Troponin", pt="Troponina",
        loinc=("10839-9", "6598-7", "89579-7", "67151-1", "42757-5", "49563-0", "6597-9", "48425-3", "33204-9",
               "76399-5", "89577-1", "89578-9"),
        names=r"(hs|high sensitivity|alta sensibilidade)? ?(c?tn[it]|troponin[ae]?s?( (i|t))?( cardiac| cardiaca)?)"
              r"( (i|t))?( (hs|us|high sensitivity|de alta sensibilidade|alta sensibilidade|ultrassensivel))?"
              r"|(cardiac|cardiaca) troponin( (i|t))?|hs ?ctn[it]|troponina cardiaca( (i|t))?",
        unit="ng/L", units={"ng/l": 1.0, "pg/ml": 1.0, "ng/ml": 1000.0, "ug/l": 1000.0, "mcg/l": 1000.0, "ng/dl": 10.0,
                            "mg/l": 1_000_000.0},
        plausible=(0, 10_000_000), source="4th universal definition: against the result's own reference range",
        signals_high=("stemi", "nste_acs"),
    ),
    Analyte(
        id="creatinine", en="Creatinine", pt="Creatinina",
        loinc=("2160-0", "38483-4", "14682-9", "21232-4", "59826-8"),
        names=r"cr|crea|creat|creatinine|creatinina|creatininemia|creatininaemia",
        unit="mg/dL", units={"mg/dl": 1.0, "umol/l": 1 / 88.42, "mmol/l": 1000 / 88.42, "mcmol/l": 1 / 88.42},
        plausible=(0.05, 40), source="no published call limit: the laboratory's flag or the hospital's own limit",
    ),
    Analyte(
        id="fibrinogen", en="Fibrinogen", pt="Fibrinogénio",
        loinc=("3255-7", "48664-7", "30902-1"), names=r"fib|fibrinogen|fibrinogenio|fibrinogen activity",
        unit="mg/dL", units={"mg/dl": 1.0, "g/l": 100.0, "umol/l": 34.0}, plausible=(5, 2500),
        low=100, low_at=True, source=_HOUSTON,
    ),
    Analyte(
        id="digoxin", en="Digoxin", pt="Digoxina",
        loinc=("10535-3", "14698-5"), names=r"digoxin|digoxina|digoxin level|digoxinemia",
        unit="ng/mL", units={"ng/ml": 1.0, "ug/l": 1.0, "mcg/l": 1.0, "nmol/l": 0.7809}, plausible=(0, 30),
        high=3.0, high_at=True, source=_HOUSTON,
    ),
)  # fmt: skip

BY_ID = {analyte.id: analyte for analyte in ANALYTES}
_BY_LOINC = {code: analyte for analyte in ANALYTES for code in analyte.loinc}
_BY_NAME = tuple((analyte, re.compile(analyte.names)) for analyte in ANALYTES)

#: Words around an analyte's name that do not change what was measured. Urine, fluid, "ratio" and the like do,
#: and are therefore not here.
_CORE = re.compile(
    r"\b(serum|plasma|blood|whole|ser|plas|serpl|bld|arterial|capillary|scnc|mcnc|ncnc|substance|mass|moles|volume"
    r"|level|concentration|automated|count|auto|by|in|or|of|soro|no|na amostra|sangue|plasmatic[oa]|seric[oa]"
    r"|total de"
    r"|lab|poc|method|enzymatic|nivel|de|doseamento|measured)\b"
)
_OTHER_SAMPLE = re.compile(
    r"\b(urine|urina|urinari[oa]|urinary|csf|lcr|fluid|liquido|pleural|ascitic|stool|fezes|sweat|saliva|ratio|razao"
    r"|glycated|glicada|glycosylated|a1c|hba1c|clearance|depuracao|venous|venosa|venoso|mean|distribution|free"
    r"|plasma free|24 ?h|24h"
    r"|presence|post dialysis|fetal|mcv|mch|mchc|volume medio|microalbumin|excretion|target|alvo|goal)\b"
)


def analyte_of(observation: Observation) -> Analyte | None:
    """Which analyte of the table this result is: by LOINC, else by its name; None for anything else.

    A result of urine, fluid, or venous blood gas is none of these, whatever its name begins with.
    """
    if observation.code is not None and observation.code in _BY_LOINC:
        return _BY_LOINC[observation.code]
    return analyte_named(observation.name)


@remembers(4096)  # a record says the same few names hundreds of times
def analyte_named(name: str) -> Analyte | None:
    """The analyte with this name, English or Portuguese; None if there is none or the sample is another."""
    plain = key(name)
    if not plain:
        return None
    for analyte, pattern in _BY_NAME:
        if pattern.fullmatch(plain):
            return analyte
    if _OTHER_SAMPLE.search(plain):
        return None
    core = key(_CORE.sub(" ", re.sub(r"[\(\[\{].*?[\)\]\}]", " ", fold(name))))
    if not core:
        return None
    for analyte, pattern in _BY_NAME:
        if pattern.fullmatch(core):
            return analyte
    return None


def unit_key(unit: str | None) -> str:
    """A unit as the tables write it: "µmol / L" is "umol/l", "x10^9/L" is "x10*9/l"."""
    return fold(unit or "").replace(" ", "").replace("^", "*").replace("**", "*").replace("[ppm]", "")


def to_canonical(analyte: Analyte, value: float, unit: str | None) -> float | None:
    """``value`` in the analyte's canonical unit; None without a (known) unit, or outside what can be a result."""
    if not math.isfinite(value):
        return None
    factor = analyte.units.get(unit_key(unit))
    if factor is None and analyte.unitless and not unit_key(unit):
        factor = 1.0
    if factor is None:
        return None
    # 9 significant digits take away the noise of the factor and keep every digit a laboratory reports
    converted = float(f"{value * factor:.9g}")
    return converted if analyte.plausible[0] <= converted <= analyte.plausible[1] else None


def from_canonical(analyte: Analyte, value: float, unit: str) -> float | None:
    """The inverse of ``to_canonical`` without its bounds; None for a unit the analyte does not have."""
    factor = analyte.units.get(unit_key(unit))
    return None if factor is None else value / factor


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Call limits of one analyte in its canonical unit; ``low_at``/``high_at``: the limit itself is called."""

    low: float | None = None
    high: float | None = None
    low_at: bool = False
    high_at: bool = False
    source: str = ""

    def is_low(self, value: float) -> bool:
        """At or under the low limit."""
        return self.low is not None and (value < self.low or (self.low_at and value == self.low))

    def is_high(self, value: float) -> bool:
        """At or over the high limit."""
        return self.high is not None and (value > self.high or (self.high_at and value == self.high))

    def text(self, side: str) -> str:
        """ "<= 50" or "> 6.2"."""
        if side == "low":
            return f"{'<=' if self.low_at else '<'} {self.low:g}"
        return f"{'>=' if self.high_at else '>'} {self.high:g}"


def limits_of(
    analyte: Analyte, hospital_limits: Mapping[str, tuple[float | None, float | None]], hospital_name: str = ""
) -> Limits:
    """The hospital's own limits where it has any for this analyte, else the defaults.

    A hospital's row replaces both sides: None there means that this side is not called. Its limits are inclusive:
    a value at the limit is called.
    """
    own = hospital_limits.get(analyte.id)
    if own is not None:
        return Limits(low=own[0], high=own[1], low_at=True, high_at=True, source=hospital_name)
    return Limits(
        low=analyte.low,
        high=analyte.high,
        low_at=analyte.low_at,
        high_at=analyte.high_at,
        source=analyte.source,
    )
