"""HL7 v2 messages: what is read of them, what is refused, and which version of a result stands."""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from context import hl7_heard
from context.hl7 import Message, Problem, Refused, Rules, answer, header_of, read, verdict_of
from context.hl7_files import HeardFiles
from context.hl7_heard import Heard, Hearing, NotHers, hear, joined
from context.layers import Allergy, Observation, PatientLayer, versioned
from context.seal import KeyRing, Sealer
from tests.clinical_data import clinical_path

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
LISBON = ZoneInfo("Europe/Lisbon")
RULES = Rules()

MSH = r"MSH|^~\&|LAB|HOSP|CHATD|HOSP|{sent}||ORU^R01^ORU_R01|{control}|P|2.5.1||||||{charset}"
PID = "PID|1||7823^^^HOSP^MR||Silva^João||19590115|M"
PV1 = "PV1|1|I|CARD^01^01^HOSP"
OBR = "OBR|1||{order}|24323-8^Chemistry^LN|||20261122073000"


def obx(
    value: str = "6.9",
    *,
    kind: str = "NM",
    code: str = "2823-3^Potassium^LN",
    sub: str = "",
    unit: str = "mmol/L^mmol/L^UCUM",
    bounds: str = "3.5-5.1",
    flag: str = "HH",
    status: str = "F",
    at: str = "20261122073000",
) -> str:
    return f"OBX|1|{kind}|{code}|{sub}|{value}|{unit}|{bounds}|{flag}|||{status}|||{at}"


def oru(
    *segments: str,
    sent: str = "20261122074500",
    control: str = "C1",
    charset: str = "UNICODE UTF-8",
    order: str = "L-1",
    pid: str = PID,
) -> bytes:
    head = MSH.format(sent=sent, control=control, charset=charset)
    return "\r".join((head, pid, PV1, OBR.format(order=order), *(segments or (obx(),)), "")).encode()


def adt(*segments: str, event: str = "A01", sent: str = "20261122074500", pid: str = PID) -> bytes:
    head = MSH.format(sent=sent, control="A1", charset="UNICODE UTF-8").replace("ORU^R01^ORU_R01", f"ADT^{event}")
    return "\r".join((head, pid, PV1, *segments, "")).encode()


def understood(block: bytes, rules: Rules = RULES) -> Message:
    return read(block, rules, now=NOW, zone=LISBON)


def refusal(block: bytes, rules: Rules = RULES) -> tuple[str, int, str]:
    with pytest.raises(Refused) as found:
        understood(block, rules)
    return found.value.verdict, found.value.problem.code, found.value.problem.place()


def heard(*blocks: bytes, before: Heard | None = None) -> Hearing:
    """What is known after these messages, in this order."""
    hearing = None
    for block in blocks:
        hearing = hear(before, understood(block), departments=("cardiology",), now=NOW, zone=LISBON)
        before = hearing.heard
    assert hearing is not None
    return hearing


def only(block: bytes) -> Observation:
    observations = heard(block).heard.layer.observations
    assert len(observations) == 1
    return observations[0]


# --- results ------------------------------------------------------------------------------------------------


def test_result_has_value_unit_range_flag_and_time() -> None:
    """A numeric OBX becomes the value that a FHIR import would give."""
    found = only(oru())
    assert (found.name, found.code, found.value, found.unit) == ("Potassium", "2823-3", 6.9, "mmol/L")
    assert (found.low, found.high, found.range_text, found.flag) == (3.5, 5.1, "3.5-5.1", "HH")
    assert (found.status, found.as_of) == ("final", datetime(2026, 11, 22, 7, 30, tzinfo=UTC))


@pytest.mark.parametrize(
    ("kind", "value", "unit", "expected"),
    [
        ("NM", "4", "mmol/L", (4.0, "", None)),
        ("NM", "-1.5", "mmol/L", (-1.5, "", None)),
        ("NM", ">600", "mg/dL", (600.0, ">", None)),
        ("NM", "6,9", "mmol/L", (None, "", "6,9 mmol/L")),
        ("NM", "haemolysed", "mmol/L", (None, "", "haemolysed")),
        ("NM", "60~120", "/min", (None, "", "60; 120 /min")),
        ("SN", "<^0.01", "ng/mL", (0.01, "<", None)),
        ("SN", "=^5", "mg/dL", (5.0, "", None)),
        ("SN", "^1^:^128", "", (None, "", "1:128")),
        ("SN", "^10^-^20", "mg/dL", (None, "", "10-20 mg/dL")),
        ("ST", "4.1", "mmol/L", (4.1, "", None)),
        ("ST", "4", "", (None, "", "4")),
        ("ST", "Positive", "", (None, "", "Positive")),
        ("TX", r"line one\.br\line two", "", (None, "", "line one\nline two")),
        ("CE", "260348001^Present^SCT", "", (None, "", "Present")),
        ("CWE", "260348001^Present ++ out of ++++^SCT^^^^^^Moderate", "", (None, "", "Moderate")),
        ("CWE", "A^one~B^two", "", (None, "", "one; two")),
    ],
)
def test_values_of_each_type(kind: str, value: str, unit: str, expected: tuple[float | None, str, str | None]) -> None:
    """Numbers are numbers only where they are written as such; everything else is shown as it was written."""
    found = only(oru(obx(value, kind=kind, unit=unit, bounds="", flag="")))
    assert (found.value, found.comparator, found.text) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (r"a\F\b\S\c\T\d\R\e\E\f", "a|b^c&d~e\\f"),
        (r"\X41C3A9\ and \H\bold\N\ ", "Aé and bold"),
        (r"unknown \Zq\ stays", r"unknown \Zq\ stays"),
        (r"C:\temp", r"C:\temp"),
        (r"\XZZ\ bad", "\ufffd bad"),
        (r"\.sp99999999\end", "end"),
    ],
)
def test_escapes_are_undone(written: str, expected: str) -> None:
    """Escapes become their signs; one that is not known stays visible, and none makes a text longer than it is."""
    assert only(oru(obx(written, kind="ST", unit="", bounds="", flag=""))).text == expected.strip()


@pytest.mark.parametrize(
    ("flag", "expected"),
    [("HH", "HH"), ("LL", "LL"), ("H", "H"), ("L", "L"), ("A", "A"), ("AA", "A"), ("N", ""), ("H~HH", "HH"), ("", "H")],
)
def test_flags(flag: str, expected: str) -> None:
    """The gravest flag counts; without one the report's own range decides."""
    assert only(oru(obx(flag=flag))).flag == expected


@pytest.mark.parametrize(
    ("sent", "at", "hour"),
    [
        ("20261122074500", "20260715120000", 11),
        ("20261122074500", "20261115120000", 12),
        ("20261122074500", "20261115120000+0530", 6),
        ("20261122074500-0300", "20261115120000", 15),
        ("20261122074500", "202611151200", 12),
    ],
)
def test_times_are_read_in_their_zone(sent: str, at: str, hour: int) -> None:
    """A zone at the time goes first, then the one of MSH-7, then the hospital's, with its summer time."""
    found = only(oru(obx(at=at), sent=sent)).as_of
    assert found is not None
    assert found.hour == hour % 24


def test_birth_date_is_the_day_that_is_written() -> None:
    """A zone behind a birth date does not make it the day before."""
    pid = PID.replace("19590115", "19590115000000+0700")
    assert heard(oru(pid=pid)).heard.layer.birth_date == date(1959, 1, 15)


def test_lines_of_one_text_are_one_report() -> None:
    """Text that comes as one OBX per line is one text, and a long one is a report under the order's name."""
    lines = [obx(f"line {n} of the report, with some words", kind="TX", code="", unit="", bounds="", flag="") for n in
             range(40)]  # fmt: skip
    layer = heard(oru(*lines)).heard.layer
    assert not layer.observations
    assert [report.title for report in layer.reports] == ["Chemistry"]
    assert layer.reports[0].text.count("\n") == 39


def test_what_is_not_read_is_named_and_does_not_cost_the_rest() -> None:
    """A PDF in an OBX is a warning and AA; a result without a name is an error and AE; the potassium stands in both."""
    pdf = obx("^application^pdf^Base64^JVBERi0=", kind="ED", code="PDF^Report", unit="", bounds="", flag="")
    message = understood(oru(obx(), pdf))
    assert (verdict_of(message.problems), len(message.rows)) == ("AA", 1)
    assert [(p.place(), p.severity) for p in message.problems] == [("OBX[2]-2", "W")]
    message = understood(oru(obx(), obx(code="")))
    assert (verdict_of(message.problems), len(message.rows)) == ("AE", 1)
    assert [(p.code, p.place()) for p in message.problems] == [(101, "OBX[2]-3")]


@pytest.mark.parametrize(
    ("row", "code", "place"),
    [
        (obx(status=""), 101, "OBX[1]-11"),
        (obx(status="Q"), 103, "OBX[1]-11"),
        (obx(at="20261399"), 102, "OBX[1]-14"),
        (obx(at="yesterday"), 102, "OBX[1]-14"),
    ],
)
def test_result_that_cannot_be_read_is_named(row: str, code: int, place: str) -> None:
    """Status and time carry the meaning: a result with a wrong one is not taken."""
    message = understood(oru(row))
    assert (message.rows, [(p.code, p.place()) for p in message.problems]) == ((), [(code, place)])


def test_numbers_beyond_any_measurement_are_not_taken() -> None:
    """The import refuses the value, so the answer names it."""
    hearing = heard(oru(obx("9" * 30)))
    assert [problem.place() for problem in hearing.problems] == ["OBX[1]-5"]
    assert (hearing.results, hearing.heard.layer.observations) == ((), ())


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"", ("AR", 100, "MSH[1]")),
        (b"PID|1||7823", ("AR", 100, "MSH[1]")),
        (b"\x00\xff\xfe", ("AR", 100, "MSH[1]")),
        (oru().replace(b"|2.5.1|", b"|3.0|"), ("AR", 203, "MSH[1]-12")),
        (oru().replace(b"|P|", b"|T|"), ("AR", 202, "MSH[1]-11")),
        (oru().replace(b"ORU^R01^ORU_R01", b"ORM^O01"), ("AR", 200, "MSH[1]-9")),
        (oru().replace(b"ORU^R01^ORU_R01", b"ADT^A40"), ("AR", 201, "MSH[1]-9")),
        (oru().replace(b"|C1|", b"||"), ("AE", 101, "MSH[1]-10")),
        (oru().replace(b"|^~\\&|", b"|^~\\\\&|"), ("AE", 102, "MSH[1]-2")),
        (oru(charset="8859/15"), ("AE", 103, "MSH[1]-18")),
        (oru(charset="ASCII"), ("AE", 102, "MSH[1]-18")),
        (oru(charset=""), ("AE", 102, "MSH[1]-18")),
        (b"\xef\xbb\xbf" + oru(charset="8859/1"), ("AE", 102, "MSH[1]-18")),
        (oru(sent="2026112207x"), ("AE", 102, "MSH[1]-7")),
        (oru().replace(PID.encode() + b"\r", b""), ("AE", 100, "PID[1]")),
        (oru(pid=f"{PID}\r{PID.replace('7823', '7824')}"), ("AE", 100, "PID[2]")),
        (oru(pid=PID.replace("7823^^^HOSP^MR", "")), ("AE", 101, "PID[1]-3")),
        (oru(pid=PID.replace("^MR", "^SS")), ("AE", 101, "PID[1]-3")),
        (oru(pid=PID.replace("7823^^^HOSP^MR", "1^^^A^MR~2^^^B^MR")), ("AE", 204, "PID[1]-3")),
        (oru(pid=PID.replace("7823", "78 23/x")), ("AE", 102, "PID[1]-3")),
        (oru(pid=PID.replace("19590115", "19591515")), ("AE", 102, "PID[1]-7")),
        (oru("not a segment"), ("AE", 100, "MSH[1]")),
        (oru() + oru(), ("AE", 100, "MSH[2]")),
        ("\r".join((MSH.format(sent="20261122074500", control="C1", charset="UNICODE UTF-8"), PID)).encode(),
         ("AE", 100, "OBR[1]")),
    ],
)  # fmt: skip
def test_messages_that_are_refused(block: bytes, expected: tuple[str, int, str]) -> None:
    """What cannot be read, is about two patients or about nobody is refused whole, by the field's name."""
    assert refusal(block) == expected


def test_character_sets_are_those_that_are_named() -> None:
    """UTF-8, Latin-1 and a byte order mark give the same name; nothing is guessed."""
    utf8 = oru()
    latin = oru(charset="8859/1").decode().encode("latin-1")
    marked = b"\xef\xbb\xbf" + oru(charset="")
    unnamed = oru(charset="").decode().encode("latin-1")
    names = [understood(block).patient["name"] for block in (utf8, latin, marked)]
    names.append(understood(unnamed, Rules(charset="8859/1")).patient["name"])
    assert names == [[{"family": "Silva", "given": ["João"]}]] * 4


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_segments_end_as_senders_end_them(end: str) -> None:
    """Carriage returns, line feeds and both are ends of segments."""
    assert len(understood(oru().decode().replace("\r", end).encode()).rows) == 1


def test_other_separators_are_used() -> None:
    """MSH-1 and MSH-2 say which signs separate, also where they are not the usual ones."""
    block = oru().decode().replace("^~\\&", "$~\\&").replace("^", "$").encode()
    assert understood(block).rows[0].name == "Potassium"


def test_record_number_of_the_own_authority_is_taken() -> None:
    """Of several record numbers the one of the installation's authority counts."""
    block = oru(pid=PID.replace("7823^^^HOSP^MR", "1^^^OTHER^MR~7823^^^HOSP^MR~9^^^TAX^SS"))
    message = understood(block, Rules(assigning_authority="HOSP"))
    assert message.patient_id == "7823"
    assert [row["value"] for row in message.patient["identifier"]] == ["7823", "9"]


# --- answers ------------------------------------------------------------------------------------------------


def test_answer_names_the_message_and_the_field_and_no_value() -> None:
    """MSA-2 is the control id, ERR says where and what; nothing of the patient goes back."""
    block = oru(obx(), obx(code=""))
    message = understood(block)
    text = answer(header_of(block, RULES), "AE", message.problems, now=NOW, control_id="x1").decode()
    segments = text.rstrip("\r").split("\r")
    assert segments[0].startswith("MSH|^~\\&|CHATD|HOSP|LAB|HOSP|20261122080000+0000||ACK^R01^ACK|x1|P|2.5.1|")
    assert segments[1] == "MSA|AE|C1"
    assert segments[2].startswith("ERR||OBX^2^3|101^Required field missing^HL70357|E|||")
    assert not any(word in text for word in ("Silva", "7823", "6.9", "Potassium"))


@given(st.binary(max_size=400))
def test_any_bytes_are_answered(block: bytes) -> None:
    """Garbage is refused and answered by a well-formed message, never by an exception."""
    for data in (block, b"MSH|^~\\&|" + block, oru()[:80] + block + oru()[80:]):
        problems: tuple[Problem, ...] = ()
        try:
            message = understood(data)
            hear(None, message, departments=(), now=NOW, zone=LISBON)
        except Refused as found:
            problems = (found.problem,)
        reply = answer(header_of(data, RULES), verdict_of(problems), problems, now=NOW, control_id="x")
        assert reply.startswith(b"MSH|^~\\&|")
        assert reply.endswith(b"\r")
        assert b"\rMSA|" in reply
        assert b"\x0b" not in reply
        assert b"\x1c" not in reply


@given(st.data())
def test_a_damaged_message_never_becomes_somebody_elses(data: st.DataObject) -> None:
    """One byte changed or cut away: the message is refused, or is still about a number that it names."""
    block = oru()
    place = data.draw(st.integers(0, len(block) - 1))
    damaged = (
        block[:place] + data.draw(st.sampled_from((b"", b"|", b"^", b"\r", b"~", b"\\", b"\x00"))) + block[place + 1 :]
    )
    try:
        message = understood(damaged)
    except Refused:
        return
    assert message.patient_id.encode() in damaged


# --- versions -----------------------------------------------------------------------------------------------

P, F, C, W = (
    oru(obx("6.9", status="P"), sent="202611220740", control="m1"),
    oru(obx("6.9", status="F"), sent="202611220745", control="m2"),
    oru(obx("4.1", status="C", flag="N"), sent="202611220750", control="m3"),
    oru(obx("", status="W", flag=""), sent="202611220755", control="m4"),
)


@given(st.lists(st.sampled_from((P, F, C)), min_size=1, max_size=8))
def test_order_and_repetition_change_nothing(blocks: list[bytes]) -> None:
    """However late and however often messages come, the newest version of a result stands, alone."""
    layer = heard(*blocks).heard.layer
    newest = max(set(blocks), key=[P, F, C].index)
    assert layer.version == heard(newest).heard.layer.version
    assert len(layer.observations) == 1


@given(st.permutations((P, F, C, W)))
def test_a_result_that_was_taken_back_stays_away(blocks: list[bytes]) -> None:
    """After W nothing stands, whatever comes late."""
    hearing = heard(*blocks)
    assert hearing.heard.layer.observations == ()
    assert heard(*blocks, before=hearing.heard).heard.layer.observations == ()


def test_a_correction_of_the_time_moves_the_result() -> None:
    """The same order and code with another time, as a correction, replaces; as a final result it is a second one."""
    moved = oru(obx(status="C", at="20261122063000"), sent="202611220750")
    assert [item.as_of for item in heard(F, moved).heard.layer.observations] == [
        datetime(2026, 11, 22, 6, 30, tzinfo=UTC)
    ]
    second = oru(obx(at="20261122083000"), sent="202611220850")
    assert len(heard(F, second).heard.layer.observations) == 2


def test_an_old_value_under_a_new_id_and_time_does_not_come_back() -> None:
    """An engine that sends an old message once more, as if it were new, does not undo a correction."""
    again = oru(obx("6.9"), sent="202611220800", control="m9")
    assert [item.value for item in heard(F, C, again).heard.layer.observations] == [4.1]
    other = oru(obx("4.3", flag="N"), sent="202611220801", control="m10")
    assert [item.value for item in heard(F, C, other).heard.layer.observations] == [4.3]


@pytest.mark.parametrize("row", [obx("", status="W"), obx("", status="D"), obx("", status="X"), obx('""')])
def test_ways_to_take_a_result_back(row: str) -> None:
    """Wrong, deleted, cannot be obtained, and HL7's null each take away what was told."""
    assert heard(F, oru(row, sent="202611220750")).heard.layer.observations == ()


def test_results_of_two_orders_and_of_two_codes_are_apart() -> None:
    """Identity is order, code and sub-id: nothing of another order is replaced."""
    rows = (obx(), obx("140", code="2951-2^Sodium^LN"), obx("7.0", sub="2"))
    layer = heard(oru(*rows), oru(obx("4.0"), order="L-2", sent="202611220750")).heard.layer
    assert sorted(item.value or 0 for item in layer.observations) == [4.0, 6.9, 7.0, 140.0]


def test_a_sender_whose_clock_is_ahead_can_be_corrected() -> None:
    """A message from next year is taken as of now, so that later ones are newer."""
    ahead = oru(obx("6.9"), sent="20271122074500")
    later = hear(
        heard(ahead).heard,
        understood(C),
        departments=(),
        now=NOW + timedelta(minutes=1),
        zone=LISBON,
    )
    assert later.outdated == 1  # sent before now, so it cannot be newer
    message = read(
        oru(obx("4.1", status="C"), sent="20271122075000"), RULES, now=NOW + timedelta(minutes=1), zone=LISBON
    )
    corrected = hear(heard(ahead).heard, message, departments=(), now=NOW, zone=LISBON)
    assert [item.value for item in corrected.heard.layer.observations] == [4.1]


def test_a_monitor_cannot_fill_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are bounded also where each is flagged abnormal; the newest stay."""
    monkeypatch.setattr(hl7_heard, "MAX_RESULTS", 120)
    rows = [obx(str(n), at=f"20261101{n // 60 % 24:02}{n % 60:02}00", sub=str(n)) for n in range(170)]
    hearing = heard(oru(*rows))
    assert sorted(item.value or 0 for item in hearing.heard.layer.observations) == list(range(50, 170))
    assert hearing.problems == ()


# --- admissions, and the rest of the record -----------------------------------------------------------------


def test_admission_gives_allergies_diagnoses_and_stay() -> None:
    """AL1, DG1 and PV1 of an ADT become what the import makes of them."""
    layer = heard(
        adt(
            "AL1|1|DA|^penicillin|SV|anaphylaxis~rash",
            "DG1|1||I21.0^STEMI^I10|||F",
        ).replace(PV1.encode(), b"PV1|1|I|CARD^01^01^HOSP" + b"|" * 16 + b"V77" + b"|" * 25 + b"20261121")
    ).heard.layer
    assert [(a.name, a.criticality, a.reaction, a.category) for a in layer.allergies] == [
        ("penicillin", "high", "anaphylaxis, rash (severe)", "medication")
    ]
    assert (layer.allergy_status, layer.name) == ("known", "João Silva")
    assert [(c.name, c.code, c.verification) for c in layer.conditions] == [("STEMI", "I21.0", "confirmed")]
    assert [(e.kind, e.status) for e in layer.events] == [("encounter", "in-progress")]


def test_no_known_allergies_is_what_an_entry_says() -> None:
    """Only an entry says that there are none; an admission without AL1 says nothing."""
    assert heard(adt("AL1|1|DA|^No known allergies")).heard.layer.allergy_status == "none_known"
    assert heard(adt()).heard.layer.allergy_status == "not_recorded"


def record(**changes: object) -> PatientLayer:
    fields: dict[str, object] = {
        "patient_id": "7823",
        "name": "João Silva",
        "as_of": NOW,
        "birth_date": date(1959, 1, 15),
        "sex": "male",
        "departments": ("cardiology",),
        "allergies": (Allergy(ref="AllergyIntolerance/a", name="latex"),),
        "allergy_status": "known",
    }
    return versioned(PatientLayer(**(fields | changes)))  # type: ignore[arg-type]


def copy_of_result(value: float, status: str = "final") -> Observation:
    return Observation(
        ref="Observation/file-1",
        name="K",
        code="2823-3",
        value=value,
        unit="mmol/L",
        status=status,
        as_of=datetime(2026, 11, 22, 7, 30, tzinfo=UTC),
    )


def test_results_join_the_record_and_take_nothing_away() -> None:
    """Allergies of the record stay, the department stays, the new value is there; joining twice is joining once."""
    once = joined(record(), heard(F).heard, now=NOW)
    assert [a.name for a in once.allergies] == ["latex"]
    assert (once.allergy_status, once.departments) == ("known", ("cardiology",))
    assert [item.value for item in once.observations] == [6.9]
    assert joined(once, heard(F).heard, now=NOW).version == once.version


def test_a_laboratory_does_not_rename_a_patient() -> None:
    """A result's copy of the name counts only where nothing better is known; an admission's counts more."""
    shouted = PID.replace("Silva^João", "SILVA^JOAO")
    assert joined(record(), heard(oru(pid=shouted)).heard, now=NOW).name == "João Silva"
    new_name = PID.replace("Silva^João", "Silva Santos^João")
    assert joined(record(), heard(adt(pid=new_name)).heard, now=NOW).name == "João Silva Santos"


@pytest.mark.parametrize(
    ("name", "birth", "is_hers"),
    [
        ("Silva^João", "19590115", True),
        ("Costa^Maria", "19590115", True),
        ("Silva^João", "19600101", True),
        ("Costa^Maria", "19600101", False),
        ("Costa^Maria", "", False),
        ("", "19600101", False),
        ("", "", True),
    ],
)
def test_results_of_somebody_else_are_refused(name: str, birth: str, is_hers: bool) -> None:
    """A record number with another name and another birth date, or none, is not believed."""
    said = heard(oru(pid=PID.replace("Silva^João", name).replace("19590115", birth))).heard
    if is_hers:
        assert joined(record(), said, now=NOW).observations
    else:
        with pytest.raises(NotHers):
            joined(record(), said, now=NOW)
        with pytest.raises(NotHers):
            hear(heard(F).heard, understood(oru(pid=PID.replace("Silva^João", name).replace("19590115", birth))),
                 departments=(), now=NOW, zone=LISBON)  # fmt: skip


@pytest.mark.parametrize(
    ("copy", "blocks", "expected"),
    [
        (copy_of_result(6.9), (F,), [6.9]),
        (copy_of_result(6.9), (F, C), [4.1]),
        (copy_of_result(6.9), (F, W), []),
        (copy_of_result(5.0), (F,), [5.0, 6.9]),
        (copy_of_result(4.0, "corrected"), (F, C), [4.0, 4.1]),
    ],
)
def test_copies_of_files_give_way_to_corrections(
    copy: Observation, blocks: tuple[bytes, ...], expected: list[float]
) -> None:
    """The same result from a file and from a message stands once; a corrected one goes before the file's old copy; two
    that contradict each other without a correction both stay in sight."""
    layer = joined(record(observations=(copy,)), heard(*blocks).heard, now=NOW)
    assert sorted(item.value or 0 for item in layer.observations) == expected


# --- on disk ------------------------------------------------------------------------------------------------


def test_files_hold_what_was_heard_sealed(tmp_path: Path) -> None:
    """A patient's file opens with the key ring alone, tells neither number nor name, and is replaced as a whole."""
    files = HeardFiles(tmp_path, Sealer(KeyRing.generate()))
    said = heard(F).heard
    files.save(said)
    files.save(said)
    assert files.load("7823") == said
    assert list(files.all()) == [said]
    (path,) = (tmp_path / "hl7").iterdir()
    assert not any(word in path.name.encode() + path.read_bytes() for word in (b"7823", b"Silva", b"6.9"))
    assert path.stat().st_mode & 0o077 == 0


def test_a_broken_file_is_set_aside_and_told(tmp_path: Path) -> None:
    """One file that does not open costs its patient's past messages and is said; new ones are taken."""
    told: list[str] = []
    files = HeardFiles(tmp_path, Sealer(KeyRing.generate()), told.append)
    files.save(heard(F).heard)
    (path,) = (tmp_path / "hl7").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert files.load("7823") is None
    assert told == [path.name]
    assert [left.name for left in (tmp_path / "hl7").iterdir()] == [f"{path.name}.broken"]


# --- the test data ------------------------------------------------------------------------------------------

DATA = ("authored_critical", "fhir-converter_mit", "hl7v2-fhir-converter_apache")


@pytest.mark.parametrize("folder", DATA)
def test_every_sample_is_read_or_clearly_refused(folder: str) -> None:
    """Each sample message is taken, or refused by a field and a code; twice is once."""
    samples = sorted(clinical_path("hl7v2", folder).glob("*.hl7"))
    assert samples
    rules = Rules(processing=("P", "T"))
    outcomes = []
    for sample in samples:
        try:
            message = understood(sample.read_bytes(), rules)
        except Refused as found:
            outcomes.append(f"{found.verdict} {found.problem.code}")
            continue
        first = hear(None, message, departments=("icu",), now=NOW, zone=LISBON)
        again = hear(first.heard, message, departments=("icu",), now=NOW, zone=LISBON)
        assert (again.changed, again.heard.layer.version) == ((), first.heard.layer.version)
        outcomes.append(verdict_of((*message.problems, *first.problems)))
    if folder == "authored_critical":
        assert set(outcomes) == {"AA"}
    assert set(outcomes) <= {"AA", "AE 101", "AE 102", "AR 200"}
    assert outcomes.count("AA") >= 1


def test_all_orders_of_two_corrections_agree() -> None:
    """Two corrections in any order, with copies between, leave the later one."""
    later = oru(obx("4.4", status="C", flag="N"), sent="202611220758", control="m5")
    for blocks in itertools.permutations((F, C, later, F)):
        assert [item.value for item in heard(*blocks).heard.layer.observations] == [4.4]
