"""Escalation under faults: gateways killed between any two steps, clocks set, acceptances at the moment of a step."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from chatd.alerts import board
from chatd.alerts.model import Raise, Recorded, Response
from chatd.alerts.policies import Policies
from chatd.alerts.presence import Presence
from chatd.alerts.service import Alerts
from chatd.clock import SystemClock
from chatd.ledger import Ledger, alert_rows
from chatd.ledger.day_keys import DayKeys
from context.seal import KeyRing, Sealer
from protocols.frames import AlertTarget
from tests.faults import escalation
from tests.faults.escalation import DEPARTMENT, POLICIES, POLICY, REPEAT_S, STEP_S

if TYPE_CHECKING:
    from tests.chatd.pg import PostgresServer

pytestmark = pytest.mark.journeys
pytest_plugins = ("tests.chatd.pg",)

RACES = 200
T0 = datetime(2026, 1, 15, 7, 45, tzinfo=UTC)
#: An acceptance and a step that are asked for so far apart may still meet in the database.
MOST_APART_S = 0.004


def test_gateways_killed_and_clocks_set_leave_every_step_once(postgres_binaries: object) -> None:
    """Two gateways on PostgreSQL and one on SQLite, killed in every gap of a chain: each step once, none early."""
    found = escalation.run(seed=7)
    for measured in found.values():
        assert not [gap for gap in escalation.GAPS if not measured.gaps[gap]]
    if escalation.faketime_library() is not None:
        assert found["postgresql"].clocks_set >= len(escalation.CLOCKS)


async def test_acceptance_and_step_on_two_gateways_end_in_one_state(postgres_binaries: object) -> None:
    """Through real gateways: an alert that is accepted at the moment of its step is quiet from then on."""
    with escalation.standing("postgresql") as stand:
        orders = await escalation.races(stand, seed=7, count=12)
    assert orders.total() == 12


@pytest.fixture
async def nodes(postgres_server: PostgresServer, redis: Redis) -> AsyncIterator[tuple[Alerts, Alerts]]:
    """The alerts of two gateways on one PostgreSQL, each with its own connection and thread."""
    url, ring = postgres_server.new_database(), KeyRing.generate()
    ledgers = [Ledger.open(url, timeout_s=20) for _ in range(2)]
    first, second = (
        Alerts(
            ledger,
            DayKeys(Sealer(ring)),
            Policies(json.dumps(POLICIES).encode()),
            Presence(redis),
            clock=SystemClock(),
            mac_key=b"m" * 32,
            node_id=f"n-{n}",
            raises_per_minute=10 * RACES,
        )
        for n, ledger in enumerate(ledgers)
    )
    yield first, second
    for ledger in ledgers:
        await ledger.close()


def raising(n: int) -> Raise:
    """The alert of one race."""
    return Raise(
        key=f"r-{n}",
        raised_by=f"dr.raiser{n}",
        department=DEPARTMENT,
        to=AlertTarget(user="dr.santos.cardio"),
        priority="critical",
        content=f"Race {n}",
        requires_action=True,
        policy=POLICY,
    )


def accepting(n: int, alert_id: str) -> Response:
    """Its acceptance, by whom it calls."""
    return Response(
        key=f"a-{n}",
        user_id="dr.santos.cardio",
        roles=("physician",),
        department=DEPARTMENT,
        alert_id=alert_id,
        answer="accept",
    )


async def test_acceptance_races_a_step_on_two_nodes(nodes: tuple[Alerts, Alerts]) -> None:
    """200 seeded races on one database: before or after the step, never both and never neither; both orders happen."""
    told: list[Recorded] = []
    for node in nodes:
        node.on_recorded = lambda _department, events: told.extend(events)
    orders: Counter[tuple[str, ...]] = Counter()
    for n in range(RACES):
        chance = random.Random(n)
        accepts, steps = nodes if chance.random() < 0.5 else nodes[::-1]
        # Hours apart, so that the end of one alert is not due in the race of another.
        now = T0 + timedelta(hours=n)
        alert_id = (await nodes[0].raise_(raising(n), now)).alert_id
        assert await steps.sweep(now + timedelta(seconds=REPEAT_S)) == 1
        then = now + timedelta(seconds=STEP_S)
        seen = len(told)

        async def accept(by: Alerts, at: datetime, wait_s: float, n: int, alert_id: str) -> None:
            await asyncio.sleep(wait_s)
            await by.respond(accepting(n, alert_id), at)

        async def step(by: Alerts, at: datetime, wait_s: float) -> None:
            await asyncio.sleep(wait_s)
            await by.sweep(at)

        waits_s = chance.uniform(0, MOST_APART_S), chance.uniform(0, MOST_APART_S)
        await asyncio.gather(accept(accepts, then, waits_s[0], n, alert_id), step(steps, then, waits_s[1]))
        # A step that met the acceptance's lock is left for the next round; by then it must be gone, or not be taken.
        for node in nodes:
            assert await node.sweep(then) == 0
        recorded = sorted(told[seen:], key=lambda each: each.alert_seq)
        orders[tuple(json.loads(each.frame)["event"] for each in recorded)] += 1
        alert = await accepts._ledger.read(partial(alert_rows.read, keys=accepts.keys, alert_id=alert_id))
        assert alert is not None
        assert alert.state == "in_progress"
        assert alert.step == len(recorded) - 1
        assert [timer.kind for timer in board.timers(alert)] == ["remind"]
        done = Response(
            key=f"d-{n}",
            user_id="dr.santos.cardio",
            roles=("physician",),
            department=DEPARTMENT,
            alert_id=alert_id,
            answer="done",
        )
        await accepts.respond(done, then)
    assert set(orders) == {("accepted",), ("escalated", "accepted")}, orders
    log = await nodes[0].since(DEPARTMENT, 0, limit=10 * RACES)
    assert sorted(each.alert_seq for each in told) == [each.alert_seq for each in log]
