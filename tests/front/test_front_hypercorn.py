"""The same application on hypercorn: on a Unix socket behind nginx, and by HTTP/2 WebSockets (RFC 8441) over TLS."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypercorn.asyncio import serve
from hypercorn.config import Config
from redis.asyncio import Redis
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from chatd import app
from chatd.gateway.auth import mint
from chatd.places import Places
from chatd.readiness import readiness
from chatd.settings import Settings
from tests.chat_client import WAIT_S, ChatClient
from tests.front.front_nginx import Front, free_port
from tests.redis_server import RedisServer

pytestmark = pytest.mark.front

USER = "dr.santos.cardio"


class Served:
    """A gateway on hypercorn: its Unix socket, its TLS port and a token."""

    def __init__(self, front: Front, uds: Path, port: int, token: str) -> None:
        self.front, self.uds, self.port, self.token = front, uds, port, token


@pytest.fixture
def corn_front() -> Iterator[tuple[Front, Path]]:
    """nginx before a socket on which a gateway will listen."""
    with tempfile.TemporaryDirectory(prefix="hc-") as folder:
        uds = Path(folder) / "g.sock"
        made = Front({"a": f"unix:{uds}"})
        try:
            made.start()
            yield made, uds
        finally:
            made.stop()


@pytest.fixture
async def served(
    corn_front: tuple[Front, Path], redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> AsyncIterator[Served]:
    """A gateway on hypercorn with the demo hospital."""
    front, uds = corn_front
    settings = Settings(data_dir=str(tmp_path), redis_url=redis_server.url, demo=True)
    places = Places(settings)
    application = app.build(settings, places)
    port = free_port()
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.insecure_bind = [f"unix:{uds}"]
    config.certfile, config.keyfile = str(front.authority.certificate), str(front.authority.key)
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(application, config, shutdown_trigger=stop.wait))  # type: ignore[arg-type]
    async with asyncio.timeout(60):
        while not hasattr(application.state, "node") or not (await readiness(application.state.node)).ready:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    token = mint(
        places.jwt_secret(),
        user_id=USER,
        departments=("cardiology",),
        roles=("physician",),
        ttl_s=600,
        now=datetime.now(UTC),
    )
    yield Served(front, uds, port, token)
    stop.set()
    await serving


async def test_hypercorn_on_a_unix_socket_answers_through_nginx(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the same nginx, hypercorn on a Unix socket answers and resumes as uvicorn does."""
    monkeypatch.setenv("SSL_CERT_FILE", str(served.front.authority.ca))
    doctor = ChatClient(served.front.url, department="cardiology", user_id=USER, token=served.token)
    await doctor.connect()
    assert (await doctor.ask("Allergies?", "7823"))[-1]["status"] == "completed"
    await doctor.cut()
    assert (await doctor.connect())["resumed"] is True
    await doctor.close()


class Http2Socket:
    """One WebSocket in one stream of an HTTP/2 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._bytes = StreamReader()
        self._headers: dict[str, str] = {}
        self._stream = 0

    async def open(self, authority: str, path: str) -> dict[str, str]:
        """Extended CONNECT; returns the answer's headers."""
        self._h2.initiate_connection()
        await self._flush()
        while not self._h2.remote_settings.enable_connect_protocol:
            await self._read()
        self._stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(
            self._stream,
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "https"),
                (":path", path),
                (":authority", authority),
                ("sec-websocket-version", "13"),
                ("sec-websocket-protocol", "chatd.v1"),
            ],
        )
        await self._flush()
        while not self._headers:
            await self._read()
        return self._headers

    async def send(self, frame: dict[str, Any]) -> None:
        data = Frame(Opcode.TEXT, json.dumps(frame).encode()).serialize(mask=True)
        self._h2.send_data(self._stream, data)
        await self._flush()

    async def receive(self) -> dict[str, Any]:
        """The next JSON frame."""
        while True:
            parser = Frame.parse(self._bytes.read_exact, mask=False)
            while True:
                try:
                    next(parser)
                except StopIteration as parsed:
                    frame: Frame = parsed.value
                    break
                await self._read()
            if frame.opcode is Opcode.TEXT:
                answer: dict[str, Any] = json.loads(bytes(frame.data))
                return answer

    async def _read(self) -> None:
        data = await asyncio.wait_for(self._reader.read(65_536), WAIT_S)
        assert data, "the connection has ended"
        for event in self._h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self._headers = {str(name): str(value) for name, value in event.headers or ()}
            elif isinstance(event, h2.events.DataReceived):
                self._bytes.feed_data(event.data or b"")
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, self._stream)
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                raise AssertionError(repr(event))
        await self._flush()

    async def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.transport.abort()


async def test_hypercorn_answers_over_http_2(served: Served) -> None:
    """A WebSocket within HTTP/2 is welcomed, and a question is answered on it."""
    context = served.front.authority.context()
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("localhost", served.port, ssl=context)
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    line = Http2Socket(reader, writer)
    headers = await line.open(f"localhost:{served.port}", f"/chat/cardiology/{USER}")
    assert (headers[":status"], headers["sec-websocket-protocol"]) == ("200", "chatd.v1")
    await line.send({"type": "hello", "token": served.token, "session_id": "sess_h2", "device_id": "d-h2"})
    assert (await line.receive())["type"] == "welcome"
    assert (await line.receive())["type"] == "snapshot"
    await line.send({"type": "user_message", "client_msg_id": "m-1", "content": "Allergies?", "patient_id": "7823"})
    types = [(await line.receive())["type"] for _ in range(3)]
    assert types == ["accepted", "facts", "ai_response"]
    await line.close()
