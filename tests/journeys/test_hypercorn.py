"""The same application on hypercorn: no transport extension, plain sends, the same answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypercorn.asyncio import serve
from hypercorn.config import Config
from redis.asyncio import Redis

from chatd import app
from chatd.gateway.auth import mint
from chatd.places import Places
from chatd.readiness import readiness
from chatd.settings import Settings
from tests.chat_client import ChatClient
from tests.redis_server import RedisServer

pytestmark = pytest.mark.journeys


@pytest.fixture
async def url(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
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
        departments=("cardiology",),
        roles=("physician",),
        ttl_s=600,
        now=datetime.now(UTC),
    )
    yield f"http://127.0.0.1:{port}", token
    stop.set()
    await serving


async def test_hypercorn_answers_and_resumes(url: tuple[str, str]) -> None:
    """On hypercorn a question is answered, and a phone that was cut resumes."""
    address, token = url
    doctor = ChatClient(address, department="cardiology", user_id="dr.santos.cardio", token=token)
    await doctor.connect()
    frames = await doctor.ask("Analyze João Silva's ECG results", "7823")
    assert [frame["type"] for frame in frames] == ["accepted", "facts", "ai_response"]
    await doctor.cut()
    assert (await doctor.connect())["resumed"] is True
    await doctor.close()
