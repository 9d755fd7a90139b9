"""The calculators against the vectors and at the edges of what they accept."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.safety import scores
from tests.clinical_data import clinical_path


def sex(letter: str) -> scores.Sex:
    return "female" if letter == "F" else "male"


def calculate(row: dict[str, Any]) -> dict[str, float]:
    """What the vector's row expects, calculated."""
    given_ = row["input"]
    match row["calc"]:
        case "CHA2DS2-VASc":
            result = scores.cha2ds2_vasc(
                age_years=given_["age"],
                sex=sex(given_["sex"]),
                heart_failure=bool(given_["chf"]),
                hypertension=bool(given_["htn"]),
                diabetes=bool(given_["dm"]),
                stroke_tia_or_embolism=bool(given_["stroke"]),
                vascular_disease=bool(given_["vasc"]),
            )
            return {"score": result.vasc, "cha2ds2_va": result.va}
        case "QTc":
            corrected = scores.qtc(qt_ms=given_["qt_ms"], heart_rate_bpm=given_["hr"])
            return {
                "bazett": corrected.bazett_ms,
                "fridericia": corrected.fridericia_ms,
                "framingham": corrected.framingham_ms,
                "hodges": corrected.hodges_ms,
            }
        case "renal":
            age, creatinine, who = given_["age"], given_["creatinine_mg_dl"], sex(given_["sex"])
            return {
                "cockcroft_gault_ml_min": scores.cockcroft_gault_ml_min(
                    age_years=age, weight_kg=given_["weight_kg"], creatinine_mg_dl=creatinine, sex=who
                ),
                "ckd_epi_2021": scores.ckd_epi_2021_ml_min_173(age_years=age, creatinine_mg_dl=creatinine, sex=who),
            }
        case "MAP":
            return {
                "map": scores.mean_arterial_pressure_mmhg(systolic_mmhg=given_["sbp"], diastolic_mmhg=given_["dbp"])
            }
        case "qSOFA":
            return {
                "score": scores.qsofa(
                    respiratory_rate_per_min=given_["rr"],
                    systolic_mmhg=given_["sbp"],
                    glasgow_coma_scale=given_["gcs"],
                )
            }
    raise AssertionError(f"no calculator for {row['calc']}")


def test_calculators_vectors_all_exact() -> None:
    """Every calculator vector comes out to the last printed digit."""
    lines = clinical_path("scores", "calculator_vectors.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows
    wrong = []
    for row in rows:
        got = calculate(row)
        expected = {k: v for k, v in row.items() if k not in {"calc", "input"}}
        if got != expected:
            wrong.append((row["calc"], row["input"], expected, got))
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "call"),
    [
        (
            "age_years",
            lambda: scores.ckd_epi_2021_ml_min_173(age_years=17, creatinine_mg_dl=1, sex="male"),
        ),
        (
            "creatinine_mg_dl",
            lambda: scores.ckd_epi_2021_ml_min_173(age_years=50, creatinine_mg_dl=88, sex="male"),
        ),
        ("qt_ms", lambda: scores.qtc(qt_ms=0.4, heart_rate_bpm=60)),
        ("heart_rate_bpm", lambda: scores.qtc(qt_ms=400, heart_rate_bpm=0)),
        ("heart_rate_bpm", lambda: scores.qtc(qt_ms=400, heart_rate_bpm=math.nan)),
        ("systolic_mmhg", lambda: scores.mean_arterial_pressure_mmhg(systolic_mmhg=16, diastolic_mmhg=10)),
        ("diastolic_mmhg", lambda: scores.mean_arterial_pressure_mmhg(systolic_mmhg=80, diastolic_mmhg=120)),
        (
            "glasgow_coma_scale",
            lambda: scores.qsofa(respiratory_rate_per_min=20, systolic_mmhg=120, glasgow_coma_scale=2),
        ),
    ],
)
def test_calculators_refuse_out_of_range(name: str, call: Any) -> None:
    """An input outside its formula's bounds is refused and named, also when it is a number in another unit."""
    with pytest.raises(scores.OutOfRange) as caught:
        call()
    assert caught.value.name == name


def test_calculators_refuse_unknown_sex() -> None:
    """A formula with a coefficient for sex refuses a record that does not give one of its two."""
    with pytest.raises(ValueError, match="sex must be"):
        scores.cockcroft_gault_ml_min(age_years=50, weight_kg=70, creatinine_mg_dl=1, sex="unknown")  # type: ignore[arg-type]


@settings(deadline=None)
@given(rate=st.floats(25, 250), qt=st.floats(200, 800))
def test_qtc_moves_towards_rate_sixty(rate: float, qt: float) -> None:
    """All four corrections lengthen QT above 60 beats a minute and shorten it below."""
    corrected = scores.qtc(qt_ms=qt, heart_rate_bpm=rate)
    for value in corrected:
        assert value >= qt - 0.06 if rate >= 60 else value <= qt + 0.06


@settings(deadline=None)
@given(
    age=st.integers(18, 120),
    flags=st.lists(st.booleans(), min_size=5, max_size=5),
    who=st.sampled_from(["male", "female"]),
)
def test_cha2ds2_sex_is_the_only_difference(age: int, flags: list[bool], who: scores.Sex) -> None:
    """CHA2DS2-VASc is CHA2DS2-VA plus one point for women, within 0 to 9."""
    result = scores.cha2ds2_vasc(
        age_years=age,
        sex=who,
        heart_failure=flags[0],
        hypertension=flags[1],
        diabetes=flags[2],
        stroke_tia_or_embolism=flags[3],
        vascular_disease=flags[4],
    )
    assert result.vasc - result.va == (who == "female")
    assert 0 <= result.va <= 8
