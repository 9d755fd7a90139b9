"""The ledger's revisions: what they make is what the code sees, and what was there before is still there after."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

import chatd.ledger.ledger as module
from chatd.ledger import Ledger, LedgerUnavailable, Why
from chatd.ledger.migrate import HEAD, UnknownRevision, migrate
from chatd.ledger.tables import metadata

pytest_plugins = ("tests.chatd.pg",)

PATIENT_S = 60.0
ACTION = (
    "INSERT INTO actions VALUES ('act_1', 's', 'r', 'order_ecg', 'cardiology', 'dr.a', NULL, 'h', 'confirm',"
    " 'prepared', 1, 2, 3, :sealed, NULL)"
)
STEP = "INSERT INTO action_events VALUES ('act_1', 1, 'prepared', 'dr.a', 1, NULL, 'm1', NULL, NULL, NULL)"


@contextlib.contextmanager
def writing(url: str) -> Iterator[Connection]:
    """A transaction of the tests' own, as the ledger begins its: nothing of it stays unless all of it does."""
    engine = module._engine(url, busy_timeout_ms=round(PATIENT_S * 1000))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def test_revisions_make_what_the_code_sees(bare_ledger_url: str) -> None:
    """Tables, columns, types, keys, indexes and constraints of a migrated ledger are those of ``tables.py``."""
    with writing(bare_ledger_url) as connection:
        migrate(connection)
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": metadata}
        )
        assert compare_metadata(context, metadata) == []
        assert set(inspect(connection).get_table_names()) == set(metadata.tables) | {"alembic_version"}
        connection.execute(text("DROP INDEX alerts_by_due"))
        connection.execute(text("ALTER TABLE actions ADD COLUMN stray INTEGER"))
        assert len(compare_metadata(context, metadata)) == 2  # the comparison does see a difference


def test_head_is_the_newest_revision() -> None:
    """The revision that saves loading alembic is the last one of the folder, and the folder is one line."""
    config = Config()
    config.set_main_option("script_location", "chatd.ledger:migrations")
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [HEAD]
    assert [each.revision for each in scripts.walk_revisions()] == ["0004", "0003", "0002", "0001"]


@pytest.mark.parametrize("is_numbered", [False, True], ids=["0001", "before the revisions"])
async def test_quick_actions_survive_the_alerts(bare_ledger_url: str, is_numbered: bool) -> None:
    """A ledger of the first shape, known by revision or by its old number, keeps its rows and its triggers."""
    with writing(bare_ledger_url) as connection:
        migrate(connection, "0001")
        assert "alerts" not in inspect(connection).get_table_names()
        connection.execute(text(ACTION), {"sealed": b"\x01sealed"})
        connection.execute(text(STEP))
        if is_numbered:
            connection.execute(text("DROP TABLE alembic_version"))
    ledger = Ledger.open(bare_ledger_url, timeout_s=PATIENT_S)
    assert await ledger.healthy()
    found = await ledger.read(lambda tx: (tx.action("act_1"), tx.events("act_1")))
    assert found[0] is not None
    assert found[0].proposal_sealed == b"\x01sealed"
    assert [step.client_msg_id for step in found[1]] == ["m1"]
    query = text("SELECT value FROM ledger_facts WHERE name = 'schema'")
    assert await ledger.read(lambda tx: tx.connection.execute(query).scalar()) == 2
    with pytest.raises(LedgerUnavailable):
        await ledger.transact(lambda tx: tx.connection.execute(text("DELETE FROM action_events")))
    await ledger.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE alembic_version SET version_num = '9999'",
        "DELETE FROM alembic_version",
        "INSERT INTO alembic_version VALUES ('0001')",
        "DROP TABLE alembic_version",  # leaves the number 2, which no ledger without revisions had
    ],
)
def test_unknown_revision_is_refused(bare_ledger_url: str, statement: str) -> None:
    """A ledger whose shape cannot be told is refused and left as it is."""
    with writing(bare_ledger_url) as connection:
        migrate(connection)
        connection.execute(text(statement))
    with writing(bare_ledger_url) as connection, pytest.raises(UnknownRevision):
        migrate(connection)
    ledger = Ledger.open(bare_ledger_url, timeout_s=PATIENT_S)

    async def why() -> Why:
        with pytest.raises(LedgerUnavailable) as caught:
            await ledger.transact(lambda tx: None)
        await ledger.close()
        return caught.value.why

    assert asyncio.run(why()) == Why.SCHEMA


def test_revision_that_fails_leaves_nothing(bare_ledger_url: str) -> None:
    """A table of the same name in the way: the whole step forward is undone, and the ledger stays what it was."""
    with writing(bare_ledger_url) as connection:
        migrate(connection, "0001")
        connection.execute(text("CREATE TABLE alert_timers (x INTEGER)"))
    with pytest.raises(DBAPIError), writing(bare_ledger_url) as connection:
        migrate(connection)
    with writing(bare_ledger_url) as connection:
        assert "alerts" not in inspect(connection).get_table_names()
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "0001"
        connection.execute(text("DROP TABLE alert_timers"))
        migrate(connection)
    with writing(bare_ledger_url) as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == HEAD


async def test_open_twice_at_once_goes_forward_once(bare_ledger_url: str) -> None:
    """Gateways that start together on an old ledger bring it forward once, and all of them work."""
    with writing(bare_ledger_url) as connection:
        migrate(connection, "0001")
    ledgers = [Ledger.open(bare_ledger_url, timeout_s=PATIENT_S) for _ in range(4)]
    assert await asyncio.gather(*(opened.healthy() for opened in ledgers)) == [True] * 4
    for opened in ledgers:
        await opened.close()


def test_revisions_are_quiet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is logged or printed on the way, whatever level the process logs at."""
    with caplog.at_level(logging.DEBUG), writing(f"sqlite:///{tmp_path / 'l.sqlite3'}") as connection:
        migrate(connection)
    assert [each for each in caplog.records if each.name.startswith(("alembic", "sqlalchemy"))] == []
    assert capfd.readouterr() == ("", "")
