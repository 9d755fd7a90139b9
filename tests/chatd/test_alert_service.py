"""Alerts on a real ledger and a real Redis: once is once, nothing is promised that is not on disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from chatd.alerts.model import Raise, Recorded, Response
from chatd.alerts.policies import Policies
from chatd.alerts.presence import Availed, Here, Presence
from chatd.alerts.service import RECEIPTS_EVERY_MS, Alerts, SteadyClock
from chatd.ledger import Ledger, LedgerUnavailable
from chatd.ledger.day_keys import DayKeys
from context.seal import KeyRing, Sealer
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import AlertTarget
from tests.redis_server import RedisServer

pytest_plugins = ("tests.chatd.pg",)

T0 = datetime(2026, 1, 15, 7, 45, tzinfo=UTC)
RING = KeyRing.generate()
DOCTORS = ("dr.mendes.cardio", "dr.santos.cardio")


class HandClock:
    """A wall clock and a monotonic one that a test moves, together or the one alone."""

    def __init__(self) -> None:
        self.wall, self.ms = T0, 1_000_000

    def now(self) -> datetime:
        return self.wall

    def monotonic_ms(self) -> int:
        return self.ms

    def pass_s(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.ms += round(seconds * 1000)


class Node:
    """One gateway's alerts with what it has handed to its phones."""

    def __init__(self, url: str, redis: Redis, name: str, **options: Any) -> None:
        self.clock = HandClock()
        self.ledger = Ledger.open(url)
        sealer = Sealer(RING)
        self.presence = Presence(redis)
        self.alerts = Alerts(
            self.ledger,
            DayKeys(sealer),
            Policies(),
            self.presence,
            clock=self.clock,
            mac_key=b"m" * 32,
            node_id=name,
            **options,
        )
        self.told: list[tuple[str, Recorded]] = []
        self.alerts.on_recorded = lambda department, events: self.told.extend((department, each) for each in events)

    def here(self, *users: str, department: str = "cardiology", role: str = "physician") -> None:
        """These people have their apps open on this gateway."""
        self.presence.phones = lambda: tuple(
            Here(department=department, user_id=user, channel="app", roles=(role,)) for user in users
        )

    def events(self) -> list[str]:
        """What was handed to phones, in order."""
        return [json.loads(each.frame)["event"] for _, each in self.told]


Make = Callable[..., Awaitable[Node]]


@pytest.fixture
async def make(tmp_path: Any, redis: Redis) -> AsyncIterator[Make]:
    """Makes gateways' alerts on one SQLite ledger (or the one that is given) and one Redis."""
    made: list[Node] = []

    async def new(name: str = "n-1", url: str = "", client: Redis | None = None, **options: Any) -> Node:
        url = url or f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
        made.append(Node(url, client or redis, name, **options))
        return made[-1]

    yield new
    for each in made:
        await each.ledger.close()


def command(key: str = "k-1", **changes: Any) -> Raise:
    """An alert for cardiology's physicians."""
    given: dict[str, Any] = {
        "key": key,
        "raised_by": "dr.lopes.emergency",
        "department": "cardiology",
        "to": AlertTarget(department="cardiology"),
        "priority": "critical",
        "content": "New STEMI patient, arriving in 5 minutes",
        "requires_action": True,
    }
    return Raise(**{**given, **changes})


def response(alert_id: str, answer: str, user: str = DOCTORS[0], key: str = "", **changes: Any) -> Response:
    """One person's answer under a key of its own."""
    given: dict[str, Any] = {
        "key": key or f"{user}-{answer}",
        "user_id": user,
        "roles": ("physician",),
        "department": "cardiology",
        "alert_id": alert_id,
        "answer": answer,
    }
    return Response(**{**given, **changes})


# --- raising ------------------------------------------------------------------------------------------------


async def test_raise_is_in_the_ledger_and_told(make: Make) -> None:
    """What raise_ returns can be read back, and the same bytes were handed to the phones."""
    node = await make()
    node.here(*DOCTORS)
    raised = await node.alerts.raise_(command(), T0)
    assert (raised.alert_seq, raised.is_duplicate) == (1, False)
    assert raised.reach.online == DOCTORS
    assert await node.alerts.since("cardiology", 0) == tuple(each for _, each in node.told)
    frame = json.loads(node.told[0][1].frame)
    assert (frame["type"], frame["event"], frame["alert_id"]) == ("system_notification", "raised", raised.alert_id)
    (opened,) = await node.alerts.open_alerts("cardiology")
    assert opened.alert_id == raised.alert_id


async def test_raise_twice_is_once(make: Make) -> None:
    """The same key on another gateway gives the same answer, also when other people are here by then."""
    first, second = await make("n-1"), await make("n-2")
    first.here(*DOCTORS)
    raised = await first.alerts.raise_(command(), T0)
    again = await second.alerts.raise_(command(), T0 + timedelta(seconds=9))
    assert (again.alert_id, again.alert_seq, again.reach) == (raised.alert_id, raised.alert_seq, raised.reach)
    assert again.is_duplicate
    assert second.told == []
    assert (await first.alerts.span("cardiology")).last_seq == 1
