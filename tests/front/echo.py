"""Sends back what it is sent, on chatd's own two protocols with the bounds of `chatd serve`: ``echo.py UDS-PATH``.

For Autobahn, whose cases ask for a server that does. ``ready`` is printed when it listens.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvicorn

from chatd.serve import line
from chatd.settings import Settings


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """One WebSocket; other requests are not answered."""
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


class Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        print("ready", flush=True)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """``echo``, begun and ended as the server asks of an application."""
    if scope["type"] != "lifespan":
        await echo(scope, receive, send)
        return
    for word in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{word}.complete"})


async def main(uds: str) -> None:
    """Serve on a Unix socket until it is ended."""
    await Server(line(app, Settings(), uds=uds)).serve()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
