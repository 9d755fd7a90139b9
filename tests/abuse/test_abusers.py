"""One abuser beside ten phones: all alerts arrive once, the abuser ends as documented, memory and files come back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.abuse.abusers import ABUSES, ENV, Others, beside, strays
from tests.abuse.gateway import faults_in, gateway_pid
from tests.server import Hospital, hospital

pytestmark = pytest.mark.abuse

#: While the abuser is at work; a flood of questions makes facts, and half-open sockets have buffers.
MOST_BYTES = 60_000_000
#: Connections to Redis that a flood of questions has opened stay open; a hundred abusive sockets would be more.
REDIS_FILES = 64


@pytest.fixture(scope="module")
def place() -> Iterator[Hospital]:
    """One gateway for all abusers, one after the other."""
    with hospital(env=ENV) as running:
        yield running


@pytest.mark.parametrize("name", ABUSES)
async def test_one_abuser_takes_nothing_from_the_others(place: Hospital, name: str) -> None:
    """Each alert is on each phone once; the abuser's lines end as the table says; what it cost is given back."""
    pid = gateway_pid(place)
    async with Others(place) as others:
        found = await beside(place, others, name)
    assert found.missed == []
    assert found.beats >= 20
    assert strays(name, found.seen) == set()
    assert set(found.seen) & ABUSES[name][2]
    if name == "slow_reader":
        assert found.closes.get("4002", 0) >= 1
    assert found.most_bytes < MOST_BYTES
    assert found.files <= REDIS_FILES
    assert gateway_pid(place) == pid
    assert faults_in(place.up.log()) == []
