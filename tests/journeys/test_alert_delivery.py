"""Alerts on their way to phones, through real gateways: rung, not rung, replayed, on another server."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypercorn.asyncio import serve
from hypercorn.config import Config
from redis.asyncio import Redis

from chatd import app
from chatd.gateway.auth import mint
from chatd.places import Places
from chatd.readiness import readiness
from chatd.settings import Settings
from tests.chat_client import Broken, ChatClient
from tests.redis_server import RedisServer
from tests.server import Hospital, Process

pytestmark = pytest.mark.journeys

DEPARTMENT = "cardiology"


class AlertPhone(ChatClient):
    """A strict phone that keeps both cursors: an alert event that repeats or leaves a hole fails the test."""

    alert_seq = 0
    has_position = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.alerts: list[dict[str, Any]] = []

    async def send(self, frame: dict[str, Any]) -> None:
        if frame["type"] == "hello" and "resume" in frame:
            frame["resume"]["alert_seq"] = self.alert_seq
        await super().send(frame)

    async def connect(self, url: str | None = None) -> dict[str, Any]:
        welcome = await super().connect(url)
        if not welcome["resumed"]:
            self.alert_seq = welcome["alert_seq"]
        elif welcome["alert_seq"] < self.alert_seq:
            raise Broken("welcome stands before the phone")
        return welcome

    async def receive(self) -> dict[str, Any]:
        frame = await super().receive()
        if frame["type"] in ("system_notification", "alert_update"):
            if frame["alert_seq"] != self.alert_seq + 1:
                raise Broken(f"alert_seq {frame['alert_seq']} after {self.alert_seq}")
            self.alert_seq = frame["alert_seq"]
            self.alerts.append(frame)
        return frame

    async def raise_alert(self, content: str, priority: str = "normal") -> str:
        """Raise an alert to the department; returns its id once it is accepted."""
        msg_id = f"r-{secrets.token_hex(6)}"
        await self.send(
            {
                "type": "alert_raise",
                "client_msg_id": msg_id,
                "to": {"department": DEPARTMENT},
                "priority": priority,
                "content": content,
            }
        )
        return str((await self.until("accepted", client_msg_id=msg_id))["alert_id"])

    async def until_alert(self, alert_id: str) -> dict[str, Any]:
        """The notification of this alert, maybe one that has come already."""
        for alert in self.alerts:
            if alert["type"] == "system_notification" and alert["alert_id"] == alert_id:
                return alert
        return await self.until("system_notification", alert_id=alert_id)


Make = Callable[..., AlertPhone]


@pytest.fixture(scope="module")
def other(place: Hospital) -> Process:
    """A second gateway on the same Redis and ledger."""
    return place.serve()


@pytest.fixture
async def alert_phone(place: Hospital, tokens: Callable[..., str]) -> AsyncIterator[Make]:
    """Makes phones that count alerts; closes them at the end."""
    phones: list[AlertPhone] = []

    def make(user: str = "dr.santos.cardio", url: str = "") -> AlertPhone:
        made = AlertPhone(url or place.url, department=DEPARTMENT, user_id=user, token=tokens(user, DEPARTMENT))
        phones.append(made)
        return made

    yield make
    for each in phones:
        await each.close()


async def test_alert_raised_on_one_gateway_is_heard_on_both(alert_phone: Make, other: Process) -> None:
    """The raiser's own phone, a colleague's here and one on another gateway get the same event in one order."""
    here, there, raiser = alert_phone(), alert_phone(url=other.url), alert_phone()
    for phone in (here, there, raiser):
        await phone.connect()
    for n in range(5):
        by = (raiser, there)[n % 2]
        alert_id = await by.raise_alert(f"New STEMI patient {n}")
        for phone in (here, there, raiser):
            alert = await phone.until_alert(alert_id)
            assert (alert["content"], alert["event"]) == (f"New STEMI patient {n}", "raised")
    assert here.alerts[-5:] == there.alerts[-5:] == raiser.alerts[-5:]


async def test_phone_that_was_away_gets_what_it_missed(alert_phone: Make, other: Process) -> None:
    """A phone that was cut resumes on another gateway with nothing missing; a new one gets the open alerts."""
    phone, raiser = alert_phone(), alert_phone("dr.lima.cardio")
    await phone.connect()
    await raiser.connect()
    await phone.until_alert(await raiser.raise_alert("before"))
    await phone.cut()
    missed = [await raiser.raise_alert(f"meanwhile {n}") for n in range(3)]
    welcome = await phone.connect(other.url)
    assert welcome["resumed"] is True
    for alert_id in missed:
        await phone.until_alert(alert_id)
    fresh = alert_phone()
    welcome = await fresh.connect()
    assert (welcome["resumed"], welcome["gap_reason"]) == (False, "first")
    assert fresh.snapshot is not None
    open_ids = {alert["alert_id"] for alert in fresh.snapshot["open_alerts"]}
    assert set(missed) <= open_ids
    # It stands where welcome says: the next event is the next number.
    await fresh.until_alert(await raiser.raise_alert("afterwards"))


async def test_client_ahead_of_the_ledger_is_told(alert_phone: Make) -> None:
    """A position that the ledger never had is a gap said aloud, with a snapshot."""
    phone = alert_phone()
    await phone.connect()
    await phone.cut()
    phone.alert_seq += 1000
    welcome = await phone.connect()
    assert (welcome["resumed"], welcome["gap_reason"]) == (False, "epoch_changed")
    assert phone.snapshot is not None


async def test_push_and_board_hear_alerts_only(place: Hospital, alert_phone: Make, tokens: Callable[..., str]) -> None:
    """A push extension gets an alert without the patient's id, a board gets it whole."""
    raiser = alert_phone()
    await raiser.connect()
    listeners = {}
    for channel in ("push", "board"):
        phone = alert_phone()
        hello = phone.send

        async def send(frame: dict[str, Any], channel: str = channel, hello: Any = hello) -> None:
            await hello({**frame, "channel": channel} if frame["type"] == "hello" else frame)

        phone.send = send  # type: ignore[method-assign]
        await phone.connect()
        listeners[channel] = phone
    await raiser.send(
        {
            "type": "alert_raise",
            "client_msg_id": "with-patient",
            "to": {"department": DEPARTMENT},
            "priority": "high",
            "content": "Cath lab",
            "patient_id": "7823",
        }
    )
    alert_id = (await raiser.until("accepted", client_msg_id="with-patient"))["alert_id"]
    assert (await listeners["push"].until_alert(alert_id))["patient_id"] is None
    assert (await listeners["board"].until_alert(alert_id))["patient_id"] == "7823"


@pytest.fixture
def frozen_redis(place: Hospital) -> Iterator[Callable[[], None]]:
    """Freezes the private Redis; it is thawed at the end."""
    with place.redis() as redis:
        pid = int(redis.info("server")["process_id"])

    def freeze() -> None:
        os.kill(pid, signal.SIGSTOP)

    yield freeze
    os.kill(pid, signal.SIGCONT)


async def test_alert_without_redis_reaches_both_gateways(
    alert_phone: Make, other: Process, frozen_redis: Callable[[], None]
) -> None:
    """With Redis frozen nothing is rung; the other gateway finds the alert in the ledger by its sweep."""
    raiser, there = alert_phone(), alert_phone(url=other.url)
    await raiser.connect()
    await there.connect()
    frozen_redis()
    alert_id = await raiser.raise_alert("New STEMI patient", priority="critical")
    assert (await there.until_alert(alert_id))["priority"] == "critical"
    assert (await raiser.until_alert(alert_id))["alert_seq"] == there.alert_seq


@pytest.fixture
async def hypercorn(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    """A gateway on hypercorn with the demo hospital; its URL and a token."""
    settings = Settings(data_dir=str(tmp_path), redis_url=redis_server.url, demo=True)
    places = Places(settings)
    application = app.build(settings, places)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(application, config, shutdown_trigger=stop.wait))  # type: ignore[arg-type]
    async with asyncio.timeout(60):
        while not hasattr(application.state, "node") or not (await readiness(application.state.node)).ready:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    token = mint(
        places.jwt_secret(),
        user_id="dr.santos.cardio",
        departments=(DEPARTMENT,),
        roles=("physician",),
        ttl_s=600,
        now=datetime.now(UTC),
    )
    yield f"http://127.0.0.1:{port}", token
    stop.set()
    await serving


async def test_hypercorn_delivers_and_replays(hypercorn: tuple[str, str]) -> None:
    """On a server without the extension alerts come through the outbox, in order, and are replayed."""
    url, token = hypercorn
    raiser, phone = (AlertPhone(url, department=DEPARTMENT, user_id="dr.santos.cardio", token=token) for _ in range(2))
    await raiser.connect()
    await phone.connect()
    await phone.until_alert(await raiser.raise_alert("one"))
    await phone.cut()
    second = await raiser.raise_alert("two")
    assert (await phone.connect())["resumed"] is True
    await phone.until_alert(second)
    await raiser.close()
    await phone.close()
