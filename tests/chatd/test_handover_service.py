"""Handing alerts and actions over on a real ledger: one holder at any moment, on both databases and two gateways."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from chatd.actions.rules import Actor, propose
from chatd.actions.service import Actions
from chatd.alerts.model import Raise, Recorded, Response
from chatd.alerts.policies import Policies
from chatd.alerts.presence import Here, Presence
from chatd.alerts.service import Alerts
from chatd.ledger import Ledger
from chatd.ledger.day_keys import DayKeys
from context.layers import Action, PatientLayer
from context.seal import KeyRing, Sealer
from protocols.errors import ErrorCode, RemoteProtocolError
from protocols.frames import ActionCommand, AlertTarget

pytest_plugins = ("tests.chatd.pg",)

T0 = datetime(2026, 1, 15, 19, 45, tzinfo=UTC)
RING = KeyRing.generate()
SANTOS, MENDES, PIRES = "dr.santos.cardio", "dr.mendes.cardio", "dr.pires.cardio"
NOVO = "dr.novo.cardio"
CARDIOLOGY = AlertTarget(department="cardiology")
JOAO = PatientLayer(patient_id="7823", name="João Silva", as_of=T0, birth_date=date(1959, 1, 15))
CATH = Action(
    id="schedule_cath_lab", label="Schedule Cath Lab", label_pt="Agendar hemodinâmica", risk="confirm",
    fhir="Appointment", priority="stat",
)  # fmt: skip


class HandClock:
    """Stands still: every moment is given."""

    def now(self) -> datetime:
        return T0

    def monotonic_ms(self) -> int:
        return 1_000_000


class Node:
    """One gateway with Dr. Santos, Dr. Mendes and Dr. Pires at their phones."""

    def __init__(self, url: str, redis: Redis, name: str) -> None:
        self.ledger = Ledger.open(url, timeout_s=20.0)
        self.sealer = Sealer(RING)
        self.presence = Presence(redis)
        self.presence.phones = lambda: tuple(
            Here(department="cardiology", user_id=user, channel="app", roles=roles)
            for user, roles in (
                (SANTOS, ("physician",)),
                (MENDES, ("physician",)),
                (PIRES, ("physician",)),
                ("student.reis", ("student",)),
            )
        )
        self.alerts = Alerts(
            self.ledger,
            DayKeys(self.sealer),
            Policies(),
            self.presence,
            clock=HandClock(),
            mac_key=b"m" * 32,
            node_id=name,
        )
        self.told: list[Recorded] = []
        self.alerts.on_recorded = lambda _, events: self.told.extend(events)

    async def answer(self, alert_id: str, user: str, answer: str, *, now: datetime = T0, **changes: Any) -> bool:
        given: dict[str, Any] = {
            "key": f"{user}-{answer}-{now:%H%M%S}",
            "user_id": user,
            "roles": ("physician",),
            "department": "cardiology",
            "alert_id": alert_id,
            "answer": answer,
        }
        return await self.alerts.respond(Response(**(given | changes)), now)

    async def holders(self, alert_id: str) -> list[str]:
        view = await self.alerts.view(alert_id)
        assert view is not None
        return [one.user_id for one in view.notification.who if one.answer == "accept"]


@pytest.fixture
async def nodes(ledger_url: str, redis: Redis) -> AsyncIterator[list[Node]]:
    """Two gateways on one ledger."""
    made = [Node(ledger_url, redis, f"n-{n}") for n in range(2)]
    yield made
    for each in made:
        await each.ledger.close()


async def raised(node: Node, key: str = "k-1", **changes: Any) -> str:
    """An alert that Dr. Santos has."""
    given: dict[str, Any] = {
        "key": key,
        "raised_by": "service:laboratory",
        "department": "cardiology",
        "to": CARDIOLOGY,
        "priority": "high",
        "content": "Potassium 6.9 mmol/L, bed 4",
        "requires_action": True,
        "patient_id": "7823",
    }
    alert_id = (await node.alerts.raise_(Raise(**(given | changes)), T0)).alert_id
    await node.answer(alert_id, SANTOS, "accept", key=f"a-{key}")
    return alert_id


async def log_of(node: Node) -> list[dict[str, Any]]:
    found = await node.alerts.since("cardiology", 0)
    assert [each.alert_seq for each in found] == list(range(1, len(found) + 1))
    return [json.loads(each.frame) for each in found]


async def test_handover_is_in_the_log_with_giver_taker_and_time(nodes: list[Node]) -> None:
    """Offered on one gateway, taken on the other: the log names both people and moments, the snapshot agrees."""
    first, second = nodes
    alert_id = await raised(first)
    offered_at, taken_at = T0 + timedelta(minutes=5), T0 + timedelta(minutes=9)
    assert await first.answer(alert_id, SANTOS, "hand_over", now=offered_at, colleague=MENDES)
    (open_now,) = await second.alerts.open_alerts("cardiology")
    assert [(each.from_, each.to) for each in open_now.handovers] == [(SANTOS, MENDES)]
    assert await first.holders(alert_id) == [SANTOS]
    assert await second.answer(alert_id, MENDES, "take_over", now=taken_at)
    assert await first.holders(alert_id) == [MENDES]
    offered, taken = (await log_of(first))[-2:]
    assert (offered["event"], offered["by"], offered["timestamp"]) == (
        "handover_offered", SANTOS, "2026-01-15T19:50:00.000Z",
    )  # fmt: skip
    assert (taken["event"], taken["by"], taken["timestamp"]) == ("handed_over", MENDES, "2026-01-15T19:54:00.000Z")
    assert taken["handover"] == offered["handover"] | {"from": SANTOS, "to": MENDES, "at": "2026-01-15T19:50:00.000Z"}
    assert taken["handovers"] == []
    (open_now,) = await first.alerts.open_alerts("cardiology")
    assert open_now.handovers == ()


async def test_handover_sent_twice_is_one(nodes: list[Node]) -> None:
    """The same offer and the same acceptance again, also on another gateway, change nothing."""
    first, second = nodes
    alert_id = await raised(first)
    for node, is_new in ((first, True), (second, False)):
        assert await node.answer(alert_id, SANTOS, "hand_over", colleague=MENDES) == is_new
    for node, is_new in ((second, True), (first, False)):
        assert await node.answer(alert_id, MENDES, "take_over") == is_new
    assert [each["event"] for each in await log_of(first)] == ["raised", "accepted", "handover_offered", "handed_over"]
    with pytest.raises(RemoteProtocolError) as refused:
        await first.answer(alert_id, SANTOS, "hand_over", colleague=PIRES)
    assert refused.value.code == ErrorCode.BAD_REQUEST


async def test_handover_that_two_gateways_race_for_has_one_holder(nodes: list[Node]) -> None:
    """Taken, withdrawn and given to another at one moment: after each of them one person has it, and only one."""
    for n in range(6):
        alert_id = await raised(nodes[0], f"k-{n}", patient_id=f"78{n}")
        await nodes[0].answer(alert_id, SANTOS, "hand_over", key=f"h-{n}", colleague=MENDES)
        rival: tuple[str, dict[str, Any]] = ("revoke_handover", {}) if n % 2 else ("hand_over", {"colleague": PIRES})
        outcomes = await asyncio.gather(
            nodes[n % 2].answer(alert_id, MENDES, "take_over", key=f"t-{n}"),
            nodes[1 - n % 2].answer(alert_id, SANTOS, rival[0], key=f"r-{n}", **rival[1]),
            return_exceptions=True,
        )
        taken, other = (outcome is True for outcome in outcomes)
        assert taken != other, outcomes
        lost = next(each for each in outcomes if each is not True)
        assert isinstance(lost, RemoteProtocolError)
        assert lost.code in {ErrorCode.HANDOVER_ENDED, ErrorCode.FORBIDDEN}
        assert await nodes[1].holders(alert_id) == [MENDES if taken else SANTOS]
    held: dict[str, list[str]] = {}
    for frame in await log_of(nodes[0]):
        if frame["event"] == "raised":
            continue
        holders = [one["user_id"] for one in frame["who"] if one["answer"] == "accept"]
        assert len(holders) == 1
        held.setdefault(frame["alert_id"], []).append(holders[0])
    assert len(held) == 6


async def test_handover_lapses_once_on_two_gateways(nodes: list[Node]) -> None:
    """Half an hour later it is the giver's alone again, said once; a successor who comes late hears it."""
    alert_id = await raised(nodes[0])
    await nodes[0].answer(alert_id, SANTOS, "hand_over", colleague=MENDES)
    due = T0 + timedelta(minutes=30, milliseconds=1)
    assert await nodes[0].alerts.sweep(T0 + timedelta(minutes=29, seconds=59)) == 0
    assert sum(await asyncio.gather(*(node.alerts.sweep(due) for node in nodes))) == 1
    assert [each["event"] for each in await log_of(nodes[0])][-1] == "handover_lapsed"
    with pytest.raises(RemoteProtocolError) as refused:
        await nodes[1].answer(alert_id, MENDES, "take_over", now=due)
    assert refused.value.code == ErrorCode.HANDOVER_ENDED
    assert await nodes[1].holders(alert_id) == [SANTOS]


async def test_handover_goes_to_somebody_who_is_known_here(nodes: list[Node]) -> None:
    """A stranger, an onlooker and nobody are refused; the list of colleagues names whom one may ask."""
    alert_id = await raised(nodes[0])
    for colleague in ("dr.nobody", "student.reis", None):
        with pytest.raises(RemoteProtocolError) as refused:
            await nodes[0].answer(alert_id, SANTOS, "hand_over", colleague=colleague)
        assert refused.value.code == ErrorCode.BAD_REQUEST
    present = await nodes[0].alerts.colleagues("cardiology")
    assert {record.user_id for record in present.records} == {SANTOS, MENDES, PIRES}


async def test_handover_goes_to_somebody_who_has_just_come_on_another_gateway(nodes: list[Node]) -> None:
    """Nobody is refused by the list of a second ago; who is asked for then is still a stranger where they are one."""
    alert_id = await raised(nodes[0])
    assert NOVO not in {record.user_id for record in (await nodes[0].alerts.colleagues("cardiology")).records}
    nodes[1].presence.phones = lambda: (
        Here(department="cardiology", user_id=NOVO, channel="app", roles=("physician",)),
        Here(department="cardiology", user_id="student.novo", channel="app", roles=("student",)),
    )
    await nodes[1].presence.beat()
    for colleague in ("dr.nobody", "student.novo"):
        with pytest.raises(RemoteProtocolError) as refused:
            await nodes[0].answer(alert_id, SANTOS, "hand_over", key=f"h-{colleague}", colleague=colleague)
        assert refused.value.code == ErrorCode.BAD_REQUEST
    assert await nodes[0].answer(alert_id, SANTOS, "hand_over", colleague=NOVO)


async def test_action_is_handed_over_as_an_alert_that_was_never_nobodys(nodes: list[Node]) -> None:
    """Its person's proposal ends and the alert begins in one transaction, had by them until the successor takes it."""
    node = nodes[0]
    key = node.sealer.derive("confirm-token")
    actions = Actions(node.ledger, token_key=key, sealer=node.sealer, pseudonym_key=key)
    about = propose(
        CATH, response_id="resp_1", session_id="sess_1", department="cardiology", user_id=SANTOS, patient=JOAO,
        context_hash="h-1", now=T0,
    )  # fmt: skip
    actor = Actor(user_id=SANTOS, department="cardiology", roles=("physician",))
    command = ActionCommand(client_msg_id="m-1", action_id=about.action_id, step="hand_over", colleague=MENDES)
    wanted = Raise(
        key=f"!handover:{about.action_id}", raised_by=SANTOS, department="cardiology", to=AlertTarget(user=SANTOS),
        priority="normal", content="Handed over: Schedule Cath Lab", requires_action=True, patient_id="7823",
        hand_to=MENDES,
    )  # fmt: skip

    async def send(command: ActionCommand) -> str:
        raising = await node.alerts.prepare(wanted, T0)
        update = await actions.command(
            command, about, actor=actor, patient=None, context_hash="h-9", now=T0, also=raising.commit
        )
        node.alerts.committed(raising)
        return update.status

    assert [await send(command), await send(command)] == ["handed_over", "handed_over"]
    (alert,) = await node.alerts.open_alerts("cardiology")
    assert (alert.state, alert.patient_id, alert.content) == ("in_progress", "7823", "Handed over: Schedule Cath Lab")
    assert [(one.user_id, one.answer) for one in alert.who] == [(SANTOS, "accept")]
    assert [(one.from_, one.to) for one in alert.handovers] == [(SANTOS, MENDES)]
    assert [each["event"] for each in await log_of(node)] == ["raised", "handover_offered"]
    # What was handed over is nobody's to confirm any more, and expires nowhere.
    with pytest.raises(RemoteProtocolError) as refused:
        await send(ActionCommand(client_msg_id="m-2", action_id=about.action_id, step="prepare"))
    assert refused.value.code in {ErrorCode.ACTION_CONFLICT, ErrorCode.PATIENT_MISMATCH}
    assert await actions.expire(T0 + timedelta(hours=1)) == ()
    await nodes[1].answer(alert.alert_id, MENDES, "take_over")
    assert await node.holders(alert.alert_id) == [MENDES]
    assert await nodes[1].answer(alert.alert_id, MENDES, "done")


async def test_action_is_not_handed_over_where_its_alert_cannot_be_raised(nodes: list[Node]) -> None:
    """Both or neither: an alert that fails leaves the proposal as it was."""
    node = nodes[0]
    key = node.sealer.derive("confirm-token")
    actions = Actions(node.ledger, token_key=key, sealer=node.sealer, pseudonym_key=key)
    about = propose(
        CATH, response_id="resp_1", session_id="sess_1", department="cardiology", user_id=SANTOS, patient=JOAO,
        context_hash="h-1", now=T0,
    )  # fmt: skip

    def fails(_: object) -> None:
        raise RemoteProtocolError(ErrorCode.ROLE_UNASSIGNED)

    async def send(step: Any, **changes: Any) -> str:
        command = ActionCommand(client_msg_id=f"m-{step}", action_id=about.action_id, step=step, **changes)
        actor = Actor(user_id=SANTOS, department="cardiology", roles=("physician",))
        update = await actions.command(
            command, about, actor=actor, patient=JOAO, context_hash="h-1", now=T0, also=fails
        )
        return update.status

    with pytest.raises(RemoteProtocolError) as refused:
        await send("hand_over", colleague=MENDES)
    assert refused.value.code == ErrorCode.ROLE_UNASSIGNED
    for colleague in (None, SANTOS):
        with pytest.raises(RemoteProtocolError) as refused:
            await send("hand_over", colleague=colleague)
        assert refused.value.code == ErrorCode.BAD_REQUEST
    assert await send("prepare") == "prepared"
