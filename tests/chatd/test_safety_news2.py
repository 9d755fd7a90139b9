"""NEWS2 against the vectors, and the vital signs it is made from: codes, names, units, times."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatd.safety.triage import NEWS2_BANDS, NEWS2_PARTS, news2, news2_band
from chatd.safety.vitals import PLAUSIBLE, Vitals, consciousness, convert, prescribes_88_92, vitals_of
from context.layers import Condition, Event, Medication, Observation, PatientLayer
from tests.clinical_data import clinical_path

NOW = datetime(2026, 1, 15, 8, 0, tzinfo=UTC)
POINT_NAMES = {
    "respiration_rate": "rr",
    "spo2": "spo2",
    "air_or_oxygen": "o2",
    "systolic_bp": "sbp",
    "pulse": "hr",
    "consciousness": "acvpu",
    "temperature": "temp",
}
NORMAL = Vitals(rr=16, spo2=98, o2=False, sbp=124, hr=76, acvpu="A", temp=36.8)


def obs(name: str, value: float | None = None, unit: str | None = None, **more: Any) -> Observation:
    """One observation, half an hour old unless ``as_of`` says otherwise."""
    more.setdefault("as_of", NOW - timedelta(minutes=30))
    return Observation(ref=more.pop("ref", f"Observation/{name}"), name=name, value=value, unit=unit, **more)


def patient(*observations: Observation, **more: Any) -> PatientLayer:
    more.setdefault("birth_date", date(1960, 1, 1))
    return PatientLayer(patient_id="p", name="P", as_of=NOW, observations=observations, **more)


FULL = (
    obs("Respiratory rate", 24, "/min", code="9279-1"),
    obs("SpO2", 93, "%", code="59408-5"),
    obs("Inhaled oxygen flow rate", 4, "L/min", code="3151-8"),
    obs("Systolic blood pressure", 112, "mm[Hg]", code="8480-6"),
    obs("Heart rate", 96, "/min", code="8867-4"),
    obs("Level of consciousness", text="Unresponsive", code="80288-4"),
    obs("Body temperature", 37.6, "Cel", code="8310-5"),
)


def test_news2_vectors_all_exact() -> None:
    """Every vector's total, points, single parameters of 3 and clinical risk come out exactly."""
    lines = clinical_path("scores", "news2_vectors.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert rows
    wrong = []
    for row in rows:
        score = news2(msgspec.convert(row["input"], Vitals))
        points = {POINT_NAMES[name]: value for name, value in row["points"].items()}
        single = {POINT_NAMES[name] for name in row["single_parameter_3"]}
        got = {name for name, value in score.parts.items() if value == 3}
        if (score.value, score.band, score.parts, got) != (row["total"], row["clinical_risk"], points, single):
            wrong.append((row["id"], score))
    assert wrong == []


def test_news2_bands_equal_source() -> None:
    """The table in the code is the table of the source, bound by bound."""
    source = json.loads(clinical_path("scores", "news2_bands.json").read_text(encoding="utf-8"))["bands"]

    def bounds(rows: list[list[float | None]]) -> tuple[tuple[float, float], ...]:
        return tuple((math.inf if high is None else high, points or 0) for _, high, points in rows)

    for name, key in (("rr", "rr"), ("sbp", "sbp"), ("hr", "pulse"), ("temp", "temp"), ("spo2_scale1", "spo2_scale1")):
        assert NEWS2_BANDS[name] == bounds(source[key])
    both = source["spo2_scale2"]
    assert NEWS2_BANDS["spo2_scale2_oxygen"] == bounds([*both["any"], *both["on_oxygen"]])
    assert dict(NEWS2_BANDS["spo2_scale2_air"])[math.inf] == 0


maybe = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 400), st.integers(0, 400))


@settings(deadline=None)
@given(
    rr=maybe,
    spo2=maybe,
    sbp=maybe,
    hr=maybe,
    temp=maybe,
    o2=st.one_of(st.none(), st.booleans()),
    scale=st.sampled_from([None, 1, 2]),
    acvpu=st.sampled_from([None, "A", "C", "V", "P", "U"]),
    age=st.one_of(st.none(), st.integers(0, 110)),
    pregnant=st.one_of(st.none(), st.booleans()),
)
def test_news2_any_input(**given_: Any) -> None:
    """No input raises; a value stands only when all seven parts do, and then is their sum."""
    age, vitals = given_.pop("age"), given_
    score = news2(Vitals(age_years=age, **vitals))
    if score.value is None:
        assert score.text
        assert score.band == ""
    else:
        assert set(score.parts) == set(NEWS2_PARTS)
        assert score.value == sum(score.parts.values())
        assert score.band == news2_band(score.parts)
        assert 0 <= score.value <= 20
        assert not given_["pregnant"]
        assert age is None or age >= 16


@pytest.mark.parametrize(("parameter", "normal"), [("rr", 16.0), ("sbp", 150.0), ("hr", 70.0), ("temp", 37.0)])
@settings(deadline=None)
@given(data=st.data())
def test_news2_monotone_away_from_normal(parameter: str, normal: float, data: st.DataObject) -> None:
    """The further a vital sign lies from its normal band, on either side, the more points or as many."""
    low, high = PLAUSIBLE[parameter]
    near, far = sorted(data.draw(st.tuples(st.floats(normal, high), st.floats(normal, high))))
    points = [news2(msgspec.structs.replace(NORMAL, **{parameter: v})).parts[parameter] for v in (near, far)]
    assert points[0] <= points[1]
    far, near = sorted(data.draw(st.tuples(st.floats(low, normal), st.floats(low, normal))))
    points = [news2(msgspec.structs.replace(NORMAL, **{parameter: v})).parts[parameter] for v in (near, far)]
    assert points[0] <= points[1]


@settings(deadline=None)
@given(a=st.floats(20, 100), b=st.floats(20, 100))
def test_news2_scale1_monotone(a: float, b: float) -> None:
    """On scale 1 a lower saturation never has fewer points."""
    low, high = sorted((a, b))
    parts = [news2(msgspec.structs.replace(NORMAL, spo2=v)).parts["spo2"] for v in (low, high)]
    assert parts[0] >= parts[1]


def test_news2_not_validated() -> None:
    """Under 16 and in pregnancy there is a text in place of a number, in both languages."""
    child = news2(msgspec.structs.replace(NORMAL, age_years=15))
    assert child.value is None
    assert "not validated here" in child.text
    assert "não validado aqui" in news2(msgspec.structs.replace(NORMAL, pregnant=True), "pt").text
    assert news2(msgspec.structs.replace(NORMAL, age_years=16)).value == 0


def test_news2_missing_named() -> None:
    """A missing parameter leaves no value, is named, and the least the score can be is told."""
    score = news2(msgspec.structs.replace(NORMAL, temp=None, rr=30))
    assert score.value is None
    assert score.missing == ("temperature",)
    assert "at least 3 from the 6 of 7" in score.text


def test_vitals_by_loinc() -> None:
    """Seven LOINC-coded observations make a whole set, with refs and the oldest time."""
    vitals = vitals_of(patient(*FULL), NOW)
    assert (vitals.rr, vitals.spo2, vitals.o2, vitals.sbp) == (24, 93, True, 112)
    assert (vitals.hr, vitals.acvpu, vitals.temp, vitals.gaps) == (96, "U", 37.6, ())
    assert vitals.as_of == NOW - timedelta(minutes=30)
    assert vitals.refs["temp"] == "Observation/Body temperature"
    assert news2(vitals).value == 10
    assert "Royal College of Physicians 2017" in news2(vitals).text


@pytest.mark.parametrize(
    ("name", "field", "value", "unit"),
    [
        ("Frequência respiratória", "rr", 22.0, "cpm"),
        ("FR", "rr", 22.0, None),
        ("RR", "rr", 22.0, "/min"),
        ("Saturação periférica de O2", "spo2", 91.0, "%"),
        ("SpO₂", "spo2", 91.0, "%"),
        ("Oxygen saturation in Arterial blood by Pulse oximetry", "spo2", 91.0, "%"),
        ("PAS", "sbp", 95.0, "mmHg"),
        ("Tensão arterial sistólica", "sbp", 95.0, "mm Hg"),
        ("Systolic Blood Pressure", "sbp", 95.0, "mm[Hg]"),
        ("Frequência cardíaca", "hr", 120.0, "bpm"),
        ("Pulse", "hr", 120.0, "{beats}/min"),
        ("Temperatura timpânica", "temp", 38.4, "°C"),
        ("Temp", "temp", 38.4, "Cel"),
        ("Temperature (oral)", "temp", 38.4, "Cel"),
        ("Systolic BP", "sbp", 95.0, "mm[Hg]"),
        ("NIBP systolic", "sbp", 95.0, "mm[Hg]"),
        ("Heart rate (beats/min)", "hr", 120.0, "/min"),
        ("Pulse rate", "hr", 120.0, "/min"),
        ("Inhaled oxygen flow rate", "o2", True, "L/min"),
        ("Débito de oxigénio", "o2", True, "L/min"),
    ],
)
def test_vitals_by_name(name: str, field: str, value: float, unit: str | None) -> None:
    """Without a LOINC code the English and Portuguese names are understood."""
    assert getattr(vitals_of(patient(obs(name, value, unit)), NOW), field) == value


@pytest.mark.parametrize(
    "name",
    [
        "Fetal heart rate",
        "SpO2 target",
        "Pulse pressure",
        "Maximum heart rate",
        "Mean blood pressure",
        "Room temperature",
    ],
)
def test_vitals_other_names_left(name: str) -> None:
    """A name that only contains a vital sign's is something else."""
    vitals = vitals_of(patient(obs(name, 100, "/min")), NOW)
    assert (vitals.hr, vitals.spo2, vitals.sbp, vitals.temp) == (None, None, None, None)


@pytest.mark.parametrize(
    ("parameter", "value", "unit", "expected"),
    [
        ("temp", 100.4, "[degF]", 38.0),
        ("temp", 98.6, "F", 37.0),
        ("temp", 310.15, "K", 37.0),
        ("temp", 38.0, None, "no_unit"),
        ("temp", 98.6, "Cel", "implausible"),
        ("temp", 38.0, "mmHg", "unit"),
        ("sbp", 16.0, "kPa", 120.0),
        ("sbp", 16.0, None, "implausible"),
        ("sbp", 120.0, None, 120.0),
        ("spo2", 0.97, "1", 97.0),
        ("spo2", 0.97, "%", "implausible"),
        ("spo2", 101.0, "%", "implausible"),
        ("hr", math.inf, "/min", "implausible"),
        ("rr", -1.0, "/min", "implausible"),
    ],
)
def test_vitals_units(parameter: str, value: float, unit: str | None, expected: float | str) -> None:
    """Units are converted when they are said; an ambiguous or impossible value is refused with its reason."""
    got = convert(parameter, value, unit)
    assert got == (expected if isinstance(expected, str) else pytest.approx(expected, abs=0.02))


@pytest.mark.parametrize(
    "name", ["Level of consciousness ACVPU", "ACVPU", "AVPU scale", "Estado de consciência", "Consciousness"]
)
def test_vitals_consciousness_names(name: str) -> None:
    """Consciousness is found under its usual names."""
    assert vitals_of(patient(obs(name, text="Responds to voice")), NOW).acvpu == "V"


@settings(deadline=None)
@given(st.floats(24, 45))
def test_vitals_fahrenheit_round_trip(celsius: float) -> None:
    """A temperature told in Fahrenheit comes back as the same Celsius."""
    got = convert("temp", celsius * 1.8 + 32, "[degF]")
    assert got == pytest.approx(celsius, abs=1e-6) or (isinstance(got, str) and (celsius < 24.001 or celsius > 44.999))


def test_vitals_stale_named() -> None:
    """A vital sign older than the window is not scored, and is named with its time."""
    old = obs("Heart rate", 96, "/min", code="8867-4", as_of=NOW - timedelta(hours=25))
    vitals = vitals_of(patient(old), NOW)
    assert vitals.hr is None
    assert any("heart rate: too old" in text and "2026-01-14 07:00 UTC" in text for text in vitals.missing("en"))
    assert any("frequência cardíaca: demasiado antigo" in text for text in vitals.missing("pt"))
    assert vitals_of(patient(old), NOW, max_age_h=26).hr == 96


def test_vitals_latest_counts() -> None:
    """Of several values the newest usable one counts, whatever their order; withdrawn ones never."""
    newer = obs("Heart rate", 120, "/min", ref="Observation/b", as_of=NOW - timedelta(minutes=5))
    older = obs("Heart rate", 80, "/min", ref="Observation/a", as_of=NOW - timedelta(hours=3))
    wrong = obs("Heart rate", 60, "/min", ref="Observation/c", as_of=NOW, status="entered-in-error")
    assert vitals_of(patient(older, wrong, newer), NOW).hr == 120


def test_vitals_refused_value_named_beside_older() -> None:
    """An impossible newest value falls back to the one before, and is still named."""
    newest = obs("Heart rate", 999, "/min", ref="Observation/b", as_of=NOW - timedelta(minutes=5))
    before = obs("Heart rate", 80, "/min", ref="Observation/a", as_of=NOW - timedelta(hours=1))
    vitals = vitals_of(patient(newest, before), NOW)
    assert vitals.hr == 80
    assert any("heart rate: physiologically impossible" in text for text in vitals.missing("en"))


def test_vitals_comparator_refused() -> None:
    """A value behind a comparator is no value."""
    vitals = vitals_of(patient(obs("SpO2", 70, "%", comparator="<")), NOW)
    assert vitals.spo2 is None
    assert any(gap.reason == "comparator" for gap in vitals.gaps)


@pytest.mark.parametrize(
    ("observation", "expected"),
    [
        (obs("Flow", 2, "L/min", code="3151-8"), True),
        (obs("Flow", 0, "L/min", code="3151-8"), False),
        (obs("FiO2", 21, "%", code="3150-6"), False),
        (obs("FiO2", 0.21, None, code="3150-6"), False),
        (obs("FiO2", 40, "%"), True),
        (obs("FiO2", 0.5, None, code="19994-3"), True),
        (obs("Oxygen", text="room air"), False),
        (obs("Oxigénio suplementar", text="ar ambiente"), False),
        (obs("Oxygen therapy", text="nasal cannula 2 L/min"), True),
        (obs("Oxigenoterapia", text="máscara de Venturi"), True),
        (obs("Oxygen therapy", text="no"), False),
        (obs("Supplemental oxygen", text="sim"), True),
        (obs("Oxygen saturation on room air", 97, "%"), False),
        (obs("Oxygen", text="see notes"), None),
    ],
)
def test_vitals_oxygen(observation: Observation, expected: bool | None) -> None:
    """Air or oxygen is known from a flow, an inspired fraction, or words; never guessed."""
    assert vitals_of(patient(observation), NOW).o2 is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Alert", "A"), ("A", "A"), ("alerta e orientado", "A"), ("Confused", "C"), ("nova confusão", "C"),
        ("responds to voice", "V"), ("responde à voz", "V"), ("sonolento", "V"), ("dor", "P"),
        ("Responds to pain", "P"),
        ("Unresponsive", "U"), ("inconsciente", "U"), ("não responde", "U"), ("not alert", "C"),
        ("see notes", None), ("", None),
    ],
)  # fmt: skip
def test_vitals_consciousness_words(text: str, expected: str | None) -> None:
    """The words for consciousness are understood in both languages; others are not guessed."""
    assert consciousness(text) == expected


@pytest.mark.parametrize(
    ("total", "expected", "points"), [(15, "A", 0), (14, "C", 3), (10, "V", 3), (7, "P", 3), (3, "U", 3)]
)
def test_vitals_glasgow(total: int, expected: str, points: int) -> None:
    """Only Glasgow 15 is alert; everything below scores 3."""
    vitals = vitals_of(patient(obs("Glasgow coma score total", total, "{score}", code="9269-2")), NOW)
    assert vitals.acvpu == expected
    assert news2(vitals).parts["acvpu"] == points


@pytest.mark.parametrize(
    "layer",
    [
        patient(*FULL, obs("NEWS2 SpO2 scale", 2, "{score}")),
        patient(*FULL, obs("SpO2 target", text="88-92%")),
        patient(*FULL, obs("SpO2 target", 90, "%", low=88, high=92)),
        patient(
            *FULL, medications=(Medication(ref="MedicationRequest/o", name="Oxygen", dose="target saturation 88-92 %"),)
        ),
        patient(
            *FULL, events=(Event(ref="CarePlan/1", kind="care_plan", name="Alvo de SpO2 88 a 92%", status="active"),)
        ),
        patient(*FULL, conditions=(Condition(ref="Condition/1", name="COPD, SpO2 target 88-92%"),)),
    ],
)
def test_vitals_scale2_prescribed(layer: PatientLayer) -> None:
    """Scale 2 is used where the record prescribes 88-92 %, in a score, a target, an order or a plan."""
    vitals = vitals_of(layer, NOW)
    assert vitals.scale == 2
    # 93 % on oxygen: 2 points on scale 1, 1 point on scale 2
    assert news2(vitals).parts["spo2"] == 1


def test_vitals_scale2_not_from_diagnosis() -> None:
    """COPD alone is no prescription: scale 1 stays."""
    assert vitals_of(patient(*FULL, conditions=(Condition(ref="c", name="COPD with hypercapnia"),)), NOW).scale is None
    assert not prescribes_88_92("BP 88/92 SpO2 ok")
    assert prescribes_88_92("manter SatO2 entre 88-92%")


def test_vitals_time_unknown_counts_as_current() -> None:
    """A value without a time is used, after all that have one, and the set's time is then unknown."""
    without = obs("Heart rate", 120, "/min", ref="Observation/a", as_of=None)
    assert vitals_of(patient(without), NOW).hr == 120
    assert vitals_of(patient(without), NOW).as_of is None
    assert vitals_of(patient(without, obs("Heart rate", 80, "/min", ref="Observation/b")), NOW).hr == 80


def test_vitals_future_refused() -> None:
    """A value dated days ahead is a mistake and is named as one."""
    ahead = obs("Heart rate", 120, "/min", as_of=NOW + timedelta(days=2))
    vitals = vitals_of(patient(ahead), NOW)
    assert vitals.hr is None
    assert any("dated in the future" in text for text in vitals.missing("en"))
