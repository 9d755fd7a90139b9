"""A gateway that is told to stop says goodbye to every phone, finishes or hands over its work, and exits with 0."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.chat_client import WAIT_S, ChatClient
from tests.http_call import call
from tests.journeys.conftest import ENV
from tests.server import STOP_S, Hospital, Process, hospital

pytestmark = pytest.mark.journeys

PHONES = 20
SPREAD_S = 2.0
#: Beside the spread: the time to close a phone that does not read, and the server's own end.
BOUND_S = SPREAD_S + 10.0
DRAINING_ENV = {**ENV, "CHATD_DRAIN_SPREAD_S": str(SPREAD_S)}
Phone = Callable[..., ChatClient]


def terminate(gateway: Process) -> None:
    gateway.process.send_signal(signal.SIGTERM)


async def exit_status(gateway: Process) -> int:
    return await asyncio.to_thread(gateway.process.wait, STOP_S)


@pytest.fixture
async def leaving(place: Hospital) -> AsyncIterator[Process]:
    """A second gateway that the test tells to stop."""
    gateway = await asyncio.to_thread(place.serve, {"CHATD_DRAIN_SPREAD_S": str(SPREAD_S)})
    yield gateway
    await asyncio.to_thread(place.forget, gateway)


async def test_sigterm_says_goodbye_to_every_phone_at_a_moment_of_its_own(
    phone: Phone, place: Hospital, leaving: Process
) -> None:
    """Each of 20 phones gets goaway, then 4000; what it asked just before is answered once, here or elsewhere."""
    phones = [phone() for _ in range(PHONES)]
    for each in phones:
        await each.connect(leaving.url)
    question = {"type": "user_message", "client_msg_id": "m-last", "content": "Allergies?", "patient_id": "7823"}
    for each in phones:
        await each.send(question)
    began = time.monotonic()
    terminate(leaving)
    codes = await asyncio.gather(*(each.to_the_end() for each in phones))
    assert codes == [4000] * PHONES
    assert await exit_status(leaving) == 0
    assert time.monotonic() - began < BOUND_S
    goodbyes = [[frame for frame in each.direct if frame["type"] == "goaway"] for each in phones]
    assert [len(told) for told in goodbyes] == [1] * PHONES
    assert all((told[0]["code"], told[0]["reconnect"]) == (4000, True) for told in goodbyes)
    waits_ms = [told[0]["after_ms"] for told in goodbyes]
    assert all(0 <= wait_ms <= SPREAD_S * 1000 for wait_ms in waits_ms)
    # All within a tenth of the spread by chance: once in 10^18 runs.
    assert max(waits_ms) - min(waits_ms) > SPREAD_S * 100
    for each in phones:
        welcome = await each.connect(place.url)
        assert welcome["resumed"] is True
        if "m-last" not in each.answers:
            await each.send(question)
            await each.until("ai_response", client_msg_id="m-last")
        await each.send({"type": "ping", "t": 1})
        await each.until("pong", t=1)
        assert [answer["status"] for answer in each.answers["m-last"]] == ["completed"]


async def closed_after_alerts(socket: ClientConnection) -> int | None:
    """How it ends; before that, one of the original design is shown the open alerts that other stories have left."""
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                assert json.loads(await socket.recv())["type"] == "system_notification"
    except ConnectionClosed as closed:
        return None if closed.rcvd is None else closed.rcvd.code


async def test_draining_gateway_takes_nothing_new_and_still_stops(
    phone: Phone, place: Hospital, leaving: Process
) -> None:
    """While it drains: questions are to be sent elsewhere, pings are answered, new phones are told to come back."""
    phones = [phone() for _ in range(8)]
    for each in phones:
        await each.connect(leaving.url)
    address = phones[0].url
    silent = await connect(address, subprotocols=["chatd.v1"], compression=None)  # type: ignore[list-item]
    headers = {"Authorization": f"Bearer {phones[0].token}"}
    original = await connect(address, additional_headers=headers, compression=None)
    terminate(leaving)
    goodbyes = [(await each.until("goaway"))["after_ms"] for each in phones]
    last = phones[goodbyes.index(max(goodbyes))]

    ready = await asyncio.to_thread(call, leaving.url, "/health/ready")
    assert (ready.status, ready.json()["draining"]) == (503, True)
    assert (await asyncio.to_thread(call, leaving.url, "/health/live")).status == 200

    refused = (await last.ask("Allergies?", "7823", client_msg_id="m-late"))[-1]
    assert (refused["code"], refused["retryable"]) == ("queue_full", True)
    await last.send({"type": "ping", "t": 5})
    await last.until("pong", t=5)

    late = ChatClient(leaving.url, department="cardiology", user_id="dr.santos.cardio", token=last.token)
    late.socket = await connect(late.url, subprotocols=["chatd.v1"], compression=None)  # type: ignore[list-item]
    assert await late.closed_with() == 4000
    assert [frame["type"] for frame in late.direct] == ["goaway"]
    assert late.direct[0]["reconnect"] is True

    # Who has not said hello yet has nothing to finish.
    told = json.loads(await asyncio.wait_for(silent.recv(), WAIT_S))
    assert (told["type"], told["code"]) == ("goaway", 4000)
    for socket in (silent, original):
        assert await closed_after_alerts(socket) == 4000

    assert set(await asyncio.gather(*(each.to_the_end() for each in phones))) == {4000}
    assert await exit_status(leaving) == 0
    assert "connection_failed" not in leaving.log()
    await last.connect(place.url)
    assert (await last.ask("Allergies?", "7823", client_msg_id="m-late"))[-1]["status"] == "completed"


async def test_up_told_to_stop_leaves_nothing_behind() -> None:
    """SIGTERM to chatd up: phones get goaway and 4000, then Redis, run file and port are gone, with status 0."""
    with hospital(env=DRAINING_ENV) as place:
        token = place.token()
        phone = ChatClient(place.url, department="cardiology", user_id="dr.santos.cardio", token=token)
        await phone.connect()
        socket = place.data / "redis.sock"
        with place.redis() as redis:
            assert redis.ping()
            terminate(place.up)
            assert await phone.to_the_end() == 4000
            assert [frame["type"] for frame in phone.direct] == ["goaway"]
            assert await exit_status(place.up) == 0
            with pytest.raises(RedisConnectionError):
                redis.ping()
        assert not socket.exists()
        assert not (place.data / "run.json").exists()
        with pytest.raises(ConnectionRefusedError):
            call(place.url, "/health/live")
