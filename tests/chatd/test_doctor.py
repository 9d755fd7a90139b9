"""chatd doctor on installations that are well, sick and not there: its rows, its status, and what it never shows."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from chatd import doctor
from chatd.auditing import auditing
from chatd.checks.table import CHECKS, Finding
from chatd.cli import main
from chatd.doctor import Where
from chatd.inference.models import PIN_FILE, Pin, PinnedFile, revision
from chatd.places import Places
from chatd.private_redis import PrivateRedis
from chatd.settings import Settings
from context.seal import KeyRing
from tests.redis_server import RedisServer

#: Rows that a person on this machine may see otherwise: they tell of the machine, not of the installation.
OF_THE_MACHINE = {"clock_kept", "disk", "memory"}


@pytest.fixture(scope="module")
def private_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The private Redis of an installation."""
    own = PrivateRedis(tmp_path_factory.mktemp("redis"))
    own.start()
    yield own.url
    own.stop()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a ledger, thirty rows of audit, and checkpoints over them."""
    data = tmp_path_factory.mktemp("installed") / "data"
    places = Places(Settings(data_dir=str(data), audit_checkpoint_rows=10))
    places.prepare()

    async def work() -> None:
        async with auditing(places) as audit:
            for _ in range(3):
                await asyncio.gather(*(audit.record(audit.row("device.list", user="os:x")) for _ in range(10)))
            file = data / "audit.checkpoints"
            async with asyncio.timeout(30):
                while not file.exists() or b'"size":' not in file.read_bytes():  # noqa: ASYNC110 - a thread writes it
                    await asyncio.sleep(0.02)

    asyncio.run(work())
    return data


@pytest.fixture
def data(installed: Path, tmp_path: Path) -> Path:
    """A copy of it, to break."""
    copy = tmp_path / "data"
    shutil.copytree(installed, copy)
    return copy


async def rows(data: Path, redis_url: str, where: Where | None = None, **settings: object) -> dict[str, Finding]:
    """What the doctor finds, by the checks' names."""
    made = Settings(data_dir=str(data), redis_url=redis_url, **settings)  # type: ignore[arg-type]
    findings = await doctor.look(Places(made), where or Where())
    found = {each.check: each for each in findings}
    assert len(found) == len(findings)
    return found


async def test_installation_that_is_well_has_no_failure(data: Path, private_url: str) -> None:
    """Each check of the table has one row, in its order, and what can be looked at here is well."""
    found = await rows(data, private_url, Where(is_deep=True))
    order = [name for name in CHECKS if CHECKS[name].cost != "cheap"]
    assert list(found) == order
    states = {name: each.state for name, each in found.items() if name not in OF_THE_MACHINE}
    assert states == {
        "gateway": "unseen",
        "certificate": "unseen",
        "tls": "unseen",
        "redis_settings": "ok",
        "redis_user": "ok",
        "seal_keys": "ok",
        "files": "ok",
        "seed": "warn",
        "clock_redis": "ok",
        "clock_ledger": "ok",
        "clock_ntp": "unseen",
        "migrations": "ok",
        "integrity": "ok",
        "audit": "ok",
        "model": "unseen",
        "audit_all": "ok",
        "model_all": "unseen",
        "integrity_all": "ok",
    }
    # Whoever is told that something is not well is told what to do.
    assert all(each.do for each in found.values() if each.state in ("warn", "fail"))
    assert all(each.text for each in found.values())


async def test_installation_that_is_not_there_is_told_and_not_made(tmp_path: Path) -> None:
    """A mistyped directory: no key ring fails, the rest was not looked at, and nothing was created."""
    found = await rows(tmp_path / "none", "")
    assert found["seal_keys"].state == "fail"
    assert {found[name].state for name in ("redis_settings", "redis_user", "migrations", "integrity", "files")} == {
        "unseen"
    }
    assert os.listdir(tmp_path) == []


def _change_row(data: Path) -> None:
    with sqlite3.connect(data / "ledger.sqlite3") as connection:
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'audit_rows'"
        ).fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE audit_rows SET user_id = 'os:y' WHERE seq = 25")
    connection.close()


def _newer(data: Path) -> None:
    with sqlite3.connect(data / "ledger.sqlite3") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()


def _older(data: Path) -> None:
    with sqlite3.connect(data / "ledger.sqlite3") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()


def _damage(data: Path) -> None:
    path = data / "ledger.sqlite3"
    raw = bytearray(path.read_bytes())
    raw[4_096:20_480] = os.urandom(16_384)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("sicken", "check", "state"),
    [
        (_change_row, "audit", "fail"),
        (_newer, "migrations", "fail"),
        (_older, "migrations", "warn"),
        (_damage, "integrity", "fail"),
        (lambda data: (data / "keys" / "seal.keys").unlink(), "seal_keys", "fail"),
        (lambda data: (data / "keys" / "seal.keys").chmod(0o644), "files", "fail"),
        (lambda data: KeyRing.generate().save(data / "keys" / "seal.keys"), "audit", "fail"),
        (lambda data: (data / "audit.checkpoints").unlink(), "audit", "warn"),
        (lambda data: (data / "audit.checkpoints").write_text("no\n"), "audit", "fail"),
        (lambda data: (data / "ledger.sqlite3").unlink(), "migrations", "unseen"),
        (lambda data: data.chmod(0o755), "files", "fail"),
    ],
    ids=[
        *("changed row", "newer ledger", "older ledger", "damaged ledger", "no keys", "open keys", "other keys"),
        *("no checkpoints", "strange checkpoints", "no ledger", "open folder"),
    ],
)
async def test_what_is_wrong_is_found(
    data: Path, private_url: str, sicken: Callable[[Path], object], check: str, state: str
) -> None:
    """One thing that is wrong shows in its row, and the other rows are told all the same."""
    sicken(data)
    before = (data / "ledger.sqlite3").read_bytes() if (data / "ledger.sqlite3").exists() else None
    found = await rows(data, private_url)
    assert found[check].state == state, found[check]
    assert len(found) == sum(each.cost == "brief" for each in CHECKS.values())
    after = (data / "ledger.sqlite3").read_bytes() if (data / "ledger.sqlite3").exists() else None
    assert before == after


async def test_unsafe_redis_fails_and_overridden_warns(data: Path, own_redis_server: RedisServer) -> None:
    """A Redis that may write fails in both rows; with the setting it warns, and says so."""
    found = await rows(data, own_redis_server.url)
    assert (found["redis_settings"].state, found["redis_user"].state) == ("fail", "fail")
    found = await rows(data, own_redis_server.url, redis_unsafe=True)
    assert (found["redis_settings"].state, found["redis_user"].state) == ("warn", "warn")
    assert "CHATD_REDIS_UNSAFE" in found["redis_user"].text
    own_redis_server.kill()
    assert (await rows(data, own_redis_server.url))["redis_settings"].state == "fail"


async def test_frozen_redis_ends_within_its_bound(
    data: Path, own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that stands still is told, and holds up none of the other rows."""
    monkeypatch.setattr(doctor, "_REDIS_S", 0.2)
    own_redis_server.freeze()
    found = await rows(data, own_redis_server.chatd_url)
    assert found["redis_settings"].state == "fail"
    assert found["audit"].state == "ok"
    own_redis_server.thaw()


async def test_model_is_compared_with_its_pin(data: Path, private_url: str, tmp_path: Path) -> None:
    """Not pinned warns, as pinned is well, another file fails; --deep finds one whose size and time are as before."""
    folder = tmp_path / "model"
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.write_bytes(b"one")

    async def states(is_deep: bool = False) -> tuple[str, str | None]:
        found = await rows(data, private_url, Where(is_deep=is_deep), engine="mlx", model=str(folder))
        return found["model"].state, found["model_all"].state if is_deep else None

    assert await states() == ("warn", None)
    kept = weights.stat()
    pinned = PinnedFile(
        sha256="7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",  # of "one"
        size_bytes=kept.st_size,
        mtime_ns=kept.st_mtime_ns,
    )
    (folder / PIN_FILE).write_bytes(
        msgspec.json.encode(Pin(revision=revision(folder, read_all=True), files={weights.name: pinned}))
    )
    assert await states(is_deep=True) == ("ok", "ok")
    weights.write_bytes(b"two")
    assert (await states())[0] == "fail"
    os.utime(weights, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert await states(is_deep=True) == ("ok", "fail")


def test_command_prints_a_table_and_its_status(
    data: Path, private_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words for each state, one line to do, exit status 0; after something fails, 1. --json says the same."""
    monkeypatch.setenv("CHATD_REDIS_URL", private_url)
    assert main(["doctor", "--data-dir", str(data)]) == 0
    shown = capsys.readouterr().out
    assert "not looked at" in shown
    assert "sealing keys" in shown
    (data / "keys" / "seal.keys").chmod(0o644)
    assert main(["doctor", "--data-dir", str(data)]) == 1
    assert "FAIL" in capsys.readouterr().out
    assert main(["doctor", "--data-dir", str(data), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["is_well"] is False
    assert {each["state"] for each in report["findings"]} >= {"ok", "fail", "unseen"}


def test_no_secret_is_shown(data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither keys nor the passwords of Redis and the ledger are printed, whether they work or not."""
    keys = [line.partition(":")[2] for line in (data / "keys" / "seal.keys").read_text().split()]
    monkeypatch.setenv("CHATD_REDIS_URL", "unix://chatd:hunter2@/nowhere/redis.sock")
    monkeypatch.setenv("CHATD_LEDGER_URL", "postgresql://chatd:hunter3@127.0.0.1:1/chatd")
    for more in ([], ["--json"]):
        assert main(["doctor", "--data-dir", str(data), *more]) == 1
        shown = "".join(capsys.readouterr())
        assert not [secret for secret in (*keys, "hunter2", "hunter3") if secret in shown]


def test_named_front_is_looked_at(
    data: Path, private_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site.toml that is none fails, one whose certificate is away was not looked at, and plain HTTP is refused."""
    monkeypatch.setenv("CHATD_REDIS_URL", private_url)
    site = tmp_path / "site.toml"

    def state(check: str, *arguments: str) -> str:
        main(["doctor", "--data-dir", str(data), "--json", *arguments])
        found = json.loads(capsys.readouterr().out)["findings"]
        return str(next(each["state"] for each in found if each["check"] == check))

    site.write_text("authority = 1 +")
    assert state("certificate", "--site", str(site)) == "fail"
    site.write_text('authority = "chat.hospital.example"\ncertificate = "/nowhere/chat.pem"\n')
    assert state("certificate", "--site", str(site)) == "unseen"
    assert state("tls", "--url", "http://chat.hospital.example") == "fail"
