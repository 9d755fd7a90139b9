# ruff: noqa: E501 - a record stands on one line
"""Facts and answers by rule: formatting, trends, contradictions, order, caps, and promises for any record."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatd.replies.answer import MAX_HEADLINE, respond, short_source
from chatd.replies.chart import split_findings
from chatd.replies.facts import FactsResult, build, context_hash
from chatd.replies.values import Times, exact, number, unit
from context.layers import (
    Allergy,
    Condition,
    Event,
    Layers,
    Medication,
    Observation,
    PatientLayer,
    Report,
    SessionLayer,
    versioned,
)
from context.library.library import Library
from protocols.frames import AiResponse, Fact, Facts
from tests.vignettes import NOW, layers_of, observation

LIBRARY = Library.load()
HOUR = timedelta(hours=1)


def _patient(**fields: Any) -> PatientLayer:
    known: dict[str, Any] = {
        "patient_id": "p-1", "name": "Rita Lopes", "as_of": NOW, "departments": ("cardiology",),
        "birth_date": date(1960, 5, 1), "sex": "female", "allergy_status": "none_known",
    }  # fmt: skip
    return versioned(PatientLayer(**{**known, **fields}))


def _facts(question: str, *, lang: str = "en", now: datetime = NOW, **fields: Any) -> FactsResult:
    return build(layers_of(_patient(**fields), "cardiology"), question, library=LIBRARY, now=now, lang=lang)


def _texts(facts: FactsResult) -> list[str]:
    return [fact.text for fact in facts.facts]


def _first(facts: FactsResult) -> Fact:
    """The first value among the facts."""
    return next(fact for fact in facts.facts if fact.kind == "value")


# --- numbers, units, times ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(45.0, "45"), (7.31, "7.31"), (0.04, "0.04"), (0.0, "0"), (-2.5, "-2.5"), (183.17308308399453, "183.17"),
     (0.000123456, "0.000123"), (1e-7, "0.0000001"), (120000.0, "120000"), (0.30000000000000004, "0.3"), (5.0625, "5.0625"), (-0.0, "0")],
)  # fmt: skip
def test_number_as_the_record_has_it(value: float, text: str) -> None:
    """Measured values keep every digit, calculated tails are shortened, nothing becomes 0 or an exponent."""
    assert number(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False, width=64, min_value=-1e12, max_value=1e12))
def test_number_is_near_and_plain(value: float) -> None:
    """The text of a number is plain, within its rounding of the value, and zero only for zero."""
    text = number(value)
    assert re.fullmatch(r"-?\d+(\.\d+)?", text) or abs(value) < 1e-11
    shown = float(text)
    assert math.isclose(shown, value, rel_tol=5.1e-3, abs_tol=0.0) or shown == value
    assert (shown == 0) == (value == 0)
    assert float(exact(value)) == value


def test_unit_for_people() -> None:
    """UCUM's brackets and annotations are not shown; ordinary units stay."""
    assert [unit(text) for text in ("mm[Hg]", "Cel", "{score}", "mmol/L", None, "10*9/L")] == [
        "mmHg",
        "°C",
        "",
        "mmol/L",
        "",
        "10*9/L",
    ]


@pytest.mark.parametrize(
    ("at", "lang", "text"),
    [
        (datetime(2026, 1, 15, 6, 10, tzinfo=UTC), "en", "06:10"),
        (datetime(2026, 1, 14, 6, 10, tzinfo=UTC), "en", "2026-01-14 06:10 (yesterday)"),
        (datetime(2022, 11, 3, 9, 0, tzinfo=UTC), "en", "2022-11-03 09:00 (3 years ago)"),
        (datetime(2025, 7, 10, 12, 0, tzinfo=UTC), "pt", "2025-07-10 13:00 (há 6 meses)"),
        (datetime(2012, 5, 3, tzinfo=UTC), "en", "2012-05-03 (13 years ago)"),
        (None, "pt", "hora não registada"),
    ],
)
def test_times_local_dated_and_with_age(at: datetime | None, lang: Any, text: str) -> None:
    """Times are the hospital's own; a date stands wherever it is not today, a midnight is only a date."""
    assert Times(NOW, "Europe/Lisbon", lang).text(at) == text


def test_times_unknown_zone_says_utc() -> None:
    """A zone that this machine does not know is not guessed: times say UTC."""
    assert Times(NOW, "Nowhere/Land", "en").text(datetime(2026, 1, 15, 6, 10, tzinfo=UTC)) == "06:10 UTC"


# --- values -------------------------------------------------------------------------------------------------


def _potassium(value: float | None, ago: timedelta, unit_: str | None = "mmol/L", **more: Any) -> Observation:
    return observation("Potassium", value, unit_, at=NOW - ago, code="2823-3", **more)


def test_value_has_unit_flag_range_trend_and_time() -> None:
    """A result is told whole, with its range and against the one before."""
    facts = _facts(
        "Last potassium?", observations=(_potassium(5.9, HOUR, low=3.5, high=5.1), _potassium(4.4, 5 * HOUR))
    )
    assert _first(facts).text == "Potassium 5.9 mmol/L (high), 06:45; reference 3.5-5.1; up from 4.4 mmol/L (02:45)"
    assert (_first(facts).flag, _first(facts).trend) == ("H", "up")


def test_value_no_trend_across_units() -> None:
    """A result in another unit is no earlier value of the same series."""
    now, before = _potassium(5.9, HOUR), _potassium(17.2, 5 * HOUR, "mg/dL")
    facts = _facts("Potassium trend?", observations=(now, before))
    assert [fact.trend for fact in facts.facts if fact.name == "Potassium"] == ["", ""]


def test_value_without_unit_says_so_and_has_no_trend() -> None:
    """A missing unit is told and never guessed."""
    facts = _facts("Potassium?", observations=(_potassium(5.9, HOUR, None), _potassium(4.0, 2 * HOUR, None)))
    assert "5.9 (unit missing)" in _first(facts).text
    assert _first(facts).trend == ""


def test_value_with_comparator_is_shown_and_not_compared() -> None:
    """ "< 0.01" keeps its sign in text and value, and has no trend."""
    rows = (
        observation("Troponin I", 0.01, "ng/mL", at=NOW - HOUR, code="10839-9", comparator="<"),
        observation("Troponin I", 0.5, "ng/mL", at=NOW - 3 * HOUR, code="10839-9"),
    )
    fact = _first(_facts("troponin?", observations=rows))
    assert (fact.value, fact.trend) == ("< 0.01", "")
    assert "Troponin I < 0.01 ng/mL, 06:45" in fact.text


def test_value_two_at_one_time_are_both_shown() -> None:
    """Different values of one moment are both told, as contradicting, without a trend."""
    rows = (
        _potassium(5.9, HOUR),
        msgspec.structs.replace(_potassium(3.9, HOUR), ref="Observation/other"),
        _potassium(4.1, 3 * HOUR),
    )
    facts = [fact for fact in _facts("K?", observations=rows).facts if fact.name == "Potassium"]
    assert {fact.value for fact in facts} == {5.9, 3.9}
    assert all("another value of the same time" in fact.text and fact.trend == "" for fact in facts)


def test_value_in_the_future_is_marked_and_not_the_latest() -> None:
    """A result dated tomorrow is not "the last"; alone it is shown with a warning."""
    tomorrow = _potassium(9.9, -24 * HOUR)
    both = _facts("Potassium?", observations=(tomorrow, _potassium(4.1, HOUR)))
    assert _first(both).value == 4.1
    alone = _facts("Potassium?", observations=(tomorrow,))
    assert "dated in the future" in _first(alone).text


def test_value_withdrawn_is_not_shown() -> None:
    """What was entered in error or cancelled is no value."""
    facts = _facts("Potassium?", observations=(_potassium(9.9, HOUR, status="entered-in-error"),))
    assert "9.9" not in " ".join(_texts(facts))
    assert "no potassium value in the record" in facts.missing


def test_value_old_but_asked_for_is_shown_with_its_age() -> None:
    """Whatever its age, the value asked for is told, with date and age."""
    facts = _facts("Last potassium?", observations=(_potassium(4.1, timedelta(days=1200)),))
    assert "(3 years ago)" in _first(facts).text


def test_value_old_abnormal_is_not_pushed() -> None:
    """An abnormal result of last year is history: it does not stand among the facts unasked."""
    facts = _facts("Any allergies?", observations=(_potassium(5.9, timedelta(days=400), flag="H"),))
    assert not any(fact.kind == "value" for fact in facts.facts)


def test_critical_value_is_always_in_front() -> None:
    """A critical result stands before everything else, whatever was asked."""
    facts = _facts(
        "What medicines does she take?",
        observations=(_potassium(6.9, HOUR, flag="HH"),),
        medications=(Medication(ref="M/1", name="aspirin"),),
    )
    assert facts.facts[0].value == 6.9
    assert "critical result" in facts.facts[0].text
    assert facts.red_flags


def test_preliminary_and_corrected_say_so() -> None:
    """A result's status is told where it is not final."""
    facts = _facts("Potassium?", observations=(_potassium(4.1, HOUR, status="corrected"),))
    assert "corrected" in _first(facts).text


def test_portuguese_names_stand_beside_the_records() -> None:
    """In Portuguese the table's name stands before the record's English one."""
    facts = _facts("Último potássio?", lang="pt", observations=(_potassium(4.1, HOUR),))
    assert _first(facts).text.startswith("Potássio (Potassium) 4.1 mmol/L, 06:45")


# --- reports, deceased, allergies ---------------------------------------------------------------------------


def test_split_findings_keeps_denials_whole() -> None:
    """Commas stay: "no ST elevation, Q waves" would lose its "no" for the second half."""
    text = "Sinus rhythm 78/min. No ST elevation, Q waves or T inversion; QTc 430 ms. Read by Dr. Silva"
    assert split_findings(text) == [
        "Sinus rhythm 78/min",
        "No ST elevation, Q waves or T inversion",
        "QTc 430 ms",
        "Read by Dr. Silva",
    ]


@given(st.text(max_size=600))
def test_split_findings_invents_nothing(text: str) -> None:
    """Every finding is a piece of the report, apart from the mark of a cut."""
    for finding in split_findings(text):
        assert finding.removesuffix("…").strip() in text


def test_ecg_question_without_a_report_says_both_are_missing() -> None:
    """Neither the report nor the tracing is there, and each is said."""
    facts = _facts("Analyze the ECG")
    assert "no ECG report in the record" in facts.missing
    assert "the ECG tracing itself is not available" in facts.missing


def test_deceased_is_said_first() -> None:
    """A recorded death stands before all else, and nothing is proposed."""
    layers = layers_of(_patient(deceased=datetime(2025, 12, 1, 10, tzinfo=UTC)), "cardiology")
    facts = build(layers, "STEMI, cath lab?", library=LIBRARY, now=NOW, lang="en")
    answer = respond(facts, layers, response_id="resp_1", now=NOW)
    assert facts.facts[0].text.startswith("DECEASED according to the record, 2025-12-01")
    assert answer.content.structured_data.actions == ()
    assert "DECEASED" in answer.content.structured_data.headline


def test_allergies_all_even_beyond_every_cap() -> None:
    """Two hundred allergies are two hundred facts."""
    many = tuple(Allergy(ref=f"A/{n}", name=f"substance {n}") for n in range(200))
    assert (
        sum(fact.kind == "allergy" for fact in _facts("Last potassium?", allergies=many, allergy_status="known").facts)
        == 200
    )


def test_list_beyond_the_cap_is_counted() -> None:
    """What was asked for and does not fit is counted, never silently dropped."""
    many = tuple(Condition(ref=f"C/{n}", name=f"condition number {n}") for n in range(130))
    facts = _facts("What conditions does she have?", conditions=many)
    assert sum(fact.kind == "condition" for fact in facts.facts) == 120
    assert "10 more in the record (conditions)" in _texts(facts)


def test_drug_that_is_not_there_is_said() -> None:
    """Asking for a medicine that the record does not have is answered so."""
    facts = _facts("Is she taking warfarin?", medications=(Medication(ref="M/1", name="aspirin 100 mg"),))
    assert any("warfarin" in text and "not among the medicines" in text for text in facts.missing)


def test_no_patient_gives_protocols_only() -> None:
    """Without a patient the answer rests on protocols and says so."""
    layers = layers_of(None, "cardiology")
    facts = build(layers, "STEMI reperfusion times?", library=LIBRARY, now=NOW, lang="en")
    answer = respond(facts, layers, response_id="resp_1", now=NOW)
    assert facts.facts == ()
    assert "no patient selected" in facts.missing
    assert [quote.id for quote in facts.protocols][:1] == ["stemi"]
    assert answer.patient_id is None


def test_context_hash_follows_the_record_and_not_the_session() -> None:
    """The hash changes with the patient's record and stays when only the session's memory changed."""
    layers = layers_of(_patient(), "cardiology")
    talked = msgspec.structs.replace(layers, session=SessionLayer(session_id="s", as_of=NOW, topic="other"))
    changed = msgspec.structs.replace(layers, patient=_patient(observations=(_potassium(5.0, HOUR),)))
    assert context_hash(layers) == context_hash(talked)
    assert context_hash(layers) != context_hash(changed)
    assert context_hash(layers).startswith("h-")


def test_short_source_cuts_at_its_first_part() -> None:
    """A source for a sentence is its first part, with the year."""
    quote = LIBRARY.quote(("stemi", LIBRARY.get("stemi").sections[0].id), today=NOW.date(), lang="en")
    assert short_source(quote) == "ACC/AHA/ACEP/NAEMSP/SCAI ACS guideline 2025"


# --- promises for any record --------------------------------------------------------------------------------

_names = st.sampled_from(
    [
        "Potassium",
        "Troponin I",
        "Hemoglobin",
        "Lactate",
        "Glucose",
        "Creatinine",
        "Peso",
        "Temperatura",
        "SpO2",
        "Ødd näme",
        "pH",
        "HbA1c",
    ]
)
_times = st.one_of(st.none(), st.datetimes(datetime(1940, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
_values = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False).filter(
    lambda value: value == 0 or abs(value) > 1e-9
)
_words = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Nd", "No", "Nl")), min_size=1, max_size=25)


@st.composite
def _observations(draw: st.DrawFn) -> Observation:
    is_text = draw(st.booleans())
    return Observation(
        ref=f"Observation/{draw(st.integers(0, 40))}",
        name=draw(_names),
        code=draw(st.sampled_from([None, "2823-3", "718-7", "8310-5"])),
        value=None if is_text else draw(_values),
        text=draw(_words) if is_text else None,
        unit=draw(st.sampled_from([None, "mmol/L", "g/dL", "Cel", "%"])),
        comparator=draw(st.sampled_from(["", "", "<", ">"])),
        low=draw(st.one_of(st.none(), st.floats(0, 10))),
        high=draw(st.one_of(st.none(), st.floats(0, 10))),
        flag=draw(st.sampled_from(["", "", "H", "LL", "A"])),
        status=draw(st.sampled_from(["final", "preliminary", "cancelled"])),
        as_of=draw(_times),
    )


@st.composite
def _records(draw: st.DrawFn) -> PatientLayer:
    allergies = draw(st.lists(_words, max_size=6))
    return versioned(
        PatientLayer(
            patient_id="7001",
            name=draw(_words),
            as_of=NOW,
            birth_date=draw(st.one_of(st.none(), st.dates(date(1920, 1, 1), date(2025, 12, 31)))),
            sex=draw(st.sampled_from(["male", "female", "unknown"])),
            deceased=draw(st.sampled_from([None, None, True])),
            pregnant=draw(st.sampled_from([None, True, False])),
            observations=tuple(draw(st.lists(_observations(), max_size=12))),
            allergies=tuple(Allergy(ref=f"A/{n}", name=name) for n, name in enumerate(allergies)),
            allergy_status="known" if allergies else draw(st.sampled_from(["none_known", "not_recorded"])),
            conditions=tuple(Condition(ref=f"C/{n}", name=name, onset=draw(_times)) for n, name in enumerate(draw(st.lists(_words, max_size=4)))),
            medications=tuple(Medication(ref=f"M/{n}", name=name, since=draw(_times)) for n, name in enumerate(draw(st.lists(st.sampled_from(["aspirin", "warfarin", "amoxicillin", "x"]), max_size=4)))),
            reports=tuple(Report(ref=f"R/{n}", title="ECG", text=text, kind="ecg", as_of=draw(_times)) for n, text in enumerate(draw(st.lists(_words, max_size=2)))),
            events=tuple(Event(ref=f"E/{n}", kind="procedure", name=name, start=draw(_times)) for n, name in enumerate(draw(st.lists(_words, max_size=2)))),
        )
    )  # fmt: skip


_questions = st.one_of(
    st.sampled_from(
        ["Summary", "Last potassium?", "Alergias?", "What medicines?", "STEMI, what next?", "sepsis lactate dose", "ECG", "amoxicillin ok?",
         "Que exames tem?", "idade", "antecedentes", "K trend", "cafeteria menu", "sinais vitais", "DKA insulin", "trauma protocol"]
    ),
    st.text(max_size=120),
)  # fmt: skip

CANARY = "Zacarias Quimera"


def _layers(patient: PatientLayer, department: str) -> Layers:
    from context.layers import Message

    layers = layers_of(patient, department)
    other = Message(role="doctor", text=f"{CANARY} potassium 9.87", at=NOW, patient_id="7002")
    return msgspec.structs.replace(layers, session=SessionLayer(session_id="s", as_of=NOW, messages=(other,)))


_NUMBER = re.compile(r"\d+(?:\.\d+)?")
#: Ages and counts, which are calculated from dates and entries.
_COUNTED = re.compile(
    r"\d+ (?:years?|months?|days?|anos?|mês|meses|dias|times|vezes|more|points)\b|mais \d+|last 24 hours|últimas 24 horas"
)


def _numbers(text: str) -> set[str]:
    return set(_NUMBER.findall(text))


def _allowed(layers: Layers, facts: FactsResult) -> set[str]:
    """Numbers that an answer may hold: of the record, of quotes, of scores and flags, of dates, ages and counts."""
    assert layers.patient is not None
    record = msgspec.json.encode(layers.patient).decode()
    allowed = _numbers(record)
    for item in layers.patient.observations:
        for value in (item.value, item.low, item.high):
            if value is not None:
                allowed |= _numbers(number(value))
    quotes = (f"{q.title} {q.quote} {q.source} {q.year} {q.notice} {short_source(q)}" for q in facts.protocols)
    safety = (
        *(s.text for s in facts.scores),
        *(f.text for f in facts.red_flags),
        *(c.text for c in facts.checks),
        *facts.missing,
    )
    allowed |= _numbers(" ".join([*quotes, *safety]))
    times = [getattr(x, "as_of", None) or getattr(x, "onset", None) or getattr(x, "since", None) or getattr(x, "start", None)
             for group in (layers.patient.observations, layers.patient.reports, layers.patient.conditions, layers.patient.medications, layers.patient.events)
             for x in group]  # fmt: skip
    for at in times:
        if at is not None:
            allowed |= _numbers(Times(NOW, "Europe/Lisbon", "en").text(at)) | _numbers(at.isoformat())
    return allowed


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    _records(),
    _questions,
    st.sampled_from(["cardiology", "emergency", "surgery", "icu"]),
    st.sampled_from(["", "pt", "en"]),
)
def test_any_record_and_question_keeps_the_promises(
    patient: PatientLayer, question: str, department: str, lang: str
) -> None:
    """Valid frames, the same bytes twice, all allergies, no one else's record, no number from nowhere."""
    layers = _layers(patient, department)
    facts = build(layers, question, library=LIBRARY, now=NOW, lang=lang)
    again = build(layers, question, library=LIBRARY, now=NOW, lang=lang)
    frame = facts.frame(response_id="resp_1", client_msg_id="c-1")
    encoded = msgspec.json.encode(frame)
    assert encoded == msgspec.json.encode(again.frame(response_id="resp_1", client_msg_id="c-1"))
    assert msgspec.json.decode(encoded, type=Facts).patient_id == "7001"
    answer = respond(facts, layers, response_id="resp_1", now=NOW)
    answered = msgspec.json.encode(answer)
    assert answered == msgspec.json.encode(respond(again, layers, response_id="resp_1", now=NOW))
    assert msgspec.json.decode(answered, type=AiResponse).status == "completed"
    data = answer.content.structured_data
    assert len(data.headline) <= MAX_HEADLINE
    assert CANARY not in answered.decode()
    assert "9.87" not in answered.decode()
    assert data.quick_actions == tuple(action.label for action in data.actions)
    if not facts.question.in_scope:
        assert facts.facts == ()
        return
    told = [fact.ref for fact in facts.facts if fact.kind == "allergy"]
    assert {allergy.ref for allergy in patient.allergies} <= set(told)
    allowed = _allowed(layers, facts)
    for line in (data.headline, *data.findings, *data.interpretation, *data.missing, *data.quick_actions):
        unmarked = re.sub(r" \[\d+\]", "", _COUNTED.sub("", line))
        assert _numbers(unmarked) <= allowed, line
    quoted = "\n".join(quote.quote for quote in facts.protocols)
    for line in data.recommendations:
        inner = re.search(r"[\"«](.*)[\"»]", line, re.DOTALL)
        assert inner is not None
        assert inner.group(1) in quoted
