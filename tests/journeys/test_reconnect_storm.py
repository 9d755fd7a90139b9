"""500 phones come back at once after their only gateway was killed, and after it was told to stop: all go on.

They come through one address, each with its own token, as behind a hospital's address translation, and all in the
moment in which the new gateway listens; real phones spread their tries. How long it took is printed and not judged
here: docs/performance.md tells what was measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from chatd.gateway.auth import mint
from tests.server import START_S, Hospital, hospital

pytestmark = pytest.mark.journeys

PHONES = 500
DEPARTMENT = "cardiology"
#: Phones that connect for the first time, at once; it is their return that is looked at.
AT_ONCE = 25
#: What a phone that was turned away waits before it tries again.
AGAIN_S = 0.5
#: A phone that is not back after this is lost.
LOST_S = 60.0
#: One process here answers the pings of all phones, on a machine that may be busy.
ENV = {"CHATD_DRAIN_SPREAD_S": "0.5", "CHATD_PING_TIMEOUT_S": "60"}


class LightPhone:
    """A phone that only holds its place: its cursors, and by what it was turned away."""

    def __init__(self, url: str, user_id: str, token: str) -> None:
        self.url = f"{url.replace('http', 'ws', 1)}/chat/{DEPARTMENT}/{user_id}"
        self.hello: dict[str, Any] = {"type": "hello", "token": token, "session_id": f"sess_{user_id}"}
        self.socket: ClientConnection | None = None
        self.alert_seq = 0
        self.alerts: list[str] = []
        self.turned_away: Counter[str] = Counter()
        self.took_s = 0.0

    async def enter(self) -> dict[str, Any]:
        """One try; returns the welcome. Raises PermissionError with the server's word against it."""
        self.socket = await connect(
            self.url, subprotocols=[Subprotocol("chatd.v1")], compression=None, ping_interval=None, open_timeout=LOST_S
        )
        await self.socket.send(json.dumps(self.hello))
        welcome: dict[str, Any] = json.loads(await self.socket.recv())
        if welcome["type"] != "welcome":
            raise PermissionError(f"{welcome['type']} {welcome.get('code')}")
        if not welcome["resumed"]:
            snapshot = json.loads(await self.socket.recv())
            assert snapshot["type"] == "snapshot"
            self.alert_seq = welcome["alert_seq"]
        self.hello["resume"] = {"epoch": welcome["epoch"], "seq": welcome["seq"], "alert_seq": self.alert_seq}
        return welcome

    async def come_back(self) -> dict[str, Any]:
        """Try until it is in; counts what it was turned away by."""
        self.hello["resume"]["alert_seq"] = self.alert_seq
        began = time.perf_counter()
        async with asyncio.timeout(LOST_S):
            while True:
                try:
                    welcome = await self.enter()
                except PermissionError as refused:
                    self.turned_away[str(refused)] += 1
                except ConnectionClosed as closed:
                    self.turned_away[f"close {closed.rcvd.code if closed.rcvd else 1006}"] += 1
                except (InvalidHandshake, OSError, EOFError) as error:
                    self.turned_away[type(error).__name__] += 1
                else:
                    self.took_s = time.perf_counter() - began
                    return welcome
                await asyncio.sleep(AGAIN_S)

    async def until_alert(self, alert_id: str) -> None:
        """Take every frame, none twice and none left out, until this alert's."""
        assert self.socket is not None
        while alert_id not in self.alerts:
            frame = json.loads(await self.socket.recv())
            if frame["type"] in ("system_notification", "alert_update"):
                assert frame["alert_seq"] == self.alert_seq + 1
                self.alert_seq = frame["alert_seq"]
                self.alerts.append(frame["alert_id"])

    async def until_closed(self) -> None:
        assert self.socket is not None
        try:
            while True:
                await self.socket.recv()
        except ConnectionClosed:
            return


@pytest.fixture
def place() -> Iterator[Hospital]:
    """A chatd up of this story alone, with the limits it comes with."""
    with hospital(env=ENV) as running:
        yield running


def gateways_of(place: Hospital) -> list[int]:
    """The process ids of the gateways under the chatd up: one, or none while it is being started again."""
    up = place.up.process.pid
    found = []
    with open(f"/proc/{up}/task/{up}/children") as file:
        children = file.read().split()
    for pid in children:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                is_gateway = b"serve" in file.read().split(b"\0")
        except FileNotFoundError:
            continue
        if is_gateway:
            found.append(int(pid))
    return found


def wait_for_another(place: Hospital, before: int) -> None:
    """Until a gateway listens that is not ``before``."""
    parts = urlsplit(place.url)
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if any(pid != before for pid in gateways_of(place)):
            try:
                socket.create_connection((parts.hostname, parts.port), timeout=1).close()
            except OSError:
                pass
            else:
                return
        time.sleep(0.02)
    raise AssertionError("no gateway came back")


def phones_of(place: Hospital) -> list[LightPhone]:
    secret = (place.data / "keys" / "jwt.key").read_text().strip().encode()
    now = datetime.now(UTC)
    names = [f"storm.{number:03d}" for number in range(PHONES)]
    options: dict[str, Any] = {"departments": (DEPARTMENT,), "roles": ("physician",), "ttl_s": 3600, "now": now}
    return [LightPhone(place.url, name, mint(secret, user_id=name, **options)) for name in names]


async def test_all_phones_come_back_at_once(place: Hospital, capsys: pytest.CaptureFixture[str]) -> None:
    """After SIGKILL and after SIGTERM every phone goes on where it stood, hears the next alert, and none is refused."""
    phones = await asyncio.to_thread(phones_of, place)
    for start in range(0, PHONES, AT_ONCE):
        await asyncio.gather(*(phone.enter() for phone in phones[start : start + AT_ONCE]))
    for number in (signal.SIGKILL, signal.SIGTERM):
        (gateway,) = gateways_of(place)
        os.kill(gateway, number)
        async with asyncio.timeout(LOST_S):
            await asyncio.gather(*(phone.until_closed() for phone in phones))
        await asyncio.to_thread(wait_for_another, place, gateway)
        welcomes = await asyncio.gather(*(phone.come_back() for phone in phones))
        took = sorted(phone.took_s for phone in phones)
        with capsys.disabled():
            print(f"\n{PHONES} phones after {number.name}: half are back after {took[PHONES // 2]:.2f} s, ", end="")
            print(f"all after {took[-1]:.2f} s")
        assert Counter(welcome["resumed"] for welcome in welcomes) == {True: PHONES}
        assert sum((phone.turned_away for phone in phones), Counter()) == {}
        words = ("alert", "--data-dir", "DIR", DEPARTMENT, f"After {number.name}")
        raised = await asyncio.to_thread(place.run, *words)
        async with asyncio.timeout(LOST_S):
            await asyncio.gather(*(phone.until_alert(raised.stdout.split()[1]) for phone in phones))
    for phone in phones:
        assert len(set(phone.alerts)) == 2
        if phone.socket is not None:
            phone.socket.transport.abort()
