"""The ledger: what it acknowledged is on disk, what it did not is refused within its bound; on both databases."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.dialects import sqlite as sqlite_dialect

from chatd.ledger import ActionEvent, ActionRow, Ledger, LedgerUnavailable, Transaction, Why
from chatd.ledger.tables import Moment

if TYPE_CHECKING:
    from tests.chatd.pg import PostgresServer

pytest_plugins = ("tests.chatd.pg",)

NOW = datetime(2026, 1, 15, 7, 45, 20, 114000, tzinfo=UTC)
#: Far above what any of these tests needs, so that a loaded machine changes no outcome.
PATIENT_S = 60.0

ROOT = str(Path(__file__).resolve().parents[2])


def row(action_id: str = "act_1", **changes: object) -> ActionRow:
    fields: dict[str, object] = {
        "action_id": action_id,
        "session_id": "sess_1",
        "response_id": "resp_1",
        "catalog_id": "order_ecg",
        "department": "cardiology",
        "user_id": "dr.santos.cardio",
        "patient_pseudonym": "ab" * 32,
        "context_hash": "h-1",
        "risk": "confirm",
        "status": "proposed",
        "created_at": NOW,
        "expires_at": NOW + timedelta(minutes=15),
        "updated_at": NOW,
        "proposal_sealed": b"\x01sealed",
    }
    return ActionRow(**(fields | changes))  # type: ignore[arg-type]


def event(n: int, status: str, action_id: str = "act_1", client_msg_id: str | None = None) -> ActionEvent:
    return ActionEvent(
        action_id=action_id, n=n, status=status, by_user="dr.santos.cardio", at=NOW, client_msg_id=client_msg_id
    )


@pytest.fixture
async def ledger(ledger_url: str) -> AsyncIterator[Ledger]:
    opened = Ledger.open(ledger_url, timeout_s=PATIENT_S)
    yield opened
    await opened.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite3"


@contextmanager
def writer_holding(path: Path) -> Iterator[None]:
    """Another process' write transaction that does not end."""
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
    finally:
        other.close()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def move_away(path: Path) -> None:
    path.rename(path.with_name("moved.sqlite3"))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()


async def test_transact_returns_rows_as_written(ledger: Ledger) -> None:
    """What one transaction wrote, the next reads, equal in every field and in order."""
    action = row()
    steps = (event(1, "prepared", client_msg_id="m1"), event(2, "confirmed", client_msg_id="m2"))

    def write(tx: Transaction) -> None:
        tx.ensure_action(action)
        for step in steps:
            tx.append(step, draft_sealed=b"draft" if step.status == "confirmed" else None)

    await ledger.transact(write)
    found = await ledger.read(lambda tx: tx.action("act_1"))
    assert found == row(status="confirmed", draft_sealed=b"draft")
    assert await ledger.read(lambda tx: tx.events("act_1")) == steps
    assert await ledger.read(lambda tx: tx.statuses(["act_1", "act_2"])) == {"act_1": "confirmed"}
    assert await ledger.read(lambda tx: tx.action("act_2")) is None


async def test_transact_raising_work_leaves_nothing(ledger: Ledger) -> None:
    """Work that raises rolls everything back, and its own exception reaches the caller."""

    def fail(tx: Transaction) -> None:
        tx.ensure_action(row())
        raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError, match="changed my mind"):
        await ledger.transact(fail)
    assert await ledger.read(lambda tx: tx.action("act_1")) is None


async def test_ensure_action_twice_keeps_the_first(ledger: Ledger) -> None:
    """The first binding of an action id stays."""
    await ledger.transact(lambda tx: tx.ensure_action(row(context_hash="h-1")))
    await ledger.transact(lambda tx: tx.ensure_action(row(context_hash="h-2")))
    found = await ledger.read(lambda tx: tx.action("act_1"))
    assert found is not None
    assert found.context_hash == "h-1"


@pytest.mark.parametrize("statement", ["UPDATE action_events SET status = 'confirmed'", "DELETE FROM action_events"])
async def test_action_events_are_append_only(ledger: Ledger, statement: str) -> None:
    """The database itself refuses to change or remove a step."""

    def write(tx: Transaction) -> None:
        tx.ensure_action(row())
        tx.append(event(1, "prepared"))

    await ledger.transact(write)
    with pytest.raises(LedgerUnavailable):
        await ledger.transact(lambda tx: tx.connection.execute(text(statement)))
    assert await ledger.read(lambda tx: tx.events("act_1")) == (event(1, "prepared"),)


async def test_append_repeated_client_msg_id_is_refused(ledger: Ledger) -> None:
    """Two steps of one person under one client_msg_id cannot both stand, whatever the code above does."""

    def write(tx: Transaction) -> None:
        tx.ensure_action(row())
        tx.append(event(1, "prepared", client_msg_id="m1"))
        tx.append(event(2, "confirmed", client_msg_id="m1"))

    with pytest.raises(LedgerUnavailable):
        await ledger.transact(write)
    assert await ledger.read(lambda tx: tx.action("act_1")) is None


async def test_append_needs_its_action(ledger: Ledger) -> None:
    """A step of an unknown action is refused by the foreign key."""
    with pytest.raises(LedgerUnavailable):
        await ledger.transact(lambda tx: tx.append(event(1, "prepared")))


async def test_error_texts_hold_no_values(ledger: Ledger) -> None:
    """The exception of a refused write quotes neither statement nor values."""
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger.transact(lambda tx: tx.append(event(1, "prepared", action_id="act_secret")))
    assert str(caught.value) == "the ledger is unavailable: failed"
    assert caught.value.__cause__ is None


async def test_sessions_and_overdue_are_found_in_order(ledger: Ledger) -> None:
    """Queries by session and by expiry give their rows oldest first and no more than asked for."""

    def write(tx: Transaction) -> None:
        for number in range(5):
            tx.ensure_action(
                row(
                    f"act_{number}",
                    status="prepared",
                    created_at=NOW - timedelta(minutes=number),
                    expires_at=NOW - timedelta(minutes=number - 2),
                )
            )
        tx.ensure_action(row("act_other", session_id="sess_2", status="prepared"))

    await ledger.transact(write)
    in_session = await ledger.read(lambda tx: tx.actions_of_session("sess_1", "prepared", limit=3))
    assert [found.action_id for found in in_session] == ["act_4", "act_3", "act_2"]
    overdue = await ledger.transact(lambda tx: tx.lock_overdue(["prepared"], NOW, limit=10))
    assert [found.action_id for found in overdue] == ["act_4", "act_3", "act_2"]


async def test_twenty_writers_get_twenty_numbers(ledger_url: str) -> None:
    """Twenty concurrent read-then-write transactions over two ledgers lose no update."""
    ledgers = [Ledger.open(ledger_url, timeout_s=PATIENT_S) for _ in range(2)]
    await ledgers[0].transact(lambda tx: tx.ensure_action(row()))

    def next_step(tx: Transaction) -> int:
        assert tx.lock_action("act_1") is not None
        n = len(tx.events("act_1")) + 1
        tx.append(event(n, "prepared"))
        return n

    numbers = await asyncio.gather(*(ledgers[i % 2].transact(next_step) for i in range(20)))
    assert sorted(numbers) == list(range(1, 21))
    for opened in ledgers:
        await opened.close()


async def test_open_twice_at_once_makes_one_schema(bare_ledger_url: str) -> None:
    """Gateways that start together on an empty database all get its tables."""
    ledgers = [Ledger.open(bare_ledger_url, timeout_s=PATIENT_S) for _ in range(4)]
    assert await asyncio.gather(*(opened.healthy() for opened in ledgers)) == [True] * 4
    for opened in ledgers:
        await opened.close()


async def test_open_another_schema_is_refused(ledger_url: str) -> None:
    """A ledger written by another version is neither read nor written by guessing."""
    first = Ledger.open(ledger_url, timeout_s=PATIENT_S)
    await first.transact(lambda tx: tx.connection.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    await first.close()
    second = Ledger.open(ledger_url, timeout_s=PATIENT_S)
    with pytest.raises(LedgerUnavailable) as caught:
        await second.transact(lambda tx: tx.ensure_action(row()))
    assert caught.value.why == Why.SCHEMA
    assert not await second.healthy()
    await second.close()


async def test_close_refuses_and_repeats(ledger: Ledger) -> None:
    """A closed ledger refuses, and closing it again does nothing."""
    await ledger.close()
    await ledger.close()
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger.transact(lambda tx: tx.ensure_action(row()))
    assert caught.value.why == Why.CLOSED


@pytest.mark.parametrize(
    "url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true", "mysql://h/d"]
)
def test_open_unusable_url_is_an_error(url: str) -> None:
    """A ledger that would remember nothing, or that chatd does not know, is a mistake of the settings."""
    with pytest.raises(ValueError, match="ledger"):
        Ledger.open(url)


async def test_sqlite_is_durable_and_private(path: Path) -> None:
    """SQLite syncs at every commit, keeps foreign keys, and its file is for its owner only."""
    ledger = Ledger.open(f"sqlite:///{path}", timeout_s=PATIENT_S)

    def pragmas(tx: Transaction) -> dict[str, object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return {name: tx.connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names}

    found = await ledger.transact(pragmas)
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 45_000}
    assert mode_of(path) == 0o600
    await ledger.close()


async def test_sqlite_locked_is_refused_and_recovers(path: Path) -> None:
    """A writer that does not let go makes the ledger unavailable, and its going makes it available again."""
    ledger = Ledger.open(f"sqlite:///{path}", timeout_s=0.8)
    assert await ledger.healthy()
    with writer_holding(path):
        with pytest.raises(LedgerUnavailable) as caught:
            await ledger.transact(lambda tx: tx.ensure_action(row()))
        assert caught.value.why in (Why.LOCKED, Why.TIMEOUT)
        assert not await ledger.healthy()
        assert await ledger.read(lambda tx: tx.action("act_1")) is None  # readers do not wait for writers
    patient = Ledger.open(f"sqlite:///{path}", timeout_s=PATIENT_S)
    assert await patient.healthy()
    assert await patient.read(lambda tx: tx.action("act_1")) is None
    await patient.close()
    await ledger.close()


async def test_sqlite_read_only_is_refused_and_still_read(path: Path) -> None:
    """A ledger that has become read-only takes no write, says so, and can still be read."""
    ledger = Ledger.open(f"sqlite:///{path}", timeout_s=PATIENT_S)
    await ledger.transact(lambda tx: tx.ensure_action(row()))
    # As root no file mode stops a write, so the connection itself is made read-only.
    await ledger.read(lambda tx: tx.connection.exec_driver_sql("PRAGMA query_only=ON"))
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger.transact(lambda tx: tx.ensure_action(row("act_2")))
    assert caught.value.why == Why.READ_ONLY
    assert not await ledger.healthy()
    found = await ledger.read(lambda tx: tx.action("act_1"))
    assert found == row()
    await ledger.close()


async def test_sqlite_full_disk_is_refused_and_recovers(path: Path) -> None:
    """A full disk takes no write, and more room makes the ledger available again."""
    ledger = Ledger.open(f"sqlite:///{path}", timeout_s=PATIENT_S)
    assert await ledger.healthy()

    pages = await ledger.read(lambda tx: tx.connection.exec_driver_sql("PRAGMA page_count").scalar_one())
    await ledger.read(lambda tx: tx.connection.exec_driver_sql(f"PRAGMA max_page_count={pages}").scalar())
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger.transact(lambda tx: tx.ensure_action(row(proposal_sealed=bytes(1_000_000))))
    assert caught.value.why == Why.FULL
    await ledger.read(lambda tx: tx.connection.exec_driver_sql("PRAGMA max_page_count=1000000").scalar())
    await ledger.transact(lambda tx: tx.ensure_action(row(proposal_sealed=bytes(1_000_000))))
    await ledger.close()


async def test_sqlite_folder_missing_is_refused_and_recovers(tmp_path: Path) -> None:
    """A ledger whose folder is not there yet is unavailable, and opens when it is."""
    folder = tmp_path / "disk"
    ledger = Ledger.open(f"sqlite:///{folder / 'ledger.sqlite3'}", timeout_s=PATIENT_S)
    assert not await ledger.healthy()
    folder.mkdir()
    assert await ledger.healthy()
    await ledger.close()


async def test_sqlite_file_replaced_is_opened_anew(path: Path) -> None:
    """A file that was moved away is not written to any more: what is acknowledged lies under the ledger's name."""
    ledger = Ledger.open(f"sqlite:///{path}", timeout_s=PATIENT_S)
    await ledger.transact(lambda tx: tx.ensure_action(row("act_1")))
    move_away(path)
    await ledger.transact(lambda tx: tx.ensure_action(row("act_2")))
    await ledger.close()
    with sqlite3.connect(path) as plain:
        assert plain.execute("SELECT action_id FROM actions").fetchall() == [("act_2",)]
    plain.close()


async def test_transact_more_than_its_bound_is_refused(path: Path) -> None:
    """One transaction too many is refused at once, and those that wait are still done."""
    ledger = Ledger.open(f"sqlite:///{path}", timeout_s=PATIENT_S, max_waiting=3)
    assert await ledger.healthy()
    gate, is_held = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> str:
        is_held.set()
        gate.wait(PATIENT_S)
        return "held"

    first = asyncio.create_task(ledger.transact(hold))
    await asyncio.to_thread(is_held.wait, PATIENT_S)
    others = [asyncio.create_task(ledger.transact(lambda tx: "done")) for _ in range(2)]
    await asyncio.sleep(0)  # both are in the queue now
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger.transact(lambda tx: "too many")
    assert caught.value.why == Why.BUSY
    gate.set()
    assert await asyncio.gather(first, *others) == ["held", "done", "done"]
    await ledger.close()


async def test_transact_given_up_in_the_queue_never_runs(path: Path) -> None:
    """A caller that was told "unavailable" while it waited for its turn can rely on it: nothing is written later."""
    ledger = Ledger.open(f"sqlite:///{path}", timeout_s=1.0)
    gate, is_held = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        is_held.set()
        gate.wait(PATIENT_S)

    first = asyncio.create_task(ledger.transact(hold))
    await asyncio.to_thread(is_held.wait, PATIENT_S)
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger.transact(lambda tx: tx.ensure_action(row()))
    assert caught.value.why == Why.TIMEOUT
    with pytest.raises(LedgerUnavailable):
        await first
    gate.set()
    await ledger.close()
    other = Ledger.open(f"sqlite:///{path}", timeout_s=PATIENT_S)
    assert await other.healthy()
    assert await other.read(lambda tx: tx.action("act_1")) is None
    await other.close()


async def test_transact_that_fails_after_its_caller_left_is_no_error_of_the_loop(path: Path) -> None:
    """What the database says too late, to a caller that was told "timeout" or was cancelled, is reported nowhere."""
    ledger = Ledger.open(f"sqlite:///{path}", timeout_s=1.0)
    assert await ledger.healthy()
    complaints: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context.get("exception")))
    gate, is_held = threading.Event(), threading.Event()

    def fail(tx: Transaction) -> None:
        is_held.set()
        gate.wait(PATIENT_S)
        raise LedgerUnavailable(Why.CONNECTION)

    first = asyncio.create_task(ledger.transact(fail))
    await asyncio.to_thread(is_held.wait, PATIENT_S)
    second = asyncio.create_task(ledger.transact(fail))
    third = asyncio.create_task(ledger.transact(fail))
    await asyncio.sleep(0)
    third.cancel()
    for late in (first, second):
        with pytest.raises(LedgerUnavailable) as caught:
            await late
        assert caught.value.why == Why.TIMEOUT
    with pytest.raises(asyncio.CancelledError):
        await third
    gate.set()
    await ledger.close()  # the last of the thread's jobs: the others have told the loop before it
    del first, second, third, late, caught
    gc.collect()
    assert complaints == []


async def test_postgres_stopped_is_refused_and_recovers(own_postgres_server: PostgresServer) -> None:
    """A database that went away makes the ledger unavailable; it comes back by itself, with what it acknowledged."""
    ledger = Ledger.open(own_postgres_server.new_database(), timeout_s=PATIENT_S)
    await ledger.transact(lambda tx: tx.ensure_action(row()))
    own_postgres_server.stop()
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger.transact(lambda tx: tx.ensure_action(row("act_2")))
    assert caught.value.why == Why.CONNECTION
    assert not await ledger.healthy()
    own_postgres_server.start()
    assert await ledger.healthy()
    assert await ledger.read(lambda tx: tx.action("act_1")) == row()
    assert await ledger.read(lambda tx: tx.action("act_2")) is None
    await ledger.close()


async def test_postgres_read_only_and_locked_are_refused(postgres_server: PostgresServer) -> None:
    """A read-only database and a row that another holds are told apart, and both are refused."""
    url = postgres_server.new_database()
    ledger = Ledger.open(url, timeout_s=0.8)
    patient = Ledger.open(url, timeout_s=PATIENT_S)
    await patient.transact(lambda tx: tx.ensure_action(row()))
    with psycopg.connect(url) as other:
        other.execute("SELECT * FROM actions FOR UPDATE")
        with pytest.raises(LedgerUnavailable) as caught:
            await ledger.transact(lambda tx: tx.lock_action("act_1"))
        assert caught.value.why in (Why.LOCKED, Why.TIMEOUT)
    name = url.partition("@/")[2].partition("?")[0]
    with psycopg.connect(url, autocommit=True) as other:
        other.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    read_only = Ledger.open(url, timeout_s=PATIENT_S)
    with pytest.raises(LedgerUnavailable) as caught:
        await read_only.transact(lambda tx: tx.ensure_action(row("act_2")))
    assert caught.value.why == Why.READ_ONLY
    assert await read_only.read(lambda tx: tx.action("act_1")) == row()
    for opened in (ledger, patient, read_only):
        await opened.close()


KILLED = """
import asyncio, os, signal, sys
sys.path.insert(0, {root!r})
from chatd.ledger import Ledger
from tests.chatd.test_ledger import row

async def main():
    ledger = Ledger.open(sys.argv[1], timeout_s=60.0)
    await ledger.transact(lambda tx: tx.ensure_action(row()))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.journeys
async def test_acknowledged_survives_sigkill(ledger_url: str) -> None:
    """A process killed in the instant it was told "committed" leaves the row behind."""
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", KILLED.format(root=ROOT), ledger_url],
        check=False,
        timeout=PATIENT_S,
        env=os.environ,
        cwd=ROOT,
    )
    assert killed.returncode == -9
    ledger = Ledger.open(ledger_url, timeout_s=PATIENT_S)
    assert await ledger.read(lambda tx: tx.action("act_1")) == row()
    await ledger.close()


@given(
    st.datetimes(
        min_value=datetime(1900, 1, 1),  # noqa: DTZ001 - hypothesis wants naive bounds
        max_value=datetime(2200, 1, 1),  # noqa: DTZ001
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=1)), timezone(timedelta(hours=-9.5))]),
    )
)
def test_moment_keeps_the_millisecond(moment: datetime) -> None:
    """A moment comes back in UTC, at most a millisecond earlier, and the same again when kept again."""
    kind, dialect = Moment(), sqlite_dialect.dialect()
    kept = kind.process_result_value(kind.process_bind_param(moment, dialect), dialect)
    assert kept is not None
    assert timedelta(0) <= moment - kept < timedelta(milliseconds=1)
    assert kind.process_result_value(kind.process_bind_param(kept, dialect), dialect) == kept


def test_moment_without_a_zone_is_refused() -> None:
    """A naive time is a mistake, not UTC."""
    with pytest.raises(ValueError, match="time zone"):
        Moment().process_bind_param(datetime(2026, 1, 15), sqlite_dialect.dialect())  # noqa: DTZ001
