"""What all gateways know: entries travel, the newest wins, and neither a lost nor an absent Redis loses one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from chatd.identity.break_glass import Glass
from chatd.identity.devices import MAX_PENDING, Devices
from chatd.identity.register import DOORBELL, Register, RegisterUnavailable
from chatd.identity.revocation import LONGEST_S, Kind, Revocations
from context.seal import KeyRing, Sealer
from tests.redis_server import RedisServer

NOW = datetime(2026, 1, 15, 7, 45, 20, tzinfo=UTC)
NOW_S = NOW.timestamp()
SEALER = Sealer(KeyRing.generate())


class HandClock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.wall = NOW

    def now(self) -> datetime:
        return self.wall

    def monotonic_ms(self) -> int:
        return round(self.wall.timestamp() * 1000)


@pytest.fixture
def clock() -> HandClock:
    """One clock for all gateways of a test."""
    return HandClock()


@pytest.fixture
def gateway(redis: Redis, clock: HandClock) -> Callable[..., Register]:
    """Makes the register of one more gateway."""

    def make(file: Path | None = None, name: str = "revoked", sealer: Sealer = SEALER) -> Register:
        return Register(redis, sealer, name, clock=clock, file=file)

    return make


# --- the register ---


async def test_entry_reaches_the_other_gateways(gateway: Callable[..., Register], redis: Redis) -> None:
    """What one puts, another has after its next look; a look at what is known asks for nothing."""
    one, two = gateway(), gateway()
    await two.sync()
    async with redis.pubsub() as bell:
        await bell.subscribe(DOORBELL)
        await bell.get_message(timeout=5)
        entry = await one.put("user dr.a", "revoked", until_s=NOW_S + 60)
        ring = await bell.get_message(timeout=5)
    assert ring is not None
    assert ring["type"] == "message"
    assert two.get("user dr.a") is None
    assert await two.sync() is True
    assert two.get("user dr.a") == entry == one.get("user dr.a")
    assert await two.sync() is False


async def test_newest_entry_wins_whatever_the_clocks_say(gateway: Callable[..., Register], clock: HandClock) -> None:
    """A gateway whose clock is behind still changes what another has put."""
    one, two = gateway(), gateway()
    await one.put("device d-1", "revoked")
    clock.wall -= timedelta(hours=1)
    await two.put("device d-1", "lifted")
    clock.wall += timedelta(hours=1)
    await one.sync()
    assert [entry.value for entry in one.entries()] == ["lifted"]


async def test_lost_redis_gets_every_entry_back(gateway: Callable[..., Register], redis: Redis) -> None:
    """After Redis was emptied, the gateways give back what each knows, and a new one has it all."""
    one, two = gateway(), gateway()
    await one.put("user dr.a", "revoked")
    await two.sync()
    await two.put("user dr.b", "revoked")
    await redis.flushall()
    await one.sync()
    await two.sync()
    await one.sync()
    fresh = gateway()
    await fresh.sync()
    assert {entry.key for entry in fresh.entries()} == {"user dr.a", "user dr.b"}
    assert {entry.key for entry in one.entries()} == {"user dr.a", "user dr.b"}


async def test_copy_on_disk_outlives_all_gateways_and_redis(
    gateway: Callable[..., Register], redis: Redis, tmp_path: Path
) -> None:
    """When everything was killed at once, the copy gives each entry back; it is its owner's alone and tells nothing."""
    file = tmp_path / "registers" / "revoked.json"
    await gateway(file).put("user dr.canary", "revoked")
    await redis.flushall()
    again = gateway(file)
    assert again.get("user dr.canary") is not None
    await again.sync()
    other = gateway()
    await other.sync()
    assert other.get("user dr.canary") is not None
    assert b"canary" not in file.read_bytes()
    assert file.stat().st_mode & 0o077 == 0


async def test_nothing_in_redis_can_be_read(gateway: Callable[..., Register], redis: Redis) -> None:
    """Neither keys nor values name a person, a phone or a token."""
    await gateway().put("user dr.canary", "canary")
    for key in await redis.keys("*"):
        assert b"canary" not in key
        kind = await redis.type(key)
        held = await redis.hgetall(key) if kind == b"hash" else {b"": await redis.get(key)}
        assert b"canary" not in b"".join([*held.keys(), *held.values()])


async def test_forged_entries_do_not_count(gateway: Callable[..., Register], redis: Redis) -> None:
    """An entry of another key ring, an old one under a new time, and one moved to another key change nothing."""
    one = gateway()
    await one.put("device d-1", "revoked")
    name = "chatd:register:revoked"
    held: dict[Any, Any] = await redis.hgetall(name)
    ((field, raw),) = held.items()
    stranger = gateway(sealer=Sealer(KeyRing.generate()))
    await stranger.put("device d-1", "lifted")
    at_ms, _, sealed = raw.partition(b":")
    await redis.hset(name, field, b"%d:%b" % (int(at_ms) + 9, sealed))
    await redis.hset(name, b"0" * 32, raw)
    await redis.hset(name, b"1" * 32, b"garbage")
    await redis.set(f"{name}:mark", b"another")
    assert await one.sync() is False
    assert [entry.value for entry in one.entries()] == ["revoked"]


async def test_redis_that_is_away_leaves_what_was_known(
    own_redis_server: RedisServer, own_redis: Redis, clock: HandClock
) -> None:
    """A look that fails raises, keeps the list, and says that it may be old; a put promises nothing."""
    register = Register(own_redis, SEALER, "revoked", clock=clock, file=None)
    await register.put("user dr.a", "revoked")
    own_redis_server.kill()
    for act in (register.sync(), register.put("user dr.b", "revoked")):
        with pytest.raises(RegisterUnavailable):
            await act
    assert register.get("user dr.a") is not None
    assert register.get("user dr.b") is None
    assert not register.is_current
    own_redis_server.start()
    await register.sync()
    assert register.is_current


async def test_entry_ends_and_is_buried(gateway: Callable[..., Register], redis: Redis, clock: HandClock) -> None:
    """An entry counts until its time, and an hour later it is gone everywhere and stays gone."""
    one, two = gateway(), gateway()
    await one.put("token t-1", "revoked", until_s=NOW_S + 60)
    await two.sync()
    clock.wall += timedelta(seconds=59)
    assert one.get("token t-1") is not None
    clock.wall += timedelta(seconds=1)
    assert one.get("token t-1") is None
    assert list(one.entries()) == []
    clock.wall += timedelta(hours=2)
    await redis.delete("chatd:register:revoked:mark")
    await one.sync()
    await redis.delete("chatd:register:revoked:mark")
    await two.sync()
    assert await redis.hlen("chatd:register:revoked") == 0


async def test_puts_at_once_lose_nothing(gateway: Callable[..., Register]) -> None:
    """Many gateways that put at the same time all have everything in the end."""
    gateways = [gateway() for _ in range(4)]
    await asyncio.gather(*(each.put(f"token {n}-{i}", "x") for n, each in enumerate(gateways) for i in range(10)))
    for each in gateways:
        await each.sync()
        assert len(list(each.entries())) == 40


# --- revocations ---


def token(**changes: object) -> dict[str, object]:
    whole: dict[str, object] = {"user_id": "dr.a", "token_id": "t-1", "issued_at_s": NOW_S - 60, "devices": ("d-1",)}
    return whole | changes


@pytest.mark.parametrize(("kind", "name"), [("user", "dr.a"), ("token", "t-1"), ("device", "d-1")])
async def test_revoked_by_person_token_or_phone(
    gateway: Callable[..., Register], clock: HandClock, kind: Kind, name: str
) -> None:
    """Each way refuses this token and leaves the others; lifting it lets the token in again."""
    revocations = Revocations(gateway())
    assert not revocations.is_revoked(**token())  # type: ignore[arg-type]
    await revocations.revoke(kind, name, now_s=NOW_S)
    assert revocations.is_revoked(**token())  # type: ignore[arg-type]
    assert not revocations.is_revoked(**token(user_id="dr.b", token_id="t-2", devices=()))  # type: ignore[arg-type]
    assert [entry.key for entry in revocations.listed()] == [f"{kind} {name}"]
    assert await revocations.lift(kind, name) is True
    assert await revocations.lift(kind, name) is False
    assert not revocations.is_revoked(**token())  # type: ignore[arg-type]
    assert revocations.listed() == []


async def test_revoked_person_can_sign_in_again_unless_for_good(gateway: Callable[..., Register]) -> None:
    """Tokens made before count no longer, also those of a provider whose clock is 5 s ahead; later ones do."""
    revocations = Revocations(gateway())
    await revocations.revoke("user", "dr.a", now_s=NOW_S)
    for issued_at_s, refused in ((NOW_S - 1, True), (NOW_S, True), (NOW_S + 5, True), (NOW_S + 6, False)):
        assert revocations.is_revoked(**token(issued_at_s=issued_at_s)) is refused  # type: ignore[arg-type]
    await revocations.revoke("user", "dr.a", now_s=NOW_S, for_good=True)
    assert revocations.is_revoked(**token(issued_at_s=NOW_S + 9_999_999))  # type: ignore[arg-type]


async def test_revocation_outlives_every_token_it_is_about(gateway: Callable[..., Register], clock: HandClock) -> None:
    """A revoked person or token stays so for the longest life of a token, a phone for ever."""
    revocations = Revocations(gateway())
    for kind, name in (("user", "dr.a"), ("token", "t-1"), ("device", "d-1")):
        await revocations.revoke(kind, name, now_s=NOW_S)  # type: ignore[arg-type]
    clock.wall += timedelta(seconds=LONGEST_S - 1)
    assert len(revocations.listed()) == 3
    clock.wall += timedelta(days=400)
    assert [entry.key for entry in revocations.listed()] == ["device d-1"]


# --- phones ---


async def test_first_phone_is_taken_and_the_next_waits(gateway: Callable[..., Register], clock: HandClock) -> None:
    """A person's first phone is approved by its use, on all gateways; a second one after somebody approves it."""
    one, two = Devices(gateway(name="devices")), Devices(gateway(name="devices"))
    assert await one.meet("dr.a", "d-1", now_s=NOW_S) == "approved"
    assert await two.meet("dr.a", "d-2", now_s=NOW_S) == "pending"
    assert await two.meet("dr.a", "d-1", now_s=NOW_S) == "approved"
    assert await one.meet("dr.b", "d-2", now_s=NOW_S) == "approved"
    await two.approve("dr.a", "d-2")
    assert two.standing("dr.a", "d-2") == "approved"
    assert await one.meet("dr.a", "d-2", now_s=NOW_S) == "approved"
    # Whose id begins like another's is somebody else.
    assert await one.meet("dr", "d-9", now_s=NOW_S) == "approved"


async def test_trying_phones_does_not_fill_the_register(gateway: Callable[..., Register]) -> None:
    """Of one person five phones wait at most; more are refused and not noted."""
    devices = Devices(gateway(name="devices"))
    await devices.meet("dr.a", "d-0", now_s=NOW_S)
    for number in range(1, 20):
        assert await devices.meet("dr.a", f"d-{number}", now_s=NOW_S) == "pending"
    assert len(devices.listed()) == 1 + MAX_PENDING


# --- emergency access ---


async def test_glass_is_open_for_one_person_department_and_record(
    gateway: Callable[..., Register], clock: HandClock, redis: Redis
) -> None:
    """Emergency access is for who asked, from where, to which record, until its end, on all gateways."""
    one, two = gateway(name="glass"), gateway(name="glass")
    glass, other = Glass(one, b"k" * 32), Glass(two, b"k" * 32)
    await glass.open("dr.a", "icu", "7823", until_s=NOW_S + 14_400)
    await two.sync()
    for each in (glass, other):
        assert each.is_open("dr.a", "icu", "7823")
        for asked in (("dr.b", "icu", "7823"), ("dr.a", "surgery", "7823"), ("dr.a", "icu", "7824")):
            assert not each.is_open(*asked)
    assert "7823" not in json.dumps([entry.key for entry in one.entries()])
    clock.wall += timedelta(seconds=14_400)
    assert not glass.is_open("dr.a", "icu", "7823")
