"""uvicorn's two protocols within chatd's bounds, and a handle for the gateway: ping, when heard last, writing bytes.

ASGI has neither a ping nor a pong, and its ``send`` makes a frame for each receiver. So
``scope["extensions"]["chatd.transport"]`` carries a Transport, through which one frame made once goes to many. On
servers without it (hypercorn) the gateway works from frames alone: clients of chatd.v1 send a JSON ping every 10 s,
and alerts go through each connection's outbox.

Bounds: uvicorn waits for a request's head without end, whatever its length; takes apart as many frames as one read
brings, 40,000 pings of 6 bytes, while nobody else has a turn; answers pings of a peer that reads nothing; and keeps a
closed connection as long as such a peer leaves the last bytes unread. Here each of these ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any, Final, cast

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import State

from chatd.gateway.limits import LineLimits, Pace

EXTENSION = "chatd.transport"

#: What the kernel may hold for one phone; Linux doubles it for its own bookkeeping. Left alone it grows to 4 MiB
#: (``tcp_wmem``), in which a phone that reads nothing would not be noticed for 700 KB of alerts. Enough for 1 MB/s at
#: a round trip of 100 ms.
KERNEL_BYTES: Final = 131_072

#: First byte of a whole, uncompressed message: FIN and the opcode. Source: RFC 6455, section 5.2.
_TEXT, _BINARY = 0x81, 0x82


def ws_frame(payload: bytes, *, binary: bool = False) -> bytes:
    """One message as a server writes it: whole, unmasked, uncompressed. Source: RFC 6455, section 5.2."""
    first, size = _BINARY if binary else _TEXT, len(payload)
    if size < 126:
        head = bytes((first, size))
    elif size < 1 << 16:
        head = bytes((first, 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 127)) + size.to_bytes(8, "big")
    return head + payload


class Transport:
    """What one connection may do below ASGI.

    ``on_heard`` is called for every chunk of bytes received. ``on_writable`` is called with False when the phone
    does not read and what waits for it has passed the buffer's high-water mark (64 KiB), and with True when it has
    read on; with False also, once more and for good, when the connection begins to close.

    ``write`` writes whole WebSocket frames, as ``ws_frame`` makes them, and never waits. It is the socket's own
    method, so that they cost one call; it may be called only while ``is_writable``, which changes only with a call of
    ``on_writable``. The server itself writes whole frames too, each in one call, so the two cannot interleave.
    """

    __slots__ = ("_is_paused", "_protocol", "on_heard", "on_writable", "write")

    def __init__(self, protocol: ChatdProtocol) -> None:
        self._protocol = protocol
        self._is_paused = False
        self.on_heard: Callable[[], None] | None = None
        self.on_writable: Callable[[bool], None] | None = None
        self.write: Callable[[bytes], None] = protocol.transport.write

    def ping(self) -> None:
        """Send a WebSocket ping; does nothing on a connection that is closing."""
        self._protocol.send_ping()

    @property
    def is_paused(self) -> bool:
        """More waits for the phone than the buffer's mark."""
        return self._is_paused

    @property
    def is_writable(self) -> bool:
        """The phone reads: what is written now does not wait behind much."""
        return not (self._is_paused or self._protocol.is_ending)

    def paused(self, is_paused: bool) -> None:
        """The server's protocol says that the buffer is above or below its mark."""
        self._is_paused = is_paused
        if self.on_writable is not None and not self._protocol.is_ending:
            self.on_writable(not is_paused)

    def ended(self) -> None:
        """The server's protocol says that no data may follow from here on."""
        if self.on_writable is not None:
            self.on_writable(False)


class Inbox:
    """What waits for the application, with as much of ``asyncio.Queue`` as uvicorn uses; one task reads it.

    A queue of asyncio takes 3 KiB, and nearly all connections are at rest. Cancelling ``get`` loses nothing.
    """

    __slots__ = ("_waiter", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[Any] = []
        self._waiter: asyncio.Future[None] | None = None

    def put_nowait(self, item: Any) -> None:
        self._waiting.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def empty(self) -> bool:
        return not self._waiting

    async def get(self) -> Any:
        while not self._waiting:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._waiting.pop(0)


class ChatdProtocol(WebSocketsSansIOProtocol):
    """uvicorn's sans-I/O protocol; its own keepalive is off (it would close with 1011, not 4001).

    What was read is taken apart in slices, one at a turn of the event loop and at the pace of ``limits``. Until then
    nothing more is read, so that at most one read (256 KiB) waits here.
    """

    limits = LineLimits()
    chatd_transport: Transport | None = None
    #: A close frame has been sent or answered: no data may follow it. uvicorn's ``close_sent`` does not know of an
    #: answered one.
    is_ending = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queue = cast(Any, Inbox())
        self.close_timeout = self.limits.close_within_s
        self._unread = bytearray()
        self._is_held = False
        #: The peer has broken the protocol: what it sends is not looked at any more.
        self._is_broken = False
        self._pace = Pace(self.limits.frames_per_s, self.loop.time() * 1000)
        #: When the next slice is taken; None: it is not its turn, or there is none.
        self._next_slice: asyncio.TimerHandle | None = None
        self._aborting: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self.chatd_transport is not None and self.chatd_transport.on_heard is not None:
            self.chatd_transport.on_heard()
        if self._is_broken:
            return
        if not self.handshake_initiated:
            self._handshake(data)
            return
        self._unread += data
        if self._next_slice is None:
            self._take_slice()

    def _handshake(self, head: bytes) -> None:
        """The request's head, which the HTTP protocol has read and hands over as a whole."""
        self.conn.receive_data(head)
        if self.conn.parser_exc is not None or (self.conn.handshake_exc is not None and not self.conn.events):
            # Too many headers, a line that is too long: uvicorn would wait for ever.
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()
            return
        self.handle_events()

    def _take_slice(self) -> None:
        self._next_slice = None
        try:
            if not self.transport.is_closing():
                self._take_apart()
        except RuntimeError:
            # An answer found the line cut, and what is cut can be neither paused nor half closed.
            if not self.transport.is_closing():
                raise
        if self.transport.is_closing():
            self._unread.clear()

    def _take_apart(self) -> None:
        piece = bytes(self._unread[: self.limits.slice_bytes])
        del self._unread[: len(piece)]
        self.conn.receive_data(piece)
        if self.conn.parser_exc is not None:
            self.handle_parser_exception()
            return
        wait_ms = self._pace.spend(len(self.conn.events), self.loop.time() * 1000)
        self.handle_events()
        if self._is_broken or self.transport.is_closing():
            self._unread.clear()
        elif wait_ms > 0:
            self._hold()
            self._next_slice = self.loop.call_later(wait_ms / 1000, self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Take the next slice, or read on; while the application has yet to take a message, neither."""
        self._next_slice = None
        if self.read_paused or self.transport.is_closing():
            return
        if self._unread:
            self._hold()
            self._next_slice = self.loop.call_later(0, self._take_slice)
        elif self._is_held:
            self._is_held = False
            self.transport.resume_reading()

    def _hold(self) -> None:
        if not self._is_held:
            self._is_held = True
            self.transport.pause_reading()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        if not self.read_paused and not self.transport.is_closing():
            # uvicorn reads on, whatever waits here.
            if self._is_held:
                self.transport.pause_reading()
            if self._next_slice is None:
                self._go_on()
        return message

    def handle_ping(self) -> None:
        """Answer, unless the peer does not read: RFC 6455, section 5.5.3 lets the newest ping alone be answered."""
        if self._is_broken:
            return  # it stood in the same slice behind what broke the protocol, and the end is written
        answer = b"".join(self.conn.data_to_send())
        is_read = self.chatd_transport is None or not self.chatd_transport.is_paused
        if is_read or self.conn.state is not State.OPEN:
            self.transport.write(answer)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        # The scope has all of it that is needed.
        del self.request
        if not self.close_sent:
            self._bound_kernel()
            # The application's task has been made but not yet run: it will see the extension.
            self.chatd_transport = Transport(self)
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = self.chatd_transport

    def _bound_kernel(self) -> None:
        """Let the kernel hold ``KERNEL_BYTES`` for this phone; a socket that cannot be set stays as it is."""
        with contextlib.suppress(OSError):
            socket = self.transport.get_extra_info("socket")
            if socket is not None:
                socket.setsockopt(SOL_SOCKET, SO_SNDBUF, KERNEL_BYTES)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.chatd_transport is not None:
            self.chatd_transport.paused(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.chatd_transport is not None:
            self.chatd_transport.paused(False)

    def _end(self) -> None:
        if not self.is_ending:
            self.is_ending = True
            # A peer that reads nothing would hold the socket as long as it likes.
            self._aborting = self.loop.call_later(2 * self.limits.close_within_s, self.transport.abort)
            if self.chatd_transport is not None:
                self.chatd_transport.ended()

    def eof_received(self) -> None:
        # What comes back is as with uvicorn: the loop closes the socket.
        self._end()

    def handle_close(self, event: Frame) -> None:
        self._end()
        super().handle_close(event)

    def handle_parser_exception(self) -> None:
        """Say why, and read on without looking: a socket closed with bytes unread takes the reason away with it."""
        self._end()
        reason = self.conn.close_sent
        assert reason is not None  # noqa: S101 - the parser has failed the connection
        self.queue.put_nowait({"type": "websocket.disconnect", "code": reason.code, "reason": reason.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = self._is_broken = True
        self._unread.clear()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._is_held = self.read_paused = False
        self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def shutdown(self) -> None:
        self._end()
        super().shutdown()

    async def send(self, message: Any) -> None:
        if self._is_broken:
            raise ClientDisconnected
        is_close = message["type"] == "websocket.close"
        if is_close:
            self._end()
            # The close waits in the buffer behind what was not read: a phone that wakes up finds its code.
            self.writable.set()
        try:
            await super().send(message)
        except RuntimeError:
            # The peer's fault came while this waited for the peer to read.
            if not self._is_broken:
                raise
            raise ClientDisconnected from None
        if is_close and not self.transport.is_closing():
            # uvicorn reads on, to find the answer to the close; what waits here comes first.
            if self._is_held:
                self.transport.pause_reading()
            if self._next_slice is None:
                self._go_on()
        if message["type"] == "websocket.accept":
            del self.response

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        for timer in (self._next_slice, self._aborting):
            if timer is not None:
                timer.cancel()
        self._unread.clear()
        self.chatd_transport = None
        # The parser and its fault hold what the phone sent last, in frames that hold each other.
        self.conn.parser.close()
        self.conn.parser_exc = None
        super().connection_lost(exc)

    def send_ping(self) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        self.conn.send_ping(b"chatd")
        self.transport.write(b"".join(self.conn.data_to_send()))


class ChatdHttp(HttpToolsProtocol):
    """uvicorn's HTTP protocol; a request has a longest head and a longest time."""

    limits = LineLimits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        #: Bytes of a head are expected; and whether a request has begun and its body has not ended.
        self._is_head, self._is_message = True, False
        self._head_bytes = self._parts_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._within(self.limits.head_within_s)

    def _within(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            # Blank lines and what is left of a body begin no request, and would keep an idle connection for ever.
            self._is_head = not self._is_message
            self._head_bytes = 0
            self._within(self.limits.head_within_s)
        if self._is_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_head and self._head_bytes > self.limits.head_bytes and not self.transport.is_closing():
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._is_head:
            self._head_bytes = 0
            self._within(self.limits.head_within_s)
        self._is_head = self._is_message = True
        self._parts_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, size_bytes: int) -> None:
        """A head that came in one read is known by its parts; the parser stops at the exception."""
        self._parts_bytes += size_bytes
        if self._parts_bytes > self.limits.head_bytes:
            raise ValueError("head")

    def on_headers_complete(self) -> None:
        self._is_head = False
        self._within(self.limits.answer_within_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        # From here to the next byte uvicorn's own keep-alive counts.
        self._within(None)
        super().on_response_complete()

    def handle_websocket_upgrade(self) -> None:
        self._within(None)
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        if self._parts_bytes > self.limits.head_bytes:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _refuse_head(self) -> None:
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._within(None)
        super().connection_lost(exc)


def protocols(limits: LineLimits) -> tuple[type[ChatdHttp], type[ChatdProtocol]]:
    """The two protocols with these bounds, as uvicorn makes one for each connection."""
    bounds = {"limits": limits}
    return type("ChatdHttp", (ChatdHttp,), bounds), type("ChatdProtocol", (ChatdProtocol,), bounds)
