"""chatd.gateway.transport: the handle below ASGI says in time when no frame may be written."""

from __future__ import annotations

import asyncio
import base64
import gc
import logging
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState
from websockets.frames import Frame

from chatd.gateway.limits import LineLimits, Pace
from chatd.gateway.transport import EXTENSION, ChatdProtocol, Transport, protocols, ws_frame

UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
)
MASK = bytes(4)


class Socket:
    """An asyncio transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_closed = self.is_aborted = False
        self.is_reading, self.is_ended = True, False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_ended = True

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True


class Line:
    """One connection of an application that accepts and then does what it is told."""

    def __init__(self, kind: type[ChatdProtocol] = ChatdProtocol, *, accepted: socket.socket | None = None) -> None:
        self.handle: asyncio.Future[Transport] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        self.told: list[bool] = []
        self.heard = 0
        self.says: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        config = Config(self._app, ws=kind, lifespan="off", log_config=None, interface="asgi3")
        config.load()
        self.protocol = kind(config, ServerState(), {}, asyncio.get_running_loop())
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


@pytest.mark.parametrize("text", [b"the words of a phone", b"what is \xff no text"])
async def test_what_a_phone_sent_last_goes_with_its_connection(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ring of objects keeps a frame until the collector comes, whether or not it could be read."""
    # pytest keeps what is logged, a fault with its frames among it.
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", True)
    line = Line()
    await line.open()
    gc.disable()
    try:
        line.protocol.data_received(bytes((0x81, 0x80 | len(text))) + MASK + text)
        line.protocol.connection_lost(None)
        left = [each for each in gc.get_objects() if isinstance(each, Frame) and bytes(each.data) == text]
    finally:
        gc.enable()
    assert left == []


# --- bounds -------------------------------------------------------------------------------------------------

PING = bytes((0x89, 0x80)) + MASK


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that no event tells of."""
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class Http:
    """The HTTP protocol on a socket that keeps what is written."""

    def __init__(self, limits: LineLimits) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        http, websocket = protocols(limits)
        config = Config(app, http=http, ws=websocket, lifespan="off", log_config=None, interface="asgi3")
        config.load()
        self.protocol = http(config, ServerState(), {}, asyncio.get_running_loop())
        self.socket = Socket()
        self.protocol.connection_made(cast(asyncio.Transport, self.socket))

    async def until_closed(self) -> bytes:
        await until(lambda: self.socket.is_closed)
        self.protocol.connection_lost(None)
        return b"".join(self.socket.written)


async def test_many_frames_in_one_read_are_taken_in_turns() -> None:
    """A read full of pings leaves the event loop between slices, reads nothing more meanwhile, and loses none."""
    line = Line()
    await line.open()
    before = len(line.socket.written)
    line.protocol.data_received(PING * 1_000)
    in_one_turn = b"".join(line.socket.written[before:]).count(b"\x8a\x00")
    assert 0 < in_one_turn <= ChatdProtocol.limits.slice_bytes // len(PING)
    assert line.socket.is_reading is False
    await until(lambda: line.socket.is_reading)
    assert b"".join(line.socket.written[before:]).count(b"\x8a\x00") == 1_000


async def test_frames_faster_than_the_pace_wait() -> None:
    """Twice what a second allows passes at once; the next slice waits for a timer, with reading held."""
    line = Line()
    await line.open()
    before = len(line.socket.written)
    most = 2 * ChatdProtocol.limits.frames_per_s
    line.protocol.data_received(PING * (most + 500))
    for _ in range(100):
        await asyncio.sleep(0)
    answered = b"".join(line.socket.written[before:]).count(b"\x8a\x00")
    assert answered < most + 500
    assert line.socket.is_reading is False
    line.protocol.connection_lost(None)


async def test_pings_of_a_peer_that_does_not_read_are_not_answered() -> None:
    """Above the buffer's mark no pong is added; below it pongs leave again, and a close is answered in any case."""
    line = Line()
    await line.open()
    before = len(line.socket.written)
    line.protocol.pause_writing()
    line.protocol.data_received(PING * 100)
    assert b"".join(line.socket.written[before:]) == b""
    line.protocol.resume_writing()
    line.protocol.data_received(PING)
    assert b"".join(line.socket.written[before:]) == b"\x8a\x00"
    line.protocol.pause_writing()
    line.protocol.data_received(PING + bytes((0x88, 0x80)) + MASK)
    assert b"".join(line.socket.written).endswith(b"\x88\x00")


@pytest.mark.parametrize("pieces", [1, 40], ids=["in one read", "in forty"])
async def test_a_head_that_is_too_long_is_refused(pieces: int) -> None:
    """431, whether it comes at once or drop by drop, and the connection is closed."""
    http = Http(LineLimits())
    head = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 20_000
    size = -(-len(head) // pieces)
    for at in range(0, len(head), size):
        if not http.socket.is_closed:
            http.protocol.data_received(head[at : at + size] + (b"\r\n\r\n" if pieces == 1 else b""))
    assert (await http.until_closed()).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\r\n\r\n"])
async def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes) -> None:
    """A connection that says nothing, half a line or half a head is cut."""
    http = Http(LineLimits(head_within_s=0.01))
    if sent:
        http.protocol.data_received(sent)
    assert await http.until_closed() == b""


async def test_blank_lines_do_not_keep_a_connection() -> None:
    """After an answer, bytes that begin no request stop the keep-alive's clock and start the head's."""
    http = Http(LineLimits(head_within_s=0.05))
    http.protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: bool(http.socket.written))
    while not http.socket.is_closed:
        http.protocol.data_received(b"\r\n")
        await asyncio.sleep(0.01)
    assert (await http.until_closed()).startswith(b"HTTP/1.1 204 ")


async def test_a_closed_connection_that_is_not_read_is_cut() -> None:
    """The close frame is written although the peer does not read, and the socket does not outlive its time."""

    class Quick(ChatdProtocol):
        limits = LineLimits(close_within_s=0.01)

    line = Line(Quick)
    await line.open()
    line.protocol.pause_writing()
    line.says.put_nowait({"type": "websocket.close", "code": 4002})
    await until(lambda: line.socket.is_aborted)
    assert any(b"\x0f\xa2" in data for data in line.socket.written)


def test_pace_saves_and_waits() -> None:
    """Two seconds' worth at once, then as much as time has brought; a clock that is set back adds nothing."""
    pace = Pace(100, 0)
    assert pace.spend(200, 0) == 0
    assert pace.spend(1, 0) == pytest.approx(10)
    assert pace.spend(1, 20) == 0
    assert pace.spend(1, 10) == pytest.approx(10)
    assert pace.spend(200, 1_000_000) == 0
    assert pace.spend(1, 1_000_000) == pytest.approx(10)


@pytest.mark.parametrize("more", [b"X-A: y\r\n" * 200, b"X-A: " + b"y" * 9_000 + b"\r\n"], ids=["many", "long"])
async def test_a_handshake_that_cannot_be_read_is_refused(more: bytes) -> None:
    """A head that passes the HTTP protocol and not the WebSocket's gets 400, and the connection is closed."""
    line = Line()
    line.protocol.data_received(UPGRADE.removesuffix(b"\r\n") + more + b"\r\n")
    assert b"".join(line.socket.written).startswith(b"HTTP/1.1 400 ")
    assert line.socket.is_closed


async def test_a_peer_that_breaks_the_protocol_is_read_to_its_end() -> None:
    """The code leaves, nothing follows it, and what the peer still sends is read, or the code would be lost with it."""
    line = Line()
    await line.open()
    line.protocol.data_received(PING + b"\xc7\x80" + b"x" * 100_000)
    assert b"".join(line.socket.written).endswith(b"\x03\xea" + line.protocol.conn.close_sent.reason.encode())
    assert line.socket.is_ended
    assert line.socket.is_reading
    assert not line.socket.is_closed
    line.protocol.data_received(b"x" * 100_000)
    with pytest.raises(ClientDisconnected):
        await line.protocol.send({"type": "websocket.send", "text": "late"})
    line.protocol.connection_lost(None)


async def test_a_close_does_not_let_a_flood_in() -> None:
    """What has come and waits for its turn holds reading back also once the server has said its close."""
    line = Line()
    await line.open()
    line.protocol.data_received(PING * 10_000)
    assert line.socket.is_reading is False
    line.says.put_nowait({"type": "websocket.close", "code": 4002})
    await line.closed.wait()
    assert line.socket.is_reading is False
    line.protocol.connection_lost(None)


class Cut(Socket):
    """A line that is found cut by the next write; as with uvloop, it then refuses everything but closing."""

    is_lost = False

    def write(self, data: bytes) -> None:
        self.written.append(data)
        self.is_closed = self.is_closed or self.is_lost

    def _refuse(self) -> None:
        if self.is_closed:
            raise RuntimeError("the handler is closed")

    def write_eof(self) -> None:
        self._refuse()

    def pause_reading(self) -> None:
        self._refuse()

    def resume_reading(self) -> None:
        self._refuse()


@pytest.mark.parametrize("sent", [b"\x81\x81" + MASK + b"\xff", b"\x89\x80" + MASK + b"\xc1\x80" + MASK])
async def test_line_that_is_found_cut_is_no_fault(sent: bytes) -> None:
    """Where the answer to a broken frame finds the line cut, nothing is raised into the loop."""
    line = Line()
    cut = Cut()
    line.socket = cut
    line.protocol.connection_made(cast(asyncio.Transport, cut))
    await line.open()
    cut.is_lost = True
    line.protocol.data_received(sent)
    assert cut.is_closed
    line.protocol.connection_lost(None)


async def test_what_waits_behind_a_message_that_was_waited_for_is_taken() -> None:
    """Two messages of one read reach an application that already waits, without a further byte of the peer."""
    line = Line()
    await line.open()
    texts = ["a" * 1_000, "b" * 1_000]
    waiting = asyncio.create_task(line.protocol.receive())
    await asyncio.sleep(0)
    line.protocol.data_received(b"".join(b"\x81\xfe\x03\xe8" + MASK + each.encode() for each in texts))
    got = [await waiting]
    async with asyncio.timeout(10):
        got.append(await line.protocol.receive())
    assert [cast(dict[str, Any], each)["text"] for each in got] == texts
    assert line.socket.is_reading
    line.protocol.connection_lost(None)


class Ended(Socket):
    """As with uvloop, nothing may be written after the end was."""

    def write(self, data: bytes) -> None:
        if self.is_ended:
            raise RuntimeError("Cannot call write() after write_eof()")
        super().write(data)


async def test_ping_behind_broken_text_is_not_answered() -> None:
    """What stands in the same read behind a message that broke the protocol is not looked at, and is no fault."""
    line = Line()
    line.socket = Ended()
    line.protocol.connection_made(cast(asyncio.Transport, line.socket))
    await line.open()
    line.protocol.data_received(b"\x81\x81" + MASK + b"\xff" + PING + b"\x81\x82" + MASK + b"{}")
    assert line.socket.written[-1].endswith(b"\x88\x02\x03\xef")
    assert line.socket.is_ended
    line.protocol.connection_lost(None)


async def test_phone_that_reads_nothing_is_noticed_within_a_megabyte() -> None:
    """The kernel holds a bounded part of what a real socket is sent, and says so before it would hold all."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as phone:
        phone.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        phone.connect(listening.getsockname())
        accepted, _ = listening.accept()
        line = Line(accepted=accepted)
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
