"""HL7 v2 over MLLP: what is answered, what the record and the phones get, and what a bad sender costs the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hl7.mllp import HL7StreamReader, HL7StreamWriter, open_hl7_connection  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from chatd.alerts.model import Raise, Raised, Recorded, Response
from chatd.alerts.policies import Policies
from chatd.alerts.presence import Presence
from chatd.alerts.service import Alerts
from chatd.hl7 import CONFIG_NAME, Config, Hl7ConfigError, Intake
from chatd.hl7_server import MllpServer, alone
from chatd.ledger import Ledger, LedgerUnavailable, Why
from chatd.ledger.day_keys import DayKeys
from chatd.records import DEMO_MARK
from context.hl7_files import HeardFiles
from context.layers import Allergy, HospitalLayer, PatientLayer
from context.seal import KeyRing, Sealer
from context.store import ContextStore, PatientUnknown
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import Reach
from tests.clinical_data import clinical_path

NOW = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
CONFIG = Config(locations={"CARD": "cardiology", "ICU": "icu", "ED": "emergency", "SURG": "surgery"})
DEPARTMENTS = ("cardiology", "emergency", "icu", "surgery")
HOSPITAL = HospitalLayer(name="H", as_of=NOW, language="en", timezone="Europe/Lisbon")


def message(
    value: str = "6.9",
    *,
    flag: str = "HH",
    status: str = "F",
    control: str = "C1",
    sent: str = "202611220745",
    patient: str = "7823",
    location: str = "CARD",
    code: str = "2823-3^Potassium^LN",
    unit: str = "mmol/L",
    at: str = "20261122074500",
    kind: str = "NM",
) -> bytes:
    return "\r".join(
        (
            rf"MSH|^~\&|LAB|HOSP|CHATD|HOSP|{sent}||ORU^R01^ORU_R01|{control}|P|2.5.1||||||UNICODE UTF-8",
            f"PID|1||{patient}^^^HOSP^MR||Silva^João||19590115|M",
            f"PV1|1|I|{location}^01^01^HOSP",
            f"OBR|1||L-{patient}|24323-8^Chemistry^LN|||20261122074500",
            f"OBX|1|{kind}|{code}||{value}|{unit}||{flag}|||{status}|||{at}",
            "",
        )
    ).encode()


class Fixed:
    """A clock that stands."""

    def now(self) -> datetime:
        return NOW

    def monotonic_ms(self) -> int:
        return 0


class Recording:
    """The alerts' interface, kept in memory: idempotent by key like the service, failing on demand."""

    def __init__(self) -> None:
        self.raised: dict[str, Raise] = {}
        self.stood_down: list[str] = []
        self.failure: Exception | None = None
        self.closed: set[str] = set()

    def now(self) -> datetime:
        return NOW

    async def raise_(self, command: Raise, now: datetime) -> Raised:
        if self.failure is not None:
            raise self.failure
        known = self.raised.setdefault(command.key, command)
        assert known == command
        number = list(self.raised).index(command.key) + 1
        return Raised(alert_id=f"al-{number}", alert_seq=number, reach=Reach())

    async def respond(self, response: Response, now: datetime) -> bool:
        if self.failure is not None:
            raise self.failure
        assert (response.answer, response.user_id) == ("stand_down", "service:hl7")
        if response.alert_id in self.closed:
            raise RemoteProtocolError(ErrorCode.ALERT_CLOSED)
        self.stood_down.append(response.alert_id)
        return True

    @property
    def texts(self) -> list[str]:
        return [command.content for command in self.raised.values()]


class Ward:
    """An intake on a real Redis, with its files, and the alerts it raised."""

    def __init__(self, redis: Redis, folder: Path, config: Config = CONFIG) -> None:
        self.sealer = Sealer(KeyRing.generate())
        self.folder = folder
        self.config = config
        self.alerts = Recording()
        self.store = ContextStore(redis, self.sealer)
        self.files = HeardFiles(folder, self.sealer)
        self.intake = self.started()

    def started(self) -> Intake:
        """An intake as after a restart: nothing in memory."""
        return Intake(
            store=self.store,
            files=self.files,
            alerts=self.alerts,
            config=self.config,
            hospital=HOSPITAL,
            departments=DEPARTMENTS,
            clock=Fixed(),
        )

    async def send(self, block: bytes) -> str:
        """The verdict and the first error's place: "AA", "AE 101 PID^1^3"."""
        return verdict(await self.intake.handle(block))

    async def values(self, patient_id: str = "7823") -> list[float | None]:
        return [item.value for item in (await self.store.patient(patient_id)).observations]


def verdict(reply: bytes) -> str:
    segments = [segment.split("|") for segment in reply.decode("latin-1").split("\r")]
    assert segments[0][0] == "MSH"
    assert segments[1][0] == "MSA"
    errors = [f" {row[3].split('^')[0]} {row[2]}" for row in segments if row[0] == "ERR"]
    return segments[1][1] + (errors[0] if errors else "")


def record(**changes: object) -> PatientLayer:
    fields: dict[str, object] = {
        "patient_id": "7823",
        "name": "João Silva",
        "as_of": NOW,
        "departments": ("cardiology", "icu"),
        "allergies": (Allergy(ref="AllergyIntolerance/a", name="latex"),),
        "allergy_status": "known",
    }
    return PatientLayer(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
async def ward(redis: Redis, tmp_path: Path) -> Ward:
    """Everything is loaded; patient 7823 is on record in cardiology and intensive care."""
    ward = Ward(redis, tmp_path)
    await ward.store.begin_load("g1")
    await ward.store.put_patient(record())
    await ward.store.mark_loaded("g1")
    return ward


# --- the record ---------------------------------------------------------------------------------------------


async def test_value_is_in_the_record_when_the_message_is_answered(ward: Ward) -> None:
    """After AA the next reading has the value, beside what was known."""
    assert await ward.send(message()) == "AA"
    layer = await ward.store.patient("7823")
    assert [(item.name, item.value, item.flag) for item in layer.observations] == [("Potassium", 6.9, "HH")]
    assert [allergy.name for allergy in layer.allergies] == ["latex"]


async def test_new_patient_comes_with_her_place(ward: Ward) -> None:
    """A patient nobody knew is her department's; without a known place nothing is kept."""
    assert await ward.send(message(patient="1", location="ICU")) == "AA"
    assert (await ward.store.patient("1")).departments == ("icu",)
    assert await ward.send(message(patient="2", location="NOWHERE")) == "AE 103 PV1^1^3"
    with pytest.raises(PatientUnknown):
        await ward.store.patient("2")


async def test_default_department_takes_unknown_places(redis: Redis, tmp_path: Path) -> None:
    """With a default department no place is unknown."""
    ward = Ward(redis, tmp_path, Config(default_department="emergency"))
    await ward.store.begin_load("g1")
    await ward.store.mark_loaded("g1")
    assert await ward.send(message(patient="2", location="NOWHERE")) == "AA"
    assert (await ward.store.patient("2")).departments == ("emergency",)
    assert [command.department for command in ward.alerts.raised.values()] == ["emergency"]


async def test_lost_redis_is_not_answered_aa_and_loses_nothing(ward: Ward, redis: Redis) -> None:
    """While the layers are gone a message is to be sent again; what was acknowledged is there after the reload."""
    assert await ward.send(message()) == "AA"
    await redis.flushall()
    assert await ward.send(message("4.1", status="C", control="C2", sent="202611220750")) == "AR 207 MSH^1"
    await ward.store.begin_load("g2")
    await ward.store.put_patient(record())
    await ward.store.mark_loaded("g2")
    assert await ward.values() == []
    await ward.intake.heal()
    assert await ward.values() == [6.9]


async def test_import_that_overtakes_is_healed(ward: Ward) -> None:
    """A layer that was put at the same moment by somebody else gets its results back."""
    await ward.intake.heal()
    assert await ward.send(message()) == "AA"
    await ward.store.put_patient(record())
    await ward.intake.heal()
    assert await ward.values() == [6.9]


async def test_demo_patient_gives_way(ward: Ward) -> None:
    """Nothing invented is merged with what a hospital sends."""
    await ward.store.put_patient(record(identifiers=(DEMO_MARK,)))
    assert await ward.send(message()) == "AA"
    layer = await ward.store.patient("7823")
    assert (layer.allergies, layer.departments) == ((), ("cardiology",))


async def test_somebody_elses_number_is_refused(ward: Ward) -> None:
    """A result under a number whose record has another name and birth date is neither shown nor rung."""
    await ward.store.put_patient(record(name="Maria Costa"))
    assert await ward.send(message()) == "AE 204 PID^1^3"
    assert (await ward.values(), ward.alerts.raised) == ([], {})


# --- alerts -------------------------------------------------------------------------------------------------


async def test_critical_result_calls_the_department_once(ward: Ward) -> None:
    """One alert with value, unit, time and patient; not again for copies, new ids, a restart, or the final status."""
    assert await ward.send(message(status="P")) == "AA"
    for control in ("C1", "C1", "C2", "C3"):
        assert await ward.send(message(control=control)) == "AA"
    ward.intake = ward.started()
    assert await ward.send(message(control="C4", sent="202611220747")) == "AA"
    (command,) = ward.alerts.raised.values()
    assert command.content == "Potassium 6.9 mmol/L (critical), 07:45"
    assert (command.priority, command.requires_action, command.patient_id) == ("critical", True, "7823")
    assert (command.department, command.to.department, command.raised_by) == ("cardiology", "cardiology", "service:hl7")


async def test_patient_of_two_departments_without_a_place_calls_both(ward: Ward) -> None:
    """Where the message names no place that is known, all departments of the patient are called."""
    assert await ward.send(message(location="")) == "AA"
    assert sorted(command.department for command in ward.alerts.raised.values()) == ["cardiology", "icu"]


@pytest.mark.parametrize(
    ("fields", "rings"),
    [
        ({"value": "6.9", "flag": "H"}, True),  # beyond chatd's own call limit
        ({"value": "6.9", "flag": ""}, True),
        ({"value": "5.6", "flag": "H"}, False),
        ({"value": "5.6", "flag": "LL"}, True),
        ({"value": "growth", "flag": "AA", "code": "600-7^Blood culture^LN", "unit": "", "kind": "ST"}, True),
        ({"value": "growth", "flag": "A", "code": "600-7^Blood culture^LN", "unit": "", "kind": "ST"}, False),
        ({"value": "6.9", "flag": "N", "unit": ""}, False),  # no unit: nothing to compare
        ({"value": "6.9", "flag": "HH", "unit": ""}, True),
        ({"at": "20261119074500"}, True),  # measured long ago, reported now
        ({"at": "20261119074500", "sent": "202611191000"}, False),  # history
        ({"at": "20271122074500"}, True),  # a clock that is ahead
        ({"value": "", "status": "X"}, False),
    ],
)
async def test_what_is_critical(ward: Ward, fields: dict[str, str], rings: bool) -> None:
    """The laboratory's HH, LL and AA ring, and so does what is beyond the call limits, whatever the flag."""
    assert await ward.send(message(**fields)) == "AA"
    assert len(ward.alerts.raised) == int(rings)


async def test_correction_stands_the_alert_down_and_says_so(ward: Ward) -> None:
    """A corrected value that is not critical: the alert is withdrawn once, and its people hear that it was wrong."""
    await ward.send(message())
    for control in ("C2", "C3"):
        fixed = message("4.1", flag="N", status="C", control=control, sent="202611220755")
        assert await ward.send(fixed) == "AA"
    assert ward.alerts.stood_down == ["al-1"]
    assert ward.alerts.texts[1:] == [
        "Corrected: Potassium 4.1 mmol/L, 07:45: the critical value reported before was wrong"
    ]
    notice = list(ward.alerts.raised.values())[1]
    assert (notice.priority, notice.requires_action) == ("high", False)
    assert await ward.values() == [4.1]
    # The old value once more, under a new id.
    assert await ward.send(message(control="C9")) == "AA"
    assert (len(ward.alerts.raised), await ward.values()) == (2, [4.1])


@pytest.mark.parametrize("status", ["W", "D"])
async def test_wrong_and_deleted_results_stand_the_alert_down(ward: Ward, status: str) -> None:
    """A critical result that is taken back is withdrawn, also where somebody has closed the alert already."""
    await ward.send(message())
    ward.alerts.closed.add("al-1")
    assert await ward.send(message("", status=status, flag="", control="C2", sent="202611220755")) == "AA"
    assert ward.alerts.texts[1:] == ["Corrected: Potassium, 07:45: the laboratory has taken the critical result back"]
    assert await ward.values() == []


async def test_correction_to_another_critical_value_calls_again(ward: Ward) -> None:
    """6.9 corrected to 7.4: the first alert is withdrawn, the second says that it corrects."""
    await ward.send(message())
    assert await ward.send(message("7.4", status="C", control="C2", sent="202611220755")) == "AA"
    assert ward.alerts.stood_down == ["al-1"]
    assert ward.alerts.texts[1:] == ["Potassium 7.4 mmol/L (critical), 07:45, corrected"]


async def test_department_that_is_no_more_holds_up_no_message(ward: Ward) -> None:
    """Of a patient's departments those are called that the hospital has."""
    await ward.store.put_patient(record(departments=("cardiology", "old-ward")))
    assert await ward.send(message(location="")) == "AA"
    assert [command.department for command in ward.alerts.raised.values()] == ["cardiology"]


@pytest.mark.parametrize(("between", "flag"), [("4.1", "N"), ("7.4", "HH")])
async def test_critical_value_that_comes_back_calls_again(ward: Ward, between: str, flag: str) -> None:
    """6.9, corrected to another value, corrected to 6.9 again: the last word is in the record and calls anew."""
    await ward.send(message())
    assert await ward.send(message(between, flag=flag, status="C", control="C2", sent="202611220755")) == "AA"
    back = message(status="C", control="C3", sent="202611220758")
    for _ in range(2):
        assert await ward.send(back) == "AA"
    assert await ward.values() == [6.9]
    called = [each for each in ward.alerts.raised.values() if each.requires_action and "6.9" in each.content]
    assert len(called) == 2
    assert ward.alerts.stood_down[0] == "al-1"
    assert f"al-{list(ward.alerts.raised).index(called[-1].key) + 1}" not in ward.alerts.stood_down


async def test_alert_that_cannot_be_recorded_is_owed(ward: Ward) -> None:
    """Without a ledger the answer is "later"; the alert comes once, by the resend or by itself after a restart."""
    ward.alerts.failure = LedgerUnavailable(Why.CONNECTION)
    assert await ward.send(message()) == "AR 207 MSH^1"
    assert await ward.values() == [6.9]
    # It was corrected before anybody was called: nobody hears of it.
    assert await ward.send(message("4.1", flag="N", status="C", control="C2", sent="202611220755")) == "AA"
    assert await ward.send(message("7.4", status="C", control="C3", sent="202611220756")) == "AR 207 MSH^1"
    ward.alerts.failure = None
    ward.intake = ward.started()
    await ward.intake.heal()
    assert ward.alerts.texts == ["Potassium 7.4 mmol/L (critical), 07:45"]
    assert await ward.send(message("7.4", status="C", control="C3", sent="202611220756")) == "AA"
    assert len(ward.alerts.raised) == 1


async def test_resend_storm_and_two_patients_at_once(ward: Ward) -> None:
    """200 copies from everywhere at once: one value and one alert per patient."""
    await ward.store.put_patient(record(patient_id="1"))
    blocks = [message(patient=patient, control=f"C{n}") for n in range(100) for patient in ("7823", "1")]
    assert set(await asyncio.gather(*(ward.send(block) for block in blocks))) == {"AA"}
    assert sorted(command.patient_id or "" for command in ward.alerts.raised.values()) == ["1", "7823"]
    assert (await ward.values(), await ward.values("1")) == ([6.9], [6.9])


async def test_an_error_of_our_own_is_an_answer(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that nobody thought of is AR, and the next message is taken."""
    with monkeypatch.context() as patch:
        patch.setattr("chatd.hl7.hear", lambda *_, **__: 1 / 0)
        assert await ward.send(message()) == "AR 207 MSH^1"
    assert await ward.send(message()) == "AA"


# --- with the real alerts -----------------------------------------------------------------------------------


async def test_story_of_a_potassium_on_a_real_ledger(ward: Ward, redis: Redis, tmp_path: Path) -> None:
    """Critical, sent twice, corrected: the department's log says raised, stood down and what is right, each once."""
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    events: list[tuple[str, str]] = []
    alerts = Alerts(
        ledger,
        DayKeys(ward.sealer),
        Policies(),
        Presence(redis),
        clock=Fixed(),
        mac_key=b"m" * 32,
        node_id="n-1",
    )

    def told(_department: str, recorded: tuple[Recorded, ...]) -> None:
        frames = [json.loads(each.frame) for each in recorded]
        events.extend((frame["event"], frame.get("content", "")) for frame in frames)

    alerts.on_recorded = told
    ward.intake = Intake(
        store=ward.store,
        files=ward.files,
        alerts=alerts,
        config=CONFIG,
        hospital=HOSPITAL,
        departments=DEPARTMENTS,
        clock=Fixed(),
    )
    try:
        critical = "Potassium 6.9 mmol/L (critical), 07:45"
        assert await ward.send(message()) == "AA"
        assert await ward.send(message(control="C2")) == "AA"
        assert events == [("raised", critical)]
        fixed = message("4.1", flag="N", status="C", control="C3", sent="202611220755")
        assert await ward.send(fixed) == "AA"
        assert await ward.send(fixed) == "AA"
        corrected = "Corrected: Potassium 4.1 mmol/L, 07:45: the critical value reported before was wrong"
        assert events == [("raised", critical), ("stood_down", critical), ("raised", corrected)]
        assert [(alert.content, alert.priority) for alert in await alerts.open_alerts("cardiology")] == [
            (corrected, "high")
        ]
        assert await ward.values() == [4.1]
    finally:
        await ledger.close()


async def test_many_critical_results_of_one_message_stand_and_fall_by_themselves(
    ward: Ward, redis: Redis, tmp_path: Path
) -> None:
    """Where a storm put several results into one alert, that one stands until the last of them is corrected."""
    shared = Raised(alert_id="al-1", alert_seq=1, reach=Reach())

    class Bundling(Recording):
        async def raise_(self, command: Raise, now: datetime) -> Raised:
            await super().raise_(command, now)
            return shared

    ward.alerts = Bundling()
    ward.intake = ward.started()
    names = ("2823-3^Potassium^LN", "2951-2^Sodium^LN")
    for code in names:
        assert await ward.send(message(code=code)) == "AA"
    taken_back = [message("", status="W", flag="", code=code, sent="202611220755") for code in names]
    assert await ward.send(taken_back[0]) == "AA"
    assert ward.alerts.stood_down == []
    assert await ward.send(taken_back[1]) == "AA"
    assert ward.alerts.stood_down == ["al-1"]


# --- connections --------------------------------------------------------------------------------------------


class Line:
    """One connection of an interface engine."""

    def __init__(self, reader: HL7StreamReader, writer: HL7StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, block: bytes) -> str:
        self.writer.writeblock(block)
        return await self.heard()

    async def heard(self) -> str:
        async with asyncio.timeout(10):
            return verdict(await self.reader.readblock())

    async def rest(self) -> bytes:
        """What still comes before the server closes the line."""
        async with asyncio.timeout(10):
            try:
                return bytes(await self.reader.read())
            except ConnectionError:
                return b""

    async def is_closed(self) -> bool:
        return await self.rest() == b""


class Engine:
    """An MLLP server with an intake behind it, and lines to it."""

    def __init__(self, server: MllpServer) -> None:
        self.server = server
        self.address = ("", 0)
        self.lines: list[Line] = []

    async def line(self) -> Line:
        line = Line(*await open_hl7_connection(*self.address))
        self.lines.append(line)
        return line


@contextlib.asynccontextmanager
async def serving(taker: object, *, config: Config = CONFIG, **limits: float) -> AsyncIterator[Engine]:
    engine = Engine(MllpServer(taker, config=config, **limits))  # type: ignore[arg-type]
    engine.address = await engine.server.start("127.0.0.1", 0)
    try:
        yield engine
    finally:
        for line in engine.lines:
            line.writer.close()
        await engine.server.stop()


async def test_messages_are_answered_in_order_on_one_line(ward: Ward) -> None:
    """Several messages sent without waiting are answered one by one; line ends between frames do no harm."""
    async with serving(ward.intake) as engine:
        line = await engine.line()
        for block in (message(), b"rubbish", message("4.1", status="C", control="C2", sent="202611220755")):
            line.writer.writeblock(block)
            line.writer.write(b"\r\n")
        assert [await line.heard() for _ in range(3)] == ["AA", "AR 100 MSH^1", "AA"]
    assert await ward.values() == [4.1]


async def test_too_large_message_is_refused_and_the_line_goes_on(ward: Ward) -> None:
    """A message beyond the bound is read to its end, answered AE by its control id, and followed by the next."""
    async with serving(ward.intake, max_message_bytes=4096) as engine:
        line = await engine.line()
        line.writer.writeblock(message() + b"NTE|1||" + b"x" * 300_000 + b"\r")
        async with asyncio.timeout(10):
            reply = await line.reader.readblock()
        assert (verdict(reply), b"\rMSA|AE|C1\r" in reply) == ("AE 102 MSH^1", True)
        assert await line.ask(message()) == "AA"


@pytest.mark.parametrize(
    "data",
    [b"MSH|^~\\&|no start", b"\x0bMSH|^~\\&|LAB\x0bMSH|^~\\&|LAB\x1c\r", b"GET / HTTP/1.1\r\n\r\n"],
)
async def test_broken_framing_closes_that_line_alone(ward: Ward, data: bytes) -> None:
    """Where a message begins is not guessed: the line is closed, another goes on."""
    async with serving(ward.intake) as engine:
        good, bad = await engine.line(), await engine.line()
        bad.writer.write(data)
        assert await bad.is_closed()
        assert await good.ask(message()) == "AA"


async def test_message_that_is_cut_off_is_not_applied(ward: Ward) -> None:
    """A line that ends within a message leaves nothing."""
    async with serving(ward.intake) as engine:
        line = await engine.line()
        line.writer.write(b"\x0b" + message()[:-20])
        line.writer.write_eof()
        assert await line.is_closed()
    assert await ward.values() == []


async def test_slow_sender_is_closed_and_costs_nobody(ward: Ward) -> None:
    """A message that does not end in its time closes its line; a line that is silent between messages stays."""
    async with serving(ward.intake, message_s=0.2) as engine:
        idle, slow = await engine.line(), await engine.line()
        slow.writer.write(b"\x0bMSH|")
        assert await slow.is_closed()
        assert await idle.ask(message()) == "AA"


async def test_connections_are_bounded_and_come_free(ward: Ward) -> None:
    """One more than the bound is closed at once; a place that came free is given again."""
    async with serving(ward.intake, max_connections=2) as engine:
        first, second = await engine.line(), await engine.line()
        assert [await first.ask(message()), await second.ask(message())] == ["AA", "AA"]
        assert await (await engine.line()).is_closed()
        first.writer.close()
        while engine.server.connections > 1:  # noqa: ASYNC110 - the server's own bookkeeping
            await asyncio.sleep(0)
        assert await (await engine.line()).ask(message()) == "AA"


async def test_senders_are_those_that_are_named(ward: Ward) -> None:
    """An address that is not in the list is closed before a byte of it is read."""
    other = msgspec.structs.replace(CONFIG, senders=("10.1.0.0/16",))
    async with serving(ward.intake, config=other) as engine:
        line = await engine.line()
        with contextlib.suppress(ConnectionError):
            line.writer.writeblock(message())
        assert await line.is_closed()
    assert await ward.values() == []


async def test_stop_answers_what_is_in_progress(ward: Ward) -> None:
    """At the end a message at work is answered, idle lines are closed, and no new one is taken."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow:
        async def handle(self, block: bytes) -> bytes:
            begun.set()
            await go_on.wait()
            return await ward.intake.handle(block)

        def refuse_large(self, head: bytes, size_bytes: int) -> bytes:
            raise NotImplementedError

    async with serving(Slow()) as engine:
        idle, busy = await engine.line(), await engine.line()
        busy.writer.writeblock(message())
        await begun.wait()
        stopping = asyncio.create_task(engine.server.stop())
        assert await idle.is_closed()
        go_on.set()
        assert await busy.heard() == "AA"
        await stopping
        assert engine.server.connections == 0
        with pytest.raises(ConnectionRefusedError):
            await engine.line()
    assert await ward.values() == [6.9]


@given(
    st.lists(st.one_of(st.binary(max_size=60), st.sampled_from((b"\x0b", b"\x1c\r", b"\r", message()))), max_size=12)
)
def test_any_stream_is_answered_or_closed(parts: list[bytes]) -> None:
    """Whatever comes over a line, each frame has an answer or the line is closed, and the server goes on."""

    class Echo:
        async def handle(self, block: bytes) -> bytes:
            return b"MSH|\rMSA|AA\r"

        def refuse_large(self, head: bytes, size_bytes: int) -> bytes:
            return b"MSH|\rMSA|AE\r"

    async def story() -> None:
        async with serving(Echo(), message_s=5, max_message_bytes=128) as engine:
            line = await engine.line()
            with contextlib.suppress(ConnectionError):
                line.writer.write(b"".join(parts))
                line.writer.write_eof()
            sent = b"".join(parts)
            assert (await line.rest()).count(b"MSA|") <= sent.count(b"\x1c\r")
            assert await (await engine.line()).ask(b"MSH|") == "AA"

    asyncio.run(story())


# --- configuration and data ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"locations": {"CARD": "heart"}}', "heart"),
        ('{"default_department": "heart"}', "heart"),
        ('{"senders": ["lab.hospital"]}', "senders"),
        ('{"keep_days": 0}', "keep_days"),
        ('{"location": {}}', "location"),
        ("{", "hl7.json"),
    ],
)
def test_configuration_that_cannot_be_used_is_named(tmp_path: Path, text: str, named: str) -> None:
    """Nothing is guessed in the place of a field that cannot be used."""
    (tmp_path / CONFIG_NAME).write_text(text)
    with pytest.raises(Hl7ConfigError, match=named):
        Config.load(tmp_path, DEPARTMENTS)


def test_without_configuration_only_this_machine_may_send(tmp_path: Path) -> None:
    """The defaults are narrow: local senders, real messages, no places."""
    config = Config.load(tmp_path, DEPARTMENTS)
    assert [str(network) for network in config.networks()] == ["127.0.0.0/8", "::1/128"]
    assert (config.processing, config.locations, config.charset) == (("P",), {}, "ASCII")


def test_one_process_takes_the_messages(tmp_path: Path) -> None:
    """A second one finds the place taken, and free again afterwards."""
    with alone(tmp_path) as first, alone(tmp_path) as second:
        assert (first, second) == (True, False)
    with alone(tmp_path) as third:
        assert third


async def test_every_sample_message_is_answered(redis: Redis, tmp_path: Path) -> None:
    """Each sample is AA or a clear AE or AR over a real line; the critical ones ring once each."""
    samples = sorted(clinical_path("hl7v2").rglob("*.hl7"))
    assert len(samples) > 40
    ward = Ward(redis, tmp_path, msgspec.structs.replace(CONFIG, processing=("P", "T"), default_department="icu"))
    await ward.store.begin_load("g1")
    await ward.store.mark_loaded("g1")
    answers = {}
    async with serving(ward.intake) as engine:
        line = await engine.line()
        for _ in range(2):
            for sample in samples:
                answers[sample.stem] = await line.ask(sample.read_bytes())
    assert all(text.split()[0] == "AA" for name, text in answers.items() if name[0] == "v" or name.startswith("edge"))
    assert {text for text in answers.values() if text != "AA"} <= {
        *("AR 200 MSH^1^9", "AE 101 PID^1^3", "AE 102 MSH^1^2", "AE 204 PID^1^3")
    }
    assert sorted(text for text in ward.alerts.texts) == [
        "Hemoglobin Bld-mCnc 6.8 g/dL (critical), 07:30",
        "Potassium SerPl-sCnc 6.9 mmol/L (critical), 07:30",
    ]
