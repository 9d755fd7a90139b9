"""The layers of an installation come into Redis from their sources, the same ones whoever loads them."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from redis.asyncio import Redis

from chatd.places import Places, RunFile
from chatd.records import RecordKeeper, demo_patients
from chatd.settings import Settings
from context.layers import PatientLayer
from context.seal import KeyRing, Sealer
from context.store import ContextStore, LoadLost

START = datetime(2026, 1, 15, 7, 30, tzinfo=UTC)


class At:
    """A clock that stands at one moment."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def now(self) -> datetime:
        return self._moment

    def monotonic_ms(self) -> int:
        return 0


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A data directory on which a ``chatd up`` has run since START."""
    made = Places(Settings(data_dir=str(tmp_path)))
    made.prepare()
    made.write_run_file(
        RunFile(pid=os.getpid(), redis_url="", ledger_url="", demo=True, host="127.0.0.1", port=1, started_at=START)
    )
    return made


async def loaded(redis: Redis, places: Places, now: datetime) -> dict[str, str]:
    """Load by a keeper that began at ``now``; returns patients' versions."""
    store = ContextStore(redis, Sealer(KeyRing.generate()))
    await RecordKeeper(store, redis, places, demo=True, clock=At(now)).load()
    assert await store.is_loaded()
    return {patient: (await store.patient(patient)).version for patient in ("7823", "7910")}


async def test_load_by_another_gateway_gives_the_same_demo(redis: Redis, places: Places) -> None:
    """Gateways that began at other times load the same demo record, so what was proposed from it stays valid."""
    first = await loaded(redis, places, START + timedelta(minutes=1))
    later = await loaded(redis, places, START + timedelta(hours=5))
    assert later == first


async def test_load_on_the_next_day_moves_the_demo_along(redis: Redis, places: Places) -> None:
    """The demo is never older than half a day."""
    first = await loaded(redis, places, START)
    assert await loaded(redis, places, START + timedelta(hours=13)) != first


async def test_load_with_a_clock_set_back_puts_nothing_into_the_future(redis: Redis, places: Places) -> None:
    """After the clock was set back the demo is at the clock's now, not at the later start."""
    store = ContextStore(redis, Sealer(KeyRing.generate()))
    now = START - timedelta(hours=2)
    await RecordKeeper(store, redis, places, demo=True, clock=At(now)).load()
    patient = await store.patient("7823")
    assert patient.as_of <= now
    assert all(item.as_of <= now for item in patient.observations if item.as_of is not None)


async def test_redis_lost_while_records_are_read_is_loaded_from_the_beginning(
    redis: Redis, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Departments are put before the records are read; where they are lost meanwhile nothing counts as loaded."""
    store = ContextStore(redis, Sealer(KeyRing.generate()))
    keeper = RecordKeeper(store, redis, places, demo=True, clock=At(START))
    loop = asyncio.get_running_loop()

    async def lose() -> None:
        await redis.flushall()

    def lost_meanwhile(now: datetime, zone: ZoneInfo) -> list[PatientLayer]:
        asyncio.run_coroutine_threadsafe(lose(), loop).result()
        return demo_patients(now, zone)

    with monkeypatch.context() as patched:
        patched.setattr("chatd.records.demo_patients", lost_meanwhile)
        with pytest.raises(LoadLost):
            await keeper.load()
    assert not await store.is_loaded()
    await keeper.load()
    assert [each.department_id for each in await store.departments()] == ["cardiology", "emergency", "icu", "surgery"]
