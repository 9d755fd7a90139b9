"""Two gateways, one session: the fence around the open record stands on both, and a lost epoch is told on both."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chat_client import ChatClient
from tests.server import Hospital, Process

pytestmark = pytest.mark.journeys

Phone = Callable[..., ChatClient]


@pytest.fixture(scope="module")
def other(place: Hospital) -> Process:
    """A second gateway on the same Redis and ledger."""
    return place.serve()


async def open_record(phone: ChatClient, patient_id: str | None, client_msg_id: str) -> None:
    await phone.send({"type": "context_set", "client_msg_id": client_msg_id, "patient_id": patient_id})
    await phone.until("context", client_msg_id=client_msg_id)


async def test_record_opened_on_one_gateway_is_a_fence_on_the_other(phone: Phone, other: Process) -> None:
    """What one phone opens, the other phone of the session asks about, also where another gateway holds it."""
    one, two = phone(session_id="sess_fence"), phone(session_id="sess_fence")
    await one.connect()
    await two.connect(other.url)
    await open_record(one, "7823", "c-1")
    await two.until("context", client_msg_id="c-1")
    assert (await two.ask("Allergies?", None))[-1]["patient_id"] == "7823"
    assert (await two.ask("Allergies?", "7910"))[-1]["code"] == "patient_mismatch"
    await open_record(one, "7910", "c-2")
    await two.until("context", client_msg_id="c-2")
    assert (await two.ask("Allergies?", None))[-1]["patient_id"] == "7910"
    await open_record(one, None, "c-3")
    await two.until("context", client_msg_id="c-3")
    assert (await two.ask("Time targets of STEMI?", None))[-1]["patient_id"] is None


async def test_replayed_switches_leave_the_newest_record_open(phone: Phone, other: Process) -> None:
    """A phone that resumes through old switches of the record stands where the session stands now."""
    one, two = phone(session_id="sess_replay"), phone(session_id="sess_replay")
    await one.connect()
    await two.connect(other.url)
    await two.cut()
    await open_record(one, "7823", "c-1")
    await open_record(one, "7910", "c-2")
    welcome = await two.connect(other.url)
    assert (welcome["resumed"], welcome["replay"]) == (True, 2)
    assert (await two.ask("Allergies?", None))[-1]["patient_id"] == "7910"


async def test_phone_of_a_lost_epoch_never_gets_events_of_the_new_one(
    phone: Phone, place: Hospital, other: Process
) -> None:
    """When Redis has lost a session and one phone goes on in a new epoch, the other is told to start again."""
    one, two = phone(session_id="sess_lost"), phone(session_id="sess_lost")
    await one.connect()
    await two.connect(other.url)
    await one.ask("Allergies?", "7823")
    await two.until("ai_response")
    lost = one.epoch
    with place.redis() as redis:
        # What an expiry or an eviction does to one session.
        for key in redis.scan_iter("*sess_lost*"):
            redis.delete(key)
    await one.cut()
    one.epoch = ""
    await one.connect()
    assert one.epoch != lost
    for n in range(3):
        await one.ask("Allergies?", "7823", client_msg_id=f"n-{n}")
    # The strict phone raises on any durable frame that it counts wrongly; it is closed without one.
    seen = two.seq
    assert await two.closed_with() == 4003
    assert all("seq" not in frame for frame in two.direct if frame["type"] != "welcome")
    assert two.seq == seen
    welcome = await two.connect(other.url)
    assert (welcome["resumed"], welcome["epoch"]) == (False, one.epoch)
