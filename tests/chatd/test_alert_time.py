"""Alerts on a real ledger while clocks are wrong: what is due stays due when it was, on every gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from chatd.alerts import board
from chatd.alerts.model import Alert, Raise, Recorded, Response
from chatd.alerts.policies import Policies
from chatd.alerts.presence import Presence
from chatd.alerts.service import Alerts
from chatd.clock import STEP, SteadyClock
from chatd.ledger import Ledger, Transaction, alert_rows
from chatd.ledger.day_keys import DayKeys
from context.seal import KeyRing, Sealer
from protocols.frames import AlertTarget

if TYPE_CHECKING:
    from tests.chatd.pg import PostgresServer

pytest_plugins = ("tests.chatd.pg",)

RING = KeyRing.generate()
#: The first ring of the shipped policy ``critical`` comes back after this.
RING_S = 15
HOURS = timedelta(hours=2)


class Wall:
    """The machine's clocks, with a wall clock that is off."""

    def __init__(self, off: timedelta = timedelta()) -> None:
        self.off = off
        self.ms = 0

    def now(self) -> datetime:
        return datetime.now(UTC) + self.off

    def monotonic_ms(self) -> int:
        # Stands still, so that a busy machine makes nothing due.
        return self.ms


Make = Callable[..., Alerts]


@pytest.fixture
async def make(redis: Redis) -> AsyncIterator[Make]:
    """Makes the alerts of a gateway whose wall clock is off."""
    ledgers = []

    def new(url: str, clock: Wall) -> Alerts:
        ledger = Ledger.open(url, timeout_s=20)
        ledgers.append(ledger)
        keys = DayKeys(Sealer(RING))
        return Alerts(
            ledger, keys, Policies(), Presence(redis), clock=clock, mac_key=b"m" * 32, node_id=f"n-{len(ledgers)}"
        )

    yield new
    for each in ledgers:
        await each.close()


def command(key: str = "k-1") -> Raise:
    """A critical alert for cardiology."""
    return Raise(
        key=key,
        raised_by="dr.lopes.emergency",
        department="cardiology",
        to=AlertTarget(department="cardiology"),
        priority="critical",
        content="New STEMI patient",
        requires_action=True,
    )


def kept(alerts: Alerts, alert_id: str) -> Callable[..., Alert]:
    """Reads an alert as the ledger has it."""

    def work(tx: Transaction) -> Alert:
        found = alert_rows.read(tx, alerts.keys, alert_id)
        assert found is not None
        return found

    return work


@pytest.mark.parametrize("hours", [2, -2])
async def test_gateway_with_a_wrong_clock_goes_by_the_ledgers(
    make: Make, postgres_server: PostgresServer, hours: int
) -> None:
    """Two gateways on one database, one two hours off: each fires the other's alerts when they are due, not before."""
    url = postgres_server.new_database()
    right, wrong = Wall(), Wall(hours * timedelta(hours=1))
    nodes = make(url, right), make(url, wrong)
    for node in nodes:
        assert await node.hear() == 0
    assert abs(nodes[0].now() - nodes[1].now()) < timedelta(seconds=30)
    assert nodes[1].steady.is_stepped
    for by, other in (nodes, nodes[::-1]):
        base = by.now()
        other.steady = SteadyClock(_At(base))
        raised = await by.raise_(command(f"k-{by.node_id}"), base)
        assert await other.sweep(base + timedelta(seconds=RING_S - 1)) == 0
        assert await other.sweep(base + timedelta(seconds=RING_S, milliseconds=1)) == 1
        assert raised.alert_seq > 0


class _At:
    """A clock that stands."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def now(self) -> datetime:
        return self._moment

    def monotonic_ms(self) -> int:
        return 0


async def test_alert_of_a_fast_clock_keeps_its_waits_when_the_clock_is_put_right(make: Make, ledger_url: str) -> None:
    """Raised two hours in the future, found by a gateway that is right: it rings after its wait, not hours later."""
    fast = make(ledger_url, Wall(HOURS))
    raised = await fast.raise_(command(), fast.now())
    right = make(ledger_url, Wall())
    first = right.now()
    assert await right.sweep(first + timedelta(seconds=60)) == 0  # this is what must not last
    assert await right.hear() == 1
    assert await right.hear() == 0
    now = right.now()
    assert await right.sweep(first + timedelta(seconds=RING_S - 1)) == 0
    assert await right.sweep(now + timedelta(seconds=RING_S + 1)) == 1
    alert = await right._ledger.read(kept(right, raised.alert_id))
    assert alert.rings == 2
    assert alert.raised_at <= now


async def test_alert_of_a_right_clock_is_left_alone(make: Make, ledger_url: str) -> None:
    """Alerts of now, also those that wait for hours, are not touched."""
    node = make(ledger_url, Wall())
    raised = await node.raise_(command(), node.now())
    response = Response(
        key="a-1",
        user_id="dr.santos.cardio",
        roles=("physician",),
        department="cardiology",
        alert_id=raised.alert_id,
        answer="accept",
    )
    await node.respond(response, node.now())
    before = await node._ledger.read(kept(node, raised.alert_id))
    told: list[Recorded] = []
    node.on_recorded = lambda _department, events: told.extend(events)
    assert await node.hear() == 0
    assert await node._ledger.read(kept(node, raised.alert_id)) == before
    assert not told


def test_set_back_keeps_every_wait() -> None:
    """All timers move together: what was due so long after the last change is due so long after now."""
    policy = Policies().choose("cardiology", "critical")
    now = datetime(2026, 1, 15, 7, 45, tzinfo=UTC)
    ahead = now + HOURS
    rings = board.raise_(command(), alert_id="al-1", policy=policy, people=("dr.a",), now=ahead).alert
    accepting = Response(
        key="a-1",
        user_id="dr.a",
        roles=("physician",),
        department="cardiology",
        alert_id="al-1",
        answer="accept",
    )
    accepted = board.respond(rings, accepting, policy, ahead).alert
    offering = replace(accepting, key="a-2", answer="hand_over", colleague="dr.b")
    offered = board.respond(accepted, offering, policy, ahead).alert
    kinds = set()
    for alert in (rings, accepted, offered):
        change = board.set_back(alert, now)
        assert change is not None
        assert change.events == ()
        assert [(timer.kind, timer.due_at - now) for timer in change.timers] == [
            (timer.kind, timer.due_at - ahead) for timer in board.timers(alert)
        ]
        kinds |= {timer.kind for timer in change.timers}
        assert change.alert.raised_at == change.alert.updated_at == now
        assert board.set_back(change.alert, now) is None
        assert board.set_back(alert, ahead - STEP) is None
    assert kinds == {"repeat", "step", "expire", "remind", "lapse"}
