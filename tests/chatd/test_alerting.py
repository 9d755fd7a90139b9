"""What a phone says of its person, through the gate of the gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, cast

import pytest
from redis.asyncio import Redis

from chatd.alerts import presence
from chatd.alerts.model import Raise
from chatd.alerts.policies import Policies
from chatd.alerts.service import Alerts
from chatd.clock import SystemClock, iso_ms
from chatd.gateway.alerting import answer_alert, set_presence
from chatd.ledger import Ledger, alert_rows
from chatd.ledger.day_keys import DayKeys
from context.seal import KeyRing, Sealer
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import AlertResponse, AlertTarget, Presence, PresenceSet

if TYPE_CHECKING:
    from chatd.gateway.connection import Connection

DOCTORS = ("dr.mendes.cardio", "dr.santos.cardio")


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", timeout_s=60)
    yield opened
    await opened.close()


@pytest.fixture
async def alerts(ledger: Ledger, redis: Redis) -> Alerts:
    sealer = Sealer(KeyRing.generate())
    people = presence.Presence(redis)
    return Alerts(ledger, DayKeys(sealer), Policies(), people, clock=SystemClock(), mac_key=b"m" * 32, node_id="n-1")


async def test_a_person_named_like_a_machine_ends_nothing_of_it(alerts: Alerts) -> None:
    """Whoever the identity provider calls "service:lab" and makes a nurse is not the laboratory."""
    command = Raise(
        key="k-1",
        raised_by="service:lab",
        department="surgery",
        to=AlertTarget(department="surgery"),
        priority="critical",
        content="Potassium 7.1 mmol/L",
        requires_action=True,
    )
    raised = await alerts.raise_(command, alerts.now())
    phone = SimpleNamespace(
        node=SimpleNamespace(alerts=alerts),
        department="cardiology",
        principal=SimpleNamespace(user_id="service:lab", roles=("nurse",)),
    )
    frame = AlertResponse(client_msg_id="r-1", alert_id=raised.alert_id, answer="stand_down")
    with pytest.raises(RemoteProtocolError) as caught:
        await answer_alert(cast("Connection", phone), frame)
    assert caught.value.code is ErrorCode.BAD_REQUEST


async def test_a_delegate_is_asked_by_the_policy_for_it(alerts: Alerts, ledger: Ledger) -> None:
    """Asking somebody to cover calls nobody else when they do not answer, and their acceptance is not asked after."""
    sent: list[Presence] = []
    told: list[str] = []
    alerts.on_recorded = lambda _, events: told.extend(json.loads(each.frame)["event"] for each in events)
    phone = SimpleNamespace(
        node=SimpleNamespace(alerts=alerts),
        user_id=DOCTORS[0],
        department="cardiology",
        lang="pt-PT",
        principal=SimpleNamespace(name="Dr. Mendes", roles=("physician",)),
        send=sent.append,
    )
    frame = PresenceSet(state="in_procedure", client_msg_id="p-1", delegate_to=DOCTORS[1])
    for _ in range(2):
        await set_presence(cast("Connection", phone), frame)
    assert [each.delegate_to for each in sent] == [DOCTORS[1]] * 2
    said = await alerts.presence.state_of(DOCTORS[0])
    assert said is not None
    asked = await ledger.read(lambda tx: alert_rows.read(tx, alerts.keys, said.ask))
    assert asked is not None
    assert (asked.policy, asked.to.user, asked.content) == (
        "cover",
        DOCTORS[1],
        "Dr. Mendes pede-lhe que receba os seus alertas.",
    )
    assert told == ["raised"]
    assert alerts.policies.of(asked).steps == ()


async def test_a_delegate_who_has_accepted_is_not_asked_again_for_less(alerts: Alerts) -> None:
    """Whoever says their presence again stays covered as long as was agreed; for longer, or by another, is asked."""
    sent: list[Presence] = []
    phone = SimpleNamespace(
        node=SimpleNamespace(alerts=alerts),
        user_id=DOCTORS[0],
        department="cardiology",
        lang="en",
        principal=SimpleNamespace(name="Dr. Mendes", roles=("physician",)),
        send=sent.append,
    )
    now = alerts.now()

    async def say(state: Literal["busy", "in_procedure"], hours: float, delegate: str = DOCTORS[1]) -> str:
        """Which alert asks, after saying this."""
        frame = PresenceSet(
            state=state,
            client_msg_id=f"p-{len(sent)}",
            until=iso_ms(now + timedelta(hours=hours)),
            delegate_to=delegate,
        )
        await set_presence(cast("Connection", phone), frame)
        said = await alerts.presence.state_of(DOCTORS[0])
        assert said is not None
        assert (said.state, said.is_accepted, iso_ms(said.until or now)) == (state, sent[-1].is_accepted, frame.until)
        return said.ask

    async def accepts(ask: str) -> None:
        assert await alerts.presence.delegate_answered(ask, DOCTORS[1], accepts=True) == DOCTORS[0]

    first = await say("busy", 2)
    second = await say("busy", 2)
    assert second != first  # who has not accepted is asked for what holds now
    await accepts(second)
    assert await say("in_procedure", 2) == second
    assert await say("busy", 1) == second
    third = await say("busy", 3)
    assert third != second
    await accepts(third)
    assert await say("busy", 3, "dr.vieira.surgery") != third
    assert [each.is_accepted for each in sent] == [False, False, True, True, False, False]
