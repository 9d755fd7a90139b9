"""chatd.gateway.transport: the handle below ASGI says in time when no frame may be written."""

from __future__ import annotations

import asyncio
import base64
import socket
from typing import Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from chatd.gateway.transport import EXTENSION, ChatdProtocol, Transport, ws_frame

UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
)
MASK = bytes(4)


class Socket:
    """An asyncio transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Line:
    """One connection of an application that accepts and then does what it is told."""

    def __init__(self, accepted: socket.socket | None = None) -> None:
        self.handle: asyncio.Future[Transport] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        self.told: list[bool] = []
        self.heard = 0
        self.says: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        config = Config(self._app, ws=ChatdProtocol, lifespan="off", log_config=None, interface="asgi3")
        config.load()
        self.protocol = ChatdProtocol(config, ServerState(), {}, asyncio.get_running_loop())
        self.socket = Socket()
        self._accepted = accepted
        if accepted is None:
            self.protocol.connection_made(cast(asyncio.Transport, self.socket))

    async def connected(self) -> None:
        """Let the loop work the real socket that was given."""
        assert self._accepted is not None
        await asyncio.get_running_loop().connect_accepted_socket(lambda: self.protocol, self._accepted)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        handle: Transport = scope["extensions"][EXTENSION]
        await receive()
        await send({"type": "websocket.accept"})
        handle.on_writable = self.told.append
        handle.on_heard = self._hear
        self.handle.set_result(handle)
        await send(await self.says.get())
        self.closed.set()

    def _hear(self) -> None:
        self.heard += 1

    async def open(self) -> Transport:
        self.protocol.data_received(UPGRADE)
        handle = await self.handle
        assert b" 101 " in self.socket.written[0]
        return handle


async def test_write_is_the_frame_as_it_is() -> None:
    """What is written is written as it is, in one call, and pings and chunks are as before."""
    line = Line()
    handle = await line.open()
    frame = ws_frame(b"{}")
    handle.write(frame)
    assert line.socket.written[-1] is frame
    assert handle.is_writable
    line.protocol.data_received(b"\x89\x80" + MASK)
    assert line.heard == 1
    line.protocol.connection_lost(None)


async def test_buffer_above_and_below_its_mark_is_told() -> None:
    """Each change of being writable is told once, and the property says the same."""
    line = Line()
    handle = await line.open()
    line.protocol.pause_writing()
    assert (line.told, handle.is_writable) == ([False], False)
    line.protocol.resume_writing()
    assert (line.told, handle.is_writable) == ([False, True], True)
    line.protocol.connection_lost(None)


@pytest.mark.parametrize("how", ["their close", "our close", "no frame", "end of stream", "shutdown", "lost"])
async def test_end_is_told_once_before_anything_else(how: str) -> None:
    """However a connection begins to end, whoever writes to it hears so at once, and nothing afterwards."""
    line = Line()
    handle = await line.open()
    match how:
        case "their close":
            line.protocol.data_received(b"\x88\x82" + MASK + b"\x03\xe8")
        case "our close":
            await line.says.put({"type": "websocket.close", "code": 4000})
            await line.closed.wait()
        case "no frame":
            line.protocol.data_received(b"\xff\xff\xff")
        case "end of stream":
            line.protocol.eof_received()
        case "shutdown":
            line.protocol.shutdown()
        case _:
            line.protocol.connection_lost(None)
    assert (line.told, handle.is_writable) == ([False], False)
    line.protocol.pause_writing()
    line.protocol.resume_writing()
    assert (line.told, handle.is_writable) == ([False], False)
    if how != "lost":
        line.protocol.connection_lost(None)
    assert line.told == [False]


async def test_phone_that_reads_nothing_is_noticed_within_a_megabyte() -> None:
    """The kernel holds a bounded part of what a real socket is sent, and says so before it would hold all."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as phone:
        phone.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        phone.connect(listening.getsockname())
        accepted, _ = listening.accept()
        line = Line(accepted)
        await line.connected()
        phone.sendall(UPGRADE)
        handle = await line.handle
        frame = ws_frame(bytes(4096))
        written = 0
        while handle.is_writable and written < 1 << 20:
            handle.write(frame)
            written += len(frame)
            await asyncio.sleep(0)
        assert not handle.is_writable
        line.protocol.transport.abort()
