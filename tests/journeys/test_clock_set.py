"""A gateway whose machine's clock is set by hours: its health says so, open phones stay and get every alert."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypercorn.asyncio import serve
from hypercorn.config import Config
from redis.asyncio import Redis

from chatd import app
from chatd.clock import SystemClock
from chatd.gateway.auth import mint
from chatd.places import Places
from chatd.readiness import readiness
from chatd.settings import Settings
from tests.http_call import call
from tests.journeys.test_alert_delivery import AlertPhone
from tests.redis_server import RedisServer

pytestmark = pytest.mark.journeys

DEPARTMENT, DOCTOR = "cardiology", "dr.santos.cardio"


class SetClock(SystemClock):
    """The machine's clocks, the wall clock set by ``by``."""

    def __init__(self) -> None:
        self.by = timedelta()

    def now(self) -> datetime:
        return super().now() + self.by


class Gateway:
    def __init__(self, url: str, token: str, clock: SetClock) -> None:
        self.url, self.token, self.clock = url, token, clock

    async def phone(self) -> AlertPhone:
        phone = AlertPhone(self.url, department=DEPARTMENT, user_id=DOCTOR, token=self.token)
        await phone.connect()
        return phone

    async def health(self) -> tuple[int, bool, str]:
        """The status of /health/ready, whether it says that a clock is set wrong, and what /health says."""
        ready = await asyncio.to_thread(call, self.url, "/health/ready")
        people = await asyncio.to_thread(call, self.url, "/health")
        return ready.status, ready.json()["clock_stepped"], people.json()["status"]


@pytest.fixture
async def gateway(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with the demo hospital, in this process."""
    settings = Settings(data_dir=str(tmp_path), redis_url=redis_server.url, demo=True)
    places, clock = Places(settings), SetClock()
    application = app.build(settings, places, clock)
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
        user_id=DOCTOR,
        departments=(DEPARTMENT,),
        roles=("physician",),
        ttl_s=600,
        now=datetime.now(UTC),
    )
    yield Gateway(f"http://127.0.0.1:{port}", token, clock)
    stop.set()
    await serving


@pytest.mark.parametrize("hours", [2, -2])
async def test_clock_that_is_set_is_told_and_takes_no_phone_away(gateway: Gateway, hours: int) -> None:
    """Two hours forward or back: health says so until it is right again; phones that were here get what is raised."""
    raiser, phone = await gateway.phone(), await gateway.phone()
    assert await gateway.health() == (200, False, "healthy")
    gateway.clock.by = timedelta(hours=hours)
    assert await gateway.health() == (200, True, "degraded")
    alert_id = await raiser.raise_alert("New STEMI patient", priority="critical")
    assert (await phone.until_alert(alert_id))["priority"] == "critical"
    gateway.clock.by = timedelta()
    assert await gateway.health() == (200, False, "healthy")
    await phone.until_alert(await raiser.raise_alert("another"))
    for each in (raiser, phone):
        await each.close()
