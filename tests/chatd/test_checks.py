"""What chatd doctor makes of certificates, files, clocks, room, memory, a ledger and the newest rows of its audit."""

from __future__ import annotations

import os
import socket
import sqlite3
import ssl
import struct
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from chatd.audit import chain
from chatd.audit.chain import Columns, Entry, Row, State
from chatd.checks import machine
from chatd.checks.audit_tail import tail_fault
from chatd.checks.table import CHECKS, Finding
from chatd.ledger import Ledger, LedgerUnavailable, health
from chatd.ledger.migrate import HEAD

NOW = datetime(2026, 1, 15, 8, 0, tzinfo=UTC)


def test_cheap_checks_end_soon_and_stand_for_a_while() -> None:
    """What a proxy asks ends within 3 s and is not asked anew each time; what a person asks for has no such bound."""
    cheap = [each for each in CHECKS.values() if each.cost == "cheap"]
    assert cheap
    assert all(each.within_s <= 3 and each.fresh_ms > 0 for each in cheap)
    assert all(each.fresh_ms == 0 for each in CHECKS.values() if each.cost != "cheap")


# --- certificates -------------------------------------------------------------------------------------------


class Signed:
    """A certificate with its key, signed by another one or by itself."""

    def __init__(
        self, name: str, by: Signed | None = None, *, days: int = 90, since: datetime = NOW, host: str | None = None
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(by.certificate.subject if by else subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(since - timedelta(days=2))
            .not_valid_after(since + timedelta(days=days, minutes=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key((by or self).key.public_key()), critical=False
            )
        )
        if host is None:
            usage = x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            )
            builder = builder.add_extension(usage, critical=True)
        else:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        self.certificate: x509.Certificate = builder.sign((by or self).key, SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


HOST = "chat.hospital.example"
ROOT = Signed("root", days=3_650)
MIDDLE = Signed("middle", ROOT, days=1_000)


def looked(folder: Path, *chain: Signed, host: str = HOST, authority: Signed | None = ROOT) -> Finding:
    """What is found of a file with this chain."""
    path, root = folder / "chat.pem", folder / "ca.pem"
    path.write_bytes(b"".join(each.pem for each in chain))
    if authority is not None:
        root.write_bytes(authority.pem)
    return machine.certificate_file(path, names=[host], authority=root if authority else None, now=NOW)


@pytest.mark.parametrize(
    ("days", "state"), [(-1, "fail"), (0, "warn"), (29, "warn"), (30, "ok"), (31, "ok"), (800, "ok")]
)
def test_days_of_a_certificate_are_told(tmp_path: Path, days: int, state: str) -> None:
    """Run out: fail. Under 30 days: warn, as the daily unit of deploy does. The days are in the row."""
    found = looked(tmp_path, Signed("x", MIDDLE, days=days, host=HOST), MIDDLE)
    assert found.state == state
    assert f"{days} days left" in found.text


@pytest.mark.parametrize(
    ("case", "state", "word"),
    [
        ("well", "ok", "2 in the chain"),
        ("other name", "fail", "not for"),
        ("no middle", "fail", "authority"),
        ("wrong order", "fail", "not for"),
        ("strange middle", "fail", "not in order"),
        ("other root", "fail", "authority"),
        ("not yet", "fail", "not valid before"),
        ("middle runs out", "warn", "days left"),
    ],
)
def test_chain_of_a_certificate_is_looked_at(tmp_path: Path, case: str, state: str, word: str) -> None:
    """Its name, its order, and where it leads to; a middle one that runs out counts as the certificate itself."""
    own = Signed("x", MIDDLE, host=HOST)
    match case:
        case "other name":
            found = looked(tmp_path, own, MIDDLE, host="other.hospital.example")
        case "no middle":
            found = looked(tmp_path, own)
        case "wrong order":
            found = looked(tmp_path, MIDDLE, ROOT)
        case "strange middle":
            found = looked(tmp_path, own, Signed("middle", ROOT))
        case "other root":
            found = looked(tmp_path, own, MIDDLE, authority=Signed("root"))
        case "not yet":
            found = looked(tmp_path, Signed("x", MIDDLE, since=NOW + timedelta(days=3), host=HOST), MIDDLE)
        case "middle runs out":
            middle = Signed("middle", ROOT, days=10)
            found = looked(tmp_path, Signed("x", middle, host=HOST), middle)
        case _:
            found = looked(tmp_path, own, MIDDLE)
    assert (found.state, word in found.text) == (state, True), found


def test_certificate_that_cannot_be_read_was_not_looked_at(tmp_path: Path) -> None:
    """No file, or a file without a certificate: not looked at, with the reason; what the file holds is not shown."""
    assert machine.certificate_file(tmp_path / "none", names=[], authority=None, now=NOW).state == "unseen"
    (tmp_path / "key").write_bytes(ROOT.key_pem)
    found = machine.certificate_file(tmp_path / "key", names=[], authority=None, now=NOW)
    assert found.state == "unseen"
    assert "BEGIN" not in found.text


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[int, Path, ssl.SSLContext]]:
    """A TLS server for localhost that takes connections one by one: its port, its authority, its context."""
    now = datetime.now(UTC)
    root = Signed("root", since=now)
    own = Signed("x", root, since=now, host="localhost")
    (tmp_path / "ca.pem").write_bytes(root.pem)
    (tmp_path / "own.pem").write_bytes(own.key_pem + own.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                try:
                    line, _ = listening.accept()
                except OSError:
                    return
                try:
                    with line, context.wrap_socket(line, server_side=True) as secured:
                        secured.recv(1)
                except OSError:
                    continue

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listening.getsockname()[1], tmp_path / "ca.pem", context
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(20)


def test_tls_is_seen_as_a_phone_sees_it(served: tuple[int, Path, ssl.SSLContext]) -> None:
    """Trusted by its authority and by no other, with its version; an older version of TLS fails."""
    port, authority, context = served
    found = machine.served_certificate("localhost", port, authority=authority, timeout_s=10)
    assert (found.state, "TLSv1.3" in found.text) == ("ok", True)
    assert machine.served_certificate("localhost", port, authority=None, timeout_s=10).state == "fail"
    assert machine.served_certificate("127.0.0.1", port, authority=authority, timeout_s=10).state == "fail"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    old = machine.served_certificate("localhost", port, authority=authority, timeout_s=10)
    assert (old.state, "TLSv1.2" in old.text) == ("fail", True)


def test_nobody_listening_fails(tmp_path: Path) -> None:
    """A front that is not there is a failure, and no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert machine.served_certificate("localhost", port, authority=None, timeout_s=5).state == "fail"


# --- files, clocks, room, memory ----------------------------------------------------------------------------


def test_files_that_others_may_use_are_named(tmp_path: Path) -> None:
    """One that others read, or a folder that they enter, fails by name and mode; what is not there is passed."""
    folder, key = tmp_path / "data", tmp_path / "data" / "key"
    assert machine.private_files({}, folder).state == "unseen"
    folder.mkdir(mode=0o700)
    key.touch(0o600)
    files = {"the key": key, "another": folder / "none"}
    assert machine.private_files(files, folder).state == "ok"
    key.chmod(0o640)
    found = machine.private_files(files, folder)
    assert (found.state, "the key (0640)" in found.text) == ("fail", True)
    key.chmod(0o600)
    folder.chmod(0o755)
    assert "data directory (0755)" in machine.private_files(files, folder).text


def test_seed_beside_the_ring_is_told(tmp_path: Path) -> None:
    """The audit's first key belongs to the auditor."""
    seed = tmp_path / "audit-0123456789abcdef.seed"
    assert machine.seeds([], NOW).state == "ok"
    seed.touch()
    os.utime(seed, (NOW.timestamp() - 3 * 86_400,) * 2)
    found = machine.seeds([seed], NOW)
    assert (found.state, "here for 3 days" in found.text) == ("warn", True)


@pytest.mark.parametrize(
    ("offset_ms", "within_ms", "state"),
    [
        (0, 0, "ok"),
        (-1_999, 0, "ok"),
        (2_000, 0, "warn"),
        (2_500, 600, "ok"),
        (-2_700, 600, "warn"),
        (60_000, 0, "fail"),
        (-60_500, 600, "warn"),
        (-7_200_000, 900, "fail"),
    ],
)
def test_clock_is_wrong_by_what_is_sure(offset_ms: float, within_ms: float, state: str) -> None:
    """What the reading itself may have taken is not held against a clock, in either direction."""
    assert machine.clock_offset("clock_redis", "Redis's clock", offset_ms, within_ms).state == state


def ntp_answer(
    mark: bytes, received_s: float, sent_s: float, *, mode: int = 4, stratum: int = 2, leap: int = 0
) -> bytes:
    """What a time server sends."""

    def stamp(moment_s: float) -> bytes:
        whole, part = divmod(moment_s + 2_208_988_800, 1)
        return struct.pack("!II", int(whole) % (1 << 32), int(part * (1 << 32)))

    head = bytes((leap << 6 | 4 << 3 | mode, stratum, 0, 0)) + bytes(20)
    return head + mark + stamp(received_s) + stamp(sent_s)


@given(
    # After 2036, too, when the counter begins anew.
    sent_s=st.floats(1_700_000_000, 3_000_000_000),
    offset_s=st.floats(-7_200, 7_200),
    way_s=st.floats(0, 0.5),
    work_s=st.floats(0, 0.5),
)
def test_time_server_s_answer_gives_its_clock(sent_s: float, offset_s: float, way_s: float, work_s: float) -> None:
    """Over ways of equal length the offset is found to the millisecond, and the bound is half the way."""
    mark = b"12345678"
    received = sent_s + way_s + offset_s
    answer = ntp_answer(mark, received, received + work_s)
    offset_ms, within_ms = machine.read_ntp(answer, mark=mark, sent_s=sent_s, took_s=2 * way_s + work_s)
    assert offset_ms == pytest.approx(offset_s * 1000, abs=1)
    assert within_ms == pytest.approx(way_s * 1000, abs=1)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        ntp_answer(b"12345678", NOW.timestamp(), NOW.timestamp())[:47],
        ntp_answer(b"87654321", NOW.timestamp(), NOW.timestamp()),
        ntp_answer(b"12345678", NOW.timestamp(), NOW.timestamp(), mode=3),
        ntp_answer(b"12345678", NOW.timestamp(), NOW.timestamp(), stratum=0),
        ntp_answer(b"12345678", NOW.timestamp(), NOW.timestamp(), stratum=16),
        ntp_answer(b"12345678", NOW.timestamp(), NOW.timestamp(), leap=3),
    ],
    ids=["nothing", "short", "other mark", "client", "kiss", "unsynchronised", "alarm"],
)
def test_answer_that_is_no_time_is_refused(answer: bytes) -> None:
    """What is not a server's answer to this very request is not believed."""
    with pytest.raises(ValueError, match="time server"):
        machine.read_ntp(answer, mark=b"12345678", sent_s=NOW.timestamp(), took_s=0.1)


def test_time_server_is_asked_over_udp(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on this machine is an hour ahead, and found so; nothing of this machine's time leaves it."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setattr(machine, "_NTP_PORT", server.getsockname()[1])

        def answer() -> None:
            request, who = server.recvfrom(512)
            asked.append(request)
            now_s = datetime.now(UTC).timestamp() + 3_600
            server.sendto(ntp_answer(request[40:48], now_s, now_s), who)

        thread = threading.Thread(target=answer)
        thread.start()
        offset_ms, within_ms = machine.ntp_offset("127.0.0.1", timeout_s=20)
        thread.join(20)
    assert abs(offset_ms - 3_600_000) <= within_ms + 1
    assert asked[0][1:40] == bytes(39)


@pytest.mark.parametrize(
    ("free_gib", "total_gib", "is_read_only", "state"),
    [
        (50, 100, False, "ok"),
        (1.9, 10, False, "warn"),
        (9, 100, False, "warn"),
        (0.2, 10, False, "fail"),
        (50, 100, True, "fail"),
    ],
)
def test_room_is_told_before_it_is_gone(free_gib: float, total_gib: float, is_read_only: bool, state: str) -> None:
    """Little room warns, none or a read-only mount fails."""
    gib = 1024**3
    assert machine.room("x", int(free_gib * gib), int(total_gib * gib), is_read_only=is_read_only).state == state


@pytest.mark.parametrize(
    ("swap", "core", "state"),
    [
        ("", "0", "ok"),
        ("/dev/zram0 partition 1 0 -2", "0", "ok"),
        ("/dev/sda2 partition 1 0 -2", "0", "warn"),
        ("", "unlimited", "fail"),
    ],
)
def test_memory_that_reaches_a_disk_is_told(tmp_path: Path, swap: str, core: str, state: str) -> None:
    """Swap on a plain disk warns; a process that may write a core file fails."""
    (tmp_path / "swaps").write_text(f"Filename Type Size Used Priority\n{swap}\n".replace("\n\n", "\n"))
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "limits").write_text(f"Limit  Soft Limit\nMax core file size   {core}   unlimited   bytes\n")
    assert machine.memory(7, tmp_path).state == state
    assert machine.memory(8, tmp_path).state == "unseen"


@pytest.mark.parametrize(("days", "state"), [(0, "ok"), (49, "ok"), (50, "warn")])
def test_age_of_the_ring_is_told(days: int, state: str) -> None:
    """A ring that was not touched for longer than one key is good for."""
    assert machine.seal_keys("file", 2, timedelta(days=days)).state == state
    assert machine.seal_keys("keychain", 2, None).state == "ok"


# --- the ledger ---------------------------------------------------------------------------------------------


async def test_ledger_is_looked_at_and_not_touched(tmp_path: Path) -> None:
    """A ledger that is not there is not made; one of this version is whole; one of another shape is left as it is."""
    path = tmp_path / "ledger.sqlite3"
    url = f"sqlite:///{path}"
    assert health.look(url, health.revision, timeout_s=5) is None
    assert not path.exists()
    ledger = Ledger.open(url)
    assert await ledger.healthy()
    await ledger.close()
    assert health.look(url, health.revision, timeout_s=5) == HEAD
    for whole in (False, True):
        assert health.look(url, partial(health.integrity, whole=whole), timeout_s=5) is True
    assert health.look(url, lambda tx: (health.clock(tx),), timeout_s=5) == (None,)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()
    assert health.look(url, health.revision, timeout_s=5) == "0001"
    other = tmp_path / "other.sqlite3"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE x (y)")
    connection.close()
    assert health.look(f"sqlite:///{other}", health.revision, timeout_s=5) == ""


async def test_damaged_ledger_is_found(tmp_path: Path) -> None:
    """Pages that were overwritten are found, as damage or as a file that cannot be read; nothing is mended."""
    path = tmp_path / "ledger.sqlite3"
    ledger = Ledger.open(f"sqlite:///{path}")
    assert await ledger.healthy()
    await ledger.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = bytearray(path.read_bytes())
    data[8_192:12_288] = os.urandom(4_096)
    path.write_bytes(data)
    try:
        found = health.look(f"sqlite:///{path}", lambda tx: health.integrity(tx, whole=False), timeout_s=5)
    except LedgerUnavailable as error:
        assert error.why == "failed"  # noqa: PT017 - either tells of the damage
    else:
        assert found is False


# --- the audit's newest rows --------------------------------------------------------------------------------


def rows(count: int) -> tuple[State, list[Entry]]:
    """A chain of so many rows, and its entries."""
    state = chain.begin("0123456789abcdef", bytes(32))
    said = [
        Row(seq=1, id=f"{number:032x}", at_ms=number, node="cli", event="question", outcome="ok", user="dr.x")
        for number in range(1, count + 1)
    ]
    return chain.append(state, said)


def beside(entries: list[Entry]) -> list[tuple[Entry, Columns]]:
    return [(each, chain.columns_of(chain.row_of(each.body))) for each in entries]


STATE, ENTRIES = rows(40)
BEFORE = ENTRIES[9].hash
TAIL = beside(ENTRIES[10:])


def test_tail_that_was_not_touched_holds() -> None:
    """The newest rows follow from the hash before them, end where the chain says, and agree with a checkpoint."""
    _, made = chain.checkpoint(STATE, 1)
    assert tail_fault(BEFORE, 11, TAIL, size=40, state=STATE, sent=[made]) is None
    assert tail_fault(BEFORE, 11, TAIL, size=40, state=None, sent=[]) is None


@given(st.data())
def test_tampering_with_the_tail_is_found(data: st.DataObject) -> None:
    """A changed, removed, moved or repeated row among the newest, a cut end, another column: each is found."""
    tail = list(TAIL)
    at = data.draw(st.integers(0, len(tail) - 1))
    entry, columns = tail[at]
    match data.draw(st.sampled_from(["body", "hash", "columns", "remove", "swap", "repeat", "cut"])):
        case "body":
            changed = msgspec.structs.replace(chain.row_of(entry.body), user="dr.other")
            tail[at] = beside([msgspec.structs.replace(entry, body=chain.body_of(changed))])[0]
        case "hash":
            tail[at] = (msgspec.structs.replace(entry, hash=bytes(32)), columns)
        case "columns":
            tail[at] = (entry, msgspec.structs.replace(columns, user="dr.other"))
        case "remove":
            del tail[at]
        case "swap":
            other = data.draw(st.integers(0, len(tail) - 1).filter(lambda found: found != at))
            tail[at], tail[other] = tail[other], tail[at]
        case "repeat":
            tail.insert(at, tail[at])
        case "cut":
            del tail[at:]
    assert tail_fault(BEFORE, 11, tail, size=40, state=STATE, sent=[]) is not None


def test_end_that_was_cut_with_its_state_is_found_by_a_checkpoint() -> None:
    """Rows and state were set back together: only a checkpoint that knows more shows it."""
    _, made = chain.checkpoint(STATE, 1)
    state, entries = rows(30)
    tail = beside(entries[10:])
    assert tail_fault(entries[9].hash, 11, tail, size=30, state=state, sent=[]) is None
    found = tail_fault(entries[9].hash, 11, tail, size=30, state=state, sent=[made])
    assert found is not None
    assert found.why == "checkpoint_beyond"


def test_rows_written_anew_are_found_by_a_checkpoint() -> None:
    """A checkpoint within the rows has another hash than a chain that was made anew."""
    _, made = chain.checkpoint(STATE, 1)
    strange = msgspec.structs.replace(made, head="0" * 64)
    found = tail_fault(BEFORE, 11, TAIL, size=40, state=STATE, sent=[strange])
    assert found is not None
    assert found.why == "checkpoint_root"
