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
from protocols.frames import AiDelta


class Lane(enum.IntEnum):
    """Order of leaving."""

    ALERT = 0
    REPLY = 1
    DELTA = 2


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
        self._deltas: dict[tuple[str, str], list[str]] = {}
        self._next_idx: dict[str, int] = {}
        self._waiting_bytes = 0
        self._not_empty = asyncio.Event()
        self._encode = msgspec.json.Encoder().encode

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

    def offer_delta(self, response_id: str, section: str, text: str) -> None:
        """Queue a piece of text; it joins what already waits for the same section of the same response.

        Raises:
            SlowConsumer: it does not fit; the outbox is as it was.
        """
        self._reserve(len(text.encode()))
        self._deltas.setdefault((response_id, section), []).append(text)

    def drop_deltas(self, response_id: str) -> None:
        """Forget waiting text of a response: its final frame is about to be offered and is authoritative."""
        for key in [key for key in self._deltas if key[0] == response_id]:
            self._waiting_bytes -= sum(len(text.encode()) for text in self._deltas.pop(key))
        self._next_idx.pop(response_id, None)

    async def take(self) -> bytes:
        """The next frame to write, waiting for one if there is none."""
        while (frame := self._pop()) is None:
            self._not_empty.clear()
            await self._not_empty.wait()
        return frame

    def _reserve(self, size_bytes: int) -> None:
        if self._waiting_bytes + size_bytes > self._max_bytes:
            raise SlowConsumer(self._waiting_bytes, self._max_bytes)
        self._waiting_bytes += size_bytes
        self._not_empty.set()

    def _pop(self) -> bytes | None:
        for lane in self._lanes:
            if lane:
                frame = lane.popleft()
                self._waiting_bytes -= len(frame)
                return frame
        if not self._deltas:
            return None
        # Insertion order: the section that has waited longest.
        response_id, section = key = next(iter(self._deltas))
        texts = self._deltas.pop(key)
        self._waiting_bytes -= sum(len(text.encode()) for text in texts)
        idx = self._next_idx.get(response_id, 0)
        self._next_idx[response_id] = idx + 1
        return self._encode(AiDelta(response_id=response_id, idx=idx, section=section, text="".join(texts)))
