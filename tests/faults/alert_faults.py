"""The faults of the alert campaign as a table: how each begins and ends, where, and how soon all is well again.

A fault is a context manager: up to its ``yield`` it is injected, after it lifted. ``Kind.clock`` says from when
recovery counts, and what may help it:

- ``restart``: from the injection. The lift begins at once, as a supervisor's restart does.
- ``during``: from the injection. Alerts must go on while the fault lasts; it is lifted only afterwards.
- ``after``: from the lift, because nothing can reach the phones before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import msgspec
import redis.asyncio
from sqlalchemy import func, select

from chatd import tasks
from chatd.gateway.node import ALERT_DOORBELL
from chatd.gateway.pools import SWEEP_S
from chatd.ledger import Ledger, alert_rows
from chatd.ledger.tables import ledger_keys
from chatd.replies.sessions import DOORBELL
from tests.faults.alert_promises import Judge
from tests.faults.alert_stand import Gateway, Group, Name, Raiser, Stand, send

#: A fault that nobody felt within this has not happened.
FELT_S: Final = 8.0
#: Receipts of an alert are written once a second; after this long without any event, none is under way.
_QUIET_S: Final = 1.3
#: When sessions were lost: the sweep finds it, the records are loaded again, the phones come back.
ANEW_S: Final = 30.0
#: How slow each command of a slow Redis is.
SLOW_MS: Final = 200


class NotFelt(Exception):
    """The fault did not take hold: what follows would show nothing."""


class Wire(Protocol):
    """What is needed of ``tests.faults.network.Network``."""

    def blackout(self, direction: Literal["up", "down", "both"]) -> None: ...

    def loss(self, percent: int) -> None: ...

    def clear(self) -> None: ...

    def counters(self) -> dict[str, int]: ...


class Scene:
    """What a fault works on. ``near``, ``far`` (behind ``wire``) and ``sleepers`` are the groups of phones."""

    def __init__(self, stand: Stand, raiser: Raiser, judge: Judge, groups: Sequence[Group], wire: Wire | None) -> None:
        self.stand, self.raiser, self.judge, self.wire = stand, raiser, judge, wire
        self.near, self.far, self.sleepers = groups
        self.chance = random.Random(0)
        #: When the fault was lifted, where its end does more than that; in seconds of the monotonic clock.
        self.lifted_at: float | None = None

    @property
    def phones(self) -> list[str]:
        return [*self.near.names, *self.far.names, *self.sleepers.names]

    def victim(self) -> Gateway:
        return self.chance.choice(self.stand.gateways)

    async def refused(self) -> None:
        """Wait until an alert was refused or not answered; raises NotFelt."""
        before = self.raiser.failed
        await self.until(lambda: self.raiser.failed > before, "no alert was refused")

    async def until(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Wait for what must come soon; raises NotFelt."""
        for _ in range(round(FELT_S / 0.02)):
            if condition():
                return
            await asyncio.sleep(0.02)
        raise NotFelt(otherwise)

    async def until_shown(self, words: str, phones: Sequence[str]) -> None:
        """Wait until all of ``phones`` show an alert."""
        await self.until(lambda: all(self.judge.shows(phone, words) for phone in phones), f"{words!r} was not shown")


Fault = AbstractAsyncContextManager[None]
Make = Callable[[Scene], Fault]


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """One row. ``row``: of the fault matrix. ``hold_s``: how long an ``after`` fault lasts. ``bound_s``: recovery."""

    name: str
    stand: Name
    row: int
    make: Make
    clock: Literal["restart", "during", "after"]
    bound_s: float
    hold_s: tuple[float, float] = (0.0, 0.0)
    needs_wire: bool = False


async def _all(*jobs: Callable[[], object]) -> None:
    await asyncio.gather(*(asyncio.to_thread(job) for job in jobs))


# --- gateways -----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def gateway_killed(scene: Scene) -> AsyncIterator[None]:
    victim = scene.victim()
    victim.kill()
    yield
    await _all(victim.start)


@contextlib.asynccontextmanager
async def gateways_killed(scene: Scene) -> AsyncIterator[None]:
    for gateway in scene.stand.gateways:
        gateway.kill()
    yield
    await _all(*(gateway.start for gateway in scene.stand.gateways))


@contextlib.asynccontextmanager
async def gateway_stopped(scene: Scene) -> AsyncIterator[None]:
    victim = scene.victim()
    stopping = asyncio.create_task(asyncio.to_thread(victim.stop))
    yield
    if await stopping != 0:
        raise NotFelt("SIGTERM did not end in a clean exit")
    await _all(victim.start)


@contextlib.asynccontextmanager
async def gateway_frozen(scene: Scene) -> AsyncIterator[None]:
    victim = scene.victim()
    send(victim.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        send(victim.pid, signal.SIGCONT)


# --- Redis --------------------------------------------------------------------------------------------------


async def _all_anew(scene: Scene, begun: dict[str, int]) -> None:
    """Wait until every phone has begun anew: their sessions were lost, and the fault is not over before they know."""
    scene.lifted_at = time.monotonic()
    for _ in range(round(ANEW_S / 0.02)):
        if all(scene.judge.begun(phone) > before for phone, before in begun.items()):
            return
        await asyncio.sleep(0.02)
    raise NotFelt("phones were not told that their sessions were lost")


@contextlib.asynccontextmanager
async def redis_killed(scene: Scene) -> AsyncIterator[None]:
    begun = {phone: scene.judge.begun(phone) for phone in scene.phones}
    scene.stand.redis.kill()
    yield
    await _all(scene.stand.redis.start)
    await _all_anew(scene, begun)


@contextlib.asynccontextmanager
async def redis_frozen(scene: Scene) -> AsyncIterator[None]:
    scene.stand.redis.freeze()
    try:
        yield
    finally:
        scene.stand.redis.thaw()


@contextlib.asynccontextmanager
async def redis_emptied(scene: Scene) -> AsyncIterator[None]:
    begun = {phone: scene.judge.begun(phone) for phone in scene.phones}
    scene.stand.redis.flush()
    yield
    await _all_anew(scene, begun)


@contextlib.asynccontextmanager
async def _client(scene: Scene) -> AsyncIterator[redis.asyncio.Redis]:
    client = scene.stand.redis.client()
    try:
        yield client
    finally:
        await client.aclose()


async def _say(client: redis.asyncio.Redis, *words: str | int) -> None:
    await client.execute_command(*words)  # type: ignore[no-untyped-call]


@contextlib.asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``work`` beside the body."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        # Not one ``cancel``: redis-py may swallow it, and the fault would never be lifted. And whoever ends the
        # campaign meanwhile must not be taken for the end of this.
        await tasks.end([task])


@contextlib.asynccontextmanager
async def redis_slow(scene: Scene) -> AsyncIterator[None]:
    async with _client(scene) as client:

        async def pause() -> None:
            # Every command waits for the end of a pause; between two pauses those that wait are answered.
            while True:
                await _say(client, "CLIENT", "PAUSE", SLOW_MS, "ALL")
                await asyncio.sleep(SLOW_MS / 1000)

        async with _meanwhile(pause()):
            yield


@contextlib.asynccontextmanager
async def doorbell_lost(scene: Scene) -> AsyncIterator[None]:
    async with _client(scene) as client:
        # Nobody may publish on the alerts' channel or listen to it: those who listen are cut off.
        await _say(client, "ACL", "SETUSER", "default", "resetchannels", f"&{DOORBELL}")
        try:
            yield
        finally:
            await _say(client, "ACL", "SETUSER", "default", "allchannels")


@contextlib.asynccontextmanager
async def doorbell_doubled(scene: Scene) -> AsyncIterator[None]:
    async with _client(scene) as client, client.pubsub(ignore_subscribe_messages=True) as heard:
        await heard.subscribe(ALERT_DOORBELL)

        async def echo() -> None:
            async for message in heard.listen():
                department, alert_seq, node_id = message["data"].decode().split(" ")
                if node_id.startswith("echo"):
                    continue
                # Twice to everybody, the sender too; late; and for numbers that are not there yet.
                for number in (int(alert_seq), int(alert_seq), max(1, int(alert_seq) - 3), int(alert_seq) + 5):
                    await client.publish(ALERT_DOORBELL, f"{department} {number} echo-{node_id}")

        async with _meanwhile(echo()):
            yield


# --- the ledger ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def postgres_killed(scene: Scene) -> AsyncIterator[None]:
    postgres = scene.stand.postgres
    assert postgres is not None
    postgres.crash()
    await scene.refused()
    yield
    await _all(postgres.start)


@contextlib.asynccontextmanager
async def postgres_frozen(scene: Scene) -> AsyncIterator[None]:
    postgres = scene.stand.postgres
    assert postgres is not None
    postgres.freeze()
    try:
        await scene.refused()
        yield
    finally:
        postgres.thaw()


def _file(scene: Scene) -> Path:
    return Path(scene.stand.ledger_url.removeprefix("sqlite:///"))


def _open(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)


@contextlib.asynccontextmanager
async def sqlite_locked(scene: Scene) -> AsyncIterator[None]:
    connection = _open(_file(scene))
    try:
        await asyncio.to_thread(connection.execute, "BEGIN IMMEDIATE")
        await scene.refused()
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@contextlib.asynccontextmanager
async def sqlite_full(scene: Scene) -> AsyncIterator[None]:
    assert scene.stand.disk is not None
    filler = scene.stand.disk / "filler"

    def fill() -> None:
        # The log's file is cut first: into what it has already, SQLite could go on writing.
        with contextlib.closing(_open(_file(scene))) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            size = os.statvfs(filler).f_bavail * os.statvfs(filler).f_frsize
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, size)
            file.seek(0, os.SEEK_END)
            while True:
                file.write(bytes(4096))

    try:
        await asyncio.to_thread(fill)
        await scene.refused()
        yield
    finally:
        filler.unlink()


# --- two at once --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def gateway_and_redis_killed(scene: Scene) -> AsyncIterator[None]:
    begun = {phone: scene.judge.begun(phone) for phone in scene.phones}
    victim = scene.victim()
    victim.kill()
    scene.stand.redis.kill()
    yield
    await _all(scene.stand.redis.start, victim.start)
    await _all_anew(scene, begun)


@contextlib.asynccontextmanager
async def redis_and_ledger_gone(scene: Scene) -> AsyncIterator[None]:
    ledger = postgres_killed if scene.stand.name == "pg" else sqlite_locked
    async with redis_killed(scene), ledger(scene):
        yield


# --- phones and their network -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def half_cut(scene: Scene) -> AsyncIterator[None]:
    for group in (scene.near, scene.far, scene.sleepers):
        await group.tell("cut", scene.chance.sample(group.names, (len(group.names) + 1) // 2))
    yield


@contextlib.asynccontextmanager
async def asleep(scene: Scene) -> AsyncIterator[None]:
    send(scene.sleepers.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        send(scene.sleepers.pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def retention_passed(scene: Scene) -> AsyncIterator[None]:
    """Some phones are away while alerts come, are ended, and are forgotten."""
    raiser, judge = scene.raiser, scene.judge
    away = scene.chance.sample(scene.near.names, 5)
    here = [name for name in scene.phones if name not in away]
    told = judge.seen["gap told: too_far"]
    await scene.near.tell("away", away)
    await scene.until(lambda: all(judge.position(name) is None for name in away), "the phones did not go away")
    for _ in range(3):
        words = raiser.words()
        raised = await raiser.by_http(words)
        await scene.until_shown(words, here)
        await raiser.stand_down([raised.alert_id])
        judge.closed(raised.alert_id)
    # Retention never meets what is a second old: there has to be nothing under way that it could take from everybody.
    raiser.is_paused = True
    try:
        await _quiet(scene, here)
        await _retire(scene.stand)
    finally:
        raiser.is_paused = False
    # A gateway looks at its ledger once in a sweep; before, it gives what it still has in memory.
    await asyncio.sleep(SWEEP_S + 0.5)
    yield
    scene.lifted_at = time.monotonic()
    await scene.near.tell("back", away)
    await scene.until(
        lambda: judge.seen["gap told: too_far"] >= told + len(away), "phones were not told that retention had passed"
    )


async def _quiet(scene: Scene, here: Sequence[str]) -> None:
    """Wait until all receipts are written and everybody has everything."""
    stood: set[int | None] = set()
    for _ in range(round(FELT_S / _QUIET_S)):
        now = {scene.judge.position(name) for name in here}
        if now == stood and len(now) == 1:
            return
        stood = now
        await asyncio.sleep(_QUIET_S)
    raise NotFelt("alerts did not come to rest")


async def _retire(stand: Stand) -> None:
    """Destroy the keys of all days so far, as the gateways do when these are older than the retention."""
    ledger = Ledger.open(stand.ledger_url, timeout_s=5.0)

    def newest_of(day: str | None) -> date:
        today = datetime.now(UTC).date()
        return today if day is None else max(today, date.fromisoformat(day))

    try:
        newest = await ledger.read(
            lambda tx: newest_of(tx.connection.execute(select(func.max(ledger_keys.c.day))).scalar())
        )
        # Today's key is destroyed as well: what comes now is sealed with the next day's.
        await ledger.transact(lambda tx: alert_rows.retire(tx, newest + timedelta(days=1)))
    finally:
        await ledger.close()


def _wire(scene: Scene) -> Wire:
    assert scene.wire is not None
    return scene.wire


def _blackout(direction: Literal["up", "down", "both"]) -> Make:
    @contextlib.asynccontextmanager
    async def fault(scene: Scene) -> AsyncIterator[None]:
        wire = _wire(scene)
        before = sum(wire.counters().values())
        await asyncio.to_thread(wire.blackout, direction)
        try:
            yield
        finally:
            dropped = sum(wire.counters().values()) - before
            await asyncio.to_thread(wire.clear)
        if not dropped:
            raise NotFelt("no packet was dropped")

    return fault


@contextlib.asynccontextmanager
async def lossy(scene: Scene) -> AsyncIterator[None]:
    wire = _wire(scene)
    before = sum(wire.counters().values())
    await asyncio.to_thread(wire.loss, 5)
    try:
        yield
        await scene.until(lambda: sum(wire.counters().values()) > before, "no packet was dropped")
    finally:
        await asyncio.to_thread(wire.clear)


# --- the table ----------------------------------------------------------------------------------------------


def _kind(
    name: str,
    stands: str,
    row: int,
    make: Make,
    clock: Literal["restart", "during", "after"],
    bound_s: float,
    hold_s: tuple[float, float] = (0.0, 0.0),
    *,
    needs_wire: bool = False,
) -> tuple[Kind, ...]:
    names: tuple[Name, ...] = ("pg", "sqlite")
    return tuple(
        Kind(
            name=name,
            stand=stand,
            row=row,
            make=make,
            clock=clock,
            bound_s=bound_s,
            hold_s=hold_s,
            needs_wire=needs_wire,
        )
        for stand in names
        if stand in stands.split()
    )


#: ``bound_s`` is the matrix's time for service as usual, doubled for a busy machine of two cores that runs everything;
#: where a gateway must start, its start is added.
_START_S: Final = 8.0
_BOTH: Final = "pg sqlite"

KINDS: Final[tuple[Kind, ...]] = (
    *_kind("gateway SIGKILL", "pg", 2, gateway_killed, "restart", 6.0),
    *_kind("gateway SIGKILL", "sqlite", 4, gateway_killed, "restart", 6.0 + _START_S),
    *_kind("gateway SIGTERM", "pg", 1, gateway_stopped, "restart", 4.0),
    *_kind("gateway SIGTERM", "sqlite", 1, gateway_stopped, "restart", 4.0 + _START_S),
    *_kind("gateway frozen", "pg", 3, gateway_frozen, "during", 10.0),
    *_kind("gateway frozen", "sqlite", 3, gateway_frozen, "after", 10.0, (0.3, 4.0)),
    *_kind("both gateways SIGKILL", "pg", 4, gateways_killed, "restart", 6.0 + _START_S),
    *_kind("Redis SIGKILL", _BOTH, 5, redis_killed, "during", 6.0),
    *_kind("Redis frozen", _BOTH, 6, redis_frozen, "during", 6.0),
    *_kind("Redis emptied", _BOTH, 5, redis_emptied, "during", 6.0),
    *_kind("Redis slow", _BOTH, 6, redis_slow, "during", 6.0),
    *_kind("doorbell lost", "pg", 13, doorbell_lost, "during", 10.0),
    *_kind("doorbell doubled", "pg", 13, doorbell_doubled, "during", 10.0),
    *_kind("PostgreSQL SIGKILL", "pg", 9, postgres_killed, "after", 10.0, (0.0, 1.0)),
    *_kind("PostgreSQL frozen", "pg", 9, postgres_frozen, "after", 10.0, (0.0, 2.0)),
    *_kind("SQLite locked", "sqlite", 8, sqlite_locked, "after", 6.0, (0.0, 2.0)),
    *_kind("SQLite disk full", "sqlite", 8, sqlite_full, "after", 6.0, (0.0, 1.0)),
    *_kind("gateway and Redis SIGKILL", "pg", 14, gateway_and_redis_killed, "restart", 10.0),
    *_kind("gateway and Redis SIGKILL", "sqlite", 14, gateway_and_redis_killed, "restart", 10.0 + _START_S),
    *_kind("Redis and ledger gone", _BOTH, 14, redis_and_ledger_gone, "after", 10.0, (0.0, 1.0)),
    *_kind("half of the phones cut", _BOTH, 24, half_cut, "during", 10.0),
    *_kind("blackout up", _BOTH, 18, _blackout("up"), "after", 15.0, (2.0, 5.0), needs_wire=True),
    *_kind("blackout down", _BOTH, 18, _blackout("down"), "after", 15.0, (2.0, 5.0), needs_wire=True),
    *_kind("blackout both ways", _BOTH, 17, _blackout("both"), "after", 6.0, (2.0, 6.0), needs_wire=True),
    *_kind("5 % loss", _BOTH, 19, lossy, "during", 10.0, needs_wire=True),
    *_kind("phones asleep", _BOTH, 22, asleep, "after", 4.0, (4.0, 6.0)),
    *_kind("retention passed", _BOTH, 12, retention_passed, "after", 2.0),
)
