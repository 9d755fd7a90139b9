"""A WebSocket peer that may break every rule: bytes go out as they are given, whatever comes back is told as it is."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

#: No answer of a healthy server on a busy machine takes longer.
WAIT_S = 20.0

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    """One frame of a client; the mask is zero, so that the payload can be read in it."""
    first, flag = (0x80 if fin else 0) | rsv << 4 | opcode, 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        head = bytes((first, flag | size))
    elif size < 1 << 16:
        head = bytes((first, flag | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, flag | 127)) + size.to_bytes(8, "big")
    return head + (bytes(4) if mask else b"") + payload


def text(value: Mapping[str, Any] | str) -> bytes:
    """A text frame with this object, or these characters."""
    return frame(TEXT, (value if isinstance(value, str) else json.dumps(value)).encode())


def upgrade(path: str, headers: Mapping[str, str | None] | None = None, host: str = "127.0.0.1") -> bytes:
    """The head of a good handshake; a header that is None is left out."""
    named: dict[str, str | None] = {
        "Host": host,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "chatd.v1",
        **(headers or {}),
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items() if value is not None)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")


class Ended(Exception):
    """The server has closed: ``code`` of its close frame, None where it sent none."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class Peer:
    """One TCP connection, before and after its handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def dial(cls, url: str, *, buffer_bytes: int | None = None) -> Peer:
        """Connect; ``buffer_bytes`` bounds what the kernel takes in for a peer that does not read."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        line = socket.socket()
        if buffer_bytes is not None:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        line.setblocking(False)
        await asyncio.get_running_loop().sock_connect(line, (parts.hostname, parts.port))
        limit = buffer_bytes or 1 << 20
        return cls(*await asyncio.open_connection(sock=line, limit=limit))

    def send(self, data: bytes) -> None:
        """Queue bytes; a server that has gone is found when it is read."""
        if not self.writer.is_closing():
            self.writer.write(data)

    async def status(self) -> int:
        """The status of the answer to what was sent; 0 for a connection that ends without one."""
        try:
            async with asyncio.timeout(WAIT_S):
                head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0
        return int(head.split(b" ", 2)[1])

    async def open(self, path: str, headers: Mapping[str, str | None] | None = None) -> int:
        """Shake hands; returns the status."""
        self.send(upgrade(path, headers))
        return await self.status()

    async def next(self) -> tuple[int, bytes]:
        """The next frame's opcode and payload. Raises Ended."""
        try:
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size > 125:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
            payload = await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Ended(None) from None
        if first & 0x0F == CLOSE:
            raise Ended(int.from_bytes(payload[:2], "big") if payload else 1005)
        return first & 0x0F, payload

    async def message(self) -> dict[str, Any]:
        """The next message as an object; pings are answered."""
        while True:
            opcode, payload = await self.next()
            if opcode == PING:
                self.send(frame(PONG, payload))
            elif opcode in (TEXT, BINARY):
                value: dict[str, Any] = json.loads(payload)
                return value

    async def until(self, *kinds: str) -> dict[str, Any]:
        """The next message of one of these types. Raises Ended, TimeoutError."""
        async with asyncio.timeout(WAIT_S):
            while (found := await self.message()).get("type") not in kinds:
                pass
            return found

    async def code(self) -> int | None:
        """Read to the end; returns the close code."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    await self.next()
                except Ended as ended:
                    return ended.code

    async def leave(self) -> None:
        """Cut the line."""
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def phone(
    url: str, user: str, department: str, token: str, *, buffer_bytes: int | None = None, **hello: Any
) -> Peer:
    """A phone whose session is open: welcome has come."""
    peer = await Peer.dial(url, buffer_bytes=buffer_bytes)
    status = await peer.open(f"/chat/{department}/{user}")
    assert status == 101, status
    peer.send(text({"type": "hello", "token": token, **hello}))
    await peer.until("welcome")
    return peer
