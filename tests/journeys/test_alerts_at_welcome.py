"""What a phone is told of alerts when it comes: without a ledger, and as a client of the original design."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.chat_client import WAIT_S, ChatClient
from tests.server import Hospital, Process

pytestmark = pytest.mark.journeys

DEPARTMENT, DOCTOR = "emergency", "dr.lopes.emergency"


class Phone(ChatClient):
    """A phone that says of itself that it stands at ``alert_seq``."""

    alert_seq = 0

    async def send(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "hello" and "resume" in frame:
            frame["resume"]["alert_seq"] = self.alert_seq
        await super().send(frame)

    async def command(self, **fields: Any) -> dict[str, Any]:
        key = f"k-{secrets.token_hex(6)}"
        await self.send({"client_msg_id": key, **fields})
        return await self.until("accepted", client_msg_id=key)


@pytest.fixture
async def phone(place: Hospital, tokens: Callable[..., str]) -> AsyncIterator[Phone]:
    made = Phone(place.url, department=DEPARTMENT, user_id=DOCTOR, token=tokens(DOCTOR, DEPARTMENT))
    yield made
    await made.close()


@pytest.fixture(scope="module")
def without_ledger(place: Hospital) -> Process:
    """A gateway of the hospital whose ledger cannot be reached."""
    return place.serve({"CHATD_LEDGER_URL": "postgresql://nobody@127.0.0.1:1/none"})


async def told(phone: Phone) -> None:
    """The error that says it is not about a command of the phone, and what it is about."""
    error = await phone.until("error")
    assert (error["code"], error["retryable"], error["client_msg_id"]) == ("internal", True, None)
    assert error["detail"] == "alerts: the ledger does not answer, they will follow"


async def test_phone_that_begins_without_a_ledger_is_let_in_and_told(phone: Phone, without_ledger: Process) -> None:
    """It may ask its questions, and must not take its empty list of alerts for a quiet ward."""
    welcome = await phone.connect(without_ledger.url)
    assert (welcome["resumed"], welcome["gap_reason"], welcome["alert_seq"]) == (False, "first", 0)
    assert phone.snapshot is not None
    assert phone.snapshot["open_alerts"] == []
    await told(phone)
    assert (await phone.ask("Time targets of STEMI?", None))[-1]["status"] == "completed"


async def test_phone_that_resumes_without_a_ledger_keeps_its_place_and_is_told(
    phone: Phone, place: Hospital, without_ledger: Process
) -> None:
    """Its session goes on, its place in the alerts is the one it has named, and what follows will come."""
    await phone.connect(place.url)
    await phone.cut()
    phone.alert_seq = 7
    welcome = await phone.connect(without_ledger.url)
    assert (welcome["resumed"], welcome["gap_reason"], welcome["alert_seq"]) == (True, None, 7)
    await told(phone)


async def test_phone_that_begins_anew_without_a_ledger_gets_what_is_open_when_it_is_back(
    phone: Phone, place: Hospital, without_ledger: Process
) -> None:
    """Its session was lost, and it is let in with an empty list: it must not come back as one that has seen them."""
    await phone.connect(place.url)
    raised = await phone.command(
        type="alert_raise", to={"department": DEPARTMENT}, priority="low", content="Bed 5", requires_action=True
    )
    await phone.cut()
    phone.epoch, phone.alert_seq = "lost", 1
    welcome = await phone.connect(without_ledger.url)
    assert (welcome["resumed"], welcome["gap_reason"], welcome["alert_seq"]) == (False, "epoch_changed", 0)
    await told(phone)
    await phone.cut()
    phone.alert_seq = 0
    welcome = await phone.connect(place.url)
    assert welcome["resumed"]
    await phone.until("system_notification", alert_id=raised["alert_id"])
    await phone.command(type="alert_response", alert_id=raised["alert_id"], answer="done")


async def test_original_client_gets_what_is_open_and_the_notifications(
    phone: Phone, place: Hospital, tokens: Callable[..., str]
) -> None:
    """It hears of the open alerts first, then of what is told by a notification: not of answers, but of the end."""
    await phone.connect(place.url)
    raised = await phone.command(
        type="alert_raise", to={"department": DEPARTMENT}, priority="low", content="Bed 4", requires_action=True
    )
    alert_id = raised["alert_id"]
    async with connect(
        f"{place.url.replace('http', 'ws', 1)}/chat/{DEPARTMENT}/{DOCTOR}",
        additional_headers={"Authorization": f"Bearer {tokens(DOCTOR, DEPARTMENT)}"},
        compression=None,
        open_timeout=WAIT_S,
    ) as original:
        first = await notification(original, alert_id)
        assert (first["content"], first["event"], first["state"], first["alert_seq"]) == (
            "Bed 4",
            "raised",
            "delivering",
            0,
        )
        await phone.command(type="alert_response", alert_id=alert_id, answer="accept")
        await phone.command(type="alert_response", alert_id=alert_id, answer="done")
        end = await notification(original, alert_id)
        assert (end["event"], end["state"]) == ("resolved", "resolved")
        assert end["alert_seq"] > 0


async def notification(original: ClientConnection, alert_id: str) -> dict[str, Any]:
    """The next frame about this alert, which must be a notification; others' alerts may be open too."""
    async with asyncio.timeout(WAIT_S):
        while True:
            frame: dict[str, Any] = json.loads(await original.recv())
            assert frame["type"] == "system_notification"
            if frame["alert_id"] == alert_id:
                return frame


async def test_welcome_says_what_one_is_available_for(phone: Phone, place: Hospital) -> None:
    """Nobody who has said something of themselves has to remember it: it comes with every welcome."""
    welcome = await phone.connect(place.url)
    assert welcome["presence"] == {"state": "available", "until": None, "delegate_to": None, "is_accepted": False}
    await phone.send({"type": "presence", "client_msg_id": "p-1", "state": "off", "delegate_to": "nurse.reis"})
    told = await phone.until("presence", client_msg_id="p-1")
    await phone.cut()
    welcome = await phone.connect(place.url)
    assert welcome["presence"] == {
        "state": "off",
        "until": told["until"],
        "delegate_to": "nurse.reis",
        "is_accepted": False,
    }
    await phone.send({"type": "presence", "client_msg_id": "p-2", "state": "available"})
    await phone.until("presence", client_msg_id="p-2")
