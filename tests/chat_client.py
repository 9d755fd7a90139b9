"""A strict chatd.v1 client for tests: it resumes, resends, and raises on every broken promise of the protocol."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import defaultdict
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

#: No single wait of a test is longer; a server that needs more has failed.
WAIT_S = 20.0


class Broken(AssertionError):
    """The server broke a promise of the protocol."""


def _named(frame: dict[str, Any]) -> dict[str, Any]:
    """What tells one durable frame from another, without its text."""
    return {name: frame.get(name) for name in ("epoch", "seq", "response_id", "status", "attempt")}


class ChatClient:
    """One phone. ``frames`` holds every durable frame once, in order; ``direct`` the others since the last connect."""

    def __init__(
        self,
        url: str,
        *,
        department: str,
        user_id: str,
        token: str,
        session_id: str | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        self.wait_s = wait_s
        self.url = f"{url.replace('http', 'ws', 1)}/chat/{department}/{user_id}"
        self.token = token
        self.session_id = session_id or f"sess_{secrets.token_hex(6)}"
        self.epoch = ""
        self.seq = 0
        self.frames: list[dict[str, Any]] = []
        self.direct: list[dict[str, Any]] = []
        self.welcome: dict[str, Any] = {}
        self.snapshot: dict[str, Any] | None = None
        self.accepted: dict[str, str] = {}
        self.answers: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.socket: ClientConnection | None = None
        self.lang = "en"
        self.device_id = "d-test"

    async def connect(self, url: str | None = None) -> dict[str, Any]:
        """Open the socket, say hello, take welcome (and snapshot); returns welcome."""
        if url is not None:
            self.url = f"{url.replace('http', 'ws', 1)}/{self.url.split('/', 3)[3]}"
        self.socket = await connect(
            self.url,
            subprotocols=[Subprotocol("chatd.v1")],
            compression=None,
            ping_interval=None,
            open_timeout=self.wait_s,
        )
        hello: dict[str, Any] = {
            "type": "hello",
            "token": self.token,
            "session_id": self.session_id,
            "device_id": self.device_id,
            "lang": self.lang,
        }
        if self.epoch:
            hello["resume"] = {"epoch": self.epoch, "seq": self.seq, "alert_seq": 0}
        await self.send(hello)
        welcome = await self._next()
        if welcome["type"] != "welcome":
            raise Broken(f"first frame is {welcome}")
        self.welcome, self.snapshot = welcome, None
        if not welcome["resumed"]:
            self.snapshot = await self._next()
            if self.snapshot["type"] != "snapshot":
                raise Broken("no snapshot after a welcome that is not resumed")
            self.epoch, self.seq = welcome["epoch"], welcome["seq"]
            # In a new epoch an unanswered question is asked again, and is another one to the server (SPEC, section 5).
            self.accepted = {msg_id: known for msg_id, known in self.accepted.items() if msg_id in self.answers}
        elif welcome["seq"] != self.seq + welcome["replay"]:
            raise Broken("welcome counts wrongly")
        return welcome

    async def come_back(self, url: str | None = None) -> dict[str, Any]:
        """Connect as a phone does, again and again while it is told to come back, until it has its session; bounded.

        While Redis is away the server lets a phone in for its alerts alone, and sends it back when Redis answers.
        """
        async with asyncio.timeout(2 * self.wait_s):
            while True:
                try:
                    welcome = await self.connect(url)
                except (ConnectionClosed, InvalidHandshake, OSError, Broken):
                    await asyncio.sleep(0.1)
                    continue
                if not welcome.get("alerts_only"):
                    return welcome
                await self.to_the_end()

    async def send(self, frame: dict[str, Any]) -> None:
        assert self.socket is not None
        await self.socket.send(json.dumps(frame))

    async def _next(self) -> dict[str, Any]:
        assert self.socket is not None
        async with asyncio.timeout(self.wait_s):
            frame: dict[str, Any] = json.loads(await self.socket.recv())
        return frame

    async def receive(self) -> dict[str, Any]:
        """The next frame, checked and noted."""
        frame = await self._next()
        if "seq" in frame and frame["type"] not in ("welcome",):
            self._durable(frame)
        else:
            self.direct.append(frame)
            if frame["type"] == "accepted" and frame.get("client_msg_id") and frame.get("response_id"):
                known = self.accepted.setdefault(frame["client_msg_id"], frame["response_id"])
                if known != frame["response_id"]:
                    raise Broken("one message was accepted as two questions")
        return frame

    def _durable(self, frame: dict[str, Any]) -> None:
        if frame["epoch"] != self.epoch:
            raise Broken("a frame of another epoch")
        if frame["seq"] <= self.seq:
            raise Broken(f"seq {frame['seq']} came again after {self.seq}")
        if frame["seq"] != self.seq + 1:
            raise Broken(f"gap: seq {frame['seq']} after {self.seq}")
        self.seq = frame["seq"]
        self.frames.append(frame)
        if frame["type"] == "ai_response":
            before = self.answers[frame["client_msg_id"]]
            if before and (before[0]["epoch"] == frame["epoch"] or before[0]["response_id"] != frame["response_id"]):
                raise Broken(f"two answers to one message: {[_named(each) for each in (*before, frame)]}")
            # One that a failover of Redis lost comes once more, in a new epoch (SPEC, section 5).
            self.answers[frame["client_msg_id"]] = [frame]

    async def until(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Receive until a frame of this type with these fields has come, and return it."""
        while True:
            frame = await self.receive()
            if frame["type"] == kind and all(frame.get(name) == value for name, value in fields.items()):
                return frame

    async def ask(
        self,
        content: str,
        patient_id: str | None,
        *,
        client_msg_id: str | None = None,
        patient: bool = False,
        **extra: Any,
    ) -> list[dict[str, Any]]:
        """Ask and return the frames up to the answer or the error; a ``patient`` one asks a busy server again."""
        msg_id = client_msg_id or f"m-{secrets.token_hex(6)}"
        question = {"type": "user_message", "client_msg_id": msg_id, "content": content, "patient_id": patient_id}
        await self.send({**question, **extra})
        frames = []
        while True:
            frame = await self.receive()
            frames.append(frame)
            if frame.get("client_msg_id") != msg_id or frame["type"] not in ("ai_response", "error"):
                continue
            if patient and frame["type"] == "error" and frame["code"] == "internal" and frame["retry_after_ms"]:
                frames.clear()
                await asyncio.sleep(frame["retry_after_ms"] / 1000)
                await self.send({**question, **extra})
                continue
            return frames

    async def close(self) -> None:
        if self.socket is not None:
            await self.socket.close()
            self.socket = None

    async def cut(self) -> None:
        """Lose the connection without a word, as a phone that leaves the Wi-Fi."""
        if self.socket is not None:
            self.socket.transport.abort()
            self.socket = None

    async def to_the_end(self) -> int:
        """Take every frame, checked, until the connection ends; returns the close code, 1006 for none."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed as closed:
            self.socket = None
            return closed.rcvd.code if closed.rcvd else 1006

    async def closed_with(self) -> int:
        """Read to the end of the connection; returns the close code."""
        assert self.socket is not None
        try:
            async with asyncio.timeout(self.wait_s):
                while True:
                    self.direct.append(json.loads(await self.socket.recv()))
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006
