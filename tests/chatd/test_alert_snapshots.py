"""The open alerts that phones begin with: read once for all who come back at once, and never older than the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from chatd.alerts import service
from chatd.alerts.model import Raise, Response
from chatd.alerts.policies import Policies
from chatd.alerts.presence import Here, Presence
from chatd.alerts.service import Alerts
from chatd.clock import SystemClock
from chatd.gateway.pools import Pools
from chatd.ledger import Ledger, alert_rows
from chatd.ledger.day_keys import DayKeys
from context.seal import KeyRing, Sealer
from protocols.frames import AlertTarget

NOW = datetime(2026, 1, 15, 7, 45, tzinfo=UTC)
PHONES = 500


class Node:
    """One gateway's alerts on a ledger of several; counts the lists of open alerts that were read."""

    def __init__(self, url: str, redis: Redis, sealer: Sealer) -> None:
        self.ledger = Ledger.open(url, timeout_s=60)
        self.presence = Presence(redis)
        keys = DayKeys(sealer)
        self.alerts = Alerts(
            self.ledger, keys, Policies(), self.presence, clock=SystemClock(), mac_key=b"m" * 32, node_id="n"
        )

    async def raise_(self, key: str, department: str = "cardiology") -> str:
        command = Raise(
            key=key,
            raised_by="dr.lopes.emergency",
            department=department,
            to=AlertTarget(department=department),
            priority="critical",
            content="Bed 4",
            requires_action=True,
        )
        return (await self.alerts.raise_(command, NOW)).alert_id

    async def answer(self, alert_id: str, answer: str, user: str) -> None:
        given: dict[str, Any] = {"key": f"{user}-{answer}", "user_id": user, "alert_id": alert_id, "answer": answer}
        response = Response(roles=("physician",), department="cardiology", **given)
        if answer in ("delivered", "displayed"):
            self.alerts.receipt(response)
            await self.alerts.flush(NOW)
        else:
            await self.alerts.respond(response, NOW)


Make = Callable[[], Node]


@pytest.fixture
async def make(tmp_path: Path, redis: Redis) -> AsyncIterator[Make]:
    made: list[Node] = []
    sealer = Sealer(KeyRing.generate())

    def new() -> Node:
        made.append(Node(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", redis, sealer))
        return made[-1]

    yield new
    for each in made:
        await each.ledger.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each list of open alerts that was read, by its department."""
    found: list[str] = []
    read = alert_rows.open_alerts

    def counted(*args: Any, **given: Any) -> Any:
        found.append(args[2])
        return read(*args, **given)

    monkeypatch.setattr(alert_rows, "open_alerts", counted)
    return found


async def test_snapshot_says_what_each_alert_says_read_whole(make: Make) -> None:
    """Without the rows of those who have only received it, an open alert says the same: who has it, and who not."""
    node = make()
    node.presence.phones = lambda: [
        Here(department="cardiology", user_id=user, channel="app", roles=("physician",))
        for user in ("a", "b", "c", "d")
    ]
    first, second = await node.raise_("k-1"), await node.raise_("k-2")
    await node.answer(first, "delivered", "b")
    await node.answer(first, "displayed", "d")
    await node.answer(first, "decline", "a")
    await node.answer(first, "accept", "c")
    shown = {each.alert_id: each for each in await node.alerts.open_alerts("cardiology")}
    assert set(shown) == {first, second}
    for alert_id, notification in shown.items():
        view = await node.alerts.view(alert_id)
        assert view is not None
        assert notification == view.notification
    assert [holder.user_id for holder in shown[first].who] == ["a", "c"]


async def test_snapshot_is_read_once_until_something_happens(make: Make, reads: list[str]) -> None:
    """It is given again while nothing happens, and read anew after an event, this gateway's or another's."""
    node, other = make(), make()
    alert_id = await node.raise_("k-1")
    for _ in range(3):
        (shown,) = await node.alerts.open_alerts("cardiology")
        assert (shown.state, shown.who) == ("delivering", ())
    assert reads == ["cardiology"]
    await other.answer(alert_id, "accept", "c")
    (shown,) = await node.alerts.open_alerts("cardiology")
    assert (shown.state, [holder.user_id for holder in shown.who]) == ("in_progress", ["c"])
    await node.answer(alert_id, "done", "c")
    assert await node.alerts.open_alerts("cardiology") == ()
    await other.raise_("k-2", department="icu")
    assert await node.alerts.open_alerts("cardiology") == ()
    assert reads == ["cardiology"] * 3


async def test_snapshots_that_are_kept_are_bounded(
    make: Make, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The department that was read longest ago is forgotten, and read again when it is asked for."""
    monkeypatch.setattr(service, "MAX_OPEN_KEPT", 2)
    node = make()
    for department in ("a", "b", "a", "c", "b", "a"):
        assert await node.alerts.open_alerts(department) == ()
    assert reads == ["a", "b", "c", "a"]


async def test_phones_that_come_back_at_once_cost_a_handful_of_reads(make: Make, reads: list[str]) -> None:
    """500 phones ask where the log ends and what is open: one list is read, and each phone has it."""
    node = make()
    alert_id = await node.raise_("k-1")
    asked: list[Any] = []
    ask = node.ledger.read

    async def counted(work: Callable[..., Any]) -> Any:
        asked.append(work)
        return await ask(work)

    node.ledger.read = counted  # type: ignore[method-assign]
    pools = Pools(node.alerts, SystemClock())

    async def come_back() -> str:
        span = await pools.span("cardiology")
        assert span is not None
        found = await pools.open_alerts("cardiology")
        assert found is not None
        return f"{span.last_seq} {found[0].alert_id}"

    assert set(await asyncio.gather(*(come_back() for _ in range(PHONES)))) == {f"1 {alert_id}"}
    assert reads == ["cardiology"]
    assert len(asked) <= 4
