"""The way to the ledger's database: one thread, one connection, one transaction at a time, never the event loop.

A transaction that returned is on disk. One that raised ``LedgerUnavailable`` is not, with one exception nobody can
remove: a connection or a caller lost while the commit was on its way. Whoever needs to know sends the same command
again; its idempotency key finds what happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text, update
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from chatd import metrics
from chatd.ledger.migrate import UnknownRevision, migrate
from chatd.ledger.rows import Transaction
from chatd.ledger.tables import facts
from protocols.errors import ChatdError

T = TypeVar("T")

#: How long a caller waits for a transaction, its turn included. A commit takes milliseconds, and a person who has
#: tapped "confirm" waits for this: after two seconds it is kinder to say that it did not work.
TIMEOUT_S = 2.0
#: One statement waits for another writer for this part of it, so that what the caller hears is "locked" and certain,
#: and not "no answer" about a commit that may still come.
BUSY_PART = 0.75
#: A hospital confirms a few actions a minute. Hundreds waiting mean that the disk has stopped.
MAX_WAITING = 256
#: libpq counts whole seconds and takes two at least. Source: https://www.postgresql.org/docs/current/libpq-connect.html
CONNECT_TIMEOUT_S = 2

#: Any number, the same on every node: creating the tables is done by one node at a time (PostgreSQL).
_SCHEMA_LOCK = 0x63686174

_SQLITE_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_SQLITE_STATES = {
    sqlite3.SQLITE_READONLY: "read_only",
    sqlite3.SQLITE_PERM: "read_only",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_CANTOPEN: "connection",
    sqlite3.SQLITE_IOERR: "failed",
}
#: SQLSTATE, or its class of two characters, to a reason. Source: PostgreSQL documentation, appendix A.
_POSTGRES_STATES = {
    "55P03": "locked",
    "57014": "timeout",
    "25006": "read_only",
    "40": "locked",
    "53": "full",
    "08": "connection",
    "57": "connection",
}


class Why(enum.StrEnum):
    """Why the ledger did not take a write."""

    LOCKED = "locked"
    READ_ONLY = "read_only"
    FULL = "full"
    TIMEOUT = "timeout"
    BUSY = "busy"
    CONNECTION = "connection"
    SCHEMA = "schema"
    CLOSED = "closed"
    FAILED = "failed"


class LedgerUnavailable(ChatdError):
    """The ledger did not take it: nothing may be promised. ``why`` holds no text of the database or of a patient."""

    def __init__(self, why: Why) -> None:
        super().__init__(f"the ledger is unavailable: {why}")
        self.why = why


class Ledger:
    """The durable tables behind one dedicated thread."""

    def __init__(self, engine: Engine, *, timeout_s: float, max_waiting: int) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self._waiting = threading.BoundedSemaphore(max_waiting)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._has_tables = False
        self._file: tuple[int, int] | None = None
        self._closed = False

    @classmethod
    def open(cls, url: str, *, timeout_s: float = TIMEOUT_S, max_waiting: int = MAX_WAITING) -> Ledger:
        """Open the ledger of ``url`` and begin to create its tables; does not wait for the database.

        A database that is away now is tried again at every transaction, so that a gateway starts, and answers
        questions, without it.

        Args:
            url: ``sqlite:////folder/ledger.sqlite3`` or ``postgresql://user@host/name`` (also ``postgres://``,
                and ``postgresql+psycopg://``).
            timeout_s: How long a caller waits for one transaction, its turn included.
            max_waiting: Transactions that may wait or run; one more is refused.
        Raises:
            ValueError: Another kind of database, or an SQLite without a file: it would remember nothing.
        """
        engine = _engine(url, busy_timeout_ms=round(timeout_s * BUSY_PART * 1000))
        ledger = cls(engine, timeout_s=timeout_s, max_waiting=max_waiting)
        ledger._thread.submit(ledger._begin)
        return ledger

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one transaction on the ledger's thread; when this returns it is committed and on disk.

        Whatever ``work`` raises rolls everything back and is raised here. ``work`` must not await and should take
        milliseconds: all others wait for it.

        Raises:
            LedgerUnavailable: Locked, read-only, full, away, or no answer within ``timeout_s``. A
                transaction whose turn had not come is never run afterwards; one that was running may still commit.
        """
        return await self._call(lambda: self._transaction(work, write=True))

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Run ``work`` in one transaction that only reads, all of it as of one moment; it does not wait for writers.

        Raises:
            LedgerUnavailable: As ``transact``.
        """
        return await self._call(lambda: self._transaction(work, write=False))

    async def clock(self) -> datetime | None:
        """The time by the database's own clock; None on SQLite, which has the machine's.

        Raises:
            LedgerUnavailable: As ``transact``.
        """
        if self._engine.dialect.name != "postgresql":
            return None
        found: datetime = await self.read(
            lambda tx: tx.connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        )
        return found.astimezone(UTC)

    async def healthy(self) -> bool:
        """True if the ledger took a write just now. It costs a commit: ask every few seconds, not per request."""

        def touch(tx: Transaction) -> None:
            stamp = {"value": int(time.time() * 1000)}
            tx.connection.execute(update(facts).where(facts.c.name == "checked").values(stamp))

        try:
            await self.transact(touch)
        except LedgerUnavailable:
            return False
        return True

    async def close(self) -> None:
        """Finish the transactions that wait, then let the database go. Called twice it does nothing."""
        if self._closed:
            return
        self._closed = True
        last = self._thread.submit(self._engine.dispose)
        self._thread.shutdown(wait=False)
        # A disk that does not answer must not hold up the rest of the drain.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                await _ended(last)

    async def _call(self, job: Callable[[], T]) -> T:
        try:
            return await self._submit(job)
        except LedgerUnavailable:
            metrics.LEDGER_ERRORS.inc()
            raise

    async def _submit(self, job: Callable[[], T]) -> T:
        if self._closed:
            raise LedgerUnavailable(Why.CLOSED)
        if not self._waiting.acquire(blocking=False):
            raise LedgerUnavailable(Why.BUSY)
        is_abandoned = False

        def run() -> T:
            try:
                if is_abandoned:
                    raise LedgerUnavailable(Why.TIMEOUT)
                return job()
            finally:
                self._waiting.release()

        try:
            async with asyncio.timeout(self._timeout_s):
                # Not cancelled with its caller, so that a job keeps its place among those that wait until the thread
                # has passed it by: with a disk that has stopped, callers that gave up would otherwise pile up unseen.
                return await _ended(self._thread.submit(run))
        except TimeoutError:
            raise LedgerUnavailable(Why.TIMEOUT) from None
        finally:
            is_abandoned = True

    def _transaction(self, work: Callable[[Transaction], T], *, write: bool) -> T:
        """On the ledger's thread: begin, work, commit; every failure of the database becomes ``LedgerUnavailable``."""
        try:
            self._follow_file()
            if write:
                self._create_tables()
            else:
                self._begin()  # a ledger that can only be read is still read
            options: dict[str, Any] = {"chatd_write": write}
            if not write and self._engine.dialect.name == "postgresql":
                options["isolation_level"] = "REPEATABLE READ"  # all statements of one reader see one moment
            with self._engine.connect().execution_options(**options) as connection, connection.begin():
                return work(Transaction(connection))
        except SQLAlchemyError as error:
            # The database's own message may quote what was being written.
            raise LedgerUnavailable(_why(error)) from None
        except OSError:
            raise LedgerUnavailable(Why.CONNECTION) from None

    def _begin(self) -> None:
        try:
            self._create_tables()
        except (SQLAlchemyError, OSError, LedgerUnavailable):
            self._has_tables = False  # the first transaction tries again and tells its caller

    def _follow_file(self) -> None:
        """Open SQLite's file anew if it is not the one that lies there now.

        Otherwise, after somebody moved or restored it, commits would go on into a file without a name.
        """
        path = _file(self._engine.url)
        if path is None or self._file is None:
            return
        if _identity(path) != self._file:
            self._engine.dispose()
            self._file, self._has_tables = None, False

    def _create_tables(self) -> None:
        if self._has_tables:
            return
        path = _file(self._engine.url)
        if path is not None:
            _create_private(path)
        with self._engine.connect().execution_options(chatd_write=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK})
            try:
                migrate(connection)
            except UnknownRevision:
                raise LedgerUnavailable(Why.SCHEMA) from None
        self._has_tables = True
        self._file = None if path is None else _identity(path)


async def _ended(job: Future[T]) -> T:
    """What a job of the ledger's thread gives. It goes on when the caller is cancelled; then nobody hears how it ends.

    ``asyncio.shield`` would have the loop report such an error as one that was never retrieved.
    """
    ended = asyncio.wrap_future(job)
    ended.add_done_callback(lambda future: future.cancelled() or future.exception())
    await asyncio.wait([ended])
    return ended.result()


def _why(error: SQLAlchemyError) -> Why:
    """The reason in one word, from the driver's code; never from its message, which may quote values."""
    if isinstance(error, PoolTimeout):
        return Why.BUSY
    if not isinstance(error, DBAPIError):
        return Why.FAILED
    code = getattr(error.orig, "sqlite_errorcode", None)
    if isinstance(code, int):
        # The low byte is the result code, the rest an extension. Source: https://www.sqlite.org/rescode.html
        base = code & 0xFF
        return Why.LOCKED if base in _SQLITE_BUSY else Why(_SQLITE_STATES.get(base, "failed"))
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(state, str):
        return Why(_POSTGRES_STATES.get(state) or _POSTGRES_STATES.get(state[:2], "failed"))
    return Why.CONNECTION if error.connection_invalidated or state is None else Why.FAILED


def _engine(url: str, busy_timeout_ms: int) -> Engine:
    """An engine of one connection; parameters never appear in its errors or logs."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ValueError("the ledger's URL cannot be read") from None
    one = {"pool_size": 1, "max_overflow": 0, "pool_timeout": CONNECT_TIMEOUT_S, "hide_parameters": True}
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:") or str(parsed.database).startswith("file:"):
            raise ValueError("the ledger needs a file: an SQLite in memory remembers nothing")
        engine = create_engine(parsed, connect_args={"timeout": busy_timeout_ms / 1000}, **one)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if backend in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
        bounds: dict[str, int] = {"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": 1000 * CONNECT_TIMEOUT_S}
        bounds = {name: value for name, value in bounds.items() if name not in parsed.query}
        engine = create_engine(parsed, connect_args=bounds, pool_pre_ping=True, **one)
        event.listen(engine, "connect", lambda dbapi, _: _prepare_postgres(dbapi, busy_timeout_ms))
        return engine
    raise ValueError("the ledger knows sqlite:/// and postgresql:// only")


def _file(url: URL) -> Path | None:
    """SQLite's file; None on PostgreSQL."""
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _create_private(path: Path) -> None:
    """Make the file readable by its owner only, before SQLite makes it readable by all."""
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def _prepare_sqlite(dbapi: Any, _record: object) -> None:
    # SQLAlchemy begins and commits; the driver's own habit of beginning late would let two readers both try to write.
    dbapi.isolation_level = None
    cursor = dbapi.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: the log is synced at every commit. NORMAL would lose the last commits with the power.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the write lock now, so that what was read is still true when it is written.
    is_write = connection.get_execution_options().get("chatd_write", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


def _prepare_postgres(dbapi: Any, busy_timeout_ms: int) -> None:
    with dbapi.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {int(busy_timeout_ms)}")
        cursor.execute(f"SET statement_timeout = {int(busy_timeout_ms)}")
        # Whatever the server's default is: an acknowledged commit is on its disk.
        cursor.execute("SET synchronous_commit = on")
    dbapi.commit()
