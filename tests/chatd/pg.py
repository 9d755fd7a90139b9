"""A real, private PostgreSQL for tests, and the fixture that runs a test on both of the ledger's databases.

A test file takes it with ``pytest_plugins = ("tests.chatd.pg",)``. Without PostgreSQL on the machine its half is
skipped, except in CI, where that is a failure.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

from chatd.ledger.migrate import migrate

#: Longest wait for a started server to answer; a loaded two-core machine needs a few seconds.
START_TIMEOUT_S = 60.0
USER = "chatd"


def postgres_folder() -> Path | None:
    """The folder of ``initdb`` and ``postgres``: on PATH, or where Debian puts it (newest version); None without."""
    found = shutil.which("initdb")
    if found is not None and shutil.which("postgres") is not None:
        return Path(found).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda folder: int(folder.parent.name.split(".")[0]), default=None)


def _other_user() -> dict[str, Any]:
    """Arguments of ``Popen`` that leave root, as which PostgreSQL refuses to run."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


class PostgresServer:
    """One PostgreSQL of the tests' own, on a Unix socket in its own folder."""

    def __init__(self, binaries: Path) -> None:
        # A socket path holds 104 bytes on macOS, so the folder's name is short.
        self.directory = Path(tempfile.mkdtemp(prefix="cpg-"))
        self._binaries = binaries
        self._who = _other_user()
        self._databases = 0
        self._shared = ""
        self._process: subprocess.Popen[bytes] | None = None
        if self._who:
            os.chown(self.directory, self._who["user"], self._who["group"])
        self._environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(self.directory), "LC_ALL": "C"}
        command = [str(binaries / "initdb"), "-D", str(self.directory / "data"), "-U", USER, "-A", "trust"]
        made = subprocess.run(
            [*command, "-E", "UTF8", "--no-sync"],
            capture_output=True,
            check=False,
            env=self._environment,
            cwd=self.directory,
            **self._who,
        )
        if made.returncode != 0:
            raise RuntimeError(f"initdb: {made.stderr.decode(errors='replace')[-2000:]}")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [str(self._binaries / "postgres"), "-D", str(self.directory / "data")]
        command += ["-k", str(self.directory), "-c", "listen_addresses=", "-c", "max_connections=50"]
        # Tests stop the process, never the machine: what it has handed to the operating system is kept.
        command += ["-c", "fsync=off", "-c", "full_page_writes=off"]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, cwd=self.directory, **self._who
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log_text = (self.directory / "log").read_text(errors="replace")
                    self.stop()
                    raise RuntimeError(f"postgres did not start: {log_text[-2000:]}") from None
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End the server at once (SIGQUIT), as a crash does; called twice it does nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGQUIT)
            process.wait(timeout=START_TIMEOUT_S)

    def close(self) -> None:
        """Stop and remove the folder."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={self.directory}"

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        self._databases += 1
        name = f"t{self._databases}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)

    def emptied_database(self) -> str:
        """The URL of one database, the same at each call, emptied; who is still connected to it is cut off.

        A new database is three hundred files to write and to remove, a second of a busy machine's disk.
        """
        if not self._shared:
            self._shared = self.new_database()
            return self._shared
        with psycopg.connect(self._shared, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return self._shared


@pytest.fixture(scope="session")
def postgres_binaries() -> Path:
    """Where PostgreSQL lies; skips without it, except in CI."""
    folder = postgres_folder()
    if folder is None:
        reason = "PostgreSQL is not installed (initdb is neither on PATH nor under /usr/lib/postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def postgres_server(postgres_binaries: Path) -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run; tests that stop it take ``own_postgres_server`` instead."""
    server = PostgresServer(postgres_binaries)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def own_postgres_server(postgres_binaries: Path) -> Iterator[PostgresServer]:
    """A running PostgreSQL of this test's own, to stop and start."""
    server = PostgresServer(postgres_binaries)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def made_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite ledger with its tables and nothing in them, to copy."""
    path = tmp_path_factory.mktemp("ledger") / "made.sqlite3"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database without tables: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.emptied_database()


@pytest.fixture
def ledger_url(bare_ledger_url: str, made_sqlite: Path, tmp_path: Path) -> str:
    """The same with a ledger's tables where copying them is less work than making them."""
    if bare_ledger_url.startswith("sqlite:"):
        shutil.copyfile(made_sqlite, tmp_path / "ledger.sqlite3")
    return bare_ledger_url
