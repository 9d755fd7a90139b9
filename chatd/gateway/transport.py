"""uvicorn's WebSocket protocol with a handle for the gateway: ping, when the phone was last heard, and writing bytes.

ASGI has neither a ping nor a pong, and its ``send`` makes a frame for each receiver. So
``scope["extensions"]["chatd.transport"]`` carries a Transport, through which one frame made once goes to many. On
servers without it (hypercorn) the gateway works from frames alone: clients of chatd.v1 send a JSON ping every 10 s,
and alerts go through each connection's outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any, Final, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

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

    ``write`` writes a whole WebSocket frame, as ``ws_frame`` makes it, and never waits. It is the socket's own method,
    so that a frame costs one call; it may be called only while ``is_writable``, which changes only with a call of
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
    """uvicorn's sans-I/O protocol; its own keepalive is off (it would close with 1011, not 4001)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queue = cast(Any, Inbox())

    chatd_transport: Transport | None = None
    #: A close frame has been sent or answered: no data may follow it. uvicorn's ``close_sent`` does not know of an
    #: answered one.
    is_ending = False

    def data_received(self, data: bytes) -> None:
        if self.chatd_transport is not None and self.chatd_transport.on_heard is not None:
            self.chatd_transport.on_heard()
        super().data_received(data)

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
            if self.chatd_transport is not None:
                self.chatd_transport.ended()

    def eof_received(self) -> None:
        # What comes back is as with uvicorn: the loop closes the socket.
        self._end()

    def handle_close(self, event: Frame) -> None:
        self._end()
        super().handle_close(event)

    def handle_parser_exception(self) -> None:
        self._end()
        super().handle_parser_exception()

    def shutdown(self) -> None:
        self._end()
        super().shutdown()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self._end()
        await super().send(message)
        if message["type"] == "websocket.accept":
            del self.response

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self.chatd_transport = None
        super().connection_lost(exc)

    def send_ping(self) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        self.conn.send_ping(b"chatd")
        self.transport.write(b"".join(self.conn.data_to_send()))
