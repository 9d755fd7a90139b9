"""A laboratory's messages, from the engine's line to the phones: the record, the alerts, and what is stale."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.chat_client import WAIT_S, ChatClient
from tests.journeys.conftest import ENV
from tests.server import Hospital, Process

pytestmark = pytest.mark.journeys

DEPARTMENT, DOCTOR, PATIENT = "icu", "dr.faria.icu", "hl7-501"
POTASSIUM = "2823-3^Potassium^LN"


@pytest.fixture(scope="module")
def engine(place: Hospital) -> Iterator[tuple[str, int]]:
    """Where ``chatd hl7 serve`` of the hospital listens."""
    process = Process(["hl7", "serve", "--data-dir", str(place.data), "--port", "0"], ENV)
    try:
        address = urlsplit(process.wait_ready())
        yield address.hostname or "", address.port or 0
    finally:
        process.stop()
        process.close()


@pytest.fixture
async def phone(place: Hospital, tokens: Callable[..., str]) -> AsyncIterator[ChatClient]:
    made = ChatClient(place.url, department=DEPARTMENT, user_id=DOCTOR, token=tokens(DOCTOR, DEPARTMENT))
    yield made
    await made.close()


def stamp(at: datetime) -> str:
    return f"{at:%Y%m%d%H%M%S}+0000"


def message(kind: str, control: str, *rows: str) -> bytes:
    """One message of this patient, sent now."""
    head = (
        rf"MSH|^~\&|LAB|HOSP|CHATD|HOSP|{stamp(datetime.now(UTC))}||{kind}|{control}|P|2.5.1||||||UNICODE UTF-8",
        f"PID|1||{PATIENT}^^^HOSP^MR||Vasconcelos^Benedita||19470309|F",
        f"PV1|1|I|{DEPARTMENT}^01^01^HOSP",
    )
    return "\r".join((*head, *rows, "")).encode()


def potassium(control: str, value: str, flag: str, at: datetime, status: str = "F") -> bytes:
    return message(
        "ORU^R01^ORU_R01",
        control,
        f"OBR|1||L-501|24323-8^Chemistry^LN|||{stamp(at)}",
        f"OBX|1|NM|{POTASSIUM}||{value}|mmol/L|3.5-5.1|{flag}|||{status}|||{stamp(at)}",
    )


async def send(engine: tuple[str, int], block: bytes) -> str:
    """What the message is answered with."""
    reader, writer = await asyncio.open_connection(*engine)
    try:
        writer.write(b"\x0b" + block + b"\x1c\r")
        async with asyncio.timeout(WAIT_S):
            answer = await reader.readuntil(b"\x1c\r")
    finally:
        writer.close()
    return next(row.split("|")[1] for row in answer.decode().split("\r") if row.startswith("MSA"))


async def gather(phone: ChatClient, **wanted: Callable[[dict[str, Any]], bool]) -> dict[str, dict[str, Any]]:
    """The first frame of each kind that is wanted, in whatever order they come."""
    found: dict[str, dict[str, Any]] = {}
    while len(found) < len(wanted):
        frame = await phone.receive()
        for name, is_it in wanted.items():
            if name not in found and is_it(frame):
                found[name] = frame
    return found


def alert(event: str) -> Callable[[dict[str, Any]], bool]:
    return lambda frame: (
        frame["type"] == "system_notification" and frame["event"] == event and frame["patient_id"] == PATIENT
    )


def stale(answer: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    return lambda frame: frame["type"] == "stale" and frame["response_id"] == answer["response_id"]


async def test_critical_result_calls_once_is_corrected_and_marks_answers_stale(
    engine: tuple[str, int], phone: ChatClient, place: Hospital
) -> None:
    """A critical potassium rings once and makes the answer before it stale; its correction does both the other way."""
    began = datetime.now(UTC) - timedelta(minutes=30)
    await phone.connect(place.url)
    assert await send(engine, message("ADT^A01^ADT_A01", "C-1")) == "AA"
    assert await send(engine, potassium("C-2", "4.1", "N", began)) == "AA"
    first = (await phone.ask("Last potassium?", PATIENT))[-1]
    assert "4.1" in first["content"]["text"]
    later = began + timedelta(minutes=20)
    assert await send(engine, potassium("C-3", "6.9", "HH", later)) == "AA"
    heard = await gather(phone, raised=alert("raised"), stale=stale(first))
    ring = heard["raised"]
    assert (ring["priority"], ring["requires_action"], ring["to"]["department"]) == ("critical", True, DEPARTMENT)
    assert "Potassium 6.9 mmol/L" in ring["content"]
    assert heard["stale"]["cause"]["field"]
    second = (await phone.ask("Last potassium?", PATIENT))[-1]
    assert "6.9" in second["content"]["text"]
    # The same again, as an engine sends it, and under a new id: nobody is called twice, nothing is stale.
    for control in ("C-3", "C-4"):
        assert await send(engine, potassium(control, "6.9", "HH", later)) == "AA"
    assert await send(engine, potassium("C-5", "4.6", "N", later, status="C")) == "AA"
    heard = await gather(phone, off=alert("stood_down"), right=alert("raised"), stale=stale(second))
    assert heard["off"]["alert_id"] == ring["alert_id"]
    assert heard["right"]["priority"] == "high"
    assert "4.6" in heard["right"]["content"]
    assert "4.6" in (await phone.ask("Last potassium?", PATIENT))[-1]["content"]["text"]
