"""Sends back what it is sent, on chatd's own two protocols with the bounds of `chatd serve`: ``echo.py UDS-PATH``.

For Autobahn, whose cases ask for a server that does. ``ready`` is printed when it listens.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvicorn

from chatd.gateway.limits import LineLimits
from chatd.gateway.transport import protocols
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


async def main(uds: str) -> None:
    """Serve on a Unix socket until it is ended."""
    settings = Settings()
    http, websocket = protocols(LineLimits(frames_per_s=settings.frames_per_second))
    config = uvicorn.Config(
        echo,
        uds=uds,
        http=http,
        ws=websocket,
        ws_max_size=settings.max_frame_bytes,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        ws_ping_timeout=None,
        log_config=None,
        access_log=False,
        lifespan="off",
    )
    await Server(config).serve()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
