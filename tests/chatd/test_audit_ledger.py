"""The audit on the ledger: rows share commits, wait in a file while the ledger is away, and are verified."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import text

from chatd.audit import chain
from chatd.audit.chain import Checkpoint, Fault, Row, Verifier
from chatd.audit.service import MAX_REFUSALS, Audit, AuditUnavailable
from chatd.audit.sinks import Carrier, FileSink, SyslogSink, framed, message, tls_context
from chatd.audit.spool import Spool, SpoolFull
from chatd.clock import SystemClock
from chatd.ledger import Ledger, LedgerUnavailable, Transaction
from chatd.ledger import audit_rows as rows_of
from chatd.ledger.audit_rows import ChainKeeper
from chatd.tasks import end
from context.seal import KeyRing, Sealer, SealError

pytest_plugins = ("tests.chatd.pg",)

PATIENT_S = 60.0
RING = KeyRing({"k": b"k" * 32}, b"r" * 32)
NOW = datetime(2026, 1, 15, 7, 45, 20, tzinfo=UTC)


class Place:
    """An installation of the tests: a ledger, a folder of seeds, the file for bad days, checkpoints beside."""

    def __init__(self, url: str, folder: Path, *, timeout_s: float = PATIENT_S, checkpoint_rows: int = 1_000) -> None:
        self.url, self.folder = url, folder
        self.ledger = Ledger.open(url, timeout_s=timeout_s)
        self.keeper = ChainKeeper(Sealer(RING), folder)
        self.checkpoints = folder / "audit.checkpoints"
        self.audit = Audit(
            self.ledger,
            self.keeper,
            Spool(folder, b"p" * 32),
            clock=SystemClock(),
            node_id="n-1",
            pseudonym_key=b"q" * 32,
            sinks=[FileSink(self.checkpoints)],
            checkpoint_rows=checkpoint_rows,
            checkpoint_s=3_600,
        )

    def row(self, n: int, **fields: object) -> Row:
        return self.audit.row("question", user=f"dr.{n}", patient_id="7823", department="cardiology", **fields)

    async def bodies(self) -> list[Row]:
        found = await self.ledger.read(lambda tx: rows_of.entries(tx, 0, 10_000, 10_000))
        return [chain.row_of(entry.body) for entry, _ in found]

    async def verify(self, *, with_seed: bool = True) -> Fault | None:
        """As ``chatd audit verify`` does it, by hand."""

        def work(tx: Transaction) -> tuple[chain.State | None, list[tuple[chain.Entry, chain.Columns]]]:
            return self.keeper.state(tx), rows_of.entries(tx, 0, 10_000, 10_000)

        state, found = await self.ledger.read(work)
        assert state is not None
        sent = self.sent()
        verifier = Verifier(state.chain, self.keeper.seed(state.chain) if with_seed else None, sent)
        for entry, columns in found:
            verifier.feed(entry, columns)
        return verifier.finish(state)

    def sent(self) -> list[Checkpoint]:
        if not self.checkpoints.exists():
            return []
        return [chain.decode_checkpoint(line) for line in self.checkpoints.read_bytes().splitlines()]


@asynccontextmanager
async def running(place: Place) -> AsyncIterator[Audit]:
    task = asyncio.create_task(place.audit.run())
    try:
        yield place.audit
    finally:
        await end([task])
        await place.audit.flush()
        await place.ledger.close()


async def impatient(path: Path, folder: Path) -> Place:
    """A place that soon gives up a ledger; that is made before, so that only what is locked makes it wait."""
    patient = Ledger.open(f"sqlite:///{path}", timeout_s=PATIENT_S)
    assert await patient.healthy()
    await patient.close()
    return Place(f"sqlite:///{path}", folder, timeout_s=1.0)


def beside(folder: Path, pattern: str) -> list[Path]:
    return list(folder.glob(pattern))


async def until(condition: object) -> None:
    """Wait for a condition; bounded by the test's patience."""
    async with asyncio.timeout(PATIENT_S):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# --- writing ------------------------------------------------------------------------------------------------


async def test_rows_are_chained_in_order(ledger_url: str, tmp_path: Path) -> None:
    """Rows that were recorded are in the ledger, numbered without a gap, and the chain verifies with its seed."""
    place = Place(ledger_url, tmp_path)
    async with running(place) as audit:
        await audit.record(place.row(1), place.row(2))
        await asyncio.gather(*(audit.record(place.row(n)) for n in range(3, 40)))
        found = await place.bodies()
        assert [each.seq for each in found] == list(range(1, 40))
        assert {each.user for each in found} == {f"dr.{n}" for n in range(1, 40)}
        assert all(each.patient and "7823" not in each.patient for each in found)
        assert await place.verify() is None


async def test_rows_share_a_commit(tmp_path: Path) -> None:
    """Five hundred rows that come together take a handful of commits."""
    place = Place(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", tmp_path)
    commits = 0
    transact = place.ledger.transact

    async def counted(work: object) -> object:
        nonlocal commits
        commits += 1
        return await transact(work)  # type: ignore[arg-type]

    place.ledger.transact = counted  # type: ignore[method-assign,assignment]
    async with running(place) as audit:
        await asyncio.gather(*(audit.record(place.row(n)) for n in range(500)))
        assert commits <= 5
        assert len(await place.bodies()) == 500


async def test_two_gateways_make_one_chain(ledger_url: str, tmp_path: Path) -> None:
    """Gateways that begin on an empty ledger at once share one chain, one seed and one order."""
    places = [Place(ledger_url, tmp_path) for _ in range(2)]
    async with running(places[0]) as one, running(places[1]) as other:
        await asyncio.gather(
            *(audit.record(places[0].row(n)) for n in range(60) for audit in (one, other)[n % 2 :][:1])
        )
        assert [each.seq for each in await places[1].bodies()] == list(range(1, 61))
        assert await places[0].verify() is None
    assert len(beside(tmp_path, "audit-*.seed")) == 1


async def test_rows_of_a_transaction_go_with_it(ledger_url: str, tmp_path: Path) -> None:
    """A row that an alert brings is committed with it, and gone where it is rolled back."""
    place = Place(ledger_url, tmp_path)
    async with running(place) as audit:
        await place.ledger.transact(lambda tx: audit.within(tx, [place.row(1)], is_needed=True))

        def fails(tx: Transaction) -> None:
            audit.within(tx, [place.row(2)], is_needed=True)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await place.ledger.transact(fails)
        await audit.record(place.row(3))
        assert [(each.seq, each.user) for each in await place.bodies()] == [(1, "dr.1"), (2, "dr.3")]
        assert await place.verify() is None


async def test_database_refuses_to_change_rows(ledger_url: str, tmp_path: Path) -> None:
    """The database itself refuses to change or remove a row, and to let the chain shrink."""
    place = Place(ledger_url, tmp_path)
    async with running(place) as audit:
        await audit.record(place.row(1))
        for statement in (
            "UPDATE audit_rows SET user_id = 'x'",
            "DELETE FROM audit_rows",
            "UPDATE audit_chain SET size = 0",
            "DELETE FROM audit_chain",
        ):
            with pytest.raises(LedgerUnavailable):
                await place.ledger.transact(partial(_execute, statement=statement))
        assert await place.verify() is None


def _execute(tx: Transaction, statement: str) -> None:
    tx.connection.execute(text(statement))


# --- when the ledger is away --------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process' write transaction that does not end."""
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.close()


async def test_rows_wait_in_a_file_while_the_ledger_is_away(tmp_path: Path) -> None:
    """With the ledger locked rows are taken all the same; when it is back they are in the chain, once, marked late."""
    place = await impatient(tmp_path / "ledger.sqlite3", tmp_path)
    async with running(place) as audit:
        await audit.record(place.row(1))
        with locked(tmp_path / "ledger.sqlite3"):
            await audit.record(place.row(2))
            await audit.record(place.row(3))
            assert audit.is_open
            assert audit.state == "spooling"
            assert audit.spooled == 2
        await until(lambda: audit.is_whole)
        await audit.record(place.row(4))
        found = await place.bodies()
        assert [each.user for each in found] == ["dr.1", "dr.2", "dr.3", "dr.4"]
        # The commit of dr.2 may have been given up uncertain on a starved machine; then it is known and not brought.
        assert [each.late for each in found if each.user != "dr.2"] == [False, True, False]
        assert await place.verify() is None


async def test_rows_of_a_dead_process_are_brought_in(tmp_path: Path) -> None:
    """What a killed gateway had in its file goes into the chain when the next one starts, and nothing twice."""
    place = Place(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", tmp_path)
    left = Spool(tmp_path, b"p" * 32)
    rows = [place.row(n) for n in range(3)]
    left.append(rows)
    left.close()
    async with running(place) as audit:
        await audit.record(rows[1])
        await until(lambda: (tmp_path / "audit-0.spool").stat().st_size == 0)
        found = await place.bodies()
        assert sorted(each.user for each in found) == ["dr.0", "dr.1", "dr.2"]


async def test_no_disk_refuses_and_says_so(tmp_path: Path) -> None:
    """With neither ledger nor file there is no row, and who asked is told so; it opens again by itself."""
    folder = tmp_path / "gone"
    folder.mkdir()
    place = await impatient(tmp_path / "ledger.sqlite3", folder)
    async with running(place) as audit:
        await audit.record(place.row(1))
        await until(lambda: audit.state == "ok")
        place.audit._spool = Spool(tmp_path / "nowhere", b"p" * 32)
        with locked(tmp_path / "ledger.sqlite3"):
            with pytest.raises(AuditUnavailable):
                await audit.record(place.row(2))
            assert not audit.is_open
            assert audit.state == "closed"
            audit.note(place.row(3))
            with pytest.raises(AuditUnavailable):
                await audit.record(place.row(4))
        (tmp_path / "nowhere").mkdir()
        await until(lambda: audit.is_open)
        await audit.record(place.row(5))
        await until(lambda: audit._missed == 0 and not audit._waiting and audit.is_whole and not audit.spooled)
        found = {(each.event, each.user, each.count) for each in await place.bodies()}
        # The commit of dr.2 was given up, and on a starved machine it may be done all the same: a row too many.
        assert found - {("question", "dr.2", 1)} == {
            ("question", "dr.1", 1),
            ("question", "dr.5", 1),
            ("audit.missed", "", 1),
        }


async def test_alert_goes_on_where_the_chain_does_not(ledger_url: str, tmp_path: Path) -> None:
    """A chain that takes no row stops no alert; its row waits in the file. What needs its row is refused."""
    place = Place(ledger_url, tmp_path)
    async with running(place) as audit:
        await audit.record(place.row(1))
        wrong = ChainKeeper(Sealer(KeyRing({"k": b"x" * 32})), tmp_path)
        audit._keeper = wrong
        stamp = text("UPDATE ledger_facts SET value = 7 WHERE name = 'checked'")

        def work(tx: Transaction, *, is_needed: bool) -> None:
            audit.within(tx, [place.row(2)], is_needed=is_needed)
            tx.connection.execute(stamp)

        await place.ledger.transact(lambda tx: work(tx, is_needed=False))
        read = text("SELECT value FROM ledger_facts WHERE name = 'checked'")
        assert await place.ledger.read(lambda tx: tx.connection.execute(read).scalar()) == 7
        with pytest.raises(LedgerUnavailable):
            await place.ledger.transact(lambda tx: work(tx, is_needed=True))
        await until(lambda: audit.spooled == 1)
        audit._keeper = place.keeper
        await until(lambda: audit.is_whole)
        assert [each.user for each in await place.bodies()] == ["dr.1", "dr.2"]


async def test_refusals_of_a_flood_are_counted(tmp_path: Path) -> None:
    """Ten thousand refused tokens within a second become a few rows that say how many there were."""
    place = Place(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", tmp_path)
    for n in range(10_000):
        place.audit.refused("token.refused", "unauthorized", user=f"u{n % 500}", department="cardiology")
    async with running(place):
        await until(lambda: not place.audit._refusals and not place.audit._waiting)
        found = await place.bodies()
        assert sum(each.count for each in found) == 10_000
        assert len(found) <= 2 * MAX_REFUSALS


async def test_row_takes_what_no_row_may_have_for_malformed(tmp_path: Path) -> None:
    """A device that calls itself by a sentence, or an id that chatd did not make, leaves none of it."""
    place = Place(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", tmp_path)
    made = place.audit.row("answer", device="Maria Silva", response="canary-text", user="dr.a", roles=("x y",))
    assert (made.device, made.response, made.user, made.roles) == ("malformed", "", "dr.a", ("malformed",))
    with pytest.raises(ValueError, match="no event"):
        place.audit.row("something")
    await place.ledger.close()


async def test_name_that_nobody_proved_stands_without_its_words(tmp_path: Path) -> None:
    """What somebody typed into an address is told from other names in a row, and cannot be read in it."""
    place = Place(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", tmp_path)
    names = ["dr.santos", "dr.santo", "Maria Silva 1950", ""]
    named = [place.audit.named(name) for name in names]
    assert len(set(named)) == len(names)
    assert named == [place.audit.named(name) for name in names]
    assert [place.audit.row("token.refused", user=each).user for each in named] == named
    assert not any(part in each for each in named for part in ("santo", "Maria", "1950"))
    await place.ledger.close()


# --- the file -----------------------------------------------------------------------------------------------


def spooled(n: int) -> Row:
    return Row(event="question", at_ms=n, id=f"{n:024x}", user=f"dr.{n}")


def test_spool_is_bounded_and_survives_a_torn_line(tmp_path: Path) -> None:
    """A file that is full takes nothing more; a line that a crash has torn was told to nobody and is not read."""
    spool = Spool(tmp_path, b"p" * 32, max_bytes=1_000)
    spool.append([spooled(1), spooled(2)])
    with pytest.raises(SpoolFull):
        spool.append([spooled(n) for n in range(3, 30)])
    spool.close()
    path = tmp_path / "audit-0.spool"
    path.write_bytes(path.read_bytes()[:-5])
    again = Spool(tmp_path, b"p" * 32, max_bytes=1_000)
    again.append([spooled(3)])
    rows, bad, _ = again.read()
    assert ([row.user for row in rows], bad) == (["dr.1", "dr.3"], 0)
    again.close()


def test_spool_tells_changed_and_missing_lines(tmp_path: Path) -> None:
    """A line that was changed, or that follows one taken out, is counted as damaged and kept."""
    spool = Spool(tmp_path, b"p" * 32)
    spool.append([spooled(n) for n in range(5)])
    path = tmp_path / "audit-0.spool"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[2], lines[3].replace(b"dr.3", b"dr.9"), lines[4]]))
    rows, bad, _ = spool.read()
    assert [row.user for row in rows] == ["dr.0", "dr.2", "dr.9", "dr.4"]
    assert bad == 2
    spool.close()


def test_spool_forgets_only_what_was_read(tmp_path: Path) -> None:
    """Rows that come between reading and clearing stay; two processes have a file each."""
    one, other = Spool(tmp_path, b"p" * 32), Spool(tmp_path, b"p" * 32)
    one.append([spooled(1)])
    other.append([spooled(2)])
    _, _, size_bytes = one.read()
    one.append([spooled(3)])
    assert not one.clear(size_bytes)
    rows, _, size_bytes = one.read()
    assert [row.user for row in rows] == ["dr.1", "dr.3"]
    assert one.left_behind() == []
    assert one.clear(size_bytes)
    other.close()
    (left,) = one.left_behind()
    assert [row.user for row in left.read()[0]] == ["dr.2"]
    left.close()
    one.close()


# --- checkpoints --------------------------------------------------------------------------------------------


async def test_checkpoints_leave_and_find_an_older_copy(tmp_path: Path) -> None:
    """Checkpoints go to their file; an older copy of the ledger, whole in itself, is found by them."""
    path = tmp_path / "ledger.sqlite3"
    place = Place(f"sqlite:///{path}", tmp_path, checkpoint_rows=10)
    async with running(place) as audit:
        for n in range(12):
            await audit.record(place.row(n))
        await until(lambda: len(place.sent()) >= 1)
    with sqlite3.connect(path) as source, sqlite3.connect(tmp_path / "copy.sqlite3") as copy:
        source.backup(copy)
    again = Place(f"sqlite:///{path}", tmp_path, checkpoint_rows=10)
    async with running(again) as audit:
        await audit.record(*(again.row(n) for n in range(25)))
        await until(lambda: any(each.size > 12 for each in again.sent()))
        assert await again.verify() is None
    for each in beside(tmp_path, "ledger.sqlite3*"):
        each.unlink()
    (tmp_path / "copy.sqlite3").rename(path)
    old = Place(f"sqlite:///{path}", tmp_path)
    try:
        fault = await old.verify()
        assert fault is not None
        assert fault.why == "checkpoint_beyond"
    finally:
        await old.ledger.close()


async def test_tampering_with_the_table_is_found(tmp_path: Path) -> None:
    """60 seeded changes in SQLite's file, by hand and without triggers: each is found."""
    path = tmp_path / "ledger.sqlite3"
    place = Place(f"sqlite:///{path}", tmp_path, checkpoint_rows=8)
    async with running(place) as audit:
        for n in range(20):
            await audit.record(place.row(n))
        await until(lambda: any(each.size >= 16 for each in place.sent()))
    raw = sqlite3.connect(path)
    for name in ("audit_rows_no_update", "audit_rows_no_delete", "audit_chain_grows", "audit_chain_stays"):
        raw.execute(f"DROP TRIGGER {name}")
    raw.commit()
    raw.execute("PRAGMA journal_mode=DELETE")  # one in memory has no log beside it
    good = raw.serialize()
    raw.close()
    rng = random.Random(38)
    statements = (
        "UPDATE audit_rows SET user_id = 'dr.x' WHERE seq = :n",
        "UPDATE audit_rows SET patient_pseudonym = '' WHERE seq = :n",
        "UPDATE audit_rows SET at = at + 1 WHERE seq = :n",
        "UPDATE audit_rows SET body = CAST(replace(CAST(body AS TEXT), 'question', 'answer') AS BLOB) WHERE seq = :n",
        "UPDATE audit_rows SET hash = randomblob(32) WHERE seq = :n",
        "UPDATE audit_rows SET mac = randomblob(32) WHERE seq = :n",
        "DELETE FROM audit_rows WHERE seq = :n",
        "DELETE FROM audit_rows WHERE seq >= :n",
        "UPDATE audit_rows SET seq = 1000 WHERE seq = :n",
        "UPDATE audit_chain SET size = :n - 1",
        "UPDATE audit_chain SET state_sealed = randomblob(200) WHERE :n > 0",
    )
    keeper = ChainKeeper(Sealer(RING), tmp_path)
    for _ in range(60):
        raw = sqlite3.connect(":memory:")
        raw.deserialize(good)
        raw.execute(rng.choice(statements), {"n": rng.randint(1, 20)})
        raw.commit()
        changed = raw.serialize()
        raw.close()
        path.write_bytes(changed)
        for each in beside(tmp_path, "ledger.sqlite3-*"):
            each.unlink()
        ledger = Ledger.open(f"sqlite:///{path}", timeout_s=PATIENT_S)
        place.ledger, place.keeper = ledger, keeper
        try:
            assert await place.verify() is not None
        except rows_of.ChainBroken:
            pass  # found too: the state does not open, or names another size
        finally:
            await ledger.close()


async def test_seed_taken_away_stops_nothing(tmp_path: Path) -> None:
    """Without the seed's file rows are written on, and what is verified is the chain without its keys."""
    place = Place(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", tmp_path)
    async with running(place) as audit:
        await audit.record(place.row(1))
        (file,) = beside(tmp_path, "audit-*.seed")
        assert file.stat().st_mode & 0o077 == 0
        elsewhere = tmp_path / "safe"
        file.rename(elsewhere)
        await audit.record(place.row(2))
        name = file.name.removeprefix("audit-").removesuffix(".seed")
        assert place.keeper.seed(name) is None
        seed = place.keeper.seed(name, elsewhere)
        verifier = Verifier(name, seed)
        for entry, columns in await place.ledger.read(lambda tx: rows_of.entries(tx, 0, 10, 10)):
            assert verifier.feed(entry, columns) is None
        with pytest.raises(SealError):
            place.keeper.seed("f" * 16, elsewhere)


# --- elsewhere ----------------------------------------------------------------------------------------------


def made(size: int) -> Checkpoint:
    return Checkpoint(chain="0" * 16, size=size, at_ms=1_768_463_120_000, head="a" * 64, root="b" * 64, mac="c" * 64)


class Away:
    """A sink that fails as often as it is told, and keeps what it takes."""

    name = "file"

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.taken: list[int] = []

    async def deliver(self, line: bytes, at: datetime) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise OSError
        self.taken.append(json.loads(line)["size"])

    async def close(self) -> None:
        return


async def test_sink_that_is_away_gets_the_newest_checkpoints() -> None:
    """What a sink does not take waits, bounded; nobody who offers waits, and the failure shows."""
    sink = Away(3)
    carrier = Carrier(sink, again_s=0)
    for size in range(200):
        carrier.offer(made(size))
    assert carrier.waiting == 64
    task = asyncio.create_task(carrier.run())
    await until(lambda: not carrier.waiting)
    await end([task])
    assert sink.taken == list(range(136, 200))
    assert carrier.is_well


async def test_sink_that_takes_nothing_shows(tmp_path: Path) -> None:
    """While a place elsewhere takes no checkpoint, the audit's state says so; rows are taken all the same."""
    sink = Away(1_000_000)
    place = Place(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", tmp_path)
    place.audit._carriers = (Carrier(sink, again_s=0.01),)
    async with running(place) as audit:
        await audit.record(place.row(1))
        await until(lambda: audit.state == "unsent")
        await audit.record(place.row(2))
        sink.failures = 0
        await until(lambda: audit.state == "ok")


def test_syslog_message_has_the_form_of_the_standards() -> None:
    """Priority 109, version 1, a time, a host, no structured data; the length in bytes goes before it."""
    line = chain.encode_checkpoint(made(5))
    said = message(line, NOW, "ward", 7)
    assert said.startswith(b"<109>1 2026-01-15T07:45:20.000Z ward chatd 7 audit-checkpoint - {")
    assert framed(said) == str(len(said)).encode() + b" " + said
    assert msgspec.json.decode(said[said.index(b"{") :], type=Checkpoint) == made(5)


async def test_syslog_goes_over_tls(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """Messages reach a server of the hospital's authority, also after it was restarted; another one is refused."""
    cert, key = certificate
    heard: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                length = int((await reader.readuntil(b" "))[:-1])
                heard.append(await reader.readexactly(length))
                if len(heard) == 1:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    sink = SyslogSink("localhost", port, tls_context(str(cert)), hostname="ward")
    try:
        await sink.deliver(b"one", NOW)
        await until(lambda: len(heard) == 1 and (sink._reader is None or sink._reader.at_eof()))
        await sink.deliver(b"two", NOW)
        await until(lambda: len(heard) == 2)
        assert [each.rsplit(b" ", 1)[1] for each in heard] == [b"one", b"two"]
        stranger = SyslogSink("localhost", port, tls_context(""))
        with pytest.raises(ssl.SSLError):
            await stranger.deliver(b"three", NOW)
    finally:
        await sink.close()
        server.close()
        await server.wait_closed()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of this test's own for localhost, and its key."""
    from datetime import timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    paths[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
