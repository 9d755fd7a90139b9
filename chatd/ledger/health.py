"""Looks at a ledger without changing it: no table is made, no revision brought forward, no file created."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from sqlalchemy import inspect, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from chatd.ledger.ledger import LedgerUnavailable, Why, _engine, _file, _why
from chatd.ledger.migrate import FIRST
from chatd.ledger.rows import Transaction

T = TypeVar("T")

#: SQLite asks whether to go on after so many of its steps, some milliseconds.
_STEPS: Final = 100_000
#: Of what a damaged file says, the first line tells that it is damaged.
_MAX_FAULTS: Final = 1


def look(url: str, work: Callable[[Transaction], T], *, timeout_s: float) -> T | None:
    """What ``work`` reads in one transaction on a connection of its own; None where there is no ledger yet.

    Blocks; not for the event loop. A statement is broken off after ``timeout_s``.

    Raises:
        LedgerUnavailable: away, locked, or it took too long. ValueError: not a ledger's URL.
    """
    path = _file(make_url(url)) if url.startswith("sqlite") else None
    if path is not None and not path.exists():
        return None
    engine = _engine(url, busy_timeout_ms=round(timeout_s * 1000))
    try:
        with engine.connect().execution_options(chatd_write=False) as connection, connection.begin():
            give_up = time.monotonic() + timeout_s
            raw: Any = connection.connection.dbapi_connection
            if engine.dialect.name == "sqlite":
                raw.set_progress_handler(lambda: time.monotonic() > give_up, _STEPS)
            return work(Transaction(connection))
    except SQLAlchemyError as error:
        raise LedgerUnavailable(_why(error)) from None
    except OSError:
        raise LedgerUnavailable(Why.CONNECTION) from None
    finally:
        engine.dispose()


def revision(tx: Transaction) -> str:
    """The revision of its tables; empty: none that chatd knows."""
    tables = set(inspect(tx.connection).get_table_names())
    if "alembic_version" in tables:
        found = tx.connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
        return str(found[0]) if len(found) == 1 else ""
    return FIRST if "ledger_facts" in tables else ""


def integrity(tx: Transaction, *, whole: bool) -> bool | None:
    """Whether the pages of an SQLite file hold together; ``whole``: the indexes too. None on PostgreSQL, which has
    checks of its own. Reads the whole file."""
    if tx.connection.dialect.name != "sqlite":
        return None
    pragma = "integrity_check" if whole else "quick_check"
    return tx.connection.execute(text(f"PRAGMA {pragma}({_MAX_FAULTS})")).scalars().all() == ["ok"]


def clock(tx: Transaction) -> datetime | None:
    """The database's own clock; None on SQLite, which has the machine's."""
    if tx.connection.dialect.name != "postgresql":
        return None
    found: datetime = tx.connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return found.astimezone(UTC)
