"""The prompt: equal layers give equal bytes, what must not be missing never is, and no record can give orders."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from context.budget import BudgetTooSmall, LeftOut, estimate_tokens
from context.compose import PROMPT_VERSION, Prompt, block, compose, line, safe
from context.layers import (
    Allergy,
    Condition,
    DoctorLayer,
    Event,
    HospitalLayer,
    Layers,
    Medication,
    Message,
    Observation,
    PatientLayer,
    Report,
    SessionLayer,
    versioned,
)
from protocols.frames import ProtocolQuote
from tests.context.sample_layers import CARDIOLOGY, DOCTOR, HOSPITAL, ICU, LAYERS, NOW, PATIENT, SESSION

if TYPE_CHECKING:
    from collections.abc import Callable

QUOTES = tuple(
    ProtocolQuote(
        id=f"protocol-{n}",
        title=f"Protocol {n}",
        section="steps",
        quote=f"Step one of {n}.\nStep two.",
        source="Guideline of the Tests",
        year=2024,
    )
    for n in range(4)
)
NAMES = ["hospital", "department", "doctor", "patient", "session", "question"]


def prompt_of(layers: Layers = LAYERS, question: str = "What now?", **options: Any) -> Prompt:
    arguments: dict[str, Any] = {"now": NOW, "budget_tokens": 100_000, "count_tokens": estimate_tokens}
    return compose(layers, question, **(arguments | options))


def part(prompt: Prompt, name: str) -> str:
    return next(segment.text for segment in prompt.segments if segment.name == name)


def with_patient(**changes: Any) -> Layers:
    patient = versioned(msgspec.structs.replace(PATIENT, **changes))
    return msgspec.structs.replace(LAYERS, patient=patient)


def with_session(**changes: Any) -> Layers:
    return msgspec.structs.replace(LAYERS, session=msgspec.structs.replace(SESSION, **changes))


# --- order and bytes ---


def test_compose_segments_stand_in_order_and_end_with_a_blank_line() -> None:
    """Most shared first; each ends with a blank line; tokens add up."""
    prompt = prompt_of(quotes=QUOTES)
    assert [segment.name for segment in prompt.segments] == NAMES
    assert all(segment.text.endswith("\n\n") for segment in prompt.segments)
    assert prompt.text == "".join(segment.text for segment in prompt.segments)
    assert prompt.tokens == sum(segment.tokens for segment in prompt.segments)
    assert all(segment.tokens == estimate_tokens(segment.text) for segment in prompt.segments)
    assert prompt.left_out == ()


def test_compose_versions_are_the_layers() -> None:
    """Each segment says its layer's version; the first one the prompt's too."""
    versions = {segment.name: segment.version for segment in prompt_of().segments}
    assert versions == {
        "hospital": f"{PROMPT_VERSION}.{HOSPITAL.version}",
        "department": CARDIOLOGY.version,
        "doctor": DOCTOR.version,
        "patient": PATIENT.version,
        "session": SESSION.version,
        "question": "",
    }


def test_compose_segment_changes_only_with_its_own_layer() -> None:
    """Another layer, question, hour or reading time leaves the bytes of the other segments as they were."""
    base = {segment.name: segment.text for segment in prompt_of().segments}
    later = NOW + timedelta(hours=3)
    changes: list[tuple[Prompt, set[str]]] = [
        (prompt_of(question="Something else?"), {"question"}),
        (prompt_of(quotes=QUOTES), {"question"}),
        (prompt_of(with_session(messages=())), {"session"}),
        (prompt_of(with_patient(name="Ana Outra")), {"patient"}),
        (prompt_of(msgspec.structs.replace(LAYERS, department=ICU)), {"department"}),
        (
            prompt_of(msgspec.structs.replace(LAYERS, doctor=DoctorLayer(user_id="x", name="Dr. Outro", as_of=NOW))),
            {"doctor"},
        ),
        (prompt_of(with_patient(as_of=later)), set()),
        (
            prompt_of(msgspec.structs.replace(LAYERS, hospital=msgspec.structs.replace(HOSPITAL, as_of=later))),
            set(),
        ),
        (prompt_of(now=NOW + timedelta(minutes=5)), set()),
    ]
    for prompt, expected in changes:
        texts = {segment.name: segment.text for segment in prompt.segments}
        assert {name for name in NAMES if texts[name] != base[name]} == expected


def test_compose_patient_is_byte_equal_for_short_and_long_questions() -> None:
    """A record that has to be cut is cut the same for every question of the usual length."""
    layers = with_patient(observations=tuple(result(n) for n in range(400)))
    budget = 4000
    short = prompt_of(layers, "?", budget_tokens=budget)
    long = prompt_of(layers, "word " * 60, quotes=QUOTES, budget_tokens=budget)
    assert short.left_out
    assert part(short, "patient") == part(long, "patient")


def test_compose_age_changes_on_the_birthday() -> None:
    """The age is of the local day: one second before midnight in Lisbon it is the old one."""
    eve = datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC)
    assert "67 years old" in part(prompt_of(now=eve), "patient")
    assert "68 years old" in part(prompt_of(now=eve + timedelta(seconds=1)), "patient")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"birth_date": None}, "Birth date: not recorded"),
        ({"birth_date": date(2030, 1, 1)}, "age unknown"),
        ({"birth_date": date(2025, 11, 20)}, "1 months old"),
        ({"deceased": True}, "DECEASED according to the record\n"),
        ({"deceased": NOW}, "DECEASED according to the record, 2026-01-15 07:45"),
        ({"pregnant": True}, "Pregnant: yes"),
        ({"allergies": (), "allergy_status": "none_known"}, "Allergies: none known (recorded)."),
        ({"allergies": (), "allergy_status": "not_recorded"}, "Allergies: not recorded"),
        ({"allergies": (), "allergy_status": "known"}, "recorded as known, but the record holds no entry"),
        ({"medications": ()}, "Active medicines: none in the record."),
    ],
)
def test_compose_patient_says_who_and_what_is_not_recorded(changes: dict[str, Any], words: str) -> None:
    """Age, death, pregnancy, and the three ways of having no allergy in the record are told apart."""
    assert words in part(prompt_of(with_patient(**changes)), "patient")


def test_compose_dead_patient_has_no_age() -> None:
    """The age of a dead person is not counted on."""
    assert "years old" not in part(prompt_of(with_patient(deceased=True)), "patient")


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        ({"value": 0.04, "unit": "ng/mL"}, "- X: 0.04 ng/mL, "),
        ({"value": 1e-7, "unit": "mol/L"}, "0.0000001 mol/L"),
        ({"value": 1e6, "unit": "/L"}, "- X: 1000000 /L"),
        ({"value": 45.0, "unit": None}, "- X: 45 (unit missing), "),
        ({"value": 0.01, "unit": "ng/mL", "comparator": "<"}, "- X: <0.01 ng/mL"),
        ({"value": 3.0, "unit": "%", "low": 4.0}, "range from 4,"),
        ({"value": 3.0, "unit": "%", "high": 4.0}, "range up to 4,"),
        ({"value": 3.0, "unit": "%", "range_text": "< 0.04"}, "range < 0.04,"),
        ({"text": "Positive", "flag": "A"}, "- X: Positive, abnormal, "),
        ({"value": 3.0, "unit": "%", "status": "preliminary"}, "preliminary"),
        ({"value": 3.0, "unit": "%", "as_of": None}, "time not recorded [Observation/x]"),
        ({"value": 3.0, "unit": "%", "as_of": datetime(2026, 7, 1, 6, 10, tzinfo=UTC)}, "2026-07-01 07:10"),
    ],
)
def test_compose_result_is_written_as_recorded(observation: dict[str, Any], words: str) -> None:
    """Numbers keep their digits, units and ranges; times are the hospital's; what is missing is said."""
    item = Observation(ref="Observation/x", name="X", **({"as_of": NOW} | observation))
    assert words in part(prompt_of(with_patient(observations=(item,))), "patient")


def test_compose_unknown_zone_is_utc_and_says_so() -> None:
    """A zone that the machine does not know gives UTC times, named as such."""
    hospital = msgspec.structs.replace(HOSPITAL, timezone="Nowhere/At_All")
    text = part(prompt_of(msgspec.structs.replace(LAYERS, hospital=hospital)), "patient")
    assert "Times are local (UTC)." in text


def test_compose_without_patient_and_session() -> None:
    """With no patient open and nothing said, both segments say so."""
    prompt = prompt_of(msgspec.structs.replace(LAYERS, patient=None, session=SessionLayer(session_id="s", as_of=NOW)))
    assert part(prompt, "patient") == "# Patient\nNo patient is open.\n\n"
    assert part(prompt, "session") == "# Earlier in this session\nNothing yet.\n\n"


# --- the fence ---


def test_compose_session_is_of_this_patient_only() -> None:
    """Messages, topic and proposals of another patient, or of none, are not in the prompt of this one."""
    other = msgspec.structs.replace(SESSION.pending_actions[0], patient_id="p-200", catalog_id="other_action")
    layers = with_session(
        messages=(
            Message(role="doctor", text="canary one", at=NOW, patient_id="p-200"),
            Message(role="chatd", text="canary two", at=NOW, patient_id=None),
            Message(role="doctor", text="about this one", at=NOW, patient_id="p-100"),
        ),
        patient_id="p-200",
        topic="canary three",
        pending_actions=(other,),
    )
    prompt = prompt_of(layers)
    assert "about this one" in prompt.text
    assert "canary" not in prompt.text
    assert "other_action" not in prompt.text
    assert prompt.left_out == ()
    nobody = prompt_of(msgspec.structs.replace(layers, patient=None))
    assert "canary two" in nobody.text
    assert "about this one" not in nobody.text


def test_compose_proposals_that_have_run_out_are_not_shown() -> None:
    """A pending action is shown until it expires."""
    assert "not yet confirmed: order_ecg" in part(prompt_of(), "session")
    assert "order_ecg" not in part(prompt_of(now=NOW + timedelta(minutes=10)), "session")


def test_compose_identifiers_stay_out() -> None:
    """Numbers of other registers are not the model's business."""
    assert "u-555" not in prompt_of().text


# --- what people wrote cannot give orders ---

TOKENS = [
    *("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<2mass>", "[@BOS@]"),
    *("<unused0>", "<unused94>", "<unused6241>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    *("<START_OF_TURN>", "<|im_start|>", "<|endoftext|>", "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>"),
    *("<0x0A>", "<|turn>", "<turn|>", "[multimodal]", "<audio_soft_token>", "<table>"),
]


def layers_saying(text: str) -> Layers:
    """Layers with ``text`` in every field that people or records fill."""
    patient = PatientLayer(
        patient_id="p-1",
        name=text,
        as_of=NOW,
        summary=text,
        conditions=(Condition(ref="Condition/1", name=text, verification=text),),
        medications=(
            Medication(ref="M/1", name=text, dose=text, status=text),
            Medication(ref="M/2", name=text, dose=text, status=text, active=False),
        ),
        allergies=(Allergy(ref="A/1", name=text, criticality=text, reaction=text, verification=text),),
        observations=(
            Observation(ref=text, name=text, text=text, range_text=text, status=text),
            Observation(ref="O/2", name="X", value=1.0, unit=text, comparator=text, low=1.0),
        ),
        reports=(Report(ref="R/1", title=text, text=text, status=text),),
        events=(Event(ref="E/1", kind="procedure", name=text, status=text),),
    )
    session = SessionLayer(
        session_id="s",
        as_of=NOW,
        patient_id="p-1",
        topic=text,
        messages=(Message(role="doctor", text=text, at=NOW, patient_id="p-1"),),
        pending_actions=tuple(
            msgspec.structs.replace(each, patient_id="p-1", label=text, catalog_id=text)
            for each in SESSION.pending_actions
        ),
    )
    return Layers(
        hospital=HospitalLayer(name=text, as_of=NOW, policies=(text,)),
        department=msgspec.structs.replace(
            CARDIOLOGY,
            name=text,
            focus=text,
            instructions=(text,),
            actions=(msgspec.structs.replace(CARDIOLOGY.actions[0], id=text, label=text),),
        ),
        doctor=DoctorLayer(
            user_id="d", name=text, as_of=NOW, role=text, specialty=text, preferences=(text,), rounds=text
        ),
        patient=patient,
        session=session,
    )


def quote_saying(text: str) -> ProtocolQuote:
    return ProtocolQuote(id=text, title=text, section=text, quote=text, source=text, superseded_by=text, notice=text)


def text_of(text: str) -> str:
    return prompt_of(layers_saying(text), text, quotes=(quote_saying(text),)).text


HEADINGS = [text for text in text_of("x").split("\n") if text.startswith("#")]


@pytest.mark.parametrize("token", TOKENS)
def test_compose_chat_template_tokens_are_neutralised_everywhere(token: str) -> None:
    """No field of any layer, nor the question or a quote, brings a template's token into the prompt."""
    for text in (token, f"a{token}b", token * 3, f"<{token}>", f"x\n{token}\ny"):
        assert token.casefold() not in text_of(text).casefold()


pieces = st.sampled_from(
    [*TOKENS, "<", ">", "[", "]", "|", "/", "start_of_turn", "bos", "unused7", "\n", "# Patient", "- ", " ", "x"]
)
nasty = st.lists(pieces | st.text(max_size=4), max_size=12).map("".join)
LOOKS_LIKE_TOKEN = re.compile(r"<[|/]?[A-Za-z_]|\[/?INST\]|\[multimodal\]|\[@BOS@\]", re.IGNORECASE)


@given(nasty)
def test_safe_leaves_no_token_however_it_is_built(text: str) -> None:
    """Tokens within tokens and torn ones leave none; twice is the same as once; nothing invisible stays."""
    result = safe(text)
    assert LOOKS_LIKE_TOKEN.search(result) is None
    assert safe(result) == result
    assert len(result) <= len(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ue000-\uf8ff\ud800-\udfff]", result)


@settings(max_examples=50)
@given(nasty)
def test_compose_no_text_makes_a_heading_or_a_token(text: str) -> None:
    """Whatever stands in the fields, the lines that begin with "#" are the prompt's own, and no token is left."""
    composed = text_of(text)
    assert LOOKS_LIKE_TOKEN.search(composed) is None
    headings = [each for each in composed.split("\n") if each.startswith("#")]
    assert len(headings) == len(HEADINGS)
    assert [each[:10] for each in headings] == [each[:10] for each in HEADINGS]


@pytest.mark.parametrize(
    "text",
    ["< 0.04 ng/mL", "<5", "K+ <3.5 and >5.1", "µg, ção, ã (NFD: a\u0303)", "👩\u200d⚕️", "a <- b", "1 < 2 > 0", "[x]"],
)
def test_safe_keeps_what_clinicians_write(text: str) -> None:
    """Comparisons, accents in both forms, units and emoji pass unchanged."""
    assert safe(text) == text


def test_safe_shows_what_nobody_would_see() -> None:
    """Controls, direction marks, tags and private use become a visible sign."""
    assert safe("01\u202e mg\x1b[2J\U000e0041\ue000") == "01\ufffd mg\ufffd[2J\ufffd\ufffd"
    assert safe("a\r\nb\rc\u2028d") == "a\nb\nc\nd"


def test_line_and_block_hold_text_in_its_place() -> None:
    """``line`` is one line; every line of ``block`` stands behind its mark."""
    assert line(" a\n# Rules\tb ") == "a # Rules b"
    assert block("a\n\n# Rules\n") == "  > a\n  >\n  > # Rules"


# --- the budget ---


def result(number: int, *, flag: str = "", name: str | None = None) -> Observation:
    return Observation(
        ref=f"Observation/{number}",
        name=name or f"Analyte {number}",
        value=float(number),
        unit="mmol/L",
        flag=flag,  # type: ignore[arg-type]
        as_of=NOW - timedelta(minutes=number),
    )


def test_compose_cuts_by_the_table_and_says_so() -> None:
    """Abnormal results are kept, older ones and events go first, and prompt and ``left_out`` count them."""
    observations = (
        *(result(n, flag="H") for n in range(10)),
        *(result(n) for n in range(10, 20)),
        *(result(n, name="Analyte 1") for n in range(20, 400)),
    )
    prompt = prompt_of(with_patient(observations=observations), budget_tokens=2400)
    text = part(prompt, "patient")
    assert all(f"[Observation/{n}]" in text for n in range(10))
    counts = {each.what: each.count for each in prompt.left_out}
    shown = sum(f"[Observation/{n}]" in text for n in range(20, 400))
    assert counts["older results"] == 380 - shown
    assert f"older results: {380 - shown}" in text
    assert "Left out for length, so not absent" in text
    assert prompt.tokens <= 2400


def test_compose_no_older_result_while_a_latest_one_is_missing() -> None:
    """Where the latest results do not all fit, no older result stands in their place."""
    observations = (*(result(n) for n in range(200)), *(result(n, name="Analyte 1") for n in range(200, 210)))
    prompt = prompt_of(with_patient(observations=observations), budget_tokens=2400)
    counts = {each.what: each.count for each in prompt.left_out}
    assert counts["other latest results"] > 0
    assert counts["older results"] == 10


def test_compose_flagged_older_result_brings_its_newer_one() -> None:
    """A must-keep value that has been followed by a newer one is shown with it, not alone."""
    observations = (*(result(n) for n in range(200)), result(200, name="Analyte 150"))
    prompt = prompt_of(
        with_patient(observations=observations),
        budget_tokens=2400,
        must_keep=frozenset({"Observation/200"}),
    )
    text = part(prompt, "patient")
    assert "[Observation/200]" in text
    assert "[Observation/150]" in text
    assert "[Observation/149]" not in text


def test_compose_keeps_newest_messages_and_best_quotes() -> None:
    """Of a long talk the newest messages stay, in order; of quotes the best."""
    messages = tuple(
        Message(role="doctor", text=f"message {n} " + "word " * 100, at=NOW, patient_id="p-100") for n in range(10)
    )
    prompt = prompt_of(with_session(messages=messages), quotes=QUOTES, budget_tokens=2000)
    shown = [n for n in range(10) if f"message {n} " in part(prompt, "session")]
    assert 0 < len(shown) < 10
    assert shown == list(range(10 - len(shown), 10))
    assert "[protocol-0#steps]" in part(prompt, "question")
    assert LeftOut("earlier messages", 10 - len(shown)) in prompt.left_out
    assert f"earlier messages: {10 - len(shown)}" in part(prompt, "session")


def test_compose_names_references_that_the_record_does_not_hold() -> None:
    """A red flag on an item that is not in the record is counted, not passed over."""
    prompt = prompt_of(must_keep=frozenset({"Observation/k2", "Observation/none"}))
    assert prompt.left_out == (LeftOut("references that the record does not hold", 1),)


def test_compose_budget_too_small_is_refused() -> None:
    """Where the never-dropped does not fit there is no prompt; the error says how much is needed."""
    with pytest.raises(BudgetTooSmall) as error:
        prompt_of(budget_tokens=300)
    needed = error.value.needed_tokens
    assert needed > error.value.budget_tokens == 300
    assert prompt_of(budget_tokens=needed).tokens <= needed


words = st.text(alphabet="abc <>\nç1", min_size=1, max_size=30)
times = st.none() | st.datetimes(timezones=st.just(UTC))
refs = st.integers(0, 10**6)


@st.composite
def patients(draw: st.DrawFn) -> PatientLayer:
    def many(build: Callable[[int], Any], limit: int) -> tuple[Any, ...]:
        return tuple(build(number) for number in range(draw(st.integers(0, limit))))

    return versioned(
        PatientLayer(
            patient_id="p-1",
            name=draw(words),
            as_of=NOW,
            birth_date=draw(st.none() | st.dates()),
            deceased=draw(st.none() | st.booleans() | st.datetimes(timezones=st.just(UTC))),
            summary=draw(words),
            allergies=many(lambda n: Allergy(ref=f"A/{n}", name=f"allergen{n}", active=draw(st.booleans())), 4),
            medications=many(
                lambda n: Medication(ref=f"M/{n}", name=f"medicine{n}", dose=draw(words), active=draw(st.booleans())),
                5,
            ),
            conditions=many(
                lambda n: Condition(ref=f"C/{n}", name=draw(words), active=draw(st.booleans()), onset=draw(times)),
                5,
            ),
            observations=many(
                lambda n: Observation(
                    ref=f"O/{n}",
                    name=draw(st.sampled_from(["K", "Na", "Troponin"])),
                    value=draw(st.floats(allow_nan=False, allow_infinity=False)),
                    unit=draw(st.sampled_from([None, "mmol/L"])),
                    flag=draw(st.sampled_from(["", "HH", "A"])),
                    as_of=draw(times),
                ),
                12,
            ),
            reports=many(
                lambda n: Report(
                    ref=f"R/{n}", title="Report", text=draw(words) * 8, kind=draw(st.sampled_from(["ecg", "lab"]))
                ),
                4,
            ),
            events=many(lambda n: Event(ref=f"E/{n}", kind="encounter", name=draw(words), start=draw(times)), 4),
        )
    )


COUNTERS: list[Callable[[str], int]] = [
    len,
    estimate_tokens,
    lambda text: len(text) // 4,
    lambda text: len(text.split()),
    lambda text: len(text) + len(text) % 13,
]


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(patients(), st.integers(0, 6000), st.sampled_from(COUNTERS), st.data())
def test_compose_fits_with_all_must_keeps_or_refuses(
    patient: PatientLayer, budget: int, count_tokens: Callable[[str], int], data: st.DataObject
) -> None:
    """Any record, any budget, any tokenizer: a prompt within the budget holds all that is never dropped.

    Where there is none, what it says to be needed is enough.
    """
    items: list[Any] = [*patient.observations, *patient.reports, *patient.conditions, *patient.events]
    every = [each.ref for each in items]
    must_keep = frozenset(data.draw(st.lists(st.sampled_from(every), max_size=3)) if every else [])
    messages = tuple(
        Message(role="doctor", text=data.draw(words), at=NOW, patient_id="p-1")
        for _ in range(data.draw(st.integers(0, 4)))
    )
    layers = msgspec.structs.replace(
        LAYERS,
        patient=patient,
        session=SessionLayer(session_id="s", as_of=NOW, patient_id="p-1", messages=messages),
    )
    options: dict[str, Any] = {
        "budget_tokens": budget,
        "count_tokens": count_tokens,
        "must_keep": must_keep,
        "quotes": QUOTES[: data.draw(st.integers(0, 4))],
    }
    try:
        prompt = prompt_of(layers, "the very question", **options)
    except BudgetTooSmall as error:
        needed = error.needed_tokens
    else:
        needed = 0
    if needed:
        assert needed > budget
        options["budget_tokens"] = budget = needed
        prompt = prompt_of(layers, "the very question", **options)
    assert prompt.tokens <= budget
    assert prompt.tokens == sum(count_tokens(segment.text) for segment in prompt.segments)
    assert [segment.name for segment in prompt.segments] == NAMES
    text = part(prompt, "patient")
    assert f"record {patient.patient_id}" in text
    assert all(f"- allergen{each.ref[2:]}" in text for each in patient.allergies)
    assert all(f"- medicine{each.ref[2:]}" in text for each in patient.medications if each.active)
    assert all(f"[{ref}]" in text for ref in must_keep)
    assert "the very question" in part(prompt, "question")
    shown = sum(text.count(f"[{ref}]") for ref in every)
    medicines = sum(not each.active for each in patient.medications)
    shown_medicines = sum(f"[{each.ref}]" in text for each in patient.medications if not each.active)
    notes = bool(patient.summary.strip())
    dropped = sum(
        each.count
        for each in prompt.left_out
        if each.what not in ("notes", "earlier messages") and "protocol" not in each.what
    )
    assert shown + shown_medicines + dropped == len(every) + medicines
    assert sum(each.count for each in prompt.left_out if each.what == "notes") <= notes
    assert prompt == prompt_of(layers, "the very question", **options)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(patients())
def test_compose_equal_layers_give_equal_bytes(patient: PatientLayer) -> None:
    """A layer that was stored and read again, equal in content, composes to the same bytes."""
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(patient), type=PatientLayer)
    first = prompt_of(msgspec.structs.replace(LAYERS, patient=patient), budget_tokens=3000)
    second = prompt_of(
        msgspec.structs.replace(LAYERS, patient=again), budget_tokens=3000, now=NOW + timedelta(minutes=1)
    )
    assert part(first, "patient").encode() == part(second, "patient").encode()


def test_rules_name_the_six_parts_of_an_answer_in_their_order() -> None:
    """The labels that the answer is read by stand in the rules as they are to be written, each on its line."""
    rules = part(prompt_of(), "hospital")
    labels = ("Headline: ", "Findings:\n- ", "Interpretation:\n- ", "Recommendations:\n- ", "Missing:\n- ", "Actions: ")
    places = [rules.index(f"\n{label}") for label in labels]
    assert places == sorted(places)
    assert '"- none"' in rules
