"""What waits to be written to one phone: three lanes, bounded in bytes, and an offer that never waits.

Alerts leave before everything else, durable and direct answers before text deltas; deltas of one response that
wait together leave as one. A phone that does not read is closed with 4002 and resumes; nobody waits for it.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque

import msgspec

from protocols.errors import ChatdError


class Lane(enum.IntEnum):
    """Order of leaving."""

    ALERT = 0
    REPLY = 1
    DELTA = 2


class Words(msgspec.Struct, frozen=True):
    """A piece of an answer's text that is being written; it gets its number when it leaves."""

    response_id: str
    section: str
    text: str
    attempt: int


class SlowConsumer(ChatdError):
    """The phone has not read: ``waiting_bytes`` of at most ``max_bytes`` wait, and one more frame does not fit."""

    def __init__(self, waiting_bytes: int, max_bytes: int) -> None:
        super().__init__("slow consumer")
        self.waiting_bytes = waiting_bytes
        self.max_bytes = max_bytes


class Outbox:
    """Frames waiting for one connection.

    ``max_bytes`` bounds the sum of all lanes. ``offer`` and ``offer_delta`` are not coroutines, so no caller can
    be held up by a slow phone. ``take`` has one caller, the connection's write loop; cancelling it loses nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lanes: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self._deltas: dict[tuple[str, str, int], list[str]] = {}
        self._waiting_bytes = 0
        self._not_empty = asyncio.Event()

    @property
    def waiting_bytes(self) -> int:
        return self._waiting_bytes

    def offer(self, frame: bytes, lane: Lane = Lane.REPLY) -> None:
        """Queue an encoded frame.

        Raises:
            SlowConsumer: it does not fit; the outbox is as it was.
        """
        self._reserve(len(frame))
        self._lanes[lane].append(frame)

    def offer_delta(self, response_id: str, section: str, text: str, attempt: int = 1) -> None:
        """Queue a piece of text; it joins what already waits for the same section of the same response and attempt.

        Raises:
            SlowConsumer: it does not fit; the outbox is as it was.
        """
        self._reserve(len(text.encode()))
        self._deltas.setdefault((response_id, section, attempt), []).append(text)

    def drop_deltas(self, response_id: str) -> None:
        """Forget waiting text of a response: its final frame is about to be offered, or what was written is void."""
        for key in [key for key in self._deltas if key[0] == response_id]:
            self._waiting_bytes -= sum(len(text.encode()) for text in self._deltas.pop(key))

    async def take(self) -> bytes | Words:
        """The next frame to write, or text that is still to be numbered; waits for one if there is none."""
        while (next_one := self._pop()) is None:
            self._not_empty.clear()
            await self._not_empty.wait()
        return next_one

    def _reserve(self, size_bytes: int) -> None:
        if self._waiting_bytes + size_bytes > self._max_bytes:
            raise SlowConsumer(self._waiting_bytes, self._max_bytes)
        self._waiting_bytes += size_bytes
        self._not_empty.set()

    def _pop(self) -> bytes | Words | None:
        for lane in self._lanes:
            if lane:
                frame = lane.popleft()
                self._waiting_bytes -= len(frame)
                return frame
        if not self._deltas:
            return None
        # Insertion order: the section that has waited longest.
        response_id, section, attempt = key = next(iter(self._deltas))
        texts = self._deltas.pop(key)
        self._waiting_bytes -= sum(len(text.encode()) for text in texts)
        return Words(response_id, section, "".join(texts), attempt)
