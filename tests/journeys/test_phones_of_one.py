"""How many phones one person may hold at once: with one more, an older one is closed and told not to come back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.abuse.gateway import closes, token_for
from tests.abuse.wire import WAIT_S, Peer, phone, text
from tests.http_call import call
from tests.server import Hospital, hospital

pytestmark = pytest.mark.journeys

USER = "dr.many"


@pytest.fixture(scope="module")
def place() -> Iterator[Hospital]:
    """A gateway with the limit that it comes with."""
    with hospital(env={"CHATD_CONNECTIONS_PER_USER": "2", "CHATD_DRAIN_SPREAD_S": "0.1"}) as running:
        yield running


class Ward:
    """Opens phones and cuts them at the end."""

    def __init__(self, place: Hospital) -> None:
        self._place = place
        self._phones: list[Peer] = []

    async def phone(self, user: str = USER, department: str = "cardiology", **hello: str) -> Peer:
        token = token_for(self._place, user, department)
        made = await phone(self._place.url, user, department, token, **hello)
        self._phones.append(made)
        return made

    async def leave(self) -> None:
        for each in self._phones:
            await each.leave()


@pytest.fixture
async def ward(place: Hospital) -> AsyncIterator[Ward]:
    made = Ward(place)
    yield made
    await made.leave()


def connections(place: Hospital) -> float:
    """Open WebSockets, as the gateway counts them."""
    words = call(place.url, "/metrics").body.decode()
    return sum(float(count) for count in re.findall(r"chatd_connections\{[^}]*\} (\S+)", words))


async def is_alive(peer: Peer) -> bool:
    """Whether it still gets answers."""
    peer.send(text({"type": "ping", "t": 1}))
    return (await peer.until("pong"))["t"] == 1


async def test_the_third_phone_closes_the_first(place: Hospital, ward: Ward) -> None:
    """The oldest hears goaway and 4505, which means not to come back; the two newer ones and all others stay."""
    before = closes(place).get("4505", 0)
    first = await ward.phone(device_id="d-1", device_kind="phone")
    others = [
        await ward.phone(channel="push"),
        await ward.phone(channel="board"),
        await ward.phone(department="emergency"),
        await ward.phone("dr.other"),
        await ward.phone(device_kind="computer"),
        await ward.phone(),
        await ward.phone(device_id="d-2", device_kind="phone"),
    ]
    assert await is_alive(first)
    third = await ward.phone(device_id="d-3", device_kind="phone")
    goaway = await first.until("goaway")
    assert (goaway["code"], goaway["reconnect"]) == (4505, False)
    assert await first.code() == 4505
    assert [await is_alive(one) for one in (*others, third)] == [True] * 8
    assert closes(place)["4505"] == before + 1


async def test_computers_close_no_phone(ward: Ward) -> None:
    """However many of them their owner opens: the oldest of them goes, and the phone in the pocket stays."""
    carried = await ward.phone("dr.desk", device_kind="phone")
    desks = [await ward.phone("dr.desk", device_kind="computer") for _ in range(3)]
    assert await desks[0].code() == 4505
    assert [await is_alive(one) for one in (carried, *desks[1:])] == [True] * 3


async def test_walls_of_one_account_all_stay(ward: Ward) -> None:
    """A department's boards share an account, and none of them goes for another one."""
    walls = [await ward.phone("dr.walls", channel="board", device_id=f"wall-{n}") for n in range(5)]
    assert [await is_alive(one) for one in walls] == [True] * 5


async def test_a_phone_that_comes_back_replaces_its_own_dead_line(ward: Ward) -> None:
    """With the same device still connected, that one goes, whichever is older."""
    tablet = await ward.phone("dr.two", device_id="d-tablet")
    dead = await ward.phone("dr.two", device_id="d-phone")
    again = await ward.phone("dr.two", device_id="d-phone")
    assert await dead.code() == 4505
    assert await is_alive(tablet)
    assert await is_alive(again)


async def test_who_left_is_not_counted(place: Hospital, ward: Ward) -> None:
    """Beside one that stays, others come and go one after the other, and nobody is closed for those that have gone."""
    held = await ward.phone("dr.often")
    alone = connections(place)
    for _ in range(5):
        one = await ward.phone("dr.often")
        await one.leave()
        async with asyncio.timeout(WAIT_S):
            while connections(place) > alone:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert await is_alive(held)


async def test_a_full_gateway_sends_phones_to_come_back() -> None:
    """Its alerts may be had elsewhere, or here in a moment: a phone that finds no room is not told to stay away."""
    with hospital(env={"CHATD_MAX_CONNECTIONS": "1"}) as small:
        ward = Ward(small)
        first = await ward.phone()
        late = await Peer.dial(small.url)
        assert await late.open("/chat/cardiology/dr.late") == 101
        goaway = await late.until("goaway")
        assert (goaway["code"], goaway["reconnect"], goaway["after_ms"]) == (4005, True, 5_000)
        assert await late.code() == 4005
        await late.leave()
        assert await is_alive(first)
        await first.leave()
        while connections(small):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await is_alive(await ward.phone("dr.late"))
        await ward.leave()
