"""Phones of a department in a process of their own: they reconnect, resume and report all that they see.

``python -m tests.faults.phones URL [URL ...]`` reads its phones (name to token) as one JSON line from standard input,
then commands, and writes JSON lists of reports (``alert_promises.Report``) to standard output. It ends with its input.
Commands: ``["cut", NAMES]`` ends connections without a word; ``["away", NAMES]`` does so too, and the phones stay away
until ``["back", NAMES]``.

Each phone does what the protocol asks of one: it keeps its cursors and comes back with them, waits a random, growing
time before it does, answers pings, sends ``delivered``, and reconnects by itself when it sees a hole or hears nothing.
It judges nothing: ``alert_promises`` does.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
import zlib
from typing import Any, Final

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from tests.faults.alert_promises import Came, Got, Report, Went

DEPARTMENT: Final = "cardiology"
#: The protocol's back-off ends at 30 s; people who wait for a campaign have less patience.
BACKOFF_S: Final = (0.1, 0.25, 2.0)
#: Beyond this a connection that is not answered is tried anew, and at another gateway.
OPEN_S: Final = 2.0
#: Reports leave together.
FLUSH_S: Final = 0.01


class Frame(msgspec.Struct):
    """What a phone reads of the frames that concern it; the rest of them is passed over."""

    type: str
    alert_seq: int = 0
    alert_id: str = ""
    event: str = ""
    content: Any = ""
    epoch: str = ""
    seq: int = 0
    resumed: bool = False
    gap_reason: str | None = None
    heartbeat: dict[str, int] = {}
    open_alerts: list[dict[str, Any]] = []
    after_ms: int = 0


_decode = msgspec.json.Decoder(Frame).decode
_encode = msgspec.json.encode


class Hole(Exception):
    """An event is missing before the one that came."""


class Reporter:
    """Writes reports in the order in which they come, some together."""

    def __init__(self) -> None:
        self._waiting: list[Report] = []
        self._loop = asyncio.get_running_loop()

    def add(self, report: Report) -> None:
        if not self._waiting:
            self._loop.call_later(FLUSH_S, self.flush)
        self._waiting.append(report)

    def flush(self) -> None:
        if self._waiting:
            sys.stdout.buffer.write(_encode(self._waiting) + b"\n")
            sys.stdout.buffer.flush()
            self._waiting = []


class Phone:
    """One phone. ``alert_seq`` None: it has never been welcomed."""

    def __init__(self, name: str, token: str, urls: list[str], reporter: Reporter) -> None:
        self.name = name
        self._token = token
        self._urls = urls
        self._turn = random.randrange(len(urls))
        self._reporter = reporter
        self._epoch, self._seq = "", 0
        self._alert_seq: int | None = None
        self._socket: ClientConnection | None = None
        self._may_connect = asyncio.Event()
        self._may_connect.set()
        self._count = 0
        self._after_s = 0.0
        self._fails = 0

    def cut(self) -> None:
        """End the connection as a phone does that is out of reach."""
        if self._socket is not None:
            self._socket.transport.abort()

    def away(self) -> None:
        """Stay away from now on."""
        self._may_connect.clear()
        self.cut()

    def back(self) -> None:
        self._may_connect.set()

    async def run(self) -> None:
        """Connect again and again, until cancelled."""
        least_s, first_s, most_s = BACKOFF_S
        while True:
            await self._may_connect.wait()
            self._after_s = 0.0
            why = "unreachable"
            try:
                await self._converse()
            except Hole:
                why = "hole"
            except ConnectionClosed as closed:
                why = str(closed.rcvd.code) if closed.rcvd else "cut"
            except (OSError, TimeoutError, InvalidHandshake, InvalidMessage):
                # The next one may be alive.
                self._turn += 1
            finally:
                self._socket = None
            self._reporter.add(Went(self.name, time.monotonic(), why))
            wait_s = random.uniform(0, min(most_s, first_s * 2**self._fails))
            self._fails = min(self._fails + 1, 8)
            await asyncio.sleep(max(least_s, wait_s, self._after_s))

    async def _converse(self) -> None:
        url = f"{self._urls[self._turn % len(self._urls)]}/chat/{DEPARTMENT}/{self.name}"
        socket = await connect(
            url,
            subprotocols=["chatd.v1"],  # type: ignore[list-item]
            compression=None,
            ping_interval=None,
            open_timeout=OPEN_S,
            close_timeout=0.2,
            max_queue=None,
        )
        self._socket = socket
        try:
            if not self._may_connect.is_set():
                return
            await self._hello(socket)
            frame = await self._next(socket, OPEN_S)
            while frame.type != "welcome":
                self._hear(frame)
                frame = await self._next(socket, OPEN_S)
            await self._welcomed(socket, frame)
            await self._listen(socket, frame.heartbeat["interval_s"], frame.heartbeat["timeout_s"])
        finally:
            socket.transport.abort()

    async def _hello(self, socket: ClientConnection) -> None:
        hello: dict[str, Any] = {
            "type": "hello",
            "token": self._token,
            "session_id": f"sess_{self.name}",
            "device_id": f"d-{self.name}",
        }
        if self._alert_seq is not None:
            hello["resume"] = {"epoch": self._epoch, "seq": self._seq, "alert_seq": self._alert_seq}
        await socket.send(_encode(hello).decode())

    async def _welcomed(self, socket: ClientConnection, welcome: Frame) -> None:
        stood_at = self._alert_seq
        shown: list[tuple[str, str]] = []
        if not welcome.resumed:
            snapshot = await self._next(socket, OPEN_S)
            while snapshot.type != "snapshot":
                snapshot = await self._next(socket, OPEN_S)
            shown = [(each["alert_id"], each["content"]) for each in snapshot.open_alerts]
            self._epoch, self._seq, self._alert_seq = welcome.epoch, welcome.seq, welcome.alert_seq
        self._reporter.add(
            Came(
                self.name,
                time.monotonic(),
                stood_at,
                welcome.resumed,
                welcome.gap_reason,
                welcome.alert_seq,
                tuple(shown),
            )
        )
        self._fails = 0

    async def _listen(self, socket: ClientConnection, interval_s: float, timeout_s: float) -> None:
        """Take frames until the connection ends; raises TimeoutError where nothing comes after a ping of its own."""
        while True:
            try:
                frame = await self._next(socket, interval_s)
            except TimeoutError:
                self._count += 1
                await socket.send(_encode({"type": "ping", "t": self._count}).decode())
                frame = await self._next(socket, timeout_s)
            self._hear(frame)
            if frame.event == "raised":
                self._count += 1
                key = f"{self.name}-{self._count}"
                receipt = {"type": "alert_response", "client_msg_id": key, "alert_id": frame.alert_id}
                await socket.send(_encode({**receipt, "answer": "delivered"}).decode())

    async def _next(self, socket: ClientConnection, wait_s: float) -> Frame:
        async with asyncio.timeout(wait_s):
            self._raw = await socket.recv(decode=False)
        return _decode(self._raw)

    def _hear(self, frame: Frame) -> None:
        if frame.type == "goaway":
            self._after_s = frame.after_ms / 1000
        if frame.type not in ("system_notification", "alert_update"):
            # This session asks no questions, so its log stays where it is.
            self._seq = max(self._seq, frame.seq)
            return
        self._reporter.add(
            Got(
                self.name,
                time.monotonic(),
                frame.alert_seq,
                zlib.crc32(self._raw),
                frame.event,
                frame.alert_id,
                frame.content if frame.event in ("raised", "joined") else "",
            )
        )
        position = self._alert_seq or 0
        if frame.alert_seq <= position:
            return
        if frame.alert_seq != position + 1:
            raise Hole
        self._alert_seq = frame.alert_seq


async def _obey(phones: dict[str, Phone], commands: asyncio.StreamReader) -> None:
    """Obey until the input ends."""
    while line := await commands.readline():
        do, names = msgspec.json.decode(line, type=tuple[str, list[str]])
        for name in names:
            match do:
                case "cut":
                    phones[name].cut()
                case "away":
                    phones[name].away()
                case "back":
                    phones[name].back()


async def main(urls: list[str]) -> None:
    """Run the phones of the first input line until the input ends."""
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    tokens = msgspec.json.decode(await commands.readline(), type=dict[str, str])
    reporter = Reporter()
    phones = {name: Phone(name, token, urls, reporter) for name, token in tokens.items()}
    running = [asyncio.create_task(phone.run()) for phone in phones.values()]
    try:
        await _obey(phones, commands)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="+", help="ws://HOST:PORT of a gateway")
    asyncio.run(main(parser.parse_args().url))
