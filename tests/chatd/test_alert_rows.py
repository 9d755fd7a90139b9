"""Alerts in the ledger: numbers without holes, timers that fire once, texts that end with their day's key."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Select, func, select, text

from chatd.alerts.model import Alert, Event, Happened, Person, Recorded, Slot, Span, Timer
from chatd.ledger import Ledger, LedgerUnavailable, Transaction, alert_rows
from chatd.ledger.alert_rows import Remembered
from chatd.ledger.day_keys import DayKeys
from chatd.ledger.tables import metadata
from context.seal import KeyRing, Sealer, SealError
from protocols.frames import AlertTarget

if TYPE_CHECKING:
    from tests.chatd.pg import PostgresServer

pytest_plugins = ("tests.chatd.pg",)

NOW = datetime(2026, 1, 15, 7, 45, 20, 114000, tzinfo=UTC)
DAY = timedelta(days=1)
#: Far above what any of these tests needs, so that a loaded machine changes no outcome.
PATIENT_S = 60.0
TEXT = "New STEMI patient in bay 3"
SEALER = Sealer(KeyRing.generate())


def alert(alert_id: str = "al_1", **changes: object) -> Alert:
    fields: dict[str, object] = {
        "alert_id": alert_id,
        "department": "cardiology",
        "to": AlertTarget(department="cardiology"),
        "priority": "high",
        "content": TEXT,
        "requires_action": True,
        "raised_by": "dr.santos.cardio",
        "raised_at": NOW,
        "updated_at": NOW,
        "policy": "default",
        "patient_id": "PAT-1",
        "slots": (Slot(id="nurse", label="Nurse", label_pt="Enfermeiro"),),
        "people": (person("dr.b"), person("dr.a", answer="decline", reason="in theatre with Mr Silva")),
    }
    return Alert(**(fields | changes))  # type: ignore[arg-type]


def person(user_id: str, **changes: object) -> Person:
    return Person(**({"user_id": user_id, "at": NOW} | changes))  # type: ignore[arg-type]


def happened(event: Event = "raised", at: datetime = NOW) -> Happened:
    return Happened(event=event, at=at, by="dr.santos.cardio")


def frame(seq: int) -> bytes:
    return b'{"alert_seq":%d,"content":"%s"}' % (seq, TEXT.encode())


def raise_(tx: Transaction, keys: DayKeys, new: Alert) -> tuple[Recorded, ...]:
    alert_rows.insert(tx, keys, new)
    return add(tx, keys, new.alert_id, happened(at=new.raised_at), department=new.department)


def add(
    tx: Transaction, keys: DayKeys, alert_id: str, *events: Happened, department: str = "cardiology"
) -> tuple[Recorded, ...]:
    return alert_rows.append(tx, keys, department, alert_id, [(each, frame) for each in events])


def scalar(tx: Transaction, query: Select[int]) -> int | None:
    return tx.connection.execute(query).scalar()


def repeat(tx: Transaction, keys: DayKeys, at: datetime) -> tuple[Recorded, ...]:
    return add(tx, keys, "al_1", happened("repeated", at))


def sequences(recorded: Sequence[Recorded]) -> list[int]:
    return [each.alert_seq for each in recorded]


@pytest.fixture
def keys() -> DayKeys:
    return DayKeys(SEALER)


@pytest.fixture
async def ledger(ledger_url: str) -> AsyncIterator[Ledger]:
    opened = Ledger.open(ledger_url, timeout_s=PATIENT_S)
    yield opened
    await opened.close()


@pytest.fixture
async def two(ledger_url: str) -> AsyncIterator[tuple[Ledger, Ledger]]:
    """Two nodes on one ledger."""
    opened = (Ledger.open(ledger_url, timeout_s=PATIENT_S), Ledger.open(ledger_url, timeout_s=PATIENT_S))
    yield opened
    for each in opened:
        await each.close()


@pytest.fixture
async def nodes(postgres_server: PostgresServer) -> AsyncIterator[tuple[Ledger, ...]]:
    """Three nodes on one PostgreSQL, where transactions really overlap."""
    url = postgres_server.new_database()
    opened = tuple(Ledger.open(url, timeout_s=PATIENT_S) for _ in range(3))
    yield opened
    for each in opened:
        await each.close()


class Held:
    """A transaction that has done its work and does not commit before it is told to."""

    def __init__(self, ledger: Ledger, work: Callable[[Transaction], object]) -> None:
        self._is_done, self._may_end = threading.Event(), threading.Event()

        def hold(tx: Transaction) -> object:
            result = work(tx)
            self._is_done.set()
            assert self._may_end.wait(PATIENT_S)
            return result

        self._task = asyncio.create_task(ledger.transact(hold))

    async def reached(self) -> Held:
        assert await asyncio.to_thread(self._is_done.wait, PATIENT_S)
        return self

    async def end(self) -> object:
        self._may_end.set()
        return await self._task


# --- alerts and people --------------------------------------------------------------------------------------


async def test_alert_comes_back_as_written(ledger: Ledger, keys: DayKeys) -> None:
    """Every field of an alert, its people in their order and what they wrote survive the ledger."""
    await ledger.transact(lambda tx: alert_rows.insert(tx, keys, alert(dedup_key="k-1", expires_at=NOW + DAY)))
    expected = alert(dedup_key="k-1", expires_at=NOW + DAY)
    assert await ledger.read(lambda tx: alert_rows.read(tx, DayKeys(SEALER), "al_1")) == expected
    assert await ledger.transact(lambda tx: alert_rows.lock(tx, keys, "al_1")) == expected
    assert await ledger.read(lambda tx: alert_rows.read(tx, keys, "al_2")) is None
    assert await ledger.transact(lambda tx: alert_rows.lock(tx, keys, "al_2")) is None


async def test_store_changes_alert_and_people(ledger: Ledger, keys: DayKeys) -> None:
    """People who changed, came, moved and went are as in the stored alert, on another day too."""
    await ledger.transact(lambda tx: alert_rows.insert(tx, keys, alert()))
    changed = alert(
        state="in_progress",
        updated_at=NOW + DAY,
        people=(person("dr.c"), person("dr.b", answer="accept", eta_at=NOW, slot="nurse", reason="on my way")),
    )

    def store(tx: Transaction) -> None:
        assert alert_rows.lock(tx, keys, "al_1") is not None
        alert_rows.store(tx, keys, changed)

    await ledger.transact(store)
    assert await ledger.read(lambda tx: alert_rows.read(tx, keys, "al_1")) == changed


async def test_store_writes_changed_people_only(ledger: Ledger, keys: DayKeys) -> None:
    """A row of a person who stands as before is not touched."""
    await ledger.transact(lambda tx: alert_rows.insert(tx, keys, alert()))

    def store(tx: Transaction) -> None:
        assert alert_rows.lock(tx, keys, "al_1") is not None
        tx.connection.execute(text("UPDATE alert_people SET slot = 'mark'"))
        alert_rows.store(tx, keys, alert(people=(person("dr.b", answer="displayed"), alert().people[1])))

    await ledger.transact(store)
    found = await ledger.read(lambda tx: alert_rows.read(tx, keys, "al_1"))
    assert found is not None
    assert [(each.answer, each.slot) for each in found.people] == [("displayed", None), ("decline", "mark")]


async def people_rows(ledger: Ledger) -> list[str]:
    query = text("SELECT user_id FROM alert_people ORDER BY user_id")
    return list(await ledger.read(lambda tx: tx.connection.execute(query).scalars().all()))


async def test_people_without_answer_have_no_row(ledger: Ledger, keys: DayKeys) -> None:
    """Who was called or has a receipt is in one sealed record; who has answered has a row and keeps it, in order."""
    asked = tuple(person(f"dr.{n}") for n in range(5))
    await ledger.transact(lambda tx: alert_rows.insert(tx, keys, alert(people=asked)))
    assert await people_rows(ledger) == []
    told = (asked[0], person("dr.1", answer="delivered", delivered_at=NOW), *asked[2:])
    taken = (*told[:3], person("dr.3", answer="accept", accepted_at=NOW), told[4])
    lapsed = (*told[:3], person("dr.3", answer="displayed", accepted_at=NOW), told[4], person("dr.5", step=-1))
    for people, rows in ((told, []), (taken, ["dr.3"]), (lapsed, ["dr.3"]), (told[:3], [])):

        def store(tx: Transaction, people: tuple[Person, ...] = people) -> None:
            assert alert_rows.lock(tx, keys, "al_1") is not None
            alert_rows.store(tx, keys, alert(people=people))

        await ledger.transact(store)
        assert await people_rows(ledger) == rows
        found = await ledger.read(lambda tx: alert_rows.read(tx, DayKeys(SEALER), "al_1"))
        assert found is not None
        assert found.people == people


async def test_row_of_an_older_gateway_is_right(ledger: Ledger, keys: DayKeys) -> None:
    """A gateway from before the record writes rows for all whom it calls: nobody is there twice, and the row counts."""
    await ledger.transact(lambda tx: alert_rows.insert(tx, keys, alert(people=(person("dr.0"), person("dr.1")))))
    row = (
        "INSERT INTO alert_people (alert_id, user_id, n, answer, at, step) VALUES ('al_1', 'dr.1', 1, 'decline', 0, 0)"
    )
    await ledger.transact(lambda tx: tx.connection.execute(text(row)))
    found = await ledger.read(lambda tx: alert_rows.read(tx, keys, "al_1"))
    assert found is not None
    assert [(each.user_id, each.answer) for each in found.people] == [("dr.0", "addressed"), ("dr.1", "decline")]


async def test_record_of_people_belongs_to_its_alert(ledger: Ledger, keys: DayKeys) -> None:
    """Who was called to one alert cannot be passed off as called to another; nobody's name is in the clear."""
    for alert_id in ("al_1", "al_2"):
        people = (person(f"dr.of.{alert_id}"),)
        await ledger.transact(lambda tx, i=alert_id, p=people: alert_rows.insert(tx, keys, alert(i, people=p)))  # type: ignore[misc]
    query = text("SELECT people_sealed FROM alert_called ORDER BY alert_id")
    records = await ledger.read(lambda tx: tx.connection.execute(query).scalars().all())
    assert not any(b"dr.of" in bytes(each) for each in records)
    moved = text("UPDATE alert_called SET people_sealed = :record WHERE alert_id = 'al_1'")
    await ledger.transact(lambda tx: tx.connection.execute(moved, {"record": records[1]}))
    with pytest.raises(SealError):
        await ledger.read(lambda tx: alert_rows.read(tx, keys, "al_1"))


async def test_store_without_lock_is_refused(ledger: Ledger, keys: DayKeys) -> None:
    """An alert that this transaction has not locked cannot be overwritten with an old state of it."""
    await ledger.transact(lambda tx: alert_rows.insert(tx, keys, alert()))
    with pytest.raises(ValueError, match="locked"):
        await ledger.transact(lambda tx: alert_rows.store(tx, keys, alert(content="other")))
    assert await ledger.read(lambda tx: alert_rows.read(tx, keys, "al_1")) == alert()


async def test_open_alerts_are_sorted_and_bounded(ledger: Ledger, keys: DayKeys) -> None:
    """Open alerts of the department come most urgent first, then oldest; closed ones and others' do not."""

    def write(tx: Transaction) -> None:
        for each in (
            alert("al_low", priority="low"),
            alert("al_new", raised_at=NOW + DAY),
            alert("al_old", people=()),
            alert("al_critical", priority="critical", raised_at=NOW + DAY, state="unanswered"),
            alert("al_closed", priority="critical", state="stood_down"),
            alert("al_other", department="surgery", priority="critical"),
        ):
            alert_rows.insert(tx, keys, each)

    await ledger.transact(write)
    found = await ledger.read(lambda tx: alert_rows.open_alerts(tx, keys, "cardiology", 3))
    assert [each.alert_id for each in found] == ["al_critical", "al_old", "al_new"]
    assert [len(each.people) for each in found] == [2, 0, 2]
    assert await ledger.read(lambda tx: alert_rows.open_alerts(tx, keys, "nowhere", 3)) == ()


async def test_by_dedup_finds_the_newest_open_one(ledger: Ledger, keys: DayKeys) -> None:
    """Only an open alert of this department with this key, raised recently enough, is joined."""

    def write(tx: Transaction) -> None:
        for each in (
            alert("al_old", dedup_key="k", raised_at=NOW - 2 * DAY),
            alert("al_1", dedup_key="k", raised_at=NOW - DAY),
            alert("al_2", dedup_key="k"),
            alert("al_closed", dedup_key="k", state="resolved", raised_at=NOW + DAY),
            alert("al_else", dedup_key="other"),
            alert("al_surgery", dedup_key="k", department="surgery", raised_at=NOW + DAY),
        ):
            alert_rows.insert(tx, keys, each)

    await ledger.transact(write)

    async def ask(key: str, not_before: datetime) -> str | None:
        mac = keys.dedup_mac("cardiology", key)
        found = await ledger.transact(lambda tx: alert_rows.by_dedup(tx, keys, "cardiology", mac, not_before))
        return None if found is None else found.alert_id

    assert await ask("k", NOW - DAY) == "al_2"
    assert await ask("k", NOW + timedelta(milliseconds=1)) is None
    assert await ask("none", NOW - DAY) is None


async def test_by_dedup_two_at_once_become_one(nodes: tuple[Ledger, ...], keys: DayKeys) -> None:
    """Two nodes that raise the same at the same instant make one alert: the second waits and finds the first's."""
    mac = keys.dedup_mac("cardiology", "k")

    def raise_or_join(alert_id: str) -> Callable[[Transaction], str]:
        def work(tx: Transaction) -> str:
            found = alert_rows.by_dedup(tx, keys, "cardiology", mac, NOW)
            if found is None:
                raise_(tx, keys, alert(alert_id, dedup_key="k"))
            return alert_id if found is None else found.alert_id

        return work

    first = await Held(nodes[0], raise_or_join("al_1")).reached()
    second = asyncio.create_task(nodes[1].transact(raise_or_join("al_2")))
    assert await first.end() == "al_1"
    assert await second == "al_1"


# --- numbers ------------------------------------------------------------------------------------------------


async def test_append_numbers_each_department_from_one(ledger: Ledger, keys: DayKeys) -> None:
    """Departments count apart, several events at once take consecutive numbers, and frames come back as bytes."""
    await ledger.transact(lambda tx: raise_(tx, keys, alert()))
    await ledger.transact(lambda tx: raise_(tx, keys, alert("al_2", department="surgery")))
    more = await ledger.transact(lambda tx: add(tx, keys, "al_1", happened("accepted"), happened("resolved")))
    assert sequences(more) == [2, 3]
    assert await ledger.transact(lambda tx: add(tx, keys, "al_1")) == ()
    assert await ledger.read(lambda tx: alert_rows.span(tx, "cardiology")) == Span(first_seq=1, last_seq=3)
    assert await ledger.read(lambda tx: alert_rows.span(tx, "surgery")) == Span(first_seq=1, last_seq=1)
    assert await ledger.read(lambda tx: alert_rows.span(tx, "nowhere")) == Span(first_seq=1, last_seq=0)
    found = await ledger.read(lambda tx: alert_rows.since(tx, keys, "cardiology", 1, 100))
    assert found == more == (Recorded(alert_seq=2, frame=frame(2)), Recorded(alert_seq=3, frame=frame(3)))
    assert sequences(await ledger.read(lambda tx: alert_rows.since(tx, keys, "cardiology", 0, 2))) == [1, 2]
    assert await ledger.read(lambda tx: alert_rows.since(tx, keys, "cardiology", 3, 2)) == ()


async def test_append_rolled_back_leaves_nothing(ledger: Ledger, keys: DayKeys) -> None:
    """What a transaction that failed would have written, its numbers and its day's key included, never was."""

    def fail(tx: Transaction) -> None:
        raise_(tx, keys, alert())
        alert_rows.set_timers(tx, "al_1", [Timer(kind="repeat", due_at=NOW)])
        alert_rows.remember(tx, "dr.a", "m1", "mac", "al_1", 1)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await ledger.transact(fail)
    for table in ("alerts", "alert_people", "alert_events", "alert_timers", "alert_commands", "alert_counters"):
        query = select(func.count()).select_from(metadata.tables[table])
        assert await ledger.read(partial(scalar, query=query)) == 0, table
    assert sequences(await ledger.transact(lambda tx: raise_(tx, keys, alert()))) == [1]
    other = DayKeys(SEALER)  # it knows nothing of a key that the failed transaction may have left in memory
    assert await ledger.read(lambda tx: alert_rows.read(tx, other, "al_1")) == alert()


async def test_append_two_nodes_leave_no_gap(two: tuple[Ledger, Ledger], keys: DayKeys) -> None:
    """Sixty transactions of two nodes, a third of them rolled back, number what remains from 1 without a hole."""
    await two[0].transact(lambda tx: alert_rows.insert(tx, keys, alert()))

    def step(tx: Transaction, number: int) -> list[int]:
        taken = sequences(add(tx, keys, "al_1", *[happened("repeated")] * (1 + number % 2)))
        if number % 3 == 0:
            raise RuntimeError("rolled back")
        return taken

    results = await asyncio.gather(
        *(two[number % 2].transact(partial(step, number=number)) for number in range(60)), return_exceptions=True
    )
    taken = [seq for result in results if isinstance(result, list) for seq in result]
    assert sum(isinstance(result, RuntimeError) for result in results) == 20
    assert sorted(taken) == list(range(1, len(taken) + 1))
    found = await two[1].read(lambda tx: alert_rows.since(tx, DayKeys(SEALER), "cardiology", 0, 1000))
    assert sequences(found) == sorted(taken)


async def test_append_waits_for_the_number_before(nodes: tuple[Ledger, ...], keys: DayKeys) -> None:
    """While one node has taken a number and not committed, no reader sees a later one."""
    await nodes[0].transact(lambda tx: raise_(tx, keys, alert()))
    held = await Held(nodes[0], lambda tx: add(tx, keys, "al_1", happened("repeated"))).reached()
    later = asyncio.create_task(nodes[1].transact(lambda tx: add(tx, keys, "al_1", happened("expired"))))
    assert await nodes[2].read(lambda tx: alert_rows.span(tx, "cardiology")) == Span(first_seq=1, last_seq=1)
    assert not later.done()
    assert sequences(await held.end()) == [2]  # type: ignore[arg-type]
    assert sequences(await later) == [3]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE alert_events SET event = 'expired'",
        "DELETE FROM alert_events",
        "UPDATE alert_counters SET alert_seq = 1",
        "DELETE FROM alert_counters WHERE department = 'empty'",
        "UPDATE alert_counters SET first_seq = 4",
        "UPDATE ledger_keys SET key_sealed = key_sealed",
        "DELETE FROM ledger_keys",
    ],
)
async def test_log_is_append_only(ledger: Ledger, keys: DayKeys, statement: str) -> None:
    """The database itself refuses to change or remove an event, a counter or a key."""

    def write(tx: Transaction) -> None:
        raise_(tx, keys, alert())
        add(tx, keys, "al_1", happened("accepted"))
        tx.connection.execute(text("INSERT INTO alert_counters VALUES ('empty', 0, 1)"))

    await ledger.transact(write)
    with pytest.raises(LedgerUnavailable):
        await ledger.transact(lambda tx: tx.connection.execute(text(statement)))
    found = await ledger.read(lambda tx: alert_rows.since(tx, keys, "cardiology", 0, 10))
    assert sequences(found) == [1, 2]


async def test_append_needs_its_alert(ledger: Ledger, keys: DayKeys) -> None:
    """An event of an unknown alert is refused, and its number is given back."""
    with pytest.raises(LedgerUnavailable):
        await ledger.transact(lambda tx: add(tx, keys, "al_9", happened()))
    assert await ledger.read(lambda tx: alert_rows.span(tx, "cardiology")) == Span(first_seq=1, last_seq=0)


async def test_read_sees_one_moment(nodes: tuple[Ledger, ...], keys: DayKeys) -> None:
    """What one reader asks in several statements is of one moment, whatever commits between them."""
    await nodes[0].transact(lambda tx: raise_(tx, keys, alert()))
    between, go_on = threading.Event(), threading.Event()

    def look(tx: Transaction) -> tuple[Span, int]:
        seen = alert_rows.span(tx, "cardiology")
        between.set()
        assert go_on.wait(PATIENT_S)
        return seen, len(alert_rows.since(tx, keys, "cardiology", 0, 10))

    reader = asyncio.create_task(nodes[0].read(look))
    assert await asyncio.to_thread(between.wait, PATIENT_S)
    await nodes[1].transact(lambda tx: add(tx, keys, "al_1", happened("accepted")))
    go_on.set()
    assert await reader == (Span(first_seq=1, last_seq=1), 1)


# --- idempotency --------------------------------------------------------------------------------------------


async def test_remembered_finds_the_first_command(ledger: Ledger, keys: DayKeys) -> None:
    """A command is known by its sender and id; a second one under the same cannot be recorded."""

    def write(tx: Transaction) -> None:
        raise_(tx, keys, alert())
        alert_rows.remember(tx, "dr.a", "m1", "mac", "al_1", 1)

    await ledger.transact(write)
    expected = Remembered(body_mac="mac", alert_id="al_1", alert_seq=1)
    assert await ledger.transact(lambda tx: alert_rows.remembered(tx, "dr.a", "m1")) == expected
    assert await ledger.read(lambda tx: alert_rows.remembered(tx, "dr.a", "m1")) == expected
    assert await ledger.read(lambda tx: alert_rows.remembered(tx, "dr.b", "m1")) is None
    with pytest.raises(LedgerUnavailable):
        await ledger.transact(lambda tx: alert_rows.remember(tx, "dr.a", "m1", "other", "al_1", 1))


async def test_remembered_waits_for_the_same_command(nodes: tuple[Ledger, ...], keys: DayKeys) -> None:
    """The same command on two nodes at once is done once; the second hears what the first did."""

    def once(tx: Transaction) -> str:
        found = alert_rows.remembered(tx, "dr.a", "m1")
        if found is not None:
            return "duplicate"
        raise_(tx, keys, alert())
        alert_rows.remember(tx, "dr.a", "m1", "mac", "al_1", 1)
        return "new"

    first = await Held(nodes[0], once).reached()
    second = asyncio.create_task(nodes[1].transact(once))
    assert await first.end() == "new"
    assert await second == "duplicate"


# --- timers -------------------------------------------------------------------------------------------------


async def test_due_gives_the_earliest_of_each_alert(ledger: Ledger, keys: DayKeys) -> None:
    """What is due now comes, longest due first, one for each alert; what is later or replaced does not."""
    minute = timedelta(minutes=1)

    def write(tx: Transaction) -> None:
        for alert_id in ("al_1", "al_2", "al_3", "al_4"):
            alert_rows.insert(tx, keys, alert(alert_id))
        alert_rows.set_timers(tx, "al_1", [Timer(kind="expire", due_at=NOW), Timer(kind="step", due_at=NOW - minute)])
        alert_rows.set_timers(tx, "al_2", [Timer(kind="repeat", due_at=NOW - 2 * minute)])
        alert_rows.set_timers(tx, "al_3", [Timer(kind="repeat", due_at=NOW + timedelta(milliseconds=1))])
        alert_rows.set_timers(tx, "al_4", [Timer(kind="repeat", due_at=NOW)])
        alert_rows.set_timers(tx, "al_4", [])

    await ledger.transact(write)
    expected = [
        ("al_2", Timer(kind="repeat", due_at=NOW - 2 * minute)),
        ("al_1", Timer(kind="step", due_at=NOW - minute)),
    ]
    assert await ledger.transact(lambda tx: alert_rows.due(tx, NOW, 10)) == expected
    assert await ledger.transact(lambda tx: alert_rows.due(tx, NOW, 1)) == expected[:1]
    assert await ledger.transact(lambda tx: alert_rows.due(tx, NOW - DAY, 10)) == []


def fire(tx: Transaction, keys: DayKeys) -> list[str]:
    fired = alert_rows.due(tx, NOW, 5)
    for alert_id, _ in fired:
        assert alert_rows.lock(tx, keys, alert_id) is not None
        add(tx, keys, alert_id, happened("repeated"))
        alert_rows.set_timers(tx, alert_id, [])
    return [alert_id for alert_id, _ in fired]


async def test_due_fires_once_on_two_nodes(two: tuple[Ledger, Ledger], keys: DayKeys) -> None:
    """Twenty timers that two nodes sweep at once fire twenty times in all, each once."""

    def write(tx: Transaction) -> None:
        for number in range(20):
            alert_rows.insert(tx, keys, alert(f"al_{number}"))
            alert_rows.set_timers(tx, f"al_{number}", [Timer(kind="step", due_at=NOW)])

    await two[0].transact(write)
    swept = await asyncio.gather(*(two[n % 2].transact(lambda tx: fire(tx, keys)) for n in range(20)))
    fired = [alert_id for each in swept for alert_id in each]
    assert sorted(fired) == sorted(f"al_{number}" for number in range(20))
    assert (await two[0].read(lambda tx: alert_rows.span(tx, "cardiology"))).last_seq == 20


async def test_due_leaves_held_alerts_to_their_holder(nodes: tuple[Ledger, ...], keys: DayKeys) -> None:
    """A sweep neither waits for an alert that another node is working on, nor takes any of its timers."""

    def write(tx: Transaction) -> None:
        for alert_id in ("al_1", "al_2"):
            alert_rows.insert(tx, keys, alert(alert_id))
            alert_rows.set_timers(tx, alert_id, [Timer(kind="step", due_at=NOW), Timer(kind="expire", due_at=NOW)])

    await nodes[0].transact(write)
    held = await Held(nodes[0], lambda tx: alert_rows.lock(tx, keys, "al_1")).reached()
    assert await nodes[1].transact(lambda tx: fire(tx, keys)) == ["al_2"]
    await held.end()
    assert await nodes[1].transact(lambda tx: fire(tx, keys)) == ["al_1"]


# --- sealing and retention ----------------------------------------------------------------------------------


def on_disk(path: Path) -> bytes:
    return b"".join(each.read_bytes() for each in path.parent.glob(f"{path.name}*"))


async def test_alert_text_is_nowhere_on_disk(tmp_path: Path, keys: DayKeys) -> None:
    """The bytes of database and write-ahead log hold neither content, patient, reason nor dedup key, but ids."""
    path = tmp_path / "ledger.sqlite3"
    ledger = Ledger.open(f"sqlite:///{path}", timeout_s=PATIENT_S)
    await ledger.transact(lambda tx: raise_(tx, keys, alert(dedup_key="dedup-8812")))
    raw = on_disk(path)
    for secret in (TEXT, "STEMI", "PAT-1", "Mr Silva", "theatre", "dedup-8812"):
        assert secret.encode() not in raw, secret
    assert b"dr.santos.cardio" in raw  # the search does find what lies there in the clear
    await ledger.transact(lambda tx: tx.connection.execute(text("UPDATE alerts SET state = :t"), {"t": TEXT}))
    assert TEXT.encode() in on_disk(path)
    await ledger.close()


async def test_sealed_rows_do_not_open_elsewhere(ledger: Ledger, keys: DayKeys) -> None:
    """A body under another alert's id, a frame under another number, and a key under another day do not open."""

    def write(tx: Transaction) -> None:
        raise_(tx, keys, alert())
        raise_(tx, keys, alert("al_2", content="another"))
        raise_(tx, keys, alert("al_3", raised_at=NOW + DAY, updated_at=NOW + DAY))
        tx.connection.execute(
            text("UPDATE alerts SET body_sealed = (SELECT body_sealed FROM alerts WHERE alert_id = 'al_1')")
        )
        move = (
            "INSERT INTO alert_events SELECT department, 4, alert_id, event, at, by_user, key_day, frame_sealed"
            " FROM alert_events WHERE alert_seq = 1"
        )
        tx.connection.execute(text(move))
        key = "INSERT INTO ledger_keys SELECT '2026-01-17', key_sealed FROM ledger_keys WHERE day = '2026-01-15'"
        tx.connection.execute(text(key))

    await ledger.transact(write)
    assert await ledger.read(lambda tx: alert_rows.read(tx, keys, "al_1")) == alert()
    for work in (
        lambda tx: alert_rows.read(tx, keys, "al_2"),
        lambda tx: alert_rows.since(tx, keys, "cardiology", 3, 1),
        lambda tx: keys.hold(tx, NOW + 2 * DAY),
        lambda tx: alert_rows.read(tx, DayKeys(Sealer(KeyRing.generate())), "al_1"),
    ):
        with pytest.raises(SealError):
            await ledger.transact(work)


async def test_day_key_is_made_once_by_two_nodes(nodes: tuple[Ledger, ...]) -> None:
    """Of two nodes that seal first on a day one makes the key, the other waits and takes it."""
    ours, theirs = DayKeys(SEALER), DayKeys(SEALER)
    first = await Held(nodes[0], lambda tx: alert_rows.insert(tx, ours, alert())).reached()
    second = asyncio.create_task(nodes[1].transact(lambda tx: alert_rows.insert(tx, theirs, alert("al_2"))))
    await first.end()
    await second
    assert await nodes[0].read(lambda tx: alert_rows.read(tx, ours, "al_2")) == alert("al_2")
    assert await nodes[1].read(lambda tx: alert_rows.read(tx, theirs, "al_1")) == alert()


async def test_day_key_follows_the_utc_day(ledger: Ledger, keys: DayKeys) -> None:
    """Midnight in UTC divides the days, whatever zone a moment is written in."""
    zone_moment = datetime.fromisoformat("2026-01-16T00:30:00+01:00")

    def days(tx: Transaction) -> list[str]:
        return [keys.hold(tx, at) for at in (zone_moment, zone_moment + timedelta(hours=1))]

    assert await ledger.transact(days) == ["2026-01-15", "2026-01-16"]


async def fill(ledger: Ledger, keys: DayKeys) -> None:
    """Day 0: a closed alert and one that stays open; day 1: another, closed; two departments."""

    def write(tx: Transaction) -> None:
        raise_(tx, keys, alert("al_closed", state="resolved"))
        raise_(tx, keys, alert("al_surgery", state="expired", department="surgery"))
        alert_rows.set_timers(tx, "al_closed", [Timer(kind="expire", due_at=NOW)])
        alert_rows.remember(tx, "dr.a", "m1", "mac", "al_closed", 1)
        raise_(tx, keys, alert("al_late", state="resolved", raised_at=NOW + DAY, updated_at=NOW + DAY))

    await ledger.transact(write)


async def key_rows(ledger: Ledger) -> dict[str, bool]:
    """Day to whether its key is still there."""
    rows = await ledger.read(lambda tx: tx.connection.execute(text("SELECT day, key_sealed FROM ledger_keys")).all())
    return {row.day: row.key_sealed is not None for row in rows}


async def test_retire_destroys_old_text_and_moves_first_seq(ledger: Ledger, keys: DayKeys) -> None:
    """After retention the old day is gone with its key, the log begins later, and what is newer stays whole."""
    await fill(ledger, keys)
    row = "SELECT key_day, body_sealed FROM alerts WHERE alert_id = 'al_closed'"
    copy = await ledger.read(lambda tx: tx.connection.execute(text(row)).one())
    place = {"aad": b"alert|al_closed"}
    assert await ledger.read(lambda tx: keys.open(tx, copy[0], copy[1], **place))  # as in a copy of the file
    assert await ledger.transact(lambda tx: alert_rows.retire(tx, date(2026, 1, 16))) == 1
    assert await key_rows(ledger) == {"2026-01-15": False, "2026-01-16": True}
    with pytest.raises(SealError, match="key_unknown"):
        await ledger.read(lambda tx: keys.open(tx, copy[0], copy[1], **place))
    assert await ledger.read(lambda tx: alert_rows.span(tx, "cardiology")) == Span(first_seq=2, last_seq=2)
    assert await ledger.read(lambda tx: alert_rows.span(tx, "surgery")) == Span(first_seq=2, last_seq=1)
    assert sequences(await ledger.read(lambda tx: alert_rows.since(tx, keys, "cardiology", 0, 9))) == [2]
    assert await ledger.read(lambda tx: alert_rows.read(tx, keys, "al_closed")) is None
    assert await ledger.read(lambda tx: alert_rows.read(tx, keys, "al_late")) is not None
    assert await ledger.read(lambda tx: alert_rows.remembered(tx, "dr.a", "m1")) is None
    assert sequences(await ledger.transact(lambda tx: raise_(tx, keys, alert("al_s2", department="surgery")))) == [2]


async def test_retire_twice_and_on_two_nodes_is_once(two: tuple[Ledger, Ledger], keys: DayKeys) -> None:
    """Nodes that retire the same day at once destroy each key once, and nothing further later."""
    await fill(two[0], keys)
    counts = await asyncio.gather(
        *(two[n % 2].transact(lambda tx: alert_rows.retire(tx, date(2026, 1, 16))) for n in range(4))
    )
    assert sorted(counts) == [0, 0, 0, 1]
    assert await two[0].read(lambda tx: alert_rows.span(tx, "cardiology")) == Span(first_seq=2, last_seq=2)
    assert await two[1].transact(lambda tx: alert_rows.retire(tx, date(2026, 1, 1))) == 0


async def test_retire_keeps_open_alerts_and_what_they_need(ledger: Ledger, keys: DayKeys) -> None:
    """An alert that is still open is kept with the key of its day, however old, until it is closed."""
    await ledger.transact(lambda tx: raise_(tx, keys, alert()))
    assert await ledger.transact(lambda tx: alert_rows.retire(tx, date(2026, 3, 1))) == 0
    assert await ledger.read(lambda tx: alert_rows.open_alerts(tx, keys, "cardiology", 9)) == (alert(),)
    assert await ledger.read(lambda tx: alert_rows.span(tx, "cardiology")) == Span(first_seq=2, last_seq=1)

    def close(tx: Transaction) -> None:
        assert alert_rows.lock(tx, keys, "al_1") is not None
        alert_rows.store(tx, keys, alert(state="expired", updated_at=NOW + 60 * DAY))
        add(tx, keys, "al_1", happened("expired", NOW + 60 * DAY))

    await ledger.transact(close)
    assert await ledger.transact(lambda tx: alert_rows.retire(tx, date(2026, 3, 1))) == 1
    assert await ledger.read(lambda tx: alert_rows.read(tx, keys, "al_1")) is not None
    assert await ledger.transact(lambda tx: alert_rows.retire(tx, date(2026, 5, 1))) == 1
    assert await ledger.read(lambda tx: alert_rows.read(tx, keys, "al_1")) is None


async def test_retire_leaves_only_what_opens(ledger: Ledger, keys: DayKeys) -> None:
    """Events dated by a clock that jumped back stay readable, and the log without holes, while later ones stay."""
    await ledger.transact(lambda tx: raise_(tx, keys, alert()))
    for at in (NOW + DAY, NOW - 9 * DAY, NOW + DAY):
        await ledger.transact(partial(repeat, keys=keys, at=at))
    await ledger.transact(lambda tx: alert_rows.retire(tx, date(2026, 1, 16)))
    assert await ledger.read(lambda tx: alert_rows.span(tx, "cardiology")) == Span(first_seq=2, last_seq=4)
    found = await ledger.read(lambda tx: alert_rows.since(tx, DayKeys(SEALER), "cardiology", 1, 9))
    assert sequences(found) == [2, 3, 4]


async def test_destroyed_day_is_not_made_again(ledger: Ledger, keys: DayKeys) -> None:
    """What a clock that stands back would seal on a destroyed day is sealed on the first day after, and opens."""
    await fill(ledger, keys)
    await ledger.transact(lambda tx: alert_rows.retire(tx, date(2026, 1, 18)))
    assert await key_rows(ledger) == {"2026-01-15": False, "2026-01-16": False}
    await ledger.transact(lambda tx: raise_(tx, keys, alert("al_back")))
    assert await key_rows(ledger) == {"2026-01-15": False, "2026-01-16": False, "2026-01-17": True}
    assert await ledger.read(lambda tx: alert_rows.read(tx, DayKeys(SEALER), "al_back")) == alert("al_back")
