"""Handing over through real gateways: two people, two servers, one holder."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.chat_client import ChatClient
from tests.http_call import call
from tests.server import Hospital, Process

pytestmark = pytest.mark.journeys

SANTOS, LIMA = "dr.santos.cardio", "dr.lima.cardio"


class Colleague(ChatClient):
    """A phone that follows the department's alerts and answers them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.events: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        frame = await super().receive()
        if frame["type"] in ("system_notification", "alert_update") and frame["event"] != "receipts":
            self.events.append(frame)
        return frame

    async def say(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Send a command and return its ``accepted``, ``action_update`` or ``error``."""
        msg_id = f"m-{secrets.token_hex(6)}"
        await self.send({**frame, "client_msg_id": msg_id})
        while True:
            found = await self.receive()
            if found.get("client_msg_id") == msg_id:
                return found

    async def raise_and_take(self, content: str) -> str:
        """An alert for the whole department that this person has."""
        to = {"department": "cardiology"}
        raised = await self.say(
            {"type": "alert_raise", "to": to, "priority": "high", "content": content, "requires_action": True}
        )
        alert_id = str(raised["alert_id"])
        assert (await self.answer(alert_id, "accept"))["type"] == "accepted"
        return alert_id

    async def answer(self, alert_id: str, answer: str, **more: Any) -> dict[str, Any]:
        return await self.say({"type": "alert_response", "alert_id": alert_id, "answer": answer, **more})

    async def until_event(self, alert_id: str, event: str) -> dict[str, Any]:
        """This event of the alert, maybe one that has come already."""
        while True:
            for each in self.events:
                if (each["alert_id"], each["event"]) == (alert_id, event):
                    return each
            await self.receive()


Make = Callable[..., Colleague]


@pytest.fixture(scope="module")
def other(place: Hospital) -> Process:
    """A second gateway on the same Redis and ledger."""
    return place.serve()


@pytest.fixture
async def colleague(place: Hospital, tokens: Callable[..., str]) -> AsyncIterator[Make]:
    """Makes phones of cardiology; closes them at the end."""
    phones: list[Colleague] = []

    def make(user: str, url: str = "") -> Colleague:
        made = Colleague(url or place.url, department="cardiology", user_id=user, token=tokens(user, "cardiology"))
        phones.append(made)
        return made

    yield make
    for each in phones:
        await each.close()


def get(place: Hospital, token: str, path: str) -> Any:
    answer = call(place.url, path, headers={"Authorization": f"Bearer {token}"})
    assert answer.status == 200, answer
    return answer.json()


@pytest.fixture
def holders(place: Hospital, tokens: Callable[..., str]) -> Callable[[str], list[str]]:
    """Who has an alert, as anybody of the department is told over HTTP."""

    def ask(alert_id: str) -> list[str]:
        found = get(place, tokens(SANTOS, "cardiology"), f"/v1/alerts/{alert_id}")
        return [one["user_id"] for one in found["who"] if one["answer"] == "accept"]

    return ask


Holders = Callable[[str], list[str]]
#: What was read of who is here is used for a second.
KNOWN_WITHIN_S = 20.0
LOOK_EVERY_S = 0.2


async def pair(place: Hospital, token: str, giver: Colleague, taker: Colleague) -> None:
    """Both are connected, and the giver's gateway knows that the taker is here."""
    await giver.connect()
    await taker.connect()
    for _ in range(round(KNOWN_WITHIN_S / LOOK_EVERY_S)):
        people = get(place, token, "/v1/departments/cardiology/people")["people"]
        if LIMA in {one["user_id"] for one in people if one["is_here"]}:
            return
        await asyncio.sleep(LOOK_EVERY_S)
    raise AssertionError("the successor is not known to be here")


async def test_handover_to_somebody_who_came_a_moment_ago(colleague: Make, other: Process) -> None:
    """Who has just connected to another server may be asked at once: nobody waits for its next beat."""
    newcomer = "dr.novo.cardio"
    giver, taker = colleague(SANTOS), colleague(newcomer, other.url)
    await giver.connect()
    refused = await giver.answer(
        await giver.raise_and_take("Potassium 6.8 mmol/L, bed 3"), "hand_over", colleague=newcomer
    )
    assert refused["code"] == "bad_request"
    await taker.connect()
    alert_id = await giver.raise_and_take("Potassium 6.9 mmol/L, bed 4")
    assert (await giver.answer(alert_id, "hand_over", colleague=newcomer))["type"] == "accepted"
    assert (await taker.answer(alert_id, "take_over"))["type"] == "accepted"


async def test_handover_between_two_gateways(
    colleague: Make, other: Process, place: Hospital, tokens: Callable[..., str], holders: Holders
) -> None:
    """The giver picks who is here, the successor takes it on another server; both phones get the same events."""
    giver, taker = colleague(SANTOS), colleague(LIMA, other.url)
    await pair(place, tokens(SANTOS, "cardiology"), giver, taker)
    alert_id = await giver.raise_and_take("Potassium 6.9 mmol/L, bed 4")
    refused = await giver.answer(alert_id, "hand_over", colleague="dr.nobody")
    assert (refused["type"], refused["code"]) == ("error", "bad_request")
    assert (await giver.answer(alert_id, "hand_over", colleague=LIMA))["type"] == "accepted"
    offered = await taker.until_event(alert_id, "handover_offered")
    assert [(one["from"], one["to"]) for one in offered["handovers"]] == [(SANTOS, LIMA)]
    assert holders(alert_id) == [SANTOS]
    # A phone that comes only now is told of the offer too.
    late = colleague(LIMA)
    await late.connect()
    assert late.snapshot is not None
    (known,) = [one for one in late.snapshot["open_alerts"] if one["alert_id"] == alert_id]
    assert known["handovers"] == offered["handovers"]
    assert (await taker.answer(alert_id, "take_over"))["type"] == "accepted"
    events = [await phone.until_event(alert_id, "handed_over") for phone in (giver, taker, late)]
    assert events[0] == events[1] == events[2]
    assert (events[0]["by"], events[0]["handover"]["from"], events[0]["handovers"]) == (LIMA, SANTOS, [])
    assert holders(alert_id) == [LIMA]
    again = await giver.answer(alert_id, "revoke_handover")
    assert (again["type"], again["code"]) == ("error", "handover_ended")
    assert (await giver.answer(alert_id, "hand_over", colleague=LIMA))["code"] == "forbidden"
    assert (await taker.answer(alert_id, "done"))["type"] == "accepted"


async def test_handover_raced_for_on_two_gateways_has_one_outcome(
    colleague: Make, other: Process, place: Hospital, tokens: Callable[..., str], holders: Holders
) -> None:
    """Taken on one server while it is withdrawn on the other: one of them is accepted, and one person has it."""
    giver, taker = colleague(SANTOS), colleague(LIMA, other.url)
    await pair(place, tokens(SANTOS, "cardiology"), giver, taker)
    for n in range(6):
        alert_id = await giver.raise_and_take(f"Bed {n}: please see the patient")
        assert (await giver.answer(alert_id, "hand_over", colleague=LIMA))["type"] == "accepted"
        await taker.until_event(alert_id, "handover_offered")
        answers = await asyncio.gather(giver.answer(alert_id, "revoke_handover"), taker.answer(alert_id, "take_over"))
        withdrawn, taken = (answer["type"] == "accepted" for answer in answers)
        assert withdrawn != taken, answers
        assert holders(alert_id) == [LIMA if taken else SANTOS]
        await (taker if taken else giver).answer(alert_id, "done")


async def test_action_is_handed_over_and_taken(
    colleague: Make, other: Process, place: Hospital, tokens: Callable[..., str], holders: Holders
) -> None:
    """A proposal becomes an alert that its doctor has; the successor takes it, and nobody confirms the proposal."""
    giver, taker = colleague(SANTOS), colleague(LIMA, other.url)
    await pair(place, tokens(SANTOS, "cardiology"), giver, taker)
    await giver.say({"type": "context_set", "patient_id": "7823"})
    answer = (await giver.ask("Analyze ECG results", "7823"))[-1]
    action = next(
        each for each in answer["content"]["structured_data"]["actions"] if each["catalog_id"] == "schedule_cath_lab"
    )
    step = {"type": "action", "action_id": action["action_id"]}
    assert (await giver.say({**step, "step": "hand_over"}))["code"] == "bad_request"
    assert (await giver.say({**step, "step": "hand_over", "colleague": "dr.nobody"}))["code"] == "bad_request"
    update = await giver.say({**step, "step": "hand_over", "colleague": LIMA})
    assert (update["type"], update["status"], update["confirm_token"]) == ("action_update", "handed_over", None)
    while not (found := [one for one in taker.events if "Schedule Cath Lab" in one.get("content", "")]):
        await taker.receive()
    alert_id = found[0]["alert_id"]
    assert (found[0]["state"], found[0]["patient_id"]) == ("in_progress", "7823")
    assert holders(alert_id) == [SANTOS]
    assert (await giver.say({**step, "step": "prepare"}))["code"] == "action_conflict"
    assert (await taker.answer(alert_id, "take_over"))["type"] == "accepted"
    assert holders(alert_id) == [LIMA]
    assert (await taker.answer(alert_id, "done"))["type"] == "accepted"
