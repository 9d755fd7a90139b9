"""uvicorn's WebSocket protocol with a handle for the gateway: ping, and when the phone was last heard.

ASGI has neither a ping nor a pong, so ``scope["extensions"]["chatd.transport"]`` carries a Transport. On servers
without it (hypercorn) the gateway works from frames alone: clients of chatd.v1 send a JSON ping every 10 s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

EXTENSION = "chatd.transport"


class Transport:
    """What one connection may do below ASGI. ``on_heard`` is called for every chunk of bytes received."""

    def __init__(self, protocol: ChatdProtocol) -> None:
        self._protocol = protocol
        self.on_heard: Callable[[], None] | None = None

    def ping(self) -> None:
        """Send a WebSocket ping; does nothing on a connection that is closing."""
        self._protocol.send_ping()


class ChatdProtocol(WebSocketsSansIOProtocol):
    """uvicorn's sans-I/O protocol; its own keepalive is off (it would close with 1011, not 4001)."""

    chatd_transport: Transport | None = None

    def data_received(self, data: bytes) -> None:
        if self.chatd_transport is not None and self.chatd_transport.on_heard is not None:
            self.chatd_transport.on_heard()
        super().data_received(data)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            # The application's task has been made but not yet run: it will see the extension.
            self.chatd_transport = Transport(self)
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = self.chatd_transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.chatd_transport = None
        super().connection_lost(exc)

    def send_ping(self) -> None:
        if self.close_sent or self.transport.is_closing():
            return
        self.conn.send_ping(b"chatd")
        self.transport.write(b"".join(self.conn.data_to_send()))
