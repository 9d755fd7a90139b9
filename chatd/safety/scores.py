"""Calculators of plain numbers: each refuses what its formula was not made for, none guesses.

All are for adults. Inputs outside the stated bounds raise ``OutOfRange``, which names the input and its bounds and
never the value. Results are rounded to one decimal by Python's ``round`` (a tie goes to the even digit).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

Sex = Literal["male", "female"]

#: Inclusive bounds of every input. They are wide enough for any living adult and narrow enough to catch a
#: value in another unit (creatinine in µmol/L, height in place of weight, a pressure in kPa).
BOUNDS: dict[str, tuple[float, float]] = {
    "age_years": (18, 120),
    "weight_kg": (25, 350),
    "creatinine_mg_dl": (0.1, 25),
    "qt_ms": (200, 800),
    "heart_rate_bpm": (25, 250),
    "systolic_mmhg": (30, 300),
    "diastolic_mmhg": (10, 200),
    "respiratory_rate_per_min": (0, 100),
    "glasgow_coma_scale": (3, 15),
}


class OutOfRange(ValueError):
    """An input lies outside the bounds of its formula; ``name`` says which."""

    def __init__(self, name: str, low: float, high: float) -> None:
        super().__init__(f"{name} must be within {low:g} and {high:g}")
        self.name = name


class Cha2ds2(NamedTuple):
    """``vasc``: CHA2DS2-VASc, 0 to 9. ``va``: CHA2DS2-VA, the same without sex, 0 to 8."""

    vasc: int
    va: int


class Qtc(NamedTuple):
    """The corrected QT interval by four formulas, in milliseconds."""

    bazett_ms: float
    fridericia_ms: float
    framingham_ms: float
    hodges_ms: float


def _within(name: str, value: float) -> float:
    low, high = BOUNDS[name]
    if not math.isfinite(value) or not low <= value <= high:
        raise OutOfRange(name, low, high)
    return float(value)


def _sex(sex: str) -> Sex:
    if sex == "male":
        return "male"
    if sex == "female":
        return "female"
    raise ValueError("sex must be male or female: the formula has no other coefficient")


def cha2ds2_vasc(
    *,
    age_years: float,
    sex: Sex,
    heart_failure: bool,
    hypertension: bool,
    diabetes: bool,
    stroke_tia_or_embolism: bool,
    vascular_disease: bool,
) -> Cha2ds2:
    """Stroke risk in atrial fibrillation: heart failure 1, hypertension 1, age 65-74 1 or 75 and over 2, diabetes 1,
    stroke, TIA or embolism 2, vascular disease 1, female 1.

    Source: PMC5020564 table 3; CHA2DS2-VA leaves sex out (ESC 2024).
    """
    age = _within("age_years", age_years)
    age_points = 2 if age >= 75 else 1 if age >= 65 else 0
    va = age_points + heart_failure + hypertension + diabetes + 2 * stroke_tia_or_embolism + vascular_disease
    return Cha2ds2(vasc=int(va + (_sex(sex) == "female")), va=int(va))


def qtc(*, qt_ms: float, heart_rate_bpm: float) -> Qtc:
    """QT corrected for rate, with RR = 60 / rate in seconds.

    Bazett QT/RR^1/2 (over-corrects at fast rates), Fridericia QT/RR^1/3, Framingham QT + 154 (1 - RR),
    Hodges QT + 1.75 (rate - 60).
    """
    qt = _within("qt_ms", qt_ms)
    rate = _within("heart_rate_bpm", heart_rate_bpm)
    rr_s = 60 / rate
    return Qtc(
        bazett_ms=round(qt / math.sqrt(rr_s), 1),
        fridericia_ms=round(qt / math.cbrt(rr_s), 1),
        framingham_ms=round(qt + 154 * (1 - rr_s), 1),
        hodges_ms=round(qt + 1.75 * (rate - 60), 1),
    )


def cockcroft_gault_ml_min(*, age_years: float, weight_kg: float, creatinine_mg_dl: float, sex: Sex) -> float:
    """Creatinine clearance in mL/min: (140 - age) x weight / (72 x creatinine), x 0.85 for women.

    Source: Cockcroft and Gault 1976, the formula of most drug labels; uses the weight as given.
    """
    age = _within("age_years", age_years)
    clearance = (140 - age) * _within("weight_kg", weight_kg) / (72 * _within("creatinine_mg_dl", creatinine_mg_dl))
    return round(clearance * (0.85 if _sex(sex) == "female" else 1), 1)


def ckd_epi_2021_ml_min_173(*, age_years: float, creatinine_mg_dl: float, sex: Sex) -> float:
    """Estimated filtration rate in mL/min/1.73 m2 by the 2021 CKD-EPI creatinine equation (without race).

    142 x min(Scr/k, 1)^a x max(Scr/k, 1)^-1.200 x 0.9938^age (x 1.012 women); k 0.7 or 0.9, a -0.241 or -0.302.
    """
    age = _within("age_years", age_years)
    creatinine = _within("creatinine_mg_dl", creatinine_mg_dl)
    female = _sex(sex) == "female"
    ratio = creatinine / (0.7 if female else 0.9)
    rate = (
        142
        * math.pow(min(ratio, 1), -0.241 if female else -0.302)
        * math.pow(max(ratio, 1), -1.2)
        * math.pow(0.9938, age)
    )
    return round(rate * (1.012 if female else 1), 1)


def mean_arterial_pressure_mmhg(*, systolic_mmhg: float, diastolic_mmhg: float) -> float:
    """(systolic + 2 x diastolic) / 3 in mmHg; the diastolic may not exceed the systolic."""
    systolic, diastolic = _within("systolic_mmhg", systolic_mmhg), _within("diastolic_mmhg", diastolic_mmhg)
    if diastolic > systolic:
        raise OutOfRange("diastolic_mmhg", BOUNDS["diastolic_mmhg"][0], systolic)
    return round((systolic + 2 * diastolic) / 3, 1)


def qsofa(*, respiratory_rate_per_min: float, systolic_mmhg: float, glasgow_coma_scale: int) -> int:
    """0 to 3: rate of 22 or more, systolic of 100 or less, Glasgow under 15.

    The Surviving Sepsis Campaign 2021 advises against it as the only screening tool.
    """
    rate = _within("respiratory_rate_per_min", respiratory_rate_per_min)
    systolic = _within("systolic_mmhg", systolic_mmhg)
    glasgow = _within("glasgow_coma_scale", glasgow_coma_scale)
    return int(rate >= 22) + int(systolic <= 100) + int(glasgow < 15)
