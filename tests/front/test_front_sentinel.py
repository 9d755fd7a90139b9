"""Redis's primary is killed and another promoted: chatd asks the Sentinels, sessions go on, alerts never stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from redis.exceptions import RedisError

from context.store import connect
from tests.chat_client import ChatClient
from tests.front.redis_sentinel import Kept
from tests.server import hospital

pytestmark = pytest.mark.front

#: How long a client tries; how long it took is measured by tests.front.failover.
GIVE_UP_S = 60.0


@pytest.fixture
def kept() -> Iterator[Kept]:
    """Two Redis and three Sentinels that replace the primary after half a second."""
    made = Kept(down_after_ms=500)
    yield made
    made.close()


async def test_client_goes_on_with_the_new_primary(kept: Kept) -> None:
    """What was written is there, writes work again, and busy and idle connections have moved."""
    client = connect(kept.url, timeout_s=1.0, max_connections=8)
    try:
        await asyncio.gather(*(client.set(f"chatd:{number}", number) for number in range(50)))
        old = await asyncio.to_thread(kept.kill_primary)
        new = await asyncio.to_thread(kept.await_other, old)
        async with asyncio.timeout(GIVE_UP_S):
            while True:
                try:
                    await client.set("chatd:after", "1")
                    break
                except (RedisError, OSError):
                    await asyncio.sleep(0.05)
        assert await asyncio.gather(*(client.get(f"chatd:{number}") for number in range(50))) == [
            str(number).encode() for number in range(50)
        ]
        assert kept.ask(new, "GET", "chatd:after") == "1"
    finally:
        await client.aclose()
    assert kept.files() == set()


async def test_a_primary_that_came_back_is_not_written_to(kept: Kept) -> None:
    """The old primary, back as a replica, refuses writes: connections that still lead there find the new one."""
    client = connect(kept.url, timeout_s=1.0, max_connections=2)
    try:
        await client.set("chatd:x", "1")
        old = await asyncio.to_thread(kept.primary)
        # A fail-over by hand: nobody dies, and the client's connections stay open.
        assert kept.ask(kept.sentinel_ports[0], "SENTINEL", "FAILOVER", "chatd") is not None
        new = await asyncio.to_thread(kept.await_other, old)
        async with asyncio.timeout(GIVE_UP_S):
            while kept.ask(new, "GET", "chatd:y") != "2":
                try:
                    await client.set("chatd:y", "2")
                except (RedisError, OSError):
                    await asyncio.sleep(0.05)
    finally:
        await client.aclose()


async def test_events_that_a_failover_lost_are_not_passed_over(kept: Kept) -> None:
    """The replica lacks an answer that a phone has: the phone begins anew, and gets all that is said afterwards."""
    with hospital("--redis", kept.url, env={"CHATD_SWEEP_INTERVAL_S": "0.2", "CHATD_DRAIN_SPREAD_S": "0.1"}) as place:
        token = place.token()
        doctor, other = (
            ChatClient(place.url, department="cardiology", user_id="dr.santos.cardio", token=token, wait_s=GIVE_UP_S)
            for _ in range(2)
        )
        await doctor.connect()
        await other.connect()
        for phone in (doctor, other):
            assert (await phone.ask("Allergies?", "7823"))[-1]["status"] == "completed"
        epoch, seq = doctor.epoch, doctor.seq
        await asyncio.to_thread(kept.cut_replica_off)
        assert (await doctor.ask("Creatinine?", "7823", client_msg_id="m-lost"))[-1]["status"] == "completed"
        lost_seq = doctor.seq
        assert lost_seq > seq
        old = await asyncio.to_thread(kept.kill_primary)
        await asyncio.to_thread(kept.await_other, old)
        # The one with frames that are lost is sent away as soon as the log is looked at.
        assert await doctor.to_the_end() == 4003
        welcome = await doctor.connect()
        assert (welcome["resumed"], welcome["gap_reason"]) == (False, "epoch_changed")
        assert (welcome["epoch"] != epoch, welcome["seq"]) == (True, seq)
        answer = (await doctor.ask("Potassium?", "7823", patient=True))[-1]
        assert (answer["status"], answer["seq"]) == ("completed", lost_seq)
        # The other one holds nothing that was lost: its line and its epoch stay.
        assert (await other.ask("Potassium?", "7823", patient=True))[-1]["epoch"] == other.welcome["epoch"]
        for phone in (doctor, other):
            await phone.close()
        assert "Traceback" not in place.up.log()


async def test_hospital_goes_on_after_a_failover(kept: Kept) -> None:
    """A phone asks before and after; its alerts come meanwhile; nobody is signed out."""
    with hospital("--redis", kept.url, env={"CHATD_SWEEP_INTERVAL_S": "0.2", "CHATD_DRAIN_SPREAD_S": "0.1"}) as place:
        doctor = ChatClient(
            place.url, department="cardiology", user_id="dr.santos.cardio", token=place.token(), wait_s=GIVE_UP_S
        )
        await doctor.connect()
        assert (await doctor.ask("Allergies?", "7823"))[-1]["status"] == "completed"
        old = await asyncio.to_thread(kept.kill_primary)
        assert place.run("alert", "--data-dir", "DIR", "cardiology", "Bed 4").returncode == 0
        await doctor.until("system_notification", content="Bed 4")
        await asyncio.to_thread(kept.await_other, old)
        give_up = time.monotonic() + GIVE_UP_S
        while (answer := (await doctor.ask("Allergies?", "7823"))[-1])["type"] == "error":
            assert answer["retryable"], answer
            assert time.monotonic() < give_up
            await asyncio.sleep(0.1)
        assert answer["status"] == "completed"
        await doctor.close()
        assert "Traceback" not in place.up.log()
